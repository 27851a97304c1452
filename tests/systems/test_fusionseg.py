"""FusionSeg's own properties, on the tiny network."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uvos_jax as uvos
from uvos_jax.errors import ConfigError, DataError
from uvos_jax.ops.flow import flow_to_color
from uvos_jax.systems.fusionseg import FUSIONS, grid_size
from uvos_jax.train.optimizer import multiplier_tree


def random_variables(system, seed=2):
    """Variables of the right shapes, drawn on the host (compiling `init` takes longer)."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if path[-1].key == "kernel":
            scale = np.sqrt(1 / np.prod(leaf.shape[:-1]))
            return jnp.asarray(scale * rng.standard_normal(leaf.shape), jnp.float32)
        if path[-1].key in ("scale", "var"):
            return jnp.asarray(0.5 + rng.random(leaf.shape), jnp.float32)
        return jnp.asarray(0.1 * rng.standard_normal(leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(system.init, jax.random.key(0)))


@pytest.fixture(scope="module")
def tiny():
    system = uvos.build("fusionseg:tiny")
    return system, random_variables(system)


@partial(jax.jit, static_argnums=0, static_argnames=("train", "phase"))
def run(system, variables, batch, train=False, phase="default"):
    return system.apply(variables, batch, train=train, phase=phase)


def clip(H, W, T=1, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "frames": jnp.asarray(rng.integers(0, 256, (1, T, H, W, 3)), jnp.uint8),
        "flow": jnp.asarray(rng.standard_normal((1, T, H, W, 2)), jnp.float32),
        "masks": jnp.asarray(rng.random((1, T, H, W)) < 0.2, jnp.uint8),
    }


# ----- the network ----------------------------------------------------------------------------


@pytest.mark.parametrize("n,padded", [(1, 1), (2, 9), (8, 9), (9, 9), (289, 289), (480, 481)])
def test_sides_grow_to_the_next_multiple_of_eight_plus_one(n, padded):
    assert grid_size(n) == padded


def test_padding_is_black_and_logits_are_cut_back(tiny):
    system, variables = tiny
    small, padded = clip(60, 70), clip(65, 73)
    for key in ("frames", "flow"):
        padded[key] = jnp.zeros_like(padded[key]).at[:, :, :60, :70].set(small[key])
    images = system.module_inputs(small)[0]
    assert images.shape == (1, 1, 65, 73, 3)
    np.testing.assert_array_equal(images, system.normalize(padded["frames"]))
    np.testing.assert_allclose(
        images[0, 0, -1, -1], -np.array(system.config.mean) / system.config.std, rtol=1e-6
    )
    outputs, _ = run(system, variables, small)
    assert outputs["logits"].shape == (1, 1, 60, 70, 2)
    assert outputs["motion_scores"].shape == (1, 1, 9, 10, 2)
    # the streams see black beyond the frame, the fusion sees nothing there
    whole, _ = run(system, variables, padded)
    np.testing.assert_allclose(
        outputs["appearance_logits"], whole["appearance_logits"][:, :, :60, :70], atol=1e-5
    )
    assert not np.allclose(outputs["logits"][0, 0, -1], whole["logits"][0, 0, 59, :70], atol=1e-5)


def test_frames_are_padded_to_a_least_size():
    system = uvos.build("fusionseg:tiny", pad_to=(73, 81))
    assert system.module_inputs(clip(20, 90))[1].shape == (1, 1, 73, 97, 3)


def test_flow_pictures_are_those_of_the_whole_frame(tiny):
    system, _ = tiny
    batch = clip(20, 30)
    picture = system.pictures(batch["flow"])
    np.testing.assert_allclose(picture, flow_to_color(batch["flow"], epsilon=2e-16))
    np.testing.assert_array_equal(system.pictures(2 * batch["flow"]), picture)  # speed is lost
    assert np.all(system.pictures(jnp.zeros((1, 1, 4, 4, 2))) == 255)
    fixed = uvos.build("fusionseg:tiny", max_flow=8.0)
    assert not np.allclose(fixed.pictures(2 * batch["flow"]), fixed.pictures(batch["flow"]))


@pytest.mark.parametrize("stream", ["appearance", "motion"])
def test_one_stream_alone_equals_that_stream_of_the_joint_network(tiny, stream):
    system, variables = tiny
    alone = uvos.build("fusionseg:tiny", streams=stream)
    assert ("flow" in alone.spec.requires) is (stream == "motion")
    batch = clip(33, 33)
    joint, _ = run(system, variables, batch)
    if stream == "appearance":
        del batch["flow"]
    own = {kind: {stream: variables[kind][stream]} for kind in ("params", "batch_stats")}
    single, _ = run(alone, own, batch)
    np.testing.assert_allclose(single["logits"], joint[f"{stream}_logits"], atol=1e-5)
    (stage,) = alone.stages(uvos.load_config(f"fusionseg:{stream}"))
    assert stage.phases[0].frozen == ()


def test_missing_flow_is_named(tiny):
    system, variables = tiny
    batch = clip(33, 33)
    del batch["flow"]
    with pytest.raises(DataError, match=r"needs the batch key 'flow' for its joint logits"):
        system.apply(variables, batch, train=False)
    jax.eval_shape(lambda: system.apply(variables, batch, train=True, phase="appearance"))


# ----- training -------------------------------------------------------------------------------


def test_every_stage_moves_its_own_part_only(tiny):
    system, variables = tiny
    config = uvos.load_config("fusionseg:tiny")
    stages = system.stages(config)
    assert [(s.name, s.steps, s.phases[0].data) for s in stages] == [
        ("appearance", 12, "static"),
        ("motion", 12, "motion"),
        ("joint", 6, "video"),
    ]
    for stage in stages:
        phase = stage.phases[0]
        factors = multiplier_tree(variables["params"], phase.lr_multipliers, phase.frozen)
        moving = {name for name, tree in factors.items() if any(jax.tree.leaves(tree))}
        assert moving == {stage.name}


def test_classifiers_learn_faster_in_the_published_recipe():
    system = uvos.build("fusionseg")
    config = uvos.load_config("fusionseg")
    params = jax.eval_shape(system.init, jax.random.key(0))["params"]
    phase = system.stages(config)[1].phases[0]
    factors = multiplier_tree(params, phase.lr_multipliers, (*phase.frozen, *config.optim.frozen))
    assert factors["motion"]["classifier2"] == {"kernel": 10.0, "bias": 20.0}
    assert factors["motion"]["resnet"]["conv1"]["kernel"] == 1.0
    assert not any(jax.tree.leaves(factors["motion"]["resnet"]["bn1"]))
    assert not any(jax.tree.leaves(factors["motion"]["resnet"]["layer1_0"]["downsample_1"]))
    fusion = system.stages(config)[2].phases[0]
    factors = multiplier_tree(params, fusion.lr_multipliers, fusion.frozen)
    assert factors["joint"]["conv2"] == {"kernel": 10.0, "bias": 20.0}


def test_streams_rest_while_the_fusion_learns(tiny):
    system, variables = tiny
    _, updates = run(system, variables, clip(33, 33), train=True, phase="joint")
    jax.tree.map(np.testing.assert_array_equal, updates["batch_stats"], variables["batch_stats"])
    _, updates = run(system, variables, clip(33, 33), train=True, phase="motion")
    appearance, motion = (
        jax.tree.leaves(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), x, y))
        for x, y in (
            (updates["batch_stats"][k], variables["batch_stats"][k])
            for k in ("appearance", "motion")
        )
    )
    assert all(appearance)
    assert not any(motion)


@pytest.mark.parametrize("grid", [True, False])
def test_loss_is_the_mean_cross_entropy_of_labelled_pixels(grid):
    system = uvos.build("fusionseg:tiny", loss_grid=grid)
    rng = np.random.default_rng(1)
    batch = clip(20, 30)
    masks = np.array(batch["masks"])
    masks[..., 8:16, :9] = 255
    scores, full = rng.standard_normal((1, 1, 4, 5, 2)), rng.standard_normal((1, 1, 20, 30, 2))
    outputs = {"motion_scores": jnp.asarray(scores), "logits": jnp.asarray(full)}
    batch["masks"] = jnp.asarray(masks)
    loss, terms = system.loss_fn(outputs, batch, step=0, phase="motion")
    logits = scores if grid else full
    labels = masks[:, :, ::8, ::8] if grid else masks  # rows 0, 8, 16 of 20: the fourth is padding
    total, count = 0.0, 0
    for b, t, y, x in np.ndindex(labels.shape):
        if labels[b, t, y, x] != 255:
            z = logits[b, t, y, x]
            total += np.log(np.exp(z).sum()) - z[labels[b, t, y, x]]
            count += 1
    np.testing.assert_allclose(loss, total / count, rtol=1e-5)
    assert set(terms) == {"cross_entropy", "iou"}


def test_frames_without_flow_do_not_count_where_flow_is_looked_at(tiny):
    system, _ = tiny
    rng = np.random.default_rng(1)
    batch = clip(17, 17, T=2)
    logits = rng.standard_normal((1, 2, 17, 17, 2))
    batch["flow_valid"] = jnp.array([[True, False]])

    def loss(shift, phase="joint"):
        moved = jnp.asarray(logits).at[:, 1].add(shift)
        outputs = {"logits": moved, "appearance_scores": moved[:, :, ::8, ::8]}
        return float(system.loss_fn(outputs, batch, step=0, phase=phase)[0])

    assert loss(jnp.array([3.0, 0.0])) == loss(0.0)
    assert loss(jnp.array([3.0, 0.0]), "appearance") != loss(0.0, "appearance")


def test_the_motion_stream_learns_from_boxes_that_pass(tiny):
    system = uvos.build("fusionseg:tiny", motion_labels="boxes", loss_grid=False)
    assert system.module_kwargs(True, "motion")["teacher"]
    assert not system.module_kwargs(True, "joint")["teacher"]
    assert not system.module_kwargs(False, "motion")["teacher"]
    batch = clip(40, 48, T=2)
    masks = np.zeros((1, 2, 40, 48), np.uint8)
    masks[0, :, 5:25, 8:28] = 1  # one filled box of 20x20 in either frame
    flow = np.zeros((1, 2, 40, 48, 2), np.float32)
    flow[0, 0, 5:25, 8:28] = (3, 0)  # moves in the first frame only
    teacher = np.full((1, 2, 40, 48), -1.0)
    teacher[0, :, 5:23, 8:28] = 1.0  # the teacher finds 90 % of it
    batch |= {"masks": jnp.asarray(masks), "flow": jnp.asarray(flow)}
    appearance = jnp.stack([jnp.zeros_like(teacher), jnp.asarray(teacher)], axis=-1)
    labels, keep = system.pseudo_labels({"appearance_logits": appearance}, batch)
    assert keep.tolist() == [[True, False]]
    np.testing.assert_array_equal(np.asarray(labels[0, 0]) == 1, teacher[0, 0] > 0)
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((1, 2, 40, 48, 2)))
    outputs = {"logits": logits, "appearance_logits": appearance}
    loss, _ = system.loss_fn(outputs, batch, step=0, phase="motion")
    as_masks = uvos.build("fusionseg:tiny", loss_grid=False)
    taken = {**batch, "masks": labels, "valid": keep}
    expected, _ = as_masks.loss_fn({"logits": logits}, taken, step=0, phase="motion")
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_no_gradient_reaches_the_teacher(tiny):
    _, variables = tiny
    system = uvos.build("fusionseg:tiny", motion_labels="boxes")
    batch = clip(33, 33)

    def total(params):
        outputs, _ = system.apply(
            {**variables, "params": params}, batch, train=True, phase="motion"
        )
        assert "appearance_logits" in outputs
        return sum(jnp.sum(x) for x in jax.tree.leaves(outputs))

    gradient = jax.jit(jax.grad(total))(variables["params"])
    assert not any(np.any(g) for g in jax.tree.leaves(gradient["appearance"]))
    assert any(np.any(g) for g in jax.tree.leaves(gradient["motion"]))


# ----- configuration --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "field,value,message",
    [
        ("streams", "both", r"model\.streams is 'both'.*joint"),
        ("fusion", "mean", r"model\.fusion is 'mean'.*release_sum"),
        ("motion_labels", "none", r"model\.motion_labels is 'none'.*boxes"),
        ("box_test", "iou", r"model\.box_test is 'iou'.*tight_box"),
        ("box_overlap", 75.0, r"model\.box_overlap must lie in \[0, 1\], got 75"),
        ("stage_shares", (1.0, 1.0), r"model\.stage_shares must be three numbers"),
    ],
)
def test_wrong_options_are_refused_by_name(field, value, message):
    with pytest.raises(ConfigError, match=message):
        uvos.build("fusionseg:tiny", **{field: value})


def test_every_variant_of_the_config_file_builds():
    from uvos_jax.config import list_variants

    for variant in list_variants("fusionseg"):
        assert uvos.build(f"fusionseg:{variant}").spec.name == "fusionseg"
    assert uvos.build("fusionseg:native").spec.input_size is None


@pytest.mark.parametrize("fusion", FUSIONS)
def test_fusion_is_a_field_of_the_configuration(fusion):
    system = uvos.build(f"fusionseg:tiny,fusion={fusion}")
    params = jax.eval_shape(system.init, jax.random.key(0))["params"]["joint"]
    assert set(params) - {"conva", "convm"} == (
        {"convp"} if fusion == "paper_max" else {"conv1", "conv2"}
    )

"""AGNN's own properties, on the tiny network, and its instance masks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uvos_jax as uvos
from uvos_jax.errors import ConfigError, DataError, ShapeError
from uvos_jax.systems import agnn
from uvos_jax.systems.agnn import instances

SIZE = (33, 41)


@pytest.fixture(scope="module")
def variants():
    """Systems and variables by their `model` overrides, all from one small configuration."""
    known = {}

    def build(base="tiny", **overrides):
        key = (base, *sorted(overrides.items()))
        if key not in known:
            config = uvos.load_config(f"agnn:{base}")
            config.model.input_size = SIZE
            config.model.loss = "code"
            config.model.iou_weight = 0.0
            known[key] = uvos.build(config, **overrides)
        if ("variables", base) not in known:
            rng = np.random.default_rng(2)

            def draw(path, leaf):
                if path[-1].key.endswith("kernel"):
                    scale = np.sqrt(2 / np.prod(leaf.shape[:-1]))
                    scale /= 64 if leaf.shape[:3] == (7, 7, 3) else 1  # pixels reach 150
                    # sharp softmaxes would magnify rounding, which depends on the batch size
                    # and large logits do so, too
                    scale *= 0.1 if path[-2].key in ("affinity", "classifier") else 1
                    return jnp.asarray(scale * rng.standard_normal(leaf.shape), jnp.float32)
                if path[-1].key in ("scale", "var"):
                    return jnp.asarray(0.5 + rng.random(leaf.shape), jnp.float32)
                return jnp.asarray(0.1 * rng.standard_normal(leaf.shape), jnp.float32)

            shapes = jax.eval_shape(known[key].init, jax.random.key(0))
            known["variables", base] = jax.tree_util.tree_map_with_path(draw, shapes)
        return known[key], known["variables", base]

    return build


def clip(T, B=1, seed=0):
    rng = np.random.default_rng(seed)
    frames = jnp.asarray(rng.integers(0, 256, (B, T, *SIZE, 3)), jnp.uint8)
    masks = jnp.asarray(rng.random((B, T, *SIZE)) < 0.2, jnp.uint8)
    return {"frames": frames, "masks": masks}


@partial(jax.jit, static_argnums=0, static_argnames=("train", "phase"))
def run(system, variables, batch, train=False, phase="video"):
    rngs = {"dropout": jax.random.key(0)}
    return system.apply(variables, batch, train=train, phase=phase, rngs=rngs)


@partial(jax.jit, static_argnums=0)
def predict(system, variables, state, chunk):
    return system.predict(variables, state, chunk)


@partial(jax.jit, static_argnums=0)
def prepare(system, variables, batch):
    return system.prepare(variables, batch)


# ----- network --------------------------------------------------------------------------------


def test_variants_follow_release_and_paper_and_every_part_can_be_set_apart():
    release, paper = uvos.build("agnn").module, uvos.build("agnn:paper").module
    assert (release.rounds, release.gate, release.aggregation) == (5, "spatial", "fusion")
    assert (release.loop, release.self_attention, release.gate_bias) == (False, True, False)
    assert (paper.rounds, paper.gate, paper.aggregation) == (3, "channel", "sum")
    assert (paper.loop, paper.self_attention, paper.gate_bias) == (True, False, True)
    mixed = uvos.build("agnn", gate="none", rounds=2, loop=1, aggregation="mean").module
    assert (mixed.rounds, mixed.gate, mixed.aggregation, mixed.loop) == (2, "none", "mean", True)


def test_without_rounds_every_frame_is_decoded_alone(variants):
    system, variables = variants(rounds=0)
    batch = clip(3)
    changed = {**batch, "frames": batch["frames"].at[:, 1:].set(0)}
    a = run(system, variables, batch)[0]
    b = run(system, variables, changed)[0]
    np.testing.assert_allclose(a["logits"][:, 0], b["logits"][:, 0], atol=1e-5)
    nodes = a["embedding"]
    twice = system.module.apply(variables, nodes, nodes, method="read_out")
    np.testing.assert_allclose(a["logits"], twice, atol=1e-4)


def test_permuting_the_frames_permutes_the_masks_of_the_papers_form(variants):
    system, variables = variants("tiny_paper")
    batch, order = clip(3), np.array([2, 0, 1])
    a = run(system, variables, batch)[0]["logits"]
    b = run(system, variables, {**batch, "frames": batch["frames"][:, order]})[0]["logits"]
    np.testing.assert_allclose(a[:, order], b, rtol=1e-4, atol=1e-4)


# ----- training -------------------------------------------------------------------------------


def test_a_static_step_reaches_the_encoder_only_at_its_weight(variants):
    system, variables = variants()
    batch = clip(1, B=2)

    @jax.jit
    def gradient(params):
        def loss(params):
            outputs, _ = system.apply(
                {**variables, "params": params},
                batch,
                train=True,
                phase="static",
                rngs={"dropout": jax.random.key(0)},
            )
            value, terms = system.loss_fn(outputs, batch, step=0, phase="static")
            return value, (terms, system.loss_fn(outputs, batch, step=0, phase="video")[0])

        return jax.value_and_grad(loss, has_aux=True)(params)

    (value, (terms, video)), grads = gradient(variables["params"])
    for name, part in grads.items():
        moved = any(np.any(g != 0) for g in jax.tree.leaves(part))
        assert moved == (name == "encoder"), name
    np.testing.assert_allclose(value, terms["bce"] + terms["l1"], rtol=1e-6)
    np.testing.assert_allclose(value, 0.2 * video, rtol=1e-5)


def test_video_loss_is_the_sum_over_the_nodes_of_bce_over_ratio_plus_l1(variants):
    system, _ = variants()
    batch = clip(3, B=2)
    outputs = {"logits": jax.random.normal(jax.random.key(0), (2, 3, 5, 6, 1))}
    value, _ = system.loss_fn(outputs, batch, step=0, phase="video")
    s = np.asarray(system.probabilities(outputs["logits"], SIZE), np.float64)
    o = np.asarray(batch["masks"], np.float64)
    expected = 0.0
    for t in range(3):
        bce = -o[:, t] * np.log(s[:, t]) - (1 - o[:, t]) * np.log(1 - s[:, t])
        expected += bce.mean() / o[:, t].mean() + 0.8 * np.abs(s[:, t] - o[:, t]).mean()
    np.testing.assert_allclose(value, expected, rtol=1e-4)


def test_recipe_alternates_one_static_and_two_video_steps():
    config = uvos.load_config("agnn")
    (stage,) = uvos.build(config).stages(config)
    assert [p.name for p in stage.phases] == ["static", "video", "video"]
    assert stage.steps == 7800
    assert [m for _, m in stage.phases[0].lr_multipliers] == [1.0, 0.0]
    assert [m for _, m in stage.phases[1].lr_multipliers] == [0.01, 10.0]


# ----- video ----------------------------------------------------------------------------------


def test_predict_with_two_references_equals_the_first_node_of_the_whole_network(variants):
    system, variables = variants()
    batch = clip(3)
    outputs, _ = run(system, variables, batch)
    state = prepare(system, variables, {"frames": batch["frames"][:, 1:]})
    after, probs = predict(system, variables, state, {"frames": batch["frames"][:, :1]})
    expected = system.probabilities(outputs["logits"], SIZE)[:, 0]
    np.testing.assert_allclose(probs[:, 0], expected, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, state, after)


def test_more_references_form_subsets_whose_masks_are_averaged(variants):
    system, variables = variants(num_references=4)
    frames = clip(5)["frames"]
    chunk = {"frames": frames[:, :1]}
    state = prepare(system, variables, {"frames": frames[:, 1:]})
    _, together = predict(system, variables, state, chunk)
    pair, _ = variants()
    apart = []
    for i in (1, 3):
        state = prepare(pair, variables, {"frames": frames[:, i : i + 2]})
        apart.append(predict(pair, variables, state, chunk)[1])
    np.testing.assert_allclose(together, np.mean(apart, axis=0), atol=1e-5)


def test_masks_of_several_scales_are_averaged(variants):
    both, variables = variants(test_scales=(1.0, 0.5))
    frames = clip(3)["frames"]
    chunk, rest = {"frames": frames[:, :1]}, {"frames": frames[:, 1:]}
    probs = []
    for system in (both, variants()[0], variants(test_scales=(0.5,))[0]):
        probs.append(predict(system, variables, prepare(system, variables, rest), chunk)[1])
    np.testing.assert_allclose(probs[0], (probs[1] + probs[2]) / 2, atol=1e-5)
    assert float(jnp.max(jnp.abs(probs[1] - probs[2]))) > 1e-3


def test_interleaved_subsets_hold_every_frame_once():
    assert agnn.interleaved_subsets(7, 3) == [[0, 3, 6], [1, 4], [2, 5]]
    for count in range(1, 12):
        sets = agnn.interleaved_subsets(count, 5)
        assert sorted(i for chosen in sets for i in chosen) == list(range(count))
        assert max(map(len, sets)) <= 5


def test_the_papers_procedure_equals_the_network_on_each_subset(variants):
    system, variables = variants("tiny_paper")
    frames = clip(5)["frames"][0]
    probs = system.predict_interleaved(variables, frames)
    assert probs.shape == (5, *SIZE)
    outputs, _ = run(system, variables, {"frames": frames[None, np.array([0, 2, 4])]})
    expected = system.probabilities(outputs["logits"], SIZE)[0]
    np.testing.assert_allclose(probs[[0, 2, 4]], expected, atol=1e-5)
    with pytest.raises(ShapeError, match=r"frames must be uint8 \[T,H,W,3\]"):
        system.predict_interleaved(variables, frames[0])


# ----- configuration --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "field,value,message",
    [
        ("variant", "papre", r"model\.variant is 'papre'.*release"),
        ("gate", "soft", r"model\.gate is 'soft'.*spatial"),
        ("aggregation", "max", r"model\.aggregation is 'max'.*fusion"),
        ("extension", "all", r"model\.extension is 'all'.*subsets"),
        ("loop", 3, r"model\.loop is 3.*-1"),
        ("nodes", 5, r"model\.nodes is 5.*three nodes.*extension='mean'"),
        ("nodes", 1, r"model\.nodes must be at least 2, got 1"),
        ("num_references", 0, r"model\.num_references must be at least 1, got 0"),
        ("attention_impl", "flash", r"model\.attention_impl is 'flash'.*blockwise"),
        ("test_scales", (), r"model\.test_scales is \(\)"),
    ],
)
def test_wrong_options_are_refused_by_name(field, value, message):
    with pytest.raises(ConfigError, match=message):
        uvos.build("agnn:tiny", **{field: value})


def test_every_variant_of_the_config_file_builds():
    from uvos_jax.config import _import_config_file, config_folder

    for variant in _import_config_file(config_folder() / "agnn.py").VARIANTS:
        assert uvos.build(f"agnn:{variant}").spec.name == "agnn"
    with pytest.raises(ConfigError, match=r"unknown variant 'huge'.*tiny"):
        uvos.load_config("agnn:huge")


# ----- instances ------------------------------------------------------------------------------


def boxes_scene():
    """A map with two bright squares and proposals: good, its duplicate, second, wrong, small."""
    heat = np.zeros((60, 80), np.uint8)
    heat[5:25, 5:25] = heat[30:55, 40:70] = 220
    masks = np.zeros((5, 60, 80), bool)
    masks[0, 5:25, 5:25] = True
    masks[1, 6:25, 5:24] = True
    masks[2, 30:55, 40:70] = True
    masks[3, 0:15, 60:80] = True
    masks[4, 10:14, 10:14] = True
    return heat, masks, np.array([0.9, 0.7, 0.6, 0.6, 0.95])


def test_proposals_on_the_objects_are_selected_best_first():
    heat, masks, scores = boxes_scene()
    binary = instances.binary_map(heat)
    np.testing.assert_array_equal(binary, heat > 0)
    assert instances.select_proposals(binary, masks, scores) == [0, 2]


def test_a_confident_proposal_survives_off_the_map_and_the_weak_need_the_fallback():
    heat, masks, _ = boxes_scene()
    binary = instances.binary_map(heat)
    assert instances.select_proposals(binary, masks[3:4], np.array([0.9])) == [0]
    assert instances.select_proposals(binary, masks[3:4], np.array([0.75])) == [0]  # fallback
    assert instances.select_proposals(binary, masks[3:4], np.array([0.65])) == []
    assert instances.select_proposals(binary, masks[4:5], np.array([0.99])) == []  # small


def test_at_most_twenty_objects_are_kept():
    masks = np.zeros((25, 200, 200), bool)
    for i in range(25):
        y, x = divmod(i, 5)
        masks[i, 40 * y : 40 * y + 20, 40 * x : 40 * x + 20] = True
    assert len(instances.select_proposals(masks.any(0), masks, np.full(25, 0.95))) == 20


def test_objects_keep_their_ids_while_they_move():
    frames, ids = 4, np.zeros((4, 40, 60), np.uint8)
    proposals, flows = [], np.zeros((3, 40, 60, 2), np.float32)
    flows[..., 0] = 3.0
    for t in range(frames):
        masks = np.zeros((2, 40, 60), bool)
        masks[t % 2, 5:20, 3 * t : 3 * t + 15] = True  # order of proposals changes
        masks[1 - t % 2, 22:38, 20 + 3 * t : 34 + 3 * t] = True
        ids[t][masks[t % 2]], ids[t][masks[1 - t % 2]] = 1, 2
        proposals.append((masks, np.array([0.95, 0.94] if t % 2 == 0 else [0.94, 0.95])))
    heat = np.where(ids > 0, 230, 0).astype(np.uint8)
    got = instances.segment_instances(heat, proposals, flows)
    np.testing.assert_array_equal(got, ids)
    # a frame without proposals: the objects are carried along the flow
    proposals[2] = (np.zeros((0, 40, 60), bool), np.zeros(0))
    got = instances.segment_instances(heat, proposals, flows)
    np.testing.assert_array_equal(got[3], ids[3])
    assert np.mean(got[2] == ids[2]) > 0.99


def test_components_can_stand_in_for_proposals():
    heat, _, _ = boxes_scene()
    masks, scores = instances.components_as_proposals(heat)
    assert masks.shape == (2, 60, 80)
    np.testing.assert_allclose(scores, 220 / 255)
    assert {int(m.sum()) for m in masks} == {400, 750}


def test_instances_need_maps_proposals_and_flow_of_one_length():
    heat, masks, scores = boxes_scene()
    with pytest.raises(DataError, match=r"2 maps, 1 proposals and 0 flows"):
        instances.segment_instances(
            np.stack([heat, heat]), [(masks, scores)], np.zeros((0, 60, 80, 2))
        )
    with pytest.raises(ShapeError, match=r"masks \[P,H,W\]"):
        instances.select_proposals(heat > 0, masks[:, :30], scores)

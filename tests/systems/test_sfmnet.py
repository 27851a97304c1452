"""SfM-Net on the tiny network: composition, losses, modes of supervision, geometry files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import uvos_jax as uvos
from tests.cli.conftest import scene, uvos_command, write_frames, write_mp4  # noqa: F401
from uvos_jax.convert.variables import save_variables
from uvos_jax.data.sources import make_source
from uvos_jax.errors import ConfigError, DataError, UnsupportedError
from uvos_jax.ops import geometry as geo
from uvos_jax.predict.predictor import Predictor
from uvos_jax.systems.sfmnet import TERMS

SELF_SUPERVISED = {
    "color", "forward_backward", "smooth_flow", "smooth_motion", "smooth_depth", "small_motion",
}  # fmt: skip
H = W = 64


def draw(system, seed=0, scale=1.0):
    """Variables drawn on the host (compiling `init` takes longer), motion heads included."""
    rng = np.random.default_rng(seed)

    def leaf(path, x):
        names = "/".join(p.key for p in path)
        if path[-1].key in ("scale", "var"):
            return np.ones(x.shape, np.float32)
        if path[-1].key in ("bias", "mean"):
            return np.zeros(x.shape, np.float32)
        size = np.sqrt(2 / np.prod(x.shape[:-1]))
        if names.split("/")[-2] in ("camera_t", "object_t", "camera_r", "object_r"):
            size *= scale
        return (size * rng.standard_normal(x.shape)).astype(np.float32)

    shapes = jax.eval_shape(system.init, jax.random.key(0))
    return jax.tree_util.tree_map_with_path(leaf, shapes)


@pytest.fixture(scope="module")
def system():
    return uvos.build("sfmnet:tiny")


@pytest.fixture(scope="module")
def batch():
    return make_source("raycast", preset="test", size=(H, W), clip_len=2).render(0, 0, 2)


@pytest.fixture(scope="module")
def drawn(system, batch):
    """Variables whose heads move things, and what the network says of two ray-cast pairs."""
    variables = draw(system)
    outputs = jax.jit(lambda v, b: system.apply(v, b, train=False)[0])(variables, batch)
    return variables, jax.device_get(outputs)


# ----- networks -------------------------------------------------------------------------------


def test_maps_of_the_full_networks_have_the_published_sizes():
    system = uvos.build("sfmnet")
    shapes = jax.eval_shape(system.init, jax.random.key(0))
    params = shapes["params"]
    trunk = params["motion_network"]["trunk"]
    assert [trunk[f"e{i}_conv"]["kernel"].shape[-1] for i in range(1, 7)] == [
        32, 64, 128, 256, 512, 1024,
    ]  # fmt: skip
    assert [trunk[f"d{i}_conv"]["kernel"].shape[-1] for i in range(5, 0, -1)] == [
        512, 256, 128, 64, 32,
    ]  # fmt: skip
    assert trunk["e1_conv"]["kernel"].shape == (3, 3, 6, 32)
    assert params["motion_network"]["fc1"]["kernel"].shape == (4 * 12 * 1024, 512)
    outputs = jax.eval_shape(
        lambda v, b: system.apply(v, b, train=False)[0], shapes, system.example_batch(1)
    )
    assert outputs["depth"].shape == (1, 2, 128, 384)
    assert outputs["object_masks"].shape == (1, 2, 128, 384, 3)
    assert outputs["flow"].shape == (1, 2, 128, 384, 2)
    assert outputs["camera"].shape == (1, 2, 3, 4)


@pytest.mark.parametrize("override", ["norm=gn", "norm=none", "up=deconv"])
def test_norms_and_upsamplings_keep_every_shape(system, override):
    other = uvos.build(f"sfmnet:tiny,{override}")
    variables = jax.eval_shape(other.init, jax.random.key(0))
    example = system.example_batch(1)
    outputs = jax.eval_shape(lambda v, b: other.apply(v, b, train=False)[0], variables, example)
    assert outputs["flow"].shape == (1, 2, H, W, 2)
    assert outputs["object_masks"].shape == (1, 2, H, W, 2)
    assert ("batch_stats" in variables) == override.startswith("up")


def test_a_fresh_network_sees_no_motion_and_marks_nothing(system, batch):
    """Zero heads: identity motions. Only the pivots' way there and back rounds."""
    variables, zeros = draw(system), np.zeros_like
    motion = variables["params"]["motion_network"]
    heads = {k: jax.tree.map(zeros, v) for k, v in motion.items() if k.startswith(("cam", "obj"))}
    params = {**variables["params"], "motion_network": {**motion, **heads}}
    outputs = jax.jit(lambda v: system.apply(v, batch, train=False)[0])(
        {**variables, "params": params}
    )
    np.testing.assert_allclose(outputs["flow"], 0.0, atol=1e-3)
    np.testing.assert_allclose(outputs["camera"][..., :3], np.tile(np.eye(3), (2, 2, 1, 1)))
    np.testing.assert_allclose(outputs["displacements"], 0.0, atol=1e-5)
    assert float(outputs["logits"].max()) < -6.9  # 1/1000
    assert float(outputs["depth"].min()) >= 1
    assert float(outputs["depth"].max()) <= 100


@pytest.mark.parametrize("override", ["rotation=tanh", "rotation=clip", "rotation=tanh_pi"])
def test_every_form_of_angles_gives_rotations(override):
    network = uvos.build(f"sfmnet:tiny,{override}").module.motion
    from uvos_jax.systems.sfmnet import MotionNetwork

    raw = jnp.asarray(np.random.default_rng(0).standard_normal((7, 3)) * 3, jnp.float32)
    R = MotionNetwork(**network).rotations(raw)
    products = np.einsum("nij,nkj->nik", R, R)
    # a sine of exactly 1 keeps a cosine of 1e-4, for the sake of the gradient
    np.testing.assert_allclose(products, np.tile(np.eye(3), (7, 1, 1)), atol=5e-4)
    np.testing.assert_allclose(MotionNetwork(**network).rotations(0 * raw)[0], np.eye(3))


def test_clipped_depth_stays_between_one_and_the_limit(batch):
    system = uvos.build("sfmnet:tiny,depth_activation=relu_clip,depth_limit=7")
    variables = draw(system, seed=3)
    head = variables["params"]["structure_network"]["depth"]
    head["kernel"] = 20 * head["kernel"]
    frames = batch["frames"][:, 0] / 255.0
    depth = jax.jit(
        lambda v: system.module.apply(
            v, frames, method=lambda module, x: module.structure_network(x, False)
        )
    )(variables)
    assert float(depth.min()) == 1.0
    assert float(depth.max()) == 7.0


# ----- composition ----------------------------------------------------------------------------


def rotated(R, x):
    return np.asarray(R, np.float64) @ np.asarray(x, np.float64)


def test_flow_is_the_composition_of_depth_masks_and_motions(drawn, batch):
    """Pixel by pixel, as the paper writes it: objects, then the camera, then the projection."""
    _, out = drawn
    cx, cy, fx, fy = np.asarray(batch["intrinsics"][0], np.float64)
    for t in range(2):
        for y, x in ((0, 0), (13, 50), (40, 7), (63, 63)):
            d = float(out["depth"][0, t, y, x])
            point = d * np.array([((x + 0.5) / W - cx) / fx, ((y + 0.5) / H - cy) / fy, 1.0])
            moved = point.copy()
            for k in range(2):
                there = rotated(out["object_R"][0, t, k], point) + out["object_t"][0, t, k]
                moved += out["object_masks"][0, t, y, x, k] * (there - point)
            moved = rotated(out["camera"][0, t, :, :3], moved) + out["camera"][0, t, :, 3]
            z = max(moved[2], geo.MIN_DEPTH)
            target = np.array([(fx * moved[0] / z + cx) * W, (fy * moved[1] / z + cy) * H]) - 0.5
            np.testing.assert_allclose(
                out["flow"][0, t, y, x], target - np.array([x, y]), rtol=1e-3, atol=1e-2
            )


def test_directions_share_weights_whatever_their_place_in_the_batch(system, drawn, batch):
    variables, out = drawn
    backwards = {**batch, "frames": batch["frames"][:, ::-1]}
    other = jax.jit(lambda v, b: system.apply(v, b, train=False)[0])(variables, backwards)
    for key in ("depth", "camera", "object_masks"):
        np.testing.assert_allclose(other[key][:, ::-1], out[key], rtol=1e-4, atol=1e-4)


def test_only_objects_that_move_by_themselves_count(system):
    """Object 0 shifts by twice `speed`, object 1 by half of it; elsewhere nothing is marked."""
    shape = (1, 16, 20)
    intrinsics = geo.default_intrinsics(1)
    points = geo.back_project(jnp.full(shape, 5.0), intrinsics)
    masks = jnp.zeros((*shape, 2)).at[:, 2:6, 2:8, 0].set(0.9).at[:, 9:14, 9:15, 1].set(0.9)
    per_pixel = 5.0 / 20  # a shift along X that moves the picture by one pixel
    speed = system.config.speed
    shift = jnp.asarray([[2 * speed * per_pixel, 0, 0], [0.5 * speed * per_pixel, 0, 0]])
    # displacements hold the mask already: undo it so that the picture moves by the full shift
    outputs = {
        "depth": jnp.full(shape, 5.0), "points": points, "object_masks": masks,
        "displacements": jnp.where(masks[..., None] > 0, shift, 0.0),
    }  # fmt: skip
    probs = np.asarray(jax.jit(system.moving_probability)(outputs, intrinsics))[0]
    np.testing.assert_allclose(probs[2:6, 2:8], 0.9, atol=1e-4)
    np.testing.assert_allclose(probs[9:14, 9:15], 0.45, atol=1e-3)
    assert probs[7, 7] == 0.0


# ----- losses ---------------------------------------------------------------------------------


def bilinear(image, x, y):
    h, w = image.shape[:2]
    x, y = np.clip(x, 0, w - 1), np.clip(y, 0, h - 1)
    x0, y0 = int(np.floor(x)), int(np.floor(y))
    x1, y1 = min(x0 + 1, w - 1), min(y0 + 1, h - 1)
    a, b = x - x0, y - y0
    return (1 - b) * ((1 - a) * image[y0, x0] + a * image[y0, x1]) + b * (
        (1 - a) * image[y1, x0] + a * image[y1, x1]
    )


def pair(rng, h=10, w=12, K=2):
    """Made-up outputs of one pair and its batch, small enough for loops; float64 arrays."""
    rotation = geo.axis_angle_rotation(jnp.asarray(0.2 * rng.standard_normal((2, 2, 3))))
    shift = rng.standard_normal((2, 2, 3, 1))
    camera, true = (
        np.concatenate([rotation[i][:, :, :], shift[i][:, :, :]], axis=-1)[None] for i in (0, 1)
    )
    outputs = {
        "depth": 5 + rng.random((1, 2, h, w)),
        "flow": 2 * rng.standard_normal((1, 2, h, w, 2)),
        "moved": 5 + rng.random((1, 2, h, w, 3)),
        "displacements": rng.standard_normal((1, 2, h, w, K, 3)),
        "mask_logits": rng.standard_normal((1, 2, h, w, K)),
        "camera": camera,
    }
    batch = {
        "frames": rng.integers(0, 256, (1, 2, h, w, 3)).astype(np.uint8),
        "valid": np.ones((1, 2), bool),
        "masks": rng.integers(0, K + 1, (1, 2, h, w)).astype(np.uint8),
        "has_mask": np.ones((1, 2), bool),
        "depth": np.where(rng.random((1, 2, h, w)) < 0.8, 4 + rng.random((1, 2, h, w)), 0.0),
        "flow": rng.standard_normal((1, 2, h, w, 2)),
        "flow_valid": np.array([[True, False]]),
        "camera": true,
        "camera_valid": np.array([[True, False]]),
    }
    return outputs, batch


def slow_terms(out, batch, log_depth):
    """Every term of the loss of one pair by loops over pixels, weights left out.

    The sum over both directions is twice the mean over both.
    """
    frames = batch["frames"][0] / 255.0
    _, h, w = out["depth"][0].shape
    terms = {}
    colors, gaps = [], []
    for t in range(2):
        for y in range(h):
            for x in range(w):
                u, v = out["flow"][0, t, y, x]
                if not (-0.01 <= x + u <= w - 0.99 and -0.01 <= y + v <= h - 0.99):
                    continue
                seen = bilinear(frames[1 - t], x + u, y + v)
                colors.append(np.abs(frames[t, y, x] - seen).sum())
                depth = bilinear(out["depth"][0, 1 - t], x + u, y + v)
                gaps.append(abs(out["moved"][0, t, y, x, 2] - depth) / 100.0)
    terms["color"], terms["forward_backward"] = 2 * np.mean(colors), 2 * np.mean(gaps)

    def first(x):
        return np.abs(np.diff(x, axis=1)).mean() + np.abs(np.diff(x, axis=0)).mean()

    def second(x):
        return np.abs(np.diff(x, 2, axis=1)).mean() + np.abs(np.diff(x, 2, axis=0)).mean()

    terms["smooth_flow"] = sum(first(out["flow"][0, t] / w) for t in range(2))
    terms["smooth_motion"] = sum(first(out["displacements"][0, t]) for t in range(2))
    terms["smooth_depth"] = sum(second(out["depth"][0, t] / 100.0) for t in range(2))
    terms["small_motion"] = np.abs(out["displacements"]).sum(-1).mean() * 2
    R, c = out["camera"][0, 0, :, :3], out["camera"][0, 0, :, 3]
    R_true, c_true = batch["camera"][0, 0, :, :3], batch["camera"][0, 0, :, 3]
    terms["camera_translation"] = np.linalg.norm(R.T @ (c_true - c))
    terms["camera_rotation"] = np.arccos(np.clip((np.trace(R.T @ R_true) - 1) / 2, -1, 1))
    known = batch["depth"] > 0
    gap = np.abs(out["depth"] - batch["depth"])
    if log_depth:
        gap = np.abs(np.log(out["depth"]) - np.log(np.maximum(batch["depth"], 1e-3)))
    terms["depth"] = 2 * gap[known].mean()
    terms["flow"] = np.abs(out["flow"][0, 0] - batch["flow"][0, 0]).sum(-1).mean()
    masks = 0.0
    for t in range(2):
        x = out["mask_logits"][0, t]
        costs = []
        for order in ((1, 2), (2, 1)):
            target = np.stack([batch["masks"][0, t] == order[k] for k in range(2)], -1)
            costs.append((np.logaddexp(0, x) - x * target).mean())
        masks += min(costs)
    terms["masks"] = masks
    return terms


def as_device(tree):
    return {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in tree.items()}


def with_terms(weights, **fields):
    """A tiny system with these terms only, and its jitted loss."""
    config = uvos.load_config("sfmnet:tiny")
    config.model.term_weights.update({**dict.fromkeys(TERMS, 0.0), **weights})
    config.model.update(fields)
    system = uvos.build(config)
    return system, jax.jit(lambda outputs, batch: system.loss_fn(outputs, batch, step=0))


@pytest.fixture(scope="module")
def every_term():
    """A system in which every term has the weight 1, and its loss."""
    return with_terms(dict.fromkeys(TERMS, 1.0))


def test_every_term_equals_loops_over_pixels(rng, every_term):
    out, batch = pair(rng)
    total, terms = every_term[1](as_device(out), as_device(batch))
    expected = slow_terms(out, batch, log_depth=True)
    assert set(terms) == set(expected) == set(TERMS)
    for name, value in expected.items():
        np.testing.assert_allclose(terms[name], value, rtol=2e-4, err_msg=name)
    np.testing.assert_allclose(total, sum(expected.values()), rtol=2e-4)


def test_weights_scale_their_terms_and_depth_may_be_compared_without_logarithm(rng):
    out, batch = pair(rng)
    _, run = with_terms({"depth": 3.0, "small_motion": 1.0}, log_depth_loss=False)
    total, terms = run(as_device(out), as_device(batch))
    expected = slow_terms(out, batch, log_depth=False)
    assert set(terms) == {"depth", "small_motion"}
    np.testing.assert_allclose(terms["depth"], 3 * expected["depth"], rtol=2e-4)
    np.testing.assert_allclose(total, terms["depth"] + expected["small_motion"], rtol=2e-4)


def test_the_order_of_object_masks_does_not_matter(rng, every_term):
    out, batch = pair(rng)
    swapped = {**out, "mask_logits": out["mask_logits"][..., ::-1]}
    (_, a), (_, b) = (every_term[1](as_device(o), as_device(batch)) for o in (out, swapped))
    np.testing.assert_allclose(a["masks"], b["masks"], rtol=1e-5)


def test_the_truth_costs_next_to_nothing(batch):
    """Exact depth, camera, flow and masks: supervised terms vanish, colour falls far below that
    of no motion (it is not zero: things get hidden, and both frames are sampled)."""
    names = ("color", "depth", "flow", "masks", "camera_translation", "camera_rotation")
    _, run = with_terms(dict.fromkeys(names, 1.0))
    batch = {k: np.asarray(v) for k, v in batch.items()}
    flow = batch["flow"].copy()
    flow[:, 1] = 0.0  # the source knows the forward direction only
    outputs = {
        "depth": batch["depth"],
        "flow": flow,
        "mask_logits": np.where(batch["masks"][..., None] == [1, 2], 20.0, -20.0),
        "camera": batch["camera"],
    }
    _, terms = run(as_device(outputs), batch)
    for name in ("depth", "flow", "masks", "camera_translation"):
        assert terms[name] < 1e-4, name
    assert terms["camera_rotation"] < 2e-3
    frames = batch["frames"] / 255.0
    still = np.abs(frames[:, 0] - frames[:, 1]).sum(-1).mean()
    forward = float(terms["color"]) - still  # the backward half has no motion here
    assert forward < 0.5 * still


def test_unknown_poses_and_depths_teach_nothing_and_break_nothing(every_term, rng):
    out, batch = map(as_device, pair(rng))
    zeros = ("camera", "camera_valid", "depth", "flow_valid", "has_mask")
    unknown = {**batch, **{name: np.zeros_like(batch[name]) for name in zeros}}
    run = every_term[1]
    gradient, terms = jax.jit(jax.grad(lambda out: run(out, unknown), has_aux=True))(out)
    for name in ("camera_translation", "camera_rotation", "depth", "flow", "masks"):
        assert terms[name] == 0, name
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradient))
    assert not np.any(gradient["camera"])


def test_color_alone_reaches_every_part_of_both_networks(batch):
    """Self-supervision: the photometric error has a gradient for depth, masks and all motions."""
    system, _ = with_terms({"color": 1.0})
    variables = draw(system, scale=0.1)

    @jax.jit
    def gradient(params):
        def loss(params):
            outputs, _ = system.apply({**variables, "params": params}, batch, train=True)
            return system.loss_fn(outputs, batch, step=0)[0]

        return jax.grad(loss)(params)

    found = gradient(variables["params"])
    heads = [
        found["structure_network"]["depth"],
        *(v for k, v in found["motion_network"].items() if k != "trunk"),
        found["structure_network"]["trunk"]["e1_conv"],
        found["motion_network"]["trunk"]["e1_conv"],
    ]
    assert len(heads) == 12
    for head in heads:
        largest = float(jnp.abs(head["kernel"]).max())
        assert np.isfinite(largest)
        assert largest > 1e-8


def test_structural_dissimilarity_shares_the_color_term(rng, every_term):
    out, batch = map(as_device, pair(rng))
    plain = every_term[1](out, batch)[1]["color"]
    mixed, alone = (
        with_terms({"color": 1.0}, dissimilarity=share)[1](out, batch)[0] for share in (0.85, 1.0)
    )
    np.testing.assert_allclose(mixed, 0.15 * plain + 0.85 * alone, rtol=1e-5)
    assert 0 < alone <= 2


# ----- recipes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "variant,adds,source",
    [
        ("full", set(), "folder"),
        ("ego_motion", {"camera_translation", "camera_rotation"}, "raycast"),
        ("depth", {"depth"}, "raycast"),
        ("flow", {"flow"}, "raycast"),
        ("masks", {"masks"}, "raycast"),
        ("supervised", set(TERMS) - SELF_SUPERVISED, "raycast"),
        ("paper", set(), "folder"),
    ],
)
def test_modes_of_supervision_add_their_terms(variant, adds, source):
    config = uvos.load_config(f"sfmnet:{variant}")
    active = {name for name, weight in uvos.build(config).weights.items() if weight}
    expected = SELF_SUPERVISED | adds
    assert active == expected - ({"small_motion"} if variant == "paper" else set())
    assert config.data.train[0]["name"] == source


def test_the_papers_literal_choices_are_one_variant():
    model = uvos.load_config("sfmnet:paper").model
    chosen = (model.depth_activation, model.rotation, model.pivot_add_back, model.pixel_offset)
    assert chosen == ("relu_clip", "clip", False, 0.0)


@pytest.mark.parametrize("term,key", [(t, k) for t, keys in TERMS.items() for k in keys])
def test_a_term_without_its_data_is_refused_by_name(rng, term, key):
    out, batch = map(as_device, pair(rng))
    batch.pop(key)
    with pytest.raises(DataError, match=rf"{term}' needs '{key}'.*term_weights\.{term}=0"):
        with_terms({term: 1.0})[0].loss_fn(out, batch, step=0)


def test_longer_clips_are_refused(rng, every_term):
    out, batch = map(as_device, pair(rng))
    longer = {k: np.concatenate([v, v[:, :1]], axis=1) for k, v in out.items()}
    with pytest.raises(DataError, match=r"pairs of frames, got clips of 3: set clip_len=2"):
        every_term[0].loss_fn(longer, batch, step=0)


@pytest.mark.parametrize(
    "fields,message",
    [
        ({"norm": "batch"}, r"model\.norm is 'batch': use one of"),
        ({"up": "nearest"}, r"model\.up is 'nearest'"),
        ({"depth_activation": "exp"}, r"model\.depth_activation is 'exp'"),
        ({"rotation": "quaternion"}, r"model\.rotation is 'quaternion'"),
        ({"objects": 5}, r"model\.objects must be 1 to 4, got 5"),
        ({"input_size": (60, 64)}, r"\(60, 64\): both sides must be multiples of 8"),
        ({"term_weights": {"colour": 1.0}}, r"term_weights has \['colour'\]: the terms are"),
    ],
)
def test_wrong_options_are_refused_by_name(fields, message):
    with pytest.raises(ConfigError, match=message):
        uvos.build("sfmnet:tiny", **fields)


# ----- video and geometry files ---------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(system, tmp_path_factory):
    path = tmp_path_factory.mktemp("sfmnet") / "tiny.npz"
    save_variables(draw(system, scale=0.1), path, config=uvos.load_config("sfmnet:tiny"))
    return path


@pytest.mark.parametrize("count,size,write", [(1, (36, 50), "png"), (2, (36, 50), "mp4"),
                                              (4, (51, 37), "png")])  # fmt: skip
def test_geometry_is_written_for_every_frame(
    tmp_path, weights, uvos_command, count, size, write  # noqa: F811
):  # fmt: skip
    video = tmp_path / ("walk.mp4" if write == "mp4" else "walk")
    (write_mp4 if write == "mp4" else write_frames)(video, scene(count, size))
    out = tmp_path / "out"
    code, text, _ = uvos_command(
        "predict", video, "--weights", weights, "--out", out, "--save", "geometry"
    )
    assert code == 0
    assert f"{out / 'geometry' / 'walk'}" in text
    assert len(list((out / "walk").glob("*.png"))) == count
    folder = out / "geometry/walk"
    expected = {
        "depth": (H, W), "flow": (H, W, 2), "object_masks": (H, W, 2), "camera": (3, 4),
    }  # fmt: skip
    for t in range(count):
        with np.load(folder / f"{t:05d}.npz") as file:
            assert {k: file[k].shape for k in file} == expected
            assert np.all(np.isfinite(file["flow"]))
        for kind, mode in (("depth", "L"), ("flow", "RGB")):
            picture = Image.open(folder / kind / f"{t:05d}.png")
            assert (picture.mode, picture.size) == (mode, (W, H))
    with np.load(folder / "camera.npz") as file:
        assert file["camera"].shape == (count, 3, 4)
        assert file["path"].shape == (count, 3)
        np.testing.assert_array_equal(file["path"][0], 0.0)
    assert Image.open(folder / "camera.png").size == (256, 256)
    again = ("predict", video, "--weights", weights, "--out", out, "--save", "geometry")
    code, _, err = uvos_command(*again)
    assert code == 2
    assert "geometry/walk exists already: use --overwrite" in err


def test_frames_are_paired_with_the_next_one_and_the_last_with_the_one_before(
    tmp_path, weights, system
):
    from uvos_jax.predict.extras import write_extras

    frames = scene(4, (H, W))
    predictor = Predictor.load(weights)
    folder = write_extras(predictor, frames, tmp_path / "geometry")
    run = jax.jit(lambda v, b: system.apply(v, b, train=False)[0])
    for t, partner in ((0, 1), (2, 3), (3, 2)):
        pair = jnp.asarray(frames[[t, partner]])[None]
        alone = run(predictor.variables, {"frames": pair})
        with np.load(folder / f"{t:05d}.npz") as file:
            np.testing.assert_allclose(file["flow"], alone["flow"][0, 0], atol=1e-3)
            np.testing.assert_allclose(file["depth"], alone["depth"][0, 0], rtol=1e-4)


def test_geometry_of_a_system_without_any_is_refused_before_any_mask(tmp_path, uvos_command):  # noqa: F811
    config = uvos.load_config("cosnet:tiny")
    path = tmp_path / "cosnet.npz"
    shapes = jax.eval_shape(uvos.build(config).init, jax.random.key(0))
    save_variables(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes), path, config=config)
    video = write_frames(tmp_path / "walk", scene(2, (36, 50)))
    code, _, err = uvos_command(
        "predict", video, "--weights", path, "--out", tmp_path / "o", "--save", "geometry"
    )
    assert code == 2
    assert "cosnet gives masks only" in err
    assert not (tmp_path / "o").exists()


def test_extras_of_other_systems_are_refused(tmp_path):
    from uvos_jax.predict.extras import write_extras

    with pytest.raises(UnsupportedError, match="gives masks only"):
        write_extras(Predictor.default(), scene(2, (36, 50)), tmp_path / "g")


def test_the_causal_form_streams_and_begins_with_nothing_moving(weights):
    system = uvos.build("sfmnet:tiny,causal=true")
    predictor = Predictor(system, draw(system, scale=0.1))
    frames = scene(3, (H, W))
    whole = predictor.predict(frames).probs
    streamed = np.stack(list(predictor.stream(frames, probabilities=True)))
    np.testing.assert_allclose(streamed, whole, atol=1e-4)
    with pytest.raises(UnsupportedError, match="looks at future frames"):
        Predictor.load(weights).stream(frames)

"""Scenes obey geometry: invertible motion, exact flow, occlusion, consistent labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from tests.synthetic.conftest import CLIPS, CONFIG, edited
from uvos_jax import synthetic
from uvos_jax.errors import ConfigError
from uvos_jax.metrics.davis import j_and_f
from uvos_jax.ops.flow import planar_motion, rigid_residual
from uvos_jax.synthetic import motion
from uvos_jax.synthetic.render import coverage, pixel_grid, visible_layer


def warp(image, flow):
    """Bilinear samples of `[H,W,C]` at x + flow; numpy."""
    H, W = flow.shape[:2]
    y, x = np.mgrid[:H, :W].astype(np.float64)
    at = [y + flow[..., 1], x + flow[..., 0]]
    return np.stack(
        [ndimage.map_coordinates(image[..., c], at, order=1, mode="nearest")
         for c in range(image.shape[-1])], axis=-1,
    )  # fmt: skip


def away_from_edges(depth, radius=2):
    """Pixels whose surroundings belong to one layer."""
    low = ndimage.minimum_filter(depth, size=2 * radius + 1)
    return low == ndimage.maximum_filter(depth, size=2 * radius + 1)


def test_a_key_means_one_clip_and_another_key_another(draw, render_all, records):
    again = render_all(draw(0))
    for name in synthetic.OUTPUTS:
        np.testing.assert_array_equal(again[name], records[0][1][name])
    assert np.abs(records[0][1]["video"] - records[1][1]["video"]).mean() > 0.01


def test_shapes_types_and_ranges_are_those_of_the_docstring(records):
    T, (H, W) = CONFIG.frames, CONFIG.size
    for _, record in records:
        assert set(record) == set(synthetic.OUTPUTS)
        assert record["video"].shape == (T, H, W, 3)
        assert record["video"].min() >= 0
        assert record["video"].max() <= 1
        assert record["mask"].dtype == np.uint8
        assert record["ids"].dtype == np.int32
        assert record["flow_fw"].shape == (T, H, W, 2)
        assert record["occ_fw"].dtype == bool
        assert all(np.isfinite(v).all() for v in record.values() if v.dtype == np.float32)


def test_motion_is_undone_exactly_on_every_kind_of_layer(records):
    x = pixel_grid(CONFIG)[::4, ::4]

    @jax.jit
    def residual(scene, t):
        def one(layer):
            u = motion.image_to_layer(layer, scene["camera"], x, t)
            back = motion.layer_to_image(layer, scene["camera"], u, t)
            return jnp.abs(back - x).max()

        return jax.vmap(one)(scene["layers"])

    for scene, _ in records:
        for t in (-2.5, 0.0, 1.7):
            assert residual(scene, t).max() < 1e-3


def test_flow_carries_colours_to_the_next_frame(draw, render_all):
    """Photometric effects are switched off: surfaces keep their colour.

    Left out: edges inside textures, which sampling between pixels blurs.
    """

    def smooth(image):
        size = (3, 3, 1)
        span = ndimage.maximum_filter(image, size) - ndimage.minimum_filter(image, size)
        return span.max(-1, keepdims=True) < 0.1

    off = {
        k: jnp.zeros(()) for k in ("noise", "fog", "low_resolution", "light_strength", "shutter")
    }
    off |= {"drift": jnp.zeros(3), "gamma": jnp.ones(())}
    with_flow, without = [], []
    for seed in range(2 * CLIPS):
        scene = edited(draw(seed), photometric=off)
        record = render_all(scene)
        for t in range(CONFIG.frames - 1):
            keep = ~record["occ_fw"][t] & away_from_edges(record["depth"][t])
            there = away_from_edges(record["depth"][t + 1])[..., None].astype(float)
            now, later = record["video"][t], record["video"][t + 1]
            there *= smooth(later)
            keep &= (warp(there, record["flow_fw"][t]) * smooth(now))[..., 0] > 0.99
            with_flow.append(np.abs(warp(later, record["flow_fw"][t]) - now)[keep].mean())
            without.append(np.abs(later - now)[keep].mean())
    with_flow, without = np.asarray(with_flow), np.asarray(without)
    assert with_flow.max() < 0.001
    assert with_flow.mean() < 0.1 * without.mean()


def test_forward_and_backward_flow_cancel_where_nothing_is_hidden(records):
    residuals = []
    for _, record in records:
        for t in range(CONFIG.frames - 1):
            forward, backward = record["flow_fw"][t], record["flow_bw"][t + 1]
            there = away_from_edges(record["depth"][t + 1])[..., None].astype(float)
            keep = ~record["occ_fw"][t] & (warp(there, forward)[..., 0] > 0.99)
            back = forward + warp(backward, forward)
            residuals.append(np.abs(back)[keep].ravel())
    assert np.median(np.concatenate(residuals)) < 0.01


def test_occlusion_equals_a_search_in_supersampled_id_maps(records):
    """Eight points a pixel and axis: the landing point's layer is looked up, not computed."""
    factor, (H, W) = 8, CONFIG.size

    x = (np.arange(W * factor) + 0.5) / factor - 0.5 - (W - 1) / 2
    y = (np.arange(H * factor) + 0.5) / factor - 0.5 - (H - 1) / 2
    fine = jnp.asarray(np.stack(np.meshgrid(x, y), -1), jnp.float32)
    layers_at = jax.jit(lambda scene, t, x: visible_layer(scene, x, t))
    both = either = looked_at = 0
    for scene, record in records:
        t = 1
        times = np.arange(CONFIG.frames) - (CONFIG.frames - 1) / 2
        here = np.asarray(layers_at(scene, times[t], pixel_grid(CONFIG)))
        later = np.asarray(layers_at(scene, times[t] + 1, fine))
        y, x = np.mgrid[:H, :W].astype(float)
        x, y = x + record["flow_fw"][t, ..., 0], y + record["flow_fw"][t, ..., 1]
        inside = (x >= 0) & (x <= W - 1) & (y >= 0) & (y <= H - 1)
        column = np.clip(np.floor((x + 0.5) * factor).astype(int), 0, W * factor - 1)
        row = np.clip(np.floor((y + 0.5) * factor).astype(int), 0, H * factor - 1)
        expected = ~inside | (later[row, column] != here)
        # An eighth of a pixel beside an outline the search itself is uncertain.
        sure = away_from_edges(later, 1)[row, column] | ~inside
        both += (sure & expected & record["occ_fw"][t]).sum()
        either += (sure & (expected | record["occ_fw"][t])).sum()
        looked_at += sure.mean() / CLIPS
    assert either > 200
    assert looked_at > 0.95
    assert both / either > 0.97


def test_masks_ids_and_depths_agree(records):
    for scene, record in records:
        salient = (record["ids"] == int(scene["primary"])) & bool(
            scene["is_moving"][int(scene["primary"])]
        )
        np.testing.assert_array_equal(record["mask"] > 0, salient)
        for i in np.unique(record["ids"]):
            # A limb lies a hair before or behind its body; every layer is fronto-parallel.
            depths = np.unique(record["depth"][record["ids"] == i])
            assert np.ptp(depths) <= 1e-3
            assert i == 0 or depths.max() < record["depth"][record["ids"] == 0].max(initial=99)


def test_nothing_moves_when_neither_camera_nor_objects_do(draw, render_all):
    record = render_all(edited(draw(1), camera={}, objects_still=True))
    assert np.abs(record["flow_fw"]).max() < 1e-3
    assert not record["mask"].any()
    np.testing.assert_array_equal(
        record["ids"], np.broadcast_to(record["ids"][:1], record["ids"].shape)
    )


def test_a_pan_moves_every_layer_by_pan_over_depth(draw, render_all):
    pan = np.asarray([6.0, -3.0], np.float32)
    record = render_all(edited(draw(2), camera={"pan": pan}, objects_still=True))
    expected = -pan / record["depth"][..., None]
    np.testing.assert_allclose(record["flow_fw"], expected, atol=1e-3)
    np.testing.assert_allclose(record["flow_bw"], -expected, atol=1e-3)
    assert not record["mask"].any()


def test_two_hundred_clips_have_the_intended_spread(draw):
    outputs = ("mask", "flow_fw")

    @jax.jit
    def statistics(scene):
        record = synthetic.render(scene, jnp.zeros(1), CONFIG, outputs)
        speed = jnp.sqrt((record["flow_fw"] ** 2).sum(-1)) / np.hypot(*CONFIG.size)
        camera = scene["camera"]
        moves = sum(jnp.abs(camera[k]).sum() for k in ("pan", "shake", "follow"))
        return (record["mask"] > 0).mean(), jnp.median(speed), moves == 0

    parts = [jax.device_get(statistics(draw(seed))) for seed in range(200)]
    area, speed, still = (np.asarray(x) for x in zip(*parts, strict=True))
    assert 0.03 < np.median(area[area > 0]) < 0.15
    assert np.quantile(area, 0.98) < 0.5
    assert (area > 0).mean() > 0.85
    assert 0.002 < np.quantile(speed, 0.75) < 0.05
    # 25 % static cameras: three standard deviations of 200 draws are 9 points.
    assert 0.25 - 0.092 < still.mean() < 0.25 + 0.092


def test_truth_against_itself_scores_one(records):
    for _, record in records:
        mask = record["mask"] > 0
        j, f = j_and_f(mask, mask)
        np.testing.assert_array_equal(j, 1.0)
        np.testing.assert_array_equal(f, 1.0)


@pytest.mark.slow
def test_gradients_of_the_renderer_are_finite(draw):
    cfg = CONFIG.replace(height=24, width=32)

    def is_float(x):
        return jnp.issubdtype(x.dtype, jnp.floating)

    @jax.jit
    def gradient(scene):
        leaves, tree = jax.tree.flatten(scene)

        def brightness(floats):
            floats = iter(floats)
            merged = [next(floats) if is_float(x) else x for x in leaves]
            scene = jax.tree.unflatten(tree, merged)
            return synthetic.render(scene, jnp.zeros(1), cfg, ("video",))["video"].mean()

        return jax.grad(brightness)([x for x in leaves if is_float(x)])

    grads = jax.device_get(gradient(draw(3)))
    assert all(np.isfinite(g).all() for g in grads)
    assert any((g != 0).any() for g in grads)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: synthetic.config("tset"), "synthetic preset 'tset' is unknown"),
        (lambda: synthetic.config("test", hight=3), "no field 'hight'; did you mean height"),
        (lambda: synthetic.config("test", height=8), "at least 16x16"),
        (lambda: synthetic.config("test", objects=0), "at least 1"),
        (lambda: synthetic.config("test", label="fg"), "synthetic label 'fg' is unknown"),
        (lambda: synthetic.render({}, None, CONFIG, ("vidoe",)), "'vidoe'"),
        (lambda: synthetic.demo_clip("pan"), "demo clip 'pan' is unknown"),
    ],
)
def test_wrong_settings_are_named(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


def test_a_curriculum_starts_easy_and_ends_as_configured():
    start, end = synthetic.curriculum(CONFIG, 0.0), synthetic.curriculum(CONFIG, 0.3)
    assert end == CONFIG
    assert start.motion == pytest.approx(CONFIG.motion / 3)
    assert (start.contrast, start.camouflage, start.static_camera) == (0.8, 0.0, 0.6)


OUTDOOR = synthetic.config("outdoor", height=64, width=96, frames=3, ground=1.0, restless=1.0)


def test_the_ground_moves_by_pan_over_depth_and_is_nearer_below():
    pan = np.asarray([5.0, 0.0], np.float32)

    @jax.jit
    def panned(key):
        scene = synthetic.sample_scene(key, OUTDOOR)
        scene = edited(scene, camera={"pan": pan}, objects_still=True)
        return synthetic.render(scene, None, OUTDOOR, ("flow_fw", "flow_bw", "depth"))

    record = panned(jax.random.key(3))
    expected = -pan / np.asarray(record["depth"])[..., None]
    np.testing.assert_allclose(record["flow_fw"], expected, atol=1e-3)
    np.testing.assert_allclose(record["flow_bw"], -expected, atol=1e-3)
    ground = np.asarray(record["depth"])[1].max(axis=1)  # nothing is further away
    assert ground[0] > 1.2 * ground[-1]


def test_motion_over_restless_ground_is_undone_exactly():
    x = pixel_grid(OUTDOOR)[::4, ::4]

    @jax.jit
    def back_and_forth(seed, t):
        scene = synthetic.sample_scene(jax.random.key(seed), OUTDOOR)
        layer = jax.tree.map(lambda v: v[0], scene["layers"])
        u = motion.image_to_layer(layer, scene["camera"], x, t)
        return motion.layer_to_image(layer, scene["camera"], u, t), layer["shear_amplitude"]

    for seed in range(6):
        for t in (-1.0, 0.5, 4.0):
            there, amplitude = back_and_forth(seed, t)
            assert np.abs(amplitude).min() > 0
            np.testing.assert_allclose(there, x, atol=2e-3)


WATER = synthetic.config(
    "water", height=64, width=96, frames=3, objects=1, limbs=0, distractors=0, occluders=0,
    reflection=1.0, spray=0.0, deformation=0.0, object_counts=(1.0,),
)  # fmt: skip


def test_a_reflection_has_the_shape_and_motion_of_its_object_upside_down():
    still = {"shear_amplitude": jnp.zeros((2, 2))}
    x = pixel_grid(WATER)[::3, ::3]

    @jax.jit
    def both(seed, t):
        scene = synthetic.sample_scene(jax.random.key(seed), WATER)
        camera = jax.tree.map(jnp.zeros_like, scene["camera"])
        camera["wave_frequency"] = jnp.ones_like(camera["wave_frequency"])
        camera["target"] = scene["camera"]["target"]
        mirrored, body = ({**jax.tree.map(lambda v, i=i: v[i], scene["layers"]), **still}
                          for i in (1, 2))  # far to near  # fmt: skip
        level = (body["center"][1] + mirrored["center"][1]) / 2
        below = jnp.stack([x[..., 0], 2 * level - x[..., 1]], axis=-1)
        ids = jnp.stack([mirrored["id"], body["id"]])
        return (
            coverage(body, camera, x, t)[0], coverage(mirrored, camera, below, t)[0],
            level - body["center"][1], ids,
        )  # fmt: skip

    for seed in range(6):
        for t in (-2.0, 0.0, 3.0):
            above, below, depth, ids = both(seed, t)
            assert np.ptp(above) > 5
            assert depth > 0
            assert ids.tolist() == [0, 1]
            np.testing.assert_allclose(below, above, atol=1e-2)


@pytest.mark.slow
def test_what_an_object_drags_along_is_none_of_it():
    cfg = WATER.replace(spray=1.0, restless=0.0, static_camera=1.0, moving_threshold=0.0)
    rendered = jax.jit(lambda i: synthetic.clip(synthetic.clip_key(0, i), cfg, synthetic.OUTPUTS))
    without = cfg.replace(reflection=1e-9, spray=1e-9)  # as many layers, the same draws
    plain = jax.jit(lambda i: synthetic.clip(synthetic.clip_key(0, i), without, synthetic.OUTPUTS))
    dragged = 0
    for i in range(6):
        record, alone = rendered(i), plain(i)
        assert not np.any(record["mask"] & ~(alone["mask"] > 0))  # spray may hide, never add
        np.testing.assert_array_equal(record["mask"] > 0, record["ids"] == 1)
        moving = np.linalg.norm(record["flow_fw"], axis=-1) > 0.02
        assert not np.any((np.linalg.norm(alone["flow_fw"], axis=-1) > 0.02) & (alone["mask"] == 0))
        dragged += np.sum(moving & (np.asarray(record["mask"]) == 0))
        outside = (np.asarray(record["ids"]) == 0) & ~moving
        assert outside.any()
    assert dragged > 200


def test_rocks_move_as_one_scene_at_rest_that_is_no_plane():
    cfg = synthetic.config(
        "rocks", height=96, width=160, static_camera=0.0, restless=0.0, object_speed=0.0,
        object_speed_floor=0.0, deformation=0.0, articulation=0.0, follow_camera=0.0,
    )  # fmt: skip
    rendered = jax.jit(
        lambda i: synthetic.clip(synthetic.clip_key(0, i), cfg, ("ids", "flow_fw", "depth"))
    )
    rigid, planar = [], []
    for i in range(12):
        record = jax.device_get(rendered(i))
        flow, rest = (
            record["flow_fw"][0],
            (record["ids"][0] == 0) | (record["ids"][0] > cfg.objects),
        )
        near = record["depth"][0][rest].min()
        assert near < 8
        size = np.median(np.linalg.norm(flow[rest], axis=-1))
        if near > 2.5 or size < 0.5:
            continue
        field = jnp.asarray(flow)
        for left, shares in (
            (rigid_residual(field), rigid), (field - planar_motion(field), planar)
        ):  # fmt: skip
            shares.append(np.mean(np.linalg.norm(np.asarray(left)[rest], axis=-1) > 0.1 * size))
    assert len(rigid) >= 4
    assert np.mean(rigid) < 0.05
    assert np.mean(planar) > 0.1

"""Ray-cast scenes: what they say of depth, pose and flow is what their pictures show."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvos_jax.data.schema import validate_example
from uvos_jax.data.sources import make_source
from uvos_jax.data.transforms import Augment
from uvos_jax.errors import ConfigError
from uvos_jax.ops import geometry as g
from uvos_jax.ops.warp import backward_warp
from uvos_jax.synthetic.raycast import raycast_clip, raycast_config

CFG = raycast_config("test", height=48, width=64, frames=3, moving=2, still=1, supersample=2)


@pytest.fixture(scope="module")
def clips():
    """Four clips, batched."""
    keys = jax.random.split(jax.random.key(3), 4)
    return jax.device_get(jax.jit(jax.vmap(lambda k: raycast_clip(k, CFG)))(keys))


def test_scenes_hold_what_they_promise(clips):
    assert clips["video"].shape == (4, 3, 48, 64, 3)
    assert clips["video"].min() >= 0
    assert clips["video"].max() <= 1
    assert clips["video"].std() > 0.05
    assert set(np.unique(clips["mask"])) == {0, 1, 2}
    assert np.all(clips["depth"] > 0)
    assert np.all(np.isfinite(clips["flow_fw"]))
    assert 0.02 < np.mean(clips["mask"] > 0) < 0.9


def test_flow_is_depth_object_motion_and_camera_motion_together(clips):
    """The flow follows from the other outputs by SfM-Net's composition."""
    for b in range(4):
        for t in range(2):
            depth, intrinsics = clips["depth"][b, t][None], clips["intrinsics"][b][None]
            points = g.back_project(jnp.asarray(depth), jnp.asarray(intrinsics))
            masks = np.stack([clips["mask"][b, t] == k + 1 for k in range(2)], axis=-1)[None]
            motion = clips["object_motion"][b, t][None]
            shifts = g.object_displacements(
                points, jnp.asarray(masks, jnp.float32), jnp.asarray(motion[..., :3]),
                jnp.asarray(motion[..., 3]),
            )  # fmt: skip
            camera = jnp.asarray(clips["camera"][b, t])
            moved = g.rotate(camera[:, :3], points + shifts.sum(3)) + camera[:, 3]
            flow = g.flow_of_points(moved, jnp.asarray(intrinsics))[0]
            near = np.asarray(moved[0, ..., 2]) > 0.1
            np.testing.assert_allclose(flow[near], clips["flow_fw"][b, t][near], atol=2e-2)


def test_warping_the_next_frame_gives_the_frame_where_nothing_is_hidden(clips):
    for t in range(2):
        warped = backward_warp(
            jnp.asarray(clips["video"][:, t + 1]), jnp.asarray(clips["flow_fw"][:, t])
        )
        error = np.abs(warped - clips["video"][:, t]).mean(-1)
        identity = np.abs(clips["video"][:, t + 1] - clips["video"][:, t]).mean(-1)
        seen = ~clips["occ_fw"][:, t]
        assert error[seen].mean() < 0.35 * identity[seen].mean()


def test_still_solids_and_planes_move_with_the_camera_only(clips):
    static = clips["mask"][:, 0] == 0
    intrinsics = jnp.asarray(clips["intrinsics"])
    points = g.back_project(jnp.asarray(clips["depth"][:, 0]), intrinsics)
    camera = jnp.asarray(clips["camera"][:, 0])[:, None, None]
    moved = g.rotate(camera[..., :3], points) + camera[..., 3]
    flow = np.asarray(g.flow_of_points(moved, intrinsics))
    near = static & (np.asarray(moved[..., 2]) > 0.1)
    np.testing.assert_allclose(flow[near], clips["flow_fw"][:, 0][near], atol=2e-2)
    assert np.abs(flow - clips["flow_fw"][:, 0])[~static].max() > 0.5


def test_the_source_gives_valid_examples_that_repeat():
    source = make_source("raycast", preset="test", size=(32, 48), clip_len=2)
    example = source.sample(5, np.random.default_rng(0))
    validate_example(example, require=("frames", "masks", "depth", "camera", "flow", "intrinsics"))
    again = source[5]
    assert all(np.array_equal(example[k], again[k]) for k in example)
    assert not np.array_equal(example["frames"], source[6]["frames"])
    assert example["camera_valid"].tolist() == [True, False]


def test_wrong_scene_fields_are_named():
    with pytest.raises(ConfigError, match=r"no field 'walls'"):
        make_source("raycast", scene={"walls": 3})
    with pytest.raises(ConfigError, match=r"preset 'huge'.*test"):
        make_source("raycast", preset="huge")
    with pytest.raises(ConfigError, match=r"at least 8x8.*4x4"):
        make_source("raycast", size=(4, 4))


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_cropped_and_mirrored_geometry_still_explains_the_flow(flip):
    """Depth and camera of a scene without moving solids give its flow after augmentation too."""
    source = make_source("raycast", preset="test", size=(48, 64), clip_len=2, scene={"moving": 0})
    augment = Augment((48, 64), flip=flip, crop=(0.75, 0.75))
    example = augment(source[1], np.random.default_rng(1))
    assert not np.allclose(example["intrinsics"], source[1]["intrinsics"])
    intrinsics = jnp.asarray(example["intrinsics"])[None]
    points = g.back_project(jnp.asarray(example["depth"])[:1], intrinsics)
    camera = jnp.asarray(example["camera"][0])
    flow = g.flow_of_points(g.rotate(camera[:, :3], points) + camera[:, 3], intrinsics)
    error = np.abs(np.asarray(flow[0]) - example["flow"][0])
    assert np.median(error) < 0.05
    assert np.median(np.abs(example["flow"][0])) > 0.3


def test_independent_augmentation_drops_the_camera():
    source = make_source("raycast", preset="test", size=(32, 32), clip_len=2)
    example = Augment((32, 32), independent=True)(source[0], np.random.default_rng(0))
    assert not {"camera", "camera_valid", "intrinsics", "flow"} & set(example)

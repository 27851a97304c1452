"""Batches, sources, pseudo-videos, degraded flow and the demo clips."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.synthetic.conftest import CONFIG as CFG
from uvos_jax import synthetic
from uvos_jax.data.schema import validate_example
from uvos_jax.types import flatten


@pytest.fixture(scope="module")
def batch():
    return jax.device_get(synthetic.batch(jax.random.key(7), 6, 4, CFG))


@pytest.fixture(scope="module")
def source():
    return synthetic.GrainSource(CFG, length=30, seed=7)


def test_batches_are_slices_of_one_endless_set(batch, source):
    for i in range(4):
        example = source[24 + i]
        # Two programs of one computation: a grey level may fall on the other side of a half.
        difference = example["frames"].astype(int) - np.round(255 * batch["video"][i])
        assert np.abs(difference).max() <= 1
        assert (difference != 0).mean() < 1e-3
        assert (example["masks"] != batch["mask"][i]).mean() < 1e-4
    assert not np.array_equal(batch["video"][0], batch["video"][1])


@pytest.mark.slow
def test_a_batch_sharded_over_eight_devices_is_the_same(batch):
    assert jax.device_count() >= 8, "tests run on eight simulated devices"
    mesh = Mesh(np.asarray(jax.devices()[:8]), ("data",))

    def one(index):
        return synthetic.clip(jax.random.fold_in(jax.random.key(7), index), CFG)

    indices = jax.device_put(jnp.arange(20, 28), NamedSharding(mesh, PartitionSpec("data")))
    per_device = jax.shard_map(
        lambda i: jax.vmap(one)(i),
        mesh=mesh, in_specs=PartitionSpec("data"), out_specs=PartitionSpec("data"),
        check_vma=False,
    )  # fmt: skip
    record = jax.jit(per_device)(indices)
    assert len(record["video"].sharding.device_set) == 8
    assert np.abs(np.asarray(record["video"])[4:] - batch["video"]).mean() < 1e-5
    assert (np.asarray(record["mask"])[4:] != batch["mask"]).mean() < 1e-4


def test_the_source_follows_the_data_contract_and_repeats_itself(source):
    example = source[3]
    validate_example(example)
    again = pickle.loads(pickle.dumps(source))[3]
    for name in example:
        np.testing.assert_array_equal(example[name], again[name])
    np.testing.assert_array_equal(source[3 - 30]["frames"], example["frames"])
    assert int(example["example_id"]) == 3
    assert len(source) == 30
    with pytest.raises(IndexError, match="synthetic clip 30 of 30"):
        source[30]
    other = synthetic.GrainSource(CFG, 30, seed=8)
    assert not np.array_equal(other[3]["frames"], example["frames"])


def test_flow_of_an_example_is_valid_except_on_the_last_frame(records):
    example = synthetic.to_example(records[0][1])
    validate_example(example)
    assert example["flow_valid"].tolist() == [True] * (CFG.frames - 1) + [False]
    assert example["flow"].dtype == np.float32


def still():
    image = np.full((40, 60, 3), 0.2, np.float32)
    image += np.random.default_rng(0).uniform(0, 0.2, image.shape).astype(np.float32)
    mask = np.zeros((40, 60), np.uint8)
    mask[12:28, 20:40] = 1
    image[mask > 0] = (0.9, 0.3, 0.1)
    return image, mask


@pytest.fixture(scope="module")
def pseudo():
    make = jax.jit(lambda seed, *pair: synthetic.pseudo_video(jax.random.key(seed), *pair, 3))
    return lambda seed, pair=None: jax.device_get(make(np.uint32(seed), *(pair or still())))


def test_a_still_becomes_a_clip_whose_mask_follows_its_object(pseudo):
    reds, moved = [], 0.0
    for seed in range(8):
        clip = pseudo(seed)
        assert clip["video"].shape == (3, 40, 60, 3)
        assert clip["mask"].dtype == np.uint8
        assert clip["video"].min() >= 0
        assert clip["video"].max() <= 1
        for frame, mask in zip(clip["video"], clip["mask"], strict=True):
            assert 0.6 < mask.sum() / 320 < 1.5
            red = frame[..., 0] > 0.6
            reds.append((red & (mask > 0)).sum() / (red | (mask > 0)).sum())
        moved = max(moved, (clip["mask"][0] != clip["mask"][-1]).mean())
    assert np.mean(reds) > 0.9
    assert moved > 0.01


def test_uncovered_background_is_filled_without_traces_of_the_object(pseudo):
    worst = max(
        (clip["video"][..., 0] - 10.0 * (_grown(clip["mask"]) > 0)).max()
        for clip in map(pseudo, range(8))
    )
    assert worst < 0.65


def _grown(mask):
    from scipy import ndimage

    return np.stack([ndimage.binary_dilation(m > 0, iterations=2) for m in mask])


def test_a_still_without_object_stays_without_mask(pseudo):
    image, mask = still()
    clip = pseudo(0, (image, 0 * mask))
    assert not clip["mask"].any()
    assert np.isfinite(clip["video"]).all()


def test_degraded_flow_errs_about_as_much_as_an_estimator():
    flow = np.zeros((2, 48, 64, 2), np.float32)
    flow[:, 10:30, 20:44] = (4.0, -2.0)
    hidden = np.zeros((2, 48, 64), bool)
    hidden[:, 10:30, 44:48] = True
    rough = np.asarray(jax.jit(synthetic.degrade_flow)(jax.random.key(0), flow, hidden))
    error = np.sqrt(((rough - flow) ** 2).sum(-1))
    assert np.isfinite(rough).all()
    assert 0.05 < np.median(error) < 2.0
    edge = np.zeros((48, 64), bool)
    edge[8:32, 18:22] = True
    assert error[:, edge].mean() > error[:, ~edge].mean()


def test_packaged_demo_scenes_are_what_the_sampler_draws():
    drawn = synthetic.demo.draw_scenes()
    packaged = dict(flatten(synthetic.demo._packaged()))
    assert packaged.keys() == drawn.keys()
    for path, values in drawn.items():
        np.testing.assert_allclose(packaged[path], values, rtol=1e-4, atol=1e-4, err_msg=path)


def test_demo_clips_show_what_they_say():
    names = synthetic.demo_clips()
    assert len(names) == 8
    for name in names:
        clip = synthetic.demo_clip(name, flow=True)
        assert clip["frames"].shape == (16, 128, 224, 3)
        assert clip["frames"].dtype == np.uint8
        assert clip["masks"].shape == clip["frames"].shape[:3]
        area = (clip["masks"] > 0).mean((1, 2))
        assert (area > 0.004).mean() > 0.9, name
        assert area.max() < 0.5, name
        assert np.abs(clip["flow"]).max() > 0.5, name

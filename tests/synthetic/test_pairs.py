"""Pairs of frames from stills by a simulated motion field."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from uvos_jax import synthetic
from uvos_jax.data import sources
from uvos_jax.data.schema import validate_example
from uvos_jax.errors import ConfigError
from uvos_jax.ops.warp import backward_warp

H, W = 48, 64


@pytest.fixture(scope="module")
def still():
    y, x = np.mgrid[:H, :W]
    image = np.stack([np.sin(x / 5), np.cos(y / 7), np.sin((x + y) / 9)], -1) * 0.4 + 0.5
    mask = ((y - 20) ** 2 + (x - 30) ** 2 < 100).astype(np.uint8)
    image[mask > 0] = 0.9
    return jnp.asarray(image, jnp.float32), jnp.asarray(mask)


@pytest.fixture(scope="module")
def pair(still):
    """Jitted (seed, motion) -> record."""
    make = jax.jit(lambda seed, motion: synthetic.saliency_pair(
        jax.random.key(seed), *still, motion=motion))  # fmt: skip
    return lambda seed, motion=1.0: make(seed, motion)


def test_without_motion_both_frames_are_the_still(pair, still):
    record = pair(3, 0.0)
    for t in range(2):
        np.testing.assert_allclose(record["video"][t], still[0], atol=1e-6)
        np.testing.assert_array_equal(record["mask"][t], still[1])
    # the difference of two positions computed apart: zero up to rounding, in pixels
    np.testing.assert_allclose(record["flow_fw"], 0, atol=1e-6)


def test_flow_fetches_the_first_frame_from_the_second(pair):
    for seed in range(3):
        record = pair(seed)
        warped = backward_warp(record["video"][1:], record["flow_fw"][:1])[0]
        np.testing.assert_allclose(warped, record["video"][0], atol=2e-5)
        alpha = record["mask"][1:, ..., None].astype(jnp.float32)
        mask = backward_warp(alpha, record["flow_fw"][:1])[0, ..., 0]
        np.testing.assert_array_equal(mask > 0.5, record["mask"][0] > 0)


def test_object_and_background_move_apart_within_their_ranges(pair, still):
    inside = np.asarray(still[1]) > 0
    moves = []
    for seed in range(12):
        flow = np.asarray(pair(seed)["flow_fw"][0])
        moves.append((flow[inside].mean(0), flow[:6].mean((0, 1))))
        assert np.all(np.abs(flow[inside].mean(0)) < [0.12 * W + 2, 0.12 * H + 2])
    moves = np.asarray(moves)
    apart = np.linalg.norm(moves[:, 0] - moves[:, 1], axis=-1)
    assert np.median(apart) > 2.0
    assert moves[:, 0].std() > moves[:, 1].std()


def test_an_empty_mask_gives_a_moved_background(still):
    record = synthetic.saliency_pair(jax.random.key(0), still[0], jnp.zeros((H, W), jnp.uint8))
    assert np.all(np.isfinite(record["flow_fw"]))
    assert not record["mask"].any()


@pytest.fixture
def stills(tmp_path, still):
    image = (np.asarray(still[0]) * 255).astype(np.uint8)
    for name in ("a", "b"):
        Image.fromarray(image).save(tmp_path / f"{name}.jpg")
        Image.fromarray(np.asarray(still[1]) * 255).save(tmp_path / f"{name}.png")
    return tmp_path


def test_the_source_gives_new_motions_reproducibly(stills):
    source = sources.make_source("saliency_pairs", root=str(stills), size=(32, 40), flow=True)
    assert len(source) == 2
    draws = [source.sample(0, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    for example in draws:
        validate_example(example)
        assert example["frames"].shape == (2, 32, 40, 3)
        assert example["flow_valid"].tolist() == [True, False]
    np.testing.assert_array_equal(draws[0]["frames"], draws[1]["frames"])
    assert np.any(draws[0]["frames"] != draws[2]["frames"])


def test_pairs_run_both_ways_when_no_flow_is_asked_for(stills):
    source = sources.make_source("saliency_pairs", root=str(stills), size=(32, 40))
    rng = np.random.default_rng(0)
    pairs = [source.sample(0, rng)["frames"] for _ in range(16)]
    # frame 0 of some and frame 1 of the others is the still itself
    backwards = sum(np.array_equal(p[0], q[1]) for p in pairs for q in pairs)
    assert 0 < backwards < 16 * 16
    assert "flow" not in source.sample(0, rng)


def test_longer_clips_are_refused(stills):
    with pytest.raises(ConfigError, match="clips of 2 frames, not 3"):
        sources.make_source("saliency_pairs", root=str(stills), clip_len=3)

"""Normalisation of frames for each family of networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvos_jax.errors import ConfigError
from uvos_jax.ops import normalize
from uvos_jax.ops.normalize import normalize_frames


@pytest.fixture
def frames(rng):
    return jnp.asarray(rng.integers(0, 256, (2, 3, 4, 5, 3)), jnp.uint8)


def test_imagenet_statistics_apply_to_rgb_in_0_to_1(frames):
    expected = (np.asarray(frames) / 255 - normalize.IMAGENET_MEAN) / normalize.IMAGENET_STD
    np.testing.assert_allclose(normalize_frames(frames, "imagenet"), expected, atol=1e-5)


def test_caffe_networks_get_bgr_minus_mean(frames):
    ours = normalize_frames(frames, "caffe_bgr")
    red = np.asarray(frames[..., 0], np.float32)
    np.testing.assert_allclose(ours[..., 2], red - normalize.CAFFE_BGR_MEAN[2], atol=1e-4)
    np.testing.assert_allclose(
        ours, np.asarray(frames, np.float32)[..., ::-1] - normalize.CAFFE_BGR_MEAN, atol=1e-4
    )


def test_unit_is_only_scaled(frames):
    np.testing.assert_allclose(
        normalize_frames(frames, "unit"), np.asarray(frames) / 255, rtol=1e-6
    )


def test_constants_can_be_overridden_in_the_results_order(frames):
    ours = normalize_frames(frames, "caffe_bgr", mean=(1.0, 2.0, 3.0), std=(2.0, 4.0, 8.0))
    expected = (np.asarray(frames, np.float32)[..., ::-1] - (1, 2, 3)) / (2, 4, 8)
    np.testing.assert_allclose(ours, expected, rtol=1e-6)
    shifted = normalize_frames(frames, "unit", mean=(0.5, 0.5, 0.5))
    np.testing.assert_allclose(shifted, np.asarray(frames) / 255 - 0.5, atol=1e-6)


@pytest.mark.parametrize("kind", normalize.NORMALIZATIONS)
def test_the_result_is_float32_and_jittable(frames, kind):
    jitted = jax.jit(lambda x: normalize_frames(x, kind))(frames)
    assert jitted.dtype == jnp.float32
    np.testing.assert_allclose(jitted, normalize_frames(frames, kind), rtol=1e-5, atol=1e-5)
    as_float = normalize_frames(frames.astype(jnp.float32), kind)
    np.testing.assert_allclose(as_float, normalize_frames(frames, kind), rtol=1e-6)


def test_an_unknown_kind_is_refused(frames):
    with pytest.raises(ConfigError, match=r"normalization 'vgg' is unknown: use one of"):
        normalize_frames(frames, "vgg")

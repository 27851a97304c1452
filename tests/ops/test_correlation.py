"""Cost volumes and the Resample layer against their originals."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvos_jax.errors import ConfigError, ShapeError
from uvos_jax.ops.correlation import correlation
from uvos_jax.ops.resample import resample_flownet

DATA = Path(__file__).resolve().parents[1] / "data"


def nhwc(x):
    return jnp.asarray(x.transpose(0, 2, 3, 1))


@pytest.fixture(scope="module")
def stored():
    return dict(np.load(DATA / "ops_correlation.npz"))


@pytest.fixture(scope="module")
def maps(stored):
    return nhwc(stored["f1"]), nhwc(stored["f2"])


def test_correlation_and_its_gradients_equal_the_reference(stored, maps):
    @jax.jit
    def run(first, second, cotangent):
        volume, pull = jax.vjp(lambda a, b: correlation(a, b, 4, step=2), first, second)
        return volume, pull(cotangent)

    volume, gradients = run(*maps, nhwc(stored["cotangent"]))
    np.testing.assert_allclose(volume, nhwc(stored["out_maxdisp8_stride2_2"]), atol=2e-6)
    for got, name in zip(gradients, ("grad_f1", "grad_f2"), strict=True):
        np.testing.assert_allclose(got, nhwc(stored[name]), atol=2e-6)
    np.testing.assert_allclose(
        correlation(*maps, 3), nhwc(stored["out_maxdisp3_stride2_1"]), atol=2e-6
    )


def test_windows_of_products_equal_the_reference(stored, maps):
    reference = stored["out_kernel3_patch7_dil1"]
    reference = nhwc(reference.reshape(2, 49, *reference.shape[3:]))
    ours = correlation(*maps, 3, kernel_size=3, normalize=False)
    np.testing.assert_allclose(ours, reference, rtol=1e-5, atol=2e-5)


def test_correlation_peaks_at_the_true_shift():
    x = jax.random.normal(jax.random.key(0), (1, 12, 12, 16))
    volume = correlation(x, jnp.roll(x, (1, -2), axis=(1, 2)), 3)
    dx, dy = -2, 1
    assert int(volume[0, 6, 6].argmax()) == (dy + 3) * 7 + dx + 3


def test_correlation_refuses_maps_of_different_shape_and_even_windows(maps):
    with pytest.raises(ShapeError, match="two maps of one shape"):
        correlation(maps[0], maps[1][:, 1:], 2)
    with pytest.raises(ConfigError, match="odd kernel_size"):
        correlation(*maps, 2, kernel_size=2)


@pytest.mark.parametrize("name", ["up_16x20", "down_7x9", "anisotropic_16x10"])
def test_resampling_equals_the_caffe_layer(name):
    stored = dict(np.load(DATA / "ops_resample.npz"))
    reference = nhwc(stored[name])
    ours = resample_flownet(nhwc(stored["x"]), reference.shape[1:3])
    np.testing.assert_allclose(ours, reference, rtol=1e-5, atol=3e-6)


def test_resampling_refuses_empty_sizes():
    with pytest.raises(ShapeError, match=r"cannot go from \(4, 4\) to \(0, 3\)"):
        resample_flownet(jnp.zeros((1, 4, 4, 1)), (0, 3))

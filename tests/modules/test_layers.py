"""Convolutions that are computed another way than XLA would."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvos_jax.modules import layers
from uvos_jax.modules.layers import Conv


@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7])
@pytest.mark.parametrize("width", [8, 9])
def test_columns_in_pairs_are_the_same_convolution(kernel_size, width, rng):
    x = jnp.asarray(rng.normal(size=(2, 6, width, 5)), jnp.float32)
    plain = Conv(4, kernel_size, use_bias=True)
    variables = plain.init(jax.random.key(0), x)
    pairs = Conv(4, kernel_size, use_bias=True, in_pairs=True)
    np.testing.assert_allclose(
        pairs.apply(variables, x), plain.apply(variables, x), rtol=1e-5, atol=1e-5
    )


def test_what_cannot_go_in_pairs_does_not(rng):
    x = jnp.asarray(rng.normal(size=(1, 8, 8, 4)), jnp.float32)
    for options in ({"stride": 2}, {"dilation": 2}, {"groups": 2}, {"padding": 0}):
        plain = Conv(4, 3, **options)
        variables = plain.init(jax.random.key(0), x)
        found = Conv(4, 3, in_pairs=True, **options).apply(variables, x)
        np.testing.assert_array_equal(found, plain.apply(variables, x))


@pytest.mark.parametrize("size", [(5, 5), (7, 12), (3, 20)])
@pytest.mark.parametrize("dilation", [2, 6])
def test_taps_of_a_wide_dilation_sum_to_the_convolution(size, dilation, rng):
    """Taps inside the image, partly outside and wholly outside."""
    x = jnp.asarray(rng.normal(size=(2, *size, 4)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 4, 3)), jnp.float32)

    def xla(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (1, 1),
            [(dilation, dilation)] * 2,
            rhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    def taps(x, kernel):
        return layers._conv_by_taps(x, kernel, dilation)

    np.testing.assert_allclose(taps(x, kernel), xla(x, kernel), rtol=1e-5, atol=1e-5)
    ours, theirs = (
        jax.jit(jax.grad(lambda x, k, f=f: jnp.sum(f(x, k) ** 2), argnums=(0, 1)))(x, kernel)
        for f in (taps, xla)
    )
    for found, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_only_many_channels_and_wide_dilations_go_by_taps():
    assert layers._is_wide((60, 60, 2048), 12)
    assert not layers._is_wide((60, 60, 2048), 4)
    assert not layers._is_wide((60, 60, 64), 12)
    assert not layers._is_wide((4, 4, 2048), 1)

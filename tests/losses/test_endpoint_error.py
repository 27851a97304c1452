"""Multi-scale end-point error against plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvos_jax.errors import ShapeError
from uvos_jax.losses.endpoint_error import area_downsample, multiscale_endpoint_error


def test_cells_are_averaged_as_adaptive_pooling_does(rng):
    x = rng.normal(size=(1, 7, 10, 2)).astype(np.float32)
    got = area_downsample(jnp.asarray(x), (3, 4))
    for i, j in np.ndindex(3, 4):
        rows = slice(i * 7 // 3, -(-(i + 1) * 7 // 3))
        columns = slice(j * 10 // 4, -(-(j + 1) * 10 // 4))
        np.testing.assert_allclose(got[0, i, j], x[0, rows, columns].mean((0, 1)), atol=1e-6)


def test_the_loss_is_the_weighted_sum_of_lengths(rng):
    target = rng.normal(0, 9, (2, 8, 16, 2)).astype(np.float32)
    flows = {
        "flow2": rng.normal(size=(2, 2, 4, 2)).astype(np.float32),
        "flow3": rng.normal(size=(2, 1, 2, 2)).astype(np.float32),
    }
    want = np.zeros(2)
    for level, weight, cell in ((2, 0.005, 4), (3, 0.01, 8)):
        means = target.reshape(2, 8 // cell, cell, 16 // cell, cell, 2).mean((2, 4)) / 20
        lengths = np.linalg.norm(flows[f"flow{level}"] - means, axis=-1)
        want += weight * lengths.sum((1, 2))
    arrays = {k: jnp.asarray(v) for k, v in flows.items()}
    np.testing.assert_allclose(multiscale_endpoint_error(arrays, jnp.asarray(target)), want, rtol=1e-5)  # fmt: skip # noqa: E501


def test_unknown_pixels_do_not_count_and_perfect_flow_has_a_gradient():
    target = jnp.zeros((1, 8, 8, 2)).at[:, :, 4:].set(1e10)
    valid = jnp.arange(8) < 4
    valid = jnp.broadcast_to(valid, (1, 8, 8))
    flows = {"flow2": jnp.zeros((1, 2, 2, 2))}
    loss = lambda f: multiscale_endpoint_error(f, target, valid=valid).sum()  # noqa: E731
    value, gradient = jax.value_and_grad(loss)(flows)
    assert value < 1e-6
    assert np.isfinite(gradient["flow2"]).all()
    with pytest.raises(ShapeError, match=r"no level of \['flow9'\] has a weight"):
        multiscale_endpoint_error({"flow9": jnp.zeros((1, 1, 1, 2))}, target)

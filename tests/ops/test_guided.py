import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvos_jax.ops.blur import box_mean
from uvos_jax.ops.guided import guided_enlarge


def slow_lines(x, image, radius, epsilon):
    """The linear function of colour of each pixel, window by window (He et al., eq. 14 to 16)."""
    h, w = x.shape
    lines = np.zeros((h, w, 4))

    def window(i, j):
        rows = slice(max(i - radius, 0), i + radius + 1)
        return rows, slice(max(j - radius, 0), j + radius + 1)

    for i in range(h):
        for j in range(w):
            colours = image[window(i, j)].reshape(-1, 3)
            values = x[window(i, j)].reshape(-1)
            covariance = np.cov(colours.T, bias=True) + epsilon * np.eye(3)
            cross = (colours * values[:, None]).mean(0) - colours.mean(0) * values.mean()
            slope = np.linalg.solve(covariance, cross)
            lines[i, j] = *slope, values.mean() - slope @ colours.mean(0)
    return np.array([[lines[window(i, j)].mean((0, 1)) for j in range(w)] for i in range(h)])


def test_at_one_size_it_is_the_guided_filter():
    rng = np.random.default_rng(0)
    x, image = rng.random((9, 12)), rng.random((9, 12, 3))
    lines = slow_lines(x, image, 2, 0.01)
    want = (lines[..., :3] * image).sum(-1) + lines[..., 3]
    found = guided_enlarge(*map(jnp.float32, (x, image, image)), radius=2, epsilon=0.01)
    np.testing.assert_allclose(found, want, atol=2e-5)


def test_a_map_that_follows_colour_takes_the_edges_of_the_large_picture():
    large = np.zeros((40, 60, 3), np.float32)
    large[:, 31:] = 0.2, 0.8, 0.5  # ends within a pixel of the small picture
    small = large.reshape(10, 4, 15, 4, 3).mean((1, 3))
    arrays = map(jnp.asarray, (small[..., 1] / 0.8, small, large))
    found = guided_enlarge(*arrays, radius=2, epsilon=1e-5)
    # some windows of the next small pixel see no edge, and an eighth of it counts
    np.testing.assert_allclose(found, large[..., 1] / 0.8, atol=0.03)
    blurred = jax.image.resize(small[..., 1] / 0.8, (40, 60), "linear")
    assert np.abs(np.asarray(blurred) - large[..., 1] / 0.8).max() > 0.4


def test_it_is_linear_and_leaves_constants_alone_in_any_batch():
    rng = np.random.default_rng(1)
    small = jnp.asarray(rng.random((2, 3, 8, 10, 3)), jnp.float32)
    large = jnp.asarray(rng.random((2, 3, 20, 23, 3)), jnp.float32)
    x, y = jnp.asarray(rng.random((2, 2, 3, 8, 10)), jnp.float32)
    found = guided_enlarge(jnp.full_like(x, 0.3), small, large)
    assert found.shape == (2, 3, 20, 23)
    np.testing.assert_allclose(found, 0.3, atol=1e-5)
    both = guided_enlarge(x - 2 * y, small, large)
    apart = guided_enlarge(x, small, large) - 2 * guided_enlarge(y, small, large)
    np.testing.assert_allclose(both, apart, atol=1e-4)
    one = guided_enlarge(x[1, 2], small[1, 2], large[1, 2])
    np.testing.assert_allclose(guided_enlarge(x, small, large)[1, 2], one, atol=1e-5)


@pytest.mark.parametrize("radius", [0, 1, 3, 20])
def test_box_mean(radius):
    x = np.random.default_rng(2).random((2, 6, 9)).astype(np.float32)

    def mean(i, j):
        rows = slice(max(i - radius, 0), i + radius + 1)
        return x[:, rows, max(j - radius, 0) : j + radius + 1].mean((1, 2))

    want = [[mean(i, j) for j in range(9)] for i in range(6)]
    found = jnp.moveaxis(box_mean(jnp.asarray(x), radius), 0, -1)
    np.testing.assert_allclose(found, want, atol=1e-6)

"""TV-L1 and Lucas-Kanade against the truth and against recorded fields of scikit-image."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from uvos_jax.errors import ShapeError
from uvos_jax.ops.tvl1 import _box, lucas_kanade_flow, median3x3, pyramid_sizes, tvl1_flow

STORED = dict(np.load(Path(__file__).resolve().parents[1] / "data" / "flow_skimage.npz"))
SMALL = {"levels": 2, "warps": 2, "iterations": 5}


def texture(H, W, seed=0):
    noise = np.random.default_rng(seed).normal(size=(H, W))
    smooth = ndimage.gaussian_filter(noise, 2.0) + 0.5 * ndimage.gaussian_filter(noise, 1.0)
    return (127 + 60 * smooth / smooth.std()).clip(0, 255).astype(np.float32)


def moved(image, flow):
    """The first image of a pair whose second is `image`: `first(x) = image(x + flow(x))`."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    return ndimage.map_coordinates(image, [y + flow[..., 1], x + flow[..., 0]], order=3,
                                   mode="nearest")  # fmt: skip


def estimate(function, first, second, **options):
    return np.asarray(function(*(jnp.asarray(x)[None, ..., None] for x in (first, second)),
                               **options))[0]  # fmt: skip


def error(a, b, margin=8):
    return np.linalg.norm(a - b, axis=-1)[margin:-margin, margin:-margin].mean()


def recorded(case):
    first, second = (STORED[f"{case}_{k}"].astype(np.float32) for k in ("first", "second"))
    return first, second, STORED[f"{case}_skimage"].astype(np.float32), STORED.get(f"{case}_true")


@pytest.mark.parametrize("case", ["warp", "real"])
def test_tvl1_agrees_with_scikit_image(case):
    """Mean distance of the two estimates below 0.15 px on a smooth warp and on a real pair."""
    first, second, theirs, true = recorded(case)
    ours = estimate(tvl1_flow, first, second)
    assert error(ours, theirs) < 0.15
    if true is not None:
        assert error(ours, true) < max(0.12, error(theirs, true) + 0.03)


@pytest.mark.parametrize("function,tolerance", [(tvl1_flow, 0.05), (lucas_kanade_flow, 0.1)])
def test_a_constant_shift_is_found(function, tolerance):
    second = texture(64, 80)
    shift = np.broadcast_to(np.asarray([3.5, -2.25], np.float32), (64, 80, 2))
    flow = estimate(function, moved(second, shift), second)
    assert error(flow, shift, margin=12) < tolerance


@pytest.mark.parametrize("function", [tvl1_flow, lucas_kanade_flow])
def test_equal_images_do_not_move(function):
    image = texture(32, 48)
    np.testing.assert_allclose(estimate(function, image, image), 0, atol=1e-5)
    flat = np.full((32, 48), 90, np.float32)
    np.testing.assert_array_equal(estimate(function, flat, flat), 0)


def test_a_batch_equals_its_members_and_gradients_are_finite():
    images = np.stack([texture(20, 24, seed) for seed in range(3)])
    first, second = jnp.asarray(images[:2, ..., None]), jnp.asarray(images[1:, ..., None])
    options = {"levels": 1, "warps": 1, "iterations": 3}
    together = tvl1_flow(first, second, **options)
    single = jax.vmap(lambda a, b: tvl1_flow(a[None], b[None], **options)[0])(first, second)
    np.testing.assert_allclose(together, single, atol=1e-4)
    gradient = jax.jit(jax.grad(lambda x: tvl1_flow(x, second, **options).sum()))(first)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0


def test_the_median_network_equals_a_sort(rng):
    x = rng.normal(size=(2, 17, 23)).astype(np.float32)
    want = np.stack([ndimage.median_filter(image, 3, mode="nearest") for image in x])
    np.testing.assert_array_equal(median3x3(jnp.asarray(x)), want)


@pytest.mark.parametrize("radius", [1, 2, 5, 7])
def test_window_sums_equal_a_plain_filter(rng, radius):
    x = rng.normal(size=(20, 31)).astype(np.float32)
    want = ndimage.uniform_filter(x, 2 * radius + 1, mode="constant")
    np.testing.assert_allclose(_box(jnp.asarray(x), radius), want, atol=1e-5)


def test_small_images_get_fewer_levels():
    assert pyramid_sizes(480, 854, 5) == [(480, 854), (240, 427), (120, 214), (60, 107), (30, 54)]
    assert pyramid_sizes(17, 90, 5) == [(17, 90)]
    assert estimate(tvl1_flow, texture(8, 8), texture(8, 8), **SMALL).shape == (8, 8, 2)


def test_images_of_different_size_are_refused():
    with pytest.raises(ShapeError, match=r"two images of one shape \[B,H,W,C\]"):
        tvl1_flow(jnp.zeros((1, 16, 16, 3)), jnp.zeros((1, 16, 17, 3)))

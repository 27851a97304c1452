"""Resizing against stored outputs of PyTorch, TF1 and Caffe, a slow oracle, and properties."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvos_jax.errors import ShapeError
from uvos_jax.ops import resize
from uvos_jax.ops.resize import resize_bicubic, resize_bilinear, resize_nearest

STORED = dict(np.load(Path(__file__).resolve().parents[1] / "data" / "ops_resize.npz"))
SIZES = [(13, 17), (28, 36), (4, 5), (7, 9), (1, 1), (21, 10)]


@pytest.fixture(params=["matrix", "gather"])
def path(request, monkeypatch):
    """Both ways an axis can be resized, whatever its length."""
    monkeypatch.setattr(resize, "MATRIX_LIMIT", 0 if request.param == "gather" else 10**6)


def close(ours, reference):
    np.testing.assert_allclose(ours, reference, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.usefixtures("path")
def test_bilinear_equals_pytorch(size, align_corners):
    ours = resize_bilinear(jnp.asarray(STORED["torch/x"]), size, align_corners=align_corners)
    close(ours, STORED[f"torch/out_{size[0]}x{size[1]}_ac{int(align_corners)}"])


@pytest.mark.usefixtures("path")
def test_bilinear_gradient_equals_pytorch():
    cotangent = STORED["torch/cotangent_13x17_ac1"]
    _, pull = jax.vjp(
        lambda x: resize_bilinear(x, (13, 17), align_corners=True), jnp.asarray(STORED["torch/x"])
    )
    close(pull(jnp.asarray(cotangent))[0], STORED["torch/grad_x_13x17_ac1"])


def test_one_pixel_is_broadcast():
    ours = resize_bilinear(jnp.asarray(STORED["torch/x_1x1"]), (5, 6), align_corners=True)
    np.testing.assert_array_equal(ours, STORED["torch/x_1x1_to_5x6_ac1"])


def test_nearest_and_bicubic_equal_pytorch():
    x = jnp.asarray(STORED["torch/x"])
    np.testing.assert_array_equal(resize_nearest(x, (13, 17)), STORED["torch/nearest_13x17"])
    # the reference computes its sixteen weights, of both signs, in float32; ours are exact
    bicubic = resize_bicubic(x, (13, 17))
    np.testing.assert_allclose(bicubic, STORED["torch/bicubic_13x17_ac0"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(14, 18), (13, 17), (4, 5), (28, 36)])
@pytest.mark.usefixtures("path")
def test_legacy_rules_equal_tf1(size):
    x, name = jnp.asarray(STORED["tf1/x"]), f"{size[0]}x{size[1]}"
    close(resize.resize_bilinear_legacy(x, size), STORED[f"tf1/legacy_bilinear_{name}"])
    aligned = resize_bilinear(x, size, align_corners=True)
    close(aligned, STORED[f"tf1/align_corners_bilinear_{name}"])
    np.testing.assert_array_equal(resize_nearest(x, size), STORED[f"tf1/legacy_nearest_{name}"])


@pytest.mark.parametrize(
    "name, size",
    [
        ("zoom8", (8 * 8 + 1, 9 * 8 + 1)),  # n + (n - 1)(zoom - 1)
        ("shrink2", (5, 5)),  # (n - 1) // shrink + 1
        ("size4x5", (4, 5)),
        ("size1x1", (1, 1)),
    ],
)
def test_aligned_corners_equal_caffes_interp(name, size):
    close(
        resize_bilinear(jnp.asarray(STORED["caffe/x"]), size, align_corners=True),
        STORED[f"caffe/{name}"],
    )


@pytest.mark.usefixtures("path")
def test_bilinear_equals_a_loop_over_pixels(rng):
    x = rng.standard_normal((3, 11, 6, 2)).astype(np.float32)
    H, W = x.shape[1:3]
    h, w = 5, 16
    expected = np.zeros((3, h, w, 2))
    for i in range(h):
        for j in range(w):
            y = min(max((i + 0.5) * H / h - 0.5, 0), H - 1)
            z = min(max((j + 0.5) * W / w - 0.5, 0), W - 1)
            a, b = int(y), int(z)
            for r, wr in ((a, 1 - (y - a)), (min(a + 1, H - 1), y - a)):
                for c, wc in ((b, 1 - (z - b)), (min(b + 1, W - 1), z - b)):
                    expected[:, i, j] += wr * wc * x[:, r, c]
    close(resize_bilinear(jnp.asarray(x), (h, w)), expected)


@pytest.mark.parametrize("size", [(40, 3), (5, 5), (6, 30)])
def test_a_constant_image_stays_constant(size):
    x = jnp.full((1, 6, 7, 1), 3.25)
    for y in (
        resize_bilinear(x, size),
        resize_bilinear(x, size, align_corners=True),
        resize.resize_bilinear_legacy(x, size),
        resize_bicubic(x, size),
        resize_nearest(x, size),
    ):
        np.testing.assert_allclose(y, 3.25, rtol=1e-6)


def test_leading_axes_and_jit_make_no_difference(rng):
    x = jnp.asarray(rng.standard_normal((2, 3, 8, 9, 2)), jnp.float32)
    whole = jax.jit(lambda x: resize_bilinear(x, (5, 14)))(x)
    assert whole.shape == (2, 3, 5, 14, 2)
    np.testing.assert_allclose(whole[1, 2], resize_bilinear(x[1, 2], (5, 14)), atol=1e-6)


def test_bfloat16_stays_bfloat16(rng):
    x = jnp.asarray(rng.random((1, 8, 9, 2)), jnp.bfloat16)
    y = resize_bilinear(x, (16, 18))
    assert y.dtype == jnp.bfloat16
    exact = resize_bilinear(x.astype(jnp.float32), (16, 18))
    np.testing.assert_allclose(y.astype(jnp.float32), exact, atol=2**-6)


def test_nearest_keeps_integers_and_labels(rng):
    labels = jnp.asarray(rng.choice([0, 1, 2, 255], (2, 9, 13, 1)), jnp.uint8)
    for convention in ("floor", "half_pixel"):
        small = resize_nearest(labels, (4, 5), convention=convention)
        assert small.dtype == jnp.uint8
        assert set(np.unique(small)) <= {0, 1, 2, 255}
    np.testing.assert_array_equal(
        resize_nearest(jnp.arange(6.0).reshape(1, 1, 6, 1), (1, 2), convention="half_pixel")[0, 0],
        [[1.0], [4.0]],
    )


@pytest.mark.parametrize("size", [(0, 4), (4, -1)])
def test_an_empty_size_is_refused(size):
    with pytest.raises(ShapeError, match="both sizes must be positive"):
        resize._check(jnp.zeros((1, 4, 4, 1)), size)

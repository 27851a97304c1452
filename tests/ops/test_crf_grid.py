"""Mean field on a feature grid: NumPy loops, limits, gradients; area resizing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvos_jax.ops.crf.grid import colour_kernel, smooth_labels
from uvos_jax.ops.resize import resize_area

H, W, K = 5, 5, 3
OPTIONS = {"sdims": 2.0, "schan": 30.0, "smooth_sdims": 1.0}


@pytest.fixture(scope="module")
def scene():
    rng = np.random.default_rng(8)
    logits = rng.standard_normal((H, W, K)).astype(np.float32)
    image = rng.integers(0, 256, (H, W, 3)).astype(np.float32)
    image[:, :3] = 90.0
    return jnp.asarray(logits), jnp.asarray(image)


def reference(logits, image, weights, iterations, matrices=False):
    """The formulas with loops over pairs of positions, float64."""
    logits, image = np.asarray(logits), np.asarray(image)
    n = H * W
    place = np.array([(y, x) for y in range(H) for x in range(W)], np.float64)
    colour = image.reshape(n, 3).astype(np.float64)
    kernels = np.zeros((2, n, n))
    for i in range(n):
        for j in range(n):
            if i != j:
                d = np.sum((place[i] - place[j]) ** 2)
                c = np.sum((colour[i] - colour[j]) ** 2)
                kernels[0, i, j] = np.exp(-d / (2 * 2.0**2) - c / (2 * 30.0**2))
                # the smoothing kernel is cut off after four standard deviations
                near = np.abs(place[i] - place[j]).max() <= 4
                kernels[1, i, j] = np.exp(-d / 2) * near
    kernels /= kernels.sum(-1, keepdims=True)
    P = logits.reshape(n, K).astype(np.float64)

    def softmax(x):
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    Q = softmax(P)
    for _ in range(iterations):
        total = P.copy()
        for kernel, w in zip(kernels, weights, strict=True):
            message = kernel @ Q
            total += -message @ (0.5 * (w + w.T)) if matrices else w * message
        Q = softmax(total)
    return Q.reshape(H, W, K)


@pytest.mark.parametrize("iterations", [1, 4])
def test_steps_equal_loops_over_pairs(scene, iterations):
    got = smooth_labels(*scene, (4.0, 2.0), iterations=iterations, **OPTIONS)
    np.testing.assert_allclose(got, reference(*scene, (4.0, 2.0), iterations), atol=1e-5)


def test_matrices_of_compatibilities_equal_loops(scene):
    rng = np.random.default_rng(0)
    matrices = tuple(rng.standard_normal((K, K)).astype(np.float32) for _ in range(2))
    got = smooth_labels(*scene, matrices, iterations=3, **OPTIONS)
    expected = reference(*scene, matrices, 3, matrices=True)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    potts = tuple(-w * np.eye(K, dtype=np.float32) for w in (4.0, 2.0))
    np.testing.assert_allclose(
        smooth_labels(*scene, potts, iterations=3, **OPTIONS),
        smooth_labels(*scene, (4.0, 2.0), iterations=3, **OPTIONS),
        atol=1e-6,
    )


def test_weights_of_zero_or_no_steps_give_the_softmax(scene):
    logits, image = scene
    expected = jax.nn.softmax(logits, axis=-1)
    for weights, iterations in (((0.0, 0.0), 3), ((4.0, 2.0), 0)):
        got = smooth_labels(logits, image, weights, iterations=iterations, **OPTIONS)
        np.testing.assert_allclose(got, expected, atol=1e-6)


def test_strong_smoothing_of_an_even_image_makes_one_label_win_everywhere(scene):
    logits, image = scene
    got = smooth_labels(
        logits, jnp.full_like(image, 50.0), (200.0, 0.0), iterations=8, **{**OPTIONS, "sdims": 50.0}
    )
    np.testing.assert_allclose(got - got[:1, :1], 0.0, atol=1e-4)


def test_rows_of_the_colour_kernel_sum_to_one_without_the_diagonal(scene):
    kernel = colour_kernel(scene[1], sdims=1.0, schan=0.5)  # far apart: no underflow to 0/0
    np.testing.assert_allclose(kernel.sum(1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(np.diagonal(kernel), 0.0)


def test_gradients_reach_logits_and_weights(scene):
    logits, image = scene
    target = np.random.default_rng(3).standard_normal((H, W, K))

    def loss(logits, w1, w2):
        Q = smooth_labels(logits, image, (w1, w2), iterations=3, **OPTIONS)
        return jnp.sum(Q * target)

    x = (jnp.asarray(logits), jnp.float32(1.5), jnp.float32(0.7))
    gradient = jax.grad(loss, argnums=(0, 1, 2))(*x)

    def oracle(logits, w1, w2):
        return np.sum(reference(logits, image, (w1, w2), 3) * target)

    eps = 1e-4
    for k, (w1, w2) in ((1, (eps, 0.0)), (2, (0.0, eps))):
        up, down = oracle(logits, 1.5 + w1, 0.7 + w2), oracle(logits, 1.5 - w1, 0.7 - w2)
        np.testing.assert_allclose(gradient[k], (up - down) / (2 * eps), rtol=1e-3, atol=1e-4)
    step = np.zeros(logits.shape)
    logits = np.asarray(logits, np.float64)
    step[2, 3, 1] = eps
    slope = (oracle(logits + step, 1.5, 0.7) - oracle(logits - step, 1.5, 0.7)) / (2 * eps)
    np.testing.assert_allclose(gradient[0][2, 3, 1], slope, rtol=1e-3, atol=1e-4)


def test_area_resizing_is_the_mean_of_what_a_pixel_covers():
    rng = np.random.default_rng(2)
    x = rng.random((7, 6, 2)).astype(np.float32)
    fine = x.repeat(3, axis=0)  # 21 rows: a third of a row is a row
    expected = fine.reshape(3, 7, 6, 2).mean(1).reshape(3, 2, 3, 2).mean(2)
    np.testing.assert_allclose(resize_area(jnp.asarray(x), (3, 2)), expected, atol=1e-6)

"""The balanced cross entropies against slow loops, and their corner cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvos_jax.losses import balanced_bce, masks
from uvos_jax.losses.dice import soft_iou_loss
from uvos_jax.losses.orthogonality import orthogonality_penalty


@pytest.fixture
def example(rng):
    logits = rng.standard_normal((3, 5, 6)) * 2
    labels = rng.integers(0, 3, (3, 5, 6)).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.4] = 0
    labels[0, :2] = 255
    return jnp.asarray(logits, jnp.float32), jnp.asarray(labels)


def parts(labels, **flags):
    return masks.binary_target(labels), masks.pixel_weights(labels, **flags)


def pixels(logits, labels):
    """Probability and binary label of every pixel that is not void."""
    for x, m in zip(np.ravel(logits).astype(np.float64), np.ravel(labels), strict=True):
        if m != 255:
            yield 1 / (1 + np.exp(-x)), float(m > 0)


def test_ratio_weighted_form_matches_a_loop(example):
    terms = [-o * np.log(s) - (1 - o) * np.log(1 - s) for s, o in pixels(*example)]
    r = np.mean([o for _, o in pixels(*example)])
    got = balanced_bce.ratio_weighted_bce(example[0], *parts(example[1]))
    np.testing.assert_allclose(got, np.mean(terms) / r, rtol=1e-5)


def test_class_weighted_form_matches_a_loop(example):
    logits, labels = example
    terms = []
    for image in range(3):
        seen = list(pixels(logits[image], labels[image]))
        foreground = sum(o for _, o in seen)
        eta = min(foreground / (len(seen) - foreground), 1.0)
        terms += [-(1 - eta) * o * np.log(s) - eta * (1 - o) * np.log(1 - s) for s, o in seen]
    got = balanced_bce.class_weighted_bce(logits, *parts(labels))
    np.testing.assert_allclose(got, np.mean(terms), rtol=1e-5)


def test_mean_absolute_error_matches_a_loop(example):
    expected = np.mean([abs(s - o) for s, o in pixels(*example)])
    got = balanced_bce.mean_absolute_error(example[0], *parts(example[1]))
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_soft_iou_matches_a_loop(example):
    logits, labels = example
    losses = []
    for image in range(3):
        seen = list(pixels(logits[image], labels[image]))
        overlap = sum(s * o for s, o in seen)
        union = sum(s + o - s * o for s, o in seen)
        losses.append(1 - (overlap + 1) / (union + 1))
    got = soft_iou_loss(logits, *parts(labels))
    np.testing.assert_allclose(got, np.mean(losses), rtol=1e-5)


def test_soft_iou_of_a_perfect_mask_is_zero_also_when_empty():
    for labels in (jnp.zeros((1, 4, 5), jnp.uint8), jnp.ones((1, 4, 5), jnp.uint8)):
        target, weights = parts(labels)
        assert float(soft_iou_loss(50.0 * (2 * target - 1), target, weights)) < 1e-6


LOSSES = (
    soft_iou_loss,
    balanced_bce.ratio_weighted_bce,
    balanced_bce.class_weighted_bce,
    balanced_bce.mean_absolute_error,
)


@pytest.mark.parametrize("loss", LOSSES)
def test_void_pixels_and_unannotated_frames_have_no_gradient(example, loss):
    logits, labels = example
    has_mask = jnp.array([True, True, False])
    gradient = jax.grad(loss)(logits, *parts(labels, has_mask=has_mask))
    assert np.all(gradient[0, :2] == 0)
    assert np.all(gradient[2] == 0)
    assert np.any(gradient[1] != 0)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("logit", [-200.0, 0.0, 200.0])
@pytest.mark.parametrize("label", [0, 1, 255])
def test_extreme_logits_and_empty_full_or_void_masks_stay_finite(loss, logit, label):
    labels = jnp.full((2, 3, 4), label, jnp.uint8)
    value, gradient = jax.value_and_grad(loss)(jnp.full((2, 3, 4), logit), *parts(labels))
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))
    if label == 255:
        assert value == 0


def test_an_empty_mask_counts_as_one_foreground_pixel_unless_bounded():
    logits = jnp.zeros((2, 3, 4))
    target, weights = parts(jnp.zeros((2, 3, 4), jnp.uint8))
    got = balanced_bce.ratio_weighted_bce(logits, target, weights)
    np.testing.assert_allclose(got, np.log(2) * 24, rtol=1e-6)
    bounded = balanced_bce.ratio_weighted_bce(logits, target, weights, min_ratio=0.5)
    np.testing.assert_allclose(bounded, np.log(2) * 2, rtol=1e-6)


def test_frames_that_only_pad_a_clip_are_left_out():
    labels = jnp.zeros((2, 4, 3, 3), jnp.uint8).at[0, 0, 0, 0].set(255)
    valid = jnp.array([[True, True, True, False], [True] * 4])
    has_mask = jnp.array([[True] * 4, [True, False, True, True]])
    weights = masks.pixel_weights(labels, valid, has_mask)
    assert weights.shape == labels.shape
    assert float(weights.sum()) == 8 * 9 - 1 - 9 - 9


def test_orthogonality_penalty_is_zero_for_rotations_and_counts_entries(rng):
    rotation, _ = np.linalg.qr(rng.standard_normal((6, 6)))
    np.testing.assert_allclose(
        orthogonality_penalty(jnp.asarray(rotation, jnp.float32)), 0, atol=1e-9
    )
    np.testing.assert_allclose(orthogonality_penalty(2 * jnp.eye(6)), 6 * 9.0, rtol=1e-6)

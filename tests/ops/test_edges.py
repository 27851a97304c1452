"""Edges without learning, against formulas written out."""

import jax
import jax.numpy as jnp
import numpy as np

from uvos_jax.ops.color import rgb_to_lab
from uvos_jax.ops.edges import edge_contrast


def test_contrast_equals_loops_over_pixels():
    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    lab = np.asarray(rgb_to_lab(jnp.asarray(rgb, jnp.float32) / 255))
    slopes = np.zeros((5, 7, 2))
    for y in range(5):
        for x in range(7):
            across = lab[y, min(x + 1, 6)] - lab[y, max(x - 1, 0)]
            down = lab[min(y + 1, 4), x] - lab[max(y - 1, 0), x]
            squared = across**2 + down**2
            slopes[y, x] = np.sqrt(squared[0]), np.sqrt(squared[1] + squared[2])
    expected = slopes / (slopes + slopes.mean((0, 1)) + 0.1)
    np.testing.assert_allclose(jax.jit(edge_contrast)(rgb), expected, atol=1e-5)


def test_a_picture_of_one_colour_has_none_and_light_changes_little():
    assert float(jnp.abs(edge_contrast(jnp.full((1, 8, 8, 3), 90, jnp.uint8))).max()) == 0.0
    rng = np.random.default_rng(1)
    picture = rng.uniform(40, 120, (16, 16, 3)).astype(np.float32)
    a, b = (edge_contrast(jnp.asarray(gain * picture)) for gain in (1.0, 1.8))
    assert float(jnp.abs(a - b).mean()) < 0.03

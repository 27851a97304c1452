"""Losses of structure from motion: photometric, smoothness, depth, pose, masks without an order."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from uvos_jax.losses.masks import weighted_mean
from uvos_jax.ops.geometry import rotate, rotation_angle, safe_norm


def photometric_l1(
    image: Float[Array, "B H W C"],
    warped: Float[Array, "B H W C"],
    inside: Float[Array, "B H W"],
) -> Float[Array, ""]:
    """Mean over pixels inside of `||I - I'||_1`, summed over channels as SfM-Net's colour loss."""
    return weighted_mean(jnp.sum(jnp.abs(image - warped), axis=-1), inside)


def dissimilarity(a: Float[Array, "B H W C"], b: Float[Array, "B H W C"]) -> Float[Array, "B H W"]:
    """`(1 - SSIM) / 2` over 3x3 windows, mean over channels, borders repeated."""

    def window(x: jax.Array) -> jax.Array:
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
        H, W = x.shape[1:3]
        parts = [padded[:, i : i + H, j : j + W] for i in range(3) for j in range(3)]
        return sum(parts) / 9.0

    mean_a, mean_b = window(a), window(b)
    var_a, var_b = window(a * a) - mean_a**2, window(b * b) - mean_b**2
    covariance = window(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    ssim = ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)) / (
        (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    )
    return jnp.clip((1.0 - ssim) / 2.0, 0.0, 1.0).mean(-1)


def first_order_smoothness(x: Float[Array, "B H W *C"]) -> Float[Array, ""]:
    """Mean absolute difference between neighbours, over both axes; per channel, not weighted."""
    return jnp.mean(jnp.abs(x[:, :, 1:] - x[:, :, :-1])) + jnp.mean(jnp.abs(x[:, 1:] - x[:, :-1]))


def second_order_smoothness(x: Float[Array, "B H W"]) -> Float[Array, ""]:
    """Mean absolute second difference over both axes; 0 for planes."""
    across = x[:, :, 2:] - 2 * x[:, :, 1:-1] + x[:, :, :-2]
    down = x[:, 2:] - 2 * x[:, 1:-1] + x[:, :-2]
    return jnp.mean(jnp.abs(across)) + jnp.mean(jnp.abs(down))


def pose_errors(
    R: Float[Array, "B 3 3"],
    t: Float[Array, "B 3"],
    R_true: Float[Array, "B 3 3"],
    t_true: Float[Array, "B 3"],
) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
    """Length of `R^T (t* - t)` and angle in radians of `R^T R*`."""
    back = jnp.swapaxes(R, -1, -2)
    relative = jnp.einsum("bij,bjk->bik", back, R_true, precision="highest")
    return safe_norm(rotate(back, t_true - t)), rotation_angle(relative)


def unordered_mask_loss(
    logits: Float[Array, "B H W K"],
    ids: Float[Array, "B H W"],
    weights: Float[Array, "B H W"],
) -> Float[Array, ""]:
    """Cross entropy of K masks with the instances 1..K in the order that costs least per image.

    All K! orders are tried; an instance that is absent asks for an empty mask.

    Args:
      ids: instance numbers; those above K are background here.
    """
    K = logits.shape[-1]
    x = logits.astype(jnp.float32)
    target = (ids[..., None] == jnp.arange(1, K + 1)).astype(jnp.float32)
    total = jnp.sum(weights, axis=(1, 2))

    def cost(i: int, j: int) -> jax.Array:
        loss = jax.nn.softplus(x[..., i]) - x[..., i] * target[..., j]
        return jnp.sum(loss * weights, axis=(1, 2)) / jnp.where(total > 0, total, 1.0)

    table = [[cost(i, j) for j in range(K)] for i in range(K)]
    orders = [
        sum(table[i][order[i]] for i in range(K)) / K for order in itertools.permutations(range(K))
    ]
    best = jnp.min(jnp.stack(orders), axis=0)
    counts = (total > 0).astype(jnp.float32)
    return weighted_mean(best, counts)

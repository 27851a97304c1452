"""Errors of depth maps and of camera motions."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Float32

from uvos_jax.ops.geometry import rotation_angle, safe_norm

#: Translations shorter than this, in scene units, have no direction worth comparing.
SHORT = 0.02


def depth_errors(
    pred: Float[Array, "B H W"], true: Float[Array, "B H W"]
) -> dict[str, Float32[Array, " B"]]:
    """Errors of positive depths per map, over pixels whose true depth is known (> 0).

    Returns:
      `abs_rel`, the mean of `|d - d*| / d*`; `abs_rel_scaled`, the same after the prediction is
      scaled to the true median; `scale_invariant`, the standard deviation of `log d - log d*`
      (Eigen, Puhrsch and Fergus, NeurIPS 2014, with lambda 1). NaN where nothing is known.
    """
    known = true > 0
    count = jnp.sum(known, axis=(1, 2))

    def mean(x: Array) -> Array:
        return jnp.sum(jnp.where(known, x, 0.0), axis=(1, 2)) / count

    def median(x: Array) -> Array:
        return jnp.nanmedian(jnp.where(known, x, jnp.nan), axis=(1, 2), keepdims=True)

    safe = jnp.where(known, true, 1.0)
    scaled = pred * median(true) / median(pred)
    gap = jnp.log(pred) - jnp.log(safe)
    return {
        "abs_rel": mean(jnp.abs(pred - true) / safe),
        "abs_rel_scaled": mean(jnp.abs(scaled - true) / safe),
        "scale_invariant": jnp.sqrt(jnp.maximum(mean(gap**2) - mean(gap) ** 2, 0.0)),
    }


def motion_errors(
    pred: Float[Array, "B 3 4"], true: Float[Array, "B 3 4"]
) -> dict[str, Float32[Array, " B"]]:
    """Errors of rigid motions `[R | t]`.

    Returns:
      `translation`, the length of `t - t*`; `direction`, the angle in degrees between them (90 for
      a prediction without direction, NaN where the true one is shorter than `SHORT`); `rotation`,
      the angle in degrees of `R^T R*`.
    """
    t, t_true = pred[..., 3], true[..., 3]
    length, length_true = safe_norm(t), safe_norm(t_true)
    cosine = jnp.sum(t * t_true, axis=-1) / jnp.maximum(length * length_true, 1e-9)
    direction = jnp.rad2deg(jnp.arccos(jnp.clip(cosine, -1.0, 1.0)))
    relative = jnp.einsum("bji,bjk->bik", pred[..., :3], true[..., :3], precision="highest")
    return {
        "translation": safe_norm(t - t_true),
        "direction": jnp.where(length_true < SHORT, jnp.nan, direction),
        "rotation": jnp.rad2deg(rotation_angle(relative)),
    }

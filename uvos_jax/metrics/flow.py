"""Errors of optical flow: end-point error and the outlier share of KITTI."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Float32, Shaped

from uvos_jax.errors import ShapeError

FlowField = Float[Array | np.ndarray, "*batch H W 2"]
#: a field that is to have the shape of another; `endpoint_error` checks that, in words.
_OtherField = Float[Array | np.ndarray, "..."]
#: an outlier is wrong by more than this many pixels and by more than this share of the true flow.
OUTLIER_PIXELS = 3.0
OUTLIER_SHARE = 0.05


def endpoint_error(pred: FlowField, gt: _OtherField) -> Float32[Array, "*batch H W"]:
    """Length in pixels of the difference of two flow fields."""
    if pred.shape != gt.shape:
        raise ShapeError(f"predicted flow has shape {pred.shape}, the true one {gt.shape}")
    difference = jnp.asarray(pred, jnp.float32) - jnp.asarray(gt, jnp.float32)
    return jnp.sqrt((difference * difference).sum(-1))


def flow_errors(
    pred: FlowField, gt: _OtherField, valid: Shaped[Array | np.ndarray, "*batch H W"] | None = None
) -> dict[str, Float32[Array, "*batch"]]:
    """Mean end-point error `epe` and outlier share `fl` (0..1) over the valid pixels of each field.

    Fl counts pixels whose error exceeds 3 pixels and 5 % of the true length (Menze and Geiger,
    "Object Scene Flow for Autonomous Vehicles", 2015). NaN where no pixel is valid.
    """
    error = endpoint_error(pred, gt)
    length = jnp.sqrt((jnp.asarray(gt, jnp.float32) ** 2).sum(-1))
    outlier = (error > OUTLIER_PIXELS) & (error > OUTLIER_SHARE * length)
    keep = jnp.ones(error.shape, bool) if valid is None else jnp.asarray(valid) != 0
    count = keep.sum((-1, -2)).astype(jnp.float32)
    return {
        "epe": jnp.where(keep, error, 0.0).sum((-1, -2)) / count,
        "fl": (keep & outlier).sum((-1, -2)) / count,
    }

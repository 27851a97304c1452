"""Multi-scale end-point error, the training loss of FlowNet and PWC-Net."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from uvos_jax.errors import ShapeError

#: Weight of each level (FlowNetPytorch; level n is 1/2^n of the image).
LEVEL_WEIGHTS = {2: 0.005, 3: 0.01, 4: 0.02, 5: 0.08, 6: 0.32}


def area_downsample(x: Float[Array, "B H W C"], size: tuple[int, int]) -> Float[Array, "B h w C"]:
    """Means over the cells of a grid of `size`, whose borders are those of adaptive pooling."""

    def matrix(n_in: int, n_out: int) -> jax.Array:
        i = jnp.arange(n_out)
        start, stop = (i * n_in) // n_out, -((-(i + 1) * n_in) // n_out)
        k = jnp.arange(n_in)
        cell = (k >= start[:, None]) & (k < stop[:, None])
        return cell / cell.sum(1, keepdims=True)

    rows, columns = matrix(x.shape[1], size[0]), matrix(x.shape[2], size[1])
    return jnp.einsum("hH,BHWC,wW->BhwC", rows, x, columns, precision=jax.lax.Precision.HIGHEST)


def multiscale_endpoint_error(
    flows: Mapping[str, Float[Array, "B h w 2"]],
    target: Float[Array, "B H W 2"],
    *,
    valid: Bool[Array, "B H W"] | None = None,
    unit: float = 20.0,
    weights: Mapping[int, float] | None = None,
) -> Float[Array, "B"]:
    """Weighted sum over levels of the summed end-point error of each example.

    Args:
      flows: `flow<n>` of `uvos_jax.modules.flownets`, in units of `unit` pixels.
      target: true flow in pixels; averaged over each cell of a level, divided by `unit`.
      valid: pixels whose flow is known; cells count by their share of known pixels.
      weights: of levels; those that `LEVEL_WEIGHTS` names by default.

    Raises:
      ShapeError: no level has a weight.
    """
    weights = LEVEL_WEIGHTS if weights is None else weights
    known = jnp.ones(target.shape[:3]) if valid is None else valid.astype(jnp.float32)
    known = known[..., None]
    target = jnp.where(known > 0, target, 0.0) / unit
    total = None
    for level, weight in weights.items():
        if f"flow{level}" not in flows:
            continue
        flow = flows[f"flow{level}"].astype(jnp.float32)
        size = flow.shape[1:3]
        share = area_downsample(known, size)
        mean = area_downsample(target * known, size) / jnp.maximum(share, 1e-6)
        # the small constant keeps the gradient at zero error finite
        length = jnp.sqrt(jnp.sum((flow - mean) ** 2, axis=-1) + 1e-12)
        term = weight * jnp.sum(length * share[..., 0], axis=(1, 2))
        total = term if total is None else total + term
    if total is None:
        raise ShapeError(
            f"endpoint error: no level of {sorted(flows)} has a weight in {sorted(weights)}"
        )
    return total

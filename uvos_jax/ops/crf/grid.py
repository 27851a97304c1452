"""Mean field on a feature grid with many labels: smooths an attention map inside a network.

Every position of an `h x w` grid carries probabilities of K labels (here: which of K vectors it
attends to). Two row-normalised Gaussian kernels pull together what is near and, for the first,
alike in colour; a position does not count for itself:

    Q <- softmax_K(log P + w_1 K_1 Q + w_2 K_2 Q)        (Potts; with a matrix M in place of -w: M)

Unlike `dense_crf` it is meant for grids of some thousand positions, where the colour kernel is an
explicit matrix (52 MB at 60x60) and one product filters all labels. Differentiable in `logits` and
`weights`, not in the image. The steps themselves are `uvos_jax.ops.crf.meanfield.mean_field`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from uvos_jax.ops.crf.exact import features
from uvos_jax.ops.crf.meanfield import AllChannels, mean_field
from uvos_jax.ops.crf.separable import gaussian_smooth
from uvos_jax.ops.crf.terms import Bilateral, term_key


def colour_kernel(
    image: Float[Array, "h w 3"], *, sdims: float, schan: float
) -> Float[Array, "n n"]:
    """`exp(-|p_i-p_j|^2 / 2 sdims^2 - |I_i-I_j|^2 / 2 schan^2)`, zero diagonal, rows summing to 1.

    Args:
      image: colours 0..255 on the grid.
    """
    h, w, _ = image.shape
    f = features(image, (h, w), term_key(Bilateral(sdims=sdims, schan=schan)))
    f = f - jnp.mean(f, axis=0)  # smaller numbers cancel better
    dot = jnp.matmul(f, f.T, precision=lax.Precision.HIGHEST)
    squares = jnp.diagonal(dot)
    distance = squares[:, None] + squares[None, :] - 2.0 * dot
    scores = jnp.where(jnp.eye(h * w, dtype=bool), -jnp.inf, -0.5 * jnp.maximum(distance, 0.0))
    # a softmax normalises the rows without underflow, however isolated a colour is
    return jax.nn.softmax(scores, axis=-1) if h * w > 1 else jnp.zeros((1, 1))


def smooth_labels(
    logits: Float[Array, "h w K"],
    image: Float[Array, "h w 3"],
    weights: tuple[Any, Any],
    *,
    iterations: int,
    sdims: float,
    schan: float,
    smooth_sdims: float,
    dtype: Any = jnp.float32,
) -> Float[Array, "h w K"]:
    """Label probabilities after `iterations` mean-field steps from softmax(logits).

    Args:
      image: colours 0..255 on the same grid, not normalised.
      weights: of the colour kernel and of the spatial one: numbers (Potts), or `[K,K]` energy
        matrices.
      sdims, schan: standard deviations of the colour kernel in grid cells and grey levels.
      smooth_sdims: that of the spatial kernel in grid cells.
      dtype: of the products with the colour kernel; everything else is float32.

    Returns:
      float32, summing to 1 over K. With weights of 0, or no steps, softmax(logits).
    """
    h, w, K = logits.shape
    unary = -jax.nn.log_softmax(logits.astype(jnp.float32).reshape(h * w, K).T, axis=0)
    if iterations == 0:
        return jax.nn.softmax(-unary, axis=0).T.reshape(h, w, K)
    kernel = colour_kernel(lax.stop_gradient(image), sdims=sdims, schan=schan).astype(dtype)
    # float32 means exactly that here: the default rounds to fewer bits on accelerators
    precision = lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else None

    def by_colour(Q: jax.Array) -> jax.Array:
        return jnp.einsum(
            "kn,mn->km", Q.astype(dtype), kernel, precision=precision,
            preferred_element_type=jnp.float32,
        )  # fmt: skip

    def spread(x: jax.Array) -> jax.Array:
        return gaussian_smooth(x, (h, w), (smooth_sdims, smooth_sdims)) - x

    mass = jnp.maximum(spread(jnp.ones(h * w, jnp.float32)), 1e-20)

    def by_place(Q: jax.Array) -> jax.Array:
        return jax.vmap(spread)(Q) / mass

    compats = [jnp.asarray(weight, jnp.float32) for weight in weights]
    kernels = [AllChannels(by_colour), AllChannels(by_place)]
    Q = mean_field(unary, kernels, compats, iterations=iterations)
    return Q.T.reshape(h, w, K)

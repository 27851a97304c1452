"""A soft constraint that keeps a square matrix orthogonal."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float


def orthogonality_penalty(matrix: Float[Array, "C C"]) -> Float[Array, ""]:
    """`||W W^T - I||_F^2`, the squared Frobenius norm, 0 for orthogonal matrices.

    COSNet's symmetric co-attention adds it with the weight 1e-4; the paper leaves the norm open.
    The value is the same for `W` and its transpose.
    """
    W = matrix.astype(jnp.float32)
    return jnp.sum(jnp.square(W @ W.T - jnp.eye(W.shape[0], dtype=jnp.float32)))

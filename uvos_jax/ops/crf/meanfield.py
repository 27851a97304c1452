"""Mean-field inference in a fully connected CRF with Gaussian edges.

Krahenbuhl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials"
(2011), with the conventions of `src/densecrf.cpp` and `src/pairwise.cpp@lucasb-eyer/pydensecrf`:
synchronous steps, the self term stays in, no damping.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32

#: A linear operator on one channel of N pixels.
Kernel = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class AllChannels:
    """Marks a filter that takes all channels `[L,N]` at once."""

    apply: Callable[[jax.Array], jax.Array]


def normalized(apply: Kernel, ones: Float32[Array, "N"], normalization: str) -> Kernel:
    """Wraps a raw filter in one of the four normalisations.

    Args:
      apply: the raw filter.
      ones: the raw filter of ones.
      normalization: `symmetric`, `before`, `after` or `none`.
    """
    if normalization == "none":
        return apply
    if normalization == "symmetric":
        n = lax.rsqrt(ones + 1e-20)
        return lambda x: n * apply(n * x)
    n = 1.0 / (ones + 1e-20)
    if normalization == "before":
        return lambda x: apply(n * x)
    return lambda x: n * apply(x)


def over_channels(apply: Kernel | AllChannels, Q: Float32[Array, "L N"]) -> Float32[Array, "L N"]:
    """Filters the channels one by one: on CPU faster than a batched gather, and less memory."""
    if isinstance(apply, AllChannels):
        return apply.apply(Q)
    return lax.map(apply, Q)


def compatibility(compat: Float[Array, "..."], T: Float32[Array, "L N"]) -> Float32[Array, "L N"]:
    """The energy that a term adds: -w T (Potts), diag(v) T or the symmetric part of M times T."""
    if compat.ndim == 0:
        return -compat * T
    if compat.ndim == 1:
        return compat[:, None] * T
    return jnp.matmul(0.5 * (compat + compat.T), T, precision=lax.Precision.HIGHEST)


def kl_divergence(Q: jax.Array, unary: jax.Array, pairwise: jax.Array) -> jax.Array:
    """sum Q log Q + sum U Q + sum Q * (energy of all pairwise terms), up to a constant."""
    return jnp.sum(Q * (jnp.log(jnp.maximum(Q, 1e-20)) + unary + pairwise))


def mean_field(
    unary: Float32[Array, "L N"],
    kernels: Sequence[Kernel | AllChannels],
    compats: Sequence[Float[Array, "..."]],
    *,
    iterations: int,
    kl_stop: int | float | None = None,
) -> Float32[Array, "L N"]:
    """Runs `iterations` steps from softmax(-unary); 0 steps return that.

    Args:
      unary: energies, L labels.
      kernels: one normalised filter per term.
      compats: one compatibility per term: a scalar, `[L]` or `[L,L]`.
      kl_stop: stop after a step that changed the KL divergence by less than this (a sum over the
        image, so it depends on the image's size). None: all steps.
    """

    def energy(Q):
        total = jnp.zeros_like(Q)
        for kernel, compat in zip(kernels, compats, strict=True):
            total = total + compatibility(compat, over_channels(kernel, Q))
        return total

    def update(pairwise):
        return jax.nn.softmax(-unary - pairwise, axis=0)

    Q = jax.nn.softmax(-unary, axis=0)
    if iterations == 0:
        return Q
    if kl_stop is None:
        return lax.scan(lambda Q, _: (update(energy(Q)), None), Q, None, length=iterations)[0]

    def step(carry, _):
        def go(carry):
            Q, pairwise, before, _ = carry
            Q = update(pairwise)
            pairwise = energy(Q)
            after = kl_divergence(Q, unary, pairwise)
            return Q, pairwise, after, jnp.abs(after - before) < kl_stop

        return lax.cond(carry[3], lambda carry: carry, go, carry), None

    pairwise = energy(Q)
    start = (Q, pairwise, kl_divergence(Q, unary, pairwise), jnp.bool_(False))
    return lax.scan(step, start, None, length=iterations)[0][0]


def mean_field_two_labels(
    difference: Float32[Array, "N"],
    kernels: Sequence[Kernel],
    weights: Sequence[Float[Array, ""]],
    *,
    iterations: int,
    kl_stop: int | float | None = None,
) -> Float32[Array, "N"]:
    """The probability of label 1 of two, all terms Potts: one channel does the work of two.

    With z = 2 q - 1 the log odds of a step are `difference + sum_k w_k K_k z`, exactly.

    Args:
      difference: unary energy of label 0 minus that of label 1.
      kl_stop: as in `mean_field`.
    """

    def step(logit):
        z = jnp.tanh(0.5 * logit)
        total = difference
        for kernel, weight in zip(kernels, weights, strict=True):
            total = total + weight * kernel(z)
        return total

    if kl_stop is None:
        # Unrolled because a loop would copy the lattices into its state: a fifth of the time.
        unroll = min(iterations, 10) or 1
        logit, _ = lax.scan(
            lambda logit, _: (step(logit), None), difference, length=iterations, unroll=unroll
        )
        return jax.nn.sigmoid(logit)

    def divergence(logit, following):
        # Without what does not change: sum U_0 and sum w K 1 / 2. Adding up less is also exacter.
        q = jax.nn.sigmoid(logit)
        entropy = q * jax.nn.log_sigmoid(logit) + (1 - q) * jax.nn.log_sigmoid(-logit)
        pairwise = 0.5 * jnp.tanh(0.5 * logit) * (following - difference)
        return jnp.sum(entropy - q * difference - pairwise)

    def guarded(carry, _):
        def go(carry):
            _, logit, before, _ = carry
            following = step(logit)
            after = divergence(logit, following)
            return logit, following, after, jnp.abs(after - before) < kl_stop

        return lax.cond(carry[3], lambda carry: carry, go, carry), None

    following = step(difference)
    start = (difference, following, divergence(difference, following), jnp.bool_(False))
    return jax.nn.sigmoid(lax.scan(guarded, start, length=iterations)[0][0])

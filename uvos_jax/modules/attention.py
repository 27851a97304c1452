"""Attention between the positions of two frames: co-attention, its gate and its channel weights.

COSNet (Lu et al., CVPR 2019, section 3.1) compares every position of frame a with every position
of frame b by a bilinear affinity, `A[i,j] = (M v_a[i]) . v_b[j]`, and re-expresses each frame as
attention-weighted sums of the other frame's features. There is no `1/sqrt(C)`.

The implementations give the same numbers up to rounding: `dense` keeps the whole affinity (52 MB
per pair at 60x60 in float32), `blockwise` works through blocks of query rows with the exact
softmax over each full row and recomputes a block when it is differentiated, so that at no time
more than `block_size` rows exist; `fused` hands bfloat16 on an NVIDIA GPU to cuDNN's attention
kernel (`jax.nn.dot_product_attention`) and is `blockwise` wherever that kernel does not apply
(`fused_applies`). All softmaxes run in float32.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from uvos_jax.errors import ConfigError
from uvos_jax.modules.layers import Conv

IMPLEMENTATIONS = ("dense", "blockwise", "fused")

#: Stands for minus infinity; finite, so that a row without any valid key gives no NaN.
_MASKED = -1e30


def check_implementation(implementation: str) -> str:
    """Returns `implementation`; raises `ConfigError` if it is not one of `IMPLEMENTATIONS`."""
    if implementation not in IMPLEMENTATIONS:
        raise ConfigError(
            f"attention_impl {implementation!r} is unknown: use one of {IMPLEMENTATIONS}"
        )
    return implementation


# ----- affinity, softmax, read-out ----------------------------------------------------------


def affinity(
    queries: Float[Array, "*B n C"], keys: Float[Array, "*B m C"]
) -> Float[Array, "*B n m"]:
    """All dot products, accumulated and returned in float32."""
    return jnp.einsum("...nc,...mc->...nm", queries, keys, preferred_element_type=jnp.float32)


def _read_out(scores: jax.Array, values: jax.Array, valid: jax.Array | None) -> jax.Array:
    """softmax(scores) @ values over the last axis of `scores`, leaving out invalid columns."""
    if valid is not None:
        scores = jnp.where(valid[..., None, :], scores, _MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
    summary = jnp.einsum("...nm,...md->...nd", weights, values, preferred_element_type=jnp.float32)
    return summary.astype(values.dtype)


def _in_blocks(function, rows: jax.Array, block_size: int) -> jax.Array:
    """Applies `function: [*B,block,C] -> [*B,block,...]` to blocks of rows `[*B,n,C]`, in turn.

    The blocks have equal size (the rows are padded with zeros and the padding is cut off again);
    each is recomputed in the backward pass instead of being stored.
    """
    *B, n, C = rows.shape
    axis = len(B)
    blocks = -(-n // block_size)
    block = -(-n // blocks)
    padded = jnp.pad(rows, ((0, 0),) * axis + ((0, blocks * block - n), (0, 0)))
    stacked = jnp.moveaxis(padded.reshape(*B, blocks, block, C), axis, 0)
    done = jax.lax.map(jax.checkpoint(function, prevent_cse=False), stacked)
    joined = jnp.moveaxis(done, 0, axis)
    joined = joined.reshape(*B, blocks * block, *joined.shape[axis + 2 :])
    return jax.lax.slice_in_dim(joined, 0, n, axis=axis)


def fused_applies(
    queries: jax.Array, keys: jax.Array, values: jax.Array, valid: jax.Array | None = None
) -> bool:
    """Whether cuDNN's kernel can stand in: half precision on an NVIDIA GPU, up to 128 channels
    (256 from Hopper on), as many in queries, keys and values, no columns to leave out.

    Decided when the program is traced, for the default backend.
    """
    if valid is not None or jax.default_backend() != "gpu":
        return False
    device = jax.devices()[0]
    try:
        capability = float(getattr(device, "compute_capability", "0"))
    except ValueError:
        return False
    half = all(x.dtype in (jnp.bfloat16, jnp.float16) for x in (queries, keys, values))
    C, D = queries.shape[-1], values.shape[-1]
    limit = 256 if capability >= 9.0 else 128
    return half and capability >= 8.0 and C == D and C % 8 == 0 and limit >= C


def _fused(queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
    """cuDNN's kernel with one head and without `1/sqrt(C)`."""

    def one_head(x: jax.Array) -> jax.Array:
        return x.reshape(-1, x.shape[-2], 1, x.shape[-1])

    summary = jax.nn.dot_product_attention(
        one_head(queries), one_head(keys), one_head(values), scale=1.0, implementation="cudnn"
    )
    return summary.reshape(*queries.shape[:-1], values.shape[-1])


def attend(
    queries: Float[Array, "*B n C"],
    keys: Float[Array, "*B m C"],
    values: Float[Array, "*B m D"],
    *,
    valid: Bool[Array, "*B m"] | None = None,
    implementation: str = "dense",
    block_size: int = 512,
) -> Float[Array, "*B n D"]:
    """`softmax_j(q_i . k_j) v_j`: each query position becomes a convex mix of the values.

    Args:
      valid: columns that take part; None for all.
      implementation: one of `IMPLEMENTATIONS`.
      block_size: most query rows of the affinity that exist at once (not for `dense`).
    """
    if implementation == "fused" and fused_applies(queries, keys, values, valid):
        return _fused(queries, keys, values)
    if check_implementation(implementation) == "dense":
        return _read_out(affinity(queries, keys), values, valid)
    return _in_blocks(
        lambda rows: _read_out(affinity(rows, keys), values, valid), queries, block_size
    )


def attend_unnormalized(
    queries: Float[Array, "B n C"],
    keys: Float[Array, "B m C"],
    values: Float[Array, "B m D"],
    *,
    activation: Callable = jnp.tanh,
    implementation: str = "dense",
    block_size: int = 512,
) -> Float[Array, "B n D"]:
    """`sum_j f(q_i . k_j) v_j` with weights that need not sum to 1 (MATNet: f = tanh).

    Args:
      activation: f, elementwise on the float32 affinity.
      implementation, block_size: as in `attend`; anything but `dense` works in blocks.
    """

    def rows_of(rows: jax.Array) -> jax.Array:
        weights = activation(affinity(rows, keys)).astype(values.dtype)
        total = jnp.einsum("bnm,bmd->bnd", weights, values, preferred_element_type=jnp.float32)
        return total.astype(values.dtype)

    if check_implementation(implementation) == "dense":
        return rows_of(queries)
    return _in_blocks(rows_of, queries, block_size)


def co_attention(
    queries_a: Float[Array, "B n C"],
    keys_b: Float[Array, "B m C"],
    values_a: Float[Array, "B n D"],
    values_b: Float[Array, "B m D"],
    *,
    implementation: str = "dense",
    block_size: int = 512,
) -> tuple[Float[Array, "B n D"], Float[Array, "B m D"]]:
    """Both summaries of a pair: a in terms of b's features, and b in terms of a's.

    With `A = queries_a keys_b^T`:  `Z_a = softmax_j(A) values_b`,  `Z_b = softmax_i(A^T) values_a`.
    In COSNet the queries are `M v_a`, keys and values the features themselves.

    Returns:
      `Z_a` and `Z_b`. The dense form computes the affinity once, the blockwise form once per
      direction.
    """
    if check_implementation(implementation) == "dense":
        scores = affinity(queries_a, keys_b)
        return _read_out(scores, values_b, None), _read_out(scores.swapaxes(1, 2), values_a, None)
    options = {"implementation": implementation, "block_size": block_size}
    summary_a = attend(queries_a, keys_b, values_b, **options)
    return summary_a, attend(keys_b, queries_a, values_a, **options)


def group_attend(
    queries: Float[Array, "B n C"],
    keys: Float[Array, "B m C"],
    values: Float[Array, "B m D"],
    *,
    valid: Bool[Array, "B m"] | None = None,
    implementation: str = "dense",
    block_size: int = 512,
) -> Float[Array, "B n D"]:
    """Group co-attention: one query frame against all positions of all references at once.

    The released group network (`siamese_model_conf_try_single.py@carrierlxk/COSNet`) normalises
    twice: `P = softmax_i(A)` over the query's positions for each reference position, then
    `Z = softmax_j(P) values` over all reference positions. Since P lies in [0,1] the second
    softmax is almost flat; it is kept because the released weights were trained with it.

    The blockwise form makes two passes: log-sum-exp of every column (in blocks of columns), then
    the rows (in blocks of rows). Both are exact.

    Args:
      queries: `M v_a[i]`, the projected query frame.
      keys, values: features of the N reference frames, positions of all frames joined.
      valid: reference positions that take part; None for all.
    """
    if check_implementation(implementation) == "dense":
        return _read_out(jax.nn.softmax(affinity(queries, keys), axis=1), values, valid)
    column_norm = _in_blocks(
        lambda columns: jax.nn.logsumexp(affinity(columns, queries), axis=-1), keys, block_size
    )

    def rows_of(rows: jax.Array) -> jax.Array:
        scores = jnp.exp(affinity(rows, keys) - column_norm[:, None, :])
        return _read_out(scores, values, valid)

    return _in_blocks(rows_of, queries, block_size)


# ----- blocks with parameters ---------------------------------------------------------------


class AffinityProjection(nn.Module):
    """The bias-free matrix of the bilinear affinity, `v -> M v` (`kernel [C,C]` holds M^T).

    Attributes:
      features: C.
    """

    features: int
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        # U(+-1/sqrt(C)), the initialisation of linear layers that the released code keeps.
        init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        self.kernel = self.param("kernel", init, (self.features, self.features), jnp.float32)

    def __call__(self, features: Float[Array, "*B C"]) -> Float[Array, "*B C"]:
        return features.astype(self.dtype) @ self.kernel.astype(self.dtype)


class ChannelWeights(nn.Module):
    """Squeeze-and-excitation weights: mean over positions, two dense layers, sigmoid.

    Attributes:
      reduction: the hidden layer has `C // reduction` units.
    """

    reduction: int = 4
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, features: Float[Array, "B n C"]) -> Float[Array, "B C"]:
        C = features.shape[-1]
        pooled = jnp.mean(features.astype(jnp.float32), axis=1).astype(self.dtype)
        hidden = nn.Dense(max(C // self.reduction, 1), dtype=self.dtype, name="squeeze")(pooled)
        return nn.sigmoid(nn.Dense(C, dtype=self.dtype, name="excite")(nn.relu(hidden)))


class SpatialGate(nn.Module):
    """Multiplies a summary by `sigmoid(w . z)` per position: how far to trust it there.

    Attributes:
      use_bias: whether the gate's 1x1 convolution has a bias.
    """

    use_bias: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, summary: Float[Array, "B *n C"]) -> Float[Array, "B *n C"]:
        B, C = summary.shape[0], summary.shape[-1]
        conv = Conv(1, 1, use_bias=self.use_bias, dtype=self.dtype, name="conv")
        gate = conv(summary.reshape(B, -1, 1, C)).reshape(*summary.shape[:-1], 1)
        return summary * nn.sigmoid(gate.astype(jnp.float32)).astype(summary.dtype)

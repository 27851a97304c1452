"""Convolutional LSTM and GRU over time, and the ways the field stacks them.

One family of cells covers the variants in use:

- ConvLSTM without peepholes, with full peepholes `(h,w,F)` (Shi et al. 2015: the output gate sees
  the new cell state), with spatial peepholes `(h,w)` shared by all channels (the Caffe layer of
  PDB-ConvLSTM and AGS: all gates see the previous cell state);
- ConvGRU (LVO's visual memory, AGNN's node update);
- clip markers: a 0 starts a new sequence inside a batch row.

The convolution over the input does not depend on the state, so it runs once over all frames,
outside the loop. The convolution over the state runs inside `lax.scan`. XLA's CPU back end computes
the weight gradient of a convolution in a loop on a path more than ten times slower than outside, so
on CPU that convolution is written as shifted copies and one matrix product; elsewhere it is a
plain convolution. Same numbers, chosen per platform when the program is lowered.

Gates are stored in the order i, f, o, g (LSTM) and r, z, candidate (GRU) on the last axis of one
kernel. Sequences are `[B,T,h,w,C]`; a carry fed back in continues a sequence exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Bool, Float

from uvos_jax.errors import ConfigError

Implementation = Literal["auto", "conv", "dot"]


class LSTMCarry(NamedTuple):
    """Hidden map and cell state, both `[B,h,w,F]` float32."""

    h: jax.Array
    c: jax.Array


def _conv(x: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
    """Stride-1 cross-correlation with symmetric zero padding that keeps the size."""
    pads = [((k - 1) * dilation // 2,) * 2 for k in kernel.shape[:2]]
    return lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        pads,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _dot_conv(x: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
    """The same as `_conv`, as shifted copies side by side times the flattened kernel."""
    kh, kw, channels, features = kernel.shape
    h, w = x.shape[1:3]
    ph, pw = (kh - 1) * dilation // 2, (kw - 1) * dilation // 2
    padded = jnp.pad(x, ((0, 0), (ph, ph), (pw, pw), (0, 0)))
    shifted = [
        padded[:, i * dilation : i * dilation + h, j * dilation : j * dilation + w]
        for i in range(kh)
        for j in range(kw)
    ]
    patches = jnp.concatenate(shifted, axis=-1)
    return patches @ kernel.reshape(kh * kw * channels, features)


def recurrent_conv(
    x: Float[Array, "B h w C"],
    kernel: Float[Array, "kh kw C F"],
    *,
    dilation: int = 1,
    implementation: Implementation = "auto",
) -> Float[Array, "B h w F"]:
    """Size-preserving convolution for use inside a loop; odd kernels only.

    Args:
      implementation: `conv`, `dot` (shifted copies and a matrix product), or `auto`: `dot` where
        the program is lowered for CPU, `conv` elsewhere.

    Raises:
      ConfigError: even kernel size, which has no symmetric padding.
    """
    if kernel.shape[0] % 2 == 0 or kernel.shape[1] % 2 == 0:
        raise ConfigError(f"recurrent kernel size must be odd, got {kernel.shape[:2]}")
    if implementation == "conv":
        return _conv(x, kernel, dilation)
    if implementation == "dot":
        return _dot_conv(x, kernel, dilation)
    return lax.platform_dependent(
        x,
        kernel,
        cpu=lambda a, k: _dot_conv(a, k, dilation),
        default=lambda a, k: _conv(a, k, dilation),
    )


def _over_time(x: jax.Array) -> jax.Array:
    return jnp.swapaxes(x, 0, 1)


def _scan(
    step: Callable[[Any, Any], tuple[Any, jax.Array]],
    carry: Any,
    inputs: Any,
    *,
    reverse: bool,
    remat: bool,
) -> tuple[Any, jax.Array]:
    """Scans `step` over axis 1 of every input, outputs in the order of the inputs."""
    body = jax.checkpoint(step, prevent_cse=False) if remat else step
    carry, outputs = lax.scan(body, carry, jax.tree.map(_over_time, inputs), reverse=reverse)
    return carry, _over_time(outputs)


def _input_conv(module: nn.Module, x: jax.Array, features: int, name: str, bias: bool) -> jax.Array:
    """Convolution of all frames at once: `[B,T,h,w,C]` to `[B,T,h,w,features]`, float32."""
    B, T = x.shape[:2]
    k = module.kernel_size
    pad = (k - 1) * module.dilation // 2
    y = nn.Conv(
        features,
        (k, k),
        padding=((pad, pad), (pad, pad)),
        kernel_dilation=(module.dilation,) * 2,
        use_bias=bias,
        dtype=module.dtype,
        kernel_init=module.kernel_init,
        name=name,
    )(x.reshape(B * T, *x.shape[2:]))
    return y.reshape(B, T, *y.shape[1:]).astype(jnp.float32)


class ConvLSTM(nn.Module):
    """A ConvLSTM layer over a sequence.

    With `m_t` the clip marker, `*` convolution and `.` the product:

        a        = Wx * x_t + Wh * (m_t . h_{t-1}) + b           gates i, f, o, g
        i, f     = sigmoid(a_i + P_i . c_{t-1}), m_t . sigmoid(a_f + P_f . c_{t-1})
        c_t      = f . c_{t-1} + i . tanh(a_g)
        o        = sigmoid(a_o + P_o . c')      c' = c_t or c_{t-1}, by `output_sees`
        h_t      = o . tanh(c_t)

    Attributes:
      features: channels of the state.
      kernel_size: odd, for input and state.
      dilation: of both convolutions.
      peephole: `none`; `full`, one weight per position and channel; `spatial`, one per position.
        Full and spatial peepholes tie the parameters to the feature-map size.
      output_sees: which cell state the output gate's peephole reads, `new` (Shi et al. 2015) or
        `old` (the Caffe layer).
      bias: where the single bias sits: on the `input` or the `recurrent` convolution (the same
        function; names and weight decay differ), or `none`.
      forget_bias: initial value of the forget gate's part of that bias.
      reset_peephole: at a marker of 0 the input gate's peephole sees zero instead of the stale
        cell state. The Caffe layer keeps the stale value; a batch that starts with zero states
        cannot tell the difference.
      peephole_init: initial value of peephole weights (Caffe's filler gives 1).
      kernel_init: of both kernels.
      recurrent_implementation: see `recurrent_conv`.
      remat: recompute each step in the backward pass, so that memory grows only by the states.
      dtype: of the convolutions; gates and states are float32.
    """

    features: int
    kernel_size: int = 3
    dilation: int = 1
    peephole: Literal["none", "full", "spatial"] = "none"
    output_sees: Literal["new", "old"] = "new"
    bias: Literal["input", "recurrent", "none"] = "input"
    forget_bias: float = 0.0
    reset_peephole: bool = False
    peephole_init: float = 0.0
    kernel_init: Callable[..., jax.Array] = nn.initializers.lecun_normal()
    recurrent_implementation: Implementation = "auto"
    remat: bool = False
    dtype: Any = jnp.float32

    def initial_carry(self, batch_size: int, size: tuple[int, int]) -> LSTMCarry:
        """Zero states for feature maps of `size` (h, w)."""
        zeros = jnp.zeros((batch_size, *size, self.features), jnp.float32)
        return LSTMCarry(zeros, zeros)

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T h w C"],
        carry: LSTMCarry | None = None,
        *,
        markers: Bool[Array, "B T"] | Float[Array, "B T"] | None = None,
        reverse: bool = False,
    ) -> tuple[LSTMCarry, Float[Array, "B T h w F"]]:
        """Returns the state after the last step taken and the hidden maps in input order.

        Args:
          carry: state to continue from; zeros if None.
          markers: 0 where a frame starts a new sequence, else 1.
          reverse: run from the last frame to the first.
        """
        B, _, h, w, _ = x.shape
        F, k = self.features, self.kernel_size
        gates_x = _input_conv(self, x, 4 * F, "input", self.bias == "input")
        kernel = self.param("recurrent_kernel", self.kernel_init, (k, k, F, 4 * F), jnp.float32)
        kernel = jnp.asarray(kernel, self.dtype)
        if self.bias == "recurrent":
            gates_x = gates_x + self.param(
                "recurrent_bias", nn.initializers.zeros, (4 * F,), jnp.float32
            )
        if self.forget_bias:
            gates_x = gates_x.at[..., F : 2 * F].add(self.forget_bias)
        peep = self._peepholes(h, w)
        carry = self.initial_carry(B, (h, w)) if carry is None else carry
        marks = None if markers is None else markers.astype(jnp.float32)

        def step(state: LSTMCarry, inputs):
            gates, mark = inputs
            hidden, cell = state
            seen = cell
            if mark is not None:
                m = mark[:, None, None, None]
                hidden = m * hidden
                seen = m * cell if self.reset_peephole else cell
            gates = gates + recurrent_conv(
                hidden.astype(self.dtype),
                kernel,
                dilation=self.dilation,
                implementation=self.recurrent_implementation,
            ).astype(jnp.float32)
            a_i, a_f, a_o, a_g = jnp.split(gates, 4, axis=-1)
            if peep is not None:
                a_i, a_f = a_i + peep[0] * seen, a_f + peep[1] * seen
            forget = jax.nn.sigmoid(a_f)
            if mark is not None:
                forget = m * forget
            new_cell = forget * cell + jax.nn.sigmoid(a_i) * jnp.tanh(a_g)
            if peep is not None:
                a_o = a_o + peep[2] * (new_cell if self.output_sees == "new" else seen)
            hidden = jax.nn.sigmoid(a_o) * jnp.tanh(new_cell)
            return LSTMCarry(hidden, new_cell), hidden

        return _scan(step, carry, (gates_x, marks), reverse=reverse, remat=self.remat)

    def _peepholes(self, h: int, w: int) -> tuple[jax.Array, ...] | None:
        if self.peephole == "none":
            return None
        if self.peephole not in ("full", "spatial"):
            raise ConfigError(
                f"peephole {self.peephole!r} is unknown: use 'none', 'full' or 'spatial'"
            )
        shape = (h, w, self.features) if self.peephole == "full" else (h, w)
        init = nn.initializers.constant(self.peephole_init)
        weights = [
            jnp.asarray(self.param(f"peephole_{g}", init, shape, jnp.float32)) for g in "ifo"
        ]
        if self.peephole == "spatial":
            weights = [p[..., None] for p in weights]
        return tuple(weights)


class ConvGRU(nn.Module):
    """A ConvGRU layer over a sequence.

        r, z = sigmoid(W_rz * [x_t, h_{t-1}] + b)
        q    = tanh(W_q * [x_t, r . h_{t-1}] + b_q)
        h_t  = (1 - z) . h_{t-1} + z . q      with `keep="update"`: z . h_{t-1} + (1 - z) . q

    Attributes:
      features: channels of the state.
      keep: what weighs the old state, the `complement` 1-z or the `update` gate z itself.
      activation: of the candidate.
      Others as in `ConvLSTM`.
    """

    features: int
    kernel_size: int = 3
    dilation: int = 1
    bias: bool = True
    keep: Literal["complement", "update"] = "complement"
    activation: Callable[[jax.Array], jax.Array] = jnp.tanh
    kernel_init: Callable[..., jax.Array] = nn.initializers.lecun_normal()
    recurrent_implementation: Implementation = "auto"
    remat: bool = False
    dtype: Any = jnp.float32

    def initial_carry(self, batch_size: int, size: tuple[int, int]) -> jax.Array:
        """Zero state `[B,h,w,F]` for feature maps of `size` (h, w)."""
        return jnp.zeros((batch_size, *size, self.features), jnp.float32)

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T h w C"],
        carry: Float[Array, "B h w F"] | None = None,
        *,
        markers: Bool[Array, "B T"] | Float[Array, "B T"] | None = None,
        reverse: bool = False,
    ) -> tuple[Float[Array, "B h w F"], Float[Array, "B T h w F"]]:
        """Returns the state after the last step taken and the hidden maps in input order."""
        B, _, h, w, _ = x.shape
        F, k = self.features, self.kernel_size
        gates_x = _input_conv(self, x, 3 * F, "input", self.bias)
        init, f32 = self.kernel_init, jnp.float32
        gate_kernel = self.param("gate_kernel", init, (k, k, F, 2 * F), f32)
        candidate_kernel = self.param("candidate_kernel", init, (k, k, F, F), f32)
        gate_kernel = jnp.asarray(gate_kernel, self.dtype)
        candidate_kernel = jnp.asarray(candidate_kernel, self.dtype)
        carry = self.initial_carry(B, (h, w)) if carry is None else carry
        marks = None if markers is None else markers.astype(jnp.float32)

        def convolve(state: jax.Array, kernel: jax.Array) -> jax.Array:
            return recurrent_conv(
                state.astype(self.dtype),
                kernel,
                dilation=self.dilation,
                implementation=self.recurrent_implementation,
            ).astype(jnp.float32)

        def step(hidden: jax.Array, inputs):
            gates, mark = inputs
            if mark is not None:
                hidden = mark[:, None, None, None] * hidden
            rz = jax.nn.sigmoid(gates[..., : 2 * F] + convolve(hidden, gate_kernel))
            r, z = jnp.split(rz, 2, axis=-1)
            q = self.activation(gates[..., 2 * F :] + convolve(r * hidden, candidate_kernel))
            if self.keep == "update":
                z = 1.0 - z
            hidden = (1.0 - z) * hidden + z * q
            return hidden, hidden

        return _scan(step, carry, (gates_x, marks), reverse=reverse, remat=self.remat)


class Bidirectional(nn.Module):
    """Two recurrent layers over a clip, one forward in time and one backward.

    Attributes:
      make_layer: builds a layer from a `name`, for example
        `functools.partial(ConvLSTM, 32, dilation=2)`.
      mode: `parallel`, both read the input; `cascaded` ("deeper"), the backward layer reads the
        forward layer's output (PDB-ConvLSTM, eq. 6).
      merge: `sum`, `concat` (forward first), `conv_tanh` (tanh of two 1x1 convolutions' sum,
        eq. 5), or `backward` (only the backward layer's output).
      features: channels of the `conv_tanh` merge.
    """

    make_layer: Callable[..., nn.Module]
    mode: Literal["parallel", "cascaded"] = "parallel"
    merge: Literal["sum", "concat", "conv_tanh", "backward"] = "concat"
    features: int | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T h w C"],
        *,
        markers: Bool[Array, "B T"] | Float[Array, "B T"] | None = None,
    ) -> Float[Array, "B T h w F"]:
        """Merged hidden maps of both directions; each direction starts from zero."""
        _, ahead = self.make_layer(name="forward")(x, markers=markers)
        back_markers = None
        if markers is not None:
            # Seen from the end, a sequence starts one frame before the next marked frame.
            ones = jnp.ones_like(markers[:, :1])
            back_markers = jnp.concatenate([markers[:, 1:], ones], axis=1)
        source = ahead if self.mode == "cascaded" else x
        _, back = self.make_layer(name="backward")(source, markers=back_markers, reverse=True)
        if self.merge == "sum":
            return ahead + back
        if self.merge == "concat":
            return jnp.concatenate([ahead, back], axis=-1)
        if self.merge == "backward":
            return back
        if self.merge == "conv_tanh":
            width = self.features or ahead.shape[-1]
            mixed = nn.Dense(width, dtype=self.dtype, name="merge_forward")(ahead)
            mixed = mixed + nn.Dense(
                width, use_bias=False, dtype=self.dtype, name="merge_backward"
            )(back)
            return jnp.tanh(mixed).astype(jnp.float32)
        raise ConfigError(
            f"merge {self.merge!r} is unknown: use 'sum', 'concat', 'conv_tanh' or 'backward'"
        )


class DilationPyramid(nn.Module):
    """Parallel recurrent branches that differ in dilation, concatenated on channels.

    Attributes:
      make_branch: builds a branch from `dilation` and `name`.
      dilations: one branch each, in the order of concatenation.
    """

    make_branch: Callable[..., nn.Module]
    dilations: tuple[int, ...] = (1, 2)

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T h w C"],
        *,
        markers: Bool[Array, "B T"] | Float[Array, "B T"] | None = None,
    ) -> Float[Array, "B T h w F"]:
        """Hidden maps of all branches side by side."""
        branches = [
            self.make_branch(dilation=d, name=f"dilation{d}")(x, markers=markers)
            for d in self.dilations
        ]
        return jnp.concatenate(branches, axis=-1)

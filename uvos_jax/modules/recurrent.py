"""Convolutional LSTM and GRU over time, and the ways the field stacks them.

One family of cells covers the variants in use:

- ConvLSTM without peepholes, with full peepholes `(h,w,F)` (Shi et al. 2015: the output gate sees
  the new cell state), with spatial peepholes `(h,w)` shared by all channels (the Caffe layer of
  PDB-ConvLSTM and AGS: all gates see the previous cell state);
- ConvGRU (LVO's visual memory, AGNN's node update);
- clip markers: a 0 starts a new sequence inside a batch row.

Time runs in `lax.scan`. On CPU both convolutions, over the input and over the state, stand inside
the loop, where a frame stays in the cache. There XLA computes the weight gradient of a convolution
on a path more than ten times slower than outside a loop, so gradients are spelt out as matrix
products, and small kernels as shifted copies times a matrix. On accelerators the convolution over
the input, which does not depend on the state, runs over all frames before the loop, and all
convolutions are plain ones. Same numbers.

Gates are stored in the order i, f, o, g (LSTM) and r, z, candidate (GRU) on the last axis of one
kernel. Sequences are `[B,T,h,w,C]`; a carry fed back in continues a sequence exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Bool, Float

from uvos_jax.errors import ConfigError

Implementation = Literal["auto", "conv", "dot"]


#: From this many steps on `remat` works in segments.
REMAT_SEGMENTS_FROM = 9


class LSTMCarry(NamedTuple):
    """Hidden map and cell state, both `[B,h,w,F]` float32."""

    h: jax.Array
    c: jax.Array


#: Bytes of shifted copies up to which a product with them beats a convolution on CPU.
PATCH_LIMIT = 8 * 2**20


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


def _padded(x: jax.Array, shape: tuple[int, ...], dilation: int) -> jax.Array:
    ph, pw = ((k - 1) * dilation // 2 for k in shape[:2])
    return jnp.pad(x, ((0, 0), (ph, ph), (pw, pw), (0, 0)))


def _dot_conv(x: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
    """The same as `_conv`, as shifted copies side by side times the flattened kernel."""
    kh, kw, channels, features = kernel.shape
    h, w = x.shape[1:3]
    padded = _padded(x, kernel.shape, dilation)
    shifted = [
        padded[:, i * dilation : i * dilation + h, j * dilation : j * dilation + w]
        for i in range(kh)
        for j in range(kw)
    ]
    patches = jnp.concatenate(shifted, axis=-1)
    return patches @ kernel.reshape(kh * kw * channels, features)


def _dot_input_gradient(g: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
    """Gradient of `_conv` at its input: products with the kernel, shifted back and added up."""
    kh, kw, channels, features = kernel.shape
    h, w = g.shape[1:3]
    ph, pw = (kh - 1) * dilation // 2, (kw - 1) * dilation // 2
    products = g @ kernel.reshape(kh * kw * channels, features).T
    total = 0.0
    for n in range(kh * kw):
        i, j = (n // kw) * dilation, (n % kw) * dilation
        part = products[..., n * channels : (n + 1) * channels]
        total = total + jnp.pad(part, ((0, 0), (i, 2 * ph - i), (j, 2 * pw - j), (0, 0)))
    return total[:, ph : ph + h, pw : pw + w]


def _conv_input_gradient(g: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
    return _conv(g, jnp.flip(kernel, (0, 1)).swapaxes(2, 3), dilation)


def _kernel_gradient(x: jax.Array, g: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
    """Gradient of `_conv` at its kernel, one matrix product per row of the kernel."""
    kh, kw, channels, features = kernel.shape
    h, w = x.shape[1:3]
    padded = _padded(x, kernel.shape, dilation)
    shifted = [padded[:, :, j * dilation : j * dilation + w] for j in range(kw)]
    rows = jnp.concatenate(shifted, axis=-1)
    flat = g.reshape(-1, features)
    products = [
        rows[:, i * dilation : i * dilation + h].reshape(-1, kw * channels).T @ flat
        for i in range(kh)
    ]
    return jnp.stack(products).reshape(kernel.shape)


def _plain_gradients(x: jax.Array, g: jax.Array, kernel: jax.Array, dilation: int):
    _, gradient = jax.vjp(lambda a, k: _conv(a, k, dilation), x, kernel)
    return gradient(g)


def _use_patches(x: jax.Array, kernel: jax.Array) -> bool:
    kh, kw = kernel.shape[:2]
    return kh * kw <= 9 and kh * kw * x.size * x.dtype.itemsize <= PATCH_LIMIT


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _loop_conv(x: jax.Array, kernel: jax.Array, dilation: int, implementation: str) -> jax.Array:
    on_cpu = _dot_conv if implementation == "dot" or _use_patches(x, kernel) else _conv
    if implementation != "auto":
        return (_conv if implementation == "conv" else on_cpu)(x, kernel, dilation)
    return lax.platform_dependent(
        x,
        kernel,
        cpu=lambda a, k: on_cpu(a, k, dilation),
        default=lambda a, k: _conv(a, k, dilation),
    )


def _loop_conv_forward(x, kernel, dilation, implementation):
    return _loop_conv(x, kernel, dilation, implementation), (x, kernel)


def _loop_conv_backward(dilation, implementation, residuals, g):
    x, kernel = residuals
    patches = implementation == "dot" or _use_patches(x, kernel)
    input_gradient = _dot_input_gradient if patches else _conv_input_gradient

    def products(x, g, kernel):
        return input_gradient(g, kernel, dilation), _kernel_gradient(x, g, kernel, dilation)

    def plain(x, g, kernel):
        return _plain_gradients(x, g, kernel, dilation)

    if implementation != "auto":
        return (plain if implementation == "conv" else products)(x, g, kernel)
    return lax.platform_dependent(x, g, kernel, cpu=products, default=plain)


_loop_conv.defvjp(_loop_conv_forward, _loop_conv_backward)


def recurrent_conv(
    x: Float[Array, "B h w C"],
    kernel: Float[Array, "kh kw C F"],
    *,
    dilation: int = 1,
    implementation: Implementation = "auto",
) -> Float[Array, "B h w F"]:
    """Size-preserving convolution for use inside a loop; odd kernels only.

    Differentiable in reverse mode only.

    Args:
      implementation: `conv`; `dot` (shifted copies and matrix products, gradients too); `auto`:
        plain where the program is lowered for an accelerator; on CPU gradients at the kernel are
        matrix products, and everything is for kernels up to 3x3 on small maps.

    Raises:
      ConfigError: even kernel size, which has no symmetric padding.
    """
    if kernel.shape[0] % 2 == 0 or kernel.shape[1] % 2 == 0:
        raise ConfigError(f"recurrent kernel size must be odd, got {kernel.shape[:2]}")
    return _loop_conv(x, kernel, dilation, implementation)


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
    """Scans `step` over axis 1 of every input, outputs in the order of the inputs.

    With `remat` the backward pass recomputes: only the carries between sqrt(T) segments are kept,
    then those within one segment, so that memory hardly grows with T (two more forward passes).
    """
    inputs = jax.tree.map(_over_time, inputs)
    T = jax.tree.leaves(inputs)[0].shape[0]
    if not remat:
        carry, outputs = lax.scan(step, carry, inputs, reverse=reverse)
        return carry, _over_time(outputs)

    body = jax.checkpoint(step, prevent_cse=False)

    def run(carry: Any, part: Any) -> tuple[Any, jax.Array]:
        return lax.scan(body, carry, part, reverse=reverse)

    if T < REMAT_SEGMENTS_FROM:
        carry, outputs = run(carry, inputs)
        return carry, _over_time(outputs)
    length = math.isqrt(T)
    whole = T - T % length
    segments = jax.tree.map(lambda x: x[:whole].reshape(-1, length, *x.shape[1:]), inputs)
    rest = jax.tree.map(lambda x: x[whole:], inputs)
    segment = jax.checkpoint(run, prevent_cse=False)
    parts = []
    if reverse and whole < T:
        carry, last = segment(carry, rest)
        parts = [last]
    carry, outputs = lax.scan(segment, carry, segments, reverse=reverse)
    outputs = outputs.reshape(whole, *outputs.shape[2:])
    if not reverse and whole < T:
        carry, last = segment(carry, rest)
        parts = [last]
    return carry, _over_time(jnp.concatenate([outputs, *parts], axis=0))


class InputKernel(nn.Module):
    """The parameters of the convolution over the input: `kernel [k,k,C,F]` and `bias [F]`."""

    features: int
    kernel_size: int
    use_bias: bool
    kernel_init: Callable[..., jax.Array]

    @nn.compact
    def __call__(self, channels: int) -> tuple[Any, Any]:
        shape = (self.kernel_size, self.kernel_size, channels, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        if not self.use_bias:
            return kernel, None
        return kernel, self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)


def _input_conv(
    module: nn.Module, x: jax.Array, features: int, *, bias: bool
) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
    """The convolution over the input, before the loop or inside.

    Returns:
      what to scan over, `[B,T,h,w,...]`, and a function from one time step of it to the
      contribution to the gates, float32 `[B,h,w,features]`.
    """
    B, T = x.shape[:2]
    kernel, offset = InputKernel(
        features, module.kernel_size, bias, module.kernel_init, name="input"
    )(x.shape[-1])
    x, kernel = jnp.asarray(x, module.dtype), jnp.asarray(kernel, module.dtype)

    def convolve(frames: jax.Array, implementation: str) -> jax.Array:
        y = recurrent_conv(
            frames, kernel, dilation=module.dilation, implementation=implementation
        ).astype(jnp.float32)
        return y if offset is None else y + offset

    hoist = module.hoist_input
    if hoist is None:
        hoist = jax.default_backend() != "cpu"
    if not hoist:
        return x, lambda frames: convolve(frames, module.recurrent_implementation)
    gates = convolve(x.reshape(B * T, *x.shape[2:]), "conv")
    return gates.reshape(B, T, *gates.shape[1:]), lambda frames: frames


def symmetric_uniform(bound: float) -> Callable[..., jax.Array]:
    """Initialiser: uniform in [-bound, bound]."""

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


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
      hoist_input: run the input's convolution over all frames before the loop; None: where JAX runs
        on an accelerator.
      remat: recompute in the backward pass, so that its memory hardly grows with time.
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
    hoist_input: bool | None = None
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
        reset_peephole: bool | None = None,
    ) -> tuple[LSTMCarry, Float[Array, "B T h w F"]]:
        """Returns the state after the last step taken and the hidden maps in input order.

        Args:
          carry: state to continue from; zeros if None.
          markers: 0 where a frame starts a new sequence, else 1.
          reverse: run from the last frame to the first.
          reset_peephole: overrides the attribute.
        """
        reset = self.reset_peephole if reset_peephole is None else reset_peephole
        B, _, h, w, _ = x.shape
        F, k = self.features, self.kernel_size
        inputs, from_input = _input_conv(self, x, 4 * F, bias=self.bias == "input")
        kernel = self.param("recurrent_kernel", self.kernel_init, (k, k, F, 4 * F), jnp.float32)
        kernel = jnp.asarray(kernel, self.dtype)
        offset = jnp.zeros((4 * F,)).at[F : 2 * F].set(self.forget_bias)
        if self.bias == "recurrent":
            offset += self.param("recurrent_bias", nn.initializers.zeros, (4 * F,), jnp.float32)
        peep = self._peepholes(h, w)
        carry = self.initial_carry(B, (h, w)) if carry is None else carry
        marks = None if markers is None else markers.astype(jnp.float32)

        def step(state: LSTMCarry, frame):
            seen_input, mark = frame
            hidden, cell = state
            seen = cell
            if mark is not None:
                m = mark[:, None, None, None]
                hidden = m * hidden
                seen = m * cell if reset else cell
            gates = recurrent_conv(
                hidden.astype(self.dtype),
                kernel,
                dilation=self.dilation,
                implementation=self.recurrent_implementation,
            ).astype(jnp.float32)
            gates = gates + from_input(seen_input) + offset
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

        return _scan(step, carry, (inputs, marks), reverse=reverse, remat=self.remat)

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
    hoist_input: bool | None = None
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
        inputs, from_input = _input_conv(self, x, 3 * F, bias=self.bias)
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

        def step(hidden: jax.Array, frame):
            seen_input, mark = frame
            gates = from_input(seen_input)
            if mark is not None:
                hidden = mark[:, None, None, None] * hidden
            rz = jax.nn.sigmoid(gates[..., : 2 * F] + convolve(hidden, gate_kernel))
            r, z = jnp.split(rz, 2, axis=-1)
            q = self.activation(gates[..., 2 * F :] + convolve(r * hidden, candidate_kernel))
            if self.keep == "update":
                z = 1.0 - z
            hidden = (1.0 - z) * hidden + z * q
            return hidden, hidden

        return _scan(step, carry, (inputs, marks), reverse=reverse, remat=self.remat)


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

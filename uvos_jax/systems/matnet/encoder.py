"""MATNet's encoder: two ResNets, motion-attentive transitions between them, attention gates."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from uvos_jax.modules import attention as attn
from uvos_jax.modules.backbones.resnet import Bottleneck
from uvos_jax.modules.layers import BN_EPSILON, BN_MOMENTUM, Conv
from uvos_jax.ops.pooling import max_pool

TRANSITIONS = ("mat", "none")
AFFINITIES = ("tanh", "softmax")
BRIDGES = ("ssa", "concat")

#: U(+-1/sqrt(fan in)), the initialisation that the released code leaves its new layers with.
_UNIFORM = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Trunk(nn.Module):
    """A ResNet whose stages can be called one by one, strides on the 3x3 convolutions.

    Attributes:
      block_counts, widths: of the four stages, `layer1` to `layer4` (res2 to res5).
      freeze_bn: use running statistics in training.
      remat: recompute blocks in the backward pass.
    """

    block_counts: tuple[int, ...] = (3, 4, 23, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    freeze_bn: bool = False
    remat: bool = False
    dtype: Any = jnp.float32

    def setup(self):
        self.conv1 = Conv(self.widths[0], 7, stride=2, dtype=self.dtype)
        self.bn1 = nn.BatchNorm(momentum=BN_MOMENTUM, epsilon=BN_EPSILON, dtype=self.dtype)
        block = nn.remat(Bottleneck, static_argnums=(2,)) if self.remat else Bottleneck
        for stage, (count, width) in enumerate(
            zip(self.block_counts, self.widths, strict=True), start=1
        ):
            blocks = [
                block(
                    width,
                    stride=2 if stage > 1 and i == 0 else 1,
                    stride_on="conv2",
                    project=i == 0,
                    freeze_bn=self.freeze_bn,
                    dtype=self.dtype,
                )
                for i in range(count)
            ]
            setattr(self, f"layer{stage}", blocks)

    def stem(self, x: jax.Array, train: bool) -> jax.Array:
        """`[N,H,W,3]` to `[N,H/4,W/4,C]`."""
        x = self.bn1(self.conv1(x), use_running_average=not train or self.freeze_bn)
        return max_pool(nn.relu(x), 3, 2, 1)

    def stage(self, number: int, x: jax.Array, train: bool) -> jax.Array:
        """Stage `layer<number>`."""
        for block in getattr(self, f"layer{number}"):
            x = block(x, train)
        return x


class TransitionStep(nn.Module):
    """One step of motion-attentive transition between an appearance and a motion map.

    With `A' = softmax(w_a . A) A` and `M' = softmax(w_m . M) M` (softmax over all positions):

        Z_j = sum_i tanh(P_m M'_j . P_a A'_i) A'_i,  then Z_j / |Z_j|

    so that motion decides which appearance is gathered. It runs in float32: A' and M' are about
    1/(h w) of A and M.

    Attributes:
      reduction: P_a and P_m have `C / reduction` channels.
      soft_attention: without it A' = A and M' = M.
      affinity: `tanh` with unit vectors (release) or `softmax` over i (paper's wording).
      attention_impl, block_size: see `uvos_jax.modules.attention`.
    """

    reduction: int = 16
    soft_attention: bool = True
    affinity: str = "tanh"
    attention_impl: str = "blockwise"
    block_size: int = 512

    @nn.compact
    def __call__(self, appearance: jax.Array, motion: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Maps `[N,h,w,C]` float32 to the gathered appearance Z and the attended motion M'."""
        N, h, w, C = appearance.shape
        width = max(C // self.reduction, 1)

        def project(name: str, x: jax.Array, features: int) -> jax.Array:
            conv = Conv(features, 1, use_bias=True, kernel_init=_UNIFORM, name=name)
            return conv(x).reshape(N, h * w, features)

        if self.soft_attention:
            weights_a = jax.nn.softmax(project("attend_appearance", appearance, 1), axis=1)
            weights_m = jax.nn.softmax(project("attend_motion", motion, 1), axis=1)
            appearance = appearance * weights_a.reshape(N, h, w, 1)
            motion = motion * weights_m.reshape(N, h, w, 1)
        keys = project("project_appearance", appearance, width)
        queries = project("project_motion", motion, width)
        values = appearance.reshape(N, h * w, C)
        options = {"implementation": self.attention_impl, "block_size": self.block_size}
        if self.affinity == "softmax":
            gathered = attn.attend(queries, keys, values, **options)
        else:
            gathered = attn.attend_unnormalized(queries, keys, values, **options)
            square = jnp.sum(jnp.square(gathered), axis=-1, keepdims=True)
            gathered = gathered * jax.lax.rsqrt(jnp.maximum(square, 1e-24))
        return gathered.reshape(N, h, w, C), motion


class Transition(nn.Module):
    """A cascade of `steps` equal transitions, `A <- relu(Z + A)`, `M <- relu(M' + M)` between them.

    Attributes:
      steps: how many, all with the same weights.
      Others as in `TransitionStep`.
    """

    steps: int = 5
    reduction: int = 16
    soft_attention: bool = True
    affinity: str = "tanh"
    attention_impl: str = "blockwise"
    block_size: int = 512

    def setup(self):
        self.step = TransitionStep(
            self.reduction,
            self.soft_attention,
            self.affinity,
            self.attention_impl,
            self.block_size,
        )

    def __call__(self, appearance: jax.Array, motion: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Z and M' of the last step, float32."""

        def update(step: nn.Module, maps: tuple, _: None) -> tuple[tuple, None]:
            a, m = maps
            z, attended = step(a, m)
            return (nn.relu(z + a), nn.relu(attended + m)), None

        maps = appearance.astype(jnp.float32), motion.astype(jnp.float32)
        if self.steps > 1:
            cascade = nn.scan(
                nn.remat(update, prevent_cse=False),
                variable_broadcast="params",
                split_rngs={"params": False},
                length=self.steps - 1,
            )
            maps, _ = cascade(self.step, maps, None)
        return self.step(*maps)


class ScaleSensitiveAttention(nn.Module):
    """The bridge to the decoder: channel attention c, position attention q, one scale weight g.

        U1 = c U,   q = BN(conv7x7(max over channels of U1)),   U + g q U1

    c and g come from the same squeezed vector through sigmoids; q has none.
    """

    reduction: int = 16
    freeze_bn: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        C = x.shape[-1]
        dense = {"dtype": self.dtype, "kernel_init": _UNIFORM}
        squeezed = jnp.mean(x.astype(jnp.float32), axis=(1, 2)).astype(self.dtype)
        hidden = nn.relu(nn.Dense(max(C // self.reduction, 1), name="squeeze", **dense)(squeezed))
        channels = nn.sigmoid(nn.Dense(C, name="excite", **dense)(hidden))
        scale = nn.sigmoid(nn.Dense(1, name="scale", **dense)(hidden))
        weighted = x * channels[:, None, None, :]
        position = Conv(1, 7, dtype=self.dtype, kernel_init=_UNIFORM, name="conv")(
            jnp.max(weighted, axis=-1, keepdims=True)
        )
        position = nn.BatchNorm(
            use_running_average=not train or self.freeze_bn,
            momentum=0.99,
            epsilon=BN_EPSILON,
            dtype=self.dtype,
            name="norm",
        )(position)
        return x + scale[:, None, None, :] * position * weighted


class InterleavedEncoder(nn.Module):
    """Two ResNets; after the stages res3 to res5 motion steers appearance (`Transition`).

    Attributes:
      block_counts, widths: of both trunks.
      transition: `mat`, or `none`: the streams meet at the decoder only.
      bridge: `ssa`, or `concat`: the streams side by side as they are.
      Others as in `Transition` and `Trunk`.
    """

    block_counts: tuple[int, ...] = (3, 4, 23, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    transition: str = "mat"
    steps: int = 5
    reduction: int = 16
    soft_attention: bool = True
    affinity: str = "tanh"
    bridge: str = "ssa"
    attention_impl: str = "blockwise"
    block_size: int = 512
    freeze_bn: bool = False
    remat: bool = False
    dtype: Any = jnp.float32

    def setup(self):
        trunk = {
            "block_counts": self.block_counts,
            "widths": self.widths,
            "freeze_bn": self.freeze_bn,
            "remat": self.remat,
            "dtype": self.dtype,
        }
        self.appearance, self.motion = Trunk(**trunk), Trunk(**trunk)
        for k in (3, 4, 5):
            if self.transition == "mat":
                step = Transition(
                    self.steps,
                    self.reduction,
                    self.soft_attention,
                    self.affinity,
                    self.attention_impl,
                    self.block_size,
                )
                setattr(self, f"transition{k}", step)
        for k in (2, 3, 4, 5):
            if self.bridge == "ssa":
                gate = ScaleSensitiveAttention(
                    freeze_bn=self.freeze_bn, reduction=self.reduction, dtype=self.dtype
                )
                setattr(self, f"gate{k}", gate)

    def __call__(
        self, image: jax.Array, flow: jax.Array, train: bool = False
    ) -> dict[str, jax.Array]:
        """Joint features of both streams.

        Args:
          image, flow: normalised pictures `[N,H,W,3]`, the flow in colours.

        Returns:
          `g2`..`g5`: at strides 4, 8, 16, 32, channels 2 x 4 x widths; and `appearance2`,
          `appearance3` (before its transition), `z3`, `m3`, `z5`, `m5` of the transitions.
        """
        maps: dict[str, jax.Array] = {}
        a, m = self.appearance.stem(image, train), self.motion.stem(flow, train)
        for k in (2, 3, 4, 5):
            a = self.appearance.stage(k - 1, a, train)
            m = self.motion.stage(k - 1, m, train)
            if k < 4:
                maps[f"appearance{k}"] = a
            if k > 2 and self.transition == "mat":
                z, attended = getattr(self, f"transition{k}")(a, m)
                maps[f"z{k}"], maps[f"m{k}"] = z, attended
                a = nn.relu(z + a.astype(jnp.float32)).astype(self.dtype)
                m = nn.relu(attended + m.astype(jnp.float32)).astype(self.dtype)
            joint = jnp.concatenate([a, m], axis=-1)
            maps[f"g{k}"] = (
                getattr(self, f"gate{k}")(joint, train) if self.bridge == "ssa" else joint
            )
        return maps

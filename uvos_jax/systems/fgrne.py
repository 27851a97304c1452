"""FGRNE, also FGRN: flow-guided recurrent neural encoder (Li, Xie, Wei, Wang, Lin, CVPR 2018).

Turns a network for stills into one for video. For a frame and its k predecessors: optical flow from
the frame to each predecessor is refined by a ConvLSTM that reads the flows backward in time; every
predecessor's feature map is warped to the frame by its refined flow; a second ConvLSTM reads the
warped maps forward in time and the frame's own map last, and its state replaces that map in the
host network. The host is DSS (Hou et al., CVPR 2017): VGG-16 with six side maps, the coarse ones
handed to the fine ones.

This is a reference design: neither code nor weights of the paper are public, and its text was not
at hand. The three modules, their order, k = 5, DSS and a pre-trained FlowNet come from the abstract
and notes on it, the layers of DSS from its public prototxt. Ours, and so doubtful: the cut at
conv5_3 (`split`), all widths of the recurrence, the 1x1 convolutions around it
(`encoder_features`), the flow residual (`residual_flow`), that the nearest frame's flow is read
first (`flow_order`), zeros outside the image (`warp_padding`), the losses and the whole optimiser.
Frames before the first one are copies of it, at rest.

Flow comes from a FlowNetS that is trained along (`flow_source="network"`), or from the batch
(`"batch"`: flow from each frame to the next, which is inverted by fixed-point iterations and
chained to reach further back). DSS's first convolution is padded by 5 pixels; its crops undo that.
Here every map knows where its cells lie on the input and is resampled there, which equals bilinear
deconvolution and cropping where Caffe's offsets are whole numbers; between sides 4, 5 and 6 they
are not, and how the release rounds them is unknown. So is the order of the six maps at the fusion.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from uvos_jax.errors import ConfigError, DataError
from uvos_jax.losses import masks
from uvos_jax.modules.backbones.vgg import COUNTS, DSS, VGG16, WIDTHS
from uvos_jax.modules.flownets import FLOW_UNIT, FLOWNET_MEAN, FlowNetS
from uvos_jax.modules.layers import Conv
from uvos_jax.modules.recurrent import ConvLSTM
from uvos_jax.ops.pooling import caffe_pool, pooled_size
from uvos_jax.ops.warp import backward_warp
from uvos_jax.registry import register
from uvos_jax.systems.base import System
from uvos_jax.types import Batch, ModelCard, ModelSpec, Outputs, Phase, Stage, State

HOSTS = ("dss", "plain")
SPLITS = {"conv5_3": ("c5",), "sides": ("c1", "c2", "c3", "c4", "c5")}
FLOW_SOURCES = ("network", "batch")
FLOW_ORDERS = ("nearest_first", "farthest_first")
TEMPORALS = ("convlstm", "mean", "concat")
PEEPHOLES = ("none", "full")
WARP_PADDINGS = ("zeros", "border")
SUPERVISIONS = ("last", "all")
FUSIONS = ("mean", "fuse")

#: Side branch -> sides whose maps join its own, in the order of concatenation (DSS).
CONNECTIONS = {4: (6, 5), 3: (6, 5), 2: (5, 4, 6, 3), 1: (5, 4, 6, 3)}
#: Side branch -> kernel of its two hidden convolutions (DSS).
KERNELS = {1: 3, 2: 3, 3: 5, 4: 5, 5: 5, 6: 7}
#: Sides that, with the fused map, make up DSS's result at test time.
RESULT_SIDES = (3, 4, 5)
#: Fixed-point iterations that turn flow t -> t+1 into flow t+1 -> t.
INVERSION_STEPS = 5
_GAUSSIAN = nn.initializers.normal(0.01)
_HE = nn.initializers.variance_scaling(2.0, "fan_in", "normal")

#: Cell i of a map lies at pixel `stride * i + offset` of the input.
Geometry = tuple[float, float]


def geometries(first_padding: int) -> dict[str, Geometry]:
    """Where the maps of DSS's VGG-16 lie: `c1` ... `c5` and `pool5a`."""
    stride, offset = 1.0, 1.0 - first_padding
    found = {"c1": (stride, offset)}
    for name, shift in (("c2", 0.5), ("c3", 0.5), ("c4", 0.5), ("c5", 0.0), ("pool5a", 0.0)):
        offset += stride * shift  # a 2x2 window is centred between cells, a padded 3x3 one on one
        stride *= 2
        found[name] = (stride, offset)
    return found


@lru_cache(maxsize=256)
def _matrix(n_in: int, source: Geometry, n_out: int, target: Geometry, clamp: bool) -> np.ndarray:
    """Linear interpolation `[n_out, n_in]` between two grids on one axis."""
    position = (target[0] * np.arange(n_out) + target[1] - source[1]) / source[0]
    if clamp:
        position = np.clip(position, 0, n_in - 1)
    distance = np.abs(position[:, None] - np.arange(n_in)[None, :])
    return np.maximum(0.0, 1.0 - distance).astype(np.float32)


def resample(
    x: jax.Array,
    source: Geometry,
    target: Geometry,
    size: tuple[int, int],
    *,
    clamp: bool = False,
) -> jax.Array:
    """Bilinear values of a map `[N,h,w,C]` at the cells of another grid, float32 `[N,*size,C]`.

    Args:
      source, target: where the cells of both lie, the same on both axes.
      clamp: repeat border values outside the map; else fade to 0, as a bilinear deconvolution.
    """
    rows = _matrix(x.shape[1], source, size[0], target, clamp)
    columns = _matrix(x.shape[2], source, size[1], target, clamp)
    y = jnp.einsum("oh,nhwc->nowc", rows, x.astype(jnp.float32), precision="highest")
    return jnp.einsum("pw,nowc->nopc", columns, y, precision="highest")


# ----- host -----------------------------------------------------------------------------------


class SideBranch(nn.Module):
    """Two convolutions with ReLU and a 1x1 one to a logit: `conv1`, `conv2`, `conv3`."""

    features: int
    kernel_size: int
    kernel_init: Any = _GAUSSIAN
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in (1, 2):
            x = nn.relu(self._conv(self.features, self.kernel_size, f"conv{i}")(x))
        return self._conv(1, 1, "conv3")(x)

    def _conv(self, width: int, kernel: int, name: str) -> Conv:
        return Conv(width, kernel, use_bias=True, dtype=self.dtype,
                    kernel_init=self.kernel_init, name=name)  # fmt: skip


class DSSSides(nn.Module):
    """The regression part of DSS: from the backbone's maps to saliency at input size.

    Attributes:
      sides: which of the six branches there are (all in DSS).
      widths: hidden channels of branches 1 to 6.
      first_padding: of the backbone, see `geometries`.
      kernel_init: of the branches; DSS: a Gaussian of deviation 0.01.
    """

    sides: tuple[int, ...] = (1, 2, 3, 4, 5, 6)
    widths: tuple[int, ...] = (128, 128, 256, 256, 512, 512)
    first_padding: int = 5
    kernel_init: Any = _GAUSSIAN
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, features: Mapping[str, jax.Array], size: tuple[int, int]
    ) -> tuple[jax.Array, dict[int, jax.Array]]:
        """Fused logits `[N,H,W,1]` and those of every side by its number, float32."""
        where = {i: geometries(self.first_padding)["pool5a" if i == 6 else f"c{i}"]
                 for i in self.sides}  # fmt: skip
        maps = dict(features)
        pool5 = caffe_pool(maps["c5"], "max", 3, 2, 1)
        maps["c6"] = caffe_pool(pool5, "ave", 3, 1, 1)
        logits: dict[int, jax.Array] = {}
        for i in sorted(self.sides, reverse=True):
            own = SideBranch(self.widths[i - 1], KERNELS[i], self.kernel_init, self.dtype,
                             name=f"dsn{i}")(maps[f"c{i}"])  # fmt: skip
            coarser = [j for j in CONNECTIONS.get(i, ()) if j in self.sides]
            if coarser:
                grid = own.shape[1:3]
                joined = [own.astype(jnp.float32)]
                joined += [resample(logits[j], where[j], where[i], grid) for j in coarser]
                own = Conv(1, 1, use_bias=True, dtype=self.dtype,
                           kernel_init=nn.initializers.constant(1.0 / len(joined)),
                           name=f"join{i}")(jnp.concatenate(joined, axis=-1))  # fmt: skip
            logits[i] = own
        pixels = (1.0, 0.0)
        full = {i: resample(logits[i], where[i], pixels, size) for i in sorted(self.sides)}
        fused = Conv(1, 1, use_bias=True, dtype=self.dtype,
                     kernel_init=nn.initializers.constant(1.0 / len(full)),
                     name="fuse")(jnp.concatenate(list(full.values()), axis=-1))  # fmt: skip
        return fused, full


class PlainHead(nn.Module):
    """A host without side maps: a 3x3 convolution, ReLU and a 1x1 one on conv5_3."""

    width: int = 256
    first_padding: int = 5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, features: Mapping[str, jax.Array], size: tuple[int, int]
    ) -> tuple[jax.Array, dict[int, jax.Array]]:
        """Logits `[N,H,W,1]` and no sides."""
        x = nn.relu(Conv(self.width, 3, use_bias=True, dtype=self.dtype, kernel_init=_HE,
                         name="conv")(features["c5"]))  # fmt: skip
        x = Conv(1, 1, use_bias=True, dtype=self.dtype, name="score")(x)
        where = geometries(self.first_padding)["c5"]
        return resample(x, where, (1.0, 0.0), size).astype(self.dtype), {}


# ----- the recurrent encoder --------------------------------------------------------------------


class FlowRefinement(nn.Module):
    """ConvLSTM over the flows of a window, and a 1x1 convolution back to two channels.

    Attributes:
      features: channels of the state.
      order: `nearest_first` (backward in time) or `farthest_first`.
      residual: add the result to the given flow; it starts at zero then.
    """

    features: int = 32
    order: str = "nearest_first"
    residual: bool = True
    peephole: str = "none"
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, flow: jax.Array) -> jax.Array:
        """Refined flow `[N,k,h,w,2]`, in the order given: n = 1 (nearest) to k."""
        lstm = ConvLSTM(self.features, peephole=self.peephole, remat=self.remat,
                        dtype=self.dtype, name="lstm")  # fmt: skip
        _, hidden = lstm(flow, reverse=self.order == "farthest_first")
        N, k = flow.shape[:2]
        init = nn.initializers.zeros if self.residual else nn.initializers.lecun_normal()
        out = Conv(2, 1, use_bias=True, kernel_init=init, name="flow")(
            hidden.reshape(N * k, *hidden.shape[2:])
        ).reshape(flow.shape)
        return flow + out if self.residual else out


class FeatureEncoder(nn.Module):
    """From a frame's map and its predecessors', warped to it, to one map.

    Attributes:
      features: channels of the state, reached and left by 1x1 convolutions; 0 keeps those of the
        map and needs no such convolutions.
      temporal: `convlstm`, or the ablations `mean` and `concat` (joined by a 1x1 convolution).
    """

    features: int = 256
    temporal: str = "convlstm"
    peephole: str = "none"
    remat: bool = False
    dtype: Any = jnp.float32

    def setup(self):
        if self.features:
            self.reduce = Conv(self.features, 1, use_bias=True, dtype=self.dtype)

    def reduced(self, x: jax.Array) -> jax.Array:
        """Maps `[N,h,w,C]` as they are stored and warped: `[N,h,w,F]`."""
        return self.reduce(x) if self.features else x

    @nn.compact
    def __call__(self, current: jax.Array, former: jax.Array, channels: int) -> jax.Array:
        """The encoded map `[N,h,w,channels]`.

        Args:
          current: `[N,h,w,F]`, reduced. former: warped, `[N,k,h,w,F]`, nearest first.
        """
        if self.temporal == "mean":
            x = jnp.mean(jnp.concatenate([current[:, None], former], axis=1), axis=1)
        elif self.temporal == "concat":
            parts = [current, *jnp.moveaxis(former, 1, 0)]
            x = Conv(current.shape[-1], 1, use_bias=True, dtype=self.dtype, name="join")(
                jnp.concatenate(parts, axis=-1)
            )
        else:
            sequence = jnp.concatenate([former[:, ::-1], current[:, None]], axis=1)
            lstm = ConvLSTM(current.shape[-1], peephole=self.peephole, remat=self.remat,
                            dtype=self.dtype, name="lstm")  # fmt: skip
            (x, _), _ = lstm(sequence)
        x = x.astype(self.dtype)
        if self.features:
            x = Conv(channels, 1, use_bias=True, dtype=self.dtype, kernel_init=_HE,
                     name="expand")(x)  # fmt: skip
        return x


class FGRNENetwork(nn.Module):
    """Host network with the recurrent encoder inside.

    Attributes:
      counts, widths, first_padding: of the VGG-16.
      host, sides, side_widths, plain_width, gaussian_init: of the regression part.
      split: which of the backbone's maps are encoded, see `SPLITS`.
      window: k, the number of predecessors; 0 is the host alone.
      use_flow: warp at all. refine_flow: by refined flow.
      flow_source, flow_widths, flow_decoder_widths: of the flow.
      flow_order, flow_features, residual_flow: see `FlowRefinement`.
      encoder_features, temporal: see `FeatureEncoder`.
      peephole: of both ConvLSTMs. warp_padding: `zeros` or `border`.
      remat: recompute the backbone's blocks and the ConvLSTMs' steps in the backward pass.
    """

    counts: tuple[int, ...] = COUNTS
    widths: tuple[int, ...] = WIDTHS
    first_padding: int = 5
    host: str = "dss"
    sides: tuple[int, ...] = (1, 2, 3, 4, 5, 6)
    side_widths: tuple[int, ...] = (128, 128, 256, 256, 512, 512)
    plain_width: int = 256
    gaussian_init: bool = True
    split: str = "conv5_3"
    window: int = 5
    use_flow: bool = True
    refine_flow: bool = True
    flow_source: str = "network"
    flow_widths: tuple[int, ...] = (64, 128, 256, 512, 512, 1024)
    flow_decoder_widths: tuple[int, ...] = (512, 256, 128, 64)
    flow_order: str = "nearest_first"
    flow_features: int = 32
    residual_flow: bool = True
    encoder_features: int = 256
    temporal: str = "convlstm"
    peephole: str = "none"
    warp_padding: str = "zeros"
    remat: bool = False
    dtype: Any = jnp.float32

    def setup(self):
        vgg = {**DSS, "first_padding": self.first_padding}
        self.vgg = VGG16(self.counts, self.widths, **vgg, remat=self.remat, dtype=self.dtype)
        if self.host == "dss":
            init = _GAUSSIAN if self.gaussian_init else _HE
            self.regression = DSSSides(
                self.sides, self.side_widths, self.first_padding, init, self.dtype
            )
        else:
            self.regression = PlainHead(self.plain_width, self.first_padding, self.dtype)
        if not self.window:
            return
        common = {"peephole": self.peephole, "remat": self.remat, "dtype": self.dtype}
        if self.estimates_flow:
            self.flow = FlowNetS(self.flow_widths, self.flow_decoder_widths, decoder_bias=True,
                                 dtype=self.dtype)  # fmt: skip
        if self.use_flow and self.refine_flow:
            self.refine = FlowRefinement(
                self.flow_features, self.flow_order, self.residual_flow, **common
            )
        width = dict(zip(("c1", "c2", "c3", "c4", "c5"), self.widths, strict=True))
        self.encoders = {
            key: FeatureEncoder(
                self.encoder_features if width[key] > self.encoder_features else 0,
                self.temporal,
                **common,
            )
            for key in SPLITS[self.split]
        }

    @property
    def estimates_flow(self) -> bool:
        """Whether there is a flow network inside."""
        return bool(self.window) and self.use_flow and self.flow_source == "network"

    # ----- parts --------------------------------------------------------------------------

    def host_features(self, frames: jax.Array) -> tuple[dict, dict]:
        """The backbone's maps of `[N,H,W,3]`, and of those that are encoded, what is stored."""
        maps = self.vgg(frames)
        stored = {k: e.reduced(maps[k]) for k, e in self.encoders.items()} if self.window else {}
        return maps, stored

    def regress(
        self, maps: Mapping[str, jax.Array], size: tuple[int, int]
    ) -> tuple[jax.Array, dict[int, jax.Array]]:
        """Fused logits `[N,H,W,1]` and the sides', from the backbone's or encoded maps."""
        return self.regression(maps, size)

    def map_sizes(self, size: tuple[int, int]) -> dict[str, tuple[int, int]]:
        """(h, w) of the backbone's maps for frames of (H, W)."""
        sizes = {"c1": tuple(n + 2 * (self.first_padding - 1) for n in size)}
        for i in range(4):
            window, padding = DSS["pool_windows"][i], DSS["pool_padding"][i]
            sizes[f"c{i + 2}"] = tuple(
                pooled_size(n, window, 2, padding, ceil_mode=True) for n in sizes[f"c{i + 1}"]
            )
        return sizes

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """(h, w) of conv5_3, on which flow is refined, for frames of (H, W)."""
        return self.map_sizes(size)["c5"]

    def on_grid(self, flow: jax.Array, source: Geometry, size: tuple[int, int]) -> jax.Array:
        """Flow `[N,H,W,2]` in input pixels as cells of conv5_3's grid, `[N,h,w,2]`."""
        target = geometries(self.first_padding)["c5"]
        return resample(flow, source, target, self.grid(size), clamp=True) / target[0]

    def steps_back(self, flow: jax.Array, size: tuple[int, int]) -> jax.Array:
        """Flow t -> t+1 `[N,H,W,2]` of the batch as flow t+1 -> t on the grid `[N,h,w,2]`."""
        forward = self.on_grid(flow, (1.0, 0.0), size)
        back = -forward
        for _ in range(INVERSION_STEPS):
            back = -backward_warp(forward, back)
        return back

    def raw_flow(
        self, pictures: jax.Array | None, steps: jax.Array | None, size: tuple[int, int]
    ) -> jax.Array:
        """Flow from each of the last T frames to its k predecessors, `[B,T,k,h,w,2]` on the grid.

        Args:
          pictures: `[B,k+T,H,W,3]` as the flow network wants them.
          steps: instead, flow from each frame to the one before it, `[B,k+T,h,w,2]`.
        """
        k = self.window
        if pictures is None:
            T = steps.shape[1] - k
            flat = (-1, *steps.shape[2:])

            def step(n: int) -> jax.Array:  # from the n-th predecessor to the one before it
                return steps[:, k - n : k - n + T].reshape(flat)

            total = [step(0)]
            for n in range(1, k):
                total.append(total[-1] + backward_warp(step(n), total[-1]))
            return jnp.stack(total, axis=1).reshape(steps.shape[0], T, k, *steps.shape[2:])
        B, T = pictures.shape[0], pictures.shape[1] - k
        former = pictures[:, former_indices(T, k)]
        current = jnp.broadcast_to(pictures[:, k:, None], former.shape)
        pair = jnp.concatenate([current, former], axis=-1).reshape(B * T * k, *size, 6)
        flow = self.flow(pair)["flow2"] * FLOW_UNIT  # at a quarter of the size
        h, w = self.grid(size)
        return self.on_grid(flow, (4.0, 1.5), size).reshape(B, T, k, h, w, 2)

    def encoded(
        self,
        maps: Mapping[str, jax.Array],
        stored: Mapping[str, jax.Array],
        flow: jax.Array | None,
    ) -> dict[str, jax.Array]:
        """The backbone's maps `[B*T,h,w,C]` with the encoded ones in their places.

        Args:
          stored: per encoded map, those of the k predecessors and the T frames, `[B,k+T,h,w,F]`.
          flow: from `raw_flow`; None does not warp.
        """
        k = self.window
        B, T = next(iter(stored.values())).shape[:2]
        T -= k
        if flow is not None:
            flow = flow.reshape(B * T, *flow.shape[2:])
            flow = self.refine(flow) if self.refine_flow else flow
        out = dict(maps)
        for key, encoder in self.encoders.items():
            x = stored[key]
            h, w, F = x.shape[2:]
            former = x[:, former_indices(T, k)].reshape(B * T * k, h, w, F)
            if flow is not None:
                field = self._at_scale(flow, key, (h, w))
                former = backward_warp(former, field, padding=self.warp_padding)
            current = x[:, k:].reshape(B * T, h, w, F)
            former = former.reshape(B * T, k, h, w, F)
            out[key] = encoder(current, former, maps[key].shape[-1])
        return out

    def _at_scale(self, flow: jax.Array, key: str, size: tuple[int, int]) -> jax.Array:
        """Refined flow `[N,k,h,w,2]` in cells of another map, `[N*k,*size,2]`."""
        flat = flow.reshape(-1, *flow.shape[2:])
        if key == "c5":
            return flat
        where = geometries(self.first_padding)
        field = resample(flat, where["c5"], where[key], size, clamp=True)
        return field * (where["c5"][0] / where[key][0])

    # ----- whole clip -----------------------------------------------------------------------

    def __call__(
        self,
        frames: jax.Array,
        pictures: jax.Array | None = None,
        flow: jax.Array | None = None,
        *,
        train: bool = False,
        host_only: bool = False,
        last_only: bool = False,
    ) -> Outputs:
        """Saliency logits of the frames of a clip that begins a video.

        Args:
          frames: `[B,T,H,W,3]`, normalised for the host.
          pictures: the same for the flow network (`flow_source="network"`).
          flow: `[B,T,H,W,2]`, pixels to the next frame (`flow_source="batch"`).
          host_only: every frame alone.
          last_only: only the last frame is decoded; T is 1 in the result.

        Returns:
          `logits [B,T,H,W,1]` of the fused map; `side_logits`, a tuple of such maps (empty for the
          plain host).
        """
        B, T, H, W, _ = frames.shape
        maps, stored = self.host_features(frames.reshape(B * T, H, W, 3))
        if self.window and (self.is_initializing() or not host_only):
            past = self.begin(B, (H, W), frames.dtype)
            maps, _ = self.advance(past, maps, stored, pictures, flow, last_only=last_only)
        elif last_only:
            maps = {k: x.reshape(B, T, *x.shape[1:])[:, -1] for k, x in maps.items()}
        fused, sides = self.regress(maps, (H, W))

        def clip(x: jax.Array) -> jax.Array:
            return x.reshape(B, -1, H, W, 1)

        return {"logits": clip(fused), "side_logits": tuple(clip(x) for x in sides.values())}

    def begin(self, batch_size: int, size: tuple[int, int], dtype: Any = None) -> State:
        """What is known before the first frame.

        Returns:
          `features`: of the k predecessors per encoded map, `[B,k,h,w,F]`; `count [B]` int32,
          frames seen; `pictures [B,k,H,W,3]` or `steps [B,k,h,w,2]` with `ahead [B,h,w,2]`, flow
          to the last frame from the next one.
        """
        k, dtype = self.window, dtype or self.dtype
        width = dict(zip(("c1", "c2", "c3", "c4", "c5"), self.widths, strict=True))
        sizes = self.map_sizes(size)
        state: dict[str, Any] = {"count": jnp.zeros((batch_size,), jnp.int32)}
        state["features"] = {
            key: jnp.zeros(
                (batch_size, k, *sizes[key], min(width[key], self.encoder_features)), self.dtype
            )
            for key in SPLITS[self.split]
        }
        if self.estimates_flow:
            state["pictures"] = jnp.zeros((batch_size, k, *size, 3), dtype)
        elif self.use_flow:
            grid = self.grid(size)
            state["steps"] = jnp.zeros((batch_size, k, *grid, 2), jnp.float32)
            state["ahead"] = jnp.zeros((batch_size, *grid, 2), jnp.float32)
        return state

    def advance(
        self,
        state: State,
        maps: Mapping[str, jax.Array],
        stored: Mapping[str, jax.Array],
        pictures: jax.Array | None,
        flow: jax.Array | None,
        *,
        last_only: bool = False,
    ) -> tuple[dict[str, jax.Array], State]:
        """Encodes the next T frames of a video.

        Args:
          maps, stored: of the frames, from `host_features`, `[B*T,...]`.
          pictures, flow: of the frames, as in `__call__`.

        Returns:
          the maps `[B*T,...]` (`[B,...]` with `last_only`), encoded, and the next state.
        """
        k, count = self.window, state["count"]
        B = count.shape[0]
        clip = {key: x.reshape(B, -1, *x.shape[1:]) for key, x in stored.items()}
        T = next(iter(clip.values())).shape[1]

        def joined(past: jax.Array, now: jax.Array) -> jax.Array:
            """The k predecessors and T frames; those before the first frame are copies of it."""
            fresh = (count == 0).reshape(B, *[1] * (now.ndim - 1))
            past = jnp.where(fresh, jnp.broadcast_to(now[:, :1], past.shape), past)
            return jnp.concatenate([past.astype(now.dtype), now], axis=1)

        every = {key: joined(state["features"][key], x) for key, x in clip.items()}
        after: dict[str, Any] = {
            "count": count + T,
            "features": {key: x[:, -k:] for key, x in every.items()},
        }
        seen = k + 1 if last_only else k + T  # frames that matter, counted from the end
        shown = {key: x[:, -seen:] for key, x in every.items()}
        raw = None
        if self.estimates_flow:
            size = pictures.shape[2:4]
            pictures = joined(state["pictures"], pictures)
            after["pictures"] = pictures[:, -k:]
            raw = self.raw_flow(pictures[:, -seen:], None, size)
            # nothing has moved before the first frame
            number = count[:, None] + jnp.arange(T)[None, :]
            moving = (number > 0)[:, -raw.shape[1] :]
            raw = raw * moving[:, :, None, None, None, None]
        elif self.use_flow:
            size = flow.shape[2:4]
            back = self.steps_back(flow.reshape(B * T, *flow.shape[2:]), size)
            back = back.reshape(B, T, *back.shape[1:])
            steps = jnp.concatenate([state["ahead"][:, None], back[:, :-1]], axis=1)
            steps = jnp.concatenate([state["steps"], steps], axis=1)
            after["steps"], after["ahead"] = steps[:, -k:], back[:, -1]
            raw = self.raw_flow(None, steps[:, -seen:], size)
        if last_only:
            maps = {key: x.reshape(B, T, *x.shape[1:])[:, -1] for key, x in maps.items()}
        return self.encoded(maps, shown, raw), after


def former_indices(T: int, k: int) -> np.ndarray:
    """Places `[T,k]` of the predecessors n = 1..k of T frames that stand behind k others."""
    return k + np.arange(T)[:, None] - np.arange(1, k + 1)[None, :]


# ----- system -----------------------------------------------------------------------------------


@register("fgrne")
class FGRNE(System):
    """FGRNE on video: a sliding window over past frames, kept as a state of features.

    The result of a frame is the mean of the saliency at sides 3, 4 and 5 and of the fused map,
    spread over 0..1, as DSS does at test time (`result`, `stretch`).
    """

    card = ModelCard(
        title="FGRNE",
        year=2018,
        venue="CVPR",
        official_weights="none published; a reference design. DSS and FlowNetS parts convert",
        parity="none to compare with; NumPy oracles of the warping, the cells and the geometry",
        learned="J 0.09 to 0.18 in 240 steps",
    )
    parameter_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "host": (r"^(vgg|regression)/",),
        "flow": (r"^flow/",),
        "recurrent": (r"^(refine|encoders_\w+)/",),
    }

    def __init__(self, config: Any):
        super().__init__(config)
        for field, allowed in (
            ("host", HOSTS),
            ("split", tuple(SPLITS)),
            ("flow_source", FLOW_SOURCES),
            ("flow_order", FLOW_ORDERS),
            ("temporal", TEMPORALS),
            ("peephole", PEEPHOLES),
            ("warp_padding", WARP_PADDINGS),
            ("supervise", SUPERVISIONS),
            ("result", FUSIONS),
        ):
            if config[field] not in allowed:
                raise ConfigError(
                    f"config field model.{field} is {config[field]!r}: use one of {allowed}"
                )
        if config.window_k < 0:
            raise ConfigError(
                f"config field model.window_k must not be negative, got {config.window_k}"
            )
        for field in ("first_padding", "encoder_features", "flow_features"):
            if config[field] < 1:
                raise ConfigError(
                    f"config field model.{field} must be at least 1, got {config[field]}"
                )
        sides = tuple(config.sides)
        if not sides or set(sides) - set(KERNELS) or len(set(sides)) < len(sides):
            raise ConfigError(
                f"config field model.sides must name different sides among 1 to 6, got {sides}"
            )
        if not 0.0 <= config.host_share <= 1.0:
            raise ConfigError(
                "config field model.host_share is the part of the steps that train the host "
                f"alone: it must lie in [0, 1], got {config.host_share}"
            )
        if config.peephole != "none" and not tuple(config.input_size):
            raise ConfigError(
                f"config field model.peephole is {config.peephole!r}, whose weights belong to one "
                "size of feature maps: set model.input_size, or peephole='none' for native sizes"
            )
        k = config.window_k
        self._needs_flow = bool(k) and config.use_flow and config.flow_source == "batch"
        self.spec = ModelSpec(
            name="fgrne",
            paper="Li, Xie, Wei, Wang, Lin: Flow Guided Recurrent Neural Encoder for Video Salient "
            "Object Detection, CVPR 2018",
            temporal="recurrent" if k else "frame",
            clip_len=k + 1,
            input_size=tuple(config.input_size) or None,
            stride=1,
            normalization="caffe_bgr",
            channel_std=(config.input_scale,) * 3 if config.input_scale != 1.0 else None,
            requires=frozenset({"flow"}) if self._needs_flow else frozenset(),
            outputs=("logits", "side_logits"),
            causal=True,
        )
        self.module = FGRNENetwork(
            counts=tuple(config.counts),
            widths=tuple(config.widths),
            first_padding=config.first_padding,
            host=config.host,
            sides=sides,
            side_widths=tuple(config.side_widths),
            plain_width=config.plain_width,
            gaussian_init=config.gaussian_init,
            split=config.split,
            window=k,
            use_flow=config.use_flow,
            refine_flow=config.refine_flow,
            flow_source=config.flow_source,
            flow_widths=tuple(config.flow_widths),
            flow_decoder_widths=tuple(config.flow_decoder_widths),
            flow_order=config.flow_order,
            flow_features=config.flow_features,
            residual_flow=config.residual_flow,
            encoder_features=config.encoder_features,
            temporal=config.temporal,
            peephole=config.peephole,
            warp_padding=config.warp_padding,
            remat=bool(config.get("remat", False)),
            dtype=self.compute_dtype,
        )

    def module_inputs(self, batch: Batch) -> tuple[jax.Array | None, ...]:
        return self.normalize(batch["frames"]), self._pictures(batch), self._flow(batch)

    def module_kwargs(self, train: bool, phase: str = "default") -> dict[str, Any]:
        return {
            "train": train,
            "host_only": phase == "static",
            "last_only": train and phase != "static" and self.config.supervise == "last",
        }

    def _pictures(self, batch: Batch) -> jax.Array | None:
        """What the flow network sees: RGB in 0..1 minus its mean."""
        if not self.module.estimates_flow:
            return None
        mean = jnp.asarray(FLOWNET_MEAN, jnp.float32)
        return (batch["frames"].astype(jnp.float32) / 255 - mean).astype(self.compute_dtype)

    def _flow(self, batch: Batch) -> jax.Array | None:
        if not self._needs_flow:
            return None
        if "flow" not in batch:
            raise DataError(
                "fgrne with model.flow_source='batch' needs the batch key 'flow' (pixels from each "
                f"frame to the next), got {sorted(batch)}: give a flow provider, or use "
                "flow_source='network'"
            )
        return batch["flow"].astype(jnp.float32)

    # ----- training -----------------------------------------------------------------------

    def loss_fn(
        self, outputs: Outputs, batch: Batch, *, step: jax.Array | int, phase: str = "default"
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Cross entropy of every side map and of the fused one, with equal weights, as DSS has it.

        With `supervise="last"` only the last frame of a clip counts. The mean over pixels makes
        rates independent of the size (DSS sums).

        Returns:
          the loss and its terms `fused` and `sides`; `iou`, of the batch's pixels at 0.5, is for
          the log only.
        """
        labels = jnp.asarray(batch["masks"])
        flags = {k: jnp.asarray(batch[k]) for k in ("valid", "has_mask") if k in batch}
        target, weights = masks.binary_target(labels), masks.pixel_weights(labels, **flags)
        last = self.config.supervise == "last" and phase != "static"

        def of(x: jax.Array) -> jax.Array:
            return x[:, -1:] if last else x

        target, weights = of(target), of(weights)

        def cross_entropy(logits: jax.Array) -> jax.Array:
            x = of(logits).astype(jnp.float32)[..., 0]
            loss = target * nn.softplus(-x) + (1.0 - target) * nn.softplus(x)
            return masks.weighted_mean(loss, weights)

        terms = {
            "fused": cross_entropy(outputs["logits"]),
            "sides": sum((cross_entropy(x) for x in outputs["side_logits"]), jnp.float32(0)),
        }
        predicted = (of(outputs["logits"])[..., 0] > 0).astype(jnp.float32)
        union = jnp.sum(jnp.maximum(predicted, target) * weights)
        overlap = jnp.sum(predicted * target * weights)
        return sum(terms.values()), {**terms, "iou": overlap / jnp.maximum(union, 1.0)}

    def stages(self, config: Any) -> tuple[Stage, ...]:
        """The host on stills (`host_share` of the steps); then everything on clips.

        In the second stage host and flow network move `pretrained_lr_factor` times as fast as the
        recurrence; `finetune_flow=False` leaves the flow network as it is.
        """
        model = config.model
        total = int(config.train.total_steps)
        rules = {name: group[0] for name, group in self.parameter_groups.items()}
        if not model.window_k:
            return (Stage("host", total, (Phase("static", "static"),)),)
        has_flow = self.module.estimates_flow
        held = (rules["recurrent"], rules["flow"]) if has_flow else (rules["recurrent"],)
        static = Phase("static", "static", frozen=held)
        factor = float(model.pretrained_lr_factor)
        rates = ((rules["host"], factor),)
        frozen: tuple[str, ...] = ()
        if has_flow and model.finetune_flow:
            rates += ((rules["flow"], factor),)
        elif has_flow:
            frozen = (rules["flow"],)
        video = Phase("video", "video", rates, frozen)
        first = round(total * model.host_share)
        return (Stage("host", first, (static,)), Stage("video", total - first, (video,)))

    # ----- video --------------------------------------------------------------------------

    def init_state(
        self, variables: Mapping[str, Any], batch_size: int, frame_size: tuple[int, int]
    ) -> State:
        """No frame seen yet, see `FGRNENetwork.begin`; `()` for the host alone."""
        if not self.config.window_k:
            return ()
        return self.module.begin(batch_size, tuple(frame_size), self.compute_dtype)

    def predict(
        self, variables: Mapping[str, Any], state: State, chunk: Batch
    ) -> tuple[State, jax.Array]:
        """Saliency `[B,T,H,W]` in [0,1], each frame spread over that range (`stretch`)."""
        frames, pictures, flow = self.module_inputs(chunk)
        B, T, H, W, _ = frames.shape
        state, fused, sides = self.module.apply(
            dict(variables), state, frames, pictures, flow, method=_advance_and_regress
        )
        maps = [fused]
        if self.config.result == "mean":
            maps += [sides[i] for i in RESULT_SIDES if i in sides]
        probs = sum(nn.sigmoid(x.astype(jnp.float32)) for x in maps) / len(maps)
        if self.config.stretch:
            low = jnp.min(probs, axis=(1, 2), keepdims=True)
            span = jnp.max(probs, axis=(1, 2), keepdims=True) - low
            probs = (probs - low) / jnp.where(span > 0, span, 1.0)
        # interpolation rounds to a little outside the range
        return state, jnp.clip(probs.reshape(B, T, H, W), 0.0, 1.0)


def _advance_and_regress(
    network: FGRNENetwork,
    state: State,
    frames: jax.Array,
    pictures: jax.Array | None,
    flow: jax.Array | None,
) -> tuple[State, jax.Array, dict[int, jax.Array]]:
    """Next state, fused logits `[B*T,H,W,1]` and those of the sides, for the next T frames."""
    B, T, H, W, _ = frames.shape
    maps, stored = network.host_features(frames.reshape(B * T, H, W, 3))
    if network.window:
        maps, state = network.advance(state, maps, stored, pictures, flow)
    fused, sides = network.regress(maps, (H, W))
    return state, fused, sides

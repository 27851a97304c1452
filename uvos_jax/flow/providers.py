"""Estimators of optical flow by name: numpy frames in, numpy flow out."""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uvos_jax.data.flow_files import Direction, FlowFolder, how, read_flow
from uvos_jax.errors import CheckpointError, ConfigError, DataError, ShapeError, UnsupportedError
from uvos_jax.ops.flow import resize_flow
from uvos_jax.ops.resize import resize_bilinear
from uvos_jax.ops.tvl1 import lucas_kanade_flow, tvl1_flow

#: What is used when nothing else is asked for; runs wherever JAX does.
DEFAULT_PROVIDER = "tvl1"
#: Packaged weights of `pwc_lite`, relative to the package.
PACKAGED_PWC = "assets/pwc_lite.npz"


class FlowProvider:
    """Base class: subclasses define `between`.

    Attributes:
      name: of the estimator, with its options; written into `flow.json`.
    """

    name: str

    def between(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Flow float32 `[N,H,W,2]` from `first` to `second`, uint8 RGB `[N,H,W,3]`."""
        raise NotImplementedError

    def between_at(self, first: np.ndarray, second: np.ndarray, size: tuple[int, int]) -> Any:
        """`between`, resized to (h, w) and in pixels of that size."""
        return np.asarray(_resized(self.between(first, second), size=tuple(size)))

    def __call__(self, frames: np.ndarray, size: tuple[int, int] | None = None) -> np.ndarray:
        """Flow from each frame of uint8 `[N+1,H,W,3]` to the next, float32 `[N,H,W,2]`.

        Args:
          size: (h, w) of the field and of the pixels it counts in; None takes the frames'. An
            estimator that works at another size than theirs resizes its field only once.
        """
        frames = _check_frames(frames)
        if len(frames) < 2:
            raise DataError(f"{self.name}: optical flow needs at least two frames, got one")
        if size is None:
            return self.between(frames[:-1], frames[1:])
        return self.between_at(frames[:-1], frames[1:], size)

    def __repr__(self) -> str:
        return f"<FlowProvider {self.name}>"


_resized = jax.jit(resize_flow, static_argnames="size")


def _check_frames(frames: np.ndarray) -> np.ndarray:
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or 0 in frames.shape:
        raise ShapeError(
            f"optical flow: expected frames uint8 [N,H,W,3] RGB, got {frames.dtype} {frames.shape}"
        )
    return frames


class JaxProvider(FlowProvider):
    """A jitted estimator `(float32 [B,H,W,3], [B,H,W,3]) -> [B,H,W,2]`.

    Args:
      function: takes RGB 0..255.
      scale: resolution at which the estimator works; 0.5 is several times faster and blurs edges.
      longest: at most so many pixels on the longer side, whatever the video's size; 0: no limit.
      batch: pairs per call; None: one on CPUs, where that is as fast, else four.
    """

    def __init__(
        self,
        name: str,
        function: Callable[[jax.Array, jax.Array], jax.Array],
        *,
        scale: float = 1.0,
        longest: int = 0,
        batch: int | None = None,
    ):
        if not 0 < scale <= 1:
            raise ConfigError(f"{name}: scale must lie in (0, 1], got {scale}")
        if longest < 0:
            raise ConfigError(f"{name}: longest must be a number of pixels, got {longest}")
        self.name, self.batch = name, batch or (1 if jax.default_backend() == "cpu" else 4)

        def run(first: jax.Array, second: jax.Array, size: tuple[int, int]) -> jax.Array:
            full = first.shape[1:3]
            pair = [x.astype(jnp.float32) for x in (first, second)]
            ratio = min(scale, longest / max(full)) if longest else scale
            if ratio < 1:
                # averaged, not sampled: at half size each pixel is the mean of four
                small = tuple(max(1, round(n * ratio)) for n in full)
                pair = [shrink(x, small) for x in pair]
            return resize_flow(function(*pair), size)

        self._run = jax.jit(run, static_argnames="size")

    def between(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return self.between_at(first, second, np.shape(first)[1:3])

    def between_at(self, first: np.ndarray, second: np.ndarray, size: tuple[int, int]) -> Any:
        first, second = _check_frames(first), _check_frames(second)
        if first.shape != second.shape:
            raise ShapeError(
                f"{self.name}: frames of one shape are needed, got {first.shape}, {second.shape}"
            )
        flows = []
        for start in range(0, len(first), self.batch):
            pair = [x[start : start + self.batch] for x in (first, second)]
            count = len(pair[0])
            # filled up, so that a shorter last batch compiles nothing
            pair = [np.concatenate([x, x[-1:].repeat(self.batch - count, 0)]) for x in pair]
            flows.append(np.asarray(self._run(*pair, size=tuple(size)))[:count])
        return np.concatenate(flows)


def shrink(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Shrinks by averaging as far as whole factors go, then bilinearly."""
    H, W = x.shape[1:3]
    fy, fx = max(1, H // size[0]), max(1, W // size[1])
    if fy > 1 or fx > 1:
        # cells that stick out repeat the border
        x = jnp.pad(x, ((0, 0), (0, -H % fy), (0, -W % fx), (0, 0)), mode="edge")
        h, w = x.shape[1] // fy, x.shape[2] // fx
        x = x.reshape(x.shape[0], h, fy, w, fx, x.shape[-1]).mean((2, 4))
    return resize_bilinear(x, size)


# ----- OpenCV and scikit-image ----------------------------------------------------------------


def _gray(frame: np.ndarray) -> np.ndarray:
    return np.round(frame @ np.asarray([0.299, 0.587, 0.114])).astype(np.uint8)


class PairProvider(FlowProvider):
    """An estimator of another library that takes one pair of grey uint8 images."""

    def __init__(self, name: str, function: Callable[[np.ndarray, np.ndarray], np.ndarray]):
        self.name, self.function = name, function

    def between(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        pairs = zip(_check_frames(first), _check_frames(second), strict=True)
        return np.stack([self.function(_gray(a), _gray(b)) for a, b in pairs]).astype(np.float32)


def _library(module: str, needed_by: str, install: str) -> Any:
    try:
        return __import__(module, fromlist=["_"])
    except ImportError as error:
        raise UnsupportedError(
            f"flow provider {needed_by!r} needs {module.split('.')[0]}, which is not installed: "
            f"pip install {install}, or use {DEFAULT_PROVIDER!r}"
        ) from error


def _opencv_dis(name: str, *, preset: str = "medium") -> FlowProvider:
    cv2 = _library("cv2", name, "'uvos_jax[flow]'")
    presets = {
        "ultrafast": cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST,
        "fast": cv2.DISOPTICAL_FLOW_PRESET_FAST,
        "medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM,
    }
    if preset not in presets:
        raise ConfigError(f"{name}: preset {preset!r} is unknown: use one of {', '.join(presets)}")
    estimator = cv2.DISOpticalFlow_create(presets[preset])

    def flow(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        if min(first.shape) < 12:
            raise ShapeError(f"{name}: frames of at least 12x12 pixels are needed, got "
                             f"{first.shape[1]}x{first.shape[0]}")  # fmt: skip
        return estimator.calc(first, second, None)

    return PairProvider(name, flow)


def _opencv_farneback(name: str, *, window: int = 15, levels: int = 5) -> FlowProvider:
    cv2 = _library("cv2", name, "'uvos_jax[flow]'")
    return PairProvider(
        name,
        lambda a, b: cv2.calcOpticalFlowFarneback(a, b, None, 0.5, levels, window, 3, 5, 1.1, 0),
    )


def _skimage_tvl1(name: str) -> FlowProvider:
    registration = _library("skimage.registration", name, "scikit-image")

    def flow(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        rows, columns = registration.optical_flow_tvl1(first / 255.0, second / 255.0)
        return np.stack([columns, rows], axis=-1)

    return PairProvider(name, flow)


# ----- networks -------------------------------------------------------------------------------


def _network(name: str, *, weights: str = "") -> FlowProvider:
    from uvos_jax.convert.flownets import load_network
    from uvos_jax.modules.flownets import estimate_flow

    kind = name.partition(":")[0]
    if weights:
        module, variables = load_network(kind, weights)
    else:
        path = resources.files("uvos_jax") / PACKAGED_PWC
        if kind != "pwc_lite" or not path.is_file():
            raise CheckpointError(
                f"flow provider {kind!r} needs weights: {kind}:FILE, trained by "
                "tools/train_flow.py or, for FlowNets, the authors' (PyTorch or Caffe); "
                f"{DEFAULT_PROVIDER!r} needs none"
            )
        with resources.as_file(path) as file:
            module, variables = load_network(kind, file)
    variables = jax.device_put(variables)
    return JaxProvider(name, functools.partial(estimate_flow, module, variables))


# ----- flow that is there already -------------------------------------------------------------


class PrecomputedFlow(FlowProvider):
    """Flow read from `<root>/<sequence>/<frame>.{flo,npz,png,pfm}`; see `data.flow_files`.

    It belongs to videos, not to pairs of images: `track` gives that of one video.
    """

    def __init__(self, root: str | Path):
        self.folder = FlowFolder(root)
        self.name = f"precomputed:{self.folder.root}"

    def between(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        raise UnsupportedError(
            f"precomputed flow ({self.folder.root}) belongs to the frames of named videos: it "
            "cannot serve frames in memory or a stream; use an estimator such as "
            f"{DEFAULT_PROVIDER!r}"
        )

    def track(
        self, sequence: str, frame_names: Sequence[str], direction: Direction
    ) -> Callable[[int], np.ndarray | None]:
        """`track(i)`: flow of frame i, or None if there is no file for a frame at the end.

        Raises:
          DataError: flow of the other direction, or of none of the frames.
        """
        folder = FlowFolder(self.folder.root, direction)
        end = len(frame_names) - 1 if direction == "forward" else 0
        if not (folder.root / sequence).is_dir():
            raise DataError(
                f"no optical flow of {sequence!r} in {folder.root}: expected the folder "
                f"{folder.root / sequence}; {how(folder.root)}"
            )

        def flow(i: int) -> np.ndarray | None:
            path = folder.find(sequence, frame_names[i])
            if path is None and i == end:
                return None
            if path is None:
                raise DataError(
                    f"no optical flow for frame {frame_names[i]!r} of {sequence!r} in "
                    f"{folder.root}; {how(folder.root)}"
                )
            return read_flow(path)

        return flow


# ----- by name --------------------------------------------------------------------------------


def _tvl1(name: str, *, scale: float = 1.0, longest: int = 0, **options: Any) -> FlowProvider:
    return JaxProvider(name, functools.partial(tvl1_flow, **options), scale=scale, longest=longest)


def _tvl1_fast(name: str, **options: Any) -> FlowProvider:
    return _tvl1(name, **{"scale": 0.5, "levels": 4, "warps": 3, "iterations": 10, **options})


def _lk(name: str, *, scale: float = 1.0, longest: int = 0, **options: Any) -> FlowProvider:
    function = functools.partial(lucas_kanade_flow, **options)
    return JaxProvider(name, function, scale=scale, longest=longest)


@dataclasses.dataclass(frozen=True)
class _Entry:
    make: Callable[..., FlowProvider]
    about: str
    options: dict[str, type]


_TVL1_OPTIONS = {
    "scale": float, "longest": int, "levels": int, "warps": int, "iterations": int,
    "lambda_": float, "theta": float, "tau": float, "median": bool,
}  # fmt: skip
#: Every estimator by name.
PROVIDERS: dict[str, _Entry] = {
    "tvl1": _Entry(_tvl1, "TV-L1 at full resolution, the default", _TVL1_OPTIONS),
    "tvl1_fast": _Entry(_tvl1_fast, "TV-L1 at half resolution, few iterations", _TVL1_OPTIONS),
    "lk": _Entry(
        _lk,
        "iterative Lucas-Kanade",
        {
            "scale": float,
            "longest": int,
            "levels": int,
            "warps": int,
            "radius": int,
            "median": bool,
        },
    ),
    "pwc_lite": _Entry(_network, "a small PWC-Net, WEIGHTS after the colon", {"weights": str}),
    "flownets": _Entry(_network, "FlowNetS, WEIGHTS after the colon", {"weights": str}),
    "flownetc": _Entry(_network, "FlowNetC, WEIGHTS after the colon", {"weights": str}),
    "opencv_dis": _Entry(_opencv_dis, "OpenCV's DIS (extra [flow])", {"preset": str}),
    "opencv_farneback": _Entry(
        _opencv_farneback, "OpenCV's Farneback (extra [flow])", {"window": int, "levels": int}
    ),
    "skimage_tvl1": _Entry(_skimage_tvl1, "scikit-image's TV-L1, slow; a reference", {}),
}


def _typed(name: str, key: str, text: str, kind: type) -> Any:
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        return kind(text)
    except (KeyError, ValueError):
        raise ConfigError(f"flow provider {name!r}: {key}={text!r} is no {kind.__name__}") from None


def make_provider(spec: str | Path | FlowProvider) -> FlowProvider:
    """The provider that a text describes.

    Args:
      spec: `NAME`, `NAME:option=value,...`, `NAME:WEIGHTS` for networks, or a folder of flow files.

    Raises:
      ConfigError: an unknown name or option.
      UnsupportedError: an optional library is missing. CheckpointError: weights are missing.
      DataError: the folder does not exist.

    Example:
      make_provider("tvl1:scale=0.5,warps=3"), make_provider("flow/DAVIS")
    """
    if isinstance(spec, FlowProvider):
        return spec
    text = str(spec)
    name, _, rest = text.partition(":")
    if name not in PROVIDERS:
        if Path(text).is_dir():
            return PrecomputedFlow(text)
        near = difflib.get_close_matches(name, PROVIDERS, n=2)
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise ConfigError(
            f"flow provider {text!r} is unknown and no folder of that name exists: {hint}use one "
            f"of {', '.join(PROVIDERS)}, or a folder of flow files"
        )
    entry, options = PROVIDERS[name], {}
    if rest and entry.options.keys() == {"weights"}:
        options["weights"] = rest.removeprefix("weights=")
    elif rest:
        for item in rest.split(","):
            key, equals, value = item.partition("=")
            if not equals or key not in entry.options:
                known = ", ".join(entry.options) or "none"
                raise ConfigError(
                    f"flow provider {name!r} has no option {item!r}: write NAME:option=value with "
                    f"the options {known}"
                )
            options[key] = _typed(name, key, value, entry.options[key])
    return entry.make(text, **options)

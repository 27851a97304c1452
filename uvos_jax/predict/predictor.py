"""From a video to masks: decode, resize, network, resize back, CRF, threshold.

Memory does not grow with the video: frames are read lazily, results leave as they are made, and
what a system remembers is a state of fixed size that is passed from chunk to chunk.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uvos_jax import config as configs
from uvos_jax.data.video_io import VideoReader, open_video
from uvos_jax.errors import CheckpointError, ConfigError, DataError, ShapeError
from uvos_jax.ops.resize import resize_bilinear

#: Packaged weights, relative to the package.
DEFAULT_WEIGHTS = "assets/default.npz"
#: Frames per call of the network for systems without a clip length of their own.
CHUNK = 4
#: Largest side for systems that take frames at their native size, rounded to this multiple.
SIZE_MULTIPLE = 8


@dataclasses.dataclass(frozen=True)
class Masks:
    """Masks of a whole video.

    Attributes:
      probs: foreground probability, float32 `[T,H,W]`.
      labels: uint8 `[T,H,W]`, 0 background, 1 foreground.
      names: frame names for writing them in the DAVIS layout.
    """

    probs: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)


@dataclasses.dataclass(frozen=True)
class FrameResult:
    """One frame of a prediction: its index, name, RGB frame, probability and label map."""

    index: int
    name: str
    frame: np.ndarray
    prob: np.ndarray
    label: np.ndarray


@jax.jit
def _to_uint8(x: jax.Array) -> jax.Array:
    return jnp.clip(jnp.round(x), 0, 255).astype(jnp.uint8)


class Predictor:
    """Applies a system to videos.

    Args:
      system: a built system. variables: its weights.
      crf: name of a dense-CRF preset that refines every frame, or None.
      threshold: probability above which a pixel is foreground.
      references: frames of the video that global systems compare with; None takes the system's
        number.
      flip: average with the prediction on the mirrored frame.
      chunk: frames per call of the network; None chooses.
      flow: gives flow to systems that need it: `flow(frames uint8 [T+1,H,W,3]) -> [T,H,W,2]` in
        pixels.

    Raises:
      CheckpointError: the variables do not fit the system.
      ConfigError: an impossible setting.
    """

    def __init__(
        self,
        system: Any,
        variables: Mapping[str, Any],
        *,
        crf: str | None = None,
        threshold: float = 0.5,
        references: int | None = None,
        flip: bool = False,
        chunk: int | None = None,
        flow: Callable[[np.ndarray], np.ndarray] | None = None,
    ):
        if not 0.0 <= threshold <= 1.0:
            raise ConfigError(f"threshold must lie in [0, 1], got {threshold}")
        if references is not None and references < 1:
            raise ConfigError(f"references must be at least 1, got {references}")
        if crf:
            from uvos_jax.ops.crf import check_preset

            check_preset(crf)
        self.system, self.crf, self.threshold = system, crf or None, threshold
        self.flip, self.flow = flip, flow
        self.references = references or system.spec.num_references
        self.chunk = self._chunk_length(chunk)
        self.variables = self._fit(variables)
        self._predict = jax.jit(self._predict_chunk, static_argnames="size")
        self._prepare = jax.jit(self._prepare_references, static_argnames="size")

    # ----- construction -------------------------------------------------------------------

    @classmethod
    def load(cls, weights: str | Path, system: str | None = None, **options: Any) -> Predictor:
        """A predictor from a weight file, building the system from the configuration inside.

        Args:
          system: the expected system id; None takes the file's.

        Raises:
          CheckpointError: no weights there, no configuration inside, or another system's.
        """
        from uvos_jax.convert.variables import load_variables

        variables = load_variables(weights)
        config = variables.meta.get("config")
        if not config:
            raise CheckpointError(
                f"weights {weights} hold no configuration; build the system yourself and use "
                "Predictor(system, variables), or save them with a config"
            )
        config = configs.from_dict(config)
        if system is not None and config.model.name != system:
            raise CheckpointError(
                f"weights {weights} belong to {config.model.name!r}, not to {system!r}; leave "
                "--system out or give other weights"
            )
        options = {"threshold": config.predict.threshold, **options}
        return cls(configs.build(config), variables, **options)

    @classmethod
    def default(cls, **options: Any) -> Predictor:
        """A predictor with the packaged weights.

        Raises:
          CheckpointError: this installation lacks them.
        """
        path = resources.files("uvos_jax") / DEFAULT_WEIGHTS
        with resources.as_file(path) as file:
            if not file.is_file():
                raise CheckpointError(
                    "this installation of uvos_jax has no packaged weights (assets/default.npz); "
                    "reinstall it, or give --system and --weights"
                )
            return cls.load(file, **options)

    def _chunk_length(self, chunk: int | None) -> int:
        spec = self.system.spec
        if spec.temporal == "clip":
            return spec.clip_len
        if chunk is not None and chunk < 1:
            raise ConfigError(f"chunk must be at least 1, got {chunk}")
        return chunk or CHUNK

    def _fit(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """Checks the variables against the system and puts them on the device once."""
        from uvos_jax.convert.variables import merge_strict

        shapes = jax.eval_shape(self.system.init, jax.random.key(0))
        merged, _ = merge_strict(shapes, variables)
        return jax.device_put(merged)

    # ----- compiled parts -----------------------------------------------------------------

    def _input_size(self, size: tuple[int, int]) -> tuple[int, int]:
        if self.system.spec.input_size:
            return tuple(self.system.spec.input_size)
        return tuple(-(-n // SIZE_MULTIPLE) * SIZE_MULTIPLE for n in size)

    def _resize_in(self, frames: jax.Array, size: tuple[int, int]) -> jax.Array:
        """uint8 `[T,H,W,3]` to uint8 `[1,T,h,w,3]`, rounded as image libraries do."""
        return _to_uint8(resize_bilinear(frames.astype(jnp.float32), size))[None]

    def _prepare_references(self, variables: Any, frames: jax.Array, *, size: tuple[int, int]):
        return self.system.prepare(variables, {"frames": self._resize_in(frames, size)})

    def _predict_chunk(
        self, variables: Any, state: Any, frames: jax.Array, flow: Any, *, size: tuple[int, int]
    ):
        """One chunk: uint8 `[T,H,W,3]` to the next state and probabilities `[T,H,W]`."""
        source = frames.shape[1:3]
        chunk = {"frames": self._resize_in(frames, size)}
        if flow is not None:
            scale = jnp.asarray([size[1] / source[1], size[0] / source[0]], jnp.float32)
            chunk["flow"] = (resize_bilinear(flow, size) * scale)[None]
        new_state, probs = self.system.predict(variables, state, chunk)
        if self.flip:
            mirrored = {k: v[:, :, :, ::-1] for k, v in chunk.items()}
            if "flow" in mirrored:
                mirrored["flow"] = mirrored["flow"] * jnp.asarray([-1.0, 1.0])
            _, other = self.system.predict(variables, state, mirrored)
            probs = 0.5 * (probs + other[..., ::-1])
        full = resize_bilinear(probs[0][..., None], source)[..., 0]
        return new_state, jnp.clip(full, 0.0, 1.0)

    # ----- whole videos -------------------------------------------------------------------

    def predict(self, video: Any) -> Masks:
        """Masks of a whole video, in memory.

        Args:
          video: path of a file or folder of frames, or uint8 `[T,H,W,3]` RGB.

        Raises:
          DataError: the video cannot be read.
        """
        results = list(self.iter_predict(video))
        return Masks(
            np.stack([r.prob for r in results]),
            np.stack([r.label for r in results]),
            tuple(r.name for r in results),
        )

    def iter_predict(self, video: Any) -> Iterator[FrameResult]:
        """Yields one result per frame; memory does not grow with the length of the video.

        Global systems first see references spread evenly over the video, so it is decoded twice.
        """
        reader = open_video(video)
        state = self._initial_state(reader)
        index = 0
        for frames, flow, count in _prefetched(self._chunks(reader)):
            state, probs = self._predict(
                self.variables, state, frames, flow, size=self._input_size(reader.size)
            )
            for frame, prob in zip(frames[:count], np.asarray(probs)[:count], strict=True):
                yield self._finish(index, reader.frame_name(index), frame, prob)
                index += 1

    def predict_many(self, videos: Iterable[Any]) -> Iterator[tuple[str, Masks]]:
        """Yields (name, masks) of several videos one after another."""
        for video in videos:
            reader = open_video(video)
            yield reader.name, self.predict(reader)

    def reference_indices(self, count: int) -> list[int]:
        """Frames that serve as references: the middles of equal parts of the video."""
        n = self.references
        return [min(int((i + 0.5) * count / n), count - 1) for i in range(n)]

    def _initial_state(self, reader: VideoReader) -> Any:
        size = self._input_size(reader.size)
        if not self.references:
            return self.system.init_state(self.variables, 1, size)
        frames = self._sample_references(reader)
        return self._prepare(self.variables, frames, size=size)

    def _sample_references(self, reader: VideoReader) -> np.ndarray:
        wanted = self.reference_indices(len(reader))
        try:
            return reader.sample(wanted)
        except DataError:
            # Headers can announce a frame more than can be decoded: count, then ask again.
            reader.num_frames = sum(1 for _ in reader)
            return reader.sample(self.reference_indices(len(reader)))

    def _chunks(self, reader: VideoReader) -> Iterator[tuple[np.ndarray, Any, int]]:
        """Chunks of fixed length with the number of frames that count.

        The last one is completed by walking back from the last frame.
        """
        T, needs_flow = self.chunk, "flow" in self.system.spec.requires
        if needs_flow and self.flow is None:
            raise DataError(
                f"{self.system.spec.name} needs optical flow and none was given: pass "
                "flow=PROVIDER to Predictor"
            )
        held: list[np.ndarray] = []
        need = T + 1 if needs_flow else T
        for frame in reader:
            held.append(frame)
            if len(held) == need:
                yield self._chunk_of(held, T)
                held = held[T:]
        if held:
            yield self._chunk_of(held, min(len(held), T))
            if len(held) > T:  # only with flow: one frame is left
                yield self._chunk_of(held[T:], len(held) - T)

    def _chunk_of(self, frames: list[np.ndarray], count: int) -> tuple[np.ndarray, Any, int]:
        T = self.chunk
        flow = None
        padded = [frames[_walk_back(i, count)] for i in range(T)]
        if self.flow is not None and "flow" in self.system.spec.requires:
            following = [*padded[1:], frames[count] if len(frames) > count else padded[-1]]
            flow = np.stack(
                [self.flow(np.stack(pair))[0] for pair in zip(padded, following, strict=True)]
            )
        return np.stack(padded), flow, count

    def _finish(self, index: int, name: str, frame: np.ndarray, prob: np.ndarray) -> FrameResult:
        if self.crf:
            from uvos_jax.ops.crf import dense_crf

            prob = np.asarray(dense_crf(frame, prob, preset=self.crf))
        label = (prob > self.threshold).astype(np.uint8)
        return FrameResult(index, name, frame, prob, label)

    # ----- streams ------------------------------------------------------------------------

    def stream(
        self, frames: Iterable[np.ndarray], *, probabilities: bool = False
    ) -> Iterator[np.ndarray]:
        """Yields a mask for every frame as it arrives, looking at the past only.

        Args:
          frames: uint8 `[H,W,3]` RGB, all of one size; may be endless.
          probabilities: yield float32 `[H,W]` probabilities instead of uint8 0/1 masks.

        Raises:
          DataError: the system looks at the future, or needs flow.
          ShapeError: a frame of another shape or dtype.
        """
        spec = self.system.spec
        if spec.temporal == "clip" and not spec.causal:
            raise DataError(
                f"{spec.name} looks at future frames and cannot stream; use predict() instead"
            )
        if "flow" in spec.requires and self.flow is None:
            raise DataError(f"{spec.name} needs optical flow: pass flow=PROVIDER to Predictor")
        state, size = None, None
        for index, frame in enumerate(frames):
            frame = np.asarray(frame)
            if frame.ndim != 3 or frame.shape[-1] != 3 or frame.dtype != np.uint8:
                raise ShapeError(
                    f"frame {index} must be uint8 [H,W,3] RGB, got {frame.dtype} {frame.shape}"
                )
            if state is None:
                size = frame.shape
                state = self.system.init_state(self.variables, 1, self._input_size(size[:2]))
            if frame.shape != size:
                raise ShapeError(
                    f"frame {index} is {frame.shape[:2]}, the stream began with {size[:2]}; start "
                    "a new stream"
                )
            state, probs = self._predict(
                self.variables, state, frame[None], None, size=self._input_size(size[:2])
            )
            result = self._finish(index, f"{index:05d}", frame, np.asarray(probs)[0])
            yield result.prob if probabilities else result.label


def _walk_back(i: int, count: int) -> int:
    """Index i, reflected at the last of `count` frames."""
    if i < count:
        return i
    return max(count - 1 - (i - count + 1), 0)


def _prefetched(chunks: Iterator[Any], depth: int = 2) -> Iterator[Any]:
    """Runs an iterator in a thread, `depth` items ahead: decoding overlaps with the network."""
    items: queue.Queue = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def put(item: Any) -> bool:
        while not stop.is_set():
            try:
                items.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in chunks:
                if not put((item, None)):
                    return
            put((None, None))
        except BaseException as error:  # handed to the consumer, whatever it is
            put((None, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            item, error = items.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item
    finally:
        stop.set()
        thread.join(timeout=5)

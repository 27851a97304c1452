"""From a video to masks: decode, resize, network, resize back, CRF, threshold.

Memory does not grow with the video: frames are read lazily, results leave as they are made, and
what a system remembers is a state of fixed size that is passed from window to window. Decoding
runs a few frames ahead in a thread, the network one window ahead of whoever takes the results.
"""

from __future__ import annotations

import collections
import copy
import dataclasses
import logging
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uvos_jax import config as configs
from uvos_jax.data.video_io import VideoReader, open_video
from uvos_jax.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    ShapeError,
    UnsupportedError,
    UvosError,
)
from uvos_jax.ops.flow import resize_flow
from uvos_jax.ops.guided import guided_enlarge
from uvos_jax.ops.resize import resize_bilinear
from uvos_jax.predict.adapt import Adapter, Lesson, Session
from uvos_jax.predict.appearance import Appearance
from uvos_jax.predict.flow import FlowFunction, flow_of_video
from uvos_jax.predict.results import FrameResult, Masks
from uvos_jax.predict.smooth import SHRINK as FLOW_SHRINK
from uvos_jax.predict.smooth import smooth
from uvos_jax.predict.spool import Spool
from uvos_jax.predict.windows import Window, prefetched, windows
from uvos_jax.types import State

log = logging.getLogger("uvos_jax")

__all__ = ["FrameResult", "Masks", "Predictor"]

#: Packaged weights, relative to the package.
DEFAULT_WEIGHTS = "assets/default.npz"
#: Frames per call of the network for systems without a clip length of their own.
CHUNK = 4
#: Systems that take frames at native size get both sides rounded up to this multiple.
SIZE_MULTIPLE = 8


class Predictor:
    """Applies a system to videos.

    Args:
      system: a built system. variables: its weights.
      crf: name of a dense-CRF preset that refines every frame, or None.
      refine: name of a preset with which every frame is refined at the network's resolution, much
        faster than at the video's; None for none.
      appearance: share, 0 to 1, that the colours of this very video's object have in the log-odds
        (`uvos_jax.predict.appearance`); the video is decoded twice. Streams go without.
      smooth: share, 0 to 1, that the next frame has in the log-odds of each one where flow leads
        (`uvos_jax.predict.smooth`), for systems that read flow to the next frame and no frames
        after it. Streams go without.
      guided: enlarge probabilities along the edges of the picture (`uvos_jax.ops.guided`), which
        costs little, and not bilinearly.
      threshold: probability above which a pixel is foreground.
      references: frames of the video that global systems compare with; None takes the system's
        number (`model.num_references`).
      flip: average with the prediction on the mirrored video.
      chunk: frames per call of the network; None chooses.
      overlap: frames shared by neighbouring windows of a system that looks at the future (their
        probabilities are blended); None takes the system's number, else half a window. Other
        systems carry a state from window to window instead.
      flow: for systems that need optical flow: the name of a provider (`uvos_jax.flow`), a folder
        of flow files, or a function `flow(frames uint8 [N+1,H,W,3]) -> [N,H,W,2]`, pixels from
        each frame to the next. None takes the default provider. Direction and the frame at the end
        are the system's (`ModelSpec.flow_direction`, `flow_at_end`).
      adapt: whether a system that can adapt to a video does (see `uvos_jax.predict.adapt`); what
        it learned is in `lessons` afterwards.

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
        refine: str | None = None,
        appearance: float = 0.0,
        smooth: float = 0.0,
        guided: bool = False,
        threshold: float = 0.5,
        references: int | None = None,
        flip: bool = False,
        chunk: int | None = None,
        overlap: int | None = None,
        flow: str | Path | FlowFunction | None = None,
        adapt: bool = True,
    ):
        spec = system.spec
        if not 0.0 <= threshold <= 1.0:
            raise ConfigError(f"threshold must lie in [0, 1], got {threshold}")
        if not 0.0 <= appearance <= 1.0:
            raise ConfigError(f"appearance must lie in [0, 1], got {appearance}")
        if not 0.0 <= smooth < 1.0:
            raise ConfigError(f"smooth must lie in [0, 1), got {smooth}")
        if smooth and not (
            "flow" in spec.requires and spec.flow_direction != "backward" and spec.causal
        ):
            raise ConfigError(
                f"smooth={smooth} follows flow to the next frame, which {spec.name} does not read "
                "frame by frame: leave it out"
            )
        if references is not None and references < 1:
            raise ConfigError(f"references must be at least 1, got {references}")
        if references is not None and not spec.num_references:
            raise ConfigError(
                f"{spec.name} compares with no reference frames ({references} asked for): leave "
                "the option references out"
            )
        if chunk is not None and chunk < 1:
            raise ConfigError(f"chunk must be at least 1, got {chunk}")
        for preset in filter(None, (crf, refine)):
            from uvos_jax.ops.crf import get_preset

            get_preset(preset)
        self.system, self.crf, self.threshold = system, crf or None, threshold
        self.refine = refine or None
        self.appearance, self.smooth = float(appearance), float(smooth)
        self.guided, self.flip = bool(guided), flip
        self.references = references or spec.num_references
        own_length = spec.clip_len if spec.temporal == "clip" or not spec.causal else CHUNK
        if spec.lookahead:
            own_length = max(own_length, CHUNK + spec.lookahead)
        self.adapter: Adapter | None = None
        self.lessons: list[Lesson] = []
        if adapt and system.adaptation is not None:
            self.adapter = Adapter(system)
            # Teaching happens at the start of a window; the frame after those that teach, to which
            # flow points, must be in it.
            own_length = system.adaptation.interval or max(CHUNK, system.adaptation.frames + 1)
            if chunk is not None and chunk != own_length:
                raise ConfigError(
                    f"{spec.name} adapts at the start of windows of {own_length} frames: leave "
                    f"chunk={chunk} out, or pass adapt=False"
                )
        self.flow = self._flow_provider(flow)
        self.chunk = chunk or own_length
        overlap = (spec.lookahead or spec.window_overlap) if overlap is None else overlap
        self.overlap = 0 if spec.causal else _check_overlap(overlap, self.chunk)
        self.variables = self._fit(variables)
        self._predict = jax.jit(self._predict_window)
        self._prepare = jax.jit(self._prepare_states)

    # ----- construction -------------------------------------------------------------------

    @classmethod
    def load(cls, weights: str | Path, system: str | None = None, **options: Any) -> Predictor:
        """A predictor from a weight file, building the system from the configuration inside.

        Threshold, windows, mirroring and the provider of flow follow that configuration's `predict`
        section unless they are given, and so do refinement and `guided` unless a CRF is asked for;
        that one runs only on request, and its threshold is 0.5.

        Args:
          system: the expected system id; None takes the file's.
          options: of `Predictor`; `references` also sets the memory of streams.

        Raises:
          CheckpointError: no weights there, no configuration inside, or another system's.
        """
        from uvos_jax.convert.variables import load_variables

        variables = load_variables(weights)
        stored = variables.meta.get("config")
        if not stored:
            raise CheckpointError(
                f"weights {weights} hold no configuration; build the system yourself and use "
                "Predictor(system, variables), or save them with a config"
            )
        try:
            config = configs.from_weights(stored)
            configs.validate(config)
            own = config.model.name
            if system is not None and own != system:
                raise CheckpointError(
                    f"weights {weights} belong to {own!r}, not to {system!r}; leave the system "
                    "out or give other weights"
                )
            references = options.get("references")
            if references is not None and "num_references" in config.model:
                config.model.num_references = references
            options = {
                # what a CRF returns is a posterior: the likelier label wins
                "threshold": 0.5 if options.get("crf") else config.predict.threshold,
                "chunk": config.predict.window or None,
                "overlap": config.predict.overlap or None,
                "flip": config.predict.tta.flip,
                "flow": config.predict.get("flow") or None,
                "refine": None if options.get("crf") else config.predict.get("refine") or None,
                "appearance": config.predict.get("appearance", 0.0),
                "smooth": config.predict.get("smooth", 0.0),
                "guided": not options.get("crf") and config.predict.get("guided", False),
                **options,
            }
            built = configs.build(config)
        except UvosError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"weights {weights} hold a configuration that this version cannot use "
                f"({type(error).__name__}: {error}); convert or train them again"
            ) from error
        return cls(built, variables, **options)

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
                    f"this installation of uvos_jax has no packaged weights ({DEFAULT_WEIGHTS}); "
                    "reinstall it, or give weights of your own (`--weights FILE`, "
                    "Predictor.load)"
                )
            return cls.load(file, **options)

    def read_flow(self, flow: str | Path | FlowFunction | None) -> None:
        """Takes flow from another provider; see the argument `flow` of this class."""
        self.flow = self._flow_provider(flow)

    def _flow_provider(self, flow: str | Path | FlowFunction | None) -> FlowFunction | None:
        """The function behind a provider's name; the default one if flow is needed and none given.

        Raises:
          ConfigError: an unknown provider. UnsupportedError, CheckpointError, DataError: one that
            lacks its library, weights or files.
        """
        needed = set(self.system.spec.requires)
        if self.adapter is not None:
            needed |= self.adapter.plan.requires
        if callable(flow) or (flow is None and "flow" not in needed):
            return flow
        if "flow" not in needed:
            raise ConfigError(
                f"{self.system.spec.name} reads no optical flow: leave flow={str(flow)!r} out"
            )
        from uvos_jax.flow import DEFAULT_PROVIDER, make_provider

        return make_provider(flow or DEFAULT_PROVIDER)

    def _fit(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """Checks the variables against the system and puts them on the device once."""
        from uvos_jax.convert.variables import merge_strict

        shapes = jax.eval_shape(self.system.init, jax.random.key(0))
        merged, _ = merge_strict(shapes, variables)
        return jax.device_put(merged)

    # ----- compiled parts -----------------------------------------------------------------
    # Resizing is compiled apart from the network, so that a video of another size costs no
    # second compilation of the network.

    def input_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) that the network sees of frames of the given (H, W)."""
        if self.system.spec.input_size:
            return tuple(self.system.spec.input_size)
        return tuple(-(-n // SIZE_MULTIPLE) * SIZE_MULTIPLE for n in size)

    def _predict_window(self, variables: Any, states: tuple, batch: dict) -> tuple[tuple, Any]:
        """Next states and probabilities `[1,T,h,w]`; a mirrored video has a state of its own."""
        new_states, probs = [], []
        for i, state in enumerate(states):
            seen = _mirrored(batch) if i else batch
            state, p = self.system.predict(variables, state, seen)
            new_states.append(state)
            probs.append(p[..., ::-1] if i else p)
        return tuple(new_states), sum(probs) / len(probs)

    def _prepare_states(self, variables: Any, batch: dict) -> tuple[State, ...]:
        views = [batch, _mirrored(batch)] if self.flip else [batch]
        return tuple(self.system.prepare(variables, view) for view in views)

    def _look(
        self, states: tuple, frames: np.ndarray, flow: np.ndarray | None, variables: Any = None
    ) -> tuple[tuple, jax.Array, Any]:
        """One window: next states, frames uint8 `[T,h,w,3]` and probabilities `[T,h,w]` at the
        network's size, on the device."""
        size = self.input_size(frames.shape[1:3])
        batch = {"frames": _shrink(frames, size=size)}
        if flow is not None:
            batch["flow"] = _shrink_flow(flow, size=size)
        states, probs = self._predict(variables or self.variables, states, batch)
        return states, batch["frames"][0], probs[0]

    def _enlarged(self, images: jax.Array, probs: jax.Array, frames: np.ndarray) -> jax.Array:
        """Probabilities `[T,H,W]` at the size of the source's frames uint8 `[T,H,W,3]` of those at
        the network's, whose frames `images` are; refined if asked."""
        if self.refine:
            from uvos_jax.ops.crf import dense_crf

            probs = dense_crf(np.asarray(images), np.asarray(probs), preset=self.refine)
        if self.guided:
            return _enlarge_guided(probs, images, frames)
        return _enlarge(probs, size=frames.shape[1:3])

    def _run(
        self, states: tuple, frames: np.ndarray, flow: np.ndarray | None, variables: Any = None
    ) -> tuple[tuple, jax.Array]:
        """One window: next states and probabilities `[T,H,W]` at source size, on the device."""
        states, images, probs = self._look(states, frames, flow, variables)
        return states, self._enlarged(images, probs, frames)

    # ----- adaptation ---------------------------------------------------------------------

    def taught(self, video: Any) -> Predictor:
        """A predictor whose system has learned from the start of `video` and adapts no more.

        For teaching with one video and segmenting others, streams among them.

        Raises:
          UnsupportedError: the system does not adapt, or adaptation is switched off.
          DataError: the video cannot be read or is too short for flow.
        """
        if self.adapter is None:
            raise UnsupportedError(
                f"{self.system.spec.name} does not adapt to videos here: only systems with an "
                "adaptation can be taught, and adapt must not be False"
            )
        reader = open_video(video)
        self._check_inputs(stream=False)
        session = self.adapter.start(self.variables)
        self._learn(session, next(iter(windows(reader, self.chunk))))
        other = copy.copy(self)
        other.variables, other.adapter, other.lessons = session.variables, None, session.lessons
        return other

    def _learn(self, session: Session, window: Window) -> None:
        """Teaches with the first frames of a window, if the video is to teach there."""
        if not session.due(window.start):
            return
        needs_flow = "flow" in self.adapter.plan.requires
        count = window.count - needs_flow
        if count < 1 and window.start:
            return  # the very last frame has no flow, and nothing after it would profit
        if count < 1:
            raise DataError(
                "the video has one frame only: adapting to it needs optical flow, thus at least "
                "two; pass adapt=False (uvos predict --no-adapt) to segment it as trained"
            )
        n = min(self.adapter.plan.frames if window.start == 0 else 1, count)
        size = self.input_size(window.frames.shape[1:3])
        batch = {"frames": _shrink(window.frames[:n], size=size)}
        if needs_flow:
            batch["flow"] = _shrink_flow(self.flow(window.frames[: n + 1]), size=size)
        session.learn(window.start, batch)

    # ----- whole videos -------------------------------------------------------------------

    def predict(self, video: Any) -> Masks:
        """Masks of a whole video, in memory; see `iter_predict` for long ones.

        Args:
          video: path of a file or folder of frames, or uint8 `[T,H,W,3]` RGB.

        Raises:
          DataError: the video cannot be read, or the system needs data that is not there.
        """
        probs, labels, names = [], [], []
        for result in self.iter_predict(video):
            probs.append(result.prob)
            labels.append(result.label)
            names.append(result.name)
        return Masks(np.stack(probs), np.stack(labels), tuple(names))

    def iter_predict(self, video: Any, *, stream: bool = False) -> Iterator[FrameResult]:
        """Yields one result per frame; memory does not grow with the length of the video.

        Global systems first see references spread evenly over the video, so it is decoded twice;
        with `stream` they see past frames only, as `Predictor.stream` does.

        Raises:
          DataError: the video cannot be read, or the system needs data that is not there.
        """
        reader = open_video(video)
        self._check_inputs(stream=stream)
        if stream:
            return self._stream(iter(reader), reader)
        return self._results(reader)

    def predict_many(self, videos: Iterable[Any]) -> Iterator[tuple[str, Masks]]:
        """Yields (name, masks) of several videos one after another."""
        for video in videos:
            reader = open_video(video)
            yield reader.name, self.predict(reader)

    def reference_indices(self, count: int) -> list[int]:
        """Frames of a video of `count` that serve as references: middles of equal parts."""
        n = self.references
        return [min(int((i + 0.5) * count / n), count - 1) for i in range(n)]

    def _check_inputs(self, *, stream: bool) -> None:
        spec = self.system.spec
        missing = spec.requires - {"frames", "flow"}
        if missing:
            raise DataError(
                f"{spec.name} needs {', '.join(sorted(missing))} beside the frames, which a video "
                "does not hold: run system.predict on batches of your own"
            )
        if stream and self.adapter is not None:
            raise UnsupportedError(
                f"{spec.name} adapts to a video, for which a stream has too few frames at its "
                "start: use predict() on the whole video, teach it with another one "
                "(Predictor.taught), or pass adapt=False (uvos predict --no-adapt)"
            )
        if stream and not spec.causal:
            raise UnsupportedError(
                f"{spec.name} looks at future frames and cannot stream: use predict() on the "
                "whole video"
            )
        if stream and (self.appearance or self.smooth):
            log.warning(
                "streams go without the appearance of their object, which is learned from the "
                "whole video, and without smoothing, which looks at later frames (appearance=0 "
                "and smooth=0 say so)"
            )
        if stream and self.references != spec.num_references:
            raise ConfigError(
                f"references={self.references}, but the memory of a stream is built with the "
                f"system, here for {spec.num_references}: build it with "
                f"num_references={self.references}"
            )

    def _results(self, reader: VideoReader) -> Iterator[FrameResult]:
        if self.appearance or self.smooth:
            yield from self._results_of_two_passes(reader)
            return
        for index, frame, prob in self._blended(reader, small=False):
            yield self._finish(index, reader.frame_name(index), frame, prob)

    def _results_of_two_passes(self, reader: VideoReader) -> Iterator[FrameResult]:
        """Twice through the video: to learn what its object looks like, and to find it.

        In between the probabilities of the network are smoothed, from the last frame to the first.
        """
        looks = Appearance() if self.appearance else None
        spool, flows = Spool(), Spool() if self.smooth else None
        try:
            for _, image, prob in self._blended(reader, small=True, flows=flows):
                if looks:
                    looks.see(image[None], prob[None])
                spool.append(prob)
            if looks and not looks.fit():
                log.warning(
                    "%s: the network is nowhere sure of an object, so there is none whose "
                    "appearance could be learned", reader.name
                )  # fmt: skip
            if flows:
                smooth(spool, flows, self.smooth, self.chunk)
            waiting: Iterable[FrameResult] = ()
            for window in prefetched(windows(reader, self.chunk)):
                source = window.frames.shape[1:3]
                images = _shrink(window.frames, size=self.input_size(source))[0]
                count = min(window.count, spool.count - window.start)
                if count < 1:
                    break
                probs: Any = spool.read(window.start, len(window.frames))
                if looks:
                    probs = looks.mix(images, probs, self.appearance)
                probs = self._enlarged(images, probs, window.frames)
                yield from waiting
                waiting = self._finished(window, probs, count, reader)
            yield from waiting
        finally:
            spool.close()
            if flows:
                flows.close()

    def _finished(
        self, window: Window, probs: jax.Array, count: int, reader: VideoReader
    ) -> Iterator[FrameResult]:
        for t, prob in enumerate(np.array(probs)[:count]):
            index = window.start + t
            yield self._finish(index, reader.frame_name(index), window.frames[t], prob)

    def _blended(
        self, reader: VideoReader, *, small: bool, flows: Spool | None = None
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(index, frame, probability) of every frame, at source size or the network's, `small`.

        To smooth later, flow to the next frames goes into `flows`.
        """
        first = states = self._first_states(reader)
        spec = self.system.spec
        frames: Iterable[Any] = reader
        if "flow" in spec.requires:
            frames = flow_of_video(self.flow, reader, reader, self.chunk, spec, spec.input_size)
        blend = _Blend(spec.lookahead)
        waiting = None
        session = self.adapter.start(self.variables) if self.adapter else None
        if session is not None:
            self.lessons = session.lessons
        hold = spec.lookahead > 0
        for window in prefetched(windows(frames, self.chunk, self.overlap, hold_last=hold)):
            if not spec.causal:
                states = first
            if session is not None:
                self._learn(session, window)
            weights = session.variables if session is not None else None
            states, images, probs = self._look(states, window.frames, window.flow, weights)
            if flows:
                size = tuple(max(n // FLOW_SHRINK, 1) for n in images.shape[1:3])
                fields = _shrink_flow(window.flow[..., -2:], size=size)[0]
                for field in np.asarray(fields)[: window.count]:
                    flows.append(field)
            if small:
                window = dataclasses.replace(window, frames=np.asarray(images))
            else:
                probs = self._enlarged(images, probs, window.frames)
            if waiting is not None:
                yield from blend.add(*waiting)
            waiting = (window, probs)
        yield from blend.add(*waiting)

    def _first_states(self, reader: VideoReader) -> tuple[State, ...]:
        size = self.input_size(reader.size)
        if not self.references:
            return self._empty_states(size)
        return self._prepare(
            self.variables, {"frames": _shrink(self._sample_references(reader), size=size)}
        )

    def _empty_states(self, size: tuple[int, int]) -> tuple[State, ...]:
        return (self.system.init_state(self.variables, 1, size),) * (2 if self.flip else 1)

    def _sample_references(self, reader: VideoReader) -> np.ndarray:
        wanted = self.reference_indices(len(reader))
        try:
            return reader.sample(wanted)
        except DataError:
            # A header may announce a frame or two more than can be decoded: count, ask again.
            count = sum(1 for _ in reader)
            if count >= len(reader):
                raise
            reader.num_frames = count
            return reader.sample(self.reference_indices(count))

    def _finish(self, index: int, name: str, frame: np.ndarray, prob: np.ndarray) -> FrameResult:
        if self.crf:
            from uvos_jax.ops.crf import dense_crf

            prob = np.array(dense_crf(frame, prob, preset=self.crf))
        label = (prob > self.threshold).astype(np.uint8)
        return FrameResult(index, name, frame, prob, label)

    # ----- streams ------------------------------------------------------------------------

    def stream(
        self, frames: Iterable[np.ndarray], *, probabilities: bool = False
    ) -> Iterator[np.ndarray]:
        """Yields a mask for every frame as it arrives, looking at the past only.

        Systems that read flow to the next frame are one frame behind, and give the last mask when
        the stream ends; those that read flow to the previous frame are not.

        Args:
          frames: uint8 `[H,W,3]` RGB, all of one size; may be endless.
          probabilities: yield float32 `[H,W]` probabilities instead of uint8 0/1 masks.

        Raises:
          UnsupportedError: the system looks at the future.
          ShapeError: a frame of another shape or dtype.
        """
        self._check_inputs(stream=True)
        results = self._stream(frames)
        return (r.prob if probabilities else r.label for r in results)

    def _stream(
        self, frames: Iterable[np.ndarray], reader: VideoReader | None = None
    ) -> Iterator[FrameResult]:
        """Results of a stream; `reader` names its frames if they are those of a video."""
        states: tuple = ()
        flow, spec = None, self.system.spec
        checked: Iterable[Any] = self._checked(frames)
        if "flow" in spec.requires:
            checked = flow_of_video(self.flow, reader, checked, 1, spec, spec.input_size)
        if reader is not None:
            checked = prefetched(checked)  # of live frames none is taken before it is asked for
        for index, item in enumerate(checked):
            frame, flow = item if isinstance(item, tuple) else (item, None)
            if index == 0:
                states = self._empty_states(self.input_size(frame.shape[:2]))
            states, probs = self._run(states, frame[None], None if flow is None else flow[None])
            name = reader.frame_name(index) if reader else f"{index:05d}"
            yield self._finish(index, name, frame, np.array(probs)[0])

    @staticmethod
    def _checked(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        size = None
        for index, frame in enumerate(frames):
            frame = np.asarray(frame)
            if frame.ndim != 3 or frame.shape[-1] != 3 or frame.dtype != np.uint8:
                raise ShapeError(
                    f"frame {index} must be uint8 [H,W,3] RGB, got {frame.dtype} {frame.shape}"
                )
            size = size or frame.shape[:2]
            if frame.shape[:2] != size:
                raise ShapeError(
                    f"frame {index} is {frame.shape[:2]}, the stream began with {size}; start "
                    "a new stream"
                )
            yield frame


#: Weight of a prediction that lacks frames it depends on: it counts only where there is no other.
_CONTEXT_ONLY = 1e-9


class _Blend:
    """Joins the probabilities of overlapping windows, weighing the middle of a window most.

    Args:
      lookahead: frames at the end of a window that count only if no other window holds them.
    """

    def __init__(self, lookahead: int = 0):
        self._lookahead = lookahead
        self._open: collections.deque = collections.deque()  # [index, frame, sum, weight]

    def add(self, window: Window, probs: Any) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Takes a window in; yields (index, frame, probability) of frames that are complete."""
        probs, length = np.array(probs), len(window.frames)
        for t in range(window.count):
            weight = min(t + 1, length - t)
            if self._lookahead:
                weight = 1.0 if t < length - self._lookahead else _CONTEXT_ONLY
            at = window.start + t - (self._open[0][0] if self._open else window.start)
            if at == len(self._open):
                self._open.append([window.start + t, window.frames[t], probs[t], weight])
            else:
                known = self._open[at]
                total = known[3] + weight
                known[2] = known[2] + (probs[t] - known[2]) * (weight / total)
                known[3] = total
        while self._open and self._open[0][0] < window.final:
            index, frame, prob, _ = self._open.popleft()
            yield index, frame, prob


def _check_overlap(overlap: int | None, length: int) -> int:
    if overlap is None:
        return length // 2
    if not 0 <= overlap < length:
        raise ConfigError(f"overlap must lie in [0, {length - 1}] for windows of {length} frames, "
                          f"got {overlap}")  # fmt: skip
    return overlap


def _mirrored(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The batch as seen in a mirror: axis 3 is the width, flow to the right points left."""
    out = {k: v[:, :, :, ::-1] for k, v in batch.items()}
    if "flow" in out:
        out["flow"] = out["flow"] * jnp.asarray([-1.0, 1.0] * (out["flow"].shape[-1] // 2))
    return out


@partial(jax.jit, static_argnames="size")
def _shrink(frames: jax.Array, *, size: tuple[int, int]) -> jax.Array:
    """uint8 `[T,H,W,3]` to uint8 `[1,T,h,w,3]`, rounded as image libraries do."""
    resized = jnp.round(resize_bilinear(frames.astype(jnp.float32), size))
    return jnp.clip(resized, 0, 255).astype(jnp.uint8)[None]


@partial(jax.jit, static_argnames="size")
def _shrink_flow(flow: jax.Array, *, size: tuple[int, int]) -> jax.Array:
    """float32 `[T,H,W,2]` (or 4) to `[1,T,h,w,2]` in pixels of the new size."""
    return resize_flow(flow.astype(jnp.float32), size)[None]


@partial(jax.jit, static_argnames="size")
def _enlarge(probs: jax.Array, *, size: tuple[int, int]) -> jax.Array:
    """`[T,h,w]` to `[T,H,W]` float32 in [0,1]."""
    full = resize_bilinear(probs.astype(jnp.float32)[..., None], size)[..., 0]
    return jnp.clip(full, 0.0, 1.0)


@jax.jit
def _enlarge_guided(probs: jax.Array, images: jax.Array, frames: jax.Array) -> jax.Array:
    """`_enlarge` along the edges of frames uint8 `[T,H,W,3]`, which are `images` when small."""
    small, large = (x.astype(jnp.float32) / 255 for x in (images, frames))
    return jnp.clip(guided_enlarge(probs, small, large), 0.0, 1.0)

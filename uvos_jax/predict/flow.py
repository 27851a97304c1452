"""Optical flow beside the frames of a video: in which direction, and what the end gets."""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import numpy as np

from uvos_jax.errors import ConfigError, ShapeError

log = logging.getLogger("uvos_jax")

#: `flow(frames uint8 [N+1,H,W,3]) -> float32 [N,H,W,2]`, pixels from each frame to the next.
FlowFunction = Callable[[np.ndarray], np.ndarray]
#: `track(i)`: flow of frame i of one video, or None for the frame at the end.
FlowTrack = Callable[[int], np.ndarray | None]
Direction = Literal["forward", "backward"]
#: What the frame without a neighbour gets (the last of forward flow, the first of backward flow):
#: `negated`, the negated flow to its only neighbour; `neighbor`, the flow to its only neighbour;
#: `repeat`, the flow of that neighbour; `zero`, no motion.
AtEnd = Literal["negated", "neighbor", "repeat", "zero"]
LONE_FRAME = "the video has one frame only: without a second one it is taken not to move"


def with_flow(
    frames: Iterable[np.ndarray],
    flow: FlowFunction,
    batch: int,
    *,
    direction: Direction = "forward",
    at_end: AtEnd = "negated",
    size: tuple[int, int] | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields every frame with its flow, computed for `batch` pairs at a time.

    A frame leaves as soon as the flow of its batch is known: with forward flow and `batch` 1 one
    frame after it arrived, with backward flow at once (the first one, whose flow depends on the
    second unless `at_end` is `zero`, with the second). A video of one frame does not move: zeros,
    which is logged unless `at_end` is `zero`. `size` is that of the fields `flow` gives, if it is
    not that of the frames.
    """
    held: list[np.ndarray] = []
    first = True

    def fields(pairs: list[np.ndarray]) -> np.ndarray:
        if direction == "forward":
            return flow(np.stack(pairs))
        return flow(np.stack(pairs[::-1]))[::-1]

    def still(frame: np.ndarray) -> np.ndarray:
        return np.zeros((*(size or frame.shape[:2]), 2), np.float32)

    def end(frame: np.ndarray, neighbor: np.ndarray, of_neighbor: np.ndarray) -> np.ndarray:
        if at_end == "zero":
            return still(frame)
        if at_end == "repeat":
            return of_neighbor
        to_neighbor = flow(np.stack([frame, neighbor]))[0]
        return -to_neighbor if at_end == "negated" else to_neighbor

    def done(pairs: list[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        nonlocal first
        found = fields(pairs)
        if direction == "forward":
            yield from zip(pairs[:-1], found, strict=True)
        else:
            if first and at_end != "zero":
                yield pairs[0], end(pairs[0], pairs[1], found[0])
            yield from zip(pairs[1:], found, strict=True)
        first = False

    before = last_flow = None
    for count, frame in enumerate(frames):
        held.append(frame)
        if count == 0 and direction == "backward" and at_end == "zero":
            yield frame, still(frame)
        if len(held) == batch + 1:
            for item in done(held):
                last_flow = item[1]
                yield item
            before, held = held[-2], held[-1:]
    if len(held) > 1:
        for item in done(held):
            last_flow = item[1]
            yield item
        before, held = held[-2], held[-1:]
    if not held:
        return
    if before is None and at_end != "zero":
        log.warning(LONE_FRAME)
        yield held[0], still(held[0])
    elif direction == "forward":
        yield held[0], end(held[0], before, last_flow)


def with_both_flows(
    frames: Iterable[np.ndarray],
    flow: FlowFunction,
    batch: int,
    *,
    size: tuple[int, int] | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields every frame with `[H,W,4]`: its flow to the previous and to the next frame.

    A frame leaves once the flow of its batch of pairs is known. What the frames at both ends lack
    is the negated flow to their only neighbour.
    """
    ahead, behind = (
        with_flow(copy, flow, batch, direction=direction, size=size)
        for copy, direction in zip(itertools.tee(frames), ("forward", "backward"), strict=True)
    )
    for (frame, to_next), (_, to_previous) in zip(ahead, behind, strict=True):
        yield frame, np.concatenate([to_previous, to_next], axis=-1)


def with_track(
    frames: Iterable[np.ndarray], track: FlowTrack, *, at_end: AtEnd = "negated"
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields every frame with its flow from files.

    If the frame at the end has no file and `at_end` asks for flow that only an estimator could
    give, it gets its neighbour's flow; a video of one frame gets zeros. Both are logged.

    Raises:
      DataError: flow is missing. ShapeError: flow of another size than its frame.
    """
    last = None
    for index, frame in enumerate(frames):
        field = track(index)
        if field is None and at_end == "zero":
            field = np.zeros((*frame.shape[:2], 2), np.float32)
        elif field is None:
            field = track(1) if index == 0 else last
            if field is None:
                log.warning(LONE_FRAME)
                field = np.zeros((*frame.shape[:2], 2), np.float32)
            elif at_end != "repeat":
                log.warning("frame %d has no flow file: it gets its neighbour's flow", index)
        if field.shape[:2] != frame.shape[:2]:
            raise ShapeError(
                f"the flow of frame {index} is {field.shape[1]}x{field.shape[0]}, the frame "
                f"{frame.shape[1]}x{frame.shape[0]}: compute flow on frames of this size"
            )
        last = field
        yield frame, field


def flow_of_video(
    flow: Any,
    reader: Any,
    frames: Iterable[np.ndarray],
    batch: int,
    spec: Any,
    size: tuple[int, int] | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Frames with the flow that a system's spec asks for.

    Args:
      flow: a `FlowFunction`, or a provider that reads the files of named videos (`track`).
      reader: the video, for its name and those of its frames; None for a stream.
      size: (h, w) at which the flow will be used. Our estimators give it at once, in pixels of this
        size; functions and files give it at the frames'.

    Raises:
      ConfigError: flow in both directions is asked of files.
    """
    both = spec.flow_direction == "both"
    if both and hasattr(flow, "track"):
        raise ConfigError(
            f"these weights of {spec.name} read flow to the previous and to the next frame, and a "
            "folder of flow files holds one of them: name an estimator instead (--flow tvl1_fast)"
        )
    if hasattr(flow, "track") and reader is not None and len(reader) > 1:
        names = [reader.frame_name(i) for i in range(len(reader))]
        track = flow.track(reader.name, names, spec.flow_direction)
        return with_track(frames, track, at_end=spec.flow_at_end)
    if size is not None and hasattr(flow, "between_at"):
        flow = functools.partial(flow, size=size)
    else:
        size = None
    if both:
        return with_both_flows(frames, flow, batch, size=size)
    return with_flow(
        frames, flow, batch, direction=spec.flow_direction, at_end=spec.flow_at_end, size=size
    )

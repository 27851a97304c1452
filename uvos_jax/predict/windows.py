"""Cutting a video into windows of a fixed number of frames, ahead of time, in constant memory."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from uvos_jax.errors import DataError

#: `flow(frames uint8 [N+1,H,W,3]) -> float32 [N,H,W,2]`, pixels from each frame to the next.
FlowFunction = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Window:
    """T consecutive frames of a video.

    Attributes:
      start: index of the first frame.
      frames: uint8 `[T,H,W,3]`.
      flow: float32 `[T,H,W,2]` to the next frame, or None.
      count: frames that exist; those after them are fill-in.
      final: frames of the video before this index appear in no later window.
    """

    start: int
    frames: np.ndarray
    flow: np.ndarray | None
    count: int
    final: int


def windows(
    frames: Iterable[np.ndarray], length: int, overlap: int = 0, flow: FlowFunction | None = None
) -> Iterator[Window]:
    """Yields windows of `length` frames, each sharing `overlap` with the one before.

    The end of a video rarely fits: with overlap the last window moves back as far as it must,
    without (state is carried from window to window, no frame may come twice) it is filled up by
    walking back from the last frame, as is a video shorter than one window.

    Args:
      frames: uint8 `[H,W,3]`, taken one by one.
      flow: computes flow in batches of `length` pairs; the last frame of the video gets the
        negated flow to its predecessor.
    """
    pairs = _with_flow(frames, flow, length) if flow else zip(frames, itertools.repeat(None))
    previous = None
    for start, held, count in _cut(pairs, length, overlap):
        if previous is not None:
            yield _window(*previous, length, final=start)
        previous = (start, held, count)
    if previous is not None:
        start, _, count = previous
        yield _window(*previous, length, final=start + count)


def _cut(items: Iterable[Any], length: int, overlap: int) -> Iterator[tuple[int, list, int]]:
    held: collections.deque = collections.deque(maxlen=length)
    seen, covered, due = 0, 0, length
    for seen, item in enumerate(items, start=1):
        held.append(item)
        if seen == due:
            yield seen - length, list(held), length
            covered, due = seen, seen + length - overlap
    left = seen - covered
    if left and overlap and seen >= length:
        yield seen - length, list(held), length
    elif left:
        yield covered, list(held)[-left:], left


def _window(start: int, held: list, count: int, length: int, *, final: int) -> Window:
    filled = [held[_walk_back(i, count)] for i in range(length)]
    flow = None if filled[0][1] is None else np.stack([f for _, f in filled])
    return Window(start, np.stack([x for x, _ in filled]), flow, count, final)


def _walk_back(i: int, count: int) -> int:
    """Index i, reflected at the last of `count` frames, and stopped at the first."""
    return i if i < count else max(2 * (count - 1) - i, 0)


def _with_flow(
    frames: Iterable[np.ndarray], flow: FlowFunction, batch: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    held: list[np.ndarray] = []
    before = None
    for frame in frames:
        held.append(frame)
        if len(held) == batch + 1:
            yield from zip(held[:-1], flow(np.stack(held)), strict=True)
            before, held = held[-2], held[-1:]
    if len(held) > 1:
        yield from zip(held[:-1], flow(np.stack(held)), strict=True)
        before = held[-2]
    if held and before is None:
        raise DataError("the video has one frame only: optical flow needs at least two")
    if held:
        yield held[-1], -flow(np.stack([held[-1], before]))[0]


def prefetched(items: Iterator[Any], depth: int = 2) -> Iterator[Any]:
    """Runs an iterator in a thread, `depth` items ahead: decoding overlaps with the network.

    An exception of the iterator is raised here; leaving early ends the thread and closes the
    iterator.
    """
    ready: queue.Queue = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def put(kind: str, value: Any) -> bool:
        while not stop.is_set():
            try:
                ready.put((kind, value), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put("item", item):
                    items.close()
                    return
            put("end", None)
        except BaseException as error:  # the consumer's business, whatever it is
            put("error", error)

    thread = threading.Thread(target=work, daemon=True, name="uvos-decode")
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value
    finally:
        stop.set()
        thread.join()

"""Cutting a video into windows of a fixed number of frames, ahead of time, in constant memory."""

from __future__ import annotations

import collections
import dataclasses
import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from uvos_jax.predict.flow import FlowFunction, with_flow

__all__ = ["FlowFunction", "Window", "prefetched", "windows"]


@dataclasses.dataclass(frozen=True)
class Window:
    """T consecutive frames of a video.

    Attributes:
      start: index of the first frame.
      frames: uint8 `[T,H,W,3]`.
      flow: float32 `[T,H,W,2]` to the next (or previous) frame, or None.
      count: frames that exist; those after them are fill-in.
      final: frames of the video before this index appear in no later window.
    """

    start: int
    frames: np.ndarray
    flow: np.ndarray | None
    count: int
    final: int


def windows(
    frames: Iterable[Any],
    length: int,
    overlap: int = 0,
    flow: FlowFunction | None = None,
    *,
    hold_last: bool = False,
) -> Iterator[Window]:
    """Yields windows of `length` frames, each sharing `overlap` with the one before.

    The end of a video rarely fits: with overlap the last window moves back as far as it must,
    without (state is carried from window to window, no frame may come twice) it is filled up by
    walking back from the last frame, as is a video shorter than one window.

    Args:
      frames: uint8 `[H,W,3]`, taken one by one; or pairs of a frame and its flow.
      flow: computes flow to the next frame in batches of `length` pairs; the last frame of the
        video gets the negated flow to its predecessor.
      hold_last: fill up by repeating the last frame instead.
    """
    if flow:
        frames = with_flow(frames, flow, length)
    pairs = (x if isinstance(x, tuple) else (x, None) for x in frames)
    previous = None
    for start, held, count in _cut(pairs, length, overlap):
        if previous is not None:
            yield _window(*previous, length, final=start, hold_last=hold_last)
        previous = (start, held, count)
    if previous is not None:
        start, _, count = previous
        yield _window(*previous, length, final=start + count, hold_last=hold_last)


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
        yield covered, list(held), left


def _window(
    start: int, held: list, count: int, length: int, *, final: int, hold_last: bool
) -> Window:
    last = len(held) - 1
    filled = held[len(held) - count :]
    filled += [held[last if hold_last else max(last - i, 0)] for i in range(1, length - count + 1)]
    flow = None if filled[0][1] is None else np.stack([f for _, f in filled])
    return Window(start, np.stack([x for x, _ in filled]), flow, count, final)


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

"""Windows over a video, optical flow beside it, and reading ahead in a thread."""

import itertools
import threading
import time

import numpy as np
import pytest

from tests.predict.toys import video
from uvos_jax.errors import DataError
from uvos_jax.predict.windows import prefetched, windows


def numbered(n):
    return [np.full((2, 2, 3), i, np.uint8) for i in range(n)]


def numbers(window):
    return window.frames[:, 0, 0, 0].tolist()


def test_windows_without_overlap_take_every_frame_once_and_fill_up_the_end():
    got = list(windows(numbered(7), 3))
    assert [numbers(w) for w in got] == [[0, 1, 2], [3, 4, 5], [6, 5, 4]]
    assert [(w.start, w.count, w.final) for w in got] == [(0, 3, 3), (3, 3, 6), (6, 1, 7)]


def test_the_end_is_filled_up_by_walking_back():
    assert [numbers(w) for w in windows(numbered(3), 5)] == [[0, 1, 2, 1, 0]]


def test_the_end_may_be_filled_up_with_the_last_frame():
    got = windows(numbered(3), 5, 1, hold_last=True)
    assert [numbers(w) for w in got] == [[0, 1, 2, 2, 2]]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7, 8, 9, 17])
@pytest.mark.parametrize("overlap", [0, 1, 2, 3])
def test_every_frame_is_covered_and_declared_final_exactly_when_it_is(count, overlap):
    got = list(windows(numbered(count), 4, overlap))
    covered, final = set(), 0
    for i, window in enumerate(got):
        mine = range(window.start, window.start + window.count)
        assert numbers(window)[: window.count] == list(mine)
        assert window.frames.shape == (4, 2, 2, 3)
        covered |= set(mine)
        later = [w.start for w in got[i + 1 :]]
        final = min(later) if later else count
        assert window.final == final
    assert covered == set(range(count))
    assert final == count


def test_overlapping_windows_share_frames_and_the_last_moves_back():
    starts = [w.start for w in windows(numbered(11), 4, 2)]
    assert starts == [0, 2, 4, 6, 7]


def test_windows_hold_no_more_than_a_few_windows_of_frames():
    alive, most = set(), 0

    class Frame(np.ndarray):
        def __del__(self):
            alive.discard(id(self))

    def frames():
        nonlocal most
        for _ in range(200):
            frame = np.zeros((2, 2, 3), np.uint8).view(Frame)
            alive.add(id(frame))
            most = max(most, len(alive))
            yield frame

    for _ in windows(frames(), 4, 2):
        pass
    assert most <= 3 * 4


def flow_of(frames):
    """A made-up flow: the difference of the frames' numbers, in both components."""
    values = frames[:, 0, 0, 0].astype(np.float32)
    steps = values[1:] - values[:-1]
    return np.tile(steps[:, None, None, None], (1, 2, 2, 2))


@pytest.mark.parametrize("count", [2, 3, 4, 5, 7, 8, 9])
def test_flow_leads_to_the_next_frame_and_the_last_frame_gets_its_negated_past(count):
    frames = [np.full((2, 2, 3), i * i, np.uint8) for i in range(count)]
    squares = [i * i for i in range(count)]
    expected = [b - a for a, b in itertools.pairwise(squares)]
    expected.append(squares[-1] - squares[-2])
    got = []
    for window in windows(frames, 3, 0, flow_of):
        got.extend(window.flow[: window.count, 0, 0, 0].tolist())
    assert got == expected


def test_a_single_frame_does_not_move():
    (window,) = windows(numbered(1), 3, 0, flow_of)
    assert window.count == 1
    assert not window.flow.any()


def test_reading_ahead_changes_nothing():
    frames = video(9)
    ahead = [w.frames for w in prefetched(windows(frames, 4))]
    plain = [w.frames for w in windows(frames, 4)]
    np.testing.assert_array_equal(np.stack(ahead), np.stack(plain))


def test_an_error_while_reading_ahead_reaches_the_consumer():
    def broken():
        yield 1
        raise DataError("frame 1 is damaged")

    ahead = prefetched(broken())
    assert next(ahead) == 1
    with pytest.raises(DataError, match="frame 1 is damaged"):
        next(ahead)


def test_leaving_early_ends_the_thread_and_closes_the_source():
    closed = threading.Event()

    def endless():
        try:
            while True:
                yield 0
        finally:
            closed.set()

    before = threading.active_count()
    ahead = prefetched(endless())
    next(ahead)
    ahead.close()
    assert closed.wait(5)
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before

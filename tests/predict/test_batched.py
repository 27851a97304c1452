"""Windows of several videos in one call: every video gets what it gets alone."""

from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from tests.predict.toys import (
    GAIN,
    Distance,
    FlowRight,
    RunningMean,
    Toy,
    WindowCentre,
    video,
)
from uvos_jax.errors import ConfigError
from uvos_jax.predict.batched import Together
from uvos_jax.predict.predictor import Predictor


def together(predictor, videos, size):
    shared = Together(predictor, size)

    def work(frames):
        with shared.joined() as mine:
            return mine.predict(frames)

    with ThreadPoolExecutor(size) as pool:
        return [f.result(timeout=120) for f in [pool.submit(work, v) for v in videos]], shared


@pytest.mark.parametrize(
    "system,size",  # of 8 devices a call of 3 takes one, a call of 8 all
    [(Toy, 1), (Toy, 8), (RunningMean, 8), (Distance, 3), (WindowCentre, 3), (FlowRight, 3)],
)
def test_each_video_gets_what_it_gets_alone(system, size):
    flow = None
    if system is FlowRight:
        flow = lambda frames: np.stack([frames[:-1, ..., 0], frames[1:, ..., 1]], -1) / 255.0  # noqa: E731
    predictor = Predictor(system(), GAIN, flow=flow, flip=system is RunningMean, chunk=4)
    videos = [video(T, seed=T) for T in (9, 1, 4, 6, 12)] + [video(5, H=24, W=16, seed=1)]
    results, _ = together(predictor, videos, size)
    for frames, result in zip(videos, results, strict=True):
        alone = predictor.predict(frames)
        np.testing.assert_allclose(result.probs, alone.probs, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(result.labels, alone.labels)


def test_windows_of_one_size_share_calls(monkeypatch):
    predictor = Predictor(RunningMean(), GAIN, chunk=2)
    calls = []
    call = Together._call

    def counted(self, requests):
        calls.append(len(requests))
        return call(self, requests)

    monkeypatch.setattr(Together, "_call", counted)
    together(predictor, [video(8, seed=i) for i in range(4)], 4)
    assert sum(calls) == 16  # four windows of each of four videos
    assert len(calls) < 16
    assert max(calls) > 1


def test_a_video_that_fails_takes_no_other_with_it(tmp_path):
    predictor = Predictor(Toy(), GAIN, chunk=2)
    shared = Together(predictor, 3)

    def work(frames):
        with shared.joined() as mine:
            return mine.predict(frames)

    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(work, v) for v in (video(6), tmp_path / "absent.mp4", video(3))]
        assert len(jobs[0].result(timeout=120)) == 6
        assert len(jobs[2].result(timeout=120)) == 3
        assert "absent.mp4" in str(jobs[1].exception())


def test_an_error_of_the_network_reaches_every_video_that_waits(monkeypatch):
    predictor = Predictor(Toy(), GAIN, chunk=2)
    shared = Together(predictor, 2)
    monkeypatch.setattr(shared, "_call", lambda requests: 1 / 0)

    def work(frames):
        with shared.joined() as mine:
            return mine.predict(frames)

    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(work, video(4, seed=i)) for i in range(2)]
        for job in jobs:
            assert isinstance(job.exception(timeout=60), ZeroDivisionError)


def test_windows_are_spread_over_the_devices():
    if jax.local_device_count() < 8:
        pytest.skip("needs 8 devices")
    shared = Together(Predictor(Toy(), GAIN), 8)
    placed = jax.device_put(np.zeros((8, 2)), shared._where)
    assert len(placed.sharding.device_set) == 8
    assert Together(Predictor(Toy(), GAIN), 3)._where is None


def test_a_size_below_one_is_refused():
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        Together(Predictor(Toy(), GAIN), 0)

"""Log-odds carried back in time along the flow."""

import logging
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from tests.predict.toys import GAIN, Toy, video
from uvos_jax.errors import ConfigError
from uvos_jax.predict.predictor import Predictor
from uvos_jax.predict.smooth import smooth
from uvos_jax.predict.spool import Spool

#: A toy asks for flow to the next frame and does not look at it.
FlowToy = partial(Toy, requires=frozenset({"flow"}))


def spooled(values):
    spool = Spool()
    for value in values:
        spool.append(value)
    return spool


def odds(p):
    return np.log(p / (1 - p))


@pytest.mark.parametrize("window", [1, 3, 4, 9])
def test_filtered_probabilities_equal_a_loop_whatever_the_window(window):
    rng = np.random.default_rng(0)
    T, h, w = 7, 8, 12
    probs = rng.uniform(0.05, 0.95, (T, h, w)).astype(np.float16).astype(np.float32)
    flow = np.zeros((T, h // 2, w // 2, 2), np.float32)
    flow[..., 0] = 1.0  # of half the size: two pixels to the right
    spool, flows = spooled(probs), spooled(flow)
    smooth(spool, flows, 0.5, window)
    found = spool.read(0, T)
    after = odds(probs[-1])
    for t in range(T)[::-1]:
        moved = after[:, np.minimum(np.arange(w) + 2, w - 1)]
        after = odds(probs[t]) if t == T - 1 else 0.5 * odds(probs[t]) + 0.5 * moved
        np.testing.assert_allclose(found[t], 1 / (1 + np.exp(-after)), atol=2e-3)
    spool.close()
    flows.close()


def still(frames):
    return np.zeros((len(frames) - 1, *frames.shape[1:3], 2), np.float32)


def test_one_frame_learns_from_the_next_and_the_last_stays():
    frames = np.repeat(np.uint8([60, 60, 200])[:, None, None, None], 3, axis=3)
    frames = np.broadcast_to(frames, (3, 16, 24, 3)).copy()
    plain = Predictor(FlowToy(), GAIN, flow=still, chunk=2).predict(frames).probs
    found = Predictor(FlowToy(), GAIN, flow=still, smooth=0.5, chunk=2).predict(frames).probs
    a, b = odds(60 / 255), odds(200 / 255)
    expected = [a / 2 + (a + b) / 4, (a + b) / 2, b]
    np.testing.assert_allclose(plain[:, 4, 4], np.asarray([60, 60, 200]) / 255, atol=1e-5)
    np.testing.assert_allclose(odds(found[:, 4, 4]), expected, atol=0.01)
    (alone,) = Predictor(FlowToy(), GAIN, flow=still, smooth=0.5).predict(frames[:1]).probs
    np.testing.assert_allclose(alone, plain[0], atol=1e-3)


def test_streams_go_without_and_the_log_says_so(caplog):
    predictor = Predictor(FlowToy(), GAIN, flow=still, smooth=0.5, chunk=1)
    with caplog.at_level(logging.WARNING, "uvos_jax"):
        probs = list(predictor.stream(video(3), probabilities=True))
    assert "without smoothing, which looks at later frames" in caplog.text
    np.testing.assert_allclose(jnp.stack(probs), video(3)[..., 0] / 255.0, atol=1e-6)


def test_systems_without_flow_to_the_next_frame_refuse_it():
    with pytest.raises(ConfigError, match=r"smooth=0\.5 follows flow to the next frame"):
        Predictor(Toy(), GAIN, smooth=0.5)
    with pytest.raises(ConfigError, match=r"smooth must lie in \[0, 1\), got 1.0"):
        Predictor(FlowToy(), GAIN, flow=still, smooth=1.0)

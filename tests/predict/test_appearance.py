"""What the object of one video looks like: learned where the network is sure, used where not."""

import logging

import jax.numpy as jnp
import numpy as np
import pytest

from tests.predict.toys import GAIN, RunningMean, Toy, WindowCentre, video
from uvos_jax.errors import ConfigError
from uvos_jax.ops.odds import log_odds
from uvos_jax.predict import appearance
from uvos_jax.predict.appearance import Appearance, features
from uvos_jax.predict.predictor import Predictor
from uvos_jax.predict.spool import Spool


class HalfBlind(Toy):
    """Sees red things in the left half and knows nothing of the right one."""

    def predict(self, variables, state, chunk):
        red = self.red(variables, chunk)
        left = jnp.arange(red.shape[-1]) < red.shape[-1] // 2
        return state, jnp.where(left, red, 0.5)


def scene(T=7, H=32, W=48):
    """A red square on green ground walks from left to right: frames and masks."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 40, (T, H, W, 3)).astype(np.uint8)
    frames[..., 1] += 120
    masks = np.zeros((T, H, W), bool)
    for t in range(T):
        masks[t, 10:22, 2 + 5 * t : 14 + 5 * t] = True
    frames[masks] = rng.integers(0, 40, (masks.sum(), 3)) + np.asarray([200, 20, 20])
    return frames, masks


def region_similarity(labels, truth):
    return (labels & truth).sum() / (labels | truth).sum()


@pytest.mark.parametrize("refine", [None, "agnn"])
def test_the_object_is_found_where_the_network_is_blind(refine):
    frames, masks = scene()
    blind = Predictor(HalfBlind(), GAIN, refine=refine, chunk=4).predict(frames)
    found = Predictor(HalfBlind(), GAIN, refine=refine, appearance=0.5, chunk=4).predict(frames)
    assert found.probs.shape == blind.probs.shape
    assert found.names == blind.names
    assert region_similarity(blind.labels > 0, masks) < 0.6
    assert region_similarity(found.labels > 0, masks) > 0.9


@pytest.mark.parametrize("system", [RunningMean, WindowCentre])
def test_a_share_next_to_nothing_changes_next_to_nothing(system):
    frames = video(9)
    alone = Predictor(system(), GAIN, chunk=4).predict(frames)
    mixed = Predictor(system(), GAIN, appearance=1e-6, chunk=4).predict(frames)
    inside = (alone.probs > 2e-3) & (alone.probs < 1 - 2e-3)
    np.testing.assert_allclose(mixed.probs[inside], alone.probs[inside], atol=2e-3)


def test_where_nothing_is_sure_nothing_changes_and_the_log_says_so(caplog):
    frames = np.full((3, 16, 24, 3), 20, np.uint8)
    with caplog.at_level(logging.WARNING, "uvos_jax"):
        mixed = Predictor(Toy(), GAIN, appearance=0.5, chunk=2).predict(frames)
    assert "nowhere sure of an object" in caplog.text
    np.testing.assert_allclose(mixed.probs, 20 / 255, atol=1e-3)


def test_streams_go_without_and_the_log_says_so(caplog):
    predictor = Predictor(Toy(), GAIN, appearance=0.5, chunk=1)
    with caplog.at_level(logging.WARNING, "uvos_jax"):
        (prob,) = list(predictor.stream(video(1), probabilities=True))
    assert "streams go without the appearance" in caplog.text
    np.testing.assert_allclose(prob, video(1)[0, ..., 0] / 255.0, atol=1e-6)


def test_features_equal_loops_over_windows():
    frames = video(1, H=6 * appearance.SHRINK, W=10 * appearance.SHRINK)
    got = np.asarray(features(jnp.asarray(frames)))[0]
    lab = got[..., :3].astype(np.float64)
    y, x = np.mgrid[:6, :10]
    for k, window in enumerate(appearance.WINDOWS):
        weight = np.exp(-0.5 * ((y - 2) ** 2 + (x - 7) ** 2) / (10 * window) ** 2)
        mean = (lab * weight[..., None]).sum((0, 1)) / weight.sum()
        np.testing.assert_allclose(got[2, 7, 3 + 3 * k : 6 + 3 * k], mean, atol=1e-4)
        if k == 0:
            square = (lab**2 * weight[..., None]).sum((0, 1)) / weight.sum()
            spread = 2 * np.sqrt(np.maximum(square - mean**2, 0) + 1e-4)
            np.testing.assert_allclose(got[2, 7, 9:], spread, atol=2e-3)


def test_memory_does_not_grow_with_the_video(monkeypatch):
    monkeypatch.setattr(appearance, "FRAMES", 8)
    looks = Appearance()
    for t in range(100):
        looks.see(video(1, H=8, W=8, seed=t), np.full((1, 8, 8), 0.9, np.float32))
    kept = [index for index, _, _ in looks._kept]
    assert kept == list(range(0, 100, looks._stride))
    assert len(kept) <= 8


def test_spooled_probabilities_come_back_and_the_last_is_repeated():
    probs = np.random.default_rng(0).random((5, 4, 6)).astype(np.float32)
    spool = Spool()
    for prob in probs:
        spool.append(prob)
    np.testing.assert_allclose(spool.read(1, 3), probs[1:4], atol=1e-3)
    np.testing.assert_allclose(spool.read(4, 3), probs[[4, 4, 4]], atol=1e-3)
    spool.close()


def test_log_odds_stay_finite():
    np.testing.assert_allclose(
        log_odds(jnp.asarray([0.0, 0.5, 1.0])), [-6.906755, 0, 6.906755], atol=1e-3
    )


def test_a_share_out_of_range_is_refused():
    with pytest.raises(ConfigError, match=r"appearance must lie in \[0, 1\], got 1.5"):
        Predictor(Toy(), GAIN, appearance=1.5)

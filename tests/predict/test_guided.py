"""Masks enlarged along the edges of the picture."""

from importlib.resources import files

import numpy as np

from tests.predict.toys import GAIN, Toy
from uvos_jax.convert.variables import load_variables, save_variables
from uvos_jax.predict.predictor import Predictor


def a_red_disc(count=3, size=(120, 168)):
    """Frames of a red disc on green, and where it is."""
    y, x = np.mgrid[: size[0], : size[1]]
    frames, masks = np.zeros((count, *size, 3), np.uint8), []
    for t in range(count):
        masks.append((y - 60) ** 2 + (x - 70 - 5 * t) ** 2 < 37**2)
        frames[t] = np.where(masks[-1][..., None], np.uint8([230, 40, 40]), np.uint8([20, 150, 60]))
    return frames, np.stack(masks)


def errors(frames, masks, **options):
    found = Predictor(Toy(input_size=(24, 32)), GAIN, **options).predict(frames)
    return int((found.labels.astype(bool) != masks).sum()), found.probs


def test_masks_of_a_small_network_end_where_the_picture_says():
    frames, masks = a_red_disc()
    plain, _ = errors(frames, masks)
    guided, probs = errors(frames, masks, guided=True)
    assert plain > 300
    assert guided < plain / 5
    assert probs.dtype == np.float32
    assert probs.min() >= 0.0
    assert probs.max() <= 1.0


def test_whole_videos_and_streams_agree():
    frames, _ = a_red_disc()
    predictor = Predictor(Toy(input_size=(24, 32)), GAIN, guided=True, chunk=2)
    whole = predictor.predict(frames).probs
    streamed = np.stack(list(predictor.stream(frames, probabilities=True)))
    np.testing.assert_allclose(whole, streamed, atol=1e-5)


def test_weights_say_whether_and_a_crf_goes_without(tmp_path):
    stored = load_variables(files("uvos_jax") / "assets" / "default.npz")
    for wanted in (True, False):
        stored.meta["config"]["predict"]["guided"] = wanted
        path = save_variables(stored, tmp_path / f"{wanted}.npz")
        assert Predictor.load(path).guided is wanted
        assert Predictor.load(path, guided=not wanted).guided is not wanted
        assert Predictor.load(path, crf="agnn").guided is False

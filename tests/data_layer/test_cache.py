"""Decoded files kept in memory: read once, the same examples, never more than allowed."""

import pickle

import numpy as np
import pytest

from tests.data_layer import dataset_trees as trees
from uvos_jax import config as configs
from uvos_jax.data import sources
from uvos_jax.data.cache import DecodedFiles
from uvos_jax.data.pipeline import make_train_iter
from uvos_jax.data.sources import video
from uvos_jax.errors import ConfigError


def settings(root, **fields):
    config = configs.load_config("cosnet:tiny")
    config.data.train = ({"name": "davis16", "root": str(root), "split": "train"},)
    config.data.size = (8, 8)
    for name, value in fields.items():
        config.data[name] = value
    return config.data


def test_once_every_file_was_seen_none_is_decoded_again(tmp_path, monkeypatch):
    trees.davis(tmp_path)
    decoded, decode = [], video.read_image
    monkeypatch.setattr(video, "read_image", lambda p: (decoded.append(p), decode(p))[1])
    batches = make_train_iter(settings(tmp_path, cache_gb=1.0), "default", batch_size=2)
    for _ in range(12):
        next(batches)
    assert len(set(decoded)) == 6
    seen = len(decoded)
    for _ in range(12):
        next(batches)
    assert len(decoded) == seen


def test_examples_are_the_same_with_and_without_a_cache(tmp_path):
    trees.davis(tmp_path)
    kept = make_train_iter(settings(tmp_path, cache_gb=1.0), "default", batch_size=2)
    read = make_train_iter(settings(tmp_path), "default", batch_size=2)
    for _ in range(8):
        a, b = next(kept), next(read)
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def test_the_limit_is_kept_and_what_does_not_fit_is_made_anew():
    cache, made = DecodedFiles(limit=250), []

    def make(i):
        made.append(i)
        return np.full(100, i, np.uint8)

    for i in (0, 1, 2, 0, 1, 2):
        assert cache.get(i, lambda i=i: make(i))[0] == i
    assert made == [0, 1, 2, 2]
    assert (len(cache), cache.size) == (2, 200)


def test_kept_arrays_cannot_be_written_to():
    cache = DecodedFiles(limit=100)
    first = cache.get("a", lambda: np.zeros(4, np.uint8))
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 1


def test_a_copy_for_another_process_starts_empty():
    cache = DecodedFiles(limit=100)
    cache.get("a", lambda: np.zeros(4, np.uint8))
    again = pickle.loads(pickle.dumps(cache))
    assert (len(again), again.limit) == (0, 100)


def test_sources_keep_nothing_unless_asked(tmp_path):
    made = sources.make_source("davis16", root=str(trees.davis(tmp_path)), split="train")
    made[0]
    assert len(made.cache) == 0


def test_a_negative_limit_is_refused(tmp_path):
    trees.davis(tmp_path)
    with pytest.raises(ConfigError, match=r"data\.cache_gb must not be negative, got -1"):
        make_train_iter(settings(tmp_path, cache_gb=-1.0), "default", batch_size=2)

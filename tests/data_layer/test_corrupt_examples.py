"""An unreadable file stops training with its name, or is skipped, logged and counted on request."""

import logging
import re

import pytest

from tests.data_layer import dataset_trees as trees
from uvos_jax import config as configs
from uvos_jax.data.pipeline import make_train_iter
from uvos_jax.errors import DataError

BROKEN = "JPEGImages/480p/alpha/00001.jpg"


def batches(root, *, skip):
    trees.davis(root)
    (root / BROKEN).write_bytes((root / BROKEN).read_bytes()[:200])
    config = configs.load_config("cosnet:tiny")
    config.data.train = ({"name": "davis16", "root": str(root), "split": "train"},)
    config.data.size, config.data.clip_len, config.data.skip_corrupt = (8, 8), 1, skip
    return make_train_iter(config.data, "default", batch_size=1)


def test_a_truncated_frame_stops_training_with_its_name(tmp_path):
    with pytest.raises(DataError, match=r"alpha.00001\.jpg"):
        for _, _ in zip(range(12), batches(tmp_path, skip=False), strict=False):
            pass


def test_on_request_it_is_skipped_and_counted_in_the_log(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="uvos_jax"):
        read = [b for _, b in zip(range(15), batches(tmp_path, skip=True), strict=False)]
    levels = {round(float(b["frames"].mean())) for b in read}
    assert len(levels) == 5  # of six frames
    lines = [r.getMessage() for r in caplog.records if "00001.jpg" in r.getMessage()]
    numbers = [int(re.search(r"skipped corrupt example (\d+)", line)[1]) for line in lines]
    assert len(numbers) >= 2
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))

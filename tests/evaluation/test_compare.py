"""Differences between two sets of masks."""

import numpy as np
import pytest

from tests.evaluation import trees
from uvos_jax.errors import DataError
from uvos_jax.evaluation.compare import compare_masks


@pytest.fixture
def pair(tmp_path):
    first = trees.clip(0, 3)
    second = first.copy()
    second[1, 0, :7] ^= True
    trees.save_frames(tmp_path / "a" / "dog", first)
    trees.save_frames(tmp_path / "b" / "dog", second)
    return tmp_path / "a", tmp_path / "b", first, second


def test_every_frame_gets_its_overlap_and_count_of_pixels(pair):
    a, b, first, second = pair
    found = compare_masks(a, b)
    assert [(d.sequence, d.frame, d.pixels) for d in found] == [
        ("dog", "00000", 0),
        ("dog", "00001", 7),
        ("dog", "00002", 0),
    ]
    assert found[0].overlap == 1.0
    expected = (first[1] & second[1]).sum() / (first[1] | second[1]).sum()
    assert found[1].overlap == pytest.approx(expected)
    assert found[1].total == trees.H * trees.W


def test_unequal_sets_are_refused_unless_allowed(pair):
    a, b, *_ = pair
    (b / "dog" / "00002.png").unlink()
    with pytest.raises(DataError, match=r"1 masks are only in .*a, first dog/00002.png"):
        compare_masks(a, b)
    with pytest.raises(DataError, match=r"1 masks are only in .*a, first dog/00002.png"):
        compare_masks(b, a)
    assert len(compare_masks(a, b, allow_missing=True)) == 2


def test_folders_without_masks_in_common_are_refused(pair, tmp_path):
    a, b, *_ = pair
    with pytest.raises(DataError, match=r"nowhere does not exist"):
        compare_masks(a, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no PNG: expected <sequence>/<frame>.png"):
        compare_masks(tmp_path / "empty", b)
    trees.save_frames(tmp_path / "c" / "cat", trees.clip(0, 1))
    with pytest.raises(DataError, match=r"have no frame in common"):
        compare_masks(a, tmp_path / "c", allow_missing=True)


def test_sizes_must_agree(pair):
    a, b, *_ = pair
    trees.save(b / "dog" / "00000.png", np.zeros((3, 5), bool))
    with pytest.raises(DataError, match=r"the result is 5x3 but its annotation 00000.png is 44x30"):
        compare_masks(a, b)

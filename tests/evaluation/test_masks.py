"""Mask files as programs write them, and the rules from values to foreground."""

import numpy as np
import pytest
from PIL import Image

from tests.evaluation import trees
from uvos_jax.errors import DataError
from uvos_jax.evaluation import masks

RAMP = np.arange(24, dtype=np.uint8).reshape(4, 6)


def written(path, values, **options):
    trees.save(path, values, **options)
    return path


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (RAMP % 2 * 255, RAMP % 2 == 1),
        (RAMP % 2, RAMP % 2 == 1),
        (RAMP * 0, RAMP > 99),
        (RAMP * 10, RAMP * 10 > 115),  # soft: above half of its own maximum, 230
        (np.where(RAMP > 3, 255, 7), RAMP > 3),  # 7 is not 0, so this is soft as well
        (np.where(RAMP > 3, 9, 0), RAMP > 3),
    ],
)
def test_results_are_binarised_by_their_own_values(tmp_path, values, expected):
    path = written(tmp_path / "a.png", values.astype(np.uint8))
    np.testing.assert_array_equal(masks.binary_result(path), expected)


def test_16_bit_results_follow_the_same_rule(tmp_path):
    path = written(tmp_path / "a.png", RAMP.astype(np.uint16) * 2000)
    np.testing.assert_array_equal(masks.binary_result(path), RAMP > 11.5)


def test_one_object_of_any_id_is_foreground_in_an_indexed_result(tmp_path):
    for k in (1, 3, 255):
        path = written(
            tmp_path / f"{k}.png", np.where(RAMP > 9, k, 0).astype(np.uint8), palette=True
        )
        np.testing.assert_array_equal(masks.binary_result(path), RAMP > 9)


@pytest.mark.parametrize("second", [2, 255])
def test_indexed_results_of_several_ids_are_refused_unless_merged(tmp_path, second):
    ids = np.zeros((4, 6), np.uint8)
    ids[0], ids[2] = 1, second
    path = written(tmp_path / "a.png", ids, palette=True)
    with pytest.raises(DataError, match=rf"holds 2 object ids \(1, {second}\)"):
        masks.binary_result(path)
    np.testing.assert_array_equal(masks.binary_result(path, merge_objects=True), ids > 0)


def test_a_grey_palette_is_a_grey_image(tmp_path):
    image = Image.fromarray(RAMP * 10)
    image.putpalette(np.repeat(np.arange(256, dtype=np.uint8), 3).tolist())
    assert image.mode == "P"
    image.save(tmp_path / "a.png")
    values, indexed = masks.read_values(tmp_path / "a.png")
    assert not indexed
    np.testing.assert_array_equal(values, RAMP * 10)


def test_palette_files_give_indices_not_colours(tmp_path):
    path = written(tmp_path / "a.png", RAMP, palette=True)
    values, indexed = masks.read_values(path)
    assert indexed
    np.testing.assert_array_equal(values, RAMP)
    np.testing.assert_array_equal(masks.object_ids(path), RAMP)


def test_saliency_maps_are_8_bit_grey(tmp_path):
    np.testing.assert_array_equal(
        masks.soft_result(written(tmp_path / "a.png", RAMP * 10)), RAMP * 10
    )
    one_bit = written(tmp_path / "b.png", RAMP > 3)
    np.testing.assert_array_equal(masks.soft_result(one_bit), np.where(RAMP > 3, 255, 0))
    for name, values, options in (
        ("c.png", RAMP, {"palette": True}),
        ("d.png", RAMP.astype(np.uint16), {}),
    ):
        with pytest.raises(DataError, match=f"{name}: a saliency map is an 8-bit grey image"):
            masks.soft_result(written(tmp_path / name, values, **options))


def test_missing_damaged_and_colour_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"a.png: the mask file does not exist"):
        masks.read_values(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"b.png: cannot be read as an image"):
        masks.read_values(tmp_path / "b.png")
    whole = written(tmp_path / "c.png", np.random.default_rng(0).random((50, 50)) > 0.5)
    whole.write_bytes(whole.read_bytes()[:-60])
    with pytest.raises(DataError, match=r"c.png: cannot be read as an image"):
        masks.read_values(whole)
    with pytest.raises(DataError, match=r"d.png: a mask has one channel.*mode RGB"):
        masks.read_values(written(tmp_path / "d.png", np.zeros((4, 4, 3), np.uint8)))


def test_floating_point_ids_are_refused(tmp_path):
    Image.fromarray(RAMP.astype(np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(DataError, match=r"object ids are integers"):
        masks.object_ids(tmp_path / "a.tiff")


def test_annotations_of_several_files_are_united(tmp_path):
    paths = (written(tmp_path / "a.png", RAMP == 3), written(tmp_path / "b.png", RAMP == 5))
    np.testing.assert_array_equal(masks.annotation(paths, "nonzero"), (RAMP == 3) | (RAMP == 5))
    other = written(tmp_path / "c.png", np.zeros((2, 2), bool))
    with pytest.raises(DataError, match=r"2x2 but its annotation a.png is 6x4"):
        masks.annotation((paths[0], other), "nonzero")


def test_grey_annotations_of_saliency_sets_count_above_128(tmp_path):
    path = written(tmp_path / "a.png", RAMP * 10)
    np.testing.assert_array_equal(masks.annotation((path,), "above_128"), RAMP * 10 > 128)
    path = written(tmp_path / "b.png", RAMP % 2)  # stored as 0/1
    np.testing.assert_array_equal(masks.annotation((path,), "above_128"), RAMP % 2 == 1)

"""The data contract: what is accepted, and one clear sentence for every violation."""

import numpy as np
import pytest

from uvos_jax.data.schema import FIELDS, validate_example
from uvos_jax.errors import DataError, ShapeError

T, H, W = 3, 4, 6


def example(**changes):
    made = {
        "frames": np.zeros((T, H, W, 3), np.uint8),
        "masks": np.zeros((T, H, W), np.uint8),
        "valid": np.ones(T, bool),
        "has_mask": np.ones(T, bool),
        "flow": np.zeros((T, H, W, 2), np.float32),
        "flow_valid": np.ones(T, bool),
        "edges": np.zeros((T, H, W), np.uint8),
        "fixations": np.zeros((T, H, W), np.float32),
        "depth": np.ones((T, H, W), np.float32),
        "camera": np.zeros((T, 3, 4), np.float32),
        "camera_valid": np.ones(T, bool),
        "intrinsics": np.ones(4, np.float32),
        "example_id": np.int32(5),
    }
    return made | changes


def test_an_example_with_every_field_is_accepted():
    assert set(example()) == set(FIELDS)
    validate_example(example(), require=tuple(FIELDS))


def test_a_still_image_is_a_clip_of_one_frame():
    validate_example({"frames": np.zeros((1, 1, 1, 3), np.uint8)})


@pytest.mark.parametrize("key", sorted(FIELDS))
def test_a_missing_required_key_is_named(key):
    lacking = example()
    del lacking[key]
    with pytest.raises(DataError, match=f"clip 7 lacks '{key}'.*must provide it"):
        validate_example(lacking, require=tuple(FIELDS), name="clip 7")


def test_an_unknown_key_is_named_with_the_known_ones():
    with pytest.raises(DataError, match=r"unknown key 'mask': known are .*'masks'"):
        validate_example(example(mask=np.zeros((T, H, W), np.uint8)))


@pytest.mark.parametrize("key", sorted(FIELDS))
def test_a_wrong_dtype_is_named_with_the_expected_one(key):
    wrong = np.asarray(example()[key]).astype(np.float64)
    with pytest.raises(ShapeError, match=f"{key} must be .*, got float64.*range") as caught:
        validate_example(example(**{key: wrong}))
    assert np.dtype(FIELDS[key][0]).name in str(caught.value)


@pytest.mark.parametrize("key", sorted(FIELDS))
def test_a_wrong_rank_is_named_with_the_expected_axes(key):
    wrong = np.asarray(example()[key])[None]
    axes = ",".join(FIELDS[key][1])
    with pytest.raises(ShapeError, match=rf"{key} must have shape \[{axes}\], got \(1,"):
        validate_example(example(**{key: wrong}))


@pytest.mark.parametrize("key", sorted(set(FIELDS) - {"frames", "intrinsics", "example_id"}))
def test_another_number_of_frames_names_both_fields(key):
    longer = np.repeat(np.asarray(example()[key]), 2, axis=0)
    with pytest.raises(ShapeError, match=rf"{key} has T=6 .*but frames has T=3"):
        validate_example(example(**{key: longer}))


@pytest.mark.parametrize("key", ["masks", "flow", "edges", "fixations"])
@pytest.mark.parametrize(("axis", "letter"), [(1, "H"), (2, "W")])
def test_another_image_size_names_the_axis(key, axis, letter):
    larger = np.repeat(example()[key], 2, axis=axis)
    with pytest.raises(ShapeError, match=rf"{key} has {letter}="):
        validate_example(example(**{key: larger}))


@pytest.mark.parametrize(("key", "channels"), [("frames", 4), ("frames", 1), ("flow", 3)])
def test_a_wrong_number_of_channels_is_named(key, channels):
    wrong = np.zeros((T, H, W, channels), FIELDS[key][0])
    with pytest.raises(
        ShapeError, match=rf"{key} must have (2 or )?\d channels last, got \(3, 4, 6, "
    ):
        validate_example(example(**{key: wrong}))


@pytest.mark.parametrize("shape", [(0, H, W, 3), (T, 0, W, 3), (T, H, 0, 3)])
def test_empty_frames_are_refused(shape):
    with pytest.raises(ShapeError, match="frames are empty, shape"):
        validate_example({"frames": np.zeros(shape, np.uint8)})


def test_messages_are_one_line():
    with pytest.raises(ShapeError) as caught:
        validate_example(example(masks=np.zeros((T, H, W), np.int64)))
    assert "\n" not in str(caught.value)

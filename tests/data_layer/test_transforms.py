"""Cropping, scaling and flipping move image, mask and flow together."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from uvos_jax.data.schema import validate_example
from uvos_jax.data.transforms import (
    Augment,
    crop_resize,
    flip_frame,
    resize_example,
    resize_flow,
    resize_image,
    resize_labels,
)
from uvos_jax.errors import ConfigError

H, W = 48, 64


# ----- a scene in which every point's motion is known --------------------------------------------


def texture(x, y):
    """Smooth colours over the plane, 20..235."""
    waves = [np.sin(x / 7 + 1), np.cos(y / 6), np.sin((x + y) / 9)]
    return np.stack([128 + 100 * w for w in waves], -1)


def inside(x, y):
    return np.hypot(x - 30, y - 22) < 11


def moving(motion=(3.0, -2.0), zoom=1.0):
    """Two frames: a point p of the first is at `zoom (p - c) + c + motion` in the second."""
    y, x = np.mgrid[:H, :W].astype(float)
    cx, cy = W / 2, H / 2
    x1, y1 = zoom * (x - cx) + cx + motion[0], zoom * (y - cy) + cy + motion[1]
    back_x, back_y = (x - motion[0] - cx) / zoom + cx, (y - motion[1] - cy) / zoom + cy
    frames = np.stack([texture(x, y), texture(back_x, back_y)])
    return {
        "frames": np.round(frames).astype(np.uint8),
        "masks": np.stack([inside(x, y), inside(back_x, back_y)]).astype(np.uint8),
        "flow": np.stack([np.stack([x1 - x, y1 - y], -1), np.zeros((H, W, 2))]).astype(np.float32),
        "flow_valid": np.array([True, False]),
        "valid": np.ones(2, bool),
        "has_mask": np.ones(2, bool),
        "edges": np.zeros((2, H, W), np.uint8),
        "fixations": np.stack([np.exp(-((x - 30) ** 2) / 50)] * 2).astype(np.float32),
        "example_id": np.int32(3),
    }


def follow(example):
    """Differences between the first frame and what the flow finds in the second one.

    Returns colour errors and label disagreements where the target lies within the frame.
    """
    frames, flow = example["frames"].astype(float), example["flow"][0]
    h, w = frames.shape[1:3]
    y, x = np.mgrid[:h, :w]
    tx, ty = x + flow[..., 0], y + flow[..., 1]
    ok = (tx >= 0) & (tx <= w - 1) & (ty >= 0) & (ty <= h - 1)
    tx, ty = tx[ok], ty[ok]
    x0 = np.clip(np.floor(tx).astype(int), 0, w - 2)
    y0 = np.clip(np.floor(ty).astype(int), 0, h - 2)
    fx, fy = (tx - x0)[:, None], (ty - y0)[:, None]
    f = frames[1]
    found = (f[y0, x0] * (1 - fx) + f[y0, x0 + 1] * fx) * (1 - fy) + (
        f[y0 + 1, x0] * (1 - fx) + f[y0 + 1, x0 + 1] * fx
    ) * fy
    colour = np.abs(found - frames[0][ok])
    label = example["masks"][1][np.round(ty).astype(int), np.round(tx).astype(int)]
    return colour, label != example["masks"][0][ok]


def test_the_scene_itself_is_consistent():
    colour, wrong = follow(moving())
    assert colour.max() <= 1
    assert not wrong.any()


ranges = st.tuples(st.floats(0.4, 1.0), st.floats(0.4, 1.0)).map(sorted).map(tuple)


@settings(max_examples=40, deadline=None)
@given(
    motion=st.tuples(st.floats(-6, 6), st.floats(-6, 6)),
    zoom=st.floats(0.9, 1.1),
    size=st.tuples(st.integers(30, 90), st.integers(30, 90)),
    crop=ranges,
    flip=st.sampled_from([0.0, 1.0]),
    scale=st.sampled_from([(1.0, 1.0), (0.8, 1.5)]),
    seed=st.integers(0, 2**31),
)
def test_image_mask_and_flow_stay_consistent(motion, zoom, size, crop, flip, scale, seed):
    """The flow of the result leads from its first frame to the same colour in its second."""
    example = moving(motion, zoom)
    augment = Augment(size=size, flip=flip, crop=crop, scale=scale)
    result = augment(example, np.random.default_rng(seed))
    validate_example(result)
    assert result["frames"].shape == (2, *size, 3)
    colour, wrong = follow(result)
    # Two resizes of a texture with a wavelength of 38 pixels: a few grey levels.
    assert np.mean(colour) < 3.5
    assert np.quantile(colour, 0.95) < 14
    # Labels round to pixels twice: only the outline of the disc may disagree.
    assert np.mean(wrong) < 0.08
    # The same flow with a wrong sign or scale would fail: it has to be the best one.
    if np.hypot(*motion) > 3 and len(colour) > 200:
        for factor in ([-1, 1], [1, -1], [2, 2], [0, 0]):
            spoilt = result | {"flow": result["flow"] * np.asarray(factor, np.float32)}
            moved = np.abs((spoilt["flow"] - result["flow"])[0]).mean()
            other = follow(spoilt)[0]
            if moved > 3 and len(other) > 200:
                assert np.mean(other) > np.mean(colour)


@pytest.mark.parametrize(
    ("size", "box", "flip", "expected"),
    [
        ((48, 64), (0, 0, 48, 64), False, (3, -2)),
        ((96, 128), (0, 0, 48, 64), False, (6, -4)),
        ((24, 128), (0, 0, 48, 64), False, (6, -1)),
        ((48, 64), (0, 0, 24, 32), False, (6, -4)),
        ((48, 64), (10, 20, 24, 16), True, (-12, -4)),
    ],
)
def test_flow_is_in_pixels_of_the_result(size, box, flip, expected):
    frame = crop_resize(moving((3, -2)), 0, box, size)
    frame = flip_frame(frame) if flip else frame
    assert frame["flow"].shape == (*size, 2)
    np.testing.assert_allclose(frame["flow"], np.broadcast_to(expected, (*size, 2)), atol=1e-4)


def test_flow_to_both_neighbours_is_two_fields():
    one = moving((3, -2))
    two = one | {"flow": np.concatenate([one["flow"], -one["flow"]], -1)}
    for box, size in (((0, 0, 48, 64), (24, 128)), ((10, 20, 24, 16), (48, 64))):
        alone, both = (flip_frame(crop_resize(x, 0, box, size)) for x in (one, two))
        np.testing.assert_array_equal(both["flow"][..., :2], alone["flow"])
        np.testing.assert_allclose(both["flow"][..., 2:], -alone["flow"], atol=1e-5)


def test_flipping_twice_is_the_identity():
    frame = crop_resize(moving(), 0, (3, 5, 30, 40), (33, 47))
    twice = flip_frame(flip_frame(frame))
    for key in frame:
        assert (twice[key] == frame[key]).all(), key


def test_a_flip_mirrors_every_map():
    frame = crop_resize(moving((3, 1)), 0, (0, 0, H, W), (H, W))
    flipped = flip_frame(frame)
    for key in ("frames", "masks", "edges", "fixations"):
        assert (flipped[key] == frame[key][:, ::-1]).all()
    assert (flipped["flow"] == frame["flow"][:, ::-1] * [-1, 1]).all()


# ----- resizing against loops --------------------------------------------------------------------


def bilinear(image, size):
    """Sampling at pixel centres, one output value at a time."""
    image = image.astype(float)
    (h, w), (n, m) = image.shape[:2], size
    out = np.zeros((n, m, *image.shape[2:]))
    for i in range(n):
        for j in range(m):
            y = min(max((i + 0.5) * h / n - 0.5, 0), h - 1)
            x = min(max((j + 0.5) * w / m - 0.5, 0), w - 1)
            for yy, wy in ((int(y), 1 - y % 1), (min(int(y) + 1, h - 1), y % 1)):
                for xx, wx in ((int(x), 1 - x % 1), (min(int(x) + 1, w - 1), x % 1)):
                    out[i, j] += wy * wx * image[yy, xx]
    return out


@pytest.mark.parametrize("size", [(7, 9), (13, 5), (1, 1), (14, 18), (3, 20)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_resizing_equals_a_loop(rng, size, dtype):
    image = rng.integers(0, 256, (7, 9, 3)).astype(dtype)
    expected = bilinear(image, size)
    result = resize_image(image, size)
    assert result.dtype == dtype
    assert np.abs(result - expected).max() <= (0.5001 if dtype == np.uint8 else 1e-3)


@pytest.mark.parametrize("size", [(7, 9), (13, 5), (1, 1), (14, 18), (3, 20)])
def test_labels_take_the_pixel_at_floor(rng, size):
    labels = rng.integers(0, 256, (7, 9)).astype(np.uint8)
    result = resize_labels(labels, size)
    for i in range(size[0]):
        for j in range(size[1]):
            assert result[i, j] == labels[i * 7 // size[0], j * 9 // size[1]]


def test_resizing_invents_no_label(rng):
    labels = rng.choice([0, 3, 255], (17, 23)).astype(np.uint8)
    assert set(np.unique(resize_labels(labels, (31, 11)))) <= {0, 3, 255}


def test_a_flow_keeps_pointing_at_the_same_place_when_resized():
    flow = np.full((10, 20, 2), (4.0, -3.0), np.float32)
    np.testing.assert_allclose(resize_flow(flow, (5, 60)), np.full((5, 60, 2), (12, -1.5)))
    assert resize_flow(flow, (10, 20)) is flow


# ----- the augmentation as a whole ---------------------------------------------------------------


def test_without_ranges_only_the_size_changes():
    example = moving()
    result = Augment(size=(H, W))(example, np.random.default_rng(0))
    for key in example:
        assert (result[key] == example[key]).all(), key
    assert set(result) == set(example)


def test_the_same_generator_gives_the_same_example():
    augment = Augment((30, 40), flip=0.5, crop=(0.5, 1.0), scale=(0.7, 1.3))
    one, two = (augment(moving(), np.random.default_rng(11)) for _ in range(2))
    assert all((one[k] == two[k]).all() for k in one)


def test_the_input_is_not_changed():
    example = moving()
    copy = {k: np.copy(v) for k, v in example.items()}
    Augment((30, 40), flip=1.0, crop=(0.5, 0.9))(example, np.random.default_rng(0))
    assert all((example[k] == copy[k]).all() for k in copy)


def test_frames_of_a_clip_share_one_window_unless_independent():
    still = moving((0, 0))
    shared = Augment((H, W), flip=0.5, crop=(0.4, 0.9))
    result = shared(still, np.random.default_rng(1))
    assert (result["frames"][0] == result["frames"][1]).all()
    alone = dataclasses.replace(shared, independent=True)
    result = alone(still, np.random.default_rng(1))
    assert (result["frames"][0] != result["frames"][1]).any()
    assert (result["masks"][0] != result["masks"][1]).any()


def test_independent_windows_drop_the_flow_they_would_break():
    result = Augment((H, W), independent=True)(moving(), np.random.default_rng(0))
    assert not {"flow", "flow_valid"} & set(result)


def test_half_of_the_examples_are_flipped_and_crops_fill_their_range():
    augment = Augment((H, W), flip=0.5, crop=(0.5, 0.75))
    draws = [augment._draw(np.random.default_rng(k), 100, 200) for k in range(400)]
    assert 0.4 < np.mean([flip for *_, flip in draws]) < 0.6
    heights = np.array([box[2] for box, *_ in draws])
    assert 50 <= heights.min() < 53
    assert 72 < heights.max() <= 75
    assert all(y + h <= 100 and x + w <= 200 and min(y, x) >= 0 for (y, x, h, w), *_ in draws)


def test_a_still_of_one_pixel_survives():
    tiny = {"frames": np.full((1, 1, 1, 3), 9, np.uint8), "masks": np.ones((1, 1, 1), np.uint8)}
    result = Augment((5, 6), crop=(0.1, 0.2), scale=(0.5, 2.0))(tiny, np.random.default_rng(0))
    assert (result["frames"] == 9).all()
    assert result["masks"].shape == (1, 5, 6)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("crop", (0.0, 1.0), r"data\.augment\.crop must be a range within \(0, 1\]"),
        ("crop", (0.9, 0.5), r"data\.augment\.crop"),
        ("crop", (0.5, 1.5), r"data\.augment\.crop"),
        ("scale", (0.0, 1.0), r"data\.augment\.scale must be a positive range"),
        ("scale", (2.0, 1.0), r"data\.augment\.scale"),
        ("flip", 1.5, r"data\.augment\.flip must be a probability"),
        ("size", (0, 5), r"data\.size must be two positive numbers \(height, width\)"),
        ("size", (5,), r"data\.size must be two positive numbers"),
    ],
)
def test_impossible_settings_are_named_as_in_the_configuration(field, value, words):
    with pytest.raises(ConfigError, match=words):
        Augment(**{"size": (4, 4), field: value})


def test_settings_come_from_the_data_section():
    data = ConfigDict({"size": (4, 5), "augment": {"flip": 0.25, "crop": (0.5, 1.0)}})
    assert Augment.from_config(data) == Augment((4, 5), flip=0.25, crop=(0.5, 1.0))


def test_an_unknown_augmentation_is_refused():
    data = ConfigDict({"size": (4, 5), "augment": {"flipp": 0.25}})
    with pytest.raises(ConfigError, match=r"data\.augment has no 'flipp'.*crop, flip, independent"):
        Augment.from_config(data)


# ----- whole clips -------------------------------------------------------------------------------


def test_a_whole_clip_is_resized_with_its_flow():
    result = resize_example(moving((4, 2)), (24, 32))
    validate_example(result)
    assert (result["valid"] == [True, True]).all()
    np.testing.assert_allclose(result["flow"][0], np.full((24, 32, 2), (2, 1)), atol=1e-4)
    example = moving()
    assert resize_example(example, (H, W)) is example

"""Reading and writing single images: every kind of file a user brings, and every damage."""

import io

import numpy as np
import pytest
from PIL import Image

from uvos_jax.data.palette import davis_palette
from uvos_jax.data.video_io import (
    list_images,
    natural_key,
    read_image,
    read_mask,
    write_label_png,
    write_probability_png,
)
from uvos_jax.errors import DataError, ShapeError

GREY = np.arange(7 * 5, dtype=np.uint8).reshape(7, 5) * 7


def saved(tmp_path, image, name="x.png", **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


# ----- frames -----------------------------------------------------------------------------------


def test_grey_images_are_repeated_over_the_channels(tmp_path):
    frame = read_image(saved(tmp_path, Image.fromarray(GREY)))
    assert frame.dtype == np.uint8
    assert (frame == GREY[..., None]).all()
    assert frame.shape == (7, 5, 3)


def test_alpha_is_dropped_and_colours_kept_under_it(tmp_path, rng):
    colours = rng.integers(0, 256, (6, 9, 4)).astype(np.uint8)
    assert (read_image(saved(tmp_path, Image.fromarray(colours))) == colours[..., :3]).all()


def test_grey_with_alpha_is_grey(tmp_path):
    image = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(255 - GREY)])
    assert (read_image(saved(tmp_path, image)) == GREY[..., None]).all()


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_are_scaled_to_eight(tmp_path, suffix):
    deep = GREY.astype(np.uint16) * 257
    frame = read_image(saved(tmp_path, Image.fromarray(deep), f"x{suffix}"))
    assert (frame == GREY[..., None]).all()


def test_palettes_are_looked_up(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [2, 3]], np.uint8))
    image.putpalette(davis_palette().tobytes())
    frame = read_image(saved(tmp_path, image))
    assert (frame == davis_palette()[[[0, 1], [2, 3]]]).all()


def test_cmyk_jpegs_become_rgb(tmp_path):
    path = saved(tmp_path, Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "x.jpg")
    red = read_image(path)[0, 0]
    assert red[0] > 200
    assert max(red[1:]) < 60


def test_floating_point_images_are_refused(tmp_path):
    path = saved(tmp_path, Image.fromarray(GREY.astype(np.float32)), "x.tif")
    with pytest.raises(DataError, match=r"x\.tif holds floating-point values: .*convert it"):
        read_image(path)


def test_a_huge_image_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match=r"frame .*x\.png is too large.*scale it down"):
        read_image(saved(tmp_path, Image.fromarray(GREY)))


@pytest.mark.parametrize("read", [read_image, read_mask])
def test_a_missing_file_is_a_sentence(tmp_path, read):
    with pytest.raises(DataError, match=r"no\.png does not exist"):
        read(tmp_path / "no.png")


@pytest.mark.parametrize("read", [read_image, read_mask])
@pytest.mark.parametrize("content", [b"", b"not an image at all"])
def test_a_file_that_is_no_image_is_a_sentence(tmp_path, read, content):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.png cannot be decoded: it is no image; replace"):
        read(tmp_path / "x.png")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "PPM", "BMP", "WEBP", "GIF"])
def test_damage_anywhere_is_an_error_of_ours_or_still_an_image(tmp_path, rng, format):
    """Whatever byte is cut or flipped, no exception of the decoder reaches the user."""
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (16, 20, 3)).astype(np.uint8)).save(buffer, format)
    whole = buffer.getvalue()
    path = tmp_path / "x.png"
    messages = []
    for trial in range(60):
        data = bytearray(whole)
        if trial % 2:
            data = data[: int(rng.integers(1, len(whole)))]
        else:
            for position in rng.integers(0, min(len(whole), 200), 4):
                data[position] = rng.integers(256)
        path.write_bytes(data)
        for read in (read_image, read_mask):
            try:
                read(path)
            except DataError as error:
                messages.append(str(error))
    assert len(messages) > 10
    assert all(str(path) in message and "\n" not in message for message in messages)


# ----- masks ------------------------------------------------------------------------------------


def test_palette_masks_give_ids_not_colours(tmp_path):
    ids = np.array([[0, 1, 2], [3, 20, 255]], np.uint8)
    write_label_png(tmp_path / "m.png", ids)
    assert (read_mask(tmp_path / "m.png") == ids).all()
    with Image.open(tmp_path / "m.png") as image:
        assert image.mode == "P"
        assert (np.asarray(image.convert("RGB")) == davis_palette()[ids]).all()


def test_one_bit_masks_become_0_and_255(tmp_path):
    path = saved(tmp_path, Image.fromarray(GREY > 100))
    assert (read_mask(path) == (GREY > 100) * 255).all()


def test_sixteen_bit_masks_are_ids_if_they_fit(tmp_path):
    path = saved(tmp_path, Image.fromarray(GREY.astype(np.uint16)))
    assert read_mask(path).dtype == np.uint8
    assert (read_mask(path) == GREY).all()
    path = saved(tmp_path, Image.fromarray(GREY.astype(np.uint16) + 300))
    with pytest.raises(DataError, match="16-bit with values up to 538: expected 8-bit ids"):
        read_mask(path)


def test_grey_saved_with_three_channels_is_its_level(tmp_path):
    path = saved(tmp_path, Image.fromarray(np.repeat(GREY[..., None], 3, -1)))
    assert (read_mask(path) == GREY).all()


@pytest.mark.parametrize(
    ("mode", "channels"), [("RGB", "R, G, B"), ("RGBA", "R, G, B, A"), ("LA", "L, A"), ("F", "F")]
)
def test_colour_alpha_and_float_masks_are_refused(tmp_path, mode, channels):
    image = Image.new(mode, (4, 3), 0 if mode == "F" else tuple(range(1, 1 + len(mode))))
    path = saved(tmp_path, image, "m.tif")
    with pytest.raises(DataError, match=rf"mode {mode} \(channels {channels}\).*one channel"):
        read_mask(path)


# ----- writing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (480, 854)])
def test_labels_survive_a_round_trip_at_any_size_and_layout(tmp_path, rng, size):
    labels = rng.integers(0, 256, size).astype(np.uint8)
    for array in (labels, np.asfortranarray(labels), labels[::-1, ::-1]):
        write_label_png(tmp_path / "sub" / "m.png", array)
        assert (read_mask(tmp_path / "sub" / "m.png") == array).all()


def test_probabilities_are_rounded_to_255_levels(tmp_path):
    probs = np.array([[0.0, 0.5, 1.0], [-0.1, 1.2, 0.002]], np.float32)
    write_probability_png(tmp_path / "p.png", probs)
    assert (read_mask(tmp_path / "p.png") == [[0, 128, 255], [0, 255, 1]]).all()


@pytest.mark.parametrize(
    "labels",
    [np.zeros((3, 4), np.int32), np.zeros((3, 4), bool), np.zeros((1, 3, 4), np.uint8)],
)
def test_labels_of_another_kind_are_refused(tmp_path, labels):
    with pytest.raises(ShapeError, match=r"labels must be uint8 \[H,W\], got"):
        write_label_png(tmp_path / "m.png", labels)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "probs", [np.zeros((3, 4), np.uint8), np.zeros((3, 4, 1), np.float32), np.zeros(3)]
)
def test_probabilities_of_another_kind_are_refused(tmp_path, probs):
    with pytest.raises(ShapeError, match=r"probabilities must be float \[H,W\], got"):
        write_probability_png(tmp_path / "p.png", probs)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_probabilities_that_are_no_numbers_are_refused(tmp_path, bad):
    with pytest.raises(DataError, match="hold NaN or infinite values"):
        write_probability_png(tmp_path / "p.png", np.full((2, 2), bad))
    assert not list(tmp_path.iterdir())


# ----- order of files ---------------------------------------------------------------------------


def test_frames_are_listed_in_natural_order_without_hidden_and_foreign_files(tmp_path):
    for name in ("f10.png", "f9.png", "f1.JPG", ".f0.png", "notes.txt", "F2.png", "f²3.png"):
        (tmp_path / name).touch()
    names = [p.name for p in list_images(tmp_path)]
    assert names == ["F2.png", "f1.JPG", "f9.png", "f10.png", "f²3.png"]


def test_names_that_count_the_same_still_have_one_order(tmp_path):
    paths = [tmp_path / n for n in ("1.png", "01.png", "001.png")]
    other_order = [paths[k] for k in (2, 0, 1)]
    assert sorted(paths, key=natural_key) == sorted(other_order, key=natural_key)

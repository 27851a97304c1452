"""`uvos crf` on folders of probability maps."""

import numpy as np
import pytest
from PIL import Image

from uvos_jax.cli.main import main
from uvos_jax.data.video_io import read_mask, write_label_png, write_probability_png
from uvos_jax.ops.crf import dense_crf

H, W = 13, 15


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Two frames and their maps: `frames/clip/*.png`, `probs/clip/*.png`."""
    root = tmp_path_factory.mktemp("crf")
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 60, (2, H, W, 3)).astype(np.uint8)
    frames[:, 4:9, 5:11] += 150
    probs = np.full((2, H, W), 0.2, np.float32)
    probs[:, 3:8, 5:11] = 0.8
    (root / "frames" / "clip").mkdir(parents=True)
    for i in range(2):
        Image.fromarray(frames[i]).save(root / "frames" / "clip" / f"{i:05d}.png")
        write_probability_png(root / "probs" / "clip" / f"{i:05d}.png", probs[i])
    np.savez(root / "clip.npz", probs=probs)
    return root, frames, probs


def crf(*arguments):
    return main(["crf", *map(str, arguments)])


def test_masks_of_a_folder_equal_those_of_the_function(clip, tmp_path, capsys):
    root, frames, _ = clip
    assert (
        crf(root / "probs", "--images", root / "frames", "--out", tmp_path, "--save", "probs") == 0
    )
    assert "clip: 2 masks" in capsys.readouterr().out
    for i in range(2):
        prob = read_mask(root / "probs" / "clip" / f"{i:05d}.png") / np.float32(255)
        expected = np.asarray(dense_crf(frames[i], prob, preset="cosnet"))
        np.testing.assert_array_equal(read_mask(tmp_path / "clip" / f"{i:05d}.png"), expected > 0.5)
        saved = read_mask(tmp_path / "probs" / "clip" / f"{i:05d}.png")
        np.testing.assert_array_equal(saved, np.round(expected * 255))


def test_npz_maps_give_the_same_masks(clip, tmp_path):
    root, frames, probs = clip
    assert crf(root / "clip.npz", "--images", root / "frames", "--out", tmp_path) == 0
    expected = np.asarray(dense_crf(frames[1], probs[1], preset="cosnet")) > 0.5
    np.testing.assert_array_equal(read_mask(tmp_path / "clip" / "00001.png"), expected)


def refused(capsys, *arguments):
    assert crf(*arguments) == 2
    return capsys.readouterr().err


def test_user_mistakes_end_with_one_sentence_and_status_2(clip, tmp_path, capsys):
    root, _, _ = clip
    frames, out = root / "frames", tmp_path / "out"
    assert "did you mean 'matnet'" in refused(
        capsys, root / "probs", "--images", frames, "--out", out, "--preset", "matnett"
    )
    assert "does not exist" in refused(capsys, root / "no", "--images", frames, "--out", out)
    assert "holds no probability maps" in refused(
        capsys, tmp_path, "--images", frames, "--out", out
    )
    assert "no frames for sequence 'clip'" in refused(
        capsys, root / "probs", "--images", tmp_path, "--out", out
    )
    write_label_png(tmp_path / "labels" / "clip" / "00000.png", np.ones((H, W), np.uint8))
    assert "is a label map" in refused(
        capsys, tmp_path / "labels", "--images", frames, "--out", out
    )
    write_probability_png(tmp_path / "small" / "clip" / "00000.png", np.zeros((4, 4)))
    assert "resize the maps" in refused(
        capsys, tmp_path / "small", "--images", frames, "--out", out
    )
    write_probability_png(tmp_path / "foreign" / "clip" / "00099.png", np.zeros((H, W)))
    assert "1 maps without a frame" in refused(
        capsys, tmp_path / "foreign", "--images", frames, "--out", out
    )
    np.savez(tmp_path / "clip.npz", maps=np.zeros((2, H, W)))
    assert "no array 'probs'" in refused(
        capsys, tmp_path / "clip.npz", "--images", frames, "--out", out
    )
    (tmp_path / "broken" / "clip.npz").parent.mkdir()
    (tmp_path / "broken" / "clip.npz").write_bytes(b"PK")
    assert "cannot be read" in refused(
        capsys, tmp_path / "broken", "--images", frames, "--out", out
    )
    assert not out.exists() or not any(out.iterdir())

"""`uvos predict`: what it writes, and what it says about input it cannot use."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import scene, write_frames, write_mp4
from uvos_jax.cli import predict
from uvos_jax.cli.main import keep_programs
from uvos_jax.data import video_io


def visible(folder):
    """Everything below a folder that is not hidden."""
    return sorted(
        str(p.relative_to(folder))
        for p in folder.rglob("*")
        if p.is_file() and not any(part.startswith(".") for part in p.relative_to(folder).parts)
    )


def everything(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*")) if folder.exists() else []


def test_a_video_and_a_folder_become_masks_probabilities_and_overlays(
    tmp_path, weights, uvos_command
):
    video = write_mp4(tmp_path / "clip.mp4", scene(5, (36, 50)))
    folder = write_frames(tmp_path / "walk", scene(3, (36, 50)))
    out = tmp_path / "masks"
    code, text, _ = uvos_command(
        "predict", video, folder, "--weights", weights, "--out", out, "--overlay", "--save", "probs"
    )
    assert code == 0
    assert "clip: 5 masks" in text
    assert "walk: 3 masks" in text
    names = [f"clip/{t:05d}.png" for t in range(5)] + [f"walk/{t:05d}.png" for t in range(3)]
    assert visible(out) == sorted(
        [*names, *(f"probs/{n}" for n in names), "clip_overlay.mp4", "walk_overlay.mp4"]
    )
    assert len(visible(out)) == len(everything(out)) - 5  # the folders; nothing hidden is left
    label = Image.open(out / "clip/00000.png")
    assert (label.mode, label.size) == ("P", (50, 36))
    assert set(np.unique(np.asarray(label))) <= {0, 1}
    prob = np.asarray(Image.open(out / "probs/clip/00000.png"))
    assert ((prob > 127.5) == (np.asarray(label) > 0)).mean() > 0.99
    assert len(video_io.open_video(out / "walk_overlay.mp4")) == 3


@pytest.mark.parametrize("count, size", [(1, (36, 50)), (2, (51, 37)), (3, (9, 12))])
def test_short_portrait_odd_and_tiny_videos_work(tmp_path, weights, uvos_command, count, size):
    folder = write_frames(tmp_path / "v", scene(count, size))
    code, _, _ = uvos_command("predict", folder, "--weights", weights, "--out", tmp_path / "o")
    assert code == 0
    files = sorted((tmp_path / "o/v").glob("*.png"))
    assert len(files) == count
    assert all(Image.open(f).size == size[::-1] for f in files)


def test_grey_alpha_palette_and_deep_frames_are_read(tmp_path, weights, uvos_command):
    rgb = Image.fromarray(scene(1, (36, 50))[0])
    images = {
        "grey": rgb.convert("L"),
        "alpha": rgb.convert("RGBA"),
        "palette": rgb.convert("P"),
        "deep": Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257),
    }
    for name, image in images.items():
        (tmp_path / "in" / name).mkdir(parents=True)
        image.save(tmp_path / "in" / name / "00000.png")
    code, _, _ = uvos_command(
        "predict", tmp_path / "in", "--weights", weights, "--out", tmp_path / "o"
    )
    assert code == 0
    assert len(visible(tmp_path / "o")) == len(images)
    grey = Image.open(tmp_path / "o/grey/00000.png")
    deep = Image.open(tmp_path / "o/deep/00000.png")
    np.testing.assert_array_equal(np.asarray(grey), np.asarray(deep))


def test_streaming_writes_as_many_masks(tmp_path, weights, uvos_command):
    folder = write_frames(tmp_path / "v", scene(4, (36, 50)))
    code, _, _ = uvos_command(
        "predict", folder, "--weights", weights, "--out", tmp_path / "o", "--stream"
    )
    assert code == 0
    assert len(visible(tmp_path / "o")) == 4


def test_results_are_neither_replaced_nor_repeated_unasked(
    tmp_path, weights, uvos_command, refused
):
    folder = write_frames(tmp_path / "v", scene(2, (36, 50)))
    common = ("predict", folder, "--weights", weights, "--out", tmp_path / "o")
    assert uvos_command(*common)[0] == 0
    assert "exists already: use --overwrite" in refused(*common)
    code, text, _ = uvos_command(*common, "--skip-existing")
    assert code == 0
    assert "skipped" in text
    assert uvos_command(*common, "--overwrite")[0] == 0


def test_missing_weights_are_never_made_up(tmp_path, refused):
    folder = write_frames(tmp_path / "v", scene(1, (36, 50)))
    assert "--system cosnet needs --weights" in refused("predict", folder, "--system", "cosnet")
    line = refused("predict", folder, "--weights", tmp_path / "none.npz")
    assert "none.npz" in line
    assert "do not exist" in line


def test_an_unknown_system_suggests_near_names(tmp_path, refused):
    folder = write_frames(tmp_path / "v", scene(1, (36, 50)))
    assert "cosnet" in refused("predict", folder, "--system", "cosnett")


def test_an_unknown_crf_preset_lists_the_known(tmp_path, weights, refused):
    folder = write_frames(tmp_path / "v", scene(1, (36, 50)))
    line = refused("predict", folder, "--weights", weights, "--crf", "cosnut")
    assert "cosnut" in line
    assert "cosnet" in line


def damaged(kind, folder):
    """An input of the given kind of damage."""
    frames = scene(40, (36, 50))
    if kind == "missing":
        return folder / "none.mp4", "does not exist"
    if kind == "empty file":
        path = folder / "clip.mp4"
        path.write_bytes(b"")
        return path, "empty"
    if kind == "no video":
        path = folder / "clip.mp4"
        path.write_text("this is no video")
        return path, "cannot be opened"
    if kind == "truncated":
        path = write_mp4(folder / "whole.avi", frames)
        data = path.read_bytes()
        cut = folder / "cut.avi"
        cut.write_bytes(data[: len(data) // 2])
        return cut, "cut.avi"
    if kind == "empty folder":
        (folder / "v").mkdir()
        return folder / "v", "holds no frames"
    path = write_frames(folder / "v", frames[:5])
    if kind == "unreadable frame":
        (path / "00003.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
        return path, "00003.png cannot be decoded"
    Image.fromarray(frames[0][:20]).save(path / "00003.png")
    return path, "00003.png is 50x20"


@pytest.mark.parametrize(
    "kind",
    [
        "missing",
        "empty file",
        "no video",
        "truncated",
        "empty folder",
        "unreadable frame",
        "frame of another size",
    ],
)
def test_damaged_input_is_one_sentence_and_leaves_nothing(tmp_path, weights, refused, kind):
    path, reason = damaged(kind, tmp_path)
    out = tmp_path / "o"
    line = refused("predict", path, "--weights", weights, "--out", out, "--overlay")
    assert reason in line
    assert everything(out) == []


def test_a_full_disk_leaves_nothing_under_a_final_name(tmp_path, weights, refused, monkeypatch):
    folder = write_frames(tmp_path / "v", scene(5, (36, 50)))
    whole, written = Image.Image.save, []

    def save(image, path, *args, **kwargs):
        written.append(path)
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(image, path, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "save", save)
    line = refused("predict", folder, "--weights", weights, "--out", tmp_path / "o")
    assert "disk is full" in line
    assert everything(tmp_path / "o") == []


def test_two_videos_of_one_name_are_refused_before_any_work(tmp_path, weights, refused):
    a = write_frames(tmp_path / "a/v", scene(1, (36, 50)))
    b = write_frames(tmp_path / "b/v", scene(1, (36, 50)))
    line = refused("predict", a, b, "--weights", weights, "--out", tmp_path / "o")
    assert "different --out folders" in line
    assert everything(tmp_path / "o") == []


def test_a_folder_of_frames_and_masks_means_its_frames(tmp_path):
    for kind in ("frames", "masks"):
        write_frames(tmp_path / "dog" / kind, scene(2, (9, 12)))
    assert predict.expand([str(tmp_path / "dog")]) == [tmp_path / "dog" / "frames"]
    assert predict.expand([str(tmp_path)]) == [tmp_path / "dog" / "frames"]


def test_an_impossible_threshold_is_refused(tmp_path, weights, refused):
    folder = write_frames(tmp_path / "v", scene(1, (36, 50)))
    line = refused("predict", folder, "--weights", weights, "--threshold", "3")
    assert "threshold" in line
    assert "3" in line


def test_shards_and_processes_share_the_videos_of_a_corpus(
    tmp_path, weights, uvos_command, refused
):
    for i in range(5):
        write_frames(tmp_path / "corpus" / f"v{i}", scene(2, (36, 50), seed=i))
    command = ("predict", tmp_path / "corpus", "--weights", weights, "--out", tmp_path / "o")
    code, _, _ = uvos_command(*command, "--shard", "1/2")
    assert code == 0
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == ["v1", "v3"]
    first = {p: p.stat().st_mtime_ns for p in (tmp_path / "o").rglob("*.png")}
    code, _, _ = uvos_command(*command, "--skip-existing", "--processes", "2")
    assert code == 0
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == [f"v{i}" for i in range(5)]
    assert all(p.stat().st_mtime_ns == then for p, then in first.items())  # nothing done twice
    for i in range(5):
        assert len(list((tmp_path / "o" / f"v{i}").glob("*.png"))) == 2
    assert "expected I/N with 0 <= I < N" in refused(*command, "--shard", "2/2")
    assert "--processes must be at least 1, got 0" in refused(*command, "--processes", "0")


def test_videos_that_share_calls_of_the_network_get_the_same_masks(
    tmp_path, weights, uvos_command, refused
):
    for i in range(4):
        write_frames(tmp_path / "corpus" / f"v{i}", scene(2 + i, (36, 50), seed=i))
    command = ("predict", tmp_path / "corpus", "--weights", weights, "--out")
    assert uvos_command(*command, tmp_path / "alone")[0] == 0
    code, out, _ = uvos_command(*command, tmp_path / "o", "--batch", "3", "--shard", "auto")
    assert code == 0
    assert sorted(line.split(":")[0] for line in out.splitlines()) == [f"v{i}" for i in range(4)]
    for path in sorted((tmp_path / "alone").rglob("*.png")):
        assert (
            path.read_bytes()
            == (tmp_path / "o" / path.relative_to(tmp_path / "alone")).read_bytes()
        )
    assert "--batch must be at least 1, got 0" in refused(*command, tmp_path / "o", "--batch", "0")
    line = refused(*command, tmp_path / "o", "--batch", "2", "--instances")
    assert "leave it or --instances" in line
    line = refused(*command, tmp_path / "o", "--coordinator", "localhost:1", "--shard", "0/2")
    assert "give --shard auto" in line


def test_compiled_programs_are_kept_in_the_users_cache_folder_unless_told_otherwise(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "7")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    keep_programs()
    folder = Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    assert folder.parent == tmp_path / "uvos_jax"
    assert os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] == "7"
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
    keep_programs()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "elsewhere"

"""Writing is all or nothing: a full disk or a crash leaves no half file under a final name."""

# ruff: noqa: PT012  (the context managers under test are entered inside `raises`)
import errno
import os
import stat

import numpy as np
import pytest
from PIL import Image

from tests.data_layer.media import noise, ramp
from uvos_jax.data import video_io
from uvos_jax.data.video_io import (
    VideoWriter,
    atomic_write,
    open_video,
    read_mask,
    write_label_png,
    write_probability_png,
)
from uvos_jax.errors import DataError, ShapeError

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def left(folder):
    return sorted(p.name for p in folder.rglob("*"))


# ----- atomic_write -----------------------------------------------------------------------------


def test_a_file_appears_when_it_is_complete(tmp_path):
    target = tmp_path / "a" / "b" / "x.bin"
    with atomic_write(target) as temporary:
        temporary.write_bytes(b"half")
        assert not target.exists()
        assert temporary.parent == target.parent  # a rename within one file system
        assert temporary.name.startswith(".")
    assert target.read_bytes() == b"half"
    assert stat.S_IMODE(target.stat().st_mode) == 0o644
    assert left(tmp_path) == ["a", "b", "x.bin"]


@pytest.mark.parametrize("error", [RuntimeError("defect"), KeyboardInterrupt()])
def test_any_interruption_leaves_the_old_file_as_it_was(tmp_path, error):
    target = tmp_path / "x.bin"
    target.write_bytes(b"old")
    with pytest.raises(type(error)), atomic_write(target) as temporary:
        temporary.write_bytes(b"new, but incompl")
        raise error
    assert target.read_bytes() == b"old"
    assert left(tmp_path) == ["x.bin"]


def test_a_full_disk_is_a_sentence_and_leaves_nothing(tmp_path):
    with (
        pytest.raises(DataError, match=r"cannot write .*x\.bin: the disk is full; free some space"),
        atomic_write(tmp_path / "x.bin") as temporary,
    ):
        temporary.write_bytes(b"part")
        raise FULL
    assert left(tmp_path) == []


def test_a_quota_counts_as_a_full_disk(tmp_path):
    with (
        pytest.raises(DataError, match="the disk is full"),
        atomic_write(tmp_path / "x.bin"),
    ):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")


def test_a_full_disk_when_the_temporary_file_is_made(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise FULL

    monkeypatch.setattr(video_io.tempfile, "mkstemp", refuse)
    with pytest.raises(DataError, match="the disk is full"):
        write_label_png(tmp_path / "m.png", np.zeros((2, 2), np.uint8))
    assert left(tmp_path) == []


def test_a_name_that_is_a_folder_is_a_sentence(tmp_path):
    (tmp_path / "x.png").mkdir()
    with pytest.raises(DataError, match=r"cannot write .*x\.png: Is a directory"):
        write_label_png(tmp_path / "x.png", np.zeros((2, 2), np.uint8))
    assert left(tmp_path) == ["x.png"]


def test_a_parent_that_is_a_file_is_a_sentence(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(DataError, match=r"cannot write .*(Not a directory|File exists)"):
        write_label_png(tmp_path / "out" / "m.png", np.zeros((2, 2), np.uint8))


# ----- masks on a full disk ---------------------------------------------------------------------


@pytest.fixture
def full_disk(monkeypatch):
    """Pillow writes some bytes, then the disk is full."""

    def save(self, path, *args, **kwargs):
        with open(path, "wb") as file:
            file.write(b"\x89PNG half a pic")
        raise FULL

    monkeypatch.setattr(Image.Image, "save", save)


@pytest.mark.parametrize(
    ("write", "values"),
    [
        (write_label_png, np.ones((4, 5), np.uint8)),
        (write_probability_png, np.ones((4, 5), np.float32)),
    ],
)
def test_masks_on_a_full_disk(tmp_path, full_disk, write, values):
    with pytest.raises(DataError, match=r"cannot write .*00003\.png: the disk is full") as caught:
        write(tmp_path / "seq" / "00003.png", values)
    assert "\n" not in str(caught.value)
    assert left(tmp_path) == ["seq"]


def test_masks_written_before_the_disk_was_full_stay_whole(tmp_path, monkeypatch):
    labels = np.ones((4, 5), np.uint8)
    write_label_png(tmp_path / "00000.png", labels)
    monkeypatch.setattr(Image.Image, "save", lambda *_, **__: (_ for _ in ()).throw(FULL))
    for name in ("00000.png", "00001.png"):
        with pytest.raises(DataError):
            write_label_png(tmp_path / name, labels * 7)
    assert left(tmp_path) == ["00000.png"]
    assert (read_mask(tmp_path / "00000.png") == labels).all()


# ----- videos -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(32, 48), (33, 47), (1, 1)])
def test_a_written_video_reads_back(tmp_path, size):
    frames = ramp(8, size)
    with VideoWriter(tmp_path / "x.mp4", fps=12.5) as writer:
        for frame in frames:
            writer.write(frame)
    video = open_video(tmp_path / "x.mp4")
    H, W = size
    assert video.size == (H + H % 2, W + W % 2)
    assert video.fps == pytest.approx(12.5)
    decoded = np.stack(list(video))
    assert len(decoded) == 8
    assert np.abs(decoded[:, :H, :W].astype(int) - frames).max() < 12
    assert left(tmp_path) == ["x.mp4"]


def test_a_video_that_is_given_up_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), VideoWriter(tmp_path / "x.mp4") as writer:
        writer.write(noise(1)[0])
        raise RuntimeError("the network failed")
    assert left(tmp_path) == []


def test_a_video_without_frames_is_a_sentence(tmp_path):
    with pytest.raises(DataError, match=r"cannot write .*x\.mp4: no frame was given"):
        with VideoWriter(tmp_path / "x.mp4"):
            pass
    assert left(tmp_path) == []


@pytest.mark.parametrize("step", ["open", "mux", "encode", "close"])
def test_a_video_on_a_full_disk_is_a_sentence_and_leaves_nothing(tmp_path, monkeypatch, step):
    import av

    class Failing:
        """A container that is full at one step of writing."""

        def __init__(self, container):
            self._container = container

        def add_stream(self, *args, **kwargs):
            self._stream = self._container.add_stream(*args, **kwargs)
            return self if step == "encode" else self._stream

        def __setattr__(self, name, value):
            if name in ("width", "height", "pix_fmt", "options"):
                setattr(self._stream, name, value)
            else:
                object.__setattr__(self, name, value)

        def encode(self, picture=None):
            if picture is None:
                raise FULL
            return self._stream.encode(picture)

        def mux(self, packet):
            if step == "mux":
                raise FULL
            self._container.mux(packet)

        def close(self):
            self._container.close()
            if step == "close":
                raise FULL

    real = av.open

    def opened(*args, **kwargs):
        if step == "open":
            raise FULL
        return Failing(real(*args, **kwargs))

    monkeypatch.setattr(av, "open", opened)
    with pytest.raises(DataError, match=r"cannot write .*x\.mp4: the disk is full"):
        with VideoWriter(tmp_path / "x.mp4") as writer:
            for frame in noise(3):
                writer.write(frame)
    assert left(tmp_path) == []


def test_frames_of_another_size_or_kind_are_refused(tmp_path):
    with pytest.raises(ShapeError, match=r"x\.mp4 is 32x20, the first was 32x24"):
        with VideoWriter(tmp_path / "x.mp4") as writer:
            writer.write(noise(1)[0])
            writer.write(noise(1, (20, 32))[0])
    with pytest.raises(ShapeError, match=r"must be uint8 \[H,W,3\], got float32 \(4, 4, 3\)"):
        with VideoWriter(tmp_path / "x.mp4") as writer:
            writer.write(np.zeros((4, 4, 3), np.float32))
    assert left(tmp_path) == []


@pytest.mark.parametrize("fps", [0, -1, float("nan")])
def test_an_impossible_frame_rate_is_refused(tmp_path, fps):
    with pytest.raises(DataError, match="frames per second must be positive"):
        VideoWriter(tmp_path / "x.mp4", fps=fps)

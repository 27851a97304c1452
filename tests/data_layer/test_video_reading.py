"""Reading videos: files, folders and arrays give the same frames, lazily, or one clear sentence."""

import tracemalloc

import av
import numpy as np
import psutil
import pytest
from PIL import Image

from tests.data_layer.media import noise, ramp, write_frames, write_video
from uvos_jax.data import video_io
from uvos_jax.data.video_io import FileVideo, open_video
from uvos_jax.errors import DataError, ShapeError

LOSSLESS = {
    "x.mp4": {"codec": "libx264rgb", "pix_fmt": "rgb24"},
    "x.mkv": {"codec": "ffv1", "pix_fmt": "bgr0"},
    "x.avi": {"codec": "ffv1", "pix_fmt": "bgr0"},
    "x.mov": {"codec": "png", "pix_fmt": "rgb24"},
}
LOSSY = {
    "x.mp4": {"codec": "libx264", "pix_fmt": "yuv420p"},
    "x.avi": {"codec": "mpeg4", "pix_fmt": "yuv420p"},
    "x.webm": {"codec": "libvpx", "pix_fmt": "yuv420p"},
    "x.mpg": {"codec": "mpeg2video", "pix_fmt": "yuv420p"},
}


# ----- the same frames from every container ------------------------------------------------------


@pytest.mark.parametrize("name", sorted(LOSSLESS))
def test_lossless_files_give_the_frames_that_were_written(tmp_path, name):
    frames = noise(9, (16, 24))
    video = open_video(write_video(tmp_path / name, frames, **LOSSLESS[name]))
    assert (video.name, video.size, video.fps) == ("x", (16, 24), 25.0)
    assert video.num_frames in (9, None)
    for _ in range(2):  # re-iterable
        assert (np.stack(list(video)) == frames).all()
    assert len(video) == video.num_frames == 9
    assert video.frame_name(3) == "00003"


@pytest.mark.parametrize("name", sorted(LOSSY))
def test_lossy_files_give_about_the_frames_that_were_written(tmp_path, name):
    frames = ramp(12, (32, 48))
    video = open_video(write_video(tmp_path / name, frames, **LOSSY[name]))
    decoded = np.stack(list(video))
    assert decoded.shape == frames.shape
    assert decoded.dtype == np.uint8
    assert np.abs(decoded.astype(int) - frames).max() < 24


@pytest.mark.parametrize("size", [(17, 31), (1, 1), (33, 2)])
def test_odd_sizes_keep_every_pixel(tmp_path, size):
    frames = noise(3, size)
    video = open_video(write_video(tmp_path / "x.mkv", frames, codec="ffv1", pix_fmt="bgr0"))
    assert video.size == size
    assert (np.stack(list(video)) == frames).all()


def test_a_folder_gives_its_images_in_natural_order(tmp_path):
    frames = noise(12, (10, 14))
    folder = write_frames(tmp_path / "walk", frames, names=[f"im{k}" for k in range(12)])
    video = open_video(folder)
    assert (video.name, video.size, video.num_frames) == ("walk", (10, 14), 12)
    assert (np.stack(list(video)) == frames).all()
    assert video.frame_name(11) == "im11"


@pytest.mark.parametrize("inner", ["frames", "Imgs"])
def test_a_folder_of_frames_inside_a_sequence_bears_the_sequence_name(tmp_path, inner):
    assert open_video(write_frames(tmp_path / "dog" / inner, noise(1))).name == "dog"


def test_a_folder_mixes_grey_alpha_and_sixteen_bit_frames(tmp_path):
    level = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    rgb = np.repeat(level[..., None], 3, -1)
    kinds = [rgb, level, np.dstack([rgb, 255 - level]), level.astype(np.uint16) * 257]
    folder = write_frames(tmp_path / "mixed", kinds)
    assert all((frame == rgb).all() for frame in open_video(folder))


def test_an_array_is_a_video(rng):
    frames = noise(5)
    video = open_video(frames)
    assert (video.size, video.num_frames, video.name) == ((24, 32), 5, "video")
    assert (np.stack(list(video)) == frames).all()
    assert open_video(video) is video
    assert (np.stack(list(open_video(list(frames)))) == frames).all()


def test_a_single_image_is_a_video_of_one_frame(tmp_path):
    write_frames(tmp_path, noise(1), names=["photo"])
    video = open_video(tmp_path / "photo.png")
    assert (video.name, len(video)) == ("photo", 1)


@pytest.mark.parametrize("name", sorted(LOSSLESS))
def test_a_file_of_one_frame_is_a_video(tmp_path, name):
    frames = noise(1)
    video = open_video(write_video(tmp_path / name, frames, **LOSSLESS[name]))
    assert (np.stack(list(video)) == frames).all()


# ----- sampling ---------------------------------------------------------------------------------


def opened(kind, tmp_path, frames):
    if kind == "array":
        return open_video(frames)
    if kind == "folder":
        return open_video(write_frames(tmp_path / "f", frames))
    return open_video(write_video(tmp_path / kind, frames, **LOSSLESS[kind]))


@pytest.mark.parametrize("kind", ["array", "folder", "x.mp4", "x.mkv"])
def test_samples_come_in_the_order_asked_for(tmp_path, kind):
    frames = noise(8)
    video = opened(kind, tmp_path, frames)
    for wanted in ([5, 0, 5, 7], [3], np.array([2, 1]), []):
        sample = video.sample(wanted)
        assert sample.dtype == np.uint8
        assert (sample == frames[np.asarray(wanted, int)]).all()
        assert sample.shape == (len(wanted), 24, 32, 3)


@pytest.mark.parametrize("kind", ["array", "folder", "x.mp4", "x.mkv"])
@pytest.mark.parametrize("index", [8, -1])
def test_a_frame_that_does_not_exist_is_named(tmp_path, kind, index):
    video = opened(kind, tmp_path, noise(8))
    with pytest.raises(DataError, match=f"has no frame {index}.*count from 0"):
        video.sample([2, index])


# ----- time and rotation ------------------------------------------------------------------------


@pytest.mark.parametrize("fps", [24000 / 1001, 12.5, 60])
def test_the_frame_rate_is_read(tmp_path, fps):
    video = open_video(write_video(tmp_path / "x.mp4", noise(4), fps=fps))
    assert video.fps == pytest.approx(fps, rel=1e-3)


@pytest.mark.parametrize("name", ["x.mp4", "x.mkv"])
def test_uneven_time_stamps_change_nothing(tmp_path, name):
    """Every stored frame is given once: none is repeated to fill a pause, none counts as lost."""
    frames = noise(10)
    pts = [0, 40, 80, 120, 500, 540, 600, 2000, 2100, 5000]
    video = open_video(write_video(tmp_path / name, frames, pts=pts, **LOSSLESS[name]))
    assert (np.stack(list(video)) == frames).all()


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_a_rotation_in_the_header_is_applied(tmp_path, turns):
    """As telephones film: upright in every player, lying in the stored pixels."""
    frames = noise(3, (16, 24))
    path = write_video(tmp_path / "x.mp4", frames)
    # The display matrix of the track header turns clockwise by the angle that players apply.
    matrix = {0: (1, 0, 0, 1), 1: (0, -1, 1, 0), 2: (-1, 0, 0, -1), 3: (0, 1, -1, 0)}[turns]
    a, b, c, d = (value * 65536 for value in matrix)
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4 + 40
    fields = (a, b, 0, c, d, 0, 0, 0, 1 << 30)
    data[place : place + 36] = b"".join(f.to_bytes(4, "big", signed=True) for f in fields)
    path.write_bytes(data)
    video = open_video(path)
    assert video.size == ((24, 16) if turns % 2 else (16, 24))
    assert (np.stack(list(video)) == np.rot90(frames, turns, axes=(1, 2))).all()


def test_a_clip_trimmed_without_reencoding_is_complete(tmp_path):
    """Its header counts the frames before the cut, which no player shows."""
    whole = write_video(
        tmp_path / "whole.mp4", noise(60, (48, 64)), codec="libx264", pix_fmt="yuv420p",
        options={"g": "250", "bf": "0"},
    )  # fmt: skip
    with av.open(str(whole)) as source, av.open(str(tmp_path / "cut.mp4"), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        shift = int(30 / 25 / stream.time_base)
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                packet.stream = copy
                target.mux(packet)
    video = open_video(tmp_path / "cut.mp4")
    assert sum(1 for _ in video) == 30
    assert len(video) == 30
    assert (video.sample([29])[0] == list(open_video(whole))[59]).all()


# ----- damage -----------------------------------------------------------------------------------


def drain(path):
    for _ in open_video(path):
        pass


@pytest.mark.parametrize("name", [*sorted(LOSSLESS), "x.webm"])
def test_an_empty_file_is_a_sentence(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(DataError, match=rf"video .*{name} is empty \(0 bytes\): expected"):
        drain(tmp_path / name)


@pytest.mark.parametrize("content", [b"hello, this is a text\n" * 50, bytes(5000)])
def test_a_file_that_is_no_video_is_a_sentence(tmp_path, content):
    (tmp_path / "x.mp4").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.mp4 cannot be opened.*that FFmpeg can decode"):
        drain(tmp_path / "x.mp4")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("name", ["x.mp4", "x.avi", "x.mkv", "x.mov", "x.webm"])
def test_a_truncated_file_is_a_sentence(tmp_path, name, share):
    how = {**LOSSY, **LOSSLESS}[name]
    path = write_video(tmp_path / name, noise(60, (32, 32)), **how)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DataError, match=r"x\..* (truncated|cannot be opened|damaged|no frames)"):
        drain(path)


def test_a_truncated_file_with_its_index_in_front_is_a_sentence(tmp_path):
    path = tmp_path / "x.mp4"
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
        for frame in noise(50):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"is truncated: .*announces 2\.00 seconds|is damaged"):
        drain(path)


def test_a_file_with_sound_only_is_a_sentence(tmp_path):
    with av.open(str(tmp_path / "x.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        sound.sample_rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(DataError, match=r"x\.mp4 has no video stream"):
        drain(tmp_path / "x.mp4")


def test_a_missing_video_is_a_sentence(tmp_path):
    with pytest.raises(DataError, match=r"nothing\.mp4 does not exist: give a video file or a"):
        open_video(tmp_path / "nothing.mp4")


def test_a_folder_without_images_is_a_sentence(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match=r"holds no frames: expected images \(\.jpg"):
        open_video(tmp_path)


def test_an_unreadable_frame_is_named_when_it_is_reached(tmp_path):
    folder = write_frames(tmp_path / "v", noise(4))
    (folder / "00002.png").write_bytes(b"broken")
    frames = iter(open_video(folder))
    for _ in range(2):
        next(frames)
    with pytest.raises(DataError, match=r"00002\.png cannot be decoded"):
        next(frames)


def test_a_frame_of_another_size_is_named(tmp_path):
    folder = write_frames(tmp_path / "v", noise(3))
    Image.new("RGB", (10, 12)).save(folder / "00001.png")
    with pytest.raises(DataError, match=r"00001\.png is 10x12, but 00000\.png is 32x24"):
        drain(folder)


def test_frames_and_masks_in_one_folder_are_refused(tmp_path):
    folder = write_frames(tmp_path / "v", noise(3))
    write_frames(folder, noise(3), suffix=".jpg")
    with pytest.raises(DataError, match=r"two images of one name.*folders of their own"):
        open_video(folder)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 6, 3), np.uint8),
        np.zeros((2, 4, 6, 4), np.uint8),
        np.zeros((2, 4, 6, 3), np.float32),
        np.zeros((2, 3, 4, 6), np.uint8),
        [np.zeros((4, 6, 3), np.uint8), np.zeros((5, 6, 3), np.uint8)],
    ],
)
def test_an_array_of_another_kind_is_a_sentence(array):
    with pytest.raises(ShapeError, match=r"uint8 \[T,H,W,3\]|must have one size"):
        open_video(array)


@pytest.mark.parametrize("shape", [(0, 4, 6, 3), (2, 0, 6, 3)])
def test_an_empty_array_is_a_sentence(shape):
    with pytest.raises(DataError, match="the video array is empty"):
        open_video(np.zeros(shape, np.uint8))


# ----- laziness and memory ----------------------------------------------------------------------


def test_a_folder_is_read_one_frame_at_a_time(tmp_path, monkeypatch):
    folder = write_frames(tmp_path / "v", noise(20))
    read = []
    original = video_io.read_image
    monkeypatch.setattr(video_io, "read_image", lambda p: read.append(p) or original(p))
    frames = iter(open_video(folder))
    for _ in range(3):
        next(frames)
    assert len(read) <= 4  # the first once more, for the size


def test_a_file_is_closed_when_reading_stops_early(tmp_path):
    path = write_video(tmp_path / "x.mp4", noise(30))
    before = len(psutil.Process().open_files())
    for _ in range(5):
        frames = iter(open_video(path))
        next(frames)
        frames.close()
    assert len(psutil.Process().open_files()) == before


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_memory_does_not_grow_with_the_video(tmp_path, kind):
    """600 frames of 256x320 are 147 MB; reading them one by one takes a few at a time."""
    one = noise(1, (256, 320))[0]
    if kind == "file":
        path = write_video(
            tmp_path / "x.mp4", [one] * 600,
            codec="libx264", pix_fmt="yuv420p", options={"preset": "ultrafast"},
        )  # fmt: skip
    else:
        path = write_frames(tmp_path / "v", [one], suffix=".jpg")
        for k in range(1, 600):
            (path / f"{k:05d}.jpg").hardlink_to(path / "00000.jpg")
    video = open_video(path)
    process = psutil.Process()
    tracemalloc.start()
    resident, count = [], 0
    for _ in video:
        count += 1
        if count in (100, 600):
            resident.append(process.memory_info().rss)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 600
    assert peak < 8e6
    assert resident[1] - resident[0] < 30e6


def test_files_pickle_by_their_path(tmp_path):
    import pickle

    frames = noise(3)
    video = pickle.loads(pickle.dumps(FileVideo(write_video(tmp_path / "x.mp4", frames))))
    assert (np.stack(list(video)) == frames).all()

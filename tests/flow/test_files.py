"""Flow files: round trips, damage, folders and the sources that read them."""

import numpy as np
import pytest
from PIL import Image

from uvos_jax.data import flow_files as files
from uvos_jax.data.sources import make_source
from uvos_jax.data.sources.video import Sequence, VideoSource
from uvos_jax.errors import ConfigError, DataError, ShapeError


@pytest.fixture
def field(rng):
    return rng.normal(0, 5, (6, 9, 2)).astype(np.float32)


@pytest.mark.parametrize("format,error", [("flo", 0), ("npz", 1 / 64), ("kitti", 1 / 128)])
def test_what_is_written_is_read_back(tmp_path, field, format, error):
    path = tmp_path / f"00000{files.FORMATS[format]}"
    files.WRITERS[format](path, field)
    got = files.read_flow(path)
    assert got.dtype == np.float32
    assert np.abs(got - field).max() <= error


def test_long_vectors_keep_full_precision_in_npz(tmp_path, field):
    files.write_npz_flow(tmp_path / "a.npz", field * 50)
    np.testing.assert_array_equal(files.read_flow(tmp_path / "a.npz"), field * 50)


def test_kitti_marks_unknown_vectors_and_refuses_what_it_cannot_hold(tmp_path, field):
    field[2, 3] = files.UNKNOWN_FLOW
    files.write_kitti_flow(tmp_path / "a.png", field)
    got = files.read_flow(tmp_path / "a.png")
    assert (got[2, 3] == np.float32(files.UNKNOWN_FLOW)).all()
    assert (np.abs(got).max(-1) > 1e9).sum() == 1
    field[0, 0] = 600
    with pytest.raises(DataError, match="vectors up to 600 px do not fit KITTI's format"):
        files.write_kitti_flow(tmp_path / "b.png", field)


def test_a_flo_file_has_the_published_bytes(tmp_path):
    flow = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    files.write_flo(tmp_path / "a.flo", flow)
    raw = (tmp_path / "a.flo").read_bytes()
    assert raw[:4] == b"PIEH"
    assert np.frombuffer(raw, "<i4", 2, 4).tolist() == [3, 2]
    np.testing.assert_array_equal(np.frombuffer(raw, "<f4", offset=12), np.arange(12))


def test_damaged_and_foreign_files_are_named(tmp_path, field):
    files.write_flo(tmp_path / "cut.flo", field)
    (tmp_path / "cut.flo").write_bytes((tmp_path / "cut.flo").read_bytes()[:-3])
    with pytest.raises(DataError, match="cut off or damaged"):
        files.read_flow(tmp_path / "cut.flo")
    with pytest.raises(DataError, match=r"gone\.flo does not exist"):
        files.read_flow(tmp_path / "gone.flo")
    np.savez(tmp_path / "other.npz", u=field)
    with pytest.raises(DataError, match=r"no array 'flow': it has \['u'\]"):
        files.read_flow(tmp_path / "other.npz")
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04nonsense")
    with pytest.raises(DataError, match=r"bad\.npz"):
        files.read_flow(tmp_path / "bad.npz")
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "color.png")
    with pytest.raises(DataError, match="16-bit RGB; the vectors of colour pictures of flow are"):
        files.read_flow(tmp_path / "color.png")
    with pytest.raises(DataError, match=r"suffix '\.txt' is unknown"):
        files.read_flow(tmp_path / "a.txt")
    with pytest.raises(ShapeError, match=r"floating-point \[H,W,2\]"):
        files.write_flo(tmp_path / "a.flo", field[..., :1])


# ----- sources --------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path):
    """One sequence of 4 frames; forward flow of frame k is (k, 0)."""
    for folder in ("frames", "masks"):
        (tmp_path / "cat" / folder).mkdir(parents=True)
    for k in range(4):
        image = Image.fromarray(np.full((6, 9, 3), 40 * k, np.uint8))
        image.save(tmp_path / "cat" / "frames" / f"{k:05d}.png")
        Image.new("L", (9, 6)).save(tmp_path / "cat" / "masks" / f"{k:05d}.png")
        flow = np.zeros((6, 9, 2), np.float32)
        flow[..., 0] = k
        if k < 3:
            files.write_flo(tmp_path / "flow" / "cat" / f"{k:05d}.flo", flow)
    return tmp_path


def test_a_source_reads_flow_of_neighbouring_frames(tree):
    source = make_source("folder", root=str(tree), sequences=["cat"], flow="flow", clip_len=3)
    example = source[1]
    np.testing.assert_array_equal(example["flow"][:2, 0, 0, 0], [1, 2])
    np.testing.assert_array_equal(example["flow_valid"], [True, True, False])
    apart = make_source(
        "folder", root=str(tree), sequences=["cat"], flow="flow", clip_len=2, stride=2
    )[0]
    np.testing.assert_array_equal(apart["flow_valid"], [False, True])


def test_backward_flow_is_valid_from_the_second_frame_on(tree):
    files.write_meta(tree / "flow", {"direction": "backward"})
    (tree / "flow" / "cat" / "00000.flo").rename(tree / "flow" / "cat" / "00003.flo")
    source = make_source(
        "folder", root=str(tree), sequences=["cat"], flow="flow", flow_direction="backward",
        clip_len=4,
    )  # fmt: skip
    np.testing.assert_array_equal(source[0]["flow_valid"], [False, True, True, True])


def test_flow_to_both_neighbours_comes_from_two_folders(tree):
    for k in (1, 2, 3):
        field = files.read_flow(tree / "flow" / "cat" / f"{k - 1:05d}.flo")
        (tree / "back" / "cat").mkdir(parents=True, exist_ok=True)
        files.write_flo(tree / "back" / "cat" / f"{k:05d}.flo", -field)
    files.write_meta(tree / "back", {"direction": "backward"})
    make = lambda **kwargs: make_source(  # noqa: E731
        "folder", root=str(tree), sequences=["cat"], flow_direction="both", **kwargs
    )
    both = ("back", "flow")
    example = make(flow=both, clip_len=4)[0]
    np.testing.assert_array_equal(example["flow_valid"], [False, True, True, False])
    ahead = make_source("folder", root=str(tree), sequences=["cat"], flow="flow", clip_len=4)[0]
    np.testing.assert_array_equal(example["flow"][1:3, ..., 2:], ahead["flow"][1:3])
    np.testing.assert_array_equal(example["flow"][1:3, ..., :2], -ahead["flow"][:2])
    assert len(make(flow=both, clips="flow")) == 2
    with pytest.raises(ConfigError, match=r"reads backward and forward flow from 2 folder\(s\)"):
        make(flow="flow")
    with pytest.raises(ConfigError, match="flow_direction 'sideways' is unknown"):
        make_source("folder", root=str(tree), flow="flow", flow_direction="sideways")


def test_missing_flow_names_the_tool_that_makes_it(tree):
    make = lambda **kwargs: make_source("folder", root=str(tree), sequences=["cat"], **kwargs)  # noqa: E731
    with pytest.raises(DataError, match=r"no optical flow in .*motion.*tools/compute_flow\.py"):
        make(flow="motion")
    (tree / "flow" / "cat" / "00001.flo").unlink()
    with pytest.raises(DataError, match=r"frame '00001' of sequence 'cat'.*1 of 3 are missing.*tools/compute_flow\.py"):  # fmt: skip # noqa: E501
        make(flow="flow")
    with pytest.raises(DataError, match="holds forward flow, but backward flow is needed"):
        make(flow="flow", flow_direction="backward")


def test_flow_of_another_size_than_its_frame_is_refused(tree):
    path = tree / "flow" / "cat" / "00000.flo"
    files.write_flo(path, np.zeros((3, 4, 2), np.float32))
    frames = sorted((tree / "cat" / "frames").iterdir())
    source = VideoSource([Sequence("cat", tuple(frames), (None,) * 4, flow=((path,),) * 4)])
    with pytest.raises(ShapeError, match=r"flow .*00000\.flo is 4x3, its frame 9x6"):
        source[0]

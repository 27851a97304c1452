"""Sources without a data set's rules: folders, DAVIS by year, stills, generated clips."""

import numpy as np
import pytest

from tests.data_layer import dataset_trees as trees
from tests.data_layer.dataset_trees import H, W, mask
from uvos_jax.data import sources
from uvos_jax.data.flow_files import write_flo, write_meta
from uvos_jax.data.schema import validate_example
from uvos_jax.data.sources.video import reflect
from uvos_jax.errors import ConfigError, DataError, ShapeError


def clips(root, *, names=("a", "b"), count=4, skip=()):
    for s, name in enumerate(names):
        for t in range(count):
            trees.save(root / name / "frames" / f"{t:05d}.png", trees.frame(s, t))
            if t not in skip:
                trees.save(root / name / "masks" / f"{t:05d}.png", mask(t, 3))
    return root


def folder(root, **fields):
    return sources.make_source("folder", root=str(root), **fields)


def levels(example):
    """Frame levels, which tell sequence and frame: 10 s + t."""
    return example["frames"][:, 0, 0, 0].tolist()


def test_folder_clips_are_consecutive_and_mirrored_at_the_end(tmp_path):
    made = folder(clips(tmp_path), clip_len=3)
    assert len(made) == 8
    assert levels(made[0]) == [0, 1, 2]
    assert levels(made[6]) == [12, 13, 12]
    assert levels(folder(tmp_path, clip_len=3, stride=2)[0]) == [0, 2, 2]
    validate_example(made[0])


def test_edge_maps_come_from_a_folder_and_missing_ones_are_named(tmp_path):
    root = clips(tmp_path / "set")
    first = folder(root)[0]
    for sequence in folder(root).sequences:
        for k, frame in enumerate(sequence.frames):
            level = np.full(first["frames"].shape[1:3], 10 * k, np.uint8)
            trees.save(tmp_path / "edges" / sequence.name / f"{frame.stem}.png", level)
    made = folder(root, clip_len=2, edges=str(tmp_path / "edges"))
    example = made[1]
    validate_example(example, require=("frames", "edges"))
    assert example["edges"][:, 0, 0].tolist() == [10, 20]
    lost = made.sequences[1].edges[2]
    lost.unlink()
    with pytest.raises(DataError, match=rf"no edge map for frame '{lost.stem}' of sequence"):
        folder(root, edges=str(tmp_path / "edges"))
    with pytest.raises(DataError, match=r"no edge maps in .*expected one 8-bit image for each"):
        folder(root, edges="nowhere")


@pytest.mark.parametrize(
    ("count", "expected"), [(1, [0, 0, 0, 0, 0]), (2, [0, 1, 0, 1, 0]), (4, [0, 1, 2, 3, 2])]
)
def test_indices_walk_back_at_the_ends(count, expected):
    assert [reflect(i, count) for i in range(5)] == expected


def test_pairs_stay_in_their_sequence_and_depend_on_the_generator_alone(tmp_path):
    made = folder(clips(tmp_path), clip_len=2, sampling="pair")
    partners = set()
    for seed in range(20):
        first, other = levels(made.sample(5, np.random.default_rng(seed)))
        assert first == 11
        assert 10 <= other < 14
        assert levels(made.sample(5, np.random.default_rng(seed))) == [first, other]
        partners.add(other)
    assert len(partners) > 2


def test_reference_clips_hold_the_first_and_the_previous_frame(tmp_path):
    made = folder(clips(tmp_path), clip_len=3, sampling="reference")
    assert [levels(made[i]) for i in (4, 5, 7)] == [[10, 10, 10], [10, 10, 11], [10, 12, 13]]
    with pytest.raises(ConfigError, match="'reference' makes clips of 3 frames, not 2"):
        folder(tmp_path, clip_len=2, sampling="reference")


def test_segment_clips_are_a_short_run_and_one_frame_of_every_part(tmp_path):
    made = folder(clips(tmp_path), clip_len=5, sampling="segments", clips="sequences")
    assert len(made) == 2
    starts = set()
    for seed in range(20):
        a, b, c, first, second = levels(made.sample(1, np.random.default_rng(seed)))
        assert (b, c) == (a + 1, a + 2)
        assert first in (10, 11)
        assert second in (12, 13)
        starts.add(a)
    assert starts == {10, 11}
    with pytest.raises(ConfigError, match="needs clips of 4 frames or more, not 3"):
        folder(tmp_path, clip_len=3, sampling="segments")


def test_videos_without_masks_need_no_folder_of_masks(tmp_path):
    made = folder(clips(tmp_path), masks="", clip_len=2)
    example = made[0]
    validate_example(example)
    assert not example["has_mask"].any()
    inside = folder(tmp_path / "a", frames="", masks="", sequences=("frames",))
    assert levels(inside[2]) == [2]


def test_ids_are_kept_on_request(tmp_path):
    root = clips(tmp_path)
    assert folder(root)[1]["masks"].max() == 1
    assert folder(root, binary=False)[1]["masks"].max() == 3


def test_sparse_folders_must_be_declared(tmp_path):
    root = clips(tmp_path, skip=(1, 3))
    with pytest.raises(DataError, match=r"'a': 2 of 4 frames have no mask.*use sparse=True"):
        folder(root)
    made = folder(root, sparse=True, clip_len=2)
    np.testing.assert_array_equal(made[0]["has_mask"], [True, False])
    assert len(made) == 8
    assert len(folder(root, sparse=True, clips="annotated")) == 4


def test_a_whole_sequence_is_one_example(tmp_path):
    made = folder(clips(tmp_path), clips="sequences")
    assert len(made) == 2
    assert levels(made[1]) == [10, 11, 12, 13]
    assert made.names(1) == ("b", ["00000", "00001", "00002", "00003"])


def test_folder_mistakes_are_named(tmp_path):
    with pytest.raises(DataError, match="no sequences in"):
        folder(tmp_path)
    root = clips(tmp_path)
    with pytest.raises(DataError, match=r"sequence 'c' is incomplete: .*c/frames is missing"):
        folder(root, sequences=("a", "c"))
    with pytest.raises(ConfigError, match="sampling 'random' is unknown"):
        folder(root, sampling="random")
    trees.save(root / "a/frames/00001.png", trees.frame(0, 1, size=(H, W + 2)))
    with pytest.raises(ShapeError, match="'a': its frames differ in size"):
        folder(root, clip_len=2)[0]


def test_davis_by_year_reads_the_semi_supervised_annotations(tmp_path):
    root = trees.davis(tmp_path)
    trees.save(root / "Annotations/480p/alpha/00000.png", mask(1, 2))
    (root / "ImageSets/2017").mkdir()
    (root / "ImageSets/2017/train.txt").write_text("alpha\n")
    ids = sources.make_source("davis", root=str(root), year=2017)
    assert len(ids) == 3
    assert ids[0]["masks"].max() == 2
    assert sources.make_source("davis", root=str(root), year=2016)[0]["masks"].max() == 1
    with pytest.raises(DataError, match=r"DAVIS-2017: split 'test-dev' has no list"):
        sources.make_source("davis", root=str(root), year=2017, split="test-dev")
    with pytest.raises(DataError, match=r"no DAVIS data in .*JPEGImages/1080p is missing"):
        sources.make_source("davis", root=str(root), resolution="1080p")


def test_folders_of_stills_can_be_named(tmp_path):
    trees.stills(tmp_path / "photos", tmp_path / "labels")
    with pytest.raises(DataError, match="no images in"):
        sources.make_source("image_mask", root=str(tmp_path))
    made = sources.make_source("image_mask", root=str(tmp_path), images="photos", masks="labels")
    np.testing.assert_array_equal(made[2]["masks"][0], mask(2, 1))


@pytest.mark.slow
def test_generated_clips_are_addressable_and_repeatable():
    fields = {"preset": "test", "size": (32, 48), "clip_len": 2, "flow": True, "length": 5}
    made = sources.make_source("synthetic", **fields)
    assert len(made) == 5
    validate_example(made[3], require=("frames", "masks", "flow", "flow_valid"))
    again = sources.make_source("synthetic", **fields)
    np.testing.assert_array_equal(made[3]["frames"], again[3]["frames"])


def test_stills_move_differently_every_time(tmp_path):
    trees.stills(tmp_path, tmp_path)
    made = sources.make_source("pseudo_video", root=str(tmp_path), size=(32, 48), clip_len=2)
    one, two = (made.sample(2, np.random.default_rng(seed)) for seed in (0, 1))
    validate_example(one)
    assert one["frames"].shape == (2, 32, 48, 3)
    assert not np.array_equal(one["masks"], two["masks"]) or not np.array_equal(
        one["frames"], two["frames"]
    )
    np.testing.assert_array_equal(made.sample(2, np.random.default_rng(0))["frames"], one["frames"])


def test_clips_may_start_at_frames_with_flow_only(tmp_path):
    root = clips(tmp_path)
    for name in ("a", "b"):
        (tmp_path / "flow" / name).mkdir(parents=True)
        for i in range(1, 4):
            write_flo(tmp_path / "flow" / name / f"{i:05d}.flo", np.full((H, W, 2), i, np.float32))
    write_meta(tmp_path / "flow", {"direction": "backward"})
    made = folder(root, sequences=("a", "b"), flow="flow", flow_direction="backward", clips="flow")
    assert len(made) == 6
    assert all(made[i]["flow_valid"].all() for i in range(6))
    with pytest.raises(DataError, match="has an annotated frame with flow"):
        folder(root, sequences=("a", "b"), clips="flow")

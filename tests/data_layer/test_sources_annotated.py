"""The annotated sets as sources: contract, annotation rules, sparse frames, splits, mistakes."""

import pickle

import numpy as np
import pytest

from tests.data_layer import dataset_trees as trees
from tests.data_layer.dataset_trees import TREES, H, W, mask
from uvos_jax.data import sources
from uvos_jax.data.schema import validate_example
from uvos_jax.errors import ConfigError, DataError, ShapeError

NAMES = list(TREES)


def source(name, root, **fields):
    return sources.make_source(name, root=str(root), **fields)


@pytest.mark.parametrize("name", NAMES)
def test_every_set_gives_valid_examples_of_every_annotated_frame(name, tmp_path):
    make, count, frames, annotated = TREES[name]
    made = source(name, make(tmp_path))
    assert len(made) == annotated
    assert len(made.sequences) == count
    assert sum(len(s.frames) for s in made.sequences) == frames
    for i in range(len(made)):
        example = made[i]
        validate_example(example, require=("frames", "masks", "valid", "has_mask"))
        assert example["frames"].shape == (1, H, W, 3)
        assert example["has_mask"][0]
        assert example["masks"].any()
        assert example["example_id"] == i


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_decoded_before_an_example_is_asked_for(name, tmp_path, monkeypatch):
    make, *_ = TREES[name]
    root = make(tmp_path)
    from PIL import Image

    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("an image was opened"))
    assert len(source(name, root))


@pytest.mark.parametrize("name", ["davis16", "flyingthings3d", "duts"])
def test_sources_travel_to_worker_processes(name, tmp_path):
    made = source(name, TREES[name][0](tmp_path))
    copy = pickle.loads(pickle.dumps(made))
    np.testing.assert_array_equal(copy[1]["frames"], made[1]["frames"])


# ----- DAVIS --------------------------------------------------------------------------------------


def test_davis16_masks_are_binary_and_frames_are_in_order(tmp_path):
    made = source("davis16", trees.davis(tmp_path), clip_len=2)
    example = made[3]  # second sequence, first frame
    np.testing.assert_array_equal(example["masks"], [mask(0, 1), mask(1, 1)])
    assert abs(int(example["frames"][1, 0, 0, 0]) - 11) <= 1
    assert made.names(3) == ("beta", ["00000", "00001", "00002"])


def test_davis16_reads_ids_of_a_2017_copy_as_foreground(tmp_path):
    root = trees.davis(tmp_path, names=("alpha",))
    trees.save(root / "Annotations/480p/alpha/00000.png", mask(1, 2))
    np.testing.assert_array_equal(source("davis16", root)[0]["masks"][0], mask(1, 1))


def test_davis17_keeps_ids_and_void(tmp_path):
    root = trees.davis(tmp_path, year=2017)
    masks = source("davis17", root)[1]["masks"][0]
    assert set(np.unique(masks)) == {0, 1, 2, 255}
    binary = source("davis17", root, binary=True)[1]["masks"][0]
    np.testing.assert_array_equal(binary, np.where(masks == 255, 255, masks > 0))


def test_davis_lists_of_the_2016_archive_and_the_built_in_ones_count(tmp_path):
    root = trees.davis(tmp_path, names=("bear",))
    (root / "ImageSets/2016/train.txt").rename(root / "ImageSets/480p.txt")
    with pytest.raises(DataError, match=r"lacks the sequence 'bmx-bumps' \(29 of 30 of the split"):
        source("davis16", root)
    assert len(source("davis16", root, sequences=("bear",))) == 3  # the others are not needed
    with pytest.raises(DataError, match="lacks the sequence 'boat'"):
        source("davis16", root, sequences=("bear", "boat"))
    (root / "ImageSets/480p").mkdir()
    (root / "ImageSets/480p/train.txt").write_text(
        "/JPEGImages/480p/bear/00000.jpg /Annotations/480p/bear/00000.png\n" * 2
    )
    assert [s.name for s in source("davis16", root).sequences] == ["bear"]
    assert [s.name for s in source("davis", root).sequences] == ["bear"]


def test_davis17_annotations_of_the_other_task_are_refused(tmp_path):
    root = trees.davis(tmp_path)
    with pytest.raises(DataError, match="unsupervised task has annotations of its own"):
        source("davis17", root)


def test_sequences_can_be_chosen_and_misspelt(tmp_path):
    root = trees.davis(tmp_path)
    assert [s.name for s in source("davis16", root, sequences=("beta",)).sequences] == ["beta"]
    with pytest.raises(ConfigError, match=r"no sequence 'bta' in this split: did you mean 'beta'"):
        source("davis16", root, sequences=("bta",))


def test_dense_sets_refuse_a_lost_annotation_unless_told_to_leave_the_frame_out(tmp_path):
    root = trees.davis(tmp_path)
    (root / "Annotations/480p/beta/00001.png").unlink()
    with pytest.raises(DataError, match=r"frame .*480p/beta/00001.jpg has no annotation; restore"):
        source("davis16", root)
    assert len(source("davis16", root, annotated_only=True)) == 5


def test_an_annotation_without_frame_is_named(tmp_path):
    root = trees.davis(tmp_path)
    (root / "JPEGImages/480p/alpha/00002.jpg").unlink()
    with pytest.raises(DataError, match=r"annotation .*alpha/00002.png has no frame"):
        source("davis16", root)


def test_a_mask_of_another_size_is_named_when_it_is_read(tmp_path):
    root = trees.davis(tmp_path)
    trees.save(root / "Annotations/480p/alpha/00001.png", mask(0, size=(H, W + 1)))
    made = source("davis16", root)
    made[0]
    with pytest.raises(ShapeError, match=r"alpha/00001.png is 17x12, its frame 16x12"):
        made[1]


def test_a_damaged_frame_is_named(tmp_path):
    root = trees.davis(tmp_path)
    path = root / "JPEGImages/480p/alpha/00000.jpg"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match=r"alpha/00000.jpg cannot be decoded"):
        source("davis16", root)[0]


# ----- sparse sets --------------------------------------------------------------------------------


def test_frames_without_annotation_are_flagged(tmp_path):
    made = source("youtube_objects", trees.youtube_objects(tmp_path), clip_len=4)
    example = made[1]  # frame 2 of the first video, mirrored at the end
    np.testing.assert_array_equal(example["has_mask"], [True, False, False, False])
    assert not example["masks"][1:].any()
    np.testing.assert_array_equal(example["masks"][0], mask(2, 1))
    assert len(source("youtube_objects", tmp_path, clips="frames")) == 10
    assert len(source("youtube_objects", tmp_path, clips="sequences")) == 2
    whole = source("youtube_objects", tmp_path, clips="sequences")[0]
    np.testing.assert_array_equal(whole["has_mask"], [True, False, True, False, False])


def test_annotated_frames_can_be_had_alone(tmp_path):
    root = trees.youtube_objects(tmp_path)
    made = source("youtube_objects", root, annotated_only=True, clip_len=2)
    assert made[0]["has_mask"].all()
    assert [p.stem for p in made.sequences[0].frames] == ["00000", "00002"]


def test_fbms_unites_grey_levels_above_a_tenth_of_the_scale(tmp_path):
    root = trees.fbms(tmp_path)
    made = source("fbms", root)
    assert [s.name for s in made.sequences] == ["bear01"]
    assert source("fbms", root, split="test").sequences[0].name == "cars1"
    np.testing.assert_array_equal(made[1]["masks"][0], mask(4, 1) | mask(0, 1, start=8))
    with pytest.raises(ConfigError, match="fbms has no object ids that hold through a sequence"):
        source("fbms", root, binary=False)


def test_segtrack_numbers_the_objects_of_a_frame(tmp_path):
    root = trees.segtrack(tmp_path)
    masks = source("segtrack", root)[4]["masks"][0]
    np.testing.assert_array_equal(masks, mask(1, 1) + mask(0, 2, start=8))
    binary = source("segtrack", root, binary=True)[4]["masks"][0]
    np.testing.assert_array_equal(binary, masks > 0)
    (root / "ImageSets/all.txt").write_text("*birdfall\n*bmx\n*worm\n")
    with pytest.raises(DataError, match=r"segtrack .* lacks the sequence 'worm' \(1 of 3"):
        source("segtrack", root)


@pytest.mark.parametrize("name", ["visal", "vsod"])
def test_saliency_masks_count_above_half_of_the_scale(name, tmp_path):
    made = source(name, trees.saliency(tmp_path, annotated=(0, 3)))
    np.testing.assert_array_equal(made[1]["masks"][0], mask(3, 1))


def test_davsod_knows_its_packages(tmp_path):
    root = trees.davsod(tmp_path)
    names = {
        split: [s.name for s in source("davsod", root, split=split).sequences]
        for split in ("train", "val", "test", "easy", "difficult")
    }
    assert names == {
        "train": ["select_0000"],
        "val": ["select_0001"],
        "test": ["select_0002", "select_0003", "select_0004"],
        "easy": ["select_0002"],
        "difficult": ["select_0004"],
    }
    with pytest.raises(ConfigError, match="DAVSOD has no split 'hard'"):
        source("davsod", root, split="hard")
    (root / "Normal-25").rename(root / "elsewhere")
    with pytest.raises(DataError, match=r"DAVSOD split 'test' lacks the folder .*Normal-25"):
        source("davsod", root, split="test")


def test_youtube_vos_ids_splits_and_thinning(tmp_path):
    root = trees.youtube_vos(tmp_path)
    made = source("youtube_vos", root)
    np.testing.assert_array_equal(made[0]["masks"][0], mask(1, 2))
    thin = source("youtube_vos", root, every=2, binary=True)
    assert [p.stem for p in thin.sequences[0].frames] == ["00000", "00010"]
    assert thin[0]["masks"].max() == 1
    trees.youtube_vos(tmp_path, split="valid")
    assert len(source("youtube_vos", root, split="valid").sequences) == 2
    assert len(source("youtube_vos", root / "train").sequences) == 2


def test_youtube_vos_videos_of_the_list_must_be_there(tmp_path):
    root = trees.youtube_vos(tmp_path)
    (root / "train/Annotations/ffee").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"youtube_vos .* lacks the sequence 'ffee' \(1 of 2"):
        source("youtube_vos", root)
    (root / "train/meta.json").write_text("{}")
    with pytest.raises(DataError, match=r"meta.json is no list of videos"):
        source("youtube_vos", root)


# ----- FlyingThings3D -----------------------------------------------------------------------------


def test_flyingthings_gives_exact_flow_and_motion_labels(tmp_path):
    made = source("flyingthings3d", trees.flyingthings3d(tmp_path), clip_len=2)
    example = made[3]
    validate_example(example, require=("flow", "flow_valid", "masks"))
    np.testing.assert_array_equal(example["flow"][1], trees.flow_field(1)[..., :2])
    assert example["flow_valid"].all()
    np.testing.assert_array_equal(example["masks"][0], mask(0, 1))


def test_flow_is_valid_only_where_the_clip_follows_it(tmp_path):
    root = trees.flyingthings3d(tmp_path, last_flow=False)
    made = source("flyingthings3d", root, clip_len=3)
    np.testing.assert_array_equal(made[0]["flow_valid"], [True, True, False])
    np.testing.assert_array_equal(made[2]["flow_valid"], [False, False, True])  # 2, 1, 0
    strided = source("flyingthings3d", root, clip_len=2, stride=2)
    np.testing.assert_array_equal(strided[0]["flow_valid"], [False, False])


def test_flyingthings_without_labels_gives_flow_alone(tmp_path):
    root = trees.flyingthings3d(tmp_path, labels=False)
    with pytest.raises(DataError, match=r"has no motion labels: .*motion_labels/TRAIN is missing"):
        source("flyingthings3d", root)
    made = source("flyingthings3d", root, labels="none")
    assert len(made) == 6
    assert not made[0]["has_mask"].any()


def test_flyingthings_names_missing_flow_and_wrong_options(tmp_path):
    root = trees.flyingthings3d(tmp_path)
    with pytest.raises(ConfigError, match=r"side 'middle' is unknown; use one of 'left', 'right'"):
        source("flyingthings3d", root, side="middle")
    with pytest.raises(DataError, match=r"frames_\{clean,final\}pass"):
        source("flyingthings3d", root, render="finalpass")
    with pytest.raises(ConfigError, match="flow joins consecutive frames"):
        source("flyingthings3d", root, every=2)
    lost = "optical_flow/TRAIN/A/0000/into_future/left/OpticalFlowIntoFuture_0006_L.pfm"
    (root / lost).unlink()
    with pytest.raises(DataError, match=r"frame .*A/0000/left/0006.png has no flow"):
        source("flyingthings3d", root)


def test_damaged_float_maps_are_named(tmp_path):
    root = trees.flyingthings3d(tmp_path)
    path = root / "optical_flow/TRAIN/A/0000/into_future/left/OpticalFlowIntoFuture_0006_L.pfm"
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    with pytest.raises(DataError, match=r"0006_L.pfm holds 2300 bytes for 16x12x3: expected 2304"):
        source("flyingthings3d", root)[0]
    path.write_bytes(b"P6\n" + whole[3:])
    with pytest.raises(DataError, match="its header is no PFM header"):
        source("flyingthings3d", root)[0]


# ----- stills -------------------------------------------------------------------------------------


def test_stills_are_clips_of_one_frame(tmp_path):
    made = source("duts", trees.duts(tmp_path), split="test")
    np.testing.assert_array_equal(made[2]["masks"][0], mask(2, 1))
    assert "clip_len" not in made.ACCEPTS  # the pipeline leaves it out for stills
    with pytest.raises(ConfigError, match="DUTS has no split 'val'"):
        source("duts", tmp_path, split="val")


def test_stills_in_the_folder_an_archive_makes_are_found(tmp_path):
    trees.msra10k(tmp_path / "MSRA10K_Imgs_GT")
    assert len(source("msra10k", tmp_path)) == 3
    assert len(source("msra10k", tmp_path / "MSRA10K_Imgs_GT" / "Imgs")) == 3
    assert len(source("image_mask", tmp_path / "MSRA10K_Imgs_GT")) == 3


def test_a_still_without_mask_is_named(tmp_path):
    root = trees.ecssd(tmp_path)
    (root / "ground_truth_mask/1.png").unlink()
    with pytest.raises(DataError, match=r"frame .*images/1.jpg has no annotation"):
        source("ecssd", root)


# ----- mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_another_layout_is_refused_with_what_was_looked_for(name, tmp_path):
    (tmp_path / "something").mkdir()
    with pytest.raises(DataError, match=f"is not a {name} folder: looked for .*something"):
        source(name, tmp_path)
    with pytest.raises(DataError, match="nowhere does not exist"):
        source(name, tmp_path / "nowhere")


def test_unknown_fields_and_impossible_values_are_refused(tmp_path):
    root = trees.davis(tmp_path)
    with pytest.raises(ConfigError, match="resolutoin"):
        source("davis16", root, resolutoin="480p")
    with pytest.raises(ConfigError, match="clips 'all' is unknown"):
        source("davis16", root, clips="all")
    with pytest.raises(ConfigError, match="every is 0"):
        source("davis16", root, every=0)
    with pytest.raises(ConfigError, match=r"'davis2016' is unknown; did you mean .*'davis16'"):
        source("davis2016", root)
    with pytest.raises(DataError, match=r"Annotations holds 480p"):
        source("davis16", root, resolution="1080p")

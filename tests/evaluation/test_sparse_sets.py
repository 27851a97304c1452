"""YouTube-Objects, FBMS-59 and SegTrack v2 in the layouts they are distributed in."""

import numpy as np
import pytest
from PIL import Image

from tests.evaluation import trees
from tests.evaluation.trees import H, W
from tests.metrics import oracles
from uvos_jax.errors import ConfigError, DataError
from uvos_jax.evaluation.evaluator import evaluate


def j_of(pred, gt):
    return [oracles.region_similarity(p, g) if g.any() else np.nan for p, g in zip(pred, gt)]  # noqa: B905


# ----- YouTube-Objects ---------------------------------------------------------------------------

VIDEOS = {"cat/0001": 0, "cat/0002": 1, "dog/0001": 2}
STEMS = ("00001", "00011", "00021")


@pytest.fixture(scope="module")
def youtube(tmp_path_factory):
    """Annotations of every tenth frame, one of them empty; dense results."""
    folder = tmp_path_factory.mktemp("youtube")
    values = {}
    for name, seed in VIDEOS.items():
        gt = trees.clip(seed, 3)
        gt[1] &= name != "cat/0002"
        pred = trees.worse(gt, seed)
        trees.save_frames(folder / "set" / "Annotations" / name, gt, STEMS)
        trees.save_frames(folder / "results" / name, pred, STEMS)
        trees.save(folder / "results" / name / "00002.png", pred[0])  # not annotated
        values[name] = j_of(pred, gt)
    return folder, values


def test_youtube_objects_gives_both_averages_and_the_categories(youtube):
    folder, values = youtube
    report = evaluate(folder / "results", dataset="youtube_objects", root=folder / "set")
    means = {name: np.nanmean(v) for name, v in values.items()}
    for row in report.rows:
        np.testing.assert_array_equal(row.values["J"], values[row.name])
        assert row.stats["J_mean"] == pytest.approx(means[row.name])
    assert np.isnan(values["cat/0002"][1])  # empty annotation: left out
    assert report.summary["J_mean"] == pytest.approx(np.mean(list(means.values())))
    cat = (means["cat/0001"] + means["cat/0002"]) / 2
    assert report.groups["cat"]["J_mean"] == pytest.approx(cat)
    assert report.summary["J_mean_over_categories"] == pytest.approx((cat + means["dog/0001"]) / 2)
    every = np.concatenate(list(values.values()))
    assert report.summary["J_mean_over_frames"] == pytest.approx(np.nanmean(every))
    assert "two averages circulate" in report.protocol
    assert "2 classes" in report.layout


def test_splits_have_no_meaning_there(youtube):
    folder, _ = youtube
    with pytest.raises(ConfigError, match=r"split 'val' has no meaning for YouTube-Objects"):
        evaluate(folder / "results", dataset="youtube_objects", root=folder / "set", split="val")


# ----- FBMS-59 -----------------------------------------------------------------------------------


def fbms_video(root, name, seed, *, objects=2):
    """Frames `<name>_0001.jpg`, ..., grey annotations of frames 1, 3 and 5; returns masks."""
    gt = trees.clip(seed, 3)
    for k in range(5):
        trees.save(root / name / f"{name}_{k + 1:04d}.jpg", np.zeros((H, W, 3), np.uint8))
    for k, mask in enumerate(gt):
        levels = np.where(mask, 100, 0).astype(np.uint8)
        if objects > 1:
            levels[0, :5] = 200  # another object
        trees.save(root / name / "GroundTruth" / f"{name}_{2 * k + 1:04d}.pgm", levels)
    if objects > 1:
        gt[:, 0, :5] = True
    return gt, [f"{name}_{2 * k + 1:04d}" for k in range(3)]


@pytest.fixture(scope="module")
def fbms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fbms")
    values = {}
    for seed, name in enumerate(("cars1", "horses02")):
        gt, stems = fbms_video(folder / "set" / "Testset", name, seed)
        pred = trees.worse(gt, seed)
        trees.save_frames(folder / "results" / name, pred, stems)
        values[name] = j_of(pred, gt)
    fbms_video(folder / "set" / "Trainingset", "bear01", 5)
    return folder, values


def test_fbms_unites_objects_and_finds_the_frames_of_annotations(fbms):
    folder, values = fbms
    report = evaluate(folder / "results", dataset="fbms", root=folder / "set")
    assert {row.name: list(row.values["J"]) for row in report.rows} == values
    means = [np.mean(v) for v in values.values()]
    assert report.summary["J_mean"] == pytest.approx(np.mean(means))
    assert report.summary["J_mean_over_frames"] == pytest.approx(np.mean(list(values.values())))
    assert report.layout.startswith("FBMS-59 layout, Testset/")
    inside = evaluate(folder / "results", dataset="fbms", root=folder / "set" / "Testset")
    assert inside.summary == report.summary


def test_fbms_numbers_may_begin_at_zero_and_colours_may_mark_objects(tmp_path):
    video = tmp_path / "set" / "Testset" / "tennis"
    for k in range(4):
        trees.save(video / f"tennis{400 + k}.jpg", np.zeros((H, W, 3), np.uint8))
    gt = trees.clip(3, 2)
    for k, mask in zip((0, 3), gt, strict=True):
        colours = np.full((H, W, 3), 255, np.uint8)  # white is background
        colours[mask] = (200, 30, 30)
        trees.save(video / "GroundTruth" / f"tennis_{k}_gt.ppm", colours)
        trees.save(video / "GroundTruth" / f"tennis_{k}_PROB.ppm", colours[::-1])
    trees.save_frames(tmp_path / "results" / "tennis", gt, ("tennis400", "tennis403"))
    report = evaluate(tmp_path / "results", dataset="fbms", root=tmp_path / "set")
    assert report.rows[0].frames == ("tennis400", "tennis403")
    assert report.summary["J_mean"] == 1.0


def test_fbms_re_packed_as_png_gives_the_same(fbms, tmp_path):
    folder, values = fbms
    for name in values:
        source = folder / "set" / "Testset" / name / "GroundTruth"
        for path in sorted(source.glob("*.pgm")):
            trees.save(
                tmp_path / "Annotations" / name / f"{path.stem}.png",
                np.asarray(Image.open(path)) > 0,
            )
    report = evaluate(folder / "results", dataset="fbms", root=tmp_path)
    assert {row.name: list(row.values["J"]) for row in report.rows} == values
    assert "re-packed FBMS layout" in report.layout


def test_fbms_splits_and_lost_frames_are_named(fbms, tmp_path):
    folder, _ = fbms
    train = evaluate(
        folder / "results", dataset="fbms", root=folder / "set", split="test", sequences="cars1"
    )
    assert len(train.rows) == 1
    with pytest.raises(ConfigError, match=r"FBMS-59 has no split 'val': use test \(default\)"):
        evaluate(folder / "results", dataset="fbms", root=folder / "set", split="val")
    with pytest.raises(DataError, match=r"lacks 1 sequence \(bear01\)"):
        evaluate(folder / "results", dataset="fbms", root=folder / "set", split="train")
    fbms_video(tmp_path / "Testset", "cars1", 0)
    for k in (3, 4, 5):
        (tmp_path / "Testset" / "cars1" / f"cars1_{k:04d}.jpg").unlink()
    with pytest.raises(DataError, match=r"cars1: 2 frames and annotations numbered \[1, 3, 5\]"):
        evaluate(folder / "results", dataset="fbms", root=tmp_path)


# ----- SegTrack v2 -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def segtrack(tmp_path_factory):
    """One video of one object (files directly inside), one of two objects (folders 1 and 2)."""
    folder = tmp_path_factory.mktemp("segtrack")
    truth = folder / "set" / "GroundTruth"
    stems = tuple(f"bird_{k:05d}" for k in range(4))
    one, first, second = trees.clip(0, 4), trees.clip(1, 4), trees.clip(2, 4)
    one[2] = False
    trees.save_frames(truth / "bird", one, stems)
    trees.save_frames(truth / "drift" / "1", first)
    trees.save_frames(truth / "drift" / "2", second)
    gt = {"bird": one, "drift": first | second}
    pred = {name: trees.worse(masks, 4) for name, masks in gt.items()}
    trees.save_frames(folder / "results" / "bird", pred["bird"], stems)
    trees.save_frames(folder / "results" / "drift", pred["drift"])
    return folder, gt, pred


def test_segtrack_unites_the_folders_of_objects_and_gives_mae(segtrack):
    folder, gt, pred = segtrack
    report = evaluate(folder / "results", dataset="segtrack", root=folder / "set")
    for row in report.rows:
        np.testing.assert_array_equal(row.values["J"], j_of(pred[row.name], gt[row.name]))
        errors = (pred[row.name] != gt[row.name]).mean((1, 2))
        np.testing.assert_allclose(row.values["MAE"], errors)
        assert row.stats["J_mean"] == pytest.approx(np.nanmean(row.values["J"]))
    frames = np.concatenate([row.values["J"] for row in report.rows])
    assert report.summary["J_mean_over_frames"] == pytest.approx(np.nanmean(frames))
    assert "J_mean_over_categories" not in report.summary


def test_a_lost_annotation_of_one_object_is_named(segtrack, tmp_path):
    truth = tmp_path / "GroundTruth" / "drift"
    trees.save_frames(truth / "1", trees.clip(1, 4))
    trees.save_frames(truth / "2", trees.clip(2, 3))
    with pytest.raises(DataError, match=r"drift/2: the annotation of frame 00003 is missing"):
        evaluate(segtrack[0] / "results", dataset="segtrack", root=tmp_path)

"""DAVIS-2017 unsupervised: objects, proposals and void on fabricated trees."""

import numpy as np
import pytest

from tests.evaluation import trees
from tests.evaluation.trees import H, T, W
from tests.metrics import oracles
from uvos_jax.errors import DataError
from uvos_jax.evaluation.evaluator import evaluate

SEQUENCES = ("goat", "judo")


def objects(seed):
    """Two drifting objects with a void band at the right, uint8 `[T,H,W]`."""
    out = np.zeros((T, H, W), np.uint8)
    out[np.roll(trees.clip(seed), -9, 2)] = 1
    out[np.roll(trees.clip(seed + 10), 11, 2)] = 2
    out[:, :, -4:] = 255
    return out


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("davis17")
    gt = {name: objects(k) for k, name in enumerate(SEQUENCES)}
    for name, ids in gt.items():
        trees.save_frames(root / "Annotations_unsupervised" / "480p" / name, ids, palette=True)
    (root / "ImageSets" / "2017").mkdir(parents=True)
    (root / "ImageSets" / "2017" / "val.txt").write_text("\n".join(SEQUENCES) + "\n")
    return root, gt


def write(folder, results):
    for name, ids in results.items():
        trees.save_frames(folder / name, ids, palette=True)


def evaluated(tree, folder, **options):
    return evaluate(folder, dataset="davis17", root=tree[0], **options)


def test_renumbered_annotations_score_one_whatever_lies_on_void(tree, tmp_path):
    renumber = np.zeros(256, np.uint8)
    renumber[[1, 2]] = 5, 3
    results = {name: renumber[ids] for name, ids in tree[1].items()}
    for ids in results.values():
        ids[:, ::3, -4:] = 5
    write(tmp_path, results)
    report = evaluated(tree, tmp_path)
    assert list(report.per_sequence) == ["goat_1", "goat_2", "judo_1", "judo_2"]
    for measure in "JF":
        assert report.summary[f"{measure}_mean"] == 1.0
        assert report.summary[f"{measure}_recall"] == 1.0
        assert report.summary[f"{measure}_decay"] == 0.0
    assert report.summary["JF_mean"] == 1.0
    assert "Hungarian" in report.protocol
    assert "Annotations_unsupervised/480p, split val (ImageSets/2017/val.txt)" in report.layout


def test_values_are_those_of_pixel_loops_on_all_frames(tree, tmp_path):
    results = {}
    for name, ids in tree[1].items():
        shifted = np.roll(np.where(ids == 255, 0, ids), 1, 2)
        shifted[2] = 0  # one frame without proposals
        shifted[:, :3, :3] = 4  # one proposal too many: not penalised; id 3 is nowhere
        results[name] = shifted
    write(tmp_path, results)
    report = evaluated(tree, tmp_path)
    assert len(report.rows) == 4
    for row in report.rows:
        name, o = row.name.split("_")
        assert len(row.frames) == T  # first and last included
        for t in range(T):
            ids = tree[1][name][t]
            args = results[name][t] == int(o), ids == int(o), ids == 255
            assert row.values["J"][t] == pytest.approx(oracles.region_similarity(*args), abs=1e-12)
            assert row.values["F"][t] == pytest.approx(oracles.contour_accuracy(*args), abs=1e-12)
    j, f = report.summary["J_mean"], report.summary["F_mean"]
    assert report.summary["JF_mean"] == (j + f) / 2
    assert j == pytest.approx(np.mean([row.values["J"].mean() for row in report.rows]))


def test_fewer_proposals_than_objects_leave_objects_at_zero(tree, tmp_path):
    write(
        tmp_path, {name: np.where(ids == 1, 1, 0).astype(np.uint8) for name, ids in tree[1].items()}
    )
    report = evaluated(tree, tmp_path)
    assert report.per_sequence["goat_1"]["J_mean"] == 1.0
    assert report.per_sequence["goat_2"]["J_mean"] == 0.0
    assert report.summary["J_mean"] == 0.5


def test_one_measure_alone_decides_the_matching(tree, tmp_path):
    write(tmp_path, {name: np.where(ids == 255, 0, ids) for name, ids in tree[1].items()})
    report = evaluated(tree, tmp_path, measures=("J",))
    assert set(report.summary) == {"J_mean", "J_recall", "J_decay"}
    assert "on the mean of J," in report.protocol


def test_more_than_20_proposals_are_refused(tree, tmp_path):
    results = {name: np.where(ids == 255, 0, ids) for name, ids in tree[1].items()}
    results["judo"][3, 0, 0] = 21
    write(tmp_path, results)
    with pytest.raises(DataError, match=r"00003.png: proposal id 21 exceeds 20"):
        evaluated(tree, tmp_path)


def test_another_size_and_missing_frames_are_refused(tree, tmp_path):
    results = {name: np.where(ids == 255, 0, ids) for name, ids in tree[1].items()}
    write(tmp_path, results)
    trees.save(tmp_path / "goat" / "00000.png", np.zeros((H, W - 1), np.uint8), palette=True)
    with pytest.raises(DataError, match=f"00000.png: the result is {W - 1}x{H}"):
        evaluated(tree, tmp_path)
    (tmp_path / "goat" / "00000.png").unlink()  # the first frame counts here
    with pytest.raises(DataError, match=r"lacks 1 of 6 frames, first 00000.png"):
        evaluated(tree, tmp_path)


def test_annotations_of_the_other_task_are_not_taken(tmp_path):
    (tmp_path / "Annotations" / "480p" / "goat").mkdir(parents=True)
    (tmp_path / "results").mkdir()
    with pytest.raises(DataError, match=r"no Annotations_unsupervised.*has annotations of its own"):
        evaluate(tmp_path / "results", dataset="davis17", root=tmp_path)


def test_a_first_frame_without_objects_is_named(tmp_path):
    write(tmp_path / "davis", {"goat": np.zeros((3, H, W), np.uint8)})
    write(tmp_path / "results", {"goat": np.zeros((3, H, W), np.uint8)})
    with pytest.raises(DataError, match=r"00000.png: the first frame has no object"):
        evaluate(tmp_path / "results", dataset="davis17", root=tmp_path / "davis")

"""Video saliency and optical flow from files to reports."""

import numpy as np
import pytest

from tests.evaluation import trees
from tests.evaluation.trees import H, T, W
from tests.metrics.test_flow import by_loops
from uvos_jax.errors import DataError
from uvos_jax.evaluation.evaluator import evaluate
from uvos_jax.metrics.saliency import saliency_scores

LENGTHS = {"soccer": 6, "walking": 4}


@pytest.fixture(scope="module")
def saliency(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vsod")
    rng = np.random.default_rng(0)
    scores = {}
    for seed, (name, length) in enumerate(LENGTHS.items()):
        gt = trees.clip(seed, length)
        maps = (np.roll(gt, 1, 1) * 180 + rng.integers(0, 70, gt.shape)).astype(np.uint8)
        trees.save_frames(folder / "set" / name / "ground-truth", gt)
        trees.save_frames(folder / "results" / name, maps)
        scores[name] = [saliency_scores(p, g) for p, g in zip(maps, gt, strict=True)][1:-1]
    return folder, scores


@pytest.fixture(scope="module")
def saliency_report(saliency):
    folder, _ = saliency
    return evaluate(folder / "results", dataset="vsod", root=folder / "set")


def test_sequences_weigh_the_same_and_curves_are_averaged_first(saliency, saliency_report):
    _, scores = saliency
    summary = saliency_report.summary
    for name, field in (
        ("MAE", "mae"),
        ("S", "s_measure"),
        ("wF", "weighted_f"),
        ("F_adaptive", "f_adaptive"),
        ("E_adaptive", "e_adaptive"),
    ):
        values = [[getattr(s, field) for s in seq] for seq in scores.values()]
        assert summary[name] == pytest.approx(np.mean([np.mean(v) for v in values]))
        assert summary[f"{name}_over_images"] == pytest.approx(np.mean(np.concatenate(values)))
    for name in "FE":
        curves = [[getattr(s, f"{name.lower()}_curve") for s in seq] for seq in scores.values()]
        by_sequence = np.mean([np.mean(c, 0) for c in curves], 0)
        assert summary[f"{name}_max"] == pytest.approx(by_sequence.max())
        assert summary[f"{name}_mean"] == pytest.approx(by_sequence.mean())
        by_image = np.mean(np.concatenate(curves), 0)
        assert summary[f"{name}_max_over_images"] == pytest.approx(by_image.max())
    assert "over images" in saliency_report.protocol


def test_first_and_last_frame_are_not_scored(saliency, saliency_report):
    _, scores = saliency
    for row in saliency_report.rows:
        assert row.frames == tuple(f"{t:05d}" for t in range(1, LENGTHS[row.name] - 1))
        np.testing.assert_array_equal(row.values["MAE"], [s.mae for s in scores[row.name]])
        curve = np.mean([s.f_curve for s in scores[row.name]], 0)
        assert row.stats["F_max"] == pytest.approx(curve.max())
        np.testing.assert_allclose(row.values["F_max"], [s.f_curve.max() for s in scores[row.name]])


def test_measures_can_be_chosen(saliency):
    folder, _ = saliency
    found = evaluate(folder / "results", dataset="vsod", root=folder / "set", measures=("MAE", "E"))
    assert set(found.rows[0].values) == {"MAE", "E_adaptive", "E_mean", "E_max"}


def test_indexed_maps_and_short_sequences_are_refused(saliency, tmp_path):
    folder, _ = saliency
    for name, length in LENGTHS.items():
        trees.save_frames(tmp_path / "r" / name, np.zeros((length, H, W), np.uint8), palette=True)
    with pytest.raises(DataError, match=r"00001.png: a saliency map is an 8-bit grey image"):
        evaluate(tmp_path / "r", dataset="vsod", root=folder / "set")
    trees.save_frames(tmp_path / "set" / "soccer" / "ground-truth", trees.clip(0, 2))
    with pytest.raises(DataError, match=r"'soccer' has 2 annotated frames.*at least 3"):
        evaluate(tmp_path / "r", dataset="vsod", root=tmp_path / "set")


# ----- flow --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flow")
    rng = np.random.default_rng(1)
    expected = {}
    for name, length in (("alley", 3), ("market", 2)):
        expected[name] = []
        for k in range(length):
            gt = rng.normal(size=(9, 12, 2)).astype(np.float32) * 40
            pred = gt + rng.normal(size=gt.shape).astype(np.float32) * 2.5
            known = rng.random((9, 12)) < 0.8
            gt[~known] = 1e10  # "unknown" in .flo files
            trees.save_flo(folder / "set" / name / f"frame_{k:04d}.flo", gt)
            trees.save_flo(folder / "results" / name / f"frame_{k:04d}.flo", pred)
            expected[name].append(by_loops(pred, gt, known))
    return folder, expected


def test_flow_is_scored_where_it_is_known(flow):
    folder, expected = flow
    report = evaluate(folder / "results", dataset="flow", root=folder / "set")
    for k, name in enumerate(("EPE", "Fl")):
        values = {seq: [pair[k] for pair in pairs] for seq, pairs in expected.items()}
        for row in report.rows:
            np.testing.assert_allclose(row.values[name], values[row.name], rtol=1e-5)
        means = [np.mean(v) for v in values.values()]
        assert report.summary[f"{name}_mean"] == pytest.approx(np.mean(means), rel=1e-5)
        every = np.concatenate(list(values.values()))
        assert report.summary[f"{name}_mean_over_frames"] == pytest.approx(every.mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda b: b[:-8], r"bytes do not hold the 12x9 vectors"),
        (lambda b: b"PIEX" + b[4:], r"not a .flo file"),
        (lambda b: b"", r"not a .flo file"),
    ],
)
def test_damaged_flow_files_are_named(flow, tmp_path, damage, expected):
    folder, _ = flow
    for name, length in (("alley", 3), ("market", 2)):
        for k in range(length):
            file = f"{name}/frame_{k:04d}.flo"
            raw = (folder / "results" / file).read_bytes()
            target = tmp_path / file
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(damage(raw) if file == "market/frame_0001.flo" else raw)
    with pytest.raises(DataError, match=r"market/frame_0001.flo: .*" + expected):
        evaluate(tmp_path, dataset="flow", root=folder / "set")


def test_flow_of_another_size_is_refused(flow, tmp_path):
    folder, _ = flow
    for k in range(2):
        trees.save_flo(tmp_path / "market" / f"frame_{k:04d}.flo", np.zeros((3, 4, 2)))
    with pytest.raises(DataError, match=r"the flow is 4x3 but the true one is 12x9"):
        evaluate(tmp_path, dataset="flow", root=folder / "set", sequences="present")


def test_masks_are_no_flow(flow, tmp_path):
    folder, _ = flow
    trees.save_frames(tmp_path / "market", trees.clip(0, T))
    with pytest.raises(DataError, match=r"holds no FLO \(it has 00000.png"):
        evaluate(tmp_path, dataset="flow", root=folder / "set", sequences="market")

"""Equality with the outputs of the reference programs, run on seeded shapes.

J, F, statistics and matching: davisvideochallenge/davis2017-evaluation; T and the statistics of
2016: fperazzi/davis; saliency: PySODMetrics. Masks are stored packed 8 to a byte.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.metrics import oracles
from uvos_jax.metrics import davis, proposals, temporal
from uvos_jax.metrics.saliency import saliency_scores
from uvos_jax.metrics.statistics import statistics

DATA = Path(__file__).parents[1] / "data"
EXPECTED = json.loads((DATA / "metrics_expected.json").read_text())
SINGLE, MULTI, SOD = (EXPECTED[k] for k in ("single", "multi", "sod"))


@pytest.fixture(scope="module")
def inputs():
    with np.load(DATA / "metrics_inputs.npz") as file:
        return dict(file)


def bits(packed, width):
    return np.unpackbits(packed, axis=-1, count=width).astype(bool)


def floats(values):
    return np.array([np.nan if v is None else v for v in values], float)


def single(inputs, name):
    width = SINGLE[name]["shape"][-1]
    return (bits(inputs[f"single_{name}_{k}"], width) for k in ("pred", "gt"))


@pytest.mark.parametrize("name", SINGLE)
def test_j_and_f_equal_the_reference(inputs, name):
    pred, gt = single(inputs, name)
    j, f = davis.j_and_f(pred, gt)
    np.testing.assert_allclose(j, SINGLE[name]["J"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(f, SINGLE[name]["F"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", SINGLE)
def test_statistics_equal_the_reference(name):
    for measure in "JF":
        values = np.array(SINGLE[name][measure])
        expected = SINGLE[name]
        np.testing.assert_allclose(
            statistics(values), floats(expected[f"{measure}_stats_all"]), rtol=0, atol=1e-12
        )
        np.testing.assert_allclose(
            statistics(values[1:-1]), floats(expected[f"{measure}_stats_davis16"]), atol=1e-12
        )


@pytest.fixture(scope="module")
def stability(inputs):
    return {name: temporal.temporal_stability(next(single(inputs, name))) for name in SINGLE}


def test_t_equals_the_reference_on_nine_pairs_in_ten(stability):
    ours = np.concatenate([stability[name] for name in SINGLE])
    theirs = np.concatenate([floats(SINGLE[name]["T_pairs"]) for name in SINGLE])
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs))
    gap = np.abs(ours - theirs)[~np.isnan(ours)]
    near = gap <= np.maximum(0.01, 0.02 * theirs[~np.isnan(theirs)])
    assert near.mean() >= 0.9
    assert (gap < 1e-9).mean() >= 0.9  # on these shapes most pairs are even identical


@pytest.mark.parametrize("name", ["blob", "border", "thin"])
def test_mean_t_equals_the_reference(stability, name):
    ours = np.nanmean(stability[name][1:-1])
    assert ours == pytest.approx(SINGLE[name]["T_mean_davis16"], abs=0.01)


def test_where_t_differs_most_a_tie_between_paths_decides(inputs, stability):
    pred, _ = single(inputs, "empty")
    theirs = floats(SINGLE["empty"]["T_pairs"])
    pair = int(np.nanargmax(np.abs(stability["empty"] - theirs)))
    first, second = (temporal.outline(pred[pair + k]) for k in (0, 1))
    possible = oracles.stabilities(oracles.matching_cost(first, second))
    assert min(abs(v - stability["empty"][pair]) for v in possible) < 1e-9
    assert min(abs(v - theirs[pair]) for v in possible) < 1e-9


@pytest.mark.parametrize("name", MULTI)
def test_matched_proposals_equal_the_reference(inputs, name):
    expected = MULTI[name]
    pred, gt = inputs[f"multi_{name}_pred"], inputs[f"multi_{name}_gt"]
    void = bits(inputs[f"multi_{name}_void"], gt.shape[-1])
    objects = int(gt[0].max())
    count = max(objects, int(pred.max()))
    frames = [
        proposals.pairwise_j_and_f(p, g, num_proposals=count, num_objects=objects, void=v)
        for p, g, v in zip(pred, gt, void, strict=True)
    ]
    j, f = (np.stack([frame[k][:-1] for frame in frames], -1) for k in (0, 1))
    chosen = proposals.match(j, f)
    rows = np.argsort(chosen)  # the reference lists pairs by proposal
    ours_j, ours_f = (scores[chosen[rows], rows] for scores in (j, f))
    np.testing.assert_allclose(ours_j, expected["J"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(ours_f, expected["F"], rtol=0, atol=1e-6)
    for values, key in ((ours_j, "J_stats"), (ours_f, "F_stats")):
        np.testing.assert_allclose([statistics(v) for v in values], expected[key], atol=1e-6)
    assert (ours_j.mean() + ours_f.mean()) / 2 == pytest.approx(expected["JF_mean"], abs=1e-6)


@pytest.fixture(scope="module")
def scored(inputs):
    gt = bits(inputs["sod_gt"], SOD["shape"][-1])
    return [saliency_scores(p, g) for p, g in zip(inputs["sod_pred"], gt, strict=True)]


def test_saliency_of_each_map_equals_the_reference(scored):
    for i, (ours, theirs) in enumerate(zip(scored, SOD["frames"], strict=True)):
        found = {
            "mae": ours.mae,
            "sm": ours.s_measure,
            "wfm": ours.weighted_f,
            "adp_fm": ours.f_adaptive,
            "mean_fm": ours.f_curve.mean(),
            "max_fm": ours.f_curve.max(),
            "adp_em": ours.e_adaptive,
            "mean_em": ours.e_curve.mean(),
            "max_em": ours.e_curve.max(),
        }
        for name, value in found.items():
            assert value == pytest.approx(theirs[name], abs=1e-9), f"map {i}, {name}"


def test_saliency_of_the_set_averages_curves_first(scored):
    expected = SOD["dataset"]
    f, e, precision, recall = (
        np.mean([getattr(s, name) for s in scored], 0)
        for name in ("f_curve", "e_curve", "precision", "recall")
    )
    found = {
        "mae": np.mean([s.mae for s in scored]),
        "sm": np.mean([s.s_measure for s in scored]),
        "wfm": np.mean([s.weighted_f for s in scored]),
        "adp_fm": np.mean([s.f_adaptive for s in scored]),
        "adp_em": np.mean([s.e_adaptive for s in scored]),
        "mean_fm": f.mean(),
        "max_fm": f.max(),
        "mean_em": e.mean(),
        "max_em": e.max(),
    }
    for name, value in found.items():
        assert value == pytest.approx(expected[name], abs=1e-9), name
    np.testing.assert_allclose(precision[::16], expected["precision"], atol=1e-9)
    np.testing.assert_allclose(recall[::16], expected["recall"], atol=1e-9)

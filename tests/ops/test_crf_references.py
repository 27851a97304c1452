"""The dense CRF against recorded answers of pydensecrf (tools/record_crf_references.py)."""

import json
from pathlib import Path

import numpy as np
import pytest

from uvos_jax.ops.crf import PRESETS, Bilateral, Gaussian, dense_crf

PATH = Path(__file__).parents[1] / "data" / "crf_references.npz"
FILE = np.load(PATH)
CASES = sorted(k.removesuffix("/settings") for k in FILE.files if k.endswith("/settings"))
#: Two-word codes, the double logarithm with its early stop, a feature order, a matrix and a
#: normalisation; compiling is what takes the time, so the others are run with the slow tests.
QUICK = ("kl_10", "norm_after", "odd_small_scale", "order_xy", "three_labels_matrix")
NAMED = [c for c in CASES if c in PRESETS]


def load(case):
    settings = json.loads(str(FILE[f"{case}/settings"]))
    image, probs = (FILE[f"{settings['size']}/{k}"] for k in ("image", "probs"))
    terms = []
    for term in settings["terms"]:
        term = dict(term)
        kind = {"gaussian": Gaussian, "bilateral": Bilateral}[term.pop("kind")]
        terms.append(
            kind(
                **{
                    k: tuple(v) if k[1:] in ("dims", "chan") and isinstance(v, list) else v
                    for k, v in term.items()
                }
            )
        )
    return image, probs.astype(np.float32) / 255, FILE[f"{case}/Q"], settings, tuple(terms)


def assert_same(ours, theirs):
    """Rounding only: where a pixel sits on the edge of two simplices, they may part by 1e-4."""
    assert ours.shape == theirs.shape
    difference = np.abs(np.asarray(ours) - theirs)
    assert difference.mean() <= 1e-6
    assert np.quantile(difference, 0.999) <= 1e-4


def quick_first(names, quick):
    return [n if n in quick else pytest.param(n, marks=pytest.mark.slow) for n in names]


@pytest.mark.parametrize("case", quick_first(CASES, QUICK))
def test_marginals_equal_those_of_pydensecrf(case):
    image, p, Q, settings, terms = load(case)
    if settings["labels"] == 3:
        third = 0.5 * p * (1 - p)
        probs = np.stack([(1 - p) * (1 - third), p * (1 - third), third])
    else:
        probs = p
    preset = "matnet" if settings["unary"] == "rescored" else "cosnet"
    ours = dense_crf(
        image,
        probs,
        terms=terms,
        iterations=settings["iterations"],
        kl_stop=settings["kl_stop"],
        preset=preset,
    )
    assert_same(ours, Q)


@pytest.mark.parametrize("name", quick_first(NAMED, ("cosnet", "matnet")))
def test_preset_equals_the_published_settings(name):
    image, p, Q, _, _ = load(name)
    assert_same(dense_crf(image, p, preset=name), Q)

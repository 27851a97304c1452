"""Records what pydensecrf answers on small synthetic images: tests/data/crf_references.npz.

Run it in an environment of its own, where pydensecrf is built from source:

    python -m venv crf && crf/bin/pip install "cython<3" setuptools wheel numpy
    crf/bin/pip install --no-build-isolation pydensecrf2
    crf/bin/python tools/record_crf_references.py tests/data/crf_references.npz
"""

from __future__ import annotations

import json
import sys

import numpy as np


def scene(height: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A disc on a gradient with noise, and a blurred, displaced foreground map (8-bit steps)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float64)
    inside = np.hypot(y - 0.45 * height, x - 0.55 * width) < 0.28 * height
    image = np.stack([90 + 0.6 * x, 60 + 0.8 * y, 120 + 0.2 * (x - y)], axis=-1)
    image[inside] = (200, 120, 40)
    image[: height // 8, : width // 8] = 0
    image = np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8)
    distance = np.hypot(y - 0.5 * height, x - 0.5 * width) - 0.3 * height
    probs = 1 / (1 + np.exp(distance / 3)) + rng.normal(0, 0.05, (height, width))
    probs = (probs - probs.min()) / (probs.max() - probs.min())
    return image, np.round(probs * 255).astype(np.uint8)


GAUSS = {"kind": "gaussian", "sdims": 3, "compat": 3}
BILATERAL = {"kind": "bilateral", "sdims": 30, "schan": 5, "compat": 5}
#: Weak terms leave undecided pixels, where a small error would show.
SOFT = {"kind": "gaussian", "sdims": 2, "compat": 0.6}
SOFT_BILATERAL = {"kind": "bilateral", "sdims": 12, "schan": 8, "compat": 0.9}
SMALL = {"kind": "bilateral", "sdims": 10, "schan": 1, "compat": 5}

#: name -> (size, labels, unary, iterations, kl_stop, terms)
CASES = {
    "cosnet": ((48, 72), 2, "softmax", 5, None, [
        {"kind": "gaussian", "sdims": 1, "compat": 5},
        {"kind": "bilateral", "sdims": 15, "schan": 7, "compat": 9}]),
    "agnn": ((48, 72), 2, "softmax", 5, None, [
        {"kind": "gaussian", "sdims": 1, "compat": 5},
        {"kind": "bilateral", "sdims": 30, "schan": 5, "compat": 9}]),
    "matnet": ((48, 72), 2, "rescored", 5, 500.0, [GAUSS, BILATERAL]),
    "ags": ((48, 72), 2, "rescored", 10, 500.0, [GAUSS, BILATERAL]),
    "kl_10": ((48, 72), 2, "softmax", 10, 10.0, [GAUSS, BILATERAL]),
    "pdb_convlstm": ((48, 72), 2, "softmax", 5, None, [
        GAUSS, {"kind": "bilateral", "sdims": 60, "schan": 5, "compat": 5}]),
    "f2net": ((48, 72), 2, "softmax", 5, None, [GAUSS, SMALL]),
    "odd_37x51": ((37, 51), 2, "softmax", 5, None, [SOFT, SOFT_BILATERAL]),
    "odd_small_scale": ((37, 51), 2, "softmax", 5, None, [SOFT, SMALL]),
    "zero_steps": ((37, 51), 2, "softmax", 0, None, [SOFT, SOFT_BILATERAL]),
    "one_row": ((1, 50), 2, "softmax", 5, None, [SOFT, SOFT_BILATERAL]),
    "anisotropic": ((37, 51), 2, "softmax", 5, None, [
        {"kind": "gaussian", "sdims": [2, 5], "compat": 0.6},
        {"kind": "bilateral", "sdims": [20, 35], "schan": [4, 9, 6], "compat": 0.9}]),
    "order_xy": ((37, 51), 2, "softmax", 5, None, [
        {**SOFT, "order": "xy"}, {**SOFT_BILATERAL, "order": "xy"}]),
    **{f"norm_{n}": ((37, 51), 2, "softmax", 3, None, [
        {**SOFT, "normalization": n, "compat": 0.02 if n == "none" else 0.6},
        {**SOFT_BILATERAL, "normalization": n, "compat": 0.002 if n == "none" else 0.9}])
       for n in ("before", "after", "none")},
    "three_labels": ((37, 51), 3, "softmax", 5, None, [SOFT, SOFT_BILATERAL]),
    "three_labels_diagonal": ((37, 51), 3, "softmax", 5, None, [
        {**SOFT, "compat": [-0.5, -0.8, -1.1]}, SOFT_BILATERAL]),
    "three_labels_matrix": ((37, 51), 3, "softmax", 5, None, [
        SOFT, {**SOFT_BILATERAL, "compat": [[-0.8, 0.1, 0.2], [0.3, -1, 0.1], [0, 0.1, -0.5]]}]),
    "two_labels_matrix": ((37, 51), 2, "softmax", 5, None, [
        SOFT, {**SOFT_BILATERAL, "compat": [[-0.8, 0.1], [0.3, -1]]}]),
}  # fmt: skip


def energies(probs: np.ndarray, labels: int, kind: str) -> np.ndarray:
    """Energies as the published scripts write them."""
    from pydensecrf import utils

    p = probs / 255
    if labels == 3:
        third = 0.5 * p * (1 - p)
        return utils.unary_from_softmax(np.stack([(1 - p) * (1 - third), p * (1 - third), third]))
    if kind == "softmax":
        return utils.unary_from_softmax(np.stack([1 - p, p]), scale=1.0)

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    fg = -np.log(1 - p + 1e-8) / (1.05 * sigmoid(1 - p))
    bg = -np.log(p + 1e-8) / (1.05 * sigmoid(p))
    return utils.unary_from_softmax(np.stack([bg, fg]))


def infer(image, probs, labels, unary, iterations, kl_stop, terms) -> np.ndarray:
    """Runs pydensecrf; returns `[L,H,W]`."""
    import pydensecrf.densecrf as dcrf
    from pydensecrf import utils

    norms = {
        "none": dcrf.NO_NORMALIZATION,
        "before": dcrf.NORMALIZE_BEFORE,
        "after": dcrf.NORMALIZE_AFTER,
        "symmetric": dcrf.NORMALIZE_SYMMETRIC,
    }
    H, W = probs.shape
    crf = dcrf.DenseCRF2D(W, H, labels)
    crf.setUnaryEnergy(np.ascontiguousarray(energies(probs, labels, unary), dtype=np.float32))
    for term in terms:
        compat = term["compat"]
        compat = compat if np.isscalar(compat) else np.asarray(compat, np.float32)
        options = {
            "compat": compat,
            "kernel": dcrf.DIAG_KERNEL,
            "normalization": norms[term.get("normalization", "symmetric")],
        }
        sdims = tuple(np.broadcast_to(term["sdims"], 2).tolist())
        if term["kind"] == "gaussian":
            if term.get("order") == "xy":
                crf.addPairwiseGaussian(sxy=sdims[::-1], **options)
            else:
                features = utils.create_pairwise_gaussian(sdims=sdims, shape=(H, W))
                crf.addPairwiseEnergy(features, **options)
            continue
        schan = tuple(np.broadcast_to(term["schan"], 3).tolist())
        if term.get("order") == "xy":
            crf.addPairwiseBilateral(
                sxy=sdims[::-1], srgb=schan, rgbim=np.ascontiguousarray(image), **options
            )
        else:
            features = utils.create_pairwise_bilateral(sdims=sdims, schan=schan, img=image, chdim=2)
            crf.addPairwiseEnergy(features, **options)
    if kl_stop is None:
        return np.array(crf.inference(iterations)).reshape(labels, H, W)
    Q, tmp1, tmp2 = crf.startInference()
    for _ in range(iterations):
        before = crf.klDivergence(Q)
        crf.stepInference(Q, tmp1, tmp2)
        if abs(crf.klDivergence(Q) - before) < kl_stop:
            break
    return np.array(Q).reshape(labels, H, W)


def main(path: str) -> None:
    arrays = {}
    for name, (size, labels, unary, iterations, kl_stop, terms) in CASES.items():
        image, probs = scene(*size, seed=size[0])
        Q = infer(image, probs, labels, unary, iterations, kl_stop, terms)
        settings = {
            "size": f"{size[0]}x{size[1]}",
            "labels": labels,
            "unary": unary,
            "iterations": iterations,
            "kl_stop": kl_stop,
            "terms": terms,
        }
        arrays[f"{size[0]}x{size[1]}/image"] = image
        arrays[f"{size[0]}x{size[1]}/probs"] = probs
        arrays[f"{name}/Q"] = Q[1] if labels == 2 else Q
        arrays[f"{name}/settings"] = np.array(json.dumps(settings))
        print(f"{name}: {np.mean((Q[1] > 0.01) & (Q[1] < 0.99)):.1%} of the pixels undecided")
    np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    main(sys.argv[1])

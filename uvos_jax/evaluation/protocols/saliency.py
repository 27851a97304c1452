"""Video saliency: measures of soft maps, averaged per sequence and, for comparison, per image."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from uvos_jax.data.sources.layouts import SequenceFiles
from uvos_jax.errors import DataError
from uvos_jax.evaluation import masks
from uvos_jax.evaluation.protocols.base import Protocol, Row
from uvos_jax.metrics.saliency import SaliencyScores, saliency_scores

_SCALARS = ("MAE", "S", "wF")
_FIELDS = {
    "MAE": "mae",
    "S": "s_measure",
    "wF": "weighted_f",
    "F_adaptive": "f_adaptive",
    "E_adaptive": "e_adaptive",
}


class VideoSaliency(Protocol):
    """MAE, S, weighted F, and F and E as adaptive, mean and maximum over thresholds."""

    name = "vsod"
    available = ("MAE", "S", "F", "E", "wF")

    @property
    def statement(self) -> str:
        return (
            "video saliency (protocol of the DAVSOD evaluation tool): first and last annotated "
            "frame of a sequence not evaluated, maps min-max normalised, beta^2 = 0.3, 256 "
            "thresholds; values and threshold curves averaged over the frames of a sequence, then "
            "over sequences; mean and maximum are taken on the averaged curve. Numbers marked "
            "'over images' average over all evaluated frames instead, as image-saliency tools do."
        )

    def frames(self, sequence: SequenceFiles) -> tuple[str, ...]:
        if len(sequence.frames) < 3:
            raise DataError(
                f"sequence {sequence.name!r} has {len(sequence.frames)} annotated frames: the "
                "protocol drops the first and the last and needs at least 3"
            )
        return sequence.frames[1:-1]

    def score(self, sequence: SequenceFiles, results: Path) -> list[Row]:
        frames = self.frames(sequence)
        files = dict(zip(sequence.frames, sequence.annotations, strict=True))
        values: dict[str, list[float]] = {name: [] for name in self._per_frame()}
        sums = {name: np.zeros(256) for name in ("F", "E") if name in self.measures}
        for frame in frames:
            path = results / f"{frame}.png"
            pred = masks.soft_result(path)
            gt = masks.annotation(files[frame], sequence.rule)
            masks.check_size(path, pred, gt.shape, files[frame][0])
            scores = saliency_scores(pred, gt)
            for name, value in self._values(scores).items():
                values[name].append(value)
            for name in sums:
                sums[name] += getattr(scores, f"{name.lower()}_curve")
        arrays = {name: np.array(v) for name, v in values.items()}
        curves = {name: total / len(frames) for name, total in sums.items()}
        scalars = {name: float(v.mean()) for name, v in arrays.items() if name in _FIELDS}
        return [
            Row(
                sequence.name,
                frames,
                arrays,
                _with_curves(scalars, curves),
                sequence.group,
                curves,
            )
        ]

    def _per_frame(self) -> list[str]:
        names = [name for name in _SCALARS if name in self.measures]
        for name in ("F", "E"):
            if name in self.measures:
                names += [f"{name}_adaptive", f"{name}_mean", f"{name}_max"]
        return names

    def _values(self, scores: SaliencyScores) -> dict[str, float]:
        values = {}
        for name in self._per_frame():
            if name in _FIELDS:
                values[name] = getattr(scores, _FIELDS[name])
            else:
                measure, kind = name.split("_")
                values[name] = float(getattr(getattr(scores, f"{measure.lower()}_curve"), kind)())
        return values

    def summarise(self, rows: list[Row]) -> dict[str, float]:
        scalars = {
            name: float(np.mean([row.stats[name] for row in rows]))
            for name in self._per_frame()
            if name in _FIELDS
        }
        curves = {name: np.mean([row.curves[name] for row in rows], 0) for name in rows[0].curves}
        summary = _with_curves(scalars, curves)
        weights = np.array([len(row.frames) for row in rows], np.float64)
        scalars = {
            name: float(np.concatenate([row.values[name] for row in rows]).mean())
            for name in scalars
        }
        curves = {
            name: np.average([row.curves[name] for row in rows], axis=0, weights=weights)
            for name in curves
        }
        images = _with_curves(scalars, curves)
        return summary | {f"{name}_over_images": value for name, value in images.items()}


def _with_curves(scalars: dict[str, float], curves: dict[str, np.ndarray]) -> dict[str, float]:
    out = dict(scalars)
    for name, curve in curves.items():
        out[f"{name}_mean"], out[f"{name}_max"] = float(curve.mean()), float(curve.max())
    return out

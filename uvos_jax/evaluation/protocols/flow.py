"""Optical flow: end-point error and outlier share of `.flo` files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from uvos_jax.data.flow_files import read_flo
from uvos_jax.data.sources.layouts import SequenceFiles
from uvos_jax.errors import DataError
from uvos_jax.evaluation.protocols.base import Protocol, Row, mean
from uvos_jax.metrics.flow import OUTLIER_PIXELS, OUTLIER_SHARE, flow_errors

_UNKNOWN = 1e9  # flow of this length or more means "unknown" in .flo files


class OpticalFlow(Protocol):
    """EPE and Fl per frame, mean per sequence and over sequences."""

    name = "flow"
    suffix = ".flo"
    available = ("EPE", "Fl")

    @property
    def statement(self) -> str:
        return (
            "optical flow: EPE is the mean length of the error in pixels, Fl the share of pixels "
            f"wrong by more than {OUTLIER_PIXELS:g} pixels and {OUTLIER_SHARE:.0%} of the true "
            "flow, both over pixels whose true flow is known; mean over the frames of a sequence, "
            "then over sequences; 'over frames' weighs all frames the same."
        )

    def score(self, sequence: SequenceFiles, results: Path) -> list[Row]:
        values: dict[str, list[float]] = {name: [] for name in self.measures}
        for frame, files in zip(sequence.frames, sequence.annotations, strict=True):
            path = results / f"{frame}.flo"
            gt, pred = read_flo(files[0]), read_flo(path)
            if pred.shape != gt.shape:
                raise DataError(
                    f"{path}: the flow is {pred.shape[1]}x{pred.shape[0]} but the true one is "
                    f"{gt.shape[1]}x{gt.shape[0]}; save flow at the size of the truth"
                )
            known = (np.abs(gt) < _UNKNOWN).all(-1)
            errors = flow_errors(pred, np.where(known[..., None], gt, 0.0), known)
            for name in values:
                values[name].append(float(errors[name.lower()]))
        arrays = {name: np.array(v) for name, v in values.items()}
        stats = {f"{name}_mean": mean(v) for name, v in values.items()}
        return [Row(sequence.name, sequence.frames, arrays, stats)]

    def summarise(self, rows: list[Row]) -> dict[str, float]:
        summary = super().summarise(rows)
        for name in self.measures:
            every = np.concatenate([row.values[name] for row in rows])
            summary[f"{name}_mean_over_frames"] = mean(every)
        return summary

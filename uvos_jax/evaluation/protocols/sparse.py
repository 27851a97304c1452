"""YouTube-Objects, FBMS-59 and SegTrack v2: region similarity on annotated frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from uvos_jax.data.sources.layouts import SequenceFiles
from uvos_jax.evaluation.protocols.base import Protocol, Row, binary_pairs, mean
from uvos_jax.metrics.sparse import averages, iou

_COMMON = (
    "J on annotated frames (frames with an empty annotation left out), results binarised as for "
    "DAVIS-2016, mean over the frames of a sequence"
)


class _SparseRegion(Protocol):
    """J per annotated frame; NaN where the annotation is empty."""

    available = ("J",)

    def score(self, sequence: SequenceFiles, results: Path) -> list[Row]:
        values: dict[str, list[float]] = {name: [] for name in self.measures}
        for pred, gt in binary_pairs(
            sequence, results, sequence.frames, merge_objects=self.merge_objects
        ):
            if "J" in values:
                values["J"].append(iou(pred, gt) if gt.any() else float("nan"))
            if "MAE" in values:
                values["MAE"].append(float(np.mean(pred != gt)))
        arrays = {name: np.array(v) for name, v in values.items()}
        stats = {f"{name}_mean": mean(v) for name, v in values.items()}
        return [Row(sequence.name, sequence.frames, arrays, stats, sequence.group)]

    def summarise(self, rows: list[Row]) -> dict[str, float]:
        summary = super().summarise(rows)
        if "J" in self.measures:
            grouped = all(row.group is not None for row in rows)
            found = averages(
                {row.name: row.values["J"] for row in rows},
                {row.name: row.group for row in rows} if grouped else None,
            )
            if grouped:
                summary["J_mean_over_categories"] = found["categories"]
            summary["J_mean_over_frames"] = found["frames"]
        return summary


class YouTubeObjects(_SparseRegion):
    """Ten categories; two averages are in use and both are given."""

    name = "youtube_objects"

    @property
    def statement(self) -> str:
        return (
            f"YouTube-Objects: {_COMMON}; two averages circulate: J mean is over all sequences, "
            "J mean over categories is over the means of the categories."
        )


class Fbms59(_SparseRegion):
    """All labelled moving objects are one foreground."""

    name = "fbms"

    @property
    def statement(self) -> str:
        return (
            f"FBMS-59: all labelled objects are one foreground; {_COMMON}; J mean is over "
            "sequences, J mean over frames weighs all annotated frames the same."
        )


class SegTrack2(_SparseRegion):
    """Every frame annotated; objects in separate folders are united."""

    name = "segtrack"
    available = ("J", "MAE")

    @property
    def statement(self) -> str:
        return (
            f"SegTrack v2: all objects of a sequence are one foreground; {_COMMON}; J mean is over "
            "sequences, J mean over frames over all frames"
            + ("; MAE is of the binary masks" if "MAE" in self.measures else "")
            + "."
        )

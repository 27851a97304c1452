"""The outcome of an evaluation: numbers, the protocol they follow, and ways to write them down."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from uvos_jax.data.sources.layouts import SequenceFiles
from uvos_jax.data.video_io import atomic_write
from uvos_jax.errors import DataError
from uvos_jax.evaluation.protocols import Row


@dataclasses.dataclass
class Report:
    """Scores of one set of results.

    Attributes:
      dataset: id of the data set.
      protocol: which frames, rules and averages were used, in words.
      layout: where and how the annotations were found, in words.
      results, root: the folders that were compared.
      summary: numbers of the whole data set, for example `J_mean`.
      rows: per sequence (or object) numbers with their per-frame values.
      groups: numbers per category, for data sets with categories.
      sequences: files of the scored sequences (for pictures).
      version: of the library.
    """

    dataset: str
    protocol: str
    layout: str
    results: str
    root: str
    summary: dict[str, float]
    rows: list[Row]
    groups: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    sequences: tuple[SequenceFiles, ...] = dataclasses.field(default=(), repr=False)
    version: str = ""

    @property
    def per_sequence(self) -> dict[str, dict[str, float]]:
        """Row name -> its numbers."""
        return {row.name: row.stats for row in self.rows}

    @property
    def columns(self) -> list[str]:
        """Names of the numbers that rows have, in order."""
        return list(dict.fromkeys(key for row in self.rows for key in row.stats))

    @property
    def per_frame(self) -> dict[str, dict[str, Any]]:
        """Row name -> `frames` and, per measure, one value per frame."""
        return {row.name: {"frames": list(row.frames), **row.values} for row in self.rows}

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values; NaN becomes None."""
        return {
            "dataset": self.dataset,
            "protocol": self.protocol,
            "layout": self.layout,
            "results": self.results,
            "root": self.root,
            "uvos_jax": self.version,
            "summary": _plain(self.summary),
            "groups": _plain(self.groups),
            "per_sequence": _plain(self.per_sequence),
            "per_frame": _plain(self.per_frame),
        }

    def to_json(self, path: str | Path) -> None:
        """Writes `as_dict()` as JSON."""
        _write(path, json.dumps(self.as_dict(), indent=1) + "\n")

    def to_csv(self, path: str | Path) -> None:
        """Writes one line per row and a last line `Average`; full precision, empty for NaN."""
        columns = self.columns
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["Sequence", *columns])
        for name, numbers in [*self.per_sequence.items(), ("Average", self.summary)]:
            writer.writerow([name, *(_cell(numbers.get(c), "{!r}", "") for c in columns)])
        _write(path, out.getvalue())

    def to_html(self, path: str | Path, *, worst: int = 12) -> None:
        """Writes one self-contained page: tables, a curve per sequence, the worst frames."""
        from uvos_jax.evaluation.html import render

        _write(path, render(self, worst=worst))

    def print(self, console: Any = None) -> None:
        """Prints the table with rich: protocol, one line per row, the average."""
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        console = console or Console()
        columns = self.columns
        # Names and paths are shown as they are: rich would take "[dog]" for a style, and would
        # break a path that a reader wants to copy.
        console.print(Text(f"{self.dataset}: {self.results}", style="bold"), soft_wrap=True)
        table = Table()
        table.add_column("sequence", overflow="fold")
        for column in columns:
            # A narrow screen folds a number, it never cuts one.
            table.add_column(column.replace("_", " "), justify="right", overflow="fold")
        for name, numbers in self.per_sequence.items():
            table.add_row(Text(name), *(_cell(numbers.get(c)) for c in columns))
        for name, numbers in self.groups.items():
            cells = (_cell(numbers.get(c)) for c in columns)
            table.add_row(Text(f"[{name}]"), *cells, style="cyan")
        table.add_section()
        table.add_row(
            f"average of {len(self.rows)}",
            *(_cell(self.summary.get(c)) for c in columns),
            style="bold",
        )
        console.print(table)
        extra = {k: v for k, v in self.summary.items() if k not in columns}
        for name, value in extra.items():
            console.print(Text(f"{name.replace('_', ' ')}: {_cell(value)}"))
        console.print(Text(f"Protocol: {self.protocol}"), soft_wrap=True)
        console.print(Text(f"Annotations: {self.root} ({self.layout})"), soft_wrap=True)


def _cell(value: float | None, form: str = "{:.3f}", empty: str = "-") -> str:
    if value is None or math.isnan(value):
        return empty
    return form.format(float(value))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(v) for v in value]
    if isinstance(value, (float, np.floating)):
        return None if math.isnan(value) else float(value)
    return value


def _write(path: str | Path, text: str) -> None:
    check_writable(path)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def check_writable(path: str | Path) -> None:
    """Raises `DataError` if a file cannot be put there, before the slow part."""
    path = Path(path)
    if path.is_dir():
        raise DataError(f"cannot write {path}: it is a folder; give a file name")
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise DataError(f"cannot write {path}: {folder} is not a folder one can write to")

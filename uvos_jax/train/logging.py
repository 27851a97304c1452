"""What a run says: messages, JSON lines, TensorBoard, and a progress line. Process 0 only."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np

log = logging.getLogger("uvos_jax")


class _PlainHandler(logging.Handler):
    """Prints to what `sys.stderr` is at that moment, so that a live progress bar stays whole."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        print(prefix + self.format(record), file=sys.stderr, flush=True)


def show_messages(*, quiet: bool = False) -> None:
    """Lets the library's messages appear on stderr, once each, without logger names.

    Other libraries may have given the root logger handlers of their own; ours go past them.
    """
    log.handlers = [_PlainHandler()]
    log.propagate = False
    log.setLevel(logging.WARNING if quiet else logging.INFO)


class RunLog:
    """Writers of one run.

    `metrics.jsonl` gets one object per call of `write`; TensorBoard the same numbers. After a
    resume, lines beyond the restored step are dropped, so that a step appears once.
    """

    def __init__(self, workdir: Path, *, active: bool, start_step: int = 0):
        self.active = active
        self.path = workdir / "metrics.jsonl"
        if not active:
            return
        self._trim(start_step)
        self.file = self.path.open("a", buffering=1)
        from tensorboardX import SummaryWriter

        self.board = SummaryWriter(str(workdir / "tensorboard"), purge_step=start_step + 1)

    def _trim(self, step: int) -> None:
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError):
                continue  # a line cut short by a kill
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(f"{line}\n" for line in kept))
        temporary.replace(self.path)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Records numbers (and lists of numbers) for a step."""
        if not self.active:
            return
        self.file.write(json.dumps({"step": step, **values}) + "\n")
        for key, value in values.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                self.board.add_scalar(key, value, step)

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """Hands a picture (uint8 `[H,W,3]`) to TensorBoard."""
        if self.active:
            self.board.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        """Flushes and closes."""
        if self.active:
            self.file.close()
            self.board.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; one that a kill cut short is left out."""
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


class Progress:
    """A progress bar on terminals, plain lines elsewhere."""

    def __init__(self, total: int, start: int, *, active: bool):
        self.total = total
        self.active = active
        self.bar = None
        if active and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar

            self.bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                TimeElapsedColumn(),
                console=Console(stderr=True),
            )
            self.task = self.bar.add_task("compiling", total=total, completed=start)
            self.bar.start()

    def update(self, step: int, values: dict[str, Any], seconds_per_step: float) -> None:
        """Shows the state at a logging step; `seconds_per_step` without compiling and the like."""
        if not self.active:
            return
        parts = [
            f"step {step}/{self.total}",
            f"loss {values['loss']:.4f}",
            f"{values['frames_per_second']:.1f} frames/s",
            f"input {100 * values['input_seconds'] / values['step_seconds']:.0f} %",
        ]
        if "mfu" in values:
            parts.append(f"MFU {100 * values['mfu']:.0f} %")
        parts.append(f"ETA {_clock(seconds_per_step * (self.total - step))}")
        text = "  ".join(parts)
        if self.bar:
            self.bar.update(self.task, completed=step, description=text)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Ends the bar."""
        if self.bar:
            self.bar.stop()


def _clock(seconds: float) -> str:
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}"

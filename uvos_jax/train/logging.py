"""What a run says: JSON lines, TensorBoard, and a progress line. Process 0 only."""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

log = logging.getLogger("uvos_jax")


class RunLog:
    """Writers of one run.

    `metrics.jsonl` gets one object per call of `write`; TensorBoard the same numbers. After a
    resume, lines beyond the restored step are dropped, so that a step appears once.
    """

    def __init__(self, workdir: Path, *, active: bool, start_step: int = 0):
        self.active = active
        if not active:
            return
        self.path = workdir / "metrics.jsonl"
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

    def close(self) -> None:
        """Flushes and closes."""
        if self.active:
            self.file.close()
            self.board.close()


class Progress:
    """A progress bar on terminals, plain lines elsewhere."""

    def __init__(self, total: int, start: int, *, active: bool):
        self.total, self.begin, self.start = total, time.monotonic(), start
        self.active = active
        self.bar = None
        if active and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress as Bar
            from rich.progress import TimeElapsedColumn, TimeRemainingColumn

            self.bar = Bar(
                "[progress.description]{task.description}",
                *Bar.get_default_columns()[1:3],
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self.task = self.bar.add_task("train", total=total, completed=start)
            self.bar.start()

    def update(self, step: int, values: dict[str, Any]) -> None:
        """Shows the state at a logging step."""
        if not self.active:
            return
        done = max(step - self.start, 1)
        remaining = (time.monotonic() - self.begin) / done * (self.total - step)
        text = (
            f"step {step}/{self.total}  loss {values['loss']:.4f}  "
            f"{values['frames_per_second']:.1f} frames/s  "
            f"input {100 * values['input_share']:.0f} %  ETA {_clock(remaining)}"
        )
        if self.bar:
            self.bar.update(self.task, completed=step, description=text)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Ends the bar."""
        if self.bar:
            self.bar.stop()


def _clock(seconds: float) -> str:
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}"

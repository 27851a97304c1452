"""Writing predictions: palette PNGs in the DAVIS layout, probabilities, an overlay video.

Everything of a video is written into a hidden folder first and renamed when it is complete, so a
folder under its final name is a finished one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from pathlib import Path
from typing import Any

from uvos_jax.data.video_io import VideoWriter, write_label_png, write_probability_png
from uvos_jax.errors import DataError
from uvos_jax.predict.predictor import FrameResult
from uvos_jax.viz.overlay import overlay


class PredictionSink:
    """Receives the frames of one video; use as a context manager.

    Writes `<out>/<name>/<frame>.png`; with `probs` also `<out>/probs/<name>/<frame>.png`; with
    `video` also `<out>/<name>_overlay.mp4`.

    Raises:
      DataError: the folder exists already (unless `overwrite`), or the disk is full.
    """

    def __init__(
        self,
        out: str | Path,
        name: str,
        *,
        fps: float = 25.0,
        probs: bool = False,
        video: bool = False,
        overwrite: bool = False,
    ):
        self.out, self.name, self.fps = Path(out), name, fps
        self.probs, self.video, self.overwrite = probs, video, overwrite
        self.final = self.out / name
        self.final_probs = self.out / "probs" / name
        self.overlay_path = self.out / f"{name}_overlay.mp4"
        self._work = self.out / f".{name}.partial"
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> PredictionSink:
        if self.final.exists() and not self.overwrite:
            raise DataError(
                f"{self.final} exists already: use --overwrite to replace it, or another --out"
            )
        shutil.rmtree(self._work, ignore_errors=True)
        with _clear_errors(self.final):
            (self._work / "labels").mkdir(parents=True)
        self._stack.callback(shutil.rmtree, self._work, ignore_errors=True)
        if self.video:
            self._writer = self._stack.enter_context(
                VideoWriter(self._work / "overlay.mp4", self.fps)
            )
        return self

    def write(self, result: FrameResult) -> None:
        """Writes one frame."""
        write_label_png(self._work / "labels" / f"{result.name}.png", result.label)
        if self.probs:
            write_probability_png(self._work / "probs" / f"{result.name}.png", result.prob)
        if self.video:
            with _clear_errors(self.overlay_path):
                self._writer.write(overlay(result.frame, result.label))

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        if kind is not None:
            self._stack.__exit__(kind, value, trace)
            return
        cleanup = self._stack.pop_all()
        try:
            with _clear_errors(self.final):
                if self.video:
                    self._writer.__exit__(None, None, None)
                    os.replace(self._work / "overlay.mp4", self.overlay_path)
                # The folder of masks comes last: where it is, everything is.
                moves = [(self._work / "probs", self.final_probs)] if self.probs else []
                moves.append((self._work / "labels", self.final))
                for source, target in moves:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.rmtree(target, ignore_errors=True)
                    os.replace(source, target)
        finally:
            shutil.rmtree(self._work, ignore_errors=True)
            cleanup.pop_all()


@contextlib.contextmanager
def _clear_errors(path: Path):
    try:
        yield
    except OSError as error:
        if isinstance(error, DataError):
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full; free some space" if full else error.strerror or str(error)
        raise DataError(f"cannot write {path}: {reason}") from error

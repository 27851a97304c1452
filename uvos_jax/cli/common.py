"""Small things several subcommands share."""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import multiprocessing
import sys
from collections.abc import Iterator
from typing import Any

from uvos_jax import registry
from uvos_jax.errors import CheckpointError, ConfigError, UvosError


def make_predictor(args: argparse.Namespace) -> Any:
    """The predictor that `--system`, `--weights` and the options of `predict` describe.

    Raises:
      CheckpointError: a system without weights: they are never made up.
    """
    from uvos_jax.predict.predictor import Predictor

    options = {"crf": args.crf, "flip": args.flip}
    if getattr(args, "refine", None) is not None:
        options["refine"] = None if args.refine == "none" else args.refine
    for option in ("appearance", "smooth", "guided"):
        if getattr(args, option, None) is not None:
            options[option] = getattr(args, option)
    if args.threshold is not None:
        options["threshold"] = args.threshold
    if args.references is not None:
        options["references"] = args.references
    if getattr(args, "flow", None) is not None:
        options["flow"] = args.flow
    if getattr(args, "no_adapt", False):
        options["adapt"] = False
    if args.system is not None:
        registry.check_name(args.system)
    if args.weights is None:
        if args.system is None:
            return Predictor.default(**options)
        raise CheckpointError(
            f"--system {args.system} needs --weights: convert the authors' (`uvos convert "
            f"{args.system} FILE --out {args.system}.npz`; `uvos info {args.system}` says where "
            "they are), or train (`uvos train`)"
        )
    return Predictor.load(args.weights, args.system, **options)


def print_error(error: UvosError) -> int:
    """Prints an error as one line and returns the exit code that goes with it."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return 2


def process_pool(count: int) -> concurrent.futures.ProcessPoolExecutor:
    """Processes that are spawned, not forked: JAX has threads."""
    return concurrent.futures.ProcessPoolExecutor(count, multiprocessing.get_context("spawn"))


def parse_shard(text: str) -> tuple[int, int]:
    """(I, N) of `I/N`; raises `ConfigError` unless 0 <= I < N."""
    index, _, count = text.partition("/")
    if index.isdecimal() and count.isdecimal() and int(index) < int(count):
        return int(index), int(count)
    raise ConfigError(f"--shard {text}: expected I/N with 0 <= I < N, for example 0/4")


def table_console() -> Any:
    """A rich console for tables; 120 columns wide where the output is no terminal."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=120)


@contextlib.contextmanager
def progress_bar(description: str, total: int | None) -> Iterator[Any]:
    """Yields `advance()`; a bar with frames per second on terminals, silence elsewhere."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Speed(ProgressColumn):
        def render(self, task: Any) -> Text:
            return Text(f"{task.speed:.1f} frames/s" if task.speed else "")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Speed(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(description, total=total)
        yield lambda: progress.advance(task)

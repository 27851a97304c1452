"""The training command: flags to configuration, configuration to a run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from uvos_jax import config as configs
from uvos_jax.errors import ConfigError, UvosError
from uvos_jax.train import distributed

EPILOG = """examples:
  uvos train --config configs/cosnet.py:tiny --workdir runs/tiny
  uvos train --config cosnet:full --workdir runs/full --config.optim.lr=1e-4 \\
      --config.data.batch_size=32 --config.compute_dtype=bfloat16
A second run with the same --workdir resumes the first."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `uvos train`; `--config.section.field=value` is handled by `parse`."""
    parser.add_argument("--config", required=True, help="config file or name, with :variant")
    parser.add_argument("--workdir", required=True, help="logs, checkpoints, final weights")
    parser.add_argument("--init-from", "--init_from", help="weights to start from")
    distributed.add_arguments(parser)
    parser.add_argument(
        "--profile",
        type=int,
        nargs="?",
        const=5,
        default=0,
        metavar="STEPS",
        help="trace some steps (default 5) into WORKDIR/profile",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress line")


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Separates `--config.a.b=c` (or `--config.a.b c`) from the other arguments."""
    rest, overrides = [], {}
    items = iter(arguments)
    for item in items:
        if not item.startswith("--config."):
            rest.append(item)
            continue
        key, equals, value = item.removeprefix("--config.").partition("=")
        if not equals:
            value = next(items, None)
            if value is None:
                raise ConfigError(f"--config.{key} lacks a value: write --config.{key}=VALUE")
        overrides[key] = value
    return rest, overrides


def run(args: argparse.Namespace, overrides: dict[str, str]) -> int:
    """Trains as the parsed flags say; returns the exit status."""
    config: Any = configs.load_config(args.config)
    configs.override(config, overrides)
    if args.init_from:
        config.model.init_from = args.init_from
    configs.validate(config)
    import jax

    distributed.initialize(args.coordinator, args.num_processes, args.process_id)
    if not jax.config.jax_compilation_cache_dir:
        # A run that goes on after a stop should not compile everything again.
        jax.config.update("jax_compilation_cache_dir", str(Path(args.workdir).resolve() / "xla"))
    from uvos_jax.train.logging import show_messages
    from uvos_jax.train.loop import train

    show_messages(quiet=args.quiet)
    if jax.process_index() == 0 and not args.quiet:
        print(
            f"training {config.model.name} in {args.workdir} on {jax.device_count()} x "
            f"{jax.devices()[0].device_kind}, {jax.process_count()} process(es)",
            file=sys.stderr,
        )
    summary = train(config, args.workdir, progress=not args.quiet, profile=args.profile)
    if jax.process_index() == 0:
        if summary["finished"]:
            best = summary["best"]
            score = f", best J {best['J']:.4f} at step {best['step']}" if best else ""
            how = "stopped early" if summary["stopped_early"] else "finished"
            print(f"{how} at step {summary['step']}{score}; weights: {summary['weights']}")
        else:
            print(f"stopped at step {summary['step']}; run the same command to go on")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `python -m uvos_jax.train`."""
    parser = argparse.ArgumentParser(
        prog="python -m uvos_jax.train",
        description="Train or resume a system.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    try:
        rest, overrides = split_overrides(sys.argv[1:] if argv is None else argv)
        return run(parser.parse_args(rest), overrides)
    except UvosError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2

"""`uvos train`: trains or resumes a system."""

from __future__ import annotations

import argparse

from uvos_jax.train import command


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "train",
        help="train or resume a system",
        description="Train or resume a system. Any field of the configuration can be set with "
        "--config.section.field=value.",
        epilog=command.EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_arguments(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Runs the subcommand; `args.overrides` holds the --config.* flags."""
    return command.run(args, getattr(args, "overrides", {}))

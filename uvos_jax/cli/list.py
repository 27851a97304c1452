"""`uvos list`: the systems."""

from __future__ import annotations

import argparse

from uvos_jax import registry
from uvos_jax.cli.common import table_console


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Adds the subcommand."""
    return subparsers.add_parser("list", help="the systems", description="List all systems.")


def run(args: argparse.Namespace) -> int:
    """Prints a table; imports no system."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("id", "system", "what it does", "available"):
        table.add_column(heading, no_wrap=heading != "what it does")
    for name, (title, kind) in registry.CATALOGUE.items():
        table.add_row(name, title, kind, "yes" if registry.is_available(name) else "not yet")
    table_console().print(table)
    return 0

"""Writes the table of systems into README.md, between its two markers.

    python tools/make_model_table.py            # rewrite README.md
    python tools/make_model_table.py --check    # exit 1 if README.md is out of date

Parameters and FLOPs are counted from the full configuration of each system; nothing is run.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import jax

import uvos_jax as uvos
from uvos_jax import registry
from uvos_jax.evaluation.cost import gflop_per_frame, parameter_count

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN = "<!-- table:begin (tools/make_model_table.py) -->"
END = "<!-- table:end -->"
HEADER = (
    "| id | system | kind | flow? | causal? | params | GFLOP/frame | official weights | parity "
    "| published DAVIS-16 J / F | tiny config learns |\n" + "|---" * 11 + "|"
)


def row(name: str) -> str:
    """One line of the table; systems that are not in the tree yet say so."""
    title, kind = registry.CATALOGUE[name]
    if not registry.is_available(name):
        return f"| `{name}` | {title} | {kind} | | | | | | to come | | |"
    system = uvos.build(name)
    card, spec = system.card, system.spec
    shapes = jax.eval_shape(system.init, jax.random.key(0))
    score = "" if card.davis16_j is None else f"{card.davis16_j} / {card.davis16_f or '-'}"
    return (
        f"| `{name}` | {card.title} ({card.venue} {card.year}) | {kind} "
        f"| {'yes' if 'flow' in spec.requires else 'no'} | {'yes' if spec.causal else 'no'} "
        f"| {parameter_count(shapes) / 1e6:.1f} M | {gflop_per_frame(system, shapes):.0f} "
        f"| {card.official_weights or 'none'} | {card.parity} | {score} | {card.learned} |"
    )


def table() -> str:
    """The whole table as Markdown."""
    return "\n".join([HEADER, *(row(name) for name in uvos.list_systems())])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only compare, exit 1 on difference")
    args = parser.parse_args()
    text = README.read_text()
    head, rest = text.split(BEGIN)
    new = f"{head}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}"
    if args.check:
        print("up to date" if new == text else "README.md is out of date: run make_model_table.py")
        return int(new != text)
    README.write_text(new)
    print(f"wrote {README}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

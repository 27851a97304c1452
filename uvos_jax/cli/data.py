"""`uvos data`: check copies of data sets and pack them for fast reading."""

from __future__ import annotations

import argparse
from typing import Any

EPILOG = """examples:
  uvos data list
  uvos data check --dataset davis16 --root DAVIS
  uvos data check --dataset fbms --root FBMS --split test --decode
  uvos data prepare --dataset davis16 --root DAVIS --out records"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "data",
        help="check and prepare data sets",
        description="Check copies of data sets, or pack them into array_record files.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("list", help="data sets, their splits and the layout they are found in")
    check = actions.add_parser("check", help="say whether a copy is complete and well laid out")
    prepare = actions.add_parser("prepare", help="check, then write array_record and statistics")
    for action in (check, prepare):
        add_dataset_arguments(action)
    check.add_argument("--decode", action="store_true", help="also read every file (slow)")
    prepare.add_argument("--out", required=True, metavar="DIR", help="folder of prepared sets")
    prepare.add_argument("--overwrite", action="store_true", help="replace what is there")
    return parser


def add_dataset_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that say which data set and which part of it."""
    parser.add_argument("--dataset", required=True, metavar="NAME", help="see `uvos data list`")
    parser.add_argument("--root", required=True, metavar="DIR", help="folder of the data set")
    parser.add_argument("--split", help="only this split (default: all)")
    parser.add_argument("--resolution", help="subfolder of the DAVIS layout (default: 480p)")
    parser.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE",
        help="further choice of the layout, for example labels=none (flyingthings3d)",
    )  # fmt: skip
    parser.add_argument("--partial", action="store_true", help="accept a part of the official set")


def dataset_options(args: argparse.Namespace) -> dict[str, str]:
    """`--resolution` and `--option` as fields of the layout."""
    from uvos_jax.errors import ConfigError

    options = {"resolution": args.resolution} if args.resolution else {}
    for text in args.option:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--option {text!r} is not of the form KEY=VALUE")
        options[key] = value
    return options


def run(args: argparse.Namespace) -> int:
    """Runs the subcommand."""
    return {"list": _list, "check": _check, "prepare": _prepare}[args.action](args)


def _list(args: argparse.Namespace) -> int:
    from uvos_jax.data.sources.check import checkable
    from uvos_jax.data.sources.layouts import LAYOUTS

    for name, cls in checkable().items():
        print(f"{name}: {cls.__doc__.splitlines()[0]}")
        if cls.SPLITS:
            print(f"    splits {', '.join(cls.SPLITS)}")
        for describe, _ in LAYOUTS[name]:
            print(f"    {describe}")
    return 0


def _check(args: argparse.Namespace) -> int:
    from uvos_jax.data.sources.check import check

    counts = check(
        args.dataset, args.root, split=args.split, partial=args.partial, decode=args.decode,
        **dataset_options(args),
    )  # fmt: skip
    for part in counts:
        split = f" {part.split}" if part.split else ""
        print(
            f"{args.dataset}{split}: {part.sequences} sequences, {part.frames} frames, "
            f"{part.annotated} annotated ({part.layout})"
        )
    return 0


def _prepare(args: argparse.Namespace) -> int:
    from uvos_jax.data.tfds_builders.prepare import prepare

    folder = prepare(
        args.dataset, args.root, args.out, split=args.split, partial=args.partial,
        overwrite=args.overwrite, progress=print, **dataset_options(args),
    )  # fmt: skip
    print(f"wrote {folder}")
    return 0

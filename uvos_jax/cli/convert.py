"""`uvos convert`: official weights to ours."""

from __future__ import annotations

import argparse

EPILOG = """examples:
  uvos convert cosnet co_attention_davis_43.pth --out cosnet.npz
  uvos convert cosnet weights.pth --config cosnet:group --out cosnet_group.safetensors
Every official name is accounted for: used, ignored (and why), missing, unknown or of another shape.
A file that does not fit completely is refused. Nothing in a file is ever executed."""


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "convert",
        help="official weights to ours",
        description="Convert weights the authors published.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("system", help="system id")
    parser.add_argument("files", nargs="+", metavar="FILE", help="official file or files")
    parser.add_argument(
        "--out", required=True, metavar="W", help="weights to write, .npz or .safetensors"
    )
    parser.add_argument("--config", metavar="NAME", help="configuration of the weights (ID:full)")
    parser.add_argument("--part", help="the file holds only this part of the network")
    parser.add_argument(
        "--dtype", choices=("float32", "float16"), default="float32", help="of the written file"
    )
    parser.add_argument("--names", action="store_true", help="print every name of the report")
    return parser


def run(args: argparse.Namespace) -> int:
    """Converts, prints the report, writes the weights."""
    from uvos_jax.convert import convert_with_report, save_variables
    from uvos_jax.convert.official import check_complete
    from uvos_jax.convert.variables import check_suffix
    from uvos_jax.evaluation.cost import parameter_count

    check_suffix(args.out)
    source = args.files[0] if len(args.files) == 1 else args.files
    variables, report = convert_with_report(args.system, source, args.config, part=args.part)
    if args.names:
        for line in report.lines():
            print(line)
    check_complete(report, args.system, source, args.part)
    storage = "float16" if args.dtype == "float16" else None
    path = save_variables(variables, args.out, storage_dtype=storage)
    print(f"{args.system}: {report.summary()}; {parameter_count(variables):,} parameters")
    print(f"wrote {path}")
    return 0

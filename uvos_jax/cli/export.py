"""`uvos export`: our weights to npz, safetensors or StableHLO."""

from __future__ import annotations

import argparse

from uvos_jax.errors import ConfigError

EPILOG = """examples:
  uvos export cosnet --weights runs/cosnet --format npz --out cosnet.npz
  uvos export cosnet --weights cosnet.npz --format safetensors --out cosnet.safetensors
  uvos export cosnet --weights cosnet.npz --format stablehlo --out cosnet.stablehlo
  uvos export cosnet --weights cosnet.npz --format stablehlo --streaming --out stream.stablehlo
A StableHLO file holds weights and program; jax alone runs it, on CPU, GPU or TPU."""


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "export",
        help="our weights to npz, safetensors or StableHLO",
        description="Write weights, or a whole predictor, for use without this library.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("system", help="system id")
    parser.add_argument(
        "--weights", required=True, metavar="W", help="weight file, or folder of a training run"
    )
    parser.add_argument("--format", choices=("npz", "safetensors", "stablehlo"), default="npz")
    parser.add_argument("--out", required=True, metavar="FILE", help="file to write")
    parser.add_argument(
        "--dtype", choices=("float32", "float16"), default="float32", help="of npz, safetensors"
    )
    parser.add_argument(
        "--streaming", action="store_true", help="stablehlo: references from the past only"
    )
    parser.add_argument(
        "--size", metavar="HxW", help="stablehlo: frame size (default: the model's)"
    )
    parser.add_argument("--batch-size", type=int, help="stablehlo: fix it (default: open)")
    parser.add_argument("--chunk", type=int, help="stablehlo: frames per call (default: open)")
    return parser


def run(args: argparse.Namespace) -> int:
    """Checks that the weights fit the system, then writes the file."""
    from uvos_jax import export
    from uvos_jax.convert.official import build_for
    from uvos_jax.convert.variables import load_variables

    if args.format == "stablehlo" and args.dtype != "float32":
        raise ConfigError("--dtype is for npz and safetensors; StableHLO files hold float32")
    size = _size(args.size)
    variables = load_variables(args.weights)
    system = build_for(variables, args.system)
    if args.format == "stablehlo":
        path = export.to_stablehlo(
            system,
            variables,
            args.out,
            streaming=args.streaming,
            size=size,
            batch_size=args.batch_size,
            chunk=args.chunk,
        )
    else:
        write = {"npz": export.to_numpy, "safetensors": export.to_safetensors}[args.format]
        storage = "float16" if args.dtype == "float16" else None
        path = write(variables, args.out, storage_dtype=storage)
    print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")
    return 0


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    height, _, width = text.lower().partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise ConfigError(f"--size {text!r} is not a size: write HxW in pixels, such as 473x473")
    return int(height), int(width)

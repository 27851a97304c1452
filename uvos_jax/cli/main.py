"""Entry point of the `uvos` command."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys
import zlib
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from uvos_jax import __version__
from uvos_jax.cli.common import print_error
from uvos_jax.errors import UvosError

#: Subcommands in the order of `--help`, and what each does in a few words.
COMMANDS = {
    "demo": "segment synthetic clips with the packaged weights, make a report",
    "predict": "masks for videos or folders of frames",
    "flow": "optical flow of videos or folders of frames",
    "train": "train or resume a system",
    "eval": "score masks made by any program",
    "data": "check copies of data sets, pack them for fast reading",
    "crf": "refine saved probability maps with a dense CRF",
    "convert": "official weights to ours",
    "export": "our weights to npz, safetensors or StableHLO",
    "list": "the systems",
    "info": "one system: specification, parameters, FLOPs, weights",
}
#: Subcommands that mostly wait for the compiler when they are run again.
CACHED = ("demo", "predict", "flow", "eval", "crf")
EPILOG = """examples:
  uvos demo
  uvos predict clip.mp4 --out masks --overlay
  uvos eval --results masks --dataset davis16 --root DAVIS
  uvos train --config cosnet:tiny --workdir runs/tiny
`uvos COMMAND --help` tells more."""


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The parser; only the subcommand that is asked for is imported."""
    parser = argparse.ArgumentParser(
        prog="uvos",
        description="Unsupervised video object segmentation in JAX.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"uvos {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        if name == command:
            module = importlib.import_module(f"uvos_jax.cli.{name}")
            module.add_parser(subparsers).set_defaults(run=module.run)
        else:
            subparsers.add_parser(name, help=summary, add_help=False)
    return parser


def keep_programs() -> None:
    """Compiled programs are kept for the next run, unless the user says where or not at all.

    They lie in `uvos_jax` of the user's cache folder, apart for each kind of processor and version
    of JAX. `JAX_COMPILATION_CACHE_DIR` and `JAX_ENABLE_COMPILATION_CACHE` are JAX's own switches.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        processor = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
        features = [
            line for line in processor.splitlines() if line.startswith(("flags", "Features"))
        ]
    except OSError:
        features = [platform.processor()]
    kind = zlib.crc32("\n".join([platform.machine(), *features]).encode())
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = home / "uvos_jax" / f"{kind:08x}-{metadata.version('jaxlib')}"
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `uvos`; returns 0, or 2 after one line about what the user got wrong."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = next((a for a in arguments if a in COMMANDS), None)
    try:
        overrides: dict[str, str] = {}
        if command == "train":
            from uvos_jax.train.command import split_overrides

            arguments, overrides = split_overrides(arguments)
        args = build_parser(command).parse_args(arguments)
        args.overrides = overrides
        if command in CACHED:
            keep_programs()
        return args.run(args)
    except UvosError as error:
        return print_error(error)
    except BrokenPipeError:
        # The reader of a pipe left (`uvos list | head`): not an error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())

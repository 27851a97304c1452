"""Checks a data set and packs it into array_record files with statistics.

    python tools/prepare_dataset.py davis16 --root DAVIS --out records
    python tools/prepare_dataset.py flyingthings3d --root FlyingThings3D --out records \\
        --split train --option labels=none

Writes `<out>/<dataset>/1.0.0` with the shards and `stats.json`; run again after an interruption,
it goes on where it stopped. Train on it with the source
`{"name": "records", "root": "<out>/<dataset>", "split": "train"}`.
"""

from __future__ import annotations

import sys

from uvos_jax.cli.main import main


def run(arguments: list[str]) -> int:
    """`prepare_dataset.py NAME ...` is `uvos data prepare --dataset NAME ...`."""
    named = arguments and not arguments[0].startswith("-")
    return main(["data", "prepare", *(["--dataset"] if named else []), *arguments])


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))

"""Compares two folders of result maps: per sequence how far they agree, and the worst frames.

    python tools/compare_masks.py runs/old/masks runs/new/masks

Exit status 0 if every frame agrees at least to --min-overlap, 1 otherwise, 2 for bad input.
"""

import argparse
import sys

import numpy as np

from uvos_jax.errors import UvosError
from uvos_jax.evaluation.compare import compare_masks


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("first")
    parser.add_argument("second")
    parser.add_argument("--allow-missing", action="store_true", help="skip frames of one side only")
    parser.add_argument("--min-overlap", type=float, default=1.0, metavar="J")
    parser.add_argument("--worst", type=int, default=5, metavar="N", help="frames to list")
    args = parser.parse_args()
    try:
        found = compare_masks(args.first, args.second, allow_missing=args.allow_missing)
    except UvosError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for sequence in dict.fromkeys(d.sequence for d in found):
        rows = [d for d in found if d.sequence == sequence]
        overlap = np.array([d.overlap for d in rows])
        agree = 1 - sum(d.pixels for d in rows) / sum(d.total for d in rows)
        print(
            f"{sequence:24s} {len(rows):5d} frames  J {overlap.mean():.4f} (worst "
            f"{overlap.min():.4f})  pixels equal {agree:.6f}"
        )
    worst = [d for d in sorted(found, key=lambda d: d.overlap) if d.overlap < args.min_overlap]
    for d in worst[: args.worst]:
        print(f"  {d.sequence}/{d.frame}: J {d.overlap:.4f}, {d.pixels} pixels differ")
    print(f"{len(worst)} of {len(found)} frames below {args.min_overlap}")
    return 1 if worst else 0


if __name__ == "__main__":
    sys.exit(main())

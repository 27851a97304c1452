"""Draws the scenes of `uvos demo` anew and packages them.

    python tools/pack_demo_scenes.py

Needed after a change to the scene sampler or to the demo's seeds and settings; a test compares the
packaged scenes with what the sampler draws.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import uvos_jax
from uvos_jax.synthetic import demo


def main() -> int:
    path = Path(uvos_jax.__file__).parent / demo.SCENES
    np.savez_compressed(path, **demo.draw_scenes())
    print(f"{path}: {path.stat().st_size / 1024:.0f} KiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())

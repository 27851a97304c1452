"""The CRF settings that systems were published with, by name."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Literal

from uvos_jax.errors import ConfigError
from uvos_jax.ops.crf.terms import Bilateral, Gaussian, Number, Term


@dataclasses.dataclass(frozen=True)
class Preset:
    """Terms, steps and the way a foreground map becomes an energy.

    Attributes:
      terms: the pairwise terms.
      iterations: mean-field steps (at most that many with `kl_stop`).
      unary: `softmax` (-log of clipped probabilities) or `rescored` (see `unary.rescored`).
      stretch: whether a foreground map is first stretched to 0..1.
      kl_stop: see `mean_field`.
      source: where the numbers are from.
    """

    terms: tuple[Term, ...]
    iterations: int = 5
    unary: Literal["softmax", "rescored"] = "softmax"
    stretch: bool = True
    kl_stop: Number | None = None
    source: str = ""


def _pair(
    smooth: tuple[Number, Number], appearance: tuple[Number, Number, Number]
) -> tuple[Term, ...]:
    """The usual two terms: (sdims, compat) and (sdims, schan, compat)."""
    return (
        Gaussian(sdims=smooth[0], compat=smooth[1]),
        Bilateral(sdims=appearance[0], schan=appearance[1], compat=appearance[2]),
    )


PRESETS: dict[str, Preset] = {
    # The script sweeps sdims over 10, 15, 20 and the weight over 8, 9, 10: the middle of each.
    "cosnet": Preset(
        _pair((1, 5), (15, 7, 9)), source="densecrf_apply_cvpr2019.py@carrierlxk/COSNet"
    ),
    # The number of steps is not stated; COSNet's five are assumed.
    "agnn": Preset(_pair((1, 5), (30, 5, 9)), source="README.md@carrierlxk/AGNN"),
    "matnet": Preset(
        _pair((3, 3), (30, 5, 5)),
        unary="rescored",
        stretch=False,
        kl_stop=500.0,
        source="apply_densecrf_davis.py@tfzhou/MATNet",
    ),
    "pdb_convlstm": Preset(
        _pair((3, 3), (60, 5, 5)), source="davis_applyCRF.py@shenjianbing/PDB-ConvLSTM"
    ),
    "ags": Preset(
        _pair((3, 3), (30, 5, 5)),
        iterations=10,
        unary="rescored",
        stretch=False,
        kl_stop=500.0,
        source="davis_crf.py@wenguanwang/AGS",
    ),
    "mpnet": Preset(_pair((3, 3), (50, 10, 5)), source="applyCRF.py of MP-Net"),
    # The settings of the bilateral-network follow-up (Li et al., ECCV 2018); IET gives none.
    "iet": Preset(
        _pair((1, 3), (67, 3, 4)), stretch=False, source="Li et al. 2018, implementation details"
    ),
    "teacher_student": Preset(
        _pair((0.2209, 1.2485), (22.376, 7.7025, 1.4033)),
        iterations=12,
        stretch=False,
        source="crf_davis.py@MSiam/motion_adaptation",
    ),
    # Disabled in the released code; no published number was made with it.
    "f2net": Preset(_pair((3, 3), (10, 1, 5)), source="unused settings in F2Net's code"),
}


def list_presets() -> tuple[str, ...]:
    """Names of the presets that `dense_crf(preset=...)` and `uvos crf --preset` know."""
    return tuple(sorted(PRESETS))


def get_preset(name: str) -> Preset:
    """The preset called `name`; raises `ConfigError` with the nearest names if there is none."""
    if name not in PRESETS:
        near = difflib.get_close_matches(str(name).lower(), PRESETS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(
            f"unknown CRF preset {name!r}: {hint}choose one of {', '.join(list_presets())}"
        )
    return PRESETS[name]

"""Sequence names of DAVIS, and which of them count for temporal stability.

From `data/db_info.yaml@fperazzi/davis-2017` (field `eval_t`).
"""

from __future__ import annotations

# A star marks sequences that count for temporal stability.
_VAL = """
    blackswan* bmx-trees breakdance camel* car-roundabout* car-shadow* cows* dance-twirl dog
    drift-chicane drift-straight* goat horsejump-high kite-surf* libby motocross-jump
    paragliding-launch* parkour scooter-black* soapbox*
"""
_TRAIN = """
    bear* bmx-bumps boat* breakdance-flare bus* car-turn* dance-jump* dog-agility drift-turn*
    elephant* flamingo* hike* hockey* horsejump-low kite-walk* lucia mallard-fly mallard-water*
    motocross-bumps* motorbike paragliding rhino* rollerblade scooter-gray soccerball stroller*
    surf* swing tennis train*
"""

#: DAVIS-2016: split -> sequence names.
DAVIS16 = {
    "val": tuple(name.rstrip("*") for name in _VAL.split()),
    "train": tuple(name.rstrip("*") for name in _TRAIN.split()),
}
#: Sequences of DAVIS-2017 val that DAVIS-2016 val lacks.
DAVIS17_VAL_EXTRA = (
    "bike-packing",
    "dogs-jump",
    "gold-fish",
    "india",
    "judo",
    "lab-coat",
    "loading",
    "mbike-trick",
    "pigs",
    "shooting",
)
#: DAVIS-2016 sequences that enter the mean of T: no occlusion, no strong deformation.
TEMPORALLY_STABLE = frozenset(
    name.rstrip("*") for name in (_VAL + _TRAIN).split() if name.endswith("*")
)


def counts_for_stability(name: str) -> bool:
    """Whether T of this sequence enters the mean; sequences foreign to DAVIS-2016 do."""
    known = name in DAVIS16["val"] or name in DAVIS16["train"]
    return not known or name in TEMPORALLY_STABLE

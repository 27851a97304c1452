"""Sequences of DAVIS, their lengths, and which of them count for temporal stability.

From `data/db_info.yaml@fperazzi/davis-2017` (fields `num_frames` and `eval_t`).
"""

from __future__ import annotations

# name:frames, a star where the sequence counts for temporal stability.
_VAL16 = """
    blackswan:50* bmx-trees:80 breakdance:84 camel:90* car-roundabout:75* car-shadow:40* cows:104*
    dance-twirl:90 dog:60 drift-chicane:52 drift-straight:50* goat:90 horsejump-high:50
    kite-surf:50* libby:49 motocross-jump:40 paragliding-launch:80* parkour:100 scooter-black:43*
    soapbox:99*
"""
_TRAIN16 = """
    bear:82* bmx-bumps:90 boat:75* breakdance-flare:71 bus:80* car-turn:80* dance-jump:60*
    dog-agility:25 drift-turn:64* elephant:80* flamingo:80* hike:80* hockey:75* horsejump-low:60
    kite-walk:80* lucia:70 mallard-fly:70 mallard-water:80* motocross-bumps:60* motorbike:43
    paragliding:70 rhino:90* rollerblade:35 scooter-gray:75 soccerball:48 stroller:91* surf:55*
    swing:60 tennis:70 train:80*
"""
_VAL17_EXTRA = """
    bike-packing:69 dogs-jump:66 gold-fish:78 india:81 judo:34 lab-coat:47 loading:50
    mbike-trick:79 pigs:79 shooting:40
"""
_TRAIN17_EXTRA = """
    boxing-fisheye cat-girl classic-car color-run crossing dancing disc-jockey dog-gooses
    dogs-scale drone kid-football koala lady-running lindy-hop longboard miami-surf night-race
    planes-water rallye schoolgirls scooter-board sheep skate-park snowboard stunt tractor-sand
    tuk-tuk upside-down varanus-cage walking
"""


def _frames(text: str) -> dict[str, int]:
    pairs = (word.rstrip("*").split(":") for word in text.split())
    return {name: int(count) for name, count in pairs}


#: DAVIS-2016: sequence -> number of frames.
DAVIS16_VAL = _frames(_VAL16)
DAVIS16_TRAIN = _frames(_TRAIN16)
#: What DAVIS-2017 adds to the sequences of 2016.
DAVIS17_VAL_EXTRA = tuple(_frames(_VAL17_EXTRA))
DAVIS17_TRAIN_EXTRA = tuple(_TRAIN17_EXTRA.split())

#: Split -> sequence names.
DAVIS16 = {"train": tuple(DAVIS16_TRAIN), "val": tuple(DAVIS16_VAL)}
DAVIS17 = {
    "train": tuple(sorted((*DAVIS16_TRAIN, *DAVIS17_TRAIN_EXTRA))),
    "val": tuple(sorted((*DAVIS16_VAL, *DAVIS17_VAL_EXTRA))),
}
#: Number of frames of every sequence where it is known.
FRAMES = DAVIS16_TRAIN | DAVIS16_VAL | _frames(_VAL17_EXTRA)
#: Frames of a split in all.
TOTAL_FRAMES = {
    ("davis16", "train"): 2079, ("davis16", "val"): 1376,
    ("davis17", "train"): 4209, ("davis17", "val"): 1999,
}  # fmt: skip

#: DAVIS-2016 sequences that enter the mean of T: no occlusion, no strong deformation.
TEMPORALLY_STABLE = frozenset(
    word.split(":")[0] for word in (_VAL16 + _TRAIN16).split() if word.endswith("*")
)

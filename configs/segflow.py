"""SegFlow (Cheng et al., ICCV 2017): configurations.

    uvos train --config configs/segflow.py:full --workdir runs/segflow

`full` alternates as the paper describes: masks on DAVIS-16 train with the flow branch at rest, then
flow with the segmentation branch at rest, twice. SGD with momentum 0.9 and weight decay 5e-4, batch
1, 480x854, the rate halved every 50 000 steps of 200 000 (`solver.prototxt` of the release). The
release's rate of 1e-9 is one for a sum over 480 * 854 pixels: 4.1e-4 for the mean that is used
here; `release` has sum and rate as published, no balance of classes, and no flow stage. The paper
trained flow on Scene Flow, Sintel, FlyingChairs and KITTI; the flow source here is FlyingThings3D.
ResNet-101 starts from PASCAL or ImageNet weights, FlowNetS from its own (`model.init_from`).
Augmentation in the release: scale, rotation and translation within 5 %, mirrored; here scale, crop
and mirror. The length of the flow stages, their rate and the number of rounds are ours.

Published, DAVIS-16 val, without on-line tuning: J 67.4 (recall 81.4, decay 6.2), F 66.7 (77.1,
5.1), T 28.2 (davischallenge.org). Quoted by later papers, from memory: FBMS J 56.0, YouTube-Objects
J 57.0.

Variants: `full`, `release` (masks only, the released loss), `unbalanced` (classes not balanced),
`native` (frames of any size), `tiny` (tests).
"""

from _base import get_base_config, parse_arg, set_model_field
from ml_collections import ConfigDict

VARIANTS = ("full", "release", "unbalanced", "native", "tiny")


def get_config(arg: str = "full") -> ConfigDict:
    """The configuration of a variant, with `model` overrides: `"tiny,balanced=false"`."""
    variant, overrides = parse_arg(arg)
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}: use one of {', '.join(VARIANTS)}")
    config = full()
    if variant == "release":
        release(config)
    elif variant == "unbalanced":
        config.model.balanced = False
    elif variant == "native":
        config.model.input_size = ()
    elif variant == "tiny":
        tiny(config)
    for key, value in overrides.items():
        set_model_field(config, key, value)
    return config


def full() -> ConfigDict:
    """The recipe of the paper on the released network."""
    config = get_base_config()

    config.model.name = "segflow"
    # segmentation branch
    config.model.block_counts = (3, 4, 23, 3)
    config.model.widths = (64, 128, 256, 512)
    config.model.gains = (0.01, 1e-4)  # on res4 and res3
    # flow branch
    config.model.flow_widths = (64, 128, 256, 512, 512, 1024)
    config.model.flow_decoder_widths = (512, 256, 128, 64)
    config.model.mean_steps = 1000
    # loss
    config.model.balanced = True  # False in the release
    config.model.reduction = "mean"  # mean | sum_per_frame (release)
    config.model.pyramid_weight = 1.0  # of FlowNetS's own scales
    # recipe
    config.model.rounds = 2
    config.model.segmentation_share = 0.5  # of the steps of a round
    config.model.flow_lr = 0.1  # rate of the flow stages relative to the others
    config.model.input_size = (480, 854)

    config.data.train = (
        {
            "name": "davis16",
            "group": "video",
            "weight": 1.0,
            "root": "data/DAVIS",
            "split": "train",
        },
        {
            "name": "flyingthings3d",
            "group": "flow",
            "weight": 1.0,
            "root": "data/FlyingThings3D",
            "split": "train",
            "labels": "none",
        },
    )
    config.data.eval = ({"name": "davis16", "root": "data/DAVIS", "split": "val"},)
    config.data.batch_size = 1
    config.data.clip_len = 2
    config.data.size = (480, 854)
    config.data.augment = {"flip": 0.5, "scale": (0.95, 1.05), "crop": (0.95, 1.0)}

    config.optim.name = "sgd"
    config.optim.lr = 4.1e-4
    config.optim.momentum = 0.9
    config.optim.weight_decay = 5e-4
    config.optim.schedule.name = "step"
    config.optim.schedule.boundaries = (50_000, 100_000, 150_000)
    config.optim.schedule.factors = (0.5, 0.5, 0.5)
    config.optim.freeze_bn = True

    config.train.total_steps = 800_000  # 200 000 a stage
    config.train.checkpoint_every = 5000
    return config


def release(config: ConfigDict) -> None:
    """What `training/` of the release does: masks only, with a sum over pixels."""
    config.model.balanced = False
    config.model.reduction = "sum_per_frame"
    config.model.rounds = 1
    config.model.segmentation_share = 1.0
    config.data.train = tuple(s for s in config.data.train if s["group"] == "video")
    config.optim.lr = 1e-9
    config.train.total_steps = 200_000


def tiny(config: ConfigDict) -> None:
    """Both branches, both decoders and all stages at 64x64 on synthetic data, in seconds."""
    config.model.block_counts = (1, 1, 1, 1)
    config.model.widths = (8, 8, 16, 16)
    config.model.gains = (1.0, 1.0)
    config.model.flow_widths = (8, 8, 16, 16, 32, 32)
    config.model.flow_decoder_widths = (32, 16, 16, 8)
    config.model.mean_steps = 10
    config.model.rounds = 2
    config.model.flow_lr = 0.3
    config.model.input_size = (64, 64)

    scene = {"name": "synthetic", "preset": "test", "weight": 1.0, "label": "moving"}
    config.data.train = (
        {**scene, "group": "video"},
        {**scene, "group": "flow", "flow": True},
    )
    config.data.eval = ()
    config.data.batch_size = 8
    config.data.size = (64, 64)
    config.data.augment = {"flip": 0.5}

    config.optim.name = "adam"
    config.optim.lr = 1e-2
    config.optim.weight_decay = 0.0
    config.optim.clip_norm = 1.0
    config.optim.schedule.name = "constant"
    config.optim.schedule.boundaries = ()
    config.optim.schedule.factors = ()
    config.optim.freeze_bn = False

    config.train.total_steps = 32
    config.train.log_every = 1
    config.train.checkpoint_every = 16

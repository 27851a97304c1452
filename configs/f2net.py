"""F2Net (Liu et al., AAAI 2021): configurations.

    uvos train --config configs/f2net.py:full --workdir runs/f2net

`full` is the published system: DAVIS-16 train for video and MSRA10K for stills, 473x473, batch 16,
60 epochs of 130 steps, SGD 2.5e-4 (momentum 0.9, weight decay 5e-4), poly decay with power 0.9,
halved from epoch 6 on; every third step on stills; the encoder at 0.01 and the rest at 10 times
the rate on video, at 1 and 10 on stills; true centres for 20 epochs, predicted ones after. The
encoder starts from COSNet's saliency-trained DeepLabv3 (`model.init_from`, made by `uvos convert
f2net deeplab_davis_12_0.pth --part encoder`).

Published, DAVIS-16 val, without CRF, one scale: J 83.1 (recall 95.7, decay 0.0), F 84.4 (92.3,
0.8), T 20.9; FBMS J 77.5; about 10 frames/s (table VII of the survey of video segmentation, Zhou
et al., TPAMI 2022; no post-processing according to table 1 of GSANet, CVPR 2024).

Variants: `full` (also `paper`), `release` (the released forward pass and trainer: no prior, inter
feature on the reference's grid, no spatial weights, best peak instead of history, true centres
throughout), ablations `no_prior`, `prior_query`, `prior_both` (where the prior acts), `intra`,
`inter`, `no_matching` (which matchings are fused), `channel`, `spatial`, `sum` (fusion),
`no_motion` (heat map without the previous Gaussian), `top1` (no history), `tiny` (tests).
"""

from _base import get_base_config, parse_arg, set_model_field
from ml_collections import ConfigDict

STEPS_PER_EPOCH = 130  # 2079 frames of DAVIS-16 train in batches of 16
PRIORS = {"no_prior": "none", "prior_query": "query", "prior_both": "both"}
SOURCES = {
    "intra": ("intra", "original"),
    "inter": ("inter", "original"),
    "no_matching": ("original",),
}
FUSIONS = ("channel", "spatial", "sum")
VARIANTS = (
    "full",
    "paper",
    "release",
    *PRIORS,
    *SOURCES,
    *FUSIONS,
    "no_motion",
    "top1",
    "tiny",
)


def get_config(arg: str = "full") -> ConfigDict:
    """The configuration of a variant, with `model` overrides: `"tiny,variant=release"`."""
    variant, overrides = parse_arg(arg)
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}: use one of {', '.join(VARIANTS)}")
    config = full()
    if variant == "release":
        config.model.variant = "release"
        config.model.centre_choice = "top1"
        config.model.mark_empty = True
        config.model.recipe = "release"
    elif variant in PRIORS:
        config.model.prior_on = PRIORS[variant]
    elif variant in SOURCES:
        config.model.sources = SOURCES[variant]
    elif variant in FUSIONS:
        config.model.fusion = variant
    elif variant == "no_motion":
        config.model.motion_clue = False
    elif variant == "top1":
        config.model.centre_choice = "top1"
    elif variant == "tiny":
        tiny(config)
    for key, value in overrides.items():
        set_model_field(config, key, value)
    return config


def set_size(config: ConfigDict, size: tuple[int, int]) -> None:
    config.model.input_size = size
    config.data.size = size


def full() -> ConfigDict:
    """The published system and recipe."""
    config = get_base_config()

    config.model.name = "f2net"
    config.model.variant = "paper"  # paper | release (overrules prior_on and fusion)
    # DeepLabv3 on a ResNet-101
    config.model.block_counts = (3, 4, 23, 3)
    config.model.widths = (64, 128, 256, 512)
    config.model.aspp_depth = 512
    config.model.embedding = 256
    config.model.aspp_rates = (6, 12, 18)
    # centre branch
    config.model.upsample_features = 256
    config.model.centre_features = 64
    config.model.heat_features = 256
    config.model.motion_clue = True  # the previous Gaussian takes part in the heat map
    config.model.centre_choice = "history"  # history | top1 (release)
    config.model.candidates = 5  # peaks to choose from
    config.model.history = 5  # past steps that make a velocity
    config.model.velocity_decay = 0.9  # per missed frame
    config.model.min_score = 0.0  # frames without a peak this high count as missed; 0: none
    config.model.mark_empty = False  # True (release): an empty mask points at the corner
    # matching and fusion
    config.model.prior_sigma = 15.0  # pixels at 473x473
    config.model.prior_on = "key"  # of the intra matching: key | query | both | none
    config.model.sources = ("inter", "intra", "original")
    config.model.fusion = "channel_spatial"  # channel_spatial | channel | spatial | sum
    config.model.bottleneck = 16
    config.model.attention_impl = "blockwise"  # dense | blockwise
    config.model.block_size = 512  # query rows of the affinity at once
    # loss
    config.model.loss = "code"  # code | balanced (class-weighted, for training from scratch)
    config.model.l1_weight = 0.8
    config.model.static_weight = 0.1
    config.model.heat_weight = 1.0
    config.model.iou_weight = 0.0  # of a soft IoU loss, not in the paper
    config.model.min_positive_ratio = 0.0  # lower bound of the foreground ratio that divides
    # recipe
    config.model.recipe = "paper"  # paper | release (true centres throughout)
    config.model.separate_share = 1 / 3  # 20 of 60 epochs with true centres
    config.model.static_steps = True  # every third step on stills
    config.model.video_encoder_lr = 0.01
    config.model.head_lr = 10.0
    set_size(config, (473, 473))

    config.data.train = (
        {"name": "davis", "group": "video", "weight": 1.0, "root": "data/DAVIS", "split": "train",
         "sampling": "reference"},
        {"name": "image_mask", "group": "static", "weight": 1.0, "root": "data/MSRA10K"},
    )  # fmt: skip
    config.data.eval = ({"name": "davis", "root": "data/DAVIS", "split": "val"},)
    config.data.batch_size = 16
    config.data.clip_len = 3  # reference, previous, current
    config.data.augment = {
        "flip": 0.5,
        "scale": (0.7, 1.3),
        "crop": (0.9, 0.9),
        "independent": True,  # also the previous mask, from which the Gaussian is made
    }

    config.optim.name = "sgd"
    config.optim.lr = 2.5e-4
    config.optim.momentum = 0.9
    config.optim.weight_decay = 5e-4
    config.optim.schedule.name = "poly"
    config.optim.schedule.power = 0.9
    config.optim.schedule.boundaries = (6 * STEPS_PER_EPOCH,)
    config.optim.schedule.factors = (0.5,)
    config.optim.schedule.start_step = 0  # set per stage, so that the decay runs through both
    config.optim.schedule.total_steps = 0
    # scale and bias of the shortcuts' BatchNorm, as in COSNet's release
    config.optim.frozen = (r"downsample_1/(scale|bias)$",)

    config.train.total_steps = 60 * STEPS_PER_EPOCH
    config.train.checkpoint_every = 5 * STEPS_PER_EPOCH
    config.seed = 1234
    return config


def tiny(config: ConfigDict) -> None:
    """Every block, stage and phase of `full` at 65x65, on synthetic data, in seconds."""
    config.model.block_counts = (1, 1, 2, 1)
    config.model.widths = (8, 16, 32, 64)
    config.model.aspp_depth = 16
    config.model.embedding = 16
    config.model.upsample_features = 16
    config.model.centre_features = 8
    config.model.heat_features = 16
    config.model.bottleneck = 4
    config.model.candidates = 3
    config.model.history = 3
    # 1.25 cells: scaled with the image (2 pixels) it would vanish between positions 8 pixels apart
    config.model.prior_sigma = 10.0
    config.model.block_size = 32  # 81 positions: three blocks
    config.model.loss = "balanced"  # learns from scratch, where the released loss collapses
    config.model.iou_weight = 1.0
    config.model.video_encoder_lr = 1.0
    config.model.head_lr = 1.0
    set_size(config, (65, 65))

    config.data.train = (
        {"name": "synthetic", "group": "video", "weight": 1.0, "preset": "test"},
        {"name": "synthetic", "group": "static", "weight": 1.0, "preset": "test", "clip_len": 1},
    )
    config.data.eval = ()
    config.data.batch_size = 8
    config.data.augment = {"flip": 0.5}

    config.optim.name = "adam"
    config.optim.lr = 1e-2
    config.optim.weight_decay = 0.0
    config.optim.clip_norm = 1.0
    config.optim.schedule.boundaries = ()
    config.optim.schedule.factors = ()

    config.train.total_steps = 30
    config.train.log_every = 1
    config.train.checkpoint_every = 15

"""FusionSeg (Jain, Xiong, Grauman, CVPR 2017): configurations.

    uvos train --config configs/fusionseg.py:full --workdir runs/fusionseg

`full` is the published recipe as far as it is known; solver files and training logs are not public.
Three stages: the appearance stream on PASCAL VOC 2012 with the additional masks of SBD (10 582
images, all classes one object) from ImageNet weights; the motion stream on frames of ImageNet-VID
whose boxes (drawn as filled rectangles, one id each) turn into masks by the appearance stream, of
which 84 929 frames passed both tests; the fusion on one half of DAVIS-16. SGD with momentum 0.9 and
weight decay 5e-4, rate 1e-3 with poly decay, batch 10, crops of 321x321 (the crop is that of the
released template, the rest from memory of the paper and of DeepLab-v2), classifiers at 10 times the
rate and their biases at 20 times, BatchNorm frozen. Steps are ours: the paper gives none. The
motion and joint stages need sources with flow. Inference at 289x513 without CRF, which is 854x480
scaled to a long side of 513.

Published: DAVIS-16 val J 70.7 (recall 83.5, decay 1.5), F 65.3 (73.8, 1.8), T 32.8; all 50 videos
J 71.6, F 65.8 (davischallenge.org). All 50 videos, mean J, quoted from memory of the paper:
appearance alone 64.7, motion alone 60.2, joint 71.5; SegTrack-v2 61.4, YouTube-Objects 68.4.

Variants: `full` (the released fusion), `paper` (the paper's), `appearance`, `motion` (one stream
alone), `masks` (the motion stream learns from masks instead of boxes), `native` (frames of any
size, padded to at least 289x513 as the released script does), `tiny` (tests).
"""

from _base import get_base_config, parse_arg, set_model_field
from ml_collections import ConfigDict

VARIANTS = ("full", "paper", "appearance", "motion", "masks", "native", "tiny")


def get_config(arg: str = "full") -> ConfigDict:
    """The configuration of a variant, with `model` overrides: `"tiny,fusion=paper_max"`."""
    variant, overrides = parse_arg(arg)
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}: use one of {', '.join(VARIANTS)}")
    config = full()
    if variant == "paper":
        config.model.fusion = "paper_max"
    elif variant in ("appearance", "motion"):
        config.model.streams = variant
        config.model.motion_labels = "masks"
    elif variant == "masks":
        config.model.motion_labels = "masks"
    elif variant == "native":
        config.model.input_size = ()
        config.model.pad_to = (289, 513)
    elif variant == "tiny":
        tiny(config)
    for key, value in overrides.items():
        set_model_field(config, key, value)
    return config


def full() -> ConfigDict:
    """The published recipe on the released network."""
    config = get_base_config()

    config.model.name = "fusionseg"
    # both streams: DeepLab-v2 on a ResNet-101
    config.model.block_counts = (3, 4, 23, 3)
    config.model.widths = (64, 128, 256, 512)
    config.model.rates = (6, 12, 18, 24)
    config.model.streams = "joint"  # joint | appearance | motion
    config.model.fusion = "release_sum"  # release_sum | paper_max
    config.model.fusion_features = 4
    # inputs
    config.model.input_size = (289, 513)  # 8 k + 1
    config.model.pad_to = ()  # least (H, W) after padding
    config.model.mean = (104.007, 116.669, 122.679)  # B, G, R
    config.model.std = ()  # divides the difference; none in the release
    config.model.max_flow = 0.0  # speed of full colour in pixels; 0: each frame's largest
    config.model.quantize = True  # the colour picture in whole levels, as a file holds it
    # loss
    config.model.loss_grid = True  # streams: at stride 8, as in DeepLab-v2
    # pseudo masks of the motion stage
    config.model.motion_labels = "boxes"  # boxes | masks
    config.model.max_boxes = 8
    config.model.box_overlap = 0.75
    config.model.flow_difference = 0.3
    config.model.box_test = "area"  # area | tight_box
    # recipe
    config.model.stage_shares = (0.475, 0.475, 0.05)  # appearance, motion, joint
    config.model.head_lr_factors = (10.0, 20.0)  # weights, biases

    davis = {"name": "davis", "root": "data/DAVIS", "flow": "flow"}
    config.data.train = (
        {"name": "image_mask", "group": "static", "weight": 1.0, "root": "data/VOC2012-SBD"},
        {
            "name": "folder",
            "group": "motion",
            "weight": 1.0,
            "root": "data/ImageNet-VID",
            "flow": "flow",
        },
        {**davis, "group": "video", "weight": 1.0, "split": "train"},
    )
    config.data.eval = ({**davis, "split": "val"},)
    config.data.batch_size = 10
    config.data.clip_len = 1
    config.data.size = (321, 321)
    config.data.augment = {"flip": 0.5, "scale": (0.5, 1.5), "crop": (1.0, 1.0)}

    config.optim.name = "sgd"
    config.optim.lr = 1e-3
    config.optim.momentum = 0.9
    config.optim.weight_decay = 5e-4
    config.optim.schedule.name = "poly"
    config.optim.schedule.power = 0.9
    config.optim.freeze_bn = True
    config.optim.frozen = (r"(bn\d|downsample_1)/(scale|bias)$",)

    config.train.total_steps = 42_000
    config.train.checkpoint_every = 2000
    return config


def tiny(config: ConfigDict) -> None:
    """Both streams, the fusion and all stages at 65x65 on synthetic data, in seconds."""
    config.model.block_counts = (1, 1, 1, 1)
    config.model.widths = (8, 16, 16, 16)
    config.model.rates = (1, 2, 3, 4)
    config.model.input_size = (65, 65)
    config.model.std = (57.4, 57.1, 58.4)  # fresh BatchNorm wants small inputs
    config.model.motion_labels = "masks"
    config.model.max_boxes = 3
    config.model.stage_shares = (0.4, 0.4, 0.2)
    config.model.head_lr_factors = (1.0, 1.0)

    scene = {"name": "synthetic", "preset": "test", "weight": 1.0, "label": "moving"}
    config.data.train = (
        {**scene, "group": "static", "clip_len": 1},
        {**scene, "group": "motion", "flow": True},
        {**scene, "group": "video", "flow": True},
    )
    config.data.eval = ()
    config.data.batch_size = 8
    config.data.clip_len = 2  # the last frame of a synthetic clip has no flow
    config.data.size = (65, 65)
    config.data.augment = {"flip": 0.5}

    config.optim.name = "adam"
    config.optim.lr = 1e-2
    config.optim.weight_decay = 0.0
    config.optim.clip_norm = 1.0
    config.optim.schedule.name = "constant"
    config.optim.freeze_bn = False
    config.optim.frozen = ()

    config.train.total_steps = 30
    config.train.log_every = 1
    config.train.checkpoint_every = 15

"""DFNet (Zhen et al., ECCV 2020): configurations.

    uvos train --config configs/dfnet.py:full --workdir runs/dfnet

No code was published, and the recipe is not known beyond "several images of a video, drawn at
random". `full` is therefore ours where the paper is silent: stills first (MSRA10K and DUTS), then
sets of four frames of DAVIS-16 train and stills in turn, 473x473, batch 8, SGD (momentum 0.9,
weight decay 5e-4, poly 0.9), 2.5e-3 for new layers and a tenth for the encoder, which starts from
ImageNet or saliency weights (`model.init_from`). See the module's docstring for every constant.

Published, DAVIS-16 val: J 83.4 (recall 94.4, decay 4.2), F 81.8 (89.0, 3.7), T 15.9, 3.57 fps (J,
F, T, fps: table VII of the survey of video segmentation, Zhou et al., TPAMI 2022; recall and decay
quoted from memory), with several scales and a CRF. Ablation tables are not known to us.

Variants: `full`, `no_crf`, `no_attention` (the features alone), `gradient` (W a plain parameter),
`l2` (the plain reading of the moving average), `matrix` (learned K x K compatibilities),
`cosnet_loss`, `multi_scale`, `groups16`, `groups64`, `groups512`, `tiny` (tests).
"""

from _base import get_base_config, parse_arg, set_model_field
from ml_collections import ConfigDict

GROUPS = {f"groups{k}": k for k in (16, 64, 512)}
VARIANTS = (
    "full",
    "no_crf",
    "no_attention",
    "gradient",
    "l2",
    "matrix",
    "cosnet_loss",
    "multi_scale",
    *GROUPS,
    "tiny",
)


def get_config(arg: str = "full") -> ConfigDict:
    """The configuration of a variant, with `model` overrides: `"tiny,groups=4"`."""
    variant, overrides = parse_arg(arg)
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}: use one of {', '.join(VARIANTS)}")
    config = full()
    if variant == "no_crf":
        config.model.crf_iterations = (0, 0)
    elif variant == "no_attention":
        config.model.attention = "none"
    elif variant == "gradient":
        config.model.w_update = "gradient"
    elif variant == "l2":
        config.model.w_normalization = "l2"
    elif variant == "matrix":
        config.model.crf_compat = "matrix"
    elif variant == "cosnet_loss":
        config.model.loss = "code"
    elif variant == "multi_scale":
        config.model.test_scales = (0.75, 1.0, 1.5)
    elif variant in GROUPS:
        config.model.groups = GROUPS[variant]
    elif variant == "tiny":
        tiny(config)
    for key, value in overrides.items():
        set_model_field(config, key, value)
    return config


def full() -> ConfigDict:
    """The recipe; see the top of the file for what of it is published."""
    config = get_base_config()

    config.model.name = "dfnet"
    # DeepLabv3 on a ResNet-101
    config.model.block_counts = (3, 4, 23, 3)
    config.model.widths = (64, 128, 256, 512)
    config.model.aspp_depth = 256
    config.model.embedding = 256
    config.model.aspp_rates = (6, 12, 18)
    config.model.normalization = "caffe_bgr"  # "imagenet" for weights trained on RGB
    # discriminative features
    config.model.clip_len = 4  # frames of a video seen together in training
    config.model.num_references = 3  # the same at inference, beside the target
    config.model.attention = "discriminative"  # discriminative | none
    config.model.groups = 256  # K
    config.model.w_update = "moving_average"  # moving_average | gradient | frozen
    config.model.momentum = 0.1  # share of the new direction
    config.model.w_normalization = "centered"  # centered | l2 | none
    config.model.w_init = "orthogonal"  # orthogonal | normal
    config.model.w_std = 0.088  # sqrt(2 / K), standard deviation of an entry, for K = 256
    # smoothing of the attention, on the feature grid
    config.model.crf_iterations = (3, 5)  # in training, at test; (0, 0): none
    config.model.crf_sdims = 8.0  # cells
    config.model.crf_schan = 13.0  # grey levels
    config.model.crf_smooth_sdims = 1.0  # cells
    config.model.crf_weights = (4.0, 2.0)  # initial: colour kernel, spatial kernel
    config.model.crf_compat = "potts"  # potts | matrix
    config.model.gates = True
    config.model.test_scales = (1.0,)  # of input_size, masks averaged
    # loss
    config.model.loss = "bce"  # bce | code | paper (the latter two: COSNet's)
    config.model.l1_weight = 0.8  # loss="code"
    config.model.aux_weight = 0.5
    config.model.iou_weight = 0.0  # of a soft IoU loss
    config.model.min_positive_ratio = 0.0
    # recipe
    config.model.pretrain_steps = 20_000  # on stills
    config.model.static_steps = True  # then every second step on stills
    config.model.encoder_lr_multiplier = 0.1
    config.model.input_size = (473, 473)

    config.data.size = (473, 473)
    config.data.train = (
        {"name": "davis", "group": "video", "weight": 1.0, "root": "data/DAVIS", "split": "train"},
        {"name": "image_mask", "group": "static", "weight": 0.5, "root": "data/MSRA10K"},
        {"name": "image_mask", "group": "static", "weight": 0.5, "root": "data/DUTS-TR"},
    )
    config.data.eval = ({"name": "davis", "root": "data/DAVIS", "split": "val"},)
    config.data.batch_size = 8
    config.data.clip_len = 4
    config.data.sampling = "pair"  # a frame and others anywhere in its sequence
    config.data.augment = {
        "flip": 0.5,
        "scale": (0.75, 1.25),
        "crop": (0.9, 0.9),
        "independent": True,
    }

    config.optim.name = "sgd"
    config.optim.lr = 2.5e-3
    config.optim.momentum = 0.9
    config.optim.weight_decay = 5e-4
    config.optim.schedule.name = "poly"
    config.optim.schedule.power = 0.9

    config.train.total_steps = 40_000
    config.train.checkpoint_every = 1000
    config.predict.crf = "cosnet"
    config.seed = 1234
    return config


def tiny(config: ConfigDict) -> None:
    """Every block, stage and option of `full` at 49x49 (7x7 positions), on synthetic data."""
    config.model.block_counts = (1, 1, 1, 1)
    config.model.widths = (8, 16, 24, 32)
    config.model.aspp_depth = 16
    config.model.embedding = 16
    config.model.clip_len = 2
    config.model.num_references = 2
    config.model.groups = 8
    config.model.w_std = 0.5
    config.model.crf_iterations = (2, 2)
    config.model.crf_sdims = 2.0
    config.model.loss = "paper"  # class-weighted: learns from scratch
    config.model.iou_weight = 1.0
    config.model.pretrain_steps = 10
    config.model.encoder_lr_multiplier = 1.0
    config.model.input_size = (49, 49)
    config.data.size = (49, 49)
    config.data.clip_len = 2

    config.data.train = (
        {"name": "synthetic", "group": "video", "weight": 1.0, "preset": "test"},
        {"name": "synthetic", "group": "static", "weight": 1.0, "preset": "test", "clip_len": 1},
    )
    config.data.eval = ()
    config.data.batch_size = 8

    config.optim.name = "adam"
    config.optim.lr = 1e-2
    config.optim.weight_decay = 0.0
    config.optim.clip_norm = 1.0

    config.predict.crf = ""

    config.train.total_steps = 30
    config.train.log_every = 1
    config.train.checkpoint_every = 15

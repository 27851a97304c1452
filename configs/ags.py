"""AGS (Wang et al., CVPR 2019): configurations.

    uvos train --config configs/ags.py:full --workdir runs/ags

`full` is the released network at 473x473 with frozen BatchNorm: clips of three frames with
fixations (DAVIS-16 train and SegTrack v2 with the eye-tracking of the paper; `fixation_video` reads
`<sequence>/{frames,fixations}`) and stills with fixations and masks (PASCAL-S and DUT-OMRON;
`fixation_image`) in turn, SGD with momentum 0.9 and weight decay 5e-4, biases at twice the rate as
in the prototxt. The alternation, the data sets' names, momentum and decay are quoted from memory of
the paper; rate and steps are ours, those of the sibling system PDB-ConvLSTM, for losses summed over
pixels. The backbone starts from PSPNet101 (`model.init_from`).

Published, DAVIS-16 val with CRF: J 79.7 (recall 91.1, decay 1.9), F 77.4 (85.8, 1.6), T 26.7
(davischallenge.org); YouTube-Objects J 69.7 (quoted from memory of later papers' tables); 10 fps
(abstract of the journal version, TPAMI 2021). The figures of the paper's ablation are not known to
us.

Variants: `full`, `no_attention` (segmentation alone), `multiplicative` (M Y), `implicit`
(attention learned from masks only), `oracle` (a given map of fixations guides: an upper bound),
`no_recurrence` (attention frame by frame), `aspp1`, `aspp2` (fewer pyramid blocks), `kl` (that
divergence for the attention), `modular` (attention first, then segmentation), `detached` (the
mask's loss does not move the attention), `tiny` (tests).
"""

from _base import get_base_config, parse_arg, set_model_field
from ml_collections import ConfigDict

VARIANTS = (
    "full",
    "no_attention",
    "multiplicative",
    "implicit",
    "oracle",
    "no_recurrence",
    "aspp1",
    "aspp2",
    "kl",
    "modular",
    "detached",
    "tiny",
)
#: What each variant changes in the `model` section of `full`.
CHANGES = {
    "no_attention": {"attention": "none"},
    "multiplicative": {"attention": "multiplicative"},
    "implicit": {"attention_supervision": "implicit"},
    "oracle": {"attention_source": "given"},
    "no_recurrence": {"temporal_module": "none"},
    "aspp1": {"aspp_blocks": 1},
    "aspp2": {"aspp_blocks": 2},
    "kl": {"attention_loss": "kl"},
    "modular": {"alternate": False},
    "detached": {"stop_attention_gradient": True},
}


def get_config(arg: str = "full") -> ConfigDict:
    """The configuration of a variant, with `model` overrides: `"tiny,attention=none"`."""
    variant, overrides = parse_arg(arg)
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}: use one of {', '.join(VARIANTS)}")
    config = full()
    for key, value in CHANGES.get(variant, {}).items():
        config.model[key] = value
    if variant == "tiny":
        tiny(config)
    for key, value in overrides.items():
        set_model_field(config, key, value)
    return config


def set_size(config: ConfigDict, size: tuple[int, int]) -> None:
    config.model.input_size = size
    config.data.size = size


def full() -> ConfigDict:
    """The released network and the recipe as far as it is known."""
    config = get_base_config()

    config.model.name = "ags"
    # ResNet-101 of PSPNet
    config.model.block_counts = (3, 4, 23, 3)
    config.model.stem = (64, 64, 128)
    config.model.widths = (64, 128, 256, 512)
    # attention branch
    config.model.clip_len = 3
    config.model.fixation_widths = (256, 128, 32)
    config.model.fixation_dilations = (2, 4, 8)
    config.model.temporal_module = "convlstm"  # none | convlstm
    config.model.lstm_features = 32
    config.model.lstm_kernel = 3
    config.model.lstm_dilation = 2
    config.model.peephole = "spatial"  # none | spatial (release) | full
    config.model.reset_peephole = False  # a clip marker of 0 hides the old cell from the peepholes
    config.model.init_range = 0.0297
    # segmentation branch
    config.model.aspp_blocks = 3
    config.model.pyramid_widths = (256, 64, 32)
    config.model.pyramid_dilations = ((6, 12, 18, 24), (3, 6, 9, 12), (2, 4, 6, 8))
    config.model.pyramid_pools = (8, 4, 2)
    config.model.head_channels = 2
    # guidance
    config.model.attention = "residual"  # none | residual | multiplicative
    config.model.attention_source = "predicted"  # predicted | given (`fixations` of the batch)
    config.model.attention_supervision = "explicit"  # explicit | implicit
    config.model.stop_attention_gradient = False
    # losses
    config.model.attention_loss = "bce"  # bce | kl
    config.model.attention_weight = 1.0
    config.model.reduction = "sum_per_frame"  # sum_per_frame (Caffe) | mean
    config.model.iou_weight = 0.0  # of a soft IoU loss, not in the paper
    # recipe
    config.model.alternate = True
    # inference
    config.model.stretch = True  # every map to [0, 1]
    set_size(config, (473, 473))

    config.data.train = (
        {"name": "fixation_video", "group": "video", "weight": 0.5, "root": "data/DAVIS-fixations"},
        {
            "name": "fixation_video",
            "group": "video",
            "weight": 0.5,
            "root": "data/SegTrackV2-fixations",
        },
        {"name": "fixation_image", "group": "static", "weight": 0.15, "root": "data/PASCAL-S"},
        {"name": "fixation_image", "group": "static", "weight": 0.85, "root": "data/DUT-OMRON"},
    )
    config.data.eval = ({"name": "davis", "root": "data/DAVIS", "split": "val"},)
    config.data.batch_size = 1  # clips of three frames
    config.data.clip_len = 3
    config.data.stride = 1
    config.data.augment = {"flip": 0.5, "scale": (1.0, 1.0), "crop": (1.0, 1.0)}

    config.optim.name = "sgd"
    config.optim.lr = 1e-8
    config.optim.momentum = 0.9
    config.optim.weight_decay = 5e-4
    config.optim.freeze_bn = True
    config.optim.frozen = (r"(^|/)(bn\w*|downsample_1)/(scale|bias)$",)
    config.optim.lr_multipliers = ((r"(^|/)((head|fixation_head)/bias|recurrent_bias)$", 2.0),)
    config.optim.schedule.name = "step"
    config.optim.schedule.boundaries = (23_000, 46_000)
    config.optim.schedule.factors = (0.1, 0.1)

    config.train.total_steps = 50_000
    config.train.checkpoint_every = 5000
    config.predict.crf = "ags"
    return config


def tiny(config: ConfigDict) -> None:
    """Every block and phase of `full` at 65x65 on synthetic data, in seconds."""
    config.model.block_counts = (1, 1, 1, 1)
    config.model.stem = (8, 8, 16)
    config.model.widths = (8, 8, 16, 16)
    config.model.fixation_widths = (8, 8, 8)
    config.model.lstm_features = 8
    config.model.init_range = 0.15
    config.model.pyramid_widths = (8, 8, 8)
    config.model.pyramid_dilations = ((1, 2), (1, 2), (1, 2))
    config.model.pyramid_pools = (4, 2, 2)  # 9 cells: the last window is cut off
    config.model.reduction = "mean"
    config.model.iou_weight = 1.0  # from scratch cross entropy alone ends in empty masks
    set_size(config, (65, 65))

    config.data.train = (
        {
            "name": "synthetic",
            "group": "video",
            "weight": 1.0,
            "preset": "test",
            "fixations": True,
        },
        {
            "name": "synthetic",
            "group": "static",
            "weight": 1.0,
            "preset": "test",
            "clip_len": 1,
            "fixations": True,
        },
    )
    config.data.eval = ()
    config.data.batch_size = 8
    config.data.augment = {"flip": 0.5}

    config.optim.name = "adam"
    config.optim.lr = 1e-2
    config.optim.weight_decay = 0.0
    config.optim.clip_norm = 1.0
    config.optim.freeze_bn = False
    config.optim.frozen = ()
    config.optim.lr_multipliers = ()
    config.optim.schedule.name = "constant"
    config.optim.schedule.boundaries = ()
    config.optim.schedule.factors = ()

    config.predict.crf = ""

    config.train.total_steps = 30
    config.train.log_every = 1
    config.train.checkpoint_every = 15

"""COSNet (Lu et al., CVPR 2019): configurations.

    uvos train --config configs/cosnet.py:full --workdir runs/cosnet

`full` is the published recipe: DAVIS-16 train for pairs and MSRA10K + DUTS stills, 473x473, batch
16, SGD 2.5e-4 (momentum 0.9, weight decay 5e-4), poly decay with power 0.9 over 60 epochs of 130
steps, every third step on stills; the encoder starts from a saliency-trained DeepLabv3
(`model.init_from`), without which others reached only J 55.7 (issues of carrierlxk/COSNet).

Published, DAVIS-16 val with CRF, N = 5 references: J 80.5 (recall 93.1, decay 4.4), F 79.4 (89.5,
5.0), T 18.4; FBMS test J 75.6; YouTube-Objects J 70.5; 2.2 fps on an RTX 2080 Ti (table VII of the
survey of video segmentation, Zhou et al., TPAMI 2022). Group variant: J 81.1 (README of the
release). Variants (J on DAVIS-16 / FBMS / YouTube-Objects, quoted from memory of the paper):
vanilla 80.0/75.2/70.3, symmetric 80.5/75.6/70.5, channel-wise 77.2/72.7/67.5, no co-attention
71.3/70.1/62.9; N = 0, 1, 2, 5, 7: 71.3, 77.6, 79.7, 80.5, 80.5.

Variants: `full`, `symmetric`, `channel`, `none`, `group` (two references per target, 378x378),
`prediction` (the released fusion of masks), `paper_loss`, `small_input` (378x378, as the author
advises for small memory), `halving` (rate halved from epoch 6 on, as in the released trainer),
`light` (the packaged default: a small backbone on synthetic video), `tiny` (tests).
"""

from _base import get_base_config, parse_arg, set_model_field
from ml_collections import ConfigDict

STEPS_PER_EPOCH = 130  # 2079 frames of DAVIS-16 train in batches of 16
VARIANTS = (
    "full",
    "symmetric",
    "channel",
    "none",
    "group",
    "prediction",
    "paper_loss",
    "small_input",
    "halving",
    "light",
    "tiny",
)


def get_config(arg: str = "full") -> ConfigDict:
    """The configuration of a variant, with `model` overrides: `"tiny,fusion=prediction"`."""
    variant, overrides = parse_arg(arg)
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}: use one of {', '.join(VARIANTS)}")
    config = full()
    if variant in ("symmetric", "channel", "none"):
        config.model.attention = variant
    elif variant == "group":
        config.model.variant = "group"
        config.model.num_references = 2
        config.data.clip_len = 3
        set_size(config, (378, 378))
    elif variant == "prediction":
        config.model.fusion = "prediction"
    elif variant == "paper_loss":
        config.model.loss = "paper"
    elif variant == "small_input":
        set_size(config, (378, 378))
    elif variant == "halving":
        config.optim.schedule.boundaries = (6 * STEPS_PER_EPOCH,)
        config.optim.schedule.factors = (0.5,)
    elif variant == "light":
        light(config)
    elif variant == "tiny":
        tiny(config)
    for key, value in overrides.items():
        set_model_field(config, key, value)
    return config


def set_size(config: ConfigDict, size: tuple[int, int]) -> None:
    config.model.input_size = size
    config.data.size = size


def full() -> ConfigDict:
    """The published recipe."""
    config = get_base_config()

    config.model.name = "cosnet"
    # DeepLabv3 on a ResNet-101
    config.model.block_counts = (3, 4, 23, 3)
    config.model.widths = (64, 128, 256, 512)
    config.model.aspp_depth = 512
    config.model.embedding = 256
    config.model.aspp_rates = (6, 12, 18)
    # co-attention
    config.model.attention = "vanilla"  # vanilla | symmetric | channel | none
    config.model.variant = "pair"  # pair | group
    config.model.fusion = "summary"  # summary | prediction
    config.model.num_references = 5  # at inference
    config.model.attention_impl = "blockwise"  # dense | blockwise
    config.model.block_size = 512  # query rows of the affinity at once
    config.model.gate_bias = False  # True in the paper
    config.model.head_convs = 1  # 2 in the paper
    # loss
    config.model.loss = "code"  # code | paper
    config.model.l1_weight = 0.8
    config.model.static_weight = 0.1
    config.model.orthogonality_weight = 1e-4  # symmetric attention only
    config.model.iou_weight = 0.0  # of a soft IoU loss, not in the paper
    config.model.min_positive_ratio = 0.0  # lower bound of the foreground ratio that divides
    # recipe
    config.model.static_steps = True  # every third step on stills
    config.model.video_lr_multipliers = (0.01, 10.0)  # encoder, co-attention
    set_size(config, (473, 473))

    config.data.train = (
        {"name": "davis", "group": "video", "weight": 1.0, "root": "data/DAVIS", "split": "train"},
        {"name": "image_mask", "group": "static", "weight": 0.5, "root": "data/MSRA10K"},
        {"name": "image_mask", "group": "static", "weight": 0.5, "root": "data/DUTS-TR"},
    )
    config.data.eval = ({"name": "davis", "root": "data/DAVIS", "split": "val"},)
    config.data.batch_size = 16
    config.data.clip_len = 2
    config.data.sampling = "pair"  # a frame and another one anywhere in its sequence
    config.data.augment = {
        "flip": 0.5,
        "scale": (0.7, 1.3),
        "crop": (0.9, 0.9),
        "independent": True,  # the two frames of a pair are augmented apart
    }

    config.optim.name = "sgd"
    config.optim.lr = 2.5e-4
    config.optim.momentum = 0.9
    config.optim.weight_decay = 5e-4
    config.optim.schedule.name = "poly"
    config.optim.schedule.power = 0.9
    # scale and bias of the shortcuts' BatchNorm, as in the release
    config.optim.frozen = (r"downsample_1/(scale|bias)$",)

    config.train.total_steps = 60 * STEPS_PER_EPOCH
    config.train.checkpoint_every = 5 * STEPS_PER_EPOCH
    config.predict.crf = "cosnet"
    config.seed = 1234
    return config


def light(config: ConfigDict) -> None:
    """The packaged default: 2.7 M parameters, 129x225, our own recipe on synthetic video.

    Differs from the paper in backbone (bottlenecks 2-2-3-2 of width 24-48-96-128), data (the
    synthetic generator only, rendered at 97x161), optimiser (AdamW from scratch, all parts at one
    rate, averaged parameters) and loss: class-weighted as in the paper plus a soft IoU. Without
    pre-training the released loss, whose scalar weight leaves the classes unbalanced, collapses to
    an empty mask (tiny network, 400 steps: J 0.08 to 0.04, with this one to 0.25).
    """
    config.model.block_counts = (2, 2, 3, 2)
    config.model.widths = (24, 48, 96, 128)
    config.model.aspp_depth = 64
    config.model.embedding = 64
    config.model.attention_impl = "dense"  # 17x29 positions
    config.model.loss = "paper"
    config.model.iou_weight = 1.0
    config.model.static_steps = False
    config.model.video_lr_multipliers = (1.0, 1.0)
    config.model.input_size = (129, 225)
    config.data.size = (97, 161)

    config.data.train = ({"name": "synthetic", "group": "video", "weight": 1.0, "preset": "fast"},)
    config.data.eval = ()
    config.data.batch_size = 8
    config.data.stride = 1

    config.optim.name = "adamw"
    config.optim.lr = 1.5e-3
    config.optim.weight_decay = 1e-4
    config.optim.clip_norm = 1.0
    config.optim.schedule.name = "cosine"
    config.optim.schedule.warmup_steps = 100
    config.optim.frozen = ()
    config.optim.ema = 0.995

    config.predict.crf = ""

    config.train.total_steps = 2000
    config.train.checkpoint_every = 100
    config.train.log_every = 20


def tiny(config: ConfigDict) -> None:
    """Every block, phase and option of `full` at 65x65, on synthetic data, in seconds."""
    config.model.block_counts = (1, 1, 2, 1)
    config.model.widths = (8, 16, 32, 64)
    config.model.aspp_depth = 16
    config.model.embedding = 16
    config.model.num_references = 2
    config.model.block_size = 32  # 81 positions: three blocks
    config.model.loss = "paper"  # learns from scratch, see `light`
    config.model.iou_weight = 1.0
    set_size(config, (65, 65))

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
    config.model.video_lr_multipliers = (1.0, 1.0)

    config.predict.crf = ""

    config.train.total_steps = 30
    config.train.log_every = 1
    config.train.checkpoint_every = 15

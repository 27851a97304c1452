"""AGNN (Wang et al., ICCV 2019): configurations.

    uvos train --config configs/agnn.py:full --workdir runs/agnn

`full` is the recipe of the release (carrierlxk/AGNN): DAVIS-16 train in sets of three frames (a
target and two drawn from its sequence) and MSRA10K + DUTS stills, 378x378, batch 16, SGD 2.5e-4
(momentum 0.9, weight decay 5e-4), poly decay with power 0.9 over 60 epochs of 130 steps, every
third step on stills; the encoder starts from a saliency-trained DeepLabv3 (`model.init_from`). At
test time two references, 473x473, masks averaged over the scales 0.75, 1 and 1.5, CRF preset
`agnn`. `paper` is the paper's form: three rounds, channel gates, loop edges, batch 8, five nodes at
test time (numbers of rounds and nodes quoted from memory of the paper).

Published, DAVIS-16 val: J 81.3 (recall 93.1, decay 0.0), F 79.7 (88.5, 5.1), T 33.7, 1.9 fps (table
VII of the survey of video segmentation, Zhou et al., TPAMI 2022); other listings give J 80.7, F
79.1. YouTube-Objects J 70.8. DAVIS-17 unsupervised val: J&F 61.1 (J 58.9, F 63.2; table VIII
there).

Variants: `full`, `paper`, `mean` (the release with any number of references in one graph),
`no_gate` and `no_graph` (ablations; K = 0 decodes the embedding alone), `rounds1` ... `rounds4`,
`one_scale` (no test-time scales), `tiny` and `tiny_paper` (tests).
"""

from _base import get_base_config, parse_arg, set_model_field
from ml_collections import ConfigDict

STEPS_PER_EPOCH = 130  # 2079 frames of DAVIS-16 train in batches of 16
ROUNDS = {f"rounds{k}": k for k in (1, 2, 3, 4)}
VARIANTS = (
    "full",
    "paper",
    "mean",
    "no_gate",
    "no_graph",
    *ROUNDS,
    "one_scale",
    "tiny",
    "tiny_paper",
)


def get_config(arg: str = "full") -> ConfigDict:
    """The configuration of a variant, with `model` overrides: `"tiny,rounds=1"`."""
    variant, overrides = parse_arg(arg)
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}: use one of {', '.join(VARIANTS)}")
    config = full()
    if variant in ("paper", "tiny_paper"):
        config.model.variant = "paper"
        config.model.num_references = 4
        config.data.batch_size = 8
    elif variant == "mean":
        config.model.extension = "mean"
        config.model.num_references = 4
    elif variant == "no_gate":
        config.model.gate = "none"
    elif variant == "no_graph":
        config.model.rounds = 0
    elif variant in ROUNDS:
        config.model.rounds = ROUNDS[variant]
    elif variant == "one_scale":
        config.model.test_scales = (1.0,)
    if variant.startswith("tiny"):
        tiny(config)
    for key, value in overrides.items():
        set_model_field(config, key, value)
    return config


def full() -> ConfigDict:
    """The recipe of the release."""
    config = get_base_config()

    config.model.name = "agnn"
    # DeepLabv3 on a ResNet-101
    config.model.block_counts = (3, 4, 23, 3)
    config.model.widths = (64, 128, 256, 512)
    config.model.aspp_depth = 512
    config.model.embedding = 256
    config.model.aspp_rates = (6, 12, 18)
    config.model.key_features = 64  # of self-attention
    config.model.dropout = 0.1  # of whole channels of the embedding
    # graph
    config.model.variant = "release"  # release | paper
    config.model.nodes = 3  # in training
    config.model.num_references = 2  # at inference; a graph has one node more
    config.model.extension = "subsets"  # subsets | mean: more than two references in the release
    config.model.rounds = -1  # K; -1: of the variant, 5 or 3
    config.model.gate = ""  # spatial | channel | none; "": of the variant
    config.model.aggregation = ""  # sum | mean | fusion; "": of the variant
    config.model.loop = -1  # self-attention in every round: 1, 0, -1: of the variant
    config.model.self_attention = -1  # self-attention in the encoder: likewise
    config.model.attention_impl = "blockwise"  # dense | blockwise | fused
    config.model.block_size = 512  # query rows of the affinity at once
    config.model.test_scales = (0.75, 1.0, 1.5)  # of input_size, masks averaged
    # loss
    config.model.loss = "code"  # code | paper
    config.model.l1_weight = 0.8
    config.model.static_weight = 0.2  # 0.1 for each of the two stills that make a static example
    config.model.iou_weight = 0.0  # of a soft IoU loss, not in the paper
    config.model.min_positive_ratio = 0.0  # lower bound of the foreground ratio that divides
    # recipe
    config.model.static_steps = True  # every third step on stills
    config.model.video_lr_multipliers = (0.01, 10.0)  # encoder, graph
    config.model.input_size = (473, 473)

    config.data.size = (378, 378)
    config.data.train = (
        {"name": "davis", "group": "video", "weight": 1.0, "root": "data/DAVIS", "split": "train"},
        {"name": "image_mask", "group": "static", "weight": 0.5, "root": "data/MSRA10K"},
        {"name": "image_mask", "group": "static", "weight": 0.5, "root": "data/DUTS-TR"},
    )
    config.data.eval = ({"name": "davis", "root": "data/DAVIS", "split": "val"},)
    config.data.batch_size = 16
    config.data.clip_len = 3
    config.data.sampling = "pair"  # a frame and others anywhere in its sequence
    config.data.augment = {
        "flip": 0.5,
        "scale": (0.7, 1.3),
        "crop": (0.9, 0.9),
        "independent": True,  # the frames of a set are augmented apart
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
    config.predict.crf = "agnn"
    config.seed = 1234
    return config


def tiny(config: ConfigDict) -> None:
    """Every block and phase of the variant at 49x49 (7x7 positions), on synthetic data."""
    config.model.block_counts = (1, 1, 1, 1)
    config.model.widths = (8, 16, 24, 32)
    config.model.aspp_depth = 16
    config.model.embedding = 16
    config.model.key_features = 4
    config.model.rounds = 2
    config.model.num_references = 2
    config.model.block_size = 25  # 49 positions: two blocks
    config.model.test_scales = (1.0,)
    config.model.loss = "paper"  # learns from scratch; the code's loss collapses to empty masks
    config.model.iou_weight = 1.0
    config.model.input_size = (49, 49)
    config.data.size = (49, 49)

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

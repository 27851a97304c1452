"""DLVS / FCNS (Wang, Shen, Shao, TIP 2018): configurations.

    uvos train --config configs/dlvs.py:full --workdir runs/dlvs

`full` is the released network with what is known of its training: VGG-16 from ImageNet
(`uvos convert dlvs vgg16.h5 --part vgg`, then `model.init_from`), 224x224, batch 5 and 12 epochs
(`config.py@wenguanwang/ViSalientObject`); the static network on MSRA10K and DUT-OMRON, the dynamic
one on about 150K pairs moved artificially out of those stills and on the videos of SegTrackV2 and
FBMS train (abstract; table 2 of SSAV, Fan et al., CVPR 2019). SGD with momentum 0.9 and weight
decay 5e-4 is quoted from memory; the rate is ours (the loss is a mean over pixels), as is the
share of real clips in a batch. No CRF and no threshold in the paper.

Published, MAE: DAVIS 0.06, FBMS 0.07 (abstract); released model 0.0587 and 0.0619 (its README). Max
F / MAE as others measured it: DAVIS-16 test 0.729/0.053, FBMS test 0.735/0.100, ViSal 0.877/0.041
(table 1 of PDB-ConvLSTM, Song et al., ECCV 2018). 0.47 s per frame without reading and writing on a
GTX 1080 Ti (its table 3). No J and F are published.

Variants: `full`; `vgg` (means on their own channels, side channels with ReLU, unrounded priors: for
training anew); `deconv` (the paper's head); `static` (static network alone); `no_prior` (6 input
channels); `last` (only the finest map supervised); `real`, `synthetic` (pairs of one kind only);
`tiny` (tests).
"""

from _base import get_base_config, parse_arg, set_model_field
from ml_collections import ConfigDict

STILLS = 15_168  # MSRA10K and DUT-OMRON
PAIRS = 150_000 + 18_000  # moved stills and real videos
EPOCHS, BATCH = 12, 5
VARIANTS = (
    "full",
    "vgg",
    "deconv",
    "static",
    "no_prior",
    "last",
    "real",
    "synthetic",
    "tiny",
)


def get_config(arg: str = "full") -> ConfigDict:
    """The configuration of a variant, with `model` overrides: `"tiny,head=deconv"`."""
    variant, overrides = parse_arg(arg)
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}: use one of {', '.join(VARIANTS)}")
    config = full()
    if variant == "vgg":
        config.model.preprocess = "vgg"
        config.model.side_activation = "relu"
        config.model.round_prior = False
    elif variant == "deconv":
        config.model.head = "deconv"
        config.model.preprocess = "vgg"
    elif variant == "static":
        config.model.static_only = True
        config.train.total_steps = EPOCHS * STILLS // BATCH
    elif variant == "no_prior":
        config.model.use_static_prior = False
    elif variant == "last":
        config.model.supervision = "last"
    elif variant in ("real", "synthetic"):
        kept = [s for s in config.data.train if s["group"] == "static"]
        pairs = [s for s in config.data.train if s["group"] == "video"]
        moved = variant == "synthetic"
        kept += [s for s in pairs if (s["name"] == "saliency_pairs") == moved]
        config.data.train = tuple(kept)
    elif variant == "tiny":
        tiny(config)
    for key, value in overrides.items():
        set_model_field(config, key, value)
    return config


def set_size(config: ConfigDict, size: tuple[int, int]) -> None:
    config.model.input_size = size
    config.data.size = size


def full() -> ConfigDict:
    """The released network and what is known of its training."""
    config = get_base_config()

    config.model.name = "dlvs"
    # VGG-16
    config.model.counts = (2, 2, 3, 3, 3)
    config.model.widths = (64, 128, 256, 512, 512)
    # heads
    config.model.head = "side"  # side (release) | deconv (paper)
    config.model.side_features = 64
    config.model.side_activation = "sigmoid"  # sigmoid (release) | relu
    config.model.deconv_widths = (256, 128, 64, 64)
    # what the networks see
    config.model.preprocess = "released"  # released (red and blue means swapped) | vgg
    config.model.input_scale = 1.0  # frames minus mean are divided by this
    config.model.static_only = False
    config.model.use_static_prior = True
    config.model.prior_range = 255.0  # of the static map as an input
    config.model.stretch = True  # spread every map over its range
    config.model.round_prior = True  # to 8 bits, as stored maps are
    # video
    config.model.clip_len = 8  # frames per window at inference
    config.model.last_frame = "reverse_pair"  # reverse_pair | static
    # recipe
    config.model.supervision = "deep"  # deep | last
    config.model.static_share = STILLS / (STILLS + PAIRS)  # of the steps: 12 epochs of each
    set_size(config, (224, 224))

    config.data.train = (
        {"name": "image_mask", "group": "static", "weight": 0.66, "root": "data/MSRA10K"},
        {"name": "image_mask", "group": "static", "weight": 0.34, "root": "data/DUT-OMRON"},
        {"name": "saliency_pairs", "group": "video", "weight": 0.59, "root": "data/MSRA10K"},
        {"name": "saliency_pairs", "group": "video", "weight": 0.3, "root": "data/DUT-OMRON"},
        {"name": "segtrack", "group": "video", "weight": 0.03, "root": "data/SegTrackv2"},
        {"name": "fbms", "group": "video", "weight": 0.08, "root": "data/FBMS", "split": "train"},
    )
    config.data.eval = ({"name": "davis", "root": "data/DAVIS", "split": "val"},)
    config.data.batch_size = BATCH
    config.data.clip_len = 2

    config.optim.name = "sgd"
    config.optim.lr = 1e-3
    config.optim.momentum = 0.9
    config.optim.weight_decay = 5e-4
    config.optim.schedule.name = "poly"

    config.train.total_steps = EPOCHS * (STILLS + PAIRS) // BATCH
    config.train.checkpoint_every = 5000
    return config


def tiny(config: ConfigDict) -> None:
    """Every block and stage of `full` at 64x64 on synthetic data, in seconds; trained anew."""
    config.model.counts = (1, 1, 2, 2, 2)
    config.model.widths = (8, 12, 16, 24, 24)
    config.model.side_features = 8
    config.model.deconv_widths = (8, 8, 8, 8)
    config.model.side_activation = "relu"
    config.model.preprocess = "vgg"
    config.model.input_scale = 58.0
    config.model.prior_range = 2.0
    config.model.round_prior = False
    config.model.clip_len = 3
    config.model.static_share = 0.5
    set_size(config, (64, 64))

    config.data.train = (
        {"name": "synthetic", "group": "video", "weight": 1.0, "preset": "test"},
        {"name": "synthetic", "group": "static", "weight": 1.0, "preset": "test", "clip_len": 1},
    )
    config.data.eval = ()
    config.data.batch_size = 8

    config.optim.name = "adam"
    config.optim.lr = 3e-3
    config.optim.weight_decay = 0.0
    config.optim.clip_norm = 1.0
    config.optim.schedule.name = "constant"

    config.train.total_steps = 30
    config.train.log_every = 1
    config.train.checkpoint_every = 15

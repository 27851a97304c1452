"""MATNet (Zhou et al., AAAI 2020): configurations.

    uvos train --config configs/matnet.py:full --workdir runs/matnet

`full` is the released recipe (`train_MATNet.py`, `dataloader/davis2017_youtubevos_ehem.py` of
tfzhou/MATNet): DAVIS-16 train and every tenth frame of YouTube-VOS 2018 train, 473x473, batch 2,
SGD with momentum 0.9 and weight decay 5e-4, constant rates of 1e-4 (encoder) and 1e-3 (decoder), 25
epochs, both trunks from ImageNet (`uvos convert matnet resnet101.pth --part backbone`, then
`model.init_from`, `model.init_strict=False`), the epoch with the best J on DAVIS-16 val. Every
source carries optical flow (PWC-Net in the release; folder `flow`, made by tools/compute_flow.py)
and edge maps (HED; folder `edges`, 8-bit images named after the frames); with `sobel` and `no_hem`
no maps are read.
A clip is two frames, so that the first has its flow; the second does not count. Augmentation:
mirroring as released; crops of 0.8 to 1 in place of scales 0.75 to 1.25; rotations by up to 10
degrees are not here. 25 epochs of about 11600 examples are taken for `total_steps`.

Published, DAVIS-16 val with flip averaging and CRF: J 82.4 (recall 94.5, decay 5.5), F 80.7 (90.2,
4.5), T 21.6 (davischallenge.org); DAVIS-17 unsupervised val J&F 58.6 (README of the release); FBMS
J 76.1, YouTube-Objects J 69.0 (quoted from memory).

Variants: `full`; without the transition (`no_mat`), one or three steps instead of five (`steps1`,
`steps3`), without its soft attention (`no_soft_attention`), with row softmax instead of tanh
(`softmax`), without the gates (`no_ssa`), without boundaries (`no_boundary`), without hard
negatives (`no_hem`), with Sobel edges for them (`sobel`), with three dilated convolutions of their
own (`dilations357`), `tiny` (tests).
"""

from _base import get_base_config, parse_arg, set_model_field
from ml_collections import ConfigDict

ABLATIONS = {
    "no_mat": {"transition": "none"},
    "steps1": {"steps": 1},
    "steps3": {"steps": 3},
    "no_soft_attention": {"soft_attention": False},
    "softmax": {"affinity": "softmax"},
    "no_ssa": {"bridge": "concat"},
    "no_boundary": {"boundary": False},
    "no_hem": {"edges": "none"},
    "sobel": {"edges": "sobel"},
    "dilations357": {"shared_dilation": False},
}
VARIANTS = ("full", *ABLATIONS, "tiny")


def get_config(arg: str = "full") -> ConfigDict:
    """The configuration of a variant, with `model` overrides: `"tiny,edges=none"`."""
    variant, overrides = parse_arg(arg)
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}: use one of {', '.join(VARIANTS)}")
    config = full()
    if variant == "tiny":
        tiny(config)
    config.model.update(ABLATIONS.get(variant, {}))
    for key, value in overrides.items():
        set_model_field(config, key, value)
    if config.model.edges != "given":
        config.data.train = tuple(
            {k: v for k, v in source.items() if k != "edges"} for source in config.data.train
        )
    return config


def set_size(config: ConfigDict, size: tuple[int, int]) -> None:
    config.model.input_size = size
    config.data.size = size


def full() -> ConfigDict:
    """The released recipe."""
    config = get_base_config()

    config.model.name = "matnet"
    # two ResNet-101
    config.model.block_counts = (3, 4, 23, 3)
    config.model.widths = (64, 128, 256, 512)
    # motion-attentive transition
    config.model.transition = "mat"  # mat | none
    config.model.steps = 5
    config.model.reduction = 16
    config.model.soft_attention = True
    config.model.affinity = "tanh"  # tanh (release) | softmax (paper)
    config.model.attention_impl = "blockwise"  # dense | blockwise
    config.model.block_size = 512  # rows of the affinity at once
    # bridge and decoder
    config.model.bridge = "ssa"  # ssa | concat
    config.model.decoder_width = 256
    config.model.boundary = True
    config.model.boundary_width = 64
    config.model.shared_dilation = True  # False: three convolutions with `dilations`
    config.model.dilations = (3, 5, 7)
    config.model.init_std = 0.001  # of the decoder's kernels; 0: He's
    # flow
    config.model.source_aspect = (
        854 / 480
    )  # width / height of what the flow was computed on; 0: off
    # loss
    config.model.boundary_weight = 0.2
    config.model.boundary_radius = 2
    config.model.edges = "given"  # given | sobel | none
    config.model.hard_margin = 11
    config.model.hard_spread = 5
    config.model.hard_stretch = True
    config.model.iou_weight = 0.0  # of a soft IoU loss, not in the paper
    # recipe
    config.model.encoder_lr_factor = 0.1
    set_size(config, (473, 473))

    config.data.train = (
        {
            "name": "davis",
            "weight": 0.35,
            "root": "data/DAVIS",
            "split": "train",
            "flow": "flow",
            "edges": "edges",
        },
        {
            "name": "youtube_vos",
            "weight": 0.65,
            "root": "data/YouTube-VOS",
            "split": "train",
            "flow": "flow",
            "edges": "edges",
        },
    )
    config.data.eval = ()
    config.data.batch_size = 2
    config.data.clip_len = 2
    config.data.stride = 1
    config.data.augment = {"flip": 0.5, "scale": (1.0, 1.0), "crop": (0.8, 1.0)}

    config.optim.name = "sgd"
    config.optim.lr = 1e-3
    config.optim.momentum = 0.9
    config.optim.weight_decay = 5e-4
    config.optim.schedule.name = "constant"

    config.train.total_steps = 25 * 5800
    config.train.checkpoint_every = 5800
    config.predict.crf = "matnet"
    config.predict.tta.flip = True
    config.seed = 123
    return config


def tiny(config: ConfigDict) -> None:
    """Every block of `full` at 49x49, one bottleneck a stage, synthetic data with exact flow."""
    config.model.block_counts = (1, 1, 1, 1)
    config.model.widths = (4, 8, 8, 16)
    config.model.steps = 2
    config.model.reduction = 4
    config.model.attention_impl = "dense"  # 49 positions at res3
    config.model.decoder_width = 16
    config.model.boundary_width = 8
    config.model.init_std = 0.0
    config.model.source_aspect = 0.0
    config.model.edges = "sobel"
    config.model.hard_margin = 3
    config.model.hard_spread = 3
    config.model.boundary_radius = 1
    config.model.iou_weight = 1.0
    config.model.encoder_lr_factor = 1.0
    set_size(config, (49, 49))

    config.data.train = ({"name": "synthetic", "weight": 1.0, "preset": "test", "flow": True},)
    config.data.eval = ()
    config.data.batch_size = 8
    config.data.clip_len = 2

    config.optim.name = "adam"
    config.optim.lr = 1e-2
    config.optim.weight_decay = 0.0
    config.optim.clip_norm = 1.0

    config.predict.crf = ""
    config.predict.tta.flip = False

    config.train.total_steps = 30
    config.train.log_every = 1
    config.train.checkpoint_every = 15

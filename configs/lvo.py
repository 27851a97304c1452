"""LVO (Tokmakov et al., ICCV 2017): configurations.

    uvos train --config configs/lvo.py:full --workdir runs/lvo

`full` is the published recipe as far as it is known: windows of 14 consecutive frames of DAVIS-16
train, one window per step, 30000 steps of RMSProp at 1e-4 with weight decay 5e-3 and gradients
clipped to +-50 (the value quoted from memory), a fifth of the windows with five frames standing
still; only the memory and the projections of the appearance move. The streams are pre-trained:
DeepLab-LargeFOV on PASCAL VOC 2012, MP-Net on FlyingThings3D (`uvos convert lvo FILE --part
appearance|motion`, then `model.init_from` with `model.init_strict=False`). Every source must carry
optical flow (LDOF in the paper). Crops of 0.8 to 1 and mirroring (that the sequence is cropped and
mirrored as a whole is quoted from memory).

Published, DAVIS-16 val with CRF: J 75.9 (recall 89.1, decay 0.0), F 72.1 (83.4, 1.3), T 26.5
(davischallenge.org); the IJCV version with a stronger backbone and flow: J 78.2, F 75.9. Both
directions instead of one: about +3 J on DAVIS, +5 on FBMS.

Variants: `full`; `forward` (past frames only; streams), `no_memory`, `lstm`, `kernel3` (3x3 in the
memory), `appearance`, `motion` (one stream alone), `no_stop_and_go`, `resnet` (res5 of a dilated
ResNet-101 as appearance), `joint` (streams train along), `tiny` (tests).
"""

from _base import get_base_config, parse_arg, set_model_field
from ml_collections import ConfigDict

ABLATIONS = {
    "forward": {"memory": "forward"},
    "no_memory": {"memory": "none"},
    "lstm": {"cell": "lstm"},
    "kernel3": {"kernel": 3},
    "appearance": {"streams": "appearance"},
    "motion": {"streams": "motion"},
    "no_stop_and_go": {"stop_share": 0.0},
    "resnet": {"backbone": "resnet101", "counts": (3, 4, 23, 3), "widths": (64, 128, 256, 512)},
    "joint": {"train_streams": True},
}
VARIANTS = ("full", *ABLATIONS, "tiny")


def get_config(arg: str = "full") -> ConfigDict:
    """The configuration of a variant, with `model` overrides: `"tiny,memory=forward"`."""
    variant, overrides = parse_arg(arg)
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}: use one of {', '.join(VARIANTS)}")
    config = full()
    if variant == "tiny":
        tiny(config)
    config.model.update(ABLATIONS.get(variant, {}))
    for key, value in overrides.items():
        set_model_field(config, key, value)
    return config


def set_size(config: ConfigDict, size: tuple[int, int]) -> None:
    config.model.input_size = size
    config.data.size = size


def full() -> ConfigDict:
    """The published recipe."""
    config = get_base_config()

    config.model.name = "lvo"
    # appearance: VGG-16 with LargeFOV's fc6
    config.model.backbone = "vgg_largefov"  # vgg_largefov | resnet101
    config.model.counts = (2, 2, 3, 3, 3)
    config.model.widths = (64, 128, 256, 512, 512)
    config.model.fc6 = 1024
    config.model.fc6_dilation = 12
    config.model.ceil_pool = False  # True: Caffe's sizes, 61x108 for 480x854 instead of 60x107
    # motion: MP-Net on half-size flow
    config.model.motion_widths = (64, 128, 256, 256, 256, 256)
    config.model.motion_decoder = 256
    config.model.motion_head = 512
    config.model.motion_pool = "average"  # average | max
    config.model.zero_below = 1.0  # angles of slower flow are 0; 0 on exact flow
    # memory
    config.model.streams = "both"  # both | appearance | motion
    config.model.projection = 256  # between fc6 and `features`; not published
    config.model.features = 128
    config.model.memory = "bidirectional"  # bidirectional | forward | none
    config.model.cell = "gru"  # gru | lstm
    config.model.hidden = 64
    config.model.kernel = 7
    config.model.head_features = 64
    config.model.head_relu = False
    # recipe
    config.model.clip_len = 14
    config.model.stop_share = 0.2
    config.model.stop_frames = 5
    config.model.iou_weight = 0.0  # of a soft IoU loss, not in the paper
    config.model.train_streams = False  # True: the streams move in the second stage, too
    config.model.stage_shares = (0.0, 1.0)  # streams, memory
    set_size(config, (480, 854))

    config.data.train = (
        {"name": "davis", "weight": 1.0, "root": "data/DAVIS", "split": "train"},
    )  # fmt: skip
    config.data.eval = ()
    config.data.batch_size = 1  # windows
    config.data.clip_len = 14
    config.data.stride = 1
    config.data.augment = {"flip": 0.5, "scale": (1.0, 1.0), "crop": (0.8, 1.0)}

    config.optim.name = "rmsprop"
    config.optim.lr = 1e-4
    config.optim.weight_decay = 5e-3
    config.optim.clip_value = 50.0
    config.optim.schedule.name = "constant"

    config.train.total_steps = 30_000
    config.train.checkpoint_every = 2000
    config.train.remat = True
    config.predict.crf = "mpnet"
    return config


def tiny(config: ConfigDict) -> None:
    """Every part and both stages of `full` at 64x64, windows of four, synthetic data."""
    config.model.counts = (1, 1, 1, 1, 1)
    config.model.widths = (8, 16, 16, 16, 16)
    config.model.fc6 = 16
    config.model.fc6_dilation = 2
    config.model.motion_widths = (8, 8, 16, 16, 16, 16)
    config.model.motion_decoder = 16
    config.model.motion_head = 16
    config.model.zero_below = 0.0
    config.model.projection = 8
    config.model.features = 8
    config.model.hidden = 8
    config.model.kernel = 3
    config.model.head_features = 8
    config.model.clip_len = 4
    config.model.stop_frames = 2
    config.model.iou_weight = 1.0  # from scratch cross entropy alone ends in empty masks
    config.model.stage_shares = (0.5, 0.5)
    set_size(config, (64, 64))

    config.data.train = ({"name": "synthetic", "weight": 1.0, "preset": "test", "flow": True},)
    config.data.eval = ()
    config.data.batch_size = 8
    config.data.clip_len = 4

    config.optim.name = "adam"
    config.optim.lr = 4e-3
    config.optim.weight_decay = 0.0
    config.optim.clip_value = 0.0
    config.optim.clip_norm = 1.0

    config.predict.crf = ""

    config.train.total_steps = 30
    config.train.log_every = 1
    config.train.checkpoint_every = 15
    config.train.remat = False

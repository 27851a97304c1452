"""PDB-ConvLSTM (Song et al., ECCV 2018): configurations.

    uvos train --config configs/pdb_convlstm.py:full --workdir runs/pdb

`full` is the published recipe on the released network (also called `release`): clips of five frames
at 473x473, one clip per step, SGD with momentum 0.9 and weight decay 5e-4, frozen BatchNorm. Three
stages: the spatial part at 1e-8 on MSRA10K, DUT-OMRON and the frames of DAVIS-16 train; everything
on stills (as clips of equal frames) and clips, the recurrence at 1e-6; the recurrence alone at 1e-6
on the 30 training videos of DAVIS-16. Rates are those of losses summed over pixels, as Caffe has
them. The paper gives no schedule and no numbers of steps; the rate falls tenfold after 23000 steps
of a stage, as in `solver.prototxt@DengPingFan/DAVSOD`, whose trainer grew out of this one, and the
lengths are ours. The backbone starts from PSPNet50 in the paper (`model.init_from`). Of its
augmentations the rotations by multiples of 90 degrees are not here; clips have a fixed stride of
3 where the paper draws 1 to 6; CRF and threshold 0.42 as published.

Published, DAVIS-16 val: J 74.3, F 72.8 with the threshold, J 77.2 (recall 90.1, decay 0.9), F 74.5
(84.4, -0.2), T 29.1 with CRF; MAE / max F: DAVIS-16 0.030 / 0.849, FBMS 0.069 / 0.815, ViSal 0.022
/ 0.917; 20 fps on a GTX 1080 Ti without CRF (tables 1, 2 and section 4.3 of the paper; statistics
from davischallenge.org).

Variants, with the published max F / MAE on DAVIS-16 and on FBMS:
`full` 0.849/0.030, 0.815/0.069; without stills (`no_static`) 0.849 to 0.753, 0.030 to 0.049.
Spatial part alone (`spatial`) 0.774/0.047, 0.744/0.103; with one dilation (`dilation2`, `4`, `8`,
`16`) 0.703/0.079, 0.704/0.077, 0.715/0.074, 0.708/0.074 and 0.707/0.110, 0.702/0.109, 0.714/0.107,
0.716/0.108; branches added up (`aspp`) 0.769/0.045, 0.730/0.111 (table 4).
Recurrence: `fc_lstm` 0.705/0.056, 0.672/0.121; `convlstm` 0.783/0.043, 0.755/0.096; `b_convlstm`
0.786/0.039, 0.757/0.094; `db_convlstm` 0.809/0.036, 0.799/0.072 (table 5).
Others: `paper` (no peepholes, fusion by eq. 5, one output channel), `caffe_loss` (squared error in
place of the absolute one), `tiny` (tests).
"""

from _base import get_base_config, parse_arg, set_model_field
from ml_collections import ConfigDict

TEMPORAL = ("fc_lstm", "convlstm", "b_convlstm", "db_convlstm")
DILATIONS = {"dilation2": 2, "dilation4": 4, "dilation8": 8, "dilation16": 16}
VARIANTS = (
    "full",
    "release",
    "paper",
    "caffe_loss",
    "no_static",
    "spatial",
    *DILATIONS,
    "aspp",
    *TEMPORAL,
    "tiny",
)


def get_config(arg: str = "full") -> ConfigDict:
    """The configuration of a variant, with `model` overrides: `"tiny,fusion=conv_tanh"`."""
    variant, overrides = parse_arg(arg)
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}: use one of {', '.join(VARIANTS)}")
    config = full()
    if variant == "paper":
        config.model.peephole = "none"
        config.model.fusion = "conv_tanh"
        config.model.head_channels = 1
    elif variant == "caffe_loss":
        config.model.loss = "caffe"
    elif variant == "no_static":
        config.model.static_steps = False
        config.data.train = tuple(s for s in config.data.train if s["name"] == "davis")
    elif variant in ("spatial", "aspp", *DILATIONS):
        config.model.temporal_module = "none"
        if variant == "aspp":
            config.model.spatial_module = "aspp"
        elif variant in DILATIONS:
            config.model.pdc_dilations = (DILATIONS[variant],)
    elif variant in TEMPORAL:
        config.model.temporal_module = variant
    elif variant == "tiny":
        tiny(config)
    for key, value in overrides.items():
        set_model_field(config, key, value)
    return config


def set_size(config: ConfigDict, size: tuple[int, int]) -> None:
    config.model.input_size = size
    config.data.size = size


def full() -> ConfigDict:
    """The published recipe on the released network."""
    config = get_base_config()

    config.model.name = "pdb_convlstm"
    # PSPNet's ResNet-50 at stride 8
    config.model.block_counts = (3, 4, 6, 3)
    config.model.stem = (64, 64, 128)
    config.model.widths = (64, 128, 256, 512)
    # pyramid dilated convolution
    config.model.spatial_module = "pdc"  # pdc | aspp
    config.model.pdc_dilations = (2, 4, 8, 16)
    config.model.pdc_width = 512
    config.model.squeeze = 32
    # recurrence
    config.model.clip_len = 5
    config.model.temporal_module = "pdb_convlstm"
    # none | fc_lstm | convlstm | b_convlstm | db_convlstm | pdb_convlstm
    config.model.lstm_features = 32
    config.model.lstm_kernel = 3
    config.model.lstm_dilations = (1, 2)
    config.model.peephole = "spatial"  # none (paper) | spatial (release) | full
    config.model.reset_peephole = True  # False in the Caffe layer; whole clips are the same
    config.model.fusion = "sum"  # sum (release) | conv_tanh (paper)
    config.model.head_channels = 2  # 1 in the paper
    config.model.init_range = 0.0297
    # loss
    config.model.loss = "paper"  # paper | caffe
    config.model.reduction = "sum_per_frame"  # sum_per_frame (Caffe) | mean
    config.model.iou_weight = 0.0  # of a soft IoU loss, not in the paper
    # recipe
    config.model.static_steps = True  # stills in the second stage
    config.model.stage_shares = (0.45, 0.45, 0.1)  # of train.total_steps
    config.model.temporal_lr_factor = 100.0  # 1e-6 against 1e-8
    # inference
    config.model.stretch = True  # every map to [0, 1]
    set_size(config, (473, 473))

    config.data.train = (
        {"name": "image_mask", "group": "static", "weight": 0.6, "root": "data/MSRA10K"},
        {"name": "image_mask", "group": "static", "weight": 0.3, "root": "data/DUT-OMRON"},
        {
            "name": "davis",
            "group": "static",
            "weight": 0.1,
            "root": "data/DAVIS",
            "split": "train",
            "clip_len": 1,
        },
        {"name": "davis", "group": "video", "weight": 1.0, "root": "data/DAVIS", "split": "train"},
    )
    config.data.eval = ({"name": "davis", "root": "data/DAVIS", "split": "val"},)
    config.data.batch_size = 1  # clips
    config.data.clip_len = 5
    config.data.stride = 3
    config.data.augment = {"flip": 0.5, "scale": (1.0, 1.0), "crop": (0.8, 1.0)}

    config.optim.name = "sgd"
    config.optim.lr = 1e-8
    config.optim.momentum = 0.9
    config.optim.weight_decay = 5e-4
    config.optim.freeze_bn = True
    config.optim.frozen = (r"(^|/)(bn\w*|downsample_1)/(scale|bias)$",)
    config.optim.schedule.name = "step"
    config.optim.schedule.boundaries = (23_000, 46_000)
    config.optim.schedule.factors = (0.1, 0.1)

    config.train.total_steps = 110_000
    config.train.checkpoint_every = 5000
    config.predict.crf = "pdb_convlstm"
    config.predict.threshold = 0.42
    return config


def tiny(config: ConfigDict) -> None:
    """Every block and stage of `full` at 65x65, clips of three, on synthetic data, in seconds."""
    config.model.block_counts = (1, 1, 1, 1)
    config.model.stem = (8, 8, 16)
    config.model.widths = (8, 8, 16, 16)
    config.model.pdc_dilations = (2, 4)
    config.model.pdc_width = 8
    config.model.squeeze = 8
    config.model.clip_len = 3
    config.model.lstm_features = 8
    config.model.init_range = 0.15
    config.model.reduction = "mean"
    config.model.iou_weight = 1.0  # from scratch cross entropy alone ends in empty masks
    config.model.temporal_lr_factor = 1.0
    set_size(config, (65, 65))

    config.data.train = (
        {"name": "synthetic", "group": "video", "weight": 1.0, "preset": "test"},
        {"name": "synthetic", "group": "static", "weight": 1.0, "preset": "test", "clip_len": 1},
    )
    config.data.eval = ()
    config.data.batch_size = 8
    config.data.clip_len = 3
    config.data.stride = 1
    config.data.augment = {"flip": 0.5}

    config.optim.name = "adam"
    config.optim.lr = 1e-2
    config.optim.weight_decay = 0.0
    config.optim.clip_norm = 1.0
    config.optim.freeze_bn = False
    config.optim.frozen = ()
    config.optim.schedule.name = "constant"
    config.optim.schedule.boundaries = ()
    config.optim.schedule.factors = ()

    config.predict.crf = ""

    config.train.total_steps = 30
    config.train.log_every = 1
    config.train.checkpoint_every = 15

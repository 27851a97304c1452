"""FGRNE (Li et al., CVPR 2018): configurations of a reference design.

    uvos train --config configs/fgrne.py:full --workdir runs/fgrne

Neither code nor weights of the paper are public. `full` has what is known of its recipe: DSS on
VGG-16 as the host, FlowNetS, k = 5 past frames, everything trained together on SegTrackV2, FBMS
train and DAVIS-16 train (table 2 of SSAV, Fan et al., CVPR 2019). 256x512 is quoted from memory of
the paper. Ours: AdamW, 1e-4 for the recurrence and a tenth of it for host and flow, one clip per
device, clipping at 1, the number of steps. DSS's and FlowNet's own weights are to be given by
`model.init_from` (`uvos convert fgrne FILE --part dss|flow`); without them set
`model.host_share=0.5` to train the host on stills first.

Published (others' measurements), max F / MAE: DAVIS-16 test 0.786/0.043, FBMS test 0.779/0.083,
ViSal 0.850/0.040 (table 1 of PDB-ConvLSTM, Song et al., ECCV 2018); S on DAVIS-16 0.838; 0.09 s per
frame (SSAV). No J and F are published; numbers of its ablations are not known here.

Variants: `full`; `host` (k = 0, DSS alone); `no_flow` (recurrence on maps that are not warped);
`raw_flow` (flow not refined); `mean`, `concat` (no ConvLSTM on features); `frozen_flow`;
`given_flow` (flow from a provider); `sides` (all five maps encoded); `plain` (another host);
`tiny` (tests).
"""

from _base import get_base_config, parse_arg, set_model_field
from ml_collections import ConfigDict

VARIANTS = (
    "full",
    "host",
    "no_flow",
    "raw_flow",
    "mean",
    "concat",
    "frozen_flow",
    "given_flow",
    "sides",
    "plain",
    "tiny",
)


def get_config(arg: str = "full") -> ConfigDict:
    """The configuration of a variant, with `model` overrides: `"tiny,temporal=mean"`."""
    variant, overrides = parse_arg(arg)
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}: use one of {', '.join(VARIANTS)}")
    config = full()
    if variant == "host":
        config.model.window_k = 0
        config.data.clip_len = 1
    elif variant == "no_flow":
        config.model.use_flow = False
    elif variant == "raw_flow":
        config.model.refine_flow = False
    elif variant in ("mean", "concat"):
        config.model.temporal = variant
    elif variant == "frozen_flow":
        config.model.finetune_flow = False
    elif variant == "given_flow":
        config.model.flow_source = "batch"
    elif variant == "sides":
        config.model.split = "sides"
    elif variant == "plain":
        config.model.host = "plain"
    elif variant == "tiny":
        tiny(config)
    for key, value in overrides.items():
        set_model_field(config, key, value)
    return config


def set_size(config: ConfigDict, size: tuple[int, int]) -> None:
    config.model.input_size = size
    config.data.size = size


def full() -> ConfigDict:
    """What is known of the published system, completed."""
    config = get_base_config()

    config.model.name = "fgrne"
    # host: DSS on VGG-16
    config.model.host = "dss"  # dss | plain
    config.model.counts = (2, 2, 3, 3, 3)
    config.model.widths = (64, 128, 256, 512, 512)
    config.model.first_padding = 5  # of conv1_1 in DSS; 1 in plain VGG-16
    config.model.sides = (1, 2, 3, 4, 5, 6)
    config.model.side_widths = (128, 128, 256, 256, 512, 512)
    config.model.plain_width = 256
    config.model.gaussian_init = True  # of the sides: deviation 0.01 as in DSS; False: He
    config.model.input_scale = 1.0  # frames minus mean are divided by this
    # window
    config.model.window_k = 5  # past frames; 0 is the host alone
    config.model.split = "conv5_3"  # conv5_3 | sides
    # motion
    config.model.use_flow = True
    config.model.refine_flow = True
    config.model.flow_source = "network"  # network | batch
    config.model.flow_widths = (64, 128, 256, 512, 512, 1024)
    config.model.flow_decoder_widths = (512, 256, 128, 64)
    config.model.flow_order = "nearest_first"  # nearest_first | farthest_first
    config.model.flow_features = 32
    config.model.residual_flow = True
    config.model.warp_padding = "zeros"  # zeros | border
    # encoding
    config.model.temporal = "convlstm"  # convlstm | mean | concat
    config.model.encoder_features = 256
    config.model.peephole = "none"  # none | full
    # recipe
    config.model.supervise = "last"  # last | all frames of a clip
    config.model.host_share = 0.0  # part of the steps that train the host on stills
    config.model.finetune_flow = True
    config.model.pretrained_lr_factor = 0.1  # host and flow against the recurrence
    # inference
    config.model.result = "mean"  # mean of sides 3, 4, 5 and the fused map | fuse
    config.model.stretch = True
    set_size(config, (256, 512))

    config.data.train = (
        {"name": "davis", "group": "video", "weight": 0.4, "root": "data/DAVIS", "split": "train"},
        {"name": "fbms", "group": "video", "weight": 0.4, "root": "data/FBMS", "split": "train"},
        {"name": "segtrack", "group": "video", "weight": 0.2, "root": "data/SegTrackv2"},
        {"name": "image_mask", "group": "static", "weight": 1.0, "root": "data/MSRA-B"},
    )
    config.data.eval = ({"name": "davis", "root": "data/DAVIS", "split": "val"},)
    config.data.batch_size = 1
    config.data.clip_len = 6

    config.optim.name = "adamw"
    config.optim.lr = 1e-4
    config.optim.weight_decay = 5e-4
    config.optim.clip_norm = 1.0
    config.optim.schedule.name = "poly"

    config.train.total_steps = 40_000
    config.train.checkpoint_every = 2000
    return config


def tiny(config: ConfigDict) -> None:
    """Every block and stage of `full` at 64x64 with k = 2, on synthetic data, in seconds."""
    config.model.counts = (1, 1, 1, 1, 1)
    config.model.widths = (8, 12, 16, 24, 24)
    config.model.first_padding = 2
    config.model.sides = (3, 5, 6)
    config.model.side_widths = (8, 8, 8, 8, 8, 8)
    config.model.plain_width = 8
    config.model.gaussian_init = False
    config.model.input_scale = 58.0
    config.model.window_k = 2
    config.model.flow_widths = (6, 8, 8, 12)
    config.model.flow_decoder_widths = (8, 8)
    config.model.flow_features = 4
    config.model.encoder_features = 16
    config.model.host_share = 0.5
    config.model.pretrained_lr_factor = 1.0
    set_size(config, (64, 64))

    config.data.train = (
        {"name": "synthetic", "group": "video", "weight": 1.0, "preset": "test"},
        {"name": "synthetic", "group": "static", "weight": 1.0, "preset": "test", "clip_len": 1},
    )
    config.data.eval = ()
    config.data.batch_size = 8
    config.data.clip_len = 3

    config.optim.name = "adam"
    config.optim.lr = 3e-3
    config.optim.weight_decay = 0.0
    config.optim.schedule.name = "constant"

    config.train.total_steps = 30
    config.train.log_every = 1
    config.train.checkpoint_every = 15

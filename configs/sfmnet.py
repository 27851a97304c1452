"""SfM-Net (Vijayanarasimhan et al., arXiv 2017): configurations.

    uvos train --config configs/sfmnet.py:full --workdir runs/sfmnet

`full` has the published networks at the published size, 128x384, with K = 3 objects, trained on
colour alone as the paper's self-supervised mode. Neither optimiser nor weights nor lengths are
published in a form we could read; ours: Adam 1e-4, batch 8, warm-up of 1000 steps, cosine decay,
weights as below. The paper trains on KITTI (colour, depth), MoSeg (masks for scoring) and TUM RGB-D
(depth and poses); no such source is part of the library, so `full` names folders of frames and the
supervised variants the ray-cast scenes, which have everything.

No results on video segmentation sets are published.

Variants: `full` (colour, smoothness, forward-backward), `ego_motion` (adds the camera's poses),
`depth` (adds depth), `flow` (adds optical flow), `masks` (adds instance masks), `supervised` (all),
`paper` (the paper's literal choices where ours differ), `deconv` (transposed convolutions),
`causal` (pairs with the previous frame, for streams), `tiny` (tests; all supervision).
"""

from _base import get_base_config, parse_arg, set_model_field
from ml_collections import ConfigDict

VARIANTS = (
    "full",
    "ego_motion",
    "depth",
    "flow",
    "masks",
    "supervised",
    "paper",
    "deconv",
    "causal",
    "tiny",
)
#: What a variant adds to the self-supervised terms.
SUPERVISION = {
    "ego_motion": {"camera_translation": 1.0, "camera_rotation": 1.0},
    "depth": {"depth": 1.0},
    "flow": {"flow": 0.1},
    "masks": {"masks": 1.0},
}


def get_config(arg: str = "full") -> ConfigDict:
    """The configuration of a variant, with `model` overrides: `"tiny,up=deconv"`."""
    variant, overrides = parse_arg(arg)
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}: use one of {', '.join(VARIANTS)}")
    config = full()
    if variant in SUPERVISION or variant == "supervised":
        supervise(config, SUPERVISION if variant == "supervised" else (variant,))
    elif variant == "paper":
        config.model.depth_activation = "relu_clip"
        config.model.rotation = "clip"
        config.model.pivot_add_back = False
        config.model.pixel_offset = 0.0
        config.model.term_weights.small_motion = 0.0
    elif variant == "deconv":
        config.model.up = "deconv"
    elif variant == "causal":
        config.model.causal = True
    elif variant == "tiny":
        tiny(config)
    for key, value in overrides.items():
        set_model_field(config, key, value)
    return config


def supervise(config: ConfigDict, names) -> None:
    """Adds terms and a source that has what they need."""
    for name in names:
        config.model.term_weights.update(SUPERVISION[name])
    config.data.train = ({"name": "raycast", "weight": 1.0},)


def full() -> ConfigDict:
    """The published networks, our recipe."""
    config = get_base_config()
    config.model.name = "sfmnet"
    config.model.widths = (32, 64, 128, 256, 512, 1024)
    config.model.norm = "bn"  # bn | gn | none
    config.model.up = "depth_to_space"  # depth_to_space | deconv
    config.model.objects = 3
    config.model.hidden = 512
    config.model.depth_activation = "sigmoid"  # sigmoid | relu_clip
    config.model.depth_limit = 100.0
    config.model.first_depth = 10.0  # of a fresh network
    config.model.rotation = "tanh"  # tanh | clip | tanh_pi
    config.model.pivot_grid = (20, 30)
    config.model.pivot_range = (30.0, 20.0)
    config.model.pivot_add_back = True
    config.model.pixel_offset = 0.5
    config.model.mask_bias = -2.0
    config.model.sharpness = 1.0  # factor on mask logits; reimplementations let it grow to 50
    config.model.intrinsics = (0.5, 0.5, 1.0, 1.0)  # where the data name none
    config.model.causal = False
    config.model.speed = 0.5  # pixels at which an object counts as moving
    # loss
    config.model.term_weights = ConfigDict(
        {
            "color": 1.0,
            "forward_backward": 1.0,
            "smooth_flow": 0.1,
            "smooth_motion": 0.1,
            "smooth_depth": 0.1,
            "small_motion": 1e-3,
            "camera_translation": 0.0,
            "camera_rotation": 0.0,
            "depth": 0.0,
            "flow": 0.0,
            "masks": 0.0,
        }
    )
    config.model.dissimilarity = 0.0  # share of (1 - SSIM)/2 in the colour term
    config.model.log_depth_loss = False  # True: of logarithms, for depths up to scale
    config.model.input_size = (128, 384)

    config.data.size = (128, 384)
    config.data.train = ({"name": "folder", "weight": 1.0, "root": "data/KITTI"},)
    config.data.clip_len = 2
    config.data.batch_size = 8
    config.data.augment = {
        "flip": 0.5,
        "scale": (1.0, 1.0),
        "crop": (1.0, 1.0),
        "independent": False,
    }

    config.optim.name = "adam"
    config.optim.lr = 1e-4
    config.optim.schedule.name = "cosine"
    config.optim.schedule.warmup_steps = 1000
    config.optim.schedule.end_factor = 0.01
    config.train.total_steps = 100_000
    config.train.checkpoint_every = 5000
    config.predict.crf = ""
    return config


def tiny(config: ConfigDict) -> None:
    """Every block and every term at 64x64 on ray-cast scenes."""
    config.model.widths = (8, 16, 32, 32)
    config.model.hidden = 128
    config.model.objects = 2
    config.model.pivot_grid = (4, 6)
    config.model.pivot_range = (3.0, 2.0)
    config.model.input_size = (64, 64)
    supervise(config, SUPERVISION)
    config.model.log_depth_loss = True
    config.data.size = (64, 64)
    config.data.train = ({"name": "raycast", "weight": 1.0, "preset": "test"},)
    config.data.batch_size = 8

    config.optim.lr = 3e-3
    config.optim.clip_norm = 1.0
    config.optim.schedule.warmup_steps = 10
    config.train.total_steps = 30
    config.train.log_every = 1
    config.train.checkpoint_every = 15

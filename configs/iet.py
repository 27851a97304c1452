"""IET (CVPR 2018) and the motion-based bilateral networks that followed it (ECCV 2018).

    uvos train --config configs/iet.py:full --workdir runs/iet

The paper trains on the instances of PASCAL VOC 2012 stills and publishes no recipe; rate, schedule,
crop and batch are those of DeepLab-v2, on which the network stands. Any set whose masks hold ids
serves: `full` reads the frames of DAVIS-2017 as stills. Rates of the bilateral network are those of
its released code (SGD with momentum 0.9, 1e-4, gradients clipped at 5, 100 000 steps).

Published, DAVIS-16 val: IET J 78.5, F 75.5 (FBMS F-score 82.8, J 71.9; SegTrack v2 J 59.3); with
the bilateral network J 80.4, F 78.5 (quoted from memory). Online adaptation is worth 7.0 J,
embeddings instead of semantic features about 10.

Variants: `full`, `offline` (the sets of the first frame serve all), `bilateral`,
`bilateral_relaxed` (graph cut as a linear system inside jit), `light` (a small network on synthetic
instances), `tiny` and `tiny_bilateral` (tests).
"""

from _base import get_base_config, parse_arg, set_model_field
from ml_collections import ConfigDict

VARIANTS = ("full", "offline", "bilateral", "bilateral_relaxed", "light", "tiny", "tiny_bilateral")


def get_config(arg: str = "full") -> ConfigDict:
    """The configuration of a variant, with `model` overrides: `"tiny,online=false"`."""
    variant, overrides = parse_arg(arg)
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}: use one of {', '.join(VARIANTS)}")
    config = full()
    if variant == "offline":
        config.model.online = False
    elif variant in ("bilateral", "bilateral_relaxed"):
        config.model.labelling = "bilateral"
        config.model.graph_cut = "relaxed" if variant.endswith("relaxed") else "exact"
    elif variant == "light":
        light(config)
    elif variant.startswith("tiny"):
        tiny(config)
        if variant == "tiny_bilateral":
            config.model.labelling = "bilateral"
    for key, value in overrides.items():
        set_model_field(config, key, value)
    return config


def full() -> ConfigDict:
    """The paper's network and numbers."""
    config = get_base_config()

    config.model.name = "iet"
    config.model.input_size = (480, 854)
    config.model.clip_len = 24  # frames whose tracks are looked at together
    # DeepLab-v2 on a ResNet-101, output stride 8
    config.model.block_counts = (3, 4, 23, 3)
    config.model.widths = (64, 128, 256, 512)
    config.model.strides = (1, 2, 1, 1)
    config.model.dilations = (1, 1, 2, 4)
    config.model.embedding = 64
    config.model.head_dilations = (6, 12, 18, 24)
    config.model.freeze_bn = True
    # loss
    config.model.points = 32  # per instance
    config.model.instances = 8  # per image, background included
    config.model.semantic_weight = 1.0
    config.model.head_lr_multiplier = 10.0
    # seeds and tracks
    config.model.seeds = 100
    config.model.seed_window = 9
    config.model.background_seeds = 10
    config.model.link_similarity = 0.5
    config.model.link_reach = 0.2  # of the diagonal
    # labels
    config.model.labelling = "embedding"  # embedding | bilateral
    config.model.online = True
    config.model.background_objectness = 0.1
    config.model.overlap = 0.8
    config.model.object_threshold = 0.3
    config.model.motion_threshold = 0.05
    config.model.objects = "network"  # network | motion
    config.model.embedding_share = 1.0
    config.model.motion_share = 0.0  # of what the camera's motion leaves, beside the embedding
    # bilateral network and graph cut
    config.model.graph_cut = "exact"  # exact | relaxed
    config.model.smoothness = 1.0
    config.model.lattice = (18, 18, 40, 40)
    config.model.kernels = (37, 37, 21, 21)
    config.model.low_objectness = 0.001
    config.model.max_flow_spread = 0.15
    config.model.bilateral_share = 0.8  # of all steps: 100 000 after 25 000
    config.model.bilateral_lr = 1e-4

    config.data.train = (
        {"name": "davis17", "group": "static", "weight": 1.0, "root": "data/DAVIS",
         "split": "train", "binary": False, "clip_len": 1},
        {"name": "davis17", "group": "video", "weight": 1.0, "root": "data/DAVIS",
         "split": "train", "binary": False, "flow": "data/DAVIS/flow"},
    )  # fmt: skip
    config.data.eval = ({"name": "davis", "root": "data/DAVIS", "split": "val",
                         "flow": "data/DAVIS/flow"},)  # fmt: skip
    config.data.batch_size = 10
    config.data.clip_len = 2
    config.data.size = (321, 321)
    config.data.augment = {"flip": 0.5, "scale": (0.5, 1.5), "crop": (0.5, 1.0),
                           "independent": False}  # fmt: skip

    config.optim.name = "sgd"
    config.optim.lr = 2.5e-4
    config.optim.momentum = 0.9
    config.optim.weight_decay = 5e-4
    config.optim.schedule.name = "poly"
    config.optim.schedule.power = 0.9

    config.train.total_steps = 25_000
    config.train.checkpoint_every = 2500
    config.predict.crf = "iet"
    return config


def synthetic(config: ConfigDict, preset: str, scene: dict | None = None) -> None:
    """Instances of generated scenes: stills for the embedding, clips with flow for the filters."""
    common = {"name": "synthetic", "weight": 1.0, "preset": preset, "label": "instances"}
    if scene:
        common["scene"] = scene
    config.data.train = (
        {**common, "group": "static", "clip_len": 1},
        {**common, "group": "video", "flow": True},
    )
    config.data.eval = ()
    config.model.freeze_bn = False
    config.model.head_lr_multiplier = 1.0
    config.optim.name = "adam"
    config.optim.weight_decay = 0.0
    config.optim.clip_norm = 1.0
    config.predict.crf = ""


def light(config: ConfigDict) -> None:
    """A small network that trains in minutes on a few cores, for clips without official weights."""
    # A still does not show which things move: all of them have ids, none hides in the background.
    scene = {"objects": 3, "object_counts": (0.3, 0.4, 0.3), "distractors": 0}
    synthetic(config, "fast", {**scene, "contrast": 0.7, "camouflage": 0.05})
    config.model.block_counts = (2, 2, 2, 2)
    config.model.widths = (16, 24, 48, 64)
    config.model.head_dilations = (1, 3, 6)
    config.model.embedding = 16
    config.model.input_size = (241, 425)
    config.model.objects = "motion"
    config.model.embedding_share = 0.5
    config.model.motion_share = 3.0
    config.model.seed_window = 5
    config.data.size = (97, 161)
    config.data.batch_size = 8
    config.optim.lr = 2e-3
    config.optim.schedule.name = "cosine"
    config.optim.schedule.warmup_steps = 50
    config.optim.ema = 0.99
    config.train.total_steps = 1500
    config.train.checkpoint_every = 250


def tiny(config: ConfigDict) -> None:
    """Every step of `full` at 64x64 on synthetic instances, in seconds."""
    synthetic(config, "test")
    config.model.block_counts = (1, 1, 1, 1)
    config.model.widths = (8, 8, 16, 16)
    config.model.strides = (1, 1, 1, 1)
    config.model.dilations = (1, 1, 2, 2)
    config.model.head_dilations = (1, 4)
    config.model.embedding = 8
    config.model.clip_len = 4
    config.model.input_size = (64, 64)
    config.model.seeds = 24
    config.model.seed_window = 3
    config.model.background_seeds = 4
    config.model.points = 16
    config.model.lattice = (6, 6, 10, 10)
    config.model.kernels = (7, 7, 5, 5)
    config.data.size = (64, 64)
    config.data.batch_size = 8
    config.optim.lr = 5e-3
    config.optim.schedule.name = "constant"
    config.train.total_steps = 30
    config.train.log_every = 1
    config.train.checkpoint_every = 15

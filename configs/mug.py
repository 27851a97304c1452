"""MuG (Lu et al., CVPR 2020): configurations.

    uvos train --config configs/mug.py:full --workdir runs/mug

`full` is the paper's system on unlabelled videos: GOT-10k (6277 videos, a folder of frames each),
256x256, patches of 64x64, Adam at 1e-4, labels from manifold-ranking saliency, three rounds of
relabelling; weights of the granularities 1, 0.1 (short-term), 0.02 (long-term), 0.5 (video). The
backbone starts from ImageNet weights (`model.init_from`). The paper, as known here, gives neither
the number of rounds nor of steps: those are ours, as is the batch of 20, which is the release's.

Published, DAVIS-16 val, object level without any labels: J 58.0 (recall 65.3, decay 2.0), F 51.5
(53.2, 2.1), T 30.1; 2.5 frames/s (table VII of the survey of video segmentation, Zhou et al.,
TPAMI 2022). With labels from class activation maps (`cam`), quoted from memory: J 61.2 (74.5, 6.7),
F 56.1 (62.1, 5.2).

Variants: `full` (also `paper`), `release` (the released network, for its checkpoints; 640x640),
`release_cam` (its trainer: labels of the frozen DeepLab-DenseNet169, 256x256, Adam 1e-4, weight
decay 5e-3, batch 20, 400 epochs, an almost constant rate), `cam` (the paper's network on those
labels), `given` (labels from the data), `one_round`, ablations of the granularities `frame`,
`frame_short`, `frame_long`, `frame_video`, `no_enhancement` (single frames at test time), `tiny`
and `tiny_release` (tests).
"""

from _base import get_base_config, parse_arg, set_model_field
from ml_collections import ConfigDict

STEPS_PER_EPOCH = 314  # 6277 videos in batches of 20
GRANULARITIES = ("short", "long", "video")
ALONE = {"frame": (), "frame_short": ("short",), "frame_long": ("long",), "frame_video": ("video",)}
VARIANTS = (
    "full",
    "paper",
    "release",
    "release_cam",
    "cam",
    "given",
    "one_round",
    *ALONE,
    "no_enhancement",
    "tiny",
    "tiny_release",
)


def get_config(arg: str = "full") -> ConfigDict:
    """The configuration of a variant, with `model` overrides: `"tiny,rounds=1"`."""
    variant, overrides = parse_arg(arg)
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}: use one of {', '.join(VARIANTS)}")
    config = full()
    if variant in ("release", "release_cam"):
        release(config)
        if variant == "release_cam":
            config.model.pseudo_labels = "cam"
            set_size(config, (256, 256))
    elif variant in ("cam", "given"):
        config.model.pseudo_labels = variant
    elif variant == "one_round":
        config.model.rounds = 1
    elif variant in ALONE:
        for name in GRANULARITIES:
            if name not in ALONE[variant]:
                config.model[f"{name}_weight"] = 0.0
    elif variant == "no_enhancement":
        config.model.enhancement = "none"
    elif variant == "tiny":
        tiny(config)
    elif variant == "tiny_release":
        tiny(config)
        config.model.variant = "release"
        config.model.pseudo_labels = "cam"
        config.model.rounds = 1
    for key, value in overrides.items():
        set_model_field(config, key, value)
    return config


def set_size(config: ConfigDict, size: tuple[int, int]) -> None:
    config.model.input_size = size
    config.data.size = size


def full() -> ConfigDict:
    """The paper's system."""
    config = get_base_config()

    config.model.name = "mug"
    config.model.variant = "paper"  # paper | release
    config.model.widths = (64, 128, 256, 512)
    # the paper's network: ResNet-50, linear projection
    config.model.block_counts = (3, 4, 6, 3)
    config.model.embedding = 256
    config.model.enhancement = "attention"  # by other frames at test time: attention | none
    config.model.num_references = 5
    config.model.attention_impl = "blockwise"  # dense | blockwise
    config.model.block_size = 512  # query rows of the affinity at once
    # granularities; a weight of 0 leaves one out
    config.model.short_weight = 0.1
    config.model.long_weight = 0.02
    config.model.video_weight = 0.5
    config.model.patch = 64
    config.model.cycle = 2  # frames a patch is tracked before it returns: 1 | 2
    config.model.response_scale = "sqrt"  # of products over C: sqrt | mean (over the patch) | none
    config.model.target_sigma = 0.25  # of the patch's side
    config.model.affinity_scale = "none"  # none | sqrt | mean
    config.model.inlier_radius = 1.0  # cells
    config.model.regressor_widths = (128, 64)
    config.model.segments = 8  # of a video, one frame each
    config.model.num_videos = 6277
    # labels
    config.model.pseudo_labels = "saliency"  # saliency | cam | given
    config.model.saliency_cells = (16, 16)  # superpixels
    config.model.saliency_size = (128, 128)  # of the frames they are made of, at most
    config.model.saliency_threshold = 0.5
    config.model.cam_threshold = 0.2
    config.model.rounds = 3
    config.model.relabel_threshold = 0.5
    # label network (cam)
    config.model.cam_blocks = (6, 12, 32, 32)
    config.model.cam_growth = 32
    config.model.cam_stem = 64
    config.model.cam_size = (256, 256)
    # the released network
    config.model.blocks = 2  # per stage of the ResNet-18
    config.model.key = 32
    config.model.value = 128
    config.model.head_hidden = 256
    config.model.head_features = 64
    config.model.colour_widths = (64, 128, 256)
    config.model.gap_weight = 1.0  # of |z - g|, logits against those of the label network
    # one shot
    config.model.neighbours = 5
    set_size(config, (256, 256))

    config.data.train = (
        {"name": "folder", "group": "video", "weight": 1.0, "root": "data/GOT-10k/train",
         "frames": "", "masks": "", "sampling": "segments", "clips": "sequences"},
    )  # fmt: skip
    config.data.eval = ({"name": "davis", "root": "data/DAVIS", "split": "val"},)
    config.data.batch_size = 20
    config.data.clip_len = 11  # three consecutive frames, one of each of eight segments
    config.data.augment = {"flip": 0.5, "scale": (1.0, 1.0), "crop": (0.8, 1.0)}

    config.optim.name = "adam"
    config.optim.lr = 1e-4

    config.train.total_steps = 3 * 20 * STEPS_PER_EPOCH
    config.train.checkpoint_every = 5 * STEPS_PER_EPOCH
    config.predict.crf = "cosnet"
    return config


def release(config: ConfigDict) -> None:
    """The released network and, but for the labels, its recipe."""
    config.model.variant = "release"
    config.model.rounds = 1
    config.model.num_references = 8  # frames of the memory
    set_size(config, (640, 640))
    config.optim.weight_decay = 5e-3
    # lr (1 - epoch / 40000)^0.9: the released schedule divides by 100 too often
    config.optim.schedule.name = "poly"
    config.optim.schedule.end_factor = 0.0
    config.optim.schedule.total_steps = 40_000 * STEPS_PER_EPOCH
    config.train.total_steps = 400 * STEPS_PER_EPOCH
    config.predict.crf = ""


def tiny(config: ConfigDict) -> None:
    """Every block and round of `full` at 64x64, on three synthetic videos' worth of seconds."""
    config.model.block_counts = (1, 1, 1, 1)
    config.model.widths = (8, 16, 32, 64)
    config.model.embedding = 16
    config.model.num_references = 2
    config.model.block_size = 32  # 64 positions: two blocks
    config.model.patch = 24
    config.model.cycle = 1
    config.model.affinity_scale = "sqrt"
    config.model.regressor_widths = (8, 8)
    config.model.segments = 3
    config.model.num_videos = 16
    config.model.saliency_cells = (12, 12)  # labels of J 0.45; of 8x8 superpixels 0.34
    config.model.saliency_size = (64, 64)
    config.model.rounds = 2
    config.model.cam_blocks = (1, 1, 1, 1)
    config.model.cam_growth = 4
    config.model.cam_stem = 8
    config.model.cam_size = (32, 32)
    config.model.blocks = 1
    config.model.key = 4
    config.model.value = 16
    config.model.head_hidden = 8
    config.model.head_features = 8
    config.model.colour_widths = (4, 8, 8)
    set_size(config, (64, 64))

    config.data.train = ({"name": "synthetic", "group": "video", "weight": 1.0, "preset": "test"},)
    config.data.eval = ()
    config.data.batch_size = 8
    config.data.clip_len = 6
    config.data.augment = {"flip": 0.5}

    config.optim.lr = 3e-3
    config.optim.clip_norm = 1.0

    config.train.total_steps = 24
    config.train.log_every = 1
    config.train.checkpoint_every = 12
    config.predict.crf = ""

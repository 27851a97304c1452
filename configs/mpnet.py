"""MP-Net (Tokmakov, Alahari, Schmid, CVPR 2017): configurations.

    uvos train --config configs/mpnet.py:full --workdir runs/mpnet

`full` is the published recipe (`train.lua` of the release): FlyingThings3D at half size, crops of
200x360, mirrored, batch 13, 27 epochs of 3221 steps; SGD with momentum 0.9, rate 3e-3 with weight
decay 5e-3 on all weights for nine epochs, both ten times smaller for nine, and again for nine. The
release picks pixels when it halves, our pipeline interpolates; crops are 405x720 of 540x960 pixels
where the release's are 400x720. Inference at 232x424 for any frame size; `smallest_side` is the
README's rule for other data.

Published, DAVIS-16 val with objectness and CRF: J 70.0 (recall 85.0, decay 1.3), F 65.9 (79.2,
2.5), T 57.2; all 50 videos J 69.7, F 66.3 (davischallenge.org). Stages of the method there, from
memory of the paper: network alone J 52.4, with objectness 63.3, with CRF 69.7. By flow (re-run on
50 videos, zhxl0903/MP-Net-Optical-Flow-Benchmark): LDOF 69.9, EpicFlow 67.7, FlowNet2 69.8, PWC-Net
67.7, SelFlow 70.1, SPyNet 64.6.

Variants: `full`, `atan2`, `sincos`, `raw` (other encodings of flow), `eight_bit` (through 8-bit
pictures as the release), `other_data` (smallest side 232), `light`, `light_again` (the
packaged default in two runs: narrow, on estimated flow of rendered clips), `tiny` (tests).
"""

from _base import get_base_config, parse_arg, set_model_field
from ml_collections import ConfigDict

STEPS_PER_EPOCH = 3221  # 41 870 samples in batches of 13
ENCODINGS = ("atan2", "sincos", "raw")
VARIANTS = ("full", *ENCODINGS, "eight_bit", "other_data", "light", "light_again", "tiny")


def get_config(arg: str = "full") -> ConfigDict:
    """The configuration of a variant, with `model` overrides: `"tiny,angle_mode=raw"`."""
    variant, overrides = parse_arg(arg)
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}: use one of {', '.join(VARIANTS)}")
    config = full()
    if variant in ENCODINGS:
        config.model.angle_mode = variant
    elif variant == "eight_bit":
        config.model.eight_bit = True
    elif variant == "other_data":
        config.model.network_size = ()
        config.model.smallest_side = 232
    elif variant == "light":
        light(config)
    elif variant == "light_again":
        light_again(config)
    elif variant == "tiny":
        tiny(config)
    for key, value in overrides.items():
        set_model_field(config, key, value)
    return config


def full() -> ConfigDict:
    """The published recipe."""
    config = get_base_config()

    config.model.name = "mpnet"
    config.model.widths = (64, 128, 256, 256, 256, 256)  # first layer, strides 2 to 32
    config.model.decoder = 256
    config.model.head = 512
    # encoding
    config.model.angle_mode = "acos"  # acos | atan2 | sincos | raw | residual | rigid
    config.model.eight_bit = False  # through 8-bit pictures, as the release
    config.model.zero_below = 1.0  # px; at test time only
    config.model.train_diagonal = 550.73  # of 480x270, of which training sees crops; 0: the field's
    config.model.flow_direction = "forward"  # forward | backward | both
    config.model.joint_flow = False  # the network sees flow to both neighbours at once
    config.model.temperature = 1.0  # of log-odds at inference
    config.model.iou_weight = 0.0  # of a soft IoU loss, not in the paper
    config.model.edges = False  # of the frame, beside the flow, not there
    config.model.edge_dropout = 0.0  # share of the examples that have none
    config.model.evidence = False  # of the previous frame for the flow, not there
    config.model.evidence_dropout = 0.0  # share of the examples that have none
    config.model.evidence_full = 0.0  # at which log-odds count in full, at inference; 0: always
    config.model.evidence_doubt = 0.0  # log-odds that pixels without any lose
    config.model.evidence_rigid = 0.0  # share of that doubt for what any scene at rest explains
    config.model.memory = 0.0  # share of the previous frame's log-odds that is kept, not there
    # inference
    config.model.input_size = ()  # frames and flow at their own size ...
    config.model.network_size = (232, 424)  # ... until flow is encoded
    config.model.smallest_side = 0  # instead of network_size
    # recipe
    config.model.stage_factors = (1.0, 0.1, 0.01)  # on rate and weight decay

    config.data.train = (
        {
            "name": "flyingthings3d",
            "group": "default",
            "weight": 1.0,
            "root": "data/FlyingThings3D",
            "split": "train",
        },
    )
    config.data.eval = ()
    config.data.batch_size = 13
    config.data.clip_len = 1
    config.data.size = (200, 360)
    config.data.augment = {"flip": 0.5, "scale": (1.0, 1.0), "crop": (0.75, 0.75)}

    config.optim.name = "sgd"
    config.optim.lr = 3e-3
    config.optim.momentum = 0.9
    config.optim.weight_decay = 5e-3

    config.train.total_steps = 27 * STEPS_PER_EPOCH
    config.train.checkpoint_every = STEPS_PER_EPOCH
    config.predict.crf = "mpnet"
    return config


def light(config: ConfigDict) -> None:
    """The packaged default: our own recipe on synthetic clips, half a million parameters.

        python tools/render_clips.py --out data/clips --count 4400 --processes 2
        python tools/compute_flow.py data/clips/videos --out data/clips/tvl1 --direction backward \\
            --provider tvl1:warps=3,iterations=10
        python tools/compute_flow.py data/clips/videos --out data/clips/dis --direction backward \\
            --provider opencv_dis
        uvos train --config configs/mpnet.py:light --workdir runs/default

    and on with `light_again`, for which the same is made of `--out data/rocks --count 1400 --preset
    rocks`.

    Differs from the paper in width, encoding (vectors and what a plane before the camera and what
    any scene at rest leave of them), flow (mostly estimated, so that the network meets the errors
    it will see; to either neighbour, at inference to both), data, optimiser and loss, sees edges
    and whether the previous frame asks for this flow (`evidence`, without which it is doubted),
    remembers (`memory`), learns what the object of each video looks like (`predict.appearance`),
    smooths whole videos (`predict.smooth`) and enlarges masks along edges (`predict.guided`).
    """
    config.model.widths = (16, 24, 48, 96, 128, 160)
    config.model.decoder = 32
    config.model.head = 24
    config.model.angle_mode = "rigid"
    config.model.train_diagonal = 0.0
    config.model.flow_direction = "both"
    config.model.temperature = 2.0
    config.model.iou_weight = 1.0
    config.model.edges = True
    config.model.edge_dropout = 0.5
    config.model.evidence = True
    config.model.evidence_dropout = 0.1
    config.model.evidence_full = 0.2
    config.model.evidence_doubt = 0.75
    config.model.evidence_rigid = 0.7
    config.model.memory = 0.6
    config.model.input_size = (192, 336)
    config.model.network_size = ()
    config.model.stage_factors = (1.0,)

    config.data.train = rendered("data/clips", 1.0)
    config.data.batch_size = 4  # clips of three frames, of which two have a previous one
    config.data.clip_len = 3
    config.data.size = (128, 224)
    config.data.augment = {"flip": 0.5, "scale": (1.0, 1.0), "crop": (0.6, 1.0)}

    config.optim.name = "adamw"
    config.optim.lr = 2e-3
    config.optim.weight_decay = 1e-4
    config.optim.clip_norm = 1.0
    config.optim.schedule.name = "cosine"
    config.optim.schedule.warmup_steps = 100
    config.optim.ema = 0.998

    config.predict.crf = ""
    config.predict.flow = "tvl1:longest=448,warps=3,iterations=10"
    config.predict.refine = "agnn"
    config.predict.appearance = 0.5
    config.predict.smooth = 0.5
    config.predict.guided = True

    config.train.total_steps = 5000
    config.train.checkpoint_every = 500
    config.train.log_every = 50


def rendered(root: str, weight: float) -> tuple[dict, ...]:
    """Sources of rendered clips with estimated (80 %) and exact flow, of this weight together."""
    videos = {
        "name": "folder",
        "root": f"{root}/videos",
        "group": "default",
        "clips": "sequences",
        "flow_direction": "backward",
    }
    shares = {"tvl1": 0.4, "dis": 0.4, "flow": 0.2}
    return tuple(
        {**videos, "weight": weight * share, "flow": f"../{flow}"} for flow, share in shares.items()
    )


def light_again(config: ConfigDict) -> None:
    """The packaged default's second run, from the weights of `light`, at half its rate, with scenes
    of more depth.

        uvos train --config configs/mpnet.py:light_again --workdir runs/again \\
            --init-from runs/default/weights.npz

    What is packaged came here in three runs: `light` and `light_again` with
    `angle_mode=residual` on `data/clips` alone, then, with three more input channels whose weights
    began at zero, this one for 6000 steps with seed 2.
    """
    light(config)
    config.data.train = rendered("data/clips", 0.7) + rendered("data/rocks", 0.3)
    config.seed = 1
    config.data.shuffle_seed = 1
    config.optim.lr = 1e-3


def tiny(config: ConfigDict) -> None:
    """The same topology, narrow, at 64x64 on synthetic data, in seconds."""
    config.model.widths = (8, 16, 16, 16, 16, 16)
    config.model.decoder = 16
    config.model.head = 32
    config.model.zero_below = 0.05  # 64 pixels a side, not 480
    config.model.train_diagonal = 0.0
    config.model.input_size = (64, 64)
    config.model.network_size = ()
    config.model.stage_factors = (1.0, 0.3, 0.1)

    config.data.train = (
        {
            "name": "synthetic",
            "group": "default",
            "weight": 1.0,
            "preset": "test",
            "label": "moving",
            "flow": True,
        },
    )
    config.data.batch_size = 8
    config.data.clip_len = 2  # the last frame of a synthetic clip has no flow
    config.data.size = (64, 64)
    config.data.augment = {"flip": 0.5}

    config.optim.name = "adam"
    config.optim.lr = 1e-2
    config.optim.weight_decay = 0.0
    config.optim.clip_norm = 1.0

    config.predict.crf = ""

    config.train.total_steps = 30
    config.train.log_every = 1
    config.train.checkpoint_every = 15

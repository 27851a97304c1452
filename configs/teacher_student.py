"""HRI teacher-student adaptation (Siam et al., ICRA 2019): configurations.

    uvos train --config configs/teacher_student.py:full --workdir runs/teacher_student

`full` holds the settings of the released configurations (MSiam/motion_adaptation@4f31dbe): the
student is fine-tuned, then both streams of the teacher start as the student's trunk and the
teacher is fine-tuned on DAVIS-16 train (Adam 3e-6, batch 1, frozen BatchNorm, gamma +-0.1, flip).
Per video: 15 Adam steps of 1e-5 on frame 0 (loss x 0.05), labels from the teacher's probability
above 0.8, negatives further than 220 px from the mask eroded by 15 px. `model.init_from` should
name a student pre-trained on ImageNet, COCO and PASCAL as one foreground class (from memory of
OnAVOS, on which the release builds); the numbers of steps are not in the release and are ours:
about ten epochs each.

Published, DAVIS-16 val with CRF: J 77.2 (recall 87.8, decay 5.0), F 77.4 (84.4, 3.3), T 27.9 (site
of the DAVIS challenge, "MotAdapt"). FBMS: +1.2 F-measure over the best before it; IVOS: +46.1 % and
+25.9 % mIoU over the student without adaptation (abstract).

Variants: `full` (DAVIS, confident pixels), `teachcont` (soft labels), `baseline` (no adaptation),
`self` (the student's own confident pixels, taught again every 5 frames), `ivos`, `ivos_cont`,
`ivos_tasks`, `fbms` (their settings of adaptation), `small` (an hour or two on a core, on synthetic
video), `tiny` (tests).
"""

from _base import get_base_config, parse_arg, set_model_field
from ml_collections import ConfigDict

#: steps, loss scale, erosion (px), distance of negatives (px)
ADAPTATION = {
    "full": (15, 0.05, 15, 220.0),
    "ivos": (15, 0.05, 3, 20.0),
    "ivos_cont": (15, 0.05, 3, 20.0),
    "ivos_tasks": (15, 0.1, 3, 20.0),
    "fbms": (3, 0.01, 15, 220.0),
}
VARIANTS = (
    "full",
    "teachcont",
    "baseline",
    "self",
    "ivos",
    "ivos_cont",
    "ivos_tasks",
    "fbms",
    "small",
    "tiny",
)
STEPS_PER_EPOCH = 2079  # frames of DAVIS-16 train, batch 1


def get_config(arg: str = "full") -> ConfigDict:
    """The configuration of a variant, with `model` overrides: `"tiny,mode=teachcont"`."""
    variant, overrides = parse_arg(arg)
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}: use one of {', '.join(VARIANTS)}")
    config = full()
    set_adaptation(config, ADAPTATION.get(variant, ADAPTATION["full"]))
    if variant in ("teachcont", "ivos_cont"):
        config.model.mode = "teachcont"
    elif variant in ("baseline", "self"):
        config.model.mode = variant
        config.model.interval = 5 if variant == "self" else 0
    elif variant == "small":
        small(config)
    elif variant == "tiny":
        tiny(config)
    for key, value in overrides.items():
        set_model_field(config, key, value)
    return config


def set_adaptation(config: ConfigDict, values: tuple) -> None:
    model = config.model
    model.adapt_steps, model.adapt_loss_scale, model.erosion, model.negative_distance = values


def full() -> ConfigDict:
    """The released recipe."""
    config = get_base_config()
    config.model.name = "teacher_student"
    # wide ResNet-38: units res0..res2, res3..res5, res6..res11, then res12..res14, res15, res16
    config.model.stem = 64
    config.model.widths = (128, 256, 512)
    config.model.units = (3, 3, 6)
    config.model.middle = 512
    config.model.context = 1024
    config.model.context_units = 3
    config.model.bottlenecks = ((512, 1024, 2048), (1024, 2048, 4096))
    config.model.hidden = 512
    config.model.dilations = (2, 4, 12)
    config.model.flow_color_max = 0.0  # pixels of full saturation; 0: each frame's maximum
    config.model.camera_motion = "kept"  # kept | subtracted (ours) from flow pictures
    # loss
    config.model.hard_fraction = 0.25
    config.model.weight_penalty = 1e-4  # of half the squared norm of the kernels
    # adaptation
    config.model.mode = "teach"  # baseline | teach | teachcont | self
    config.model.adapt_lr = 1e-5
    config.model.adapt_frames = 1  # first frames that teach
    config.model.interval = 0  # teach again every so many frames; 0: never
    config.model.adapt_threshold = 0.8
    set_adaptation(config, ADAPTATION["full"])
    # recipe
    config.model.gamma = 0.1
    config.model.teacher_from_student = True
    config.model.student_steps = 10 * STEPS_PER_EPOCH
    config.model.teacher_steps = 10 * STEPS_PER_EPOCH
    config.model.teacher_lr = 3e-6
    config.model.input_size = ()  # native
    config.data.size = (480, 854)

    davis = {"name": "davis", "weight": 1.0, "root": "data/DAVIS", "split": "train"}
    config.data.train = (
        {**davis, "group": "default"},
        {**davis, "group": "flow", "flow": "OpticalFlow"},
    )
    config.data.eval = ({"name": "davis", "root": "data/DAVIS", "split": "val"},)
    config.data.batch_size = 1
    config.data.clip_len = 1

    config.optim.name = "adam"
    config.optim.lr = 3e-6
    config.optim.freeze_bn = True
    config.train.total_steps = config.model.student_steps + config.model.teacher_steps
    config.train.checkpoint_every = STEPS_PER_EPOCH
    config.predict.crf = ""  # the release refines with a dense CRF of its own settings
    return config


def small(config: ConfigDict) -> None:
    """Networks small enough for a CPU, on rendered clips with estimated flow.

        python tools/render_clips.py --out data/clips --count 4400 --processes 2
        python tools/compute_flow.py data/clips/videos --out data/clips/tvl1_ahead \\
            --provider tvl1:warps=3,iterations=10
        python tools/compute_flow.py data/clips/videos --out data/clips/dis_ahead \\
            --provider opencv_dis
    """
    from_scratch(config, 2000, 4500)
    videos = {"name": "folder", "root": "data/clips/videos", "weight": 1.0}
    flow = {**videos, "group": "flow", "clips": "flow"}
    config.data.train = (
        {**videos, "group": "default"},
        {**flow, "flow": "../tvl1_ahead"},
        {**flow, "weight": 0.5, "flow": "../dis_ahead"},
    )
    model = config.model
    model.stem = 16
    model.widths = (16, 32, 64)
    model.units = (1, 1, 2)
    model.middle, model.context, model.context_units = 64, 64, 1
    model.bottlenecks = ((32, 64, 96),)
    model.hidden = 64
    model.dilations = (2, 4, 6)
    model.input_size = (240, 424)
    model.camera_motion = "subtracted"  # the person's camera stands still, those of clips do not
    model.adapt_lr = 3e-4
    model.erosion, model.negative_distance = 7, 60.0
    config.data.size = (120, 212)
    config.optim.lr = model.teacher_lr = 3e-3
    config.optim.schedule.name = "cosine"
    config.train.log_every = 20
    config.train.checkpoint_every = 250


def tiny(config: ConfigDict) -> None:
    """Every layer, stage and option of `full` at 48x64 on synthetic video with exact flow."""
    from_scratch(config, 15, 15)
    common = {"name": "synthetic", "weight": 1.0, "preset": "test"}
    config.data.train = (
        {**common, "group": "default"},
        {**common, "group": "flow", "flow": True, "clip_len": 2, "label": "moving"},
    )
    model = config.model
    model.stem = 8
    model.widths = (8, 16, 32)
    model.units = (1, 1, 1)
    model.middle, model.context, model.context_units = 32, 32, 1
    model.bottlenecks = ((16, 32, 48),)
    model.hidden = 32
    model.dilations = (2, 2, 3)
    model.input_size = (48, 64)
    model.camera_motion = "subtracted"  # as in `small`
    model.adapt_lr = 1e-3
    model.erosion, model.negative_distance = 3, 8.0
    config.data.size = (48, 64)
    config.optim.lr = model.teacher_lr = 3e-3
    config.optim.schedule.name = "cosine"
    config.train.log_every = 1
    config.train.checkpoint_every = 15


def from_scratch(config: ConfigDict, student_steps: int, teacher_steps: int) -> None:
    """Both stages without anything to start from."""
    config.data.eval = ()
    config.data.batch_size = 8
    config.model.student_steps = student_steps
    config.model.teacher_steps = teacher_steps
    # from scratch the teacher learns better on its own than from a student that knows little
    config.model.teacher_from_student = False
    config.model.adapt_loss_scale = 1.0
    # the hardest quarter is cheapest at undecided probabilities where nothing is known yet
    config.model.hard_fraction = 1.0
    config.optim.clip_norm = 1.0
    config.optim.freeze_bn = False
    config.train.total_steps = student_steps + teacher_steps

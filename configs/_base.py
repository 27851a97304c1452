"""The default configuration that every `configs/<system>.py` starts from.

Only plain values, so that a configuration survives JSON and is stored with every run. A config
file defines `get_config(arg="full")`, calls `get_base_config()`, and sets what its paper sets.
"""

from ml_collections import ConfigDict


def get_base_config() -> ConfigDict:
    """Every section with its default; systems overwrite values and may add `model` fields."""
    config = ConfigDict()
    config.seed = 0
    config.compute_dtype = "float32"  # float32 | bfloat16 (parameters and reductions stay f32)

    config.model = ConfigDict(
        {
            "name": "",  # system id
            "input_size": (473, 473),  # (H, W) fed to the network; () keeps the native size
            "init_from": "",  # path of weights to start from; "" starts from fresh parameters
            "init_strict": True,  # refuse weights that do not fit exactly
        }
    )

    # Training sources: tuples of dicts {name, weight, group, ...fields of that source}.
    # `group` is what a stage's phase refers to; evaluation sources need no weight.
    config.data = ConfigDict(
        {
            "train": ({"name": "synthetic", "group": "default", "weight": 1.0},),
            "eval": (),
            "clip_len": 2,
            "stride": 1,  # frames between the frames of a clip
            "batch_size": 8,  # GLOBAL, over all devices and processes
            "size": (473, 473),  # (H, W) of training examples
            "augment": {"flip": 0.5, "scale": (1.0, 1.0), "crop": (1.0, 1.0), "independent": False},
            "workers": 0,  # input processes; 0 reads in the main process
            "prefetch": 2,
            "cache_gb": 0.0,  # keep decoded frames in memory up to this, per process (and worker)
            "shuffle_seed": 0,
            "skip_corrupt": False,  # True: count and skip unreadable examples instead of stopping
        }
    )

    config.optim = ConfigDict(
        {
            "name": "sgd",  # sgd | adam | adamw
            "lr": 2.5e-4,
            "momentum": 0.9,
            "schedule": {"name": "constant", "power": 0.9, "warmup_steps": 0, "end_factor": 0.0},
            "weight_decay": 0.0,
            "clip_norm": 0.0,  # 0: no clipping
            "lr_multipliers": (),  # ((regex, factor), ...), first match wins
            "frozen": (),  # regexes of parameters that never move
            "freeze_bn": False,  # True: BatchNorm uses its running statistics while training
            "accumulate": 1,  # micro-steps per optimiser step
            "ema": 0.0,  # decay of the averaged parameters; 0: none
        }
    )

    config.train = ConfigDict(
        {
            "total_steps": 1000,
            "stages": (),  # overrides of the system's own stages: ({"name", "steps"}, ...)
            "log_every": 10,
            "eval_every": 0,  # 0: no evaluation while training
            "checkpoint_every": 500,
            "keep_latest": 2,
            "keep_best": {"metric": "J", "n": 1},
            "early_stop": 0,  # stop after this many evaluations without a better one; 0: never
            "remat": False,
        }
    )

    config.mesh = ConfigDict({"data": -1, "fsdp": 1})  # -1: all remaining devices

    config.predict = ConfigDict(
        {
            "window": 0,
            "overlap": 0,
            "tta": {"flip": False, "scales": (1.0,)},
            "crf": "",  # preset name, "" for none
            "refine": "",  # preset of a CRF at the network's resolution, "" for none
            "appearance": 0.0,  # share of the video's own colours in the log-odds
            "smooth": 0.0,  # share of the next frame in the log-odds, along flow to it
            "guided": False,  # enlarge along the edges of the picture, not bilinearly
            "flow": "",  # provider of optical flow for systems that read it, "" for tvl1
            "threshold": 0.5,
        }
    )
    return config


def parse_arg(arg: str) -> tuple[str, dict[str, str]]:
    """Splits `"tiny,backbone=resnet18"` into the variant and its `model` overrides."""
    variant, *overrides = [part.strip() for part in arg.split(",") if part.strip()] or ["full"]
    pairs = {}
    for part in overrides:
        key, sep, value = part.partition("=")
        if not sep:
            raise ValueError(f"config argument {arg!r}: {part!r} is not of the form key=value")
        pairs[key.strip()] = value.strip()
    return variant, pairs


def set_model_field(config: ConfigDict, key: str, value: str) -> None:
    """Sets `model.key` from text, as the type of its default."""
    if key not in config.model:
        raise ValueError(f"model has no field {key!r}; it has {', '.join(config.model)}")
    kind = type(config.model[key])
    if kind is bool:
        config.model[key] = value.lower() in ("1", "true", "yes")
    elif kind in (str, int, float):
        config.model[key] = kind(value)
    else:
        raise ValueError(
            f"model.{key} cannot be set in the config's name; use --config.model.{key}"
        )

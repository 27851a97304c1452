"""MOREL (Goel, Weng, Poupart, NeurIPS 2018): configurations.

    uvos train --config configs/morel.py:full --workdir runs/morel             # the segmenter
    uvos train --config configs/morel.py:catch --workdir runs/catch            # then an agent
    uvos train --config configs/morel.py:catch,algorithm=ppo --workdir runs/catch_ppo
    uvos train --config configs/morel.py:atari,env=ALE/Breakout-v5 --workdir runs/breakout

Published (the authors' code, `hparams/` and `baselines/`): segmenter: 100 000 frames of a random
policy per game, batches of 16 pairs, Adam 1e-4, gradients clipped at norm 5, 250 000 steps, weight
of the sparsity growing over the first 100 000. A2C: 16 environments, 5 steps, RMSProp 7e-4
constant. PPO: 8 environments, 128 steps, 4 epochs of 4 minibatches, Adam 2.5e-4 and clip 0.1, both
falling to 0. Both: discount 0.99, entropy 0.01, value 0.5 (of half the square), gradients clipped
at norm 0.5, joint loss with weight 1. The curves of the paper are said to run to 10 million steps;
the code's own total is 80 million. 59 Atari games; from memory of the paper, against A2C 26 gain
notably and 3 lose, against PPO 25 and 9.

`full` trains on the pixel environments of `uvos_jax.synthetic.environments`, as games need an extra
package; use a source of your own (`folder`, `davis`, ...) for other video.

Variants: `full`, `tiny` (tests); ablations of the segmenter `no_sparsity`, `no_ramp`, `no_camera`,
`pyramid` (the loss on three scales); agents `catch`, `breakout`, `dodge`, `scroll` (A2C with the
joint loss, the segmenter first) and `atari`; `tiny_catch`, `tiny_breakout`, `tiny_dodge`,
`tiny_scroll` are their 42-pixel twins for a CPU. Fields of `rl` may follow a comma, too:
`catch,pretrain=random`, `catch,joint_weight=0`, `catch,extra_path=false,pretrain=random`.
"""

from _base import get_base_config, parse_arg, set_model_field
from ml_collections import ConfigDict

GAMES = ("catch", "breakout", "dodge", "scroll")
#: On 42 pixels these games keep the lengths they have on 84.
TINY_FIELDS = {"catch": {"zoom": 2.0}, "scroll": {"zoom": 2.0}}
VARIANTS = (
    "full",
    "no_sparsity",
    "no_ramp",
    "no_camera",
    "pyramid",
    *GAMES,
    "atari",
    "tiny",
    *(f"tiny_{game}" for game in GAMES),
)


def get_config(arg: str = "full") -> ConfigDict:
    """The configuration of a variant, with overrides of `model` or `rl`: `"tiny,objects=2"`."""
    variant, overrides = parse_arg(arg)
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}: use one of {', '.join(VARIANTS)}")
    config = full()
    size, _, game = variant.rpartition("_")
    if variant == "no_sparsity":
        config.model.sparsity = 0.0
    elif variant == "no_ramp":
        config.model.sparsity_ramp = 0
    elif variant == "no_camera":
        config.model.camera = False
    elif variant == "pyramid":
        config.model.pyramid = 3
    if "tiny" in (variant, size):
        tiny(config)
    if game in GAMES or variant == "atari":
        agent(config, game, is_tiny=size == "tiny")
    for key, value in overrides.items():
        if key in config.rl:
            set_rl_field(config, key, value)
        else:
            set_model_field(config, key, value)
    return config


def set_rl_field(config: ConfigDict, key: str, value: str) -> None:
    """Sets `rl.key` from text; another algorithm brings its published recipe along, another game
    its random play for the segmenter."""
    if key == "algorithm" and value == "ppo":
        config.rl.update(PPO)
    if key == "env":
        (source,) = config.data.train
        config.data.train = ({**source, "env": value},)
    kind = type(config.rl[key])
    config.rl[key] = value.lower() in ("1", "true", "yes") if kind is bool else kind(value)


def full() -> ConfigDict:
    """The published segmenter; `rl.algorithm` is empty, so no agent follows."""
    config = get_base_config()
    config.model.name = "morel"
    config.model.input_size = (84, 84)
    config.model.convs = ((32, 8, 4), (64, 4, 2), (64, 3, 1))  # (features, kernel, stride)
    config.model.embedding = 512
    config.model.channels = 24
    config.model.objects = 20
    config.model.camera = True
    config.model.flow_scale = 0.01  # of the image's side, per unit of motion
    config.model.foreground = "speed"  # speed | flow_weighted
    config.model.full_speed = 0.5  # pixels at which an object counts fully
    config.model.masks_in = "current"  # current | previous (where the network finds them)
    # loss
    config.model.sparsity = 1.0
    config.model.sparsity_ramp = 100_000  # steps until it has its full weight
    config.model.pyramid = 1  # scales of the reconstruction loss
    config.model.ssim_window = 11
    config.model.ssim_sigma = 1.5

    config.data.train = ({"name": "environment", "weight": 1.0, "env": "catch", "length": 100_000},)
    config.data.clip_len = 2
    config.data.size = (84, 84)
    config.data.batch_size = 16
    config.data.augment = {
        "flip": 0.0,
        "scale": (1.0, 1.0),
        "crop": (1.0, 1.0),
        "independent": False,
    }

    config.optim.name = "adam"
    config.optim.lr = 1e-4
    config.optim.clip_norm = 5.0
    config.train.total_steps = 250_000
    config.train.log_every = 100
    config.train.checkpoint_every = 5000
    config.predict.crf = ""
    config.rl = ConfigDict(A2C)
    return config


#: The agent's recipe; see `uvos_jax.train.rl`.
A2C = {
    "algorithm": "",  # a2c | ppo; "" trains no agent
    "env": "catch",  # catch | breakout | dodge | scroll | a game of ALE such as ALE/Breakout-v5
    "env_fields": {},  # further fields of that environment
    "pretrain": "stage1",  # stage1 | random: where the encoder and the decoder come from
    "extra_path": True,  # the second, static path
    "joint_weight": 1.0,  # of the segmenter's loss; 0 leaves it and the decoder out
    "joint_decay_steps": 0,  # falls to 0 over this many environment steps (1e7 without extra path)
    "joint_stride": 1,  # every n-th sample takes part in it; the release takes all
    "joint_mask": "inside",  # ppo: inside | release | none
    "total_steps": 10_000_000,  # of all environments together
    "envs": 16,
    "rollout": 5,
    "gamma": 0.99,
    "gae_lambda": 1.0,  # 1: plain n-step returns
    "entropy": 0.01,
    "value": 0.5,
    "clip_norm": 0.5,
    "optimizer": "rmsprop",  # rmsprop | adam
    "lr": 7e-4,
    "epsilon": 1e-5,
    "decay": 0.99,  # of rmsprop
    "schedule": "constant",  # constant | linear (to 0; the clip range as well)
    "epochs": 1,
    "minibatches": 1,
    "clip_range": 0.1,
    "log_every": 100,  # updates
    "checkpoint_every": 2000,  # updates
    "eval_episodes": 16,
    "video_steps": 300,
}
PPO = {
    "algorithm": "ppo",
    "envs": 8,
    "rollout": 128,
    "gae_lambda": 0.95,
    "optimizer": "adam",
    "lr": 2.5e-4,
    "schedule": "linear",
    "epochs": 4,
    "minibatches": 4,
}


def agent(config: ConfigDict, game: str, *, is_tiny: bool) -> None:
    """An agent for `game`, whose random play trains the segmenter first."""
    config.rl.algorithm = "a2c"
    if game == "atari":
        config.rl.env = "ALE/Breakout-v5"
        config.data.train = (
            {"name": "atari", "weight": 1.0, "env": "ALE/Breakout-v5", "frames": 100_000},
        )
    else:
        config.rl.env = game
        (source,) = config.data.train
        fields = TINY_FIELDS.get(game, {}) if is_tiny else {}
        config.rl.env_fields = fields
        config.data.train = ({**source, "env": game, "env_fields": fields},)
    if is_tiny:
        config.rl.total_steps = 16 * 5 * 200
        config.rl.joint_stride = 5  # one sample of each environment
        config.rl.log_every = 20
        config.rl.checkpoint_every = 100
        config.rl.video_steps = 100


def tiny(config: ConfigDict) -> None:
    """42x42, four objects, a narrow encoder."""
    config.model.input_size = (42, 42)
    config.model.convs = ((16, 4, 2), (16, 3, 2), (16, 3, 1))
    config.model.embedding = 64
    config.model.channels = 8
    config.model.objects = 4
    config.model.sparsity_ramp = 10_000
    config.data.size = (42, 42)
    config.data.batch_size = 8
    (source,) = config.data.train
    config.data.train = ({**source, "env_fields": TINY_FIELDS["catch"]},)

    config.optim.lr = 2e-3
    config.train.total_steps = 300
    config.train.log_every = 20
    config.train.checkpoint_every = 150

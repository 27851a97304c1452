"""`python -m tests.train.launch ARGUMENTS`: `uvos train` with the toy registered as a system."""

import sys

from tests.train.toy import Toy
from uvos_jax import registry
from uvos_jax.train import command

#: Id that the toy borrows.
NAME = "mug"

CONFIG = """
from uvos_jax.config import load_config

def get_config(arg="full"):
    config = load_config("cosnet:tiny")
    config.model = {{"name": {name!r}, "features": {features}, "input_size": (8, 8),
                     "init_from": "", "init_strict": True}}
    config.data.update(size=(8, 8), clip_len=1, batch_size=8)
    config.data.train = ({{"name": "folder", "root": {clips!r}, "group": "default"}},)
    config.data.eval = ({{"name": "folder", "root": {clips!r}}},)
    config.optim.update(name="sgd", lr=0.1, clip_norm=0.0, frozen=(), ema=0.9)
    config.optim.schedule.name = "cosine"
    config.train.update(total_steps=12, checkpoint_every=4)
    return config
"""


class RegisteredToy(Toy):
    def __init__(self, config):
        super().__init__(features=config.features, dtype=config.compute_dtype)


def write_config(path, clips, features=4):
    path.write_text(CONFIG.format(name=NAME, clips=str(clips), features=features))
    return path


if __name__ == "__main__":
    registry._CLASSES[NAME] = RegisteredToy
    sys.exit(command.main())

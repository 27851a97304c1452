"""Small systems without weights, whose predictions are known in closed form."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np

from uvos_jax.systems.base import System
from uvos_jax.types import ModelSpec, Variables

#: no system is without parameters; the toys multiply their probabilities by it.
GAIN = Variables({"params": {"gain": np.float32(1.0)}})


def spec(**changes):
    fields = {
        "name": "toy", "paper": "none", "temporal": "frame", "clip_len": 1, "input_size": None,
        "stride": 1, "normalization": "unit",
    }  # fmt: skip
    return ModelSpec(**{**fields, **changes})


class Toy(System):
    """Probability of a pixel: its red value over 255."""

    def __init__(self, **changes):
        super().__init__(SimpleNamespace(compute_dtype="float32"))
        self.spec = spec(**changes)

    def init(self, rng, batch_shapes=None):
        return Variables({"params": {"gain": jnp.float32(1.0)}})

    @staticmethod
    def red(variables, chunk):
        return variables["params"]["gain"] * chunk["frames"][..., 0].astype(jnp.float32) / 255.0

    def predict(self, variables, state, chunk):
        return state, self.red(variables, chunk)


class RunningMean(Toy):
    """Causal with a state: the mean of red over all frames seen so far."""

    def __init__(self, **changes):
        super().__init__(**{"temporal": "recurrent", **changes})

    def init_state(self, variables, batch_size, frame_size):
        return jnp.zeros((batch_size, *frame_size)), jnp.zeros(())

    def predict(self, variables, state, chunk):
        total, count = state
        red = self.red(variables, chunk)
        sums = total[:, None] + jnp.cumsum(red, axis=1)
        counts = count + jnp.arange(1, red.shape[1] + 1, dtype=jnp.float32)
        means = sums / counts[None, :, None, None]
        return (sums[:, -1], counts[-1]), means


class Distance(Toy):
    """Global: how far red is from its mean over the references."""

    def __init__(self, **changes):
        super().__init__(**{"temporal": "global", "num_references": 3, **changes})

    def prepare(self, variables, batch):
        return {"mean": self.red(variables, batch).mean(1)}

    def init_state(self, variables, batch_size, frame_size):
        return {"mean": jnp.zeros((batch_size, *frame_size))}

    def predict(self, variables, state, chunk):
        return state, jnp.abs(self.red(variables, chunk) - state["mean"][:, None])


class WindowCentre(Toy):
    """Looks at the future: red minus the mean of its window, and 0.5."""

    def __init__(self, **changes):
        super().__init__(**{"temporal": "clip", "clip_len": 4, "causal": False, **changes})

    def predict(self, variables, state, chunk):
        red = self.red(variables, chunk)
        return state, 0.5 + 0.5 * (red - red.mean(1, keepdims=True))


class FlowRight(Toy):
    """Probability: horizontal flow, in pixels of the network's input."""

    def __init__(self, **changes):
        super().__init__(**{"requires": frozenset({"flow"}), **changes})

    def predict(self, variables, state, chunk):
        return state, variables["params"]["gain"] * chunk["flow"][..., 0]


def video(T, H=16, W=24, seed=0):
    """Noise, uint8 `[T,H,W,3]`."""
    return np.random.default_rng(seed).integers(0, 256, (T, H, W, 3), np.uint8)

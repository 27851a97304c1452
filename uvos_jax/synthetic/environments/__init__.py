"""Games of a few grey pixels in pure JAX, which also tell exactly what moves where.

    env = make_environment("catch", size=84)
    state, frames = env.reset(key)                                  # uint8 [84,84,2]
    state, frames, reward, done, info = env.step(key, state, action)

An environment is a frozen bag of settings; all functions can be jitted, mapped over a batch of keys
and scanned over time. A finished episode starts anew within the same step. `info` names the pixels
of every object, how far each moved, and how far the camera did.
"""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

from uvos_jax.errors import ConfigError
from uvos_jax.synthetic.environments.breakout import PixelBreakout
from uvos_jax.synthetic.environments.catch import PixelCatch
from uvos_jax.synthetic.environments.core import Environment, Info, State, flow_of, moving_pixels
from uvos_jax.synthetic.environments.dodge import PixelDodge
from uvos_jax.synthetic.environments.scroll import PixelScroll

__all__ = [
    "ENVIRONMENTS",
    "Environment",
    "Info",
    "PixelBreakout",
    "PixelCatch",
    "PixelDodge",
    "PixelScroll",
    "State",
    "flow_of",
    "make_environment",
    "moving_pixels",
]

ENVIRONMENTS: dict[str, type[Environment]] = {
    "catch": PixelCatch,
    "breakout": PixelBreakout,
    "dodge": PixelDodge,
    "scroll": PixelScroll,
}


def make_environment(name: str, **fields: Any) -> Environment:
    """An environment by name, with fields of its class.

    Raises:
      ConfigError: an unknown name or field, or an impossible value.
    """
    if name not in ENVIRONMENTS:
        near = difflib.get_close_matches(str(name), ENVIRONMENTS, n=2, cutoff=0.4)
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise ConfigError(
            f"environment {name!r} is unknown: {hint}known are {', '.join(ENVIRONMENTS)}"
        )
    cls = ENVIRONMENTS[name]
    known = [f.name for f in dataclasses.fields(cls)]
    unknown = sorted(set(fields) - set(known))
    if unknown:
        raise ConfigError(f"environment {name!r} has no field {unknown[0]!r}: it has {known}")
    return cls(**fields)

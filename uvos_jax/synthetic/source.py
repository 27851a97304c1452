"""The generator as a random-access source of examples in the library's data contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from uvos_jax.synthetic.config import SceneConfig
from uvos_jax.synthetic.render import DEFAULT_OUTPUTS, clip


def to_example(record: Mapping[str, Any], example_id: int = 0) -> dict[str, np.ndarray]:
    """A rendered record (with or without batch axis) as arrays of the data contract.

    `frames` uint8 `[...,T,H,W,3]`, `masks` uint8, `valid`, `has_mask` bool `[...,T]`, and if the
    record has `flow_fw`: `flow` f32 with `flow_valid` false on the last frame.
    """
    video = np.asarray(record["video"])
    frames = np.round(np.clip(video, 0, 1) * 255).astype(np.uint8)
    lead = frames.shape[:-3]
    example = {
        "frames": frames,
        "valid": np.ones(lead, bool),
        "has_mask": np.full(lead, "mask" in record),
    }
    if "mask" in record:
        example["masks"] = np.asarray(record["mask"], np.uint8)
    if "flow_fw" in record:
        example["flow"] = np.asarray(record["flow_fw"], np.float32)
        example["flow_valid"] = np.ones(lead, bool)
        example["flow_valid"][..., -1] = False
    batch = lead[:-1]
    example["example_id"] = np.full(batch, example_id, np.int32)
    return example


@partial(jax.jit, static_argnums=(2, 3))
def _render(seed: jax.Array, index: jax.Array, cfg: SceneConfig, outputs: tuple[str, ...]):
    return clip(jax.random.fold_in(jax.random.key(seed), index), cfg, outputs)


class GrainSource:
    """Clip i of the set `seed`, rendered on the default device when asked for.

    Has `__len__` and `__getitem__`, which is what grain asks of a source, and pickles as its
    arguments.
    """

    def __init__(
        self,
        cfg: SceneConfig,
        length: int = 10_000,
        *,
        seed: int = 0,
        outputs: Sequence[str] = DEFAULT_OUTPUTS,
    ):
        self.cfg, self.length, self.seed, self.outputs = cfg, length, seed, tuple(outputs)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if not -self.length <= index < self.length:
            raise IndexError(f"synthetic clip {index} of {self.length}")
        index %= self.length
        record = _render(self.seed, index, self.cfg, self.outputs)
        return to_example(jax.device_get(record), index)

    def __repr__(self) -> str:
        return f"GrainSource({self.cfg}, {self.length}, seed={self.seed})"

"""Eight curated clips for the demo, each showing one difficulty.

All come from one scene configuration, so that they share one compiled renderer; the seeds were
picked from a few thousand scenes for what they show and for a well visible object.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from uvos_jax.errors import ConfigError
from uvos_jax.synthetic.config import SceneConfig, config
from uvos_jax.synthetic.render import label_mask, render
from uvos_jax.synthetic.scene import sample_scene

HEIGHT, WIDTH = 128, 224
#: Frames of a scene, of which a clip shows the middle ones.
SCENE_FRAMES, FRAMES = 24, 16
#: Settings of every demo clip: slow enough to watch, two objects at most.
CONFIG = config(
    "default",
    height=HEIGHT,
    width=WIDTH,
    frames=SCENE_FRAMES,
    distractors=3,
    objects=2,
    object_counts=(0.7, 0.3),
    limbs=2,
    area=(0.05, 0.2),
    motion=0.5,
    leaves_frame=0.0,
    contrast=0.7,
    camouflage=0.15,
    blur_samples=1,
    object_speed=0.04,
    camera_speed=0.03,
)
#: name -> (seed, what the mask marks)
CLIPS: dict[str, tuple[int, str]] = {
    "pan-rigid": (862, "salient"),
    "follow-cam": (17, "salient"),
    "camouflage": (1154, "salient"),
    "stop-and-go": (724, "salient"),
    "articulated-runner": (60, "salient"),
    "two-objects": (8, "moving"),
    "front-occluder": (199, "salient"),
    "zoom-shake": (694, "salient"),
}


def demo_clips() -> tuple[str, ...]:
    """Names of the demo clips."""
    return tuple(CLIPS)


def demo_config(name: str) -> tuple[int, SceneConfig]:
    """Seed and scene settings of a demo clip.

    Raises:
      ConfigError: no clip of that name.
    """
    if name not in CLIPS:
        raise ConfigError(f"demo clip {name!r} is unknown: use one of {', '.join(CLIPS)}")
    seed, label = CLIPS[name]
    return seed, dataclasses.replace(CONFIG, label=label)


@partial(jax.jit, static_argnums=(1, 2))
def _make(seed: jax.Array, cfg: SceneConfig, outputs: tuple[str, ...]):
    scene = sample_scene(jax.random.key(seed), cfg)
    few = {k: scene[k] for k in ("primary", "is_moving")}
    times = jnp.arange(FRAMES, dtype=jnp.float32) - (FRAMES - 1) / 2
    return few, render(scene, times, cfg, outputs)


def demo_clip(name: str, *, flow: bool = False) -> dict:
    """Renders a demo clip.

    Returns `name`, `frames` uint8 `[16,128,224,3]`, `masks` uint8 `[16,128,224]` and, if asked for,
    which takes twice the time, `flow` float32 `[16,128,224,2]` to the next frame.

    Raises:
      ConfigError: no clip of that name.
    """
    seed, cfg = demo_config(name)
    outputs = ("video", "ids", *(("flow_fw",) if flow else ()))
    scene, record = jax.device_get(_make(np.uint32(seed), CONFIG, outputs))
    clip = {
        "name": name,
        "frames": np.round(record["video"] * 255).astype(np.uint8),
        "masks": np.asarray(label_mask(scene, record["ids"], cfg)),
    }
    return {**clip, "flow": record["flow_fw"]} if flow else clip

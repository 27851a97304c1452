"""Eight curated clips for the demo: fixed seeds, each showing one difficulty."""

from __future__ import annotations

from functools import lru_cache

import jax
import numpy as np

from uvos_jax.errors import ConfigError
from uvos_jax.synthetic.config import SceneConfig, config
from uvos_jax.synthetic.render import render
from uvos_jax.synthetic.scene import sample_scene

FRAMES, HEIGHT, WIDTH = 24, 128, 224
_COMMON = {
    "height": HEIGHT,
    "width": WIDTH,
    "frames": FRAMES,
    "label": "salient",
    "object_counts": (1.0,),
    "objects": 1,
    "limbs": 2,
    "area": (0.05, 0.2),
    "motion": 0.5,
    "leaves_frame": 0.0,
    "occlusion": 0.0,
    "camouflage": 0.0,
    "contrast": 1.0,
    "object_speed": 0.03,
    "camera_speed": 0.02,
}
#: name -> (seed, changes to the common settings)
CLIPS: dict[str, tuple[int, dict]] = {
    "pan-rigid": (
        11,
        {"deformation": 0.0, "limbs": 0, "static_camera": 0.0, "follow_camera": 0.0},
    ),
    "follow-cam": (12, {"follow_camera": 1.0, "static_camera": 0.0}),
    "camouflage": (13, {"contrast": 0.0, "camouflage": 1.0, "static_camera": 1.0}),
    "stop-and-go": (14, {"stop_and_go": 1.0, "static_camera": 1.0}),
    "articulated-runner": (15, {"articulation": 0.8, "follow_camera": 1.0, "static_camera": 0.0}),
    "two-objects": (16, {"objects": 2, "object_counts": (0.0, 1.0), "label": "moving"}),
    "front-occluder": (17, {"occlusion": 1.0, "static_camera": 1.0}),
    "zoom-shake": (18, {"shake": 1.0, "static_camera": 0.0, "follow_camera": 0.0}),
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
    seed, changes = CLIPS[name]
    return seed, config("default", **{**_COMMON, **changes})


@lru_cache(maxsize=len(CLIPS))
def demo_clip(name: str) -> dict:
    """Renders a demo clip.

    Returns `name`, `frames` uint8 `[24,128,224,3]`, `masks` uint8 `[24,128,224]`, `flow` f32
    `[24,128,224,2]`.
    """
    seed, cfg = demo_config(name)
    outputs = ("video", "mask", "flow_fw")

    @jax.jit
    def make(key):
        return render(sample_scene(key, cfg), None, cfg, outputs)

    record = jax.device_get(make(jax.random.key(seed)))
    return {
        "name": name,
        "frames": np.round(record["video"] * 255).astype(np.uint8),
        "masks": record["mask"],
        "flow": record["flow_fw"],
    }

"""Eight curated clips for the demo, each showing one difficulty.

All come from one scene configuration, so that they share one compiled renderer; the seeds were
picked from a few thousand scenes for what they show and for a well visible object. The scenes are
packaged as the sampler drew them, without the noise of their surfaces, which their seeds make:
compiling the sampler for eight scenes would take five times as long as compiling the renderer.
"""

from __future__ import annotations

import dataclasses
from functools import lru_cache, partial
from importlib import resources
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uvos_jax.errors import ConfigError
from uvos_jax.synthetic.config import SceneConfig, config
from uvos_jax.synthetic.render import label_mask, render
from uvos_jax.synthetic.scene import noise_of_scene, sample_scene
from uvos_jax.types import flatten, unflatten

#: Packaged scenes, relative to the package; `tools/pack_demo_scenes.py` writes them.
SCENES = "assets/demo_scenes.npz"
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


def draw_scenes() -> dict[str, np.ndarray]:
    """What `SCENES` holds: every clip's scene as flat arrays `CLIP/layers/angle`, ...

    `texture/tile` is the number of a layer's noise in `noise_of_scene`, not the noise.
    """
    sample = jax.jit(lambda seed: sample_scene(jax.random.key(seed), CONFIG))
    arrays = {}
    for name, (seed, _) in CLIPS.items():
        scene = jax.device_get(sample(np.uint32(seed)))
        noise = np.asarray(_noise(np.uint32(seed)))
        gap = np.abs(scene["layers"]["texture"]["tile"][:, None] - noise).max((2, 3, 4))
        scene["layers"]["texture"]["tile"] = np.argmin(gap, axis=1).astype(np.int32)
        assert gap.min(axis=1).max() < 1e-3, f"a layer of {name} has noise of its own"
        arrays.update(flatten({name: scene}))
    return arrays


@lru_cache(maxsize=1)
def _packaged() -> dict[str, Any]:
    path = resources.files("uvos_jax") / SCENES
    with resources.as_file(path) as file, np.load(file) as arrays:
        return unflatten(arrays)


@jax.jit
def _noise(seed: jax.Array) -> jax.Array:
    return noise_of_scene(jax.random.key(seed), CONFIG)


@partial(jax.jit, static_argnums=2)
def _render(scene: dict, noise: jax.Array, outputs: tuple[str, ...]) -> dict:
    texture = scene["layers"]["texture"]
    texture = {**texture, "tile": noise[texture["tile"]]}
    scene = {**scene, "layers": {**scene["layers"], "texture": texture}}
    times = jnp.arange(FRAMES, dtype=jnp.float32) - (FRAMES - 1) / 2
    return render(scene, times, CONFIG, outputs)


def demo_clip(name: str, *, flow: bool = False) -> dict:
    """Renders a demo clip.

    Returns `name`, `frames` uint8 `[16,128,224,3]`, `masks` uint8 `[16,128,224]` and, if asked for,
    which takes twice the time, `flow` float32 `[16,128,224,2]` to the next frame.

    Raises:
      ConfigError: no clip of that name.
    """
    seed, cfg = demo_config(name)
    outputs = ("video", "ids", *(("flow_fw",) if flow else ()))
    scene = _packaged()[name]
    record = jax.device_get(_render(scene, _noise(np.uint32(seed)), outputs))
    clip = {
        "name": name,
        "frames": np.round(record["video"] * 255).astype(np.uint8),
        "masks": np.asarray(label_mask(scene, record["ids"], cfg)),
    }
    return {**clip, "flow": record["flow_fw"]} if flow else clip

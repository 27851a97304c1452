"""Settings of the scene generator: a frozen value, so that it can be a static argument of jit."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any, Literal

from uvos_jax.errors import ConfigError

#: Everything `render` can return.
OUTPUTS = ("video", "mask", "ids", "flow_fw", "flow_bw", "occ_fw", "occ_bw", "depth")


@dataclasses.dataclass(frozen=True)
class SceneConfig:
    """What scenes look like and how they move. Probabilities are per clip.

    Speeds are fractions of the image diagonal per frame. Sources of the distributions: the data
    generator of FlyingChairs (Mayer et al., IJCV 2018), Kubric's MOVi, Lucid data dreaming.

    Attributes:
      height, width, frames: of a clip.
      label: what `mask` marks: every `moving` object, the one most `salient` moving object, or
        `instances` (ids of all moving objects).
      distractors, objects, limbs, occluders: capacity of each kind of layer; how many are active
        is drawn per clip. Rendering time is proportional to their sum.
      parts: star-shaped parts a silhouette is composed of.
      cells: regions of the piecewise texture.
      tile: side of the noise tiles.
      blur_samples: sub-frames averaged for motion blur; 1 switches it off.
      shadows: whether objects may cast soft shadows.
      motion: factor on all speeds (curriculum).
      contrast, camouflage: probability that objects stand out from, or look like, the background.
      static_camera, follow_camera, shake: probabilities.
      follow_slack: a following camera is up to this share of the object's motion ahead or behind.
      ground: probability that the background is an inclined plane: near below, far above.
      roughness, tile_contrast: ranges of the noise textures' spectral exponent (small is fine
        detail) and strength.
      foreground: probability that the occluder lies along the lower border instead of standing.
      distractor_depth, distractor_size: ranges of depth (objects have 1 to 4, the background 4 to
        8) and of half-size in image diagonals of what is at rest. Near and large ones are
        parallax that no plane explains.
      restless: probability that the background itself ripples, as water and leaves do.
      reflection: probability that the first object is mirrored in what is below it, paler and
        rippling; one more layer where it is not 0. Never part of the object.
      spray: probability that the first object drags water, dust or smoke along; one more layer
        where it is not 0. Never part of the object.
    """

    height: int = 240
    width: int = 424
    frames: int = 8
    label: Literal["moving", "salient", "instances"] = "salient"
    distractors: int = 4
    objects: int = 3
    limbs: int = 2
    occluders: int = 1
    parts: int = 3
    cells: int = 16
    tile: int = 128
    blur_samples: int = 3
    shadows: bool = True
    motion: float = 1.0
    contrast: float = 0.5
    camouflage: float = 0.25
    static_camera: float = 0.25
    follow_camera: float = 0.25
    shake: float = 0.3
    object_speed: float = 0.06
    object_speed_floor: float = 0.003
    camera_speed: float = 0.04
    area: tuple[float, float] = (0.01, 0.35)
    object_counts: tuple[float, ...] = (0.6, 0.25, 0.15)
    stop_and_go: float = 0.15
    deformation: float = 0.6
    articulation: float = 0.3
    occlusion: float = 0.25
    leaves_frame: float = 0.15
    thin: float = 0.15
    moving_threshold: float = 0.003
    follow_slack: float = 0.0
    ground: float = 0.0
    distractor_depth: tuple[float, float] = (2.0, 6.0)
    distractor_size: tuple[float, float] = (0.02, 0.16)
    restless: float = 0.0
    foreground: float = 0.0
    reflection: float = 0.0
    spray: float = 0.0
    roughness: tuple[float, float] = (0.8, 1.8)
    tile_contrast: tuple[float, float] = (0.25, 1.0)

    @property
    def layers(self) -> int:
        """Layers per scene, background included."""
        solid = 1 + self.distractors + self.objects + self.limbs + self.occluders
        return solid + (self.reflection > 0) + (self.spray > 0)

    @property
    def size(self) -> tuple[int, int]:
        return self.height, self.width

    def replace(self, **changes: Any) -> SceneConfig:
        """A copy with some fields changed.

        Raises:
          ConfigError: unknown field, or a value no clip can be drawn from.
        """
        known = {f.name for f in dataclasses.fields(self)}
        for key in changes:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=2)
                hint = f"did you mean {' or '.join(near)}?" if near else f"it has {sorted(known)}"
                raise ConfigError(f"synthetic scene config has no field {key!r}; {hint}")
        changes = {k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()}
        config = dataclasses.replace(self, **changes)
        config.check()
        return config

    def check(self) -> None:
        """Raises `ConfigError` for impossible values."""
        if min(self.height, self.width) < 16 or self.frames < 1:
            raise ConfigError(
                f"synthetic clips need at least 16x16 pixels and one frame, got "
                f"{self.height}x{self.width}x{self.frames}"
            )
        if self.objects < 1 or self.parts < 1 or self.blur_samples < 1:
            raise ConfigError("synthetic scenes need objects, parts and blur_samples of at least 1")
        if self.label not in ("moving", "salient", "instances"):
            raise ConfigError(
                f"synthetic label {self.label!r} is unknown: use 'moving', 'salient' or 'instances'"
            )


# Scenes as amateurs film them: the camera mostly follows, there is ground below, water and
# leaves ripple. For networks that see motion alone.
_OUTDOOR: dict[str, Any] = {
    "height": 128,
    "width": 224,
    "frames": 3,
    "distractors": 2,
    "objects": 2,
    "limbs": 2,
    "parts": 2,
    "cells": 10,
    "tile": 64,
    "blur_samples": 1,
    "shadows": False,
    "object_counts": (0.75, 0.25),
    "area": (0.01, 0.5),
    "static_camera": 0.15,
    "follow_camera": 0.5,
    "follow_slack": 0.3,
    "shake": 0.5,
    "ground": 0.6,
    "restless": 0.2,
    "articulation": 0.6,
    "deformation": 0.7,
    "occlusion": 0.3,
    "foreground": 0.6,
    "camera_speed": 0.06,
    "roughness": (0.4, 1.2),
    "tile_contrast": (0.6, 1.0),
}

_PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    # As little work per pixel as still gives varied scenes: for training on CPUs.
    "fast": {
        "height": 128,
        "width": 224,
        "frames": 2,
        "distractors": 2,
        "objects": 2,
        "limbs": 1,
        "parts": 2,
        "cells": 10,
        "tile": 64,
        "blur_samples": 1,
        "shadows": False,
        "object_counts": (0.7, 0.3),
    },
    "outdoor": _OUTDOOR,
    # As `outdoor`, with what moves as the object does and is none of it.
    "water": {
        **_OUTDOOR,
        "restless": 0.6,
        "reflection": 0.5,
        "spray": 0.5,
        "occlusion": 0.15,
    },
    # As `outdoor`, among rocks and trunks: what is near moves more than the object does.
    "rocks": {
        **_OUTDOOR,
        "distractors": 5,
        "distractor_depth": (0.7, 5.0),
        "distractor_size": (0.04, 0.22),
        "object_counts": (0.85, 0.15),
        "static_camera": 0.05,
        "follow_camera": 0.6,
        "ground": 0.8,
        "occlusion": 0.5,
        "restless": 0.1,
    },
    "test": {
        "height": 64,
        "width": 96,
        "frames": 4,
        "distractors": 2,
        "objects": 2,
        "limbs": 1,
        "parts": 2,
        "cells": 6,
        "tile": 32,
        "blur_samples": 1,
        "shadows": False,
        "object_counts": (0.7, 0.3),
    },
}


def config(name: str = "default", **changes: Any) -> SceneConfig:
    """A named preset (`default`, `fast`, `outdoor`, `water`, `rocks`, `test`) with fields changed.

    Raises:
      ConfigError: unknown preset or field.
    """
    if name not in _PRESETS:
        raise ConfigError(f"synthetic preset {name!r} is unknown: use one of {sorted(_PRESETS)}")
    return SceneConfig().replace(**{**_PRESETS[name], **changes})


def curriculum(cfg: SceneConfig, progress: float) -> SceneConfig:
    """Scenes for a training that is `progress` (0..1) through: easy ones until 30 %.

    Starts with high contrast, mostly static cameras and a third of the motion.
    """
    ease = min(max(progress / 0.3, 0.0), 1.0)

    def between(start: float, end: float) -> float:
        return start + (end - start) * ease

    return cfg.replace(
        motion=cfg.motion * between(1 / 3, 1.0),
        contrast=between(0.8, cfg.contrast),
        camouflage=between(0.0, cfg.camouflage),
        static_camera=between(0.6, cfg.static_camera),
    )

"""Ray-cast scenes: rigid ellipsoids and boxes in a room, with exact depth, pose, flow and masks.

    cfg = raycast_config("default")
    record = raycast_clip(key, cfg)

A pinhole camera (`uvos_jax.ops.geometry`) moves through a scene of a back wall, a ground plane and
solids, some of which move. Every pixel's ray is intersected in closed form; the nearest hit gives
depth and instance id, and its coordinates in the solid's own frame give the colour, a band-limited
texture that sticks to the surface. Moving those coordinates to the next frame gives the flow.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from uvos_jax.errors import ConfigError
from uvos_jax.ops.geometry import (
    axis_angle_rotation,
    compose,
    invert,
    rays,
    rotate,
)

FAR = 1e6


@dataclasses.dataclass(frozen=True)
class RaycastConfig:
    """What scenes look like and how they move; lengths in scene units, angles in degrees.

    Attributes:
      height, width, frames: of a clip.
      moving, still: number of solids of each kind, all present.
      depth: of the solids' centres. wall: of the back wall. radius: of the solids.
      object_shift, object_turn: largest move of a solid per frame, and smallest shift.
      camera_shift, camera_turn: largest move of the camera per frame.
      spread: share of the image within which solids start.
      waves: sinusoids of a texture.
      supersample: colour rays per pixel and axis.
      intrinsics: (cx, cy, fx, fy), normalised by the image's size.
    """

    height: int = 128
    width: int = 384
    frames: int = 2
    moving: int = 2
    still: int = 2
    depth: tuple[float, float] = (4.0, 8.0)
    wall: tuple[float, float] = (8.0, 20.0)
    radius: tuple[float, float] = (0.5, 2.0)
    object_shift: tuple[float, float] = (0.1, 0.4)
    object_turn: float = 10.0
    camera_shift: float = 0.3
    camera_turn: float = 2.0
    spread: float = 0.7
    waves: int = 10
    supersample: int = 2
    intrinsics: tuple[float, float, float, float] = (0.5, 0.5, 1.0, 1.0)

    def replace(self, **changes: Any) -> RaycastConfig:
        """A copy with some fields changed.

        Raises:
          ConfigError: unknown field, or a value no clip can be drawn from.
        """
        known = {f.name for f in dataclasses.fields(self)}
        for key in changes:
            if key not in known:
                raise ConfigError(f"ray-cast scenes have no field {key!r}; they have {known}")
        changes = {k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()}
        config = dataclasses.replace(self, **changes)
        if min(config.height, config.width) < 8 or config.frames < 1:
            raise ConfigError(
                "ray-cast clips need at least 8x8 pixels and one frame, got "
                f"{config.height}x{config.width}x{config.frames}"
            )
        if config.moving < 0 or config.still < 0 or config.supersample < 1:
            raise ConfigError(
                "ray-cast scenes need moving and still of at least 0 and supersample of at least 1"
            )
        return config


_PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "test": {"height": 64, "width": 64, "waves": 6, "moving": 1, "still": 1, "supersample": 1},
}


def raycast_config(name: str = "default", **changes: Any) -> RaycastConfig:
    """A named preset (`default`, `test`) with fields changed.

    Raises:
      ConfigError: unknown preset or field.
    """
    if name not in _PRESETS:
        raise ConfigError(f"ray-cast preset {name!r} is unknown: use one of {sorted(_PRESETS)}")
    return RaycastConfig().replace(**{**_PRESETS[name], **changes})


# ----- scenes ---------------------------------------------------------------------------------


def sample_raycast_scene(key: jax.Array, cfg: RaycastConfig) -> dict[str, Any]:
    """Draws a scene: solids (two planes first), their motion, the camera's, textures."""
    keys = iter(jax.random.split(key, 24))
    M, S = cfg.moving, cfg.moving + cfg.still

    def uniform(shape: tuple, low: Any, high: Any) -> jax.Array:
        return jax.random.uniform(next(keys), shape, minval=low, maxval=high)

    def direction(n: int) -> jax.Array:
        v = jax.random.normal(next(keys), (n, 3))
        return v / jnp.linalg.norm(v, axis=-1, keepdims=True)

    cx, cy, fx, fy = cfg.intrinsics
    z = uniform((S,), *cfg.depth)
    image = 0.5 + cfg.spread * uniform((S, 2), -0.5, 0.5)
    xy = (image - jnp.asarray([cx, cy])) / jnp.asarray([fx, fy]) * z[:, None]
    radius = uniform((S, 3), *cfg.radius)
    moves = (jnp.arange(S) < M).astype(jnp.float32)[:, None]
    low, high = cfg.object_shift
    shift = direction(S) * uniform((S, 1), low, high)
    turn = direction(S) * jnp.deg2rad(uniform((S, 1), -cfg.object_turn, cfg.object_turn))
    wall = uniform((), *cfg.wall)
    tilt = 0.15 * uniform((2,), -1.0, 1.0)
    camera_turn = direction(1)[0] * jnp.deg2rad(uniform((), 0.0, cfg.camera_turn))
    camera_shift = direction(1)[0] * uniform((), 0.0, cfg.camera_shift)
    textures = S + 2
    return {
        "center": jnp.concatenate([xy, z[:, None]], axis=-1),
        "orientation": axis_angle_rotation(direction(S) * uniform((S, 1), 0.0, jnp.pi)),
        "radius": radius,
        "is_box": jax.random.bernoulli(next(keys), 0.5, (S,)),
        "shift": moves * shift,
        "turn": moves * turn,
        # planes n . X = c: a tilted back wall, and a ground below the camera
        "normal": jnp.stack(
            [jnp.stack([tilt[0], tilt[1], jnp.float32(1.0)]), jnp.asarray([0.0, 1.0, -0.05])]
        ),
        "offset": jnp.stack([wall, uniform((), 1.5, 3.0)]),
        "camera_turn": camera_turn,
        "camera_shift": camera_shift,
        "texture": {
            "base": uniform((textures, 3), 0.2, 0.8),
            "frequency": jax.random.normal(next(keys), (textures, cfg.waves, 3))
            * jnp.where(jnp.arange(textures) < 2, 0.25, 0.6)[:, None, None],
            "phase": 2 * jnp.pi * jax.random.uniform(jax.random.fold_in(key, 1),
                                                     (textures, cfg.waves)),
            "color": 0.5 / jnp.sqrt(cfg.waves)
            * jax.random.normal(jax.random.fold_in(key, 2), (textures, cfg.waves, 3)),
        },
    }  # fmt: skip


def _poses(scene: dict, t: jax.Array) -> tuple[tuple, tuple]:
    """Object-to-world motions of the solids and the world-to-camera motion at time t."""
    Q = axis_angle_rotation(t * scene["turn"])
    turned = jnp.einsum("sij,sjk->sik", Q, scene["orientation"], precision="highest")
    solids = (turned, scene["center"] + t * scene["shift"])
    camera = (axis_angle_rotation(t * scene["camera_turn"]), t * scene["camera_shift"])
    return solids, camera


def _hit_solids(origin: jax.Array, ray: jax.Array, scene: dict) -> jax.Array:
    """Depth along rays `[...,S,3]` in the solids' frames; FAR where there is no hit."""
    o, d = origin / scene["radius"], ray / scene["radius"]
    # ellipsoid: |o + z d| = 1
    a, b, c = jnp.sum(d * d, -1), jnp.sum(o * d, -1), jnp.sum(o * o, -1) - 1.0
    root = b * b - a * c
    ball = (-b - jnp.sqrt(jnp.maximum(root, 0.0))) / a
    ball = jnp.where((root > 0) & (ball > 0), ball, FAR)
    # box: slabs |x| <= 0.8
    safe = jnp.where(jnp.abs(d) < 1e-9, 1e-9, d)
    near, far = (-0.8 - o) / safe, (0.8 - o) / safe
    enter = jnp.max(jnp.minimum(near, far), axis=-1)
    leave = jnp.min(jnp.maximum(near, far), axis=-1)
    box = jnp.where((enter < leave) & (enter > 0), enter, FAR)
    return jnp.where(scene["is_box"], box, ball)


def _cast(scene: dict, t: jax.Array, directions: jax.Array) -> dict[str, jax.Array]:
    """Nearest hits of rays `[H,W,3]` (third component 1) of the camera at time t.

    Returns: `depth [H,W]`; `solid [H,W]`, 0 wall, 1 ground, then the solids; `own [H,W,3]`, the
    point in its solid's frame (in the world's for planes); `point [H,W,3]` in the camera's.
    """
    (R, C), camera = _poses(scene, t)
    world_R, world_t = invert(camera)  # camera to world
    d = rotate(world_R, directions)
    planes = (scene["offset"] - scene["normal"] @ world_t) / _clear(
        jnp.einsum("hwi,pi->hwp", d, scene["normal"], precision="highest")
    )
    planes = jnp.where(planes > 0, planes, FAR)
    # rays and camera in the solids' frames: Q^T (x - C)
    back = jnp.swapaxes(R, -1, -2)
    origin, ray = rotate(back, world_t - C), rotate(back, d[..., None, :])
    hits = jnp.concatenate([planes, _hit_solids(origin, ray, scene)], axis=-1)
    solid, depth = jnp.argmin(hits, axis=-1), jnp.min(hits, axis=-1)
    depth = jnp.minimum(depth, 100.0)
    point = depth[..., None] * directions
    in_world = rotate(world_R, point) + world_t
    all_R = jnp.concatenate([jnp.tile(jnp.eye(3), (2, 1, 1)), R])
    all_C = jnp.concatenate([jnp.zeros((2, 3)), C])
    own = rotate(jnp.swapaxes(all_R[solid], -1, -2), in_world - all_C[solid])
    return {"depth": depth, "solid": solid, "own": own, "point": point}


def _clear(x: jax.Array) -> jax.Array:
    return jnp.where(jnp.abs(x) < 1e-9, 1e-9, x)


def _color(texture: dict, solid: jax.Array, own: jax.Array) -> jax.Array:
    """RGB in [0,1] of points `own [...,3]` of solids, a sum of sinusoids in space."""

    def of_solid(base, frequency, phase, color):
        waves = jnp.sin(2 * jnp.pi * own @ frequency.T + phase)
        return jnp.clip(base + waves @ color, 0.0, 1.0)

    colors = jax.lax.map(
        lambda p: of_solid(*p),
        (texture["base"], texture["frequency"], texture["phase"], texture["color"]),
    )
    return jnp.take_along_axis(colors, solid[None, ..., None], axis=0)[0]


# ----- rendering ------------------------------------------------------------------------------


def raycast_render(scene: dict, cfg: RaycastConfig) -> dict[str, jax.Array]:
    """Renders a scene.

    Returns:
      `video [T,H,W,3]` f32 in [0,1]; `mask [T,H,W]` uint8, moving solids numbered from 1;
      `ids [T,H,W]` int32, all surfaces (0 wall, 1 ground, 2.. solids); `depth [T,H,W]`;
      `flow_fw [T,H,W,2]` pixels to the next frame (of the last frame: to one beyond it);
      `camera [T,3,4]`, motion of the world's points from camera t to camera t+1;
      `intrinsics [4]`; `occ_fw [T,H,W]` bool, hidden or outside in the next frame;
      `object_motion [T,M,3,4]`, of the moving solids, in the frame of camera t.
    """
    T, H, W, n = cfg.frames, cfg.height, cfg.width, cfg.supersample
    intrinsics = jnp.asarray(cfg.intrinsics, jnp.float32)
    directions = rays(intrinsics[None], H, W)[0]
    fine = directions if n == 1 else rays(intrinsics[None], H * n, W * n)[0]
    size = jnp.asarray([W, H], jnp.float32)
    own_pixel = (directions[..., :2] * intrinsics[2:] + intrinsics[:2]) * size - 0.5

    def frame(t: jax.Array) -> dict[str, jax.Array]:
        hit = _cast(scene, t, directions)
        colored = hit if n == 1 else _cast(scene, t, fine)
        color = _color(scene["texture"], colored["solid"], colored["own"])
        color = color.reshape(H, n, W, n, 3).mean((1, 3))
        (R, C), camera = _poses(scene, t)
        (R1, C1), camera1 = _poses(scene, t + 1.0)
        eye, zero = jnp.tile(jnp.eye(3), (2, 1, 1)), jnp.zeros((2, 3))
        all_R, all_C = jnp.concatenate([eye, R1]), jnp.concatenate([zero, C1])
        solid = hit["solid"]
        in_world = rotate(all_R[solid], hit["own"]) + all_C[solid]
        moved = rotate(camera1[0], in_world) + camera1[1]
        z = jnp.maximum(moved[..., 2:], 1e-2)
        target = (moved[..., :2] / z * intrinsics[2:] + intrinsics[:2]) * size - 0.5
        # is the same surface what the next camera sees there?
        seen = _cast(scene, t + 1.0, moved / z)
        hidden = (seen["solid"] != solid) | (seen["depth"] < moved[..., 2] - 1e-2 * z[..., 0])
        outside = jnp.any((target < -0.5) | (target > size - 0.5), axis=-1)
        relative = compose(camera1, invert(camera))
        # x -> camera (world motion (camera^-1 x)), of each moving solid
        motion = compose((R1, C1), invert((R, C)))
        motion = compose(camera, compose(motion, invert(camera)))
        moving = solid - 2 < cfg.moving
        mask = jnp.where((solid >= 2) & moving, solid - 1, 0)
        return {
            "video": color,
            "mask": mask.astype(jnp.uint8),
            "ids": solid.astype(jnp.int32),
            "depth": hit["depth"],
            "flow_fw": target - own_pixel,
            "occ_fw": hidden | outside,
            "camera": jnp.concatenate([relative[0], relative[1][:, None]], axis=-1),
            "object_motion": jnp.concatenate([motion[0], motion[1][..., None]], -1)[: cfg.moving],
        }

    record = jax.lax.map(frame, jnp.arange(T, dtype=jnp.float32))
    return {**record, "intrinsics": intrinsics}


def raycast_clip(key: jax.Array, cfg: RaycastConfig) -> dict[str, jax.Array]:
    """A random scene, rendered."""
    return raycast_render(sample_raycast_scene(key, cfg), cfg)


def raycast_batch(seed: jax.Array, first: jax.Array, batch_size: int, cfg: RaycastConfig) -> dict:
    """Clips `first`, ... of the set `seed` as a batch of the data contract, jittable."""
    key = jax.random.key(seed)
    numbers = first + jnp.arange(batch_size)
    record = jax.lax.map(lambda i: raycast_clip(jax.random.fold_in(key, i), cfg), numbers)
    ones = jnp.ones((batch_size, cfg.frames), bool)
    return {
        "frames": jnp.round(record["video"] * 255).astype(jnp.uint8),
        "masks": record["mask"],
        "valid": ones,
        "has_mask": ones,
        "flow": record["flow_fw"],
        "flow_valid": ones.at[:, -1].set(False),
        "depth": record["depth"],
        "camera": record["camera"],
        "camera_valid": ones.at[:, -1].set(False),
        "intrinsics": record["intrinsics"],
        "example_id": numbers.astype(jnp.int32),
    }

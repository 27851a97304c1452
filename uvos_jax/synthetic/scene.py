"""Drawing a scene: which layers there are, how they look, how they and the camera move."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from uvos_jax.synthetic import shapes, textures
from uvos_jax.synthetic.config import SceneConfig

#: Kinds of layers, stored with each.
BACKGROUND, DISTRACTOR, OBJECT, LIMB, OCCLUDER = range(5)
#: (exponent, divisor) of the heavy-tailed sampler of the FlyingChairs generator.
_TAILS = {1: 3.0, 2: 6.0, 3: 10.0, 4: 15.0}


def heavy_tailed(key: jax.Array, shape: tuple[int, ...], bound: Any, power: int = 3) -> jax.Array:
    """Zero-mean values in [-bound, bound]: most small, few large; out-of-range draws are 0."""
    n = jax.random.normal(key, shape)
    v = jnp.sign(n) * jnp.abs(n) ** power * bound / _TAILS[power]
    return jnp.where(jnp.abs(v) <= bound, v, 0.0)


def _uniform(key: jax.Array, low: Any, high: Any, shape: tuple[int, ...] = ()) -> jax.Array:
    return jax.random.uniform(key, shape, minval=low, maxval=high)


def _chance(key: jax.Array, p: Any) -> jax.Array:
    return jax.random.bernoulli(key, p).astype(jnp.float32)


def _still() -> dict[str, jax.Array]:
    """A trajectory that stays at the origin."""
    zero, zeros = jnp.zeros(()), jnp.zeros(2)
    return {
        "center": zeros,
        "velocity": zeros,
        "acceleration": zeros,
        "sway_amplitude": zeros,
        "sway_frequency": jnp.ones(()),
        "sway_phase": zeros,
        "swing_amplitude": zero,
        "swing_phase": zero,
        "angle": zero,
        "spin": zero,
        "growth": zero,
        "gate": zero,
        "gate_frequency": jnp.ones(()),
        "gate_phase": zero,
    }


def _moving_trajectory(key: jax.Array, cfg: SceneConfig, diagonal: float) -> dict[str, jax.Array]:
    """The trajectory of a moving object; `center` is filled in by the caller."""
    k = jax.random.split(key, 16)
    speed = jnp.abs(heavy_tailed(k[0], (), cfg.object_speed))
    speed = cfg.motion * diagonal * jnp.maximum(speed, cfg.object_speed_floor * 2)
    heading = _uniform(k[1], 0, 2 * jnp.pi)
    # Mostly sideways: things run along the ground more than they rise.
    direction = jnp.stack([jnp.cos(heading), 0.5 * jnp.sin(heading)])
    sway = _chance(k[2], 0.4) * jnp.abs(jax.random.normal(k[3], (2,))) * 0.01 * diagonal
    period = _uniform(k[4], 6.0, 30.0)
    spin = _chance(k[5], 0.7) * heavy_tailed(k[6], (), jnp.deg2rad(6.0), 2)
    growth = _chance(k[7], 0.5) * heavy_tailed(k[8], (), 0.04, 2)
    return {
        "center": jnp.zeros(2),
        "velocity": speed * direction,
        "acceleration": 0.05 * speed * jax.random.normal(k[9], (2,)),
        "sway_amplitude": cfg.motion * sway,
        "sway_frequency": 2 * jnp.pi / period,
        "sway_phase": _uniform(k[10], 0, 2 * jnp.pi, (2,)),
        "swing_amplitude": cfg.motion * _chance(k[11], 0.3) * _uniform(k[12], 0.05, 0.25),
        "swing_phase": _uniform(k[13], 0, 2 * jnp.pi),
        "angle": jnp.zeros(()),
        "spin": cfg.motion * spin,
        "growth": cfg.motion * growth,
        "gate": _chance(k[14], cfg.stop_and_go),
        "gate_frequency": 2 * jnp.pi / _uniform(k[15], 8.0, 24.0),
        "gate_phase": _uniform(k[1], 0, 2 * jnp.pi),
    }


def _shears(key: jax.Array, size: jax.Array, active: jax.Array) -> dict[str, jax.Array]:
    """Two pairs of shears with amplitude 1-5 % of the object's size."""
    k = jax.random.split(key, 4)
    return {
        "shear_amplitude": active * size * _uniform(k[0], 0.01, 0.05, (2, 2)),
        "shear_frequency": 2 * jnp.pi / (size * _uniform(k[1], 0.6, 2.0, (2, 2))),
        "shear_phase": _uniform(k[2], 0, 2 * jnp.pi, (2, 2)),
        "shear_rate": _uniform(k[3], -0.6, 0.6, (2, 2)),
    }


def _shape(key: jax.Array, cfg: SceneConfig, radius: jax.Array, thin: jax.Array) -> dict:
    k = jax.random.split(key, 7)
    P = cfg.parts
    angle = _uniform(k[0], 0, 2 * jnp.pi, (P,))
    reach = _uniform(k[1], 0.6, 1.0, (P, 1))
    offset = reach * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)
    size = _uniform(k[2], 0.25, 0.65, (P,))
    present = jax.random.bernoulli(k[3], 0.45, (P,))
    sign = jnp.where(jax.random.bernoulli(k[4], 0.85, (P,)), 1.0, -1.0) * present
    ratio = jnp.where(thin > 0, _uniform(k[5], 0.18, 0.35), jnp.exp(_uniform(k[5], -0.4, 0.4)))
    return {
        "table": jax.vmap(shapes.sample_radius_table)(jax.random.split(k[6], P)),
        "offset": offset.at[0].set(0.0),
        "size": size.at[0].set(1.0),
        "sign": sign.at[0].set(1.0),
        "radius": radius,
        "stretch": jnp.stack([1 / jnp.sqrt(ratio), jnp.sqrt(ratio)]),
    }


def _palette(key: jax.Array) -> dict[str, jax.Array]:
    """A base colour and two directions of variation, mostly muted as in nature."""
    k = jax.random.split(key, 6)
    hue = _uniform(k[0], 0, 1)
    saturation = _uniform(k[1], 0.0, 0.75) ** 1.3
    value = _uniform(k[2], 0.15, 0.9)
    light = 0.16 * jnp.exp(0.5 * jax.random.normal(k[3])) * jnp.ones(3)
    tint = 0.05 * jax.random.normal(k[4], (3,))
    return {
        "base": textures.hsv_to_rgb(hue, saturation, value),
        "direction": jnp.stack([light + tint, 0.06 * jax.random.normal(k[5], (3,))]),
    }


def _texture(
    key: jax.Array, cfg: SceneConfig, extent: jax.Array, palette: dict, tile_key: jax.Array
) -> dict:
    """Surface of a layer whose half-size is about `extent` pixels."""
    k = jax.random.split(key, 14)
    rough, cut = jax.random.split(tile_key)
    beta = _uniform(rough, 0.8, 1.8)
    angle = _uniform(k[0], 0, 2 * jnp.pi)
    zoom = jnp.exp(_uniform(k[1], jnp.log(0.5), jnp.log(2.0))) * cfg.tile / (3.0 * extent)
    zoom = jnp.clip(zoom, 0.15, 2.0)
    c, s = jnp.cos(angle), jnp.sin(angle)
    regions = _chance(k[2], 0.55) * jnp.abs(jax.random.normal(k[3])) * 0.14
    color = jax.random.normal(k[4], (cfg.cells, 1)) + 0.5 * jax.random.normal(k[5], (cfg.cells, 3))
    wave_angle = _uniform(k[6], 0, 2 * jnp.pi)
    wavelength = extent * jnp.exp(_uniform(k[7], jnp.log(0.1), jnp.log(0.7)))
    wave = 2 * jnp.pi / wavelength * jnp.stack([jnp.cos(wave_angle), jnp.sin(wave_angle)])
    striped = _chance(k[8], 0.2) * 0.15
    slope = jax.random.normal(k[9], (2, 1)) * _uniform(k[10], 0.0, 0.18) / extent
    return {
        "tile": textures.noise_tile(tile_key, cfg.tile, beta, _uniform(cut, 0.25, 1.0)),
        "tile_matrix": zoom * jnp.stack([jnp.stack([c, s]), jnp.stack([-s, c])]),
        "base": palette["base"],
        "direction": palette["direction"],
        "cell_center": extent * _uniform(k[11], -1.15, 1.15, (cfg.cells, 2)),
        "cell_color": regions * color,
        "cell_warp": 0.12 * extent * _chance(k[12], 0.7),
        "wave": wave,
        "wave_color": striped * jax.random.normal(k[13], (1,)) * jnp.ones(3),
        "wave_sharpness": jnp.exp(_uniform(k[8], 0.0, 2.5)),
        "gradient": slope * jnp.ones((2, 3)),
    }


def _near_palette(key: jax.Array, background: dict, cfg: SceneConfig, policy: jax.Array) -> dict:
    """An object's colours: 0 contrasting, 1 neutral, 2 those of the background."""
    k = jax.random.split(key, 3)
    own = _palette(k[0])
    base, back = own["base"], background["base"]
    # Contrasting colours are pushed away from the background's brightness.
    gap = jnp.mean(base) - jnp.mean(back)
    push = jnp.where(gap >= 0, 1.0, -1.0) * jnp.maximum(0.28 - jnp.abs(gap), 0.0)
    contrasting = jnp.clip(base + push, 0.02, 0.98)
    return {
        "base": jnp.select([policy == 0, policy == 1], [contrasting, base], back),
        "direction": jnp.where(policy == 2, background["direction"], own["direction"]),
    }


def _layer(
    key: jax.Array, cfg: SceneConfig, kind: int, palette: dict, tile_key: jax.Array, size: Any
) -> dict[str, Any]:
    """One layer at rest; trajectory, depth and activity are set by the caller."""
    H, W = cfg.size
    k = jax.random.split(key, 8)
    thin = _chance(k[0], cfg.thin) if kind != OBJECT else _chance(k[0], 0.5 * cfg.thin)
    deforms = _chance(k[1], cfg.deformation) if kind in (OBJECT, LIMB) else jnp.zeros(())
    extent = jnp.asarray(0.75 * max(H, W) if kind == BACKGROUND else size, jnp.float32)
    return {
        **_still(),
        **_shears(k[2], 2 * extent, deforms * cfg.motion),
        "parent": _still(),
        "shape": _shape(k[3], cfg, extent, thin),
        "texture": _texture(k[4], cfg, extent, palette, tile_key),
        "z": jnp.ones(()),
        "kind": jnp.asarray(kind),
        "id": jnp.zeros((), jnp.int32),
        "active": jnp.ones(()),
        "everywhere": jnp.asarray(1.0 if kind == BACKGROUND else 0.0),
        "softness": _uniform(k[5], 0.7, 1.8),
        "relief": _uniform(k[6], 0.0, 0.45) * (0.0 if kind == BACKGROUND else 1.0),
        "shadow": jnp.zeros(()),
    }


def _camera(key: jax.Array, cfg: SceneConfig, diagonal: float, target: dict, z: jax.Array) -> dict:
    k = jax.random.split(key, 12)
    static = _chance(k[0], cfg.static_camera)
    follow = _chance(k[1], cfg.follow_camera) * (1 - static)
    moves = (1 - static) * (1 - follow)
    pan = heavy_tailed(k[2], (2,), cfg.camera_speed, 4) * jnp.asarray([1.0, 0.5])
    pan = pan + 0.004 * jax.random.normal(k[3], (2,))
    zooms, rolls, shakes = (
        _chance(k[4], 0.25), _chance(k[5], 0.2), _chance(k[6], cfg.shake) * (1 - static)
    )  # fmt: skip
    steps = cfg.frames * 3 + 4
    sigma = shakes * _uniform(k[7], 0.001, 0.005) * diagonal * cfg.motion

    def autoregress(previous, noise):
        new = 0.7 * previous + noise
        return new, new

    _, shake = jax.lax.scan(autoregress, jnp.zeros(2), sigma * jax.random.normal(k[8], (steps, 2)))
    # A pan of p moves a layer at depth z by p / z: scaled so that speeds hold for depth 5.
    depth = 5.0
    return {
        "pan": moves * depth * diagonal * cfg.motion * pan,
        "wave_amplitude": moves
        * depth
        * diagonal
        * cfg.motion
        * 0.01
        * jax.random.normal(k[9], (2, 2)),
        "wave_frequency": 2 * jnp.pi / _uniform(k[10], 12.0, 50.0, (2, 1)),
        "wave_phase": _uniform(k[10], 0, 2 * jnp.pi, (2, 2)),
        "shake": depth * shake,
        "shake_start": jnp.asarray(-0.5 * steps),
        "zoom": moves * zooms * depth * cfg.motion * heavy_tailed(k[11], (), 0.02, 2),
        "roll": moves * rolls * cfg.motion * heavy_tailed(k[7], (), jnp.deg2rad(1.0), 2),
        "target": target,
        "follow": follow * z,
    }


def _photometric(key: jax.Array) -> dict[str, jax.Array]:
    k = jax.random.split(key, 16)
    return {
        "shutter": _chance(k[0], 0.5) * _uniform(k[1], 0.0, 0.7),
        "fog": _chance(k[2], 0.15) * _uniform(k[3], 0.02, 0.2),
        "fog_color": _uniform(k[4], 0.5, 0.9) * jnp.ones(3),
        "noise": _chance(k[5], 0.5) * _uniform(k[6], 0.0, 0.03),
        "drift": _chance(k[7], 0.4) * 0.05 * _uniform(k[8], -1, 1, (3,)),
        "gamma": _uniform(k[9], 0.8, 1.25),
        "low_resolution": _chance(k[10], 0.3),
        "light_direction": _uniform(k[11], 0, 2 * jnp.pi),
        "light_wave": jax.random.normal(k[12], (3, 2)),
        "light_phase": _uniform(k[13], 0, 2 * jnp.pi, (3,)),
        "light_strength": _uniform(k[14], 0.0, 0.18),
        "noise_key": jax.random.key_data(k[15]),
    }


def sample_scene(key: jax.Array, cfg: SceneConfig) -> dict[str, Any]:
    """Draws a scene; jittable, fixed shapes, inactive layers flagged `active = 0`.

    Returns a pytree: `layers` (stacked, far to near), `camera`, `photometric`, `primary` (the id
    of the most salient moving object), `is_moving [ids]`. Ids: objects 1..objects, static
    distractors and occluders after them.
    """
    H, W = cfg.size
    diagonal = float((H * H + W * W) ** 0.5)
    keys = iter(jax.random.split(key, 24 + 8 * cfg.layers))
    policy = jax.random.choice(
        next(keys),
        3,
        p=jnp.asarray([cfg.contrast, max(1 - cfg.contrast - cfg.camouflage, 0.0), cfg.camouflage]),
    )
    background_palette, background_tile = _palette(next(keys)), next(keys)
    background = _layer(next(keys), cfg, BACKGROUND, background_palette, background_tile, 1.0)
    background["z"] = _uniform(next(keys), 4.0, 8.0)
    layers = [background]

    distractor_count = jnp.minimum(jax.random.poisson(next(keys), 3.0), cfg.distractors)
    for i in range(cfg.distractors):
        radius = diagonal * jnp.exp(_uniform(next(keys), jnp.log(0.02), jnp.log(0.16)))
        palette = _near_palette(next(keys), background_palette, cfg, policy * (i % 2))
        layer = _layer(next(keys), cfg, DISTRACTOR, palette, next(keys), radius)
        layer["center"] = _uniform(next(keys), -0.6, 0.6, (2,)) * jnp.asarray([W, H])
        layer["angle"] = _uniform(next(keys), 0, 2 * jnp.pi)
        layer["z"] = _uniform(next(keys), 2.0, 6.0)
        layer["z"] = jnp.minimum(layer["z"], 0.95 * background["z"])
        layer["active"] = (i < distractor_count).astype(jnp.float32)
        layer["id"] = jnp.asarray(cfg.objects + 1 + i, jnp.int32)
        layers.append(layer)

    object_count = 1 + jax.random.choice(
        next(keys), len(cfg.object_counts), p=jnp.asarray(cfg.object_counts)
    )
    objects, scores = [], []
    for i in range(cfg.objects):
        area = jnp.exp(_uniform(next(keys), jnp.log(cfg.area[0]), jnp.log(cfg.area[1])))
        radius = jnp.sqrt(area * H * W / jnp.pi)
        palette = _near_palette(next(keys), background_palette, cfg, policy)
        tile_key = jax.random.wrap_key_data(
            jnp.where(
                policy == 2,
                jax.random.key_data(background_tile),
                jax.random.key_data(next(keys)),
            )
        )
        layer = _layer(next(keys), cfg, OBJECT, palette, tile_key, radius)
        # Camouflage means the same surface, not only the same colours.
        for name in ("tile_matrix", "cell_warp", "gradient"):
            layer["texture"][name] = jnp.where(
                policy == 2, background["texture"][name], layer["texture"][name]
            )
        layer["relief"] = jnp.where(policy == 2, 0.3 * layer["relief"], layer["relief"])
        spread = jnp.where(_chance(next(keys), cfg.leaves_frame) > 0, 0.5, 0.3)
        center = spread * _uniform(next(keys), -1.0, 1.0, (2,)) * jnp.asarray([W, H])
        layer = {**layer, **_moving_trajectory(next(keys), cfg, diagonal)}
        layer["center"] = center
        layer["angle"] = _uniform(next(keys), 0, 2 * jnp.pi)
        layer["z"] = _uniform(next(keys), 1.0, 4.0) + 1e-3 * i
        layer["z"] = jnp.minimum(layer["z"], 0.9 * background["z"])
        layer["active"] = (i < object_count).astype(jnp.float32)
        layer["id"] = jnp.asarray(i + 1, jnp.int32)
        layer["shadow"] = _chance(next(keys), 0.5)
        objects.append(layer)
        offset = jnp.sqrt(jnp.sum((center / jnp.asarray([W, H])) ** 2))
        contrast = jnp.mean(jnp.abs(palette["base"] - background_palette["base"]))
        score = jnp.sqrt(area) * (1.2 - offset) * (0.3 + contrast) * layer["active"]
        scores.append(score)
    layers.extend(objects)
    scores = jnp.stack(scores)

    for i in range(cfg.limbs):
        body = objects[i % cfg.objects] if cfg.objects > 1 else objects[0]
        body = objects[0] if i % 2 == 0 else body
        k = next(keys)
        size = body["shape"]["radius"] * _uniform(next(keys), 0.35, 0.7)
        palette = {"base": body["texture"]["base"], "direction": body["texture"]["direction"]}
        limb = _layer(k, cfg, LIMB, palette, next(keys), size)
        side = _uniform(next(keys), 0, 2 * jnp.pi)
        out = jnp.stack([jnp.cos(side), jnp.sin(side)])
        limb["center"] = 0.95 * body["shape"]["radius"] * out
        limb["angle"] = side
        limb["shape"]["stretch"] = jnp.asarray([1.5, 0.45])
        limb["swing_amplitude"] = cfg.motion * _uniform(next(keys), 0.17, 0.6)
        limb["swing_phase"] = _uniform(next(keys), 0, 2 * jnp.pi)
        limb["sway_frequency"] = 2 * jnp.pi / _uniform(next(keys), 5.0, 16.0)
        limb["parent"] = {name: body[name] for name in _still()}
        # Limbs come in front of or behind their body, never apart from it.
        limb["z"] = body["z"] + 1e-4 * (1 if i % 2 else -1)
        limb["active"] = body["active"] * _chance(next(keys), cfg.articulation + 0.2)
        limb["id"] = body["id"]
        layers.append(limb)

    for i in range(cfg.occluders):
        radius = diagonal * _uniform(next(keys), 0.25, 0.5)
        layer = _layer(next(keys), cfg, OCCLUDER, _palette(next(keys)), next(keys), radius)
        layer["shape"]["stretch"] = jnp.stack([_uniform(next(keys), 0.06, 0.22), jnp.asarray(1.8)])
        near_object = objects[0]["center"][0] + 0.25 * W * _uniform(next(keys), -1.0, 1.0)
        layer["center"] = jnp.stack([near_object, 0.2 * H * _uniform(next(keys), -1.0, 1.0)])
        layer["z"] = _uniform(next(keys), 0.8, 1.0)
        layer["active"] = _chance(next(keys), cfg.occlusion)
        layer["id"] = jnp.asarray(cfg.objects + cfg.distractors + 1 + i, jnp.int32)
        layers.append(layer)

    target = {name: objects[0][name] for name in _still()}
    camera = _camera(next(keys), cfg, diagonal, target, objects[0]["z"])
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *layers)
    order = jnp.argsort(-jnp.where(stacked["everywhere"] > 0, jnp.inf, stacked["z"]))
    stacked = jax.tree.map(lambda x: x[order], stacked)
    ids = 1 + cfg.objects + cfg.distractors + cfg.occluders
    moving = (
        jnp.zeros(ids)
        .at[1 : cfg.objects + 1]
        .set(jnp.stack([o["active"] * _moves(o, cfg, diagonal) for o in objects]))
    )
    return {
        "layers": stacked,
        "camera": camera,
        "photometric": _photometric(next(keys)),
        "primary": 1 + jnp.argmax(scores * moving[1 : cfg.objects + 1] + 1e-6 * scores),
        "is_moving": moving,
    }


def _moves(layer: dict, cfg: SceneConfig, diagonal: float) -> jax.Array:
    """Whether an object moves against the world by more than the threshold within the clip."""
    reach = jnp.sqrt(jnp.sum(layer["velocity"] ** 2)) + jnp.max(
        layer["sway_amplitude"] * layer["sway_frequency"]
    )
    turn = (jnp.abs(layer["spin"]) + jnp.abs(layer["growth"])) * layer["shape"]["radius"]
    bend = jnp.max(jnp.abs(layer["shear_amplitude"] * layer["shear_rate"]))
    fastest = jnp.maximum(reach, jnp.maximum(turn, bend))
    return (fastest > cfg.moving_threshold * diagonal).astype(jnp.float32)

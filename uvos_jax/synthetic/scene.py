"""Drawing a scene: which layers there are, how they look, how they and the camera move."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from uvos_jax.synthetic import shapes, textures
from uvos_jax.synthetic.config import SceneConfig

#: Kinds of layers.
BACKGROUND, DISTRACTOR, OBJECT, LIMB, OCCLUDER = range(5)
#: (exponent, divisor) of the heavy-tailed sampler of the FlyingChairs generator.
_TAILS = {1: 3.0, 2: 6.0, 3: 10.0, 4: 15.0}


class Draws:
    """Random numbers handed out from one block: hundreds of small draws, one compiled generator.

    The order of the calls decides which number goes where, so it is part of what a key means.
    """

    def __init__(self, key: jax.Array, count: int):
        self._block = jax.random.uniform(key, (count,), minval=1e-6, maxval=1 - 1e-6)
        self._used = 0

    def uniform(self, low: Any = 0.0, high: Any = 1.0, shape: tuple[int, ...] = ()) -> jax.Array:
        """Uniform in [low, high)."""
        size = math.prod(shape)
        end = self._used + size
        assert end <= self._block.shape[0], "scene sampler: block of random numbers is too small"
        u = self._block[self._used : end].reshape(shape)
        self._used = end
        return low + (high - low) * u

    def normal(self, shape: tuple[int, ...] = ()) -> jax.Array:
        """Standard normal."""
        return jax.scipy.special.ndtri(self.uniform(shape=shape))

    def log_uniform(self, low: float, high: float) -> jax.Array:
        """Uniform in the logarithm."""
        return jnp.exp(self.uniform(math.log(low), math.log(high)))

    def chance(self, p: Any, shape: tuple[int, ...] = ()) -> jax.Array:
        """1.0 with probability p, else 0.0."""
        return (self.uniform(shape=shape) < p).astype(jnp.float32)

    def choice(self, probabilities: Any) -> jax.Array:
        """Index drawn with the given probabilities."""
        edges = jnp.cumsum(jnp.asarray(probabilities, jnp.float32))
        return jnp.sum(self.uniform() * edges[-1] >= edges).astype(jnp.int32)

    def heavy_tailed(self, bound: Any, power: int = 3, shape: tuple[int, ...] = ()) -> jax.Array:
        """Zero-mean values in [-bound, bound]: most small, few large; others become 0."""
        n = self.normal(shape)
        v = jnp.sign(n) * jnp.abs(n) ** power * bound / _TAILS[power]
        return jnp.where(jnp.abs(v) <= bound, v, 0.0)


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


def _moving_trajectory(d: Draws, cfg: SceneConfig, diagonal: float) -> dict[str, jax.Array]:
    """The trajectory of a moving object; `center` and `angle` are filled in by the caller."""
    speed = jnp.maximum(jnp.abs(d.heavy_tailed(cfg.object_speed)), 2 * cfg.object_speed_floor)
    speed = cfg.motion * diagonal * speed
    heading = d.uniform(0, 2 * jnp.pi)
    # Mostly sideways: things run along the ground more than they rise.
    direction = jnp.stack([jnp.cos(heading), 0.5 * jnp.sin(heading)])
    return {
        **_still(),
        "velocity": speed * direction,
        "acceleration": 0.05 * speed * d.normal((2,)),
        "sway_amplitude": cfg.motion * d.chance(0.4) * jnp.abs(d.normal((2,))) * 0.01 * diagonal,
        "sway_frequency": 2 * jnp.pi / d.uniform(6.0, 30.0),
        "sway_phase": d.uniform(0, 2 * jnp.pi, (2,)),
        "swing_amplitude": cfg.motion * d.chance(0.3) * d.uniform(0.05, 0.25),
        "swing_phase": d.uniform(0, 2 * jnp.pi),
        "spin": cfg.motion * d.chance(0.7) * d.heavy_tailed(math.radians(6.0), 2),
        "growth": cfg.motion * d.chance(0.5) * d.heavy_tailed(0.04, 2),
        "gate": d.chance(cfg.stop_and_go),
        "gate_frequency": 2 * jnp.pi / d.uniform(8.0, 24.0),
        "gate_phase": d.uniform(0, 2 * jnp.pi),
    }


def _shears(d: Draws, size: jax.Array, active: Any) -> dict[str, jax.Array]:
    """Two pairs of shears with amplitude 1-5 % of the object's size."""
    return {
        "shear_amplitude": active * size * d.uniform(0.01, 0.05, (2, 2)),
        "shear_frequency": 2 * jnp.pi / (size * d.uniform(0.6, 2.0, (2, 2))),
        "shear_phase": d.uniform(0, 2 * jnp.pi, (2, 2)),
        "shear_rate": d.uniform(-0.6, 0.6, (2, 2)),
    }


def _radius_tables(d: Draws, parts: int) -> jax.Array:
    """Radii over angle `[parts,ANGLES]` with mean about 1: Fourier, super-ellipse or polygon."""
    theta = 2 * jnp.pi * jnp.arange(shapes.ANGLES) / shapes.ANGLES
    k = jnp.arange(1, 7)
    amplitude = 0.17 * d.normal((parts, 6)) / k**0.8
    phase = d.uniform(0, 2 * jnp.pi, (parts, 6))
    fourier = 1 + jnp.sum(
        amplitude[:, None] * jnp.cos(k * theta[:, None] + phase[:, None]), axis=-1
    )
    exponent = jnp.exp(d.uniform(math.log(1.2), math.log(6.0), (parts, 1)))
    ratio = jnp.exp(d.uniform(-0.5, 0.5, (parts, 1)))
    c, s = jnp.abs(jnp.cos(theta)) / ratio, jnp.abs(jnp.sin(theta)) * ratio
    ellipse = ((c + 1e-6) ** exponent + (s + 1e-6) ** exponent) ** (-1 / exponent)
    corners = jnp.floor(d.uniform(3.0, 9.0, (parts, 1)))
    wobble = jnp.exp(0.35 * d.normal((parts, 9)))
    position = theta / (2 * jnp.pi) * corners
    low = jnp.floor(position)
    fraction = position - low
    start = jnp.take_along_axis(wobble, low.astype(jnp.int32), axis=1)
    end = jnp.take_along_axis(wobble, ((low + 1) % corners).astype(jnp.int32), axis=1)
    # Straight edges between two vertices, in polar form.
    step = 2 * jnp.pi / corners
    along = start * jnp.sin(fraction * step) + end * jnp.sin((1 - fraction) * step)
    edge = start * end * jnp.sin(step) / jnp.maximum(along, 1e-3)
    kind = d.uniform(shape=(parts, 1))
    table = jnp.where(kind < 0.6, fourier, jnp.where(kind < 0.8, ellipse, edge))
    return jnp.clip(table, 0.3, 2.2)


def _shape(d: Draws, cfg: SceneConfig, radius: jax.Array, thin: jax.Array) -> dict:
    P = cfg.parts
    angle = d.uniform(0, 2 * jnp.pi, (P,))
    offset = d.uniform(0.6, 1.0, (P, 1)) * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)
    size = d.uniform(0.25, 0.65, (P,))
    sign = d.chance(0.45, (P,)) * (2 * d.chance(0.85, (P,)) - 1)
    ratio = jnp.where(thin > 0, d.uniform(0.18, 0.35), jnp.exp(d.uniform(-0.4, 0.4)))
    return {
        "table": _radius_tables(d, P),
        "offset": offset.at[0].set(0.0),
        "size": size.at[0].set(1.0),
        "sign": sign.at[0].set(1.0),
        "radius": radius,
        "stretch": jnp.stack([1 / jnp.sqrt(ratio), jnp.sqrt(ratio)]),
    }


def _palette(d: Draws) -> dict[str, jax.Array]:
    """A base colour and two directions of variation, mostly muted as in nature."""
    base = textures.hsv_to_rgb(d.uniform(), d.uniform(0.0, 0.75) ** 1.3, d.uniform(0.15, 0.9))
    light = 0.16 * jnp.exp(0.5 * d.normal()) * jnp.ones(3)
    return {
        "base": base,
        "direction": jnp.stack([light + 0.05 * d.normal((3,)), 0.06 * d.normal((3,))]),
    }


def _texture(d: Draws, cfg: SceneConfig, extent: jax.Array, palette: dict, tile: jax.Array) -> dict:
    """Surface of a layer whose half-size is about `extent` pixels."""
    angle = d.uniform(0, 2 * jnp.pi)
    zoom = jnp.clip(d.log_uniform(0.5, 2.0) * cfg.tile / (3.0 * extent), 0.15, 2.0)
    c, s = jnp.cos(angle), jnp.sin(angle)
    regions = d.chance(0.55) * jnp.abs(d.normal()) * 0.14
    color = d.normal((cfg.cells, 1)) + 0.5 * d.normal((cfg.cells, 3))
    wave_angle = d.uniform(0, 2 * jnp.pi)
    wavelength = extent * d.log_uniform(0.1, 0.7)
    return {
        "tile": tile,
        "tile_matrix": zoom * jnp.stack([jnp.stack([c, s]), jnp.stack([-s, c])]),
        "base": palette["base"],
        "direction": palette["direction"],
        "cell_center": extent * d.uniform(-1.15, 1.15, (cfg.cells, 2)),
        "cell_color": regions * color,
        "cell_warp": 0.12 * extent * d.chance(0.7),
        "wave": 2 * jnp.pi / wavelength * jnp.stack([jnp.cos(wave_angle), jnp.sin(wave_angle)]),
        "wave_color": d.chance(0.2) * 0.15 * d.normal((1,)) * jnp.ones(3),
        "wave_sharpness": jnp.exp(d.uniform(0.0, 2.5)),
        "gradient": d.normal((2, 1)) * d.uniform(0.0, 0.18) / extent * jnp.ones((2, 3)),
    }


def _near_palette(d: Draws, background: dict, policy: jax.Array) -> dict:
    """An object's colours: policy 0 contrasts, 1 is neutral, 2 takes those of the background."""
    own = _palette(d)
    base, back = own["base"], background["base"]
    # Contrasting colours are pushed away from the background's brightness.
    gap = jnp.mean(base) - jnp.mean(back)
    push = jnp.where(gap >= 0, 1.0, -1.0) * jnp.maximum(0.28 - jnp.abs(gap), 0.0)
    contrasting = jnp.clip(base + push, 0.02, 0.98)
    return {
        "base": jnp.where(policy == 0, contrasting, jnp.where(policy == 1, base, back)),
        "direction": jnp.where(policy == 2, background["direction"], own["direction"]),
    }


def _layer(
    d: Draws, cfg: SceneConfig, kind: int, palette: dict, tile: jax.Array, extent: Any
) -> dict[str, Any]:
    """One layer at rest; trajectory, depth and activity are set by the caller."""
    extent = jnp.asarray(extent, jnp.float32)
    thin = d.chance(cfg.thin * (0.5 if kind == OBJECT else 1.0))
    deforms = d.chance(cfg.deformation) * (1.0 if kind in (OBJECT, LIMB) else 0.0)
    return {
        **_still(),
        **_shears(d, 2 * extent, deforms * cfg.motion),
        "parent": _still(),
        "shape": _shape(d, cfg, extent, thin),
        "texture": _texture(d, cfg, extent, palette, tile),
        "z": jnp.ones(()),
        "tilt": jnp.zeros(()),
        "id": jnp.zeros((), jnp.int32),
        "active": jnp.ones(()),
        "everywhere": jnp.asarray(1.0 if kind == BACKGROUND else 0.0),
        "softness": d.uniform(0.7, 1.8),
        "opacity": jnp.ones(()),
        "relief": d.uniform(0.0, 0.45) * (0.0 if kind == BACKGROUND else 1.0),
        "shadow": jnp.zeros(()),
    }


def _camera(
    d: Draws, key: jax.Array, cfg: SceneConfig, diagonal: float, target: dict, z: jax.Array
) -> dict:
    static = d.chance(cfg.static_camera)
    follow = d.chance(cfg.follow_camera) * (1 - static)
    moves = (1 - static) * (1 - follow)
    pan = d.heavy_tailed(cfg.camera_speed, 4, (2,)) * jnp.asarray([1.0, 0.5])
    pan = pan + 0.004 * d.normal((2,))
    steps = cfg.frames * 3 + 4
    shakes = d.chance(cfg.shake) * (1 - static)
    sigma = shakes * d.uniform(0.001, 0.005) * diagonal * cfg.motion
    # First-order autoregression as one product with its impulse response.
    lag = jnp.arange(steps)[:, None] - jnp.arange(steps)[None, :]
    response = jnp.where(lag >= 0, 0.7 ** jnp.maximum(lag, 0), 0.0)
    shake = sigma * response @ jax.random.normal(key, (steps, 2))
    # A pan of p moves a layer at depth z by p / z: scaled so that speeds hold for depth 5.
    reach = 5.0 * diagonal * cfg.motion
    return {
        "pan": moves * reach * pan,
        "wave_amplitude": moves * reach * 0.01 * d.normal((2, 2)),
        "wave_frequency": 2 * jnp.pi / d.uniform(12.0, 50.0, (2, 1)),
        "wave_phase": d.uniform(0, 2 * jnp.pi, (2, 2)),
        "shake": 5.0 * shake,
        "shake_start": jnp.asarray(-0.5 * steps),
        "zoom": moves * d.chance(0.25) * 5.0 * cfg.motion * d.heavy_tailed(0.02, 2),
        "roll": moves * d.chance(0.2) * cfg.motion * d.heavy_tailed(math.radians(1.0), 2),
        "target": target,
        "follow": follow * z,
    }


def _photometric(d: Draws, key: jax.Array) -> dict[str, jax.Array]:
    return {
        "shutter": d.chance(0.5) * d.uniform(0.0, 0.7),
        "fog": d.chance(0.15) * d.uniform(0.02, 0.2),
        "fog_color": d.uniform(0.5, 0.9) * jnp.ones(3),
        "noise": d.chance(0.5) * d.uniform(0.0, 0.03),
        "drift": d.chance(0.4) * 0.05 * d.uniform(-1, 1, (3,)),
        "gamma": d.uniform(0.8, 1.25),
        "low_resolution": d.chance(0.3),
        "light_direction": d.uniform(0, 2 * jnp.pi),
        "light_wave": d.normal((3, 2)),
        "light_phase": d.uniform(0, 2 * jnp.pi, (3,)),
        "light_strength": d.uniform(0.0, 0.18),
        "noise_key": jax.random.key_data(key),
    }


def _reflection(body: dict[str, Any], key: jax.Array, cfg: SceneConfig) -> dict[str, Any]:
    """`body` mirrored at a level line near its lower end, behind it, paler and rippling."""
    d = Draws(key, 40)
    radius, flip = body["shape"]["radius"], jnp.asarray([1.0, -1.0])
    shape, texture = dict(body["shape"]), dict(body["texture"])
    shape["table"] = jnp.roll(shape["table"][:, ::-1], 1, axis=1)
    shape["offset"] = shape["offset"] * flip
    texture["tile_matrix"] = texture["tile_matrix"] * flip[:, None]
    texture["cell_center"] = texture["cell_center"] * flip
    texture["wave"] = texture["wave"] * flip
    texture["gradient"] = texture["gradient"] * flip[:, None]
    level = body["center"][1] + radius * d.uniform(0.4, 0.9)
    layer = {**body, **_shears(d, 2 * radius, d.uniform(0.5, 3.0) * cfg.motion)}
    for name in ("velocity", "acceleration", "sway_amplitude"):
        layer[name] = body[name] * flip
    for name in ("angle", "spin", "swing_amplitude"):
        layer[name] = -body[name]
    return {
        **layer,
        "shape": shape,
        "texture": texture,
        "center": jnp.stack([body["center"][0], 2 * level - body["center"][1]]),
        "z": body["z"] + 2e-4,
        "active": d.chance(cfg.reflection),
        "id": jnp.zeros((), jnp.int32),
        "opacity": d.uniform(0.25, 0.85),
        "softness": d.uniform(1.0, 4.0),
        "shadow": jnp.zeros(()),
    }


def _spray(
    body: dict[str, Any], key: jax.Array, tile: jax.Array, cfg: SceneConfig, numbers: int
) -> dict[str, Any]:
    """Foam, dust or smoke beside and behind `body`: pale, soft, restless, slower than it."""
    d = Draws(key, numbers)
    radius = body["shape"]["radius"]
    pale = textures.hsv_to_rgb(d.uniform(), d.uniform(0.0, 0.25), d.uniform(0.6, 1.0))
    light = d.uniform(0.05, 0.2) * jnp.ones(3)
    colors = {"base": pale, "direction": jnp.stack([light, 0.3 * light])}
    layer = _layer(d, cfg, DISTRACTOR, colors, tile, radius * d.uniform(0.6, 1.3))
    layer.update(_shears(d, 2 * radius, d.uniform(1.0, 4.0) * cfg.motion))
    behind = -jnp.sign(body["velocity"][0]) * d.uniform(0.0, 1.3)
    layer["center"] = body["center"] + radius * jnp.stack([behind, d.uniform(0.3, 1.1)])
    layer["velocity"] = d.uniform(0.0, 1.0) * body["velocity"]
    layer["growth"] = cfg.motion * d.uniform(0.0, 0.05)
    layer["shape"]["stretch"] = jnp.stack([d.uniform(1.0, 2.2), d.uniform(0.3, 0.8)])
    layer["z"] = body["z"] + jnp.where(d.chance(0.6) > 0, 3e-4, -3e-4)
    layer["active"] = d.chance(cfg.spray)
    layer["softness"] = d.uniform(0.1, 0.5) * radius
    layer["opacity"] = d.uniform(0.4, 0.95)
    return layer


def _take(tree: Any, i: int) -> Any:
    return jax.tree.map(lambda x: x[i], tree)


def _scene_draws(key: jax.Array, cfg: SceneConfig) -> Draws:
    return Draws(key, 640 + 8 * cfg.cells)


def _tiles(d: Draws, key: jax.Array, cfg: SceneConfig) -> jax.Array:
    roughness = d.uniform(*cfg.roughness, (cfg.layers,))
    cutoff = d.uniform(*cfg.tile_contrast, (cfg.layers,))
    return textures.noise_tiles(key, cfg.layers, cfg.tile, roughness, cutoff)


def noise_of_scene(key: jax.Array, cfg: SceneConfig) -> jax.Array:
    """The noise `[layers,N,N,2]` from which `sample_scene` of this key gives its layers theirs."""
    keys = jax.random.split(key, 4)
    return _tiles(_scene_draws(keys[0], cfg), keys[2], cfg)


def sample_scene(key: jax.Array, cfg: SceneConfig) -> dict[str, Any]:
    """Draws a scene; jittable, fixed shapes, inactive layers flagged `active = 0`.

    Returns a pytree: `layers` (stacked, far to near), `camera`, `photometric`, `primary` (the id
    of the most salient moving object), `is_moving [ids]`. Ids: objects 1..objects, static
    distractors and occluders after them.
    """
    H, W = cfg.size
    canvas = jnp.asarray([W, H], jnp.float32)
    diagonal = float((H * H + W * W) ** 0.5)
    keys = jax.random.split(key, 4)
    d = _scene_draws(keys[0], cfg)
    layer_keys = jax.random.split(keys[1], cfg.layers)
    # One tile per layer, all at once.
    tiles = _tiles(d, keys[2], cfg)
    numbers = 220 + 40 * cfg.parts + 8 * cfg.cells  # draws of one layer
    policy = d.choice((cfg.contrast, max(1 - cfg.contrast - cfg.camouflage, 0.0), cfg.camouflage))
    palette = _palette(d)
    background = _layer(d, cfg, BACKGROUND, palette, tiles[0], 0.75 * max(H, W))
    background["z"] = d.uniform(4.0, 8.0)
    # Drawn apart, so that scenes without these are what they were before there were any.
    extra = Draws(jax.random.fold_in(keys[0], 1), 40)
    slope = extra.chance(cfg.ground) * extra.uniform(0.2, 1.0)
    background["tilt"] = slope / (background["z"] * 0.5 * H)
    background.update(
        _shears(extra, extra.uniform(0.05, 0.4) * diagonal, extra.chance(cfg.restless) * cfg.motion)
    )
    slack = extra.uniform(1 - cfg.follow_slack, 1 + cfg.follow_slack)
    groups, first = [jax.tree.map(lambda x: x[None], background)], 1

    def group(kind_of_layer, count: int):
        nonlocal first
        where = slice(first, first + count)
        layers = jax.vmap(kind_of_layer)(jnp.arange(count), layer_keys[where], tiles[where])
        first += count
        return layers

    distractor_count = jnp.sum(d.uniform() > jnp.asarray(_POISSON3)[: cfg.distractors])

    def distractor(i, layer_key, tile):
        d = Draws(layer_key, numbers)
        colors = _near_palette(d, palette, policy * (i % 2))
        size = diagonal * d.log_uniform(*cfg.distractor_size)
        layer = _layer(d, cfg, DISTRACTOR, colors, tile, size)
        layer["center"] = d.uniform(-0.6, 0.6, (2,)) * canvas
        layer["angle"] = d.uniform(0, 2 * jnp.pi)
        layer["z"] = jnp.minimum(d.uniform(*cfg.distractor_depth), 0.95 * background["z"])
        layer["active"] = (i < distractor_count).astype(jnp.float32)
        layer["id"] = (cfg.objects + 1 + i).astype(jnp.int32)
        return layer

    if cfg.distractors:
        groups.append(group(distractor, cfg.distractors))
    object_count = 1 + d.choice(cfg.object_counts)

    def moving_object(i, layer_key, tile):
        d = Draws(layer_key, numbers)
        area = d.log_uniform(*cfg.area)
        radius = jnp.sqrt(area * H * W / jnp.pi)
        colors = _near_palette(d, palette, policy)
        tile = jnp.where(policy == 2, tiles[0], tile)
        layer = _layer(d, cfg, OBJECT, colors, tile, radius)
        # Camouflage means the same surface, not only the same colours.
        for name in ("tile_matrix", "cell_warp", "gradient"):
            layer["texture"][name] = jnp.where(
                policy == 2, background["texture"][name], layer["texture"][name]
            )
        layer["relief"] = jnp.where(policy == 2, 0.3, 1.0) * layer["relief"]
        layer.update(_moving_trajectory(d, cfg, diagonal))
        spread = jnp.where(d.chance(cfg.leaves_frame) > 0, 0.5, 0.3)
        layer["center"] = spread * d.uniform(-1.0, 1.0, (2,)) * canvas
        layer["angle"] = d.uniform(0, 2 * jnp.pi)
        layer["z"] = jnp.minimum(d.uniform(1.0, 4.0) + 1e-3 * i, 0.9 * background["z"])
        layer["active"] = (i < object_count).astype(jnp.float32)
        layer["id"] = (i + 1).astype(jnp.int32)
        layer["shadow"] = d.chance(0.5)
        offset = jnp.sqrt(jnp.sum((layer["center"] / canvas) ** 2))
        contrast = jnp.mean(jnp.abs(colors["base"] - palette["base"]))
        score = jnp.sqrt(area) * (1.2 - offset) * (0.3 + contrast) * layer["active"]
        return layer, score

    objects, scores = group(moving_object, cfg.objects)
    groups.append(objects)

    def limb(i, layer_key, tile):
        d = Draws(layer_key, numbers)
        body = jax.tree.map(lambda x: x[jnp.where(i % 2 == 0, 0, i % cfg.objects)], objects)
        radius = body["shape"]["radius"]
        colors = {name: body["texture"][name] for name in ("base", "direction")}
        layer = _layer(d, cfg, LIMB, colors, tile, radius * d.uniform(0.35, 0.7))
        side = d.uniform(0, 2 * jnp.pi)
        layer["center"] = 0.95 * radius * jnp.stack([jnp.cos(side), jnp.sin(side)])
        layer["angle"] = side
        layer["shape"]["stretch"] = jnp.asarray([1.5, 0.45])
        layer["swing_amplitude"] = cfg.motion * d.uniform(0.17, 0.6)
        layer["swing_phase"] = d.uniform(0, 2 * jnp.pi)
        layer["sway_frequency"] = 2 * jnp.pi / d.uniform(5.0, 16.0)
        layer["parent"] = {name: body[name] for name in _still()}
        # Limbs come in front of or behind their body, never apart from it.
        layer["z"] = body["z"] + jnp.where(i % 2 == 0, -1e-4, 1e-4)
        layer["active"] = body["active"] * d.chance(min(cfg.articulation + 0.2, 1.0))
        layer["id"] = body["id"]
        return layer

    if cfg.limbs:
        groups.append(group(limb, cfg.limbs))

    first_object = _take(objects, 0)
    if cfg.reflection:
        groups.append(group(lambda i, k, tile: _reflection(first_object, k, cfg), 1))
    if cfg.spray:
        groups.append(group(lambda i, k, tile: _spray(first_object, k, tile, cfg, numbers), 1))

    def occluder(i, layer_key, tile):
        d = Draws(layer_key, numbers)
        layer = _layer(d, cfg, OCCLUDER, _palette(d), tile, diagonal * d.uniform(0.25, 0.5))
        layer["shape"]["stretch"] = jnp.stack([d.uniform(0.06, 0.22), jnp.asarray(1.8)])
        beside = objects["center"][0, 0] + 0.25 * W * d.uniform(-1.0, 1.0)
        layer["center"] = jnp.stack([beside, 0.2 * H * d.uniform(-1.0, 1.0)])
        layer["z"] = d.uniform(0.8, 1.0)
        layer["active"] = d.chance(cfg.occlusion)
        lies = d.chance(cfg.foreground)
        below = jnp.stack([0.2 * W * d.uniform(-1.0, 1.0), 0.5 * H * d.uniform(0.85, 1.1)])
        flat = jnp.stack([jnp.asarray(2.0), d.uniform(0.15, 0.4)])
        layer["center"] = jnp.where(lies > 0, below, layer["center"])
        layer["shape"]["stretch"] = jnp.where(lies > 0, flat, layer["shape"]["stretch"])
        layer["z"] = jnp.where(lies > 0, d.uniform(1.0, 3.0), layer["z"])
        layer["id"] = (cfg.objects + cfg.distractors + 1 + i).astype(jnp.int32)
        return layer

    if cfg.occluders:
        groups.append(group(occluder, cfg.occluders))

    target = {name: first_object[name] for name in _still()}
    camera_key, noise_key = jax.random.split(keys[3])
    camera = _camera(d, camera_key, cfg, diagonal, target, first_object["z"])
    camera["follow"] = slack * camera["follow"]
    stacked = jax.tree.map(lambda *x: jnp.concatenate(x), *groups)
    order = jnp.argsort(-jnp.where(stacked["everywhere"] > 0, jnp.inf, stacked["z"]))
    ids = 1 + cfg.objects + cfg.distractors + cfg.occluders
    moves = objects["active"] * jax.vmap(lambda o: _moves(o, cfg, diagonal))(objects)
    return {
        "layers": jax.tree.map(lambda x: x[order], stacked),
        "camera": camera,
        "photometric": _photometric(d, noise_key),
        "primary": 1 + jnp.argmax(scores * moves + 1e-6 * scores),
        "is_moving": jnp.zeros(ids).at[1 : cfg.objects + 1].set(moves),
    }


#: Cumulative Poisson(3): how many distractors a uniform number stands for.
_POISSON3 = (0.0498, 0.1991, 0.4232, 0.6472, 0.8153, 0.9161, 0.9665, 0.9881)


def _moves(layer: dict, cfg: SceneConfig, diagonal: float) -> jax.Array:
    """Whether an object moves against the world by more than the threshold within the clip."""
    reach = jnp.sqrt(jnp.sum(layer["velocity"] ** 2)) + jnp.max(
        layer["sway_amplitude"] * layer["sway_frequency"]
    )
    turn = (jnp.abs(layer["spin"]) + jnp.abs(layer["growth"])) * layer["shape"]["radius"]
    bend = jnp.max(jnp.abs(layer["shear_amplitude"] * layer["shear_rate"]))
    fastest = jnp.maximum(reach, jnp.maximum(turn, bend))
    return (fastest > cfg.moving_threshold * diagonal).astype(jnp.float32)

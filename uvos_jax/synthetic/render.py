"""From a scene to pixels, labels, exact flow and occlusion, by inverse mapping of every layer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uvos_jax.errors import ConfigError
from uvos_jax.synthetic import motion, shapes, textures
from uvos_jax.synthetic.config import OUTPUTS, SceneConfig
from uvos_jax.synthetic.scene import sample_scene

DEFAULT_OUTPUTS = ("video", "mask")


def pixel_grid(cfg: SceneConfig) -> jax.Array:
    """Image coordinates `[H,W,2]` (x, y), centred on the principal point."""
    H, W = cfg.size
    x = jnp.arange(W, dtype=jnp.float32) - (W - 1) / 2
    y = jnp.arange(H, dtype=jnp.float32) - (H - 1) / 2
    return jnp.stack(jnp.meshgrid(x, y), axis=-1)


def coverage(layer: dict, camera: dict, x: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Signed silhouette value (px, positive inside) and canonical coordinates at image points."""
    u = motion.image_to_layer(layer, camera, x, t)
    value = shapes.silhouette(layer["shape"], u)
    value = jnp.where(layer["everywhere"] > 0, 1e3, value)
    return jnp.where(layer["active"] > 0, value, -1e3), u


def visible_layer(scene: dict, x: jax.Array, t: jax.Array) -> jax.Array:
    """Index of the front-most layer at image points `[...,2]` at time t."""

    def step(carry, layer):
        index, best = carry
        value, _ = coverage(layer, scene["camera"], x, t)
        return (index + 1, jnp.where(value > 0, index, best)), None

    start = (jnp.zeros((), jnp.int32), jnp.zeros(x.shape[:-1], jnp.int32))
    (_, best), _ = jax.lax.scan(step, start, scene["layers"])
    return best


def _light(photometric: dict, x: jax.Array, cfg: SceneConfig) -> jax.Array:
    """Low-frequency multiplicative light field, fixed in the image."""
    p = x / max(cfg.size)
    waves = jnp.sin(p @ (2.5 * photometric["light_wave"].T) * 2 + photometric["light_phase"]).sum(
        -1
    )
    return 1 + photometric["light_strength"] * waves


def _frame(scene: dict, t: jax.Array, cfg: SceneConfig, wanted: frozenset[str]) -> dict[str, Any]:
    """Composites one instant, far to near, and follows the visible layer to t+1 and t-1."""
    camera, photometric = scene["camera"], scene["photometric"]
    x = pixel_grid(cfg)
    need_color, need_flow = "video" in wanted, bool(wanted & {"flow_fw", "occ_fw"})
    need_depth = "depth" in wanted
    need_back = bool(wanted & {"flow_bw", "occ_bw"})
    sun = jnp.stack(
        [jnp.cos(photometric["light_direction"]), jnp.sin(photometric["light_direction"])]
    )

    def step(carry, layer):
        index = carry["next"]
        value, u = coverage(layer, camera, x, t)
        on_top = value > 0
        new = {**carry, "next": index + 1}
        new["layer"] = jnp.where(on_top, index, carry["layer"])
        new["id"] = jnp.where(on_top, layer["id"], carry["id"])
        if need_depth:
            depth = motion.depth(camera, layer, x, t)
            new["depth"] = jnp.where(on_top, depth, carry["depth"])
        if need_color:
            color = textures.surface_color(layer["texture"], u)
            # Rounded look: darker towards the rim, lighter towards the sun.
            radius = layer["shape"]["radius"]
            rim = jnp.clip(1 - value / (0.6 * radius), 0.0, 1.0) ** 2
            lit = (u @ sun) / radius
            shade = 1 - layer["relief"] * (0.7 * rim + 0.35 * lit)
            color = color * jnp.where(layer["everywhere"] > 0, 1.0, shade)[..., None]
            fog = 1 - jnp.exp(-photometric["fog"] * layer["z"])
            color = color * (1 - fog) + photometric["fog_color"] * fog
            alpha = jnp.clip(value / layer["softness"] + 0.5, 0.0, 1.0)[..., None]
            alpha = alpha * layer["opacity"]
            below = carry["rgb"]
            if cfg.shadows:
                offset = 0.25 * radius * sun
                dark, _ = coverage(layer, camera, x + offset, t)
                dark = jnp.clip(dark / (0.3 * radius) + 0.5, 0.0, 1.0)
                strength = 0.45 * layer["shadow"] * (1 - layer["everywhere"])
                below = below * (1 - strength * dark)[..., None]
            new["rgb"] = below * (1 - alpha) + color * alpha
        if need_flow:
            ahead = motion.layer_to_image(layer, camera, u, t + 1)
            new["ahead"] = jnp.where(on_top[..., None], ahead, carry["ahead"])
        if need_back:
            behind = motion.layer_to_image(layer, camera, u, t - 1)
            new["behind"] = jnp.where(on_top[..., None], behind, carry["behind"])
        return new, None

    carry = {
        "next": jnp.zeros((), jnp.int32),
        "layer": jnp.zeros(cfg.size, jnp.int32),
        "id": jnp.zeros(cfg.size, jnp.int32),
    }
    if need_depth:
        carry["depth"] = jnp.zeros(cfg.size)
    if need_color:
        carry["rgb"] = jnp.zeros((*cfg.size, 3))
    if need_flow:
        carry["ahead"] = x
    if need_back:
        carry["behind"] = x
    carry, _ = jax.lax.scan(step, carry, scene["layers"])
    out = {"ids": carry["id"]}
    if need_depth:
        out["depth"] = carry["depth"]
    if need_color:
        out["video"] = carry["rgb"] * _light(photometric, x, cfg)[..., None]
    for name, key, sign in (("fw", "ahead", 1), ("bw", "behind", -1)):
        if key not in carry:
            continue
        out[f"flow_{name}"] = carry[key] - x
        if f"occ_{name}" in wanted:
            out[f"occ_{name}"] = _occluded(scene, carry[key], carry["layer"], t + sign, cfg)
    return out


def _occluded(scene: dict, target: jax.Array, layer: jax.Array, t: jax.Array, cfg: SceneConfig):
    """Whether the point of a layer that lands on `target` at time t is hidden or outside."""
    H, W = cfg.size
    outside = (jnp.abs(target[..., 0]) > (W - 1) / 2) | (jnp.abs(target[..., 1]) > (H - 1) / 2)
    return outside | (visible_layer(scene, target, t) != layer)


def _develop(video: jax.Array, photometric: dict) -> jax.Array:
    """Exposure drift, gamma, resolution loss and noise: what a camera adds to `[T,H,W,3]`."""
    T, H, W, _ = video.shape
    time = jnp.linspace(-1.0, 1.0, T)[:, None, None, None]
    video = jnp.clip(video * (1 + photometric["drift"] * time), 0.0, 1.0)
    video = jnp.maximum(video, 1e-4) ** photometric["gamma"]
    # Low resolution: a 3x3 binomial blur, cheaper than resampling and alike in effect.
    padded = jnp.pad(video, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    rows = 0.25 * padded[:, :-2] + 0.5 * padded[:, 1:-1] + 0.25 * padded[:, 2:]
    soft = 0.25 * rows[:, :, :-2] + 0.5 * rows[:, :, 1:-1] + 0.25 * rows[:, :, 2:]
    video = jnp.where(photometric["low_resolution"] > 0, soft, video)
    key = jax.random.wrap_key_data(photometric["noise_key"])
    # Uniform noise of the same variance: several times cheaper to draw than normal noise.
    noise = (jax.random.uniform(key, (T, H, W, 1)) - 0.5) * (12**0.5)
    return jnp.clip(video + photometric["noise"] * noise, 0.0, 1.0)


def render(
    scene: dict[str, Any],
    times: jax.Array | None,
    cfg: SceneConfig,
    outputs: Sequence[str] = DEFAULT_OUTPUTS,
) -> dict[str, jax.Array]:
    """Renders a scene at the given times (default: `cfg.frames` times around 0).

    Returns the requested keys: `video` f32 `[T,H,W,3]` in [0,1]; `mask` u8 `[T,H,W]` by
    `cfg.label`; `ids` i32 (0 background, objects, distractors, occluders); `flow_fw`, `flow_bw`
    f32 `[T,H,W,2]` px to the next and previous instant (one time unit away); `occ_fw`, `occ_bw`
    bool; `depth` f32. Labels and flow refer to the middle of the exposure and ignore photometric
    effects.

    Raises:
      ConfigError: unknown output.
    """
    wanted = frozenset(outputs)
    if unknown := wanted - set(OUTPUTS):
        raise ConfigError(f"synthetic outputs {sorted(unknown)} are unknown: use {OUTPUTS}")
    if times is None:
        times = jnp.arange(cfg.frames, dtype=jnp.float32) - (cfg.frames - 1) / 2
    # One frame after another: a clip needs no more memory than a frame plus its outputs.
    frames = jax.lax.map(partial(_frame, scene, cfg=cfg, wanted=wanted), times)
    if "video" in wanted:
        video = frames["video"]
        if cfg.blur_samples > 1:
            offsets = np.linspace(-0.5, 0.5, cfg.blur_samples)
            offsets = offsets[offsets != 0] if cfg.blur_samples % 2 else offsets
            shifted = times[:, None] + scene["photometric"]["shutter"] * offsets
            only_color = frozenset({"video"})
            more = jax.lax.map(
                lambda t: _frame(scene, t, cfg, only_color)["video"], shifted.reshape(-1)
            )
            more = more.reshape(len(times), -1, *video.shape[1:])
            count = more.shape[1] + cfg.blur_samples % 2
            video = (more.sum(1) + (video if cfg.blur_samples % 2 else 0.0)) / count
        frames["video"] = _develop(video, scene["photometric"])
    if "mask" in wanted:
        frames["mask"] = label_mask(scene, frames["ids"], cfg)
    return {name: frames[name] for name in outputs}


def label_mask(scene: dict[str, Any], ids: jax.Array, cfg: SceneConfig) -> jax.Array:
    """The `mask` output for id maps `[T,H,W]`, uint8."""
    moving = scene["is_moving"][ids] > 0
    if cfg.label == "instances":
        return jnp.where(moving, ids, 0).astype(jnp.uint8)
    if cfg.label == "moving":
        return moving.astype(jnp.uint8)
    return ((ids == scene["primary"]) & moving).astype(jnp.uint8)


def clip_key(seed: int | jax.Array, index: int | jax.Array) -> jax.Array:
    """The key of clip `index` of the endless set `seed`."""
    base = jax.random.key(seed) if not isinstance(seed, jax.Array) or seed.ndim == 0 else seed
    return jax.random.fold_in(base, index)


def sample_times(key: jax.Array, cfg: SceneConfig) -> jax.Array:
    """Times of a clip's frames, one to three units apart."""
    gap = jax.random.choice(key, jnp.asarray([1.0, 2.0, 3.0]), p=jnp.asarray([0.6, 0.25, 0.15]))
    return gap * (jnp.arange(cfg.frames, dtype=jnp.float32) - (cfg.frames - 1) / 2)


def clip(
    key: jax.Array, cfg: SceneConfig, outputs: Sequence[str] = DEFAULT_OUTPUTS
) -> dict[str, jax.Array]:
    """Draws and renders one clip. With flow outputs frames are one unit apart, else up to three."""
    scene_key, time_key = jax.random.split(key)
    scene = sample_scene(scene_key, cfg)
    flows = any(name.startswith(("flow", "occ")) for name in outputs)
    times = None if flows else sample_times(time_key, cfg)
    return render(scene, times, cfg, outputs)


@partial(jax.jit, static_argnames=("batch_size", "cfg", "outputs"))
def batch(
    key: jax.Array,
    step: jax.Array | int,
    batch_size: int,
    cfg: SceneConfig,
    outputs: tuple[str, ...] = DEFAULT_OUTPUTS,
) -> dict[str, jax.Array]:
    """Batch number `step` of the endless set `key`: clip i has the key of index step*B + i.

    Every leaf gains a leading axis B. Callable inside jit; a sharded batch axis is rendered where
    it lives.
    """
    indices = jnp.asarray(step) * batch_size + jnp.arange(batch_size)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(indices)
    return jax.lax.map(lambda k: clip(k, cfg, outputs), keys)

"""Encodings of optical flow fields: colour wheel, angle and magnitude, three 8-bit channels;
resizing, camera motion.

Flow is `(u right, v down)` in pixels of its own resolution, float32 `[...,H,W,2]`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from uvos_jax.errors import ConfigError
from uvos_jax.ops.resize import resize_bilinear

#: Lengths of the wheel's segments red-yellow, yellow-green, green-cyan, cyan-blue, blue-magenta,
#: magenta-red (Baker et al., "A Database and Evaluation Methodology for Optical Flow", 2011).
WHEEL_SEGMENTS = (15, 6, 4, 11, 13, 6)
#: Components beyond this mark unknown flow in Middlebury files.
UNKNOWN = 1e9


@lru_cache
def color_wheel() -> np.ndarray:
    """The 55 colours of the Middlebury wheel, float32 `[55,3]` RGB 0..255."""
    #: (channel that is full, channel that moves, whether it rises) for each segment
    rules = ((0, 1, True), (1, 0, False), (1, 2, True), (2, 1, False), (2, 0, True), (0, 2, False))
    rows = []
    for length, (full, moving, rises) in zip(WHEEL_SEGMENTS, rules, strict=True):
        ramp = np.floor(255 * np.arange(length) / length)
        segment = np.zeros((length, 3))
        segment[:, full] = 255
        segment[:, moving] = ramp if rises else 255 - ramp
        rows.append(segment)
    return np.concatenate(rows).astype(np.float32)


def flow_to_color(
    flow: Float[Array, "*B H W 2"],
    max_flow: float | Literal["clip"] | None = None,
    *,
    quantize: bool = True,
    epsilon: float = 1e-5,
) -> Float[Array, "*B H W 3"]:
    """Middlebury colour coding: hue is direction, saturation is speed, zero flow is white.

    Args:
      max_flow: speed in pixels that is fully saturated; None takes each frame's maximum, as the
        published pipelines of MATNet and FusionSeg do; `clip` the maximum over the frames of a
        clip (the axis before H), which keeps speeds comparable between them.
      quantize: round down to whole levels, as an 8-bit picture holds them.
      epsilon: added to the maximum; 1e-5 in the Python pipelines, 2e-16 in the MATLAB ones.

    Returns:
      RGB 0..255, float32. Unknown flow (a component beyond 1e9 or NaN) is black.
    """
    unknown = ~(jnp.abs(flow) < UNKNOWN).all(-1)
    flow = jnp.where(unknown[..., None], 0.0, flow.astype(jnp.float32))
    u, v = flow[..., 0], flow[..., 1]
    if max_flow is None:
        largest = jnp.sqrt(u * u + v * v).max(axis=(-2, -1), keepdims=True)
    elif max_flow == "clip":
        largest = jnp.sqrt(u * u + v * v).max(axis=(-3, -2, -1), keepdims=True)
    else:
        largest = jnp.float32(max_flow)
    u, v = u / (largest + epsilon), v / (largest + epsilon)
    radius = jnp.sqrt(u * u + v * v)[..., None]
    wheel = jnp.asarray(color_wheel())
    position = (jnp.arctan2(-v, -u) / jnp.pi + 1) / 2 * (len(wheel) - 1)
    low = jnp.floor(position).astype(jnp.int32)
    fraction = (position - low)[..., None]
    color = ((1 - fraction) * wheel[low] + fraction * wheel[(low + 1) % len(wheel)]) / 255
    color = jnp.where(radius <= 1, 1 - radius * (1 - color), 0.75 * color)
    image = 255 * color
    image = jnp.floor(image) if quantize else image
    return jnp.where(unknown[..., None], 0.0, image)


#: Ways to encode a direction: `acos`, unsigned in [0, pi]; `atan2`, signed in [-pi, pi]; `sincos`,
#: two channels (cos, sin), without a seam.
ANGLE_MODES = ("acos", "atan2", "sincos")


def flow_to_angle_magnitude(
    flow: Float[Array, "*B H W 2"],
    *,
    diagonal: float | None = None,
    zero_below: float = 0.0,
    mode: str = "acos",
) -> Float[Array, "*B H W C"]:
    """MP-Net's input: unsigned angle `arccos(u/|w|)` in [0, pi] and `|w| / (diagonal / 6)`.

    Args:
      diagonal: of the frame the flow was computed on, in pixels; None takes this field's.
      zero_below: angles of flow slower than this many pixels are set to 0 (1 at test time on
        estimated flow, 0 in training).
      mode: see `ANGLE_MODES`; MP-Net's is `acos`, which cannot tell up from down.

    Returns:
      two channels, three with `sincos`. Where nothing moves every angle channel is 0.

    Raises:
      ConfigError: unknown mode.
    """
    if mode not in ANGLE_MODES:
        raise ConfigError(f"angle mode {mode!r} is unknown: use one of {', '.join(ANGLE_MODES)}")
    H, W = flow.shape[-3:-1]
    if diagonal is None:
        diagonal = float(np.hypot(H, W))
    u, v = flow[..., 0], flow[..., 1]
    square = jnp.sum(flow * flow, axis=-1)
    moving = square > 1e-12
    magnitude = jnp.where(moving, jnp.sqrt(jnp.where(moving, square, 1.0)), 0.0)
    cosine = jnp.where(moving, u / jnp.where(moving, magnitude, 1.0), 1.0)
    if mode == "acos":
        angles = [jnp.arccos(jnp.clip(cosine, -1, 1))]
    elif mode == "atan2":
        angles = [jnp.arctan2(jnp.where(moving, v, 0.0), jnp.where(moving, u, 1.0))]
    else:
        angles = [cosine, jnp.where(moving, v / jnp.where(moving, magnitude, 1.0), 0.0)]
    fast = moving & (magnitude > zero_below)
    angles = [jnp.where(fast, angle, 0.0) for angle in angles]
    return jnp.stack([*angles, magnitude / (diagonal / 6)], axis=-1)


def flow_to_components(
    flow: Float[Array, "*B H W 2"],
    *,
    scale: float = 16.0,
    center: float = 128.0,
    quantize: bool = True,
) -> Float[Array, "*B H W 3"]:
    """Three channels 0..255: u, v and speed, each `scale w + center`, cut off at the ends.

    The three-channel input of action-recognition networks (Gkioxari and Malik, "Finding Action
    Tubes", CVPR 2015, on Brox's flow): an image whose grey means rest and whose contrast is speed.
    With the defaults vectors up to 8 px are told apart.

    Args:
      quantize: round to whole levels.
    """
    flow = flow.astype(jnp.float32)
    speed = jnp.sqrt(jnp.sum(flow * flow, axis=-1, keepdims=True))
    image = jnp.clip(jnp.concatenate([flow, speed], axis=-1) * scale + center, 0.0, 255.0)
    return jnp.round(image) if quantize else image


def through_8_bits(x: Float[Array, "*B H W C"]) -> Float[Array, "*B H W C"]:
    """What is left of maps stored as 8-bit pictures stretched from each channel's minimum to its
    maximum, as the releases of MP-Net store angle and speed."""
    low = x.min(axis=(-3, -2), keepdims=True)
    span = x.max(axis=(-3, -2), keepdims=True) - low
    levels = jnp.round((x - low) / jnp.where(span > 0, span, 1.0) * 255)
    return levels / 255 * span + low


def resize_flow(flow: Float[Array, "*B H W C"], size: tuple[int, int]) -> Float[Array, "*B h w C"]:
    """Resizes fields bilinearly and scales their vectors to pixels of the new size (h, w).

    C is 2 for every field: flow to the previous and to the next frame have four channels.
    """
    H, W = flow.shape[-3:-1]
    ratio = jnp.asarray([size[1] / W, size[0] / H] * (flow.shape[-1] // 2), flow.dtype)
    return resize_bilinear(flow, size) * ratio


def subtract_camera_motion(flow: Float[Array, "*B H W 2"]) -> Float[Array, "*B H W 2"]:
    """Flow minus each frame's median vector, a robust guess of the camera's translation."""
    return flow - jnp.median(flow, axis=(-3, -2), keepdims=True)


def _median(x: Float[Array, " n"]) -> Float[Array, ""]:
    """Median of numbers that are not negative, without sorting: a tenth of the time on a CPU.

    As integers the bits of such floats are ordered like the floats: bisection finds those of the
    smallest number that half of all do not exceed.
    """
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)
    rank = (x.size + 1) // 2

    def halve(_: Any, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = low + (high - low) // 2
        enough = jnp.sum(bits <= middle) >= rank
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    limits = jnp.int32(0), jnp.int32(np.float32(np.inf).view(np.int32))
    found = jax.lax.fori_loop(0, 31, halve, limits)[1]
    below = jax.lax.bitcast_convert_type(found, jnp.float32)
    if x.size % 2:
        return below
    # the number after it, which is the same where that one occurs again
    after = jnp.min(jnp.where(bits > found, x, jnp.inf))
    return (below + jnp.where(jnp.sum(bits <= found) > rank, below, after)) / 2


def planar_motion(
    flow: Float[Array, "*B H W 2"], *, iterations: int = 8, step: int = 4
) -> Float[Array, "*B H W 2"]:
    """The motion of one plane under a moving camera that explains most of a field, `[...,H,W,2]`.

    `u = a1 + a2 x + a3 y + a7 x^2 + a8 x y`, `v = a4 + a5 x + a6 y + a7 x y + a8 y^2`, fitted by
    reweighted least squares with Geman and McClure's weights (Odobez and Bouthemy 1995). The first
    guess trusts the border of the image, where the background is, more than its middle.

    Args:
      iterations: of reweighting. step: every so many pixels are looked at.
    """
    lead, (H, W) = flow.shape[:-3], flow.shape[-3:-1]
    y, x = jnp.meshgrid(jnp.linspace(-1, 1, H), jnp.linspace(-1, 1, W), indexing="ij")
    zero, one = jnp.zeros_like(x), jnp.ones_like(x)
    basis = jnp.stack(
        [
            jnp.stack([one, x, y, zero, zero, zero, x * x, x * y], axis=-1),
            jnp.stack([zero, zero, zero, one, x, y, x * y, y * y], axis=-1),
        ],
        axis=2,
    )  # [H,W,2,8]
    seen = basis[::step, ::step].reshape(-1, 2, 8)
    border = jnp.maximum(jnp.abs(x), jnp.abs(y))[::step, ::step].reshape(-1)
    first = 0.05 + border**4

    def fit(field: jax.Array) -> jax.Array:
        vectors = field[::step, ::step].reshape(-1, 2)

        def solve(weights: jax.Array) -> jax.Array:
            weighted = seen * weights[:, None, None]
            normal = jnp.einsum("nci,ncj->ij", weighted, seen, precision="highest")
            right = jnp.einsum("nci,nc->i", weighted, vectors, precision="highest")
            return jnp.linalg.solve(normal + 1e-4 * weights.sum() * jnp.eye(8), right)

        def refine(_: Any, a: jax.Array) -> jax.Array:
            error = jnp.sum((vectors - seen @ a) ** 2, axis=-1)
            # Twice the median error, and never less than a twentieth of a pixel.
            scale = jnp.maximum(4 * _median(error), 0.0025)
            return solve((scale / (scale + error)) ** 2 * (0.2 + first))

        return basis @ jax.lax.fori_loop(0, iterations, refine, solve(first))

    return jax.vmap(fit)(flow.reshape(-1, H, W, 2)).reshape(*lead, H, W, 2)


def rigid_residual(
    flow: Float[Array, "*B H W 2"], *, iterations: int = 10, step: int = 0
) -> Float[Array, "*B H W 2"]:
    """What no motion of a camera through a scene at rest explains, in pixels.

    Whatever its depth, a pixel of a rigid scene moves along a line that depends on the camera
    alone: `t . (m x m') + m . C m = 0` for the pixel `m = (x, y, 1)`, its velocity
    `m' = (u, v, 0)`, the camera's translation t and a symmetric C (the differential epipolar
    constraint of an uncalibrated camera; Vieville and Faugeras 1995, Brooks, Chojnacki and Baumela
    1997). Returned is the shortest vector from that line to the flow. So rocks before a hillside
    leave nothing of it, where `planar_motion` leaves parallax; but neither does an object that
    moves as a nearer part of the scene would, such as one that passes before a camera at rest.

    t and C are fitted by reweighted least squares on distances to the lines, with Geman and
    McClure's weights; the border of the image counts more than its middle. A first guess by all
    pixels competes with others by one side of the image each, which an object elsewhere cannot
    spoil; they win if they halve the median distance, or they would explain the object instead.

    Args:
      iterations: of reweighting. step: one of so many pixels is looked at along either axis; 0:
        some 1800 in all.
    """
    lead, (H, W) = flow.shape[:-3], flow.shape[-3:-1]
    half = W / 2
    step = step or max(1, round((H * W / 1800) ** 0.5))
    y, x = jnp.meshgrid(
        (jnp.arange(H) - (H - 1) / 2) / half, (jnp.arange(W) - (W - 1) / 2) / half, indexing="ij"
    )
    quadratic = jnp.stack([x * x, 2 * x * y, 2 * x, y * y, 2 * y, jnp.ones_like(x)], axis=-1)
    where = [p[::step, ::step].reshape(-1) for p in (x, y)]
    level, down = where[0], where[1] * (W / H)
    first = 0.25 + jnp.maximum(jnp.abs(level), jnp.abs(down)) ** 4
    sides = [jnp.where(p > 0.3, 1.0, 0.02) for p in (level, -level, down, -down)]
    starts = jnp.stack([first, *sides])

    def fit(field: jax.Array) -> jax.Array:
        # of unit size, or the products of velocities drown in those of positions
        size = 0.05 + jnp.sqrt(jnp.mean(jnp.sum(field**2, axis=-1)))
        u, v = field[..., 0] / size, field[..., 1] / size
        terms = jnp.concatenate([jnp.stack([-v, u, x * v - y * u], axis=-1), quadratic], axis=-1)
        seen = terms[::step, ::step].reshape(-1, 9)

        def across(a: jax.Array, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
            """The lines' normals, of no certain length, and its square."""
            normal = jnp.stack([a[1] - a[2] * y, a[2] * x - a[0]], axis=-1)
            return normal, jnp.sum(normal**2, axis=-1) + 1e-4  # short near the focus of expansion

        def solve(weights: jax.Array) -> jax.Array:
            """Least squares with |t| = 1."""
            weighted = seen * (weights / jnp.sum(weights))[:, None]
            moments = jnp.einsum("ni,nj->ij", weighted, seen, precision="highest")
            tc, cc = moments[:3, 3:], moments[3:, 3:] + 1e-6 * jnp.eye(6)
            by_t = jnp.linalg.solve(cc, tc.T)
            left = moments[:3, :3] - jnp.matmul(tc, by_t, precision="highest")
            t = jnp.linalg.eigh((left + left.T) / 2)[1][:, 0]
            return jnp.concatenate([t, -jnp.matmul(by_t, t, precision="highest")])

        def errors(a: jax.Array) -> tuple[jax.Array, jax.Array]:
            square = across(a, *where)[1]
            return jnp.matmul(seen, a, precision="highest") ** 2 / square, square

        def refine(_: Any, a: jax.Array) -> jax.Array:
            error, square = errors(a)
            # Twice the median error, and never less than a twentieth of a pixel.
            scale = jnp.maximum(4 * _median(error), (0.05 / size) ** 2)
            return solve((scale / (scale + error)) ** 2 * first / square)

        def run(start: jax.Array) -> tuple[jax.Array, jax.Array]:
            a = jax.lax.fori_loop(0, iterations, refine, solve(start))
            return a, _median(errors(a)[0])

        found, medians = jax.vmap(run)(starts)
        a = found[jnp.argmin(medians.at[0].multiply(0.25))]
        normal, square = across(a, x, y)
        error = jnp.matmul(terms, a, precision="highest")
        return size * (error / square)[..., None] * normal

    return jax.vmap(fit)(flow.reshape(-1, H, W, 2)).reshape(*lead, H, W, 2)


def flow_to_residual(
    flow: Float[Array, "*B H W 2"],
    camera: Float[Array, "*B H W 2"] | None = None,
    *,
    rigid: bool = False,
    residual: Float[Array, "*B H W 2"] | None = None,
    floor: float = 5e-4,
) -> Float[Array, "*B H W C"]:
    """Flow and what `planar_motion` leaves of it, each divided by its own root mean square.

    So scaled, slow and fast videos look alike to a network; the fifth channel is the logarithm of
    the second scale over the floor.

    Args:
      camera: `planar_motion(flow)`, if it is known.
      rigid: add three channels, of what `rigid_residual` leaves and its scale.
      residual: `rigid_residual(flow)`, if it is known.
      floor: added to all scales, in parts of the image's diagonal: slower motion is noise.
    """
    least = floor * float(np.hypot(*flow.shape[-3:-1]))
    flow = flow.astype(jnp.float32)

    def scaled(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        mean = jnp.mean(jnp.sum(x**2, axis=-1), axis=(-2, -1))
        scale = least + jnp.sqrt(mean)[..., None, None, None]
        level = jnp.broadcast_to(jnp.log(scale / least), (*flow.shape[:-1], 1))
        return x / scale, level

    found = [scaled(flow)[0], *scaled(flow - (planar_motion(flow) if camera is None else camera))]
    if rigid:
        found += scaled(rigid_residual(flow) if residual is None else residual)
    return jnp.concatenate(found, axis=-1)

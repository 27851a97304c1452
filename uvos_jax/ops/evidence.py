"""Which motion the pictures themselves ask for: that of a pixel's flow, or the camera's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from uvos_jax.ops.blur import gaussian_mean
from uvos_jax.ops.color import rgb_to_lab
from uvos_jax.ops.flow import planar_motion
from uvos_jax.ops.warp import backward_warp, pixel_grid

#: Deviation of the Gaussian window in which errors are averaged, in frame widths.
WINDOW = 0.0075
#: Errors in L*a*b* that are noise.
NOISE = 1.0


def motion_evidence(
    frames: Real[Array, "*B H W 3"],
    others: Real[Array, "*B H W 3"],
    flow: Float[Array, "*B H W 2"],
    camera: Float[Array, "*B H W 2"] | None = None,
) -> Float[Array, "*B H W 2"]:
    """How much better `flow` explains the pictures than the camera's motion does.

    Estimated flow is smooth, so it runs from a moving object into water, sky and road around it,
    where no pixel contradicts it. But there the motion of the background (`planar_motion`) explains
    the pictures just as well: both foretell the colour of a pixel in the other frame, and what
    counts is whose error is smaller, `(c - f) / (c + f + 1)` of the camera's error c and the flow's
    error f, distances in CIE L*a*b* averaged in a small window.

    Args:
      frames, others: RGB, 0..255. flow: from each frame to its other one, in pixels.
      camera: `planar_motion(flow)`, if it is known.

    Returns:
      the evidence, -1..1, about 0 where either motion would do, and how much of the window could be
      seen, 0..1: positions outside the other frame do not count.
    """
    lead, (H, W) = flow.shape[:-3], flow.shape[-3:-1]
    flow = flow.astype(jnp.float32)
    here, there = (_lab(x).reshape(-1, H, W, 3) for x in (frames, others))
    limit = jnp.asarray([W - 1, H - 1], jnp.float32)
    seen, errors = jnp.ones((*lead, H, W), bool), []
    for motion in (planar_motion(flow) if camera is None else camera, flow):
        target = pixel_grid(H, W) + motion
        seen &= jnp.all((target >= -0.5) & (target <= limit + 0.5), axis=-1)
        moved = backward_warp(there, motion.reshape(-1, H, W, 2))
        # plane by plane: XLA's CPU back end gathers anew for every term of a sum over channels
        gap = moved - here
        squares = gap[..., 0] ** 2 + gap[..., 1] ** 2 + gap[..., 2] ** 2
        errors.append(jnp.sqrt(squares + 1e-6).reshape(seen.shape))
    known = seen.astype(jnp.float32)
    planes = jnp.stack([known, *(error * known for error in errors)], axis=-1)
    share, by_camera, by_flow = jnp.moveaxis(gaussian_mean(planes, WINDOW * W), -1, 0)
    evidence = (by_camera - by_flow) / (by_camera + by_flow + NOISE)
    return jnp.stack([evidence, share], axis=-1)


def _lab(frames: jax.Array) -> jax.Array:
    return rgb_to_lab(frames.astype(jnp.float32) / 255)

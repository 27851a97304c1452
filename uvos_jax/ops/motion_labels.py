"""Which pixels move on their own: labels from depth, camera and true flow, as of FlyingThings3D.

MP-Net (Tokmakov, Alahari, Schmid, CVPR 2017) learns from such labels. A pixel that stands still in
the scene moves in the image as the camera makes it move; where the true flow says otherwise, the
object moves. Each object id then decides by the majority of its pixels.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from uvos_jax.ops.geometry import back_project, flow_of_points, rotate


def depth_of_disparity(
    disparity: Float[Array, "*B H W"], focal_px: float, baseline: float
) -> Float[Array, "*B H W"]:
    """`f b / d`, in units of the baseline; FlyingThings3D has f = 1050 px at 960x540 and b = 1."""
    return focal_px * baseline / jnp.maximum(disparity, 1e-6)


def camera_flow(
    depth: Float[Array, "B H W"],
    rotation: Float[Array, "B 3 3"],
    translation: Float[Array, "B 3"],
    intrinsics: Float[Array, "B 4"],
) -> Float[Array, "B H W 2"]:
    """Flow in pixels of a scene in which only the camera moves.

    Args:
      rotation, translation: `X' = R X + t` takes points from the camera's frame at t to that at
        t+1 (x right, y down, z into the scene).
      intrinsics: (cx, cy, fx, fy) as fractions of width and height.
    """
    points = back_project(depth, intrinsics)
    moved = rotate(rotation[:, None, None], points) + translation[:, None, None]
    return flow_of_points(moved, intrinsics)


def motion_labels(
    flow: Float[Array, "B H W 2"],
    rigid: Float[Array, "B H W 2"],
    ids: Integer[Array, "B H W"],
    *,
    count: int,
    tolerance_px: float = 1.0,
    share: float = 0.5,
) -> Integer[Array, "B H W"]:
    """1 on objects that move on their own, uint8.

    Args:
      flow: true flow. rigid: `camera_flow` of the same frames.
      ids: object of every pixel, 0..count-1; the background is an object like others.
      tolerance_px: length of the difference of both flows above which a pixel disagrees.
      share: of an object's pixels that must disagree.
    """
    disagrees = jnp.linalg.norm(flow - rigid, axis=-1) > tolerance_px

    def one(disagrees: jax.Array, ids: jax.Array) -> jax.Array:
        votes = jax.ops.segment_sum(disagrees.reshape(-1).astype(jnp.float32), ids.reshape(-1),
                                    num_segments=count)  # fmt: skip
        sizes = jax.ops.segment_sum(jnp.ones(ids.size), ids.reshape(-1), num_segments=count)
        return (votes > share * sizes)[ids]

    return jax.vmap(one)(disagrees, ids).astype(jnp.uint8)

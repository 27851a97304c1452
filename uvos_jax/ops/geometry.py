"""Pinhole cameras and rigid motion: back-projection, rotations, motion of points, flow.

Image positions are normalised by the image's size: pixel (x, y) of a `[H,W]` image lies at
`((x + o) / W, (y + o) / H)` with `o = 1/2`, pixel centres, so that intrinsics survive a resize
(`o = 0` is SfM-Net's convention). Intrinsics are `(cx, cy, fx, fy)` in the same units, `[B,4]`. A
point is `[X right, Y down, Z forward]`; a motion moves points: `X' = R X + t`, and a camera's
motion is that of the world as seen from it. All float32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

#: Principal point in the middle, focal length of one image side.
DEFAULT_INTRINSICS = (0.5, 0.5, 1.0, 1.0)
#: Points nearer than this are projected as if they were here.
MIN_DEPTH = 1e-2


def default_intrinsics(batch_size: int) -> Float[Array, "B 4"]:
    """What is assumed of an unknown camera."""
    return jnp.tile(jnp.asarray(DEFAULT_INTRINSICS, jnp.float32), (batch_size, 1))


def image_positions(H: int, W: int, offset: float = 0.5) -> Float[Array, "H W 2"]:
    """Normalised position (x, y) of every pixel."""
    y, x = jnp.meshgrid(
        (jnp.arange(H, dtype=jnp.float32) + offset) / H,
        (jnp.arange(W, dtype=jnp.float32) + offset) / W,
        indexing="ij",
    )
    return jnp.stack([x, y], axis=-1)


def rays(
    intrinsics: Float[Array, "B 4"], H: int, W: int, offset: float = 0.5
) -> Float[Array, "B H W 3"]:
    """Directions `[(x - cx)/fx, (y - cy)/fy, 1]` through the pixels: depth times ray is a point."""
    positions = image_positions(H, W, offset)
    centre, focal = intrinsics[:, None, None, :2], intrinsics[:, None, None, 2:]
    xy = (positions - centre) / focal
    return jnp.concatenate([xy, jnp.ones_like(xy[..., :1])], axis=-1)


def back_project(
    depth: Float[Array, "B H W"], intrinsics: Float[Array, "B 4"], offset: float = 0.5
) -> Float[Array, "B H W 3"]:
    """Points of a depth map (SfM-Net, eq. 1); their Z is the depth."""
    return depth[..., None] * rays(intrinsics, *depth.shape[1:], offset)


def project(
    points: Float[Array, "B H W 3"], intrinsics: Float[Array, "B 4"], offset: float = 0.5
) -> Float[Array, "B H W 2"]:
    """Pixel positions (x, y) at which points `[B,H,W,3]` appear in an image of that size."""
    H, W = points.shape[1:3]
    z = jnp.maximum(points[..., 2:], MIN_DEPTH)
    centre, focal = intrinsics[:, None, None, :2], intrinsics[:, None, None, 2:]
    return (focal * points[..., :2] / z + centre) * jnp.asarray([W, H], jnp.float32) - offset


def flow_of_points(
    moved: Float[Array, "B H W 3"], intrinsics: Float[Array, "B 4"], offset: float = 0.5
) -> Float[Array, "B H W 2"]:
    """Optical flow in pixels of an image whose pixel's points have moved to `moved`."""
    H, W = moved.shape[1:3]
    own = image_positions(H, W, offset) * jnp.asarray([W, H], jnp.float32) - offset
    return project(moved, intrinsics, offset) - own


def euler_rotation(
    sines: Float[Array, "*S 3"], cosines: Float[Array, "*S 3"] | None = None
) -> Float[Array, "*S 3 3"]:
    """`R = Rz(alpha) Ry(beta) Rx(gamma)` from the angles' sines.

    SfM-Net writes the product so, though it calls the turn about the optical axis alpha's, "x".

    Args:
      sines: of alpha (about the optical axis), beta (about the vertical), gamma (about the
        horizontal one).
      cosines: None takes the positive root, for angles within 90 degrees.
    """
    if cosines is None:
        cosines = jnp.sqrt(jnp.maximum(1.0 - jnp.square(sines), 1e-8))
    (sa, sb, sg), (ca, cb, cg) = (tuple(x[..., i] for i in range(3)) for x in (sines, cosines))
    zero, one = jnp.zeros_like(sa), jnp.ones_like(sa)

    def matrix(*rows: tuple) -> jax.Array:
        return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)

    about_optical = matrix((ca, -sa, zero), (sa, ca, zero), (zero, zero, one))
    about_vertical = matrix((cb, zero, sb), (zero, one, zero), (-sb, zero, cb))
    about_horizontal = matrix((one, zero, zero), (zero, cg, -sg), (zero, sg, cg))
    return _matmul(_matmul(about_optical, about_vertical), about_horizontal)


def axis_angle_rotation(vector: Float[Array, "*S 3"]) -> Float[Array, "*S 3 3"]:
    """Rotation about `vector` by its length in radians (Rodrigues)."""
    square = jnp.sum(jnp.square(vector), axis=-1)[..., None, None]
    safe = jnp.where(square > 1e-12, square, 1.0)
    angle = jnp.sqrt(safe)
    small = square <= 1e-12
    first = jnp.where(small, 1.0, jnp.sin(angle) / angle)
    second = jnp.where(small, 0.5, (1.0 - jnp.cos(angle)) / safe)
    K = cross_matrix(vector)
    return jnp.eye(3) + first * K + second * _matmul(K, K)


def cross_matrix(v: Float[Array, "*S 3"]) -> Float[Array, "*S 3 3"]:
    """The matrix of `x -> v cross x`."""
    zero = jnp.zeros_like(v[..., 0])
    rows = ((zero, -v[..., 2], v[..., 1]), (v[..., 2], zero, -v[..., 0]),
            (-v[..., 1], v[..., 0], zero))  # fmt: skip
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def rotation_angle(R: Float[Array, "*S 3 3"]) -> Float[Array, "*S"]:
    """Angle in radians of a rotation, with finite gradients everywhere.

    `atan2(|vee(R - R^T)| / 2, (tr R - 1) / 2)`, since arccos has an infinite slope at 0.
    """
    axis = jnp.stack(
        [R[..., 2, 1] - R[..., 1, 2], R[..., 0, 2] - R[..., 2, 0], R[..., 1, 0] - R[..., 0, 1]],
        axis=-1,
    )
    sine = 0.5 * safe_norm(axis)
    cosine = 0.5 * (R[..., 0, 0] + R[..., 1, 1] + R[..., 2, 2] - 1.0)
    return jnp.arctan2(sine, cosine)


def safe_norm(x: Float[Array, "*S D"]) -> Float[Array, "*S"]:
    """Euclidean norm over the last axis whose gradient at 0 is 0."""
    square = jnp.sum(jnp.square(x), axis=-1)
    nonzero = square > 1e-12
    return jnp.where(nonzero, jnp.sqrt(jnp.where(nonzero, square, 1.0)), 0.0)


def rotate(R: Float[Array, "*S 3 3"], points: Float[Array, "*P 3"]) -> Float[Array, "*Q 3"]:
    """`R x` for points whose leading axes broadcast with those of `R`; float32 whatever the
    precision of matrix products is."""
    return jnp.sum(R * points[..., None, :], axis=-1)


def _matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.sum(a[..., :, :, None] * b[..., None, :, :], axis=-2)


def compose(
    second: tuple[jax.Array, jax.Array], first: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """`(R, t)` of the motion `first`, then `second`."""
    (R2, t2), (R1, t1) = second, first
    return _matmul(R2, R1), rotate(R2, t1) + t2


def invert(motion: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """`(R^T, -R^T t)`."""
    R, t = motion
    back = jnp.swapaxes(R, -1, -2)
    return back, -rotate(back, t)


def fold_pivot(
    R: Float[Array, "*S 3 3"],
    t: Float[Array, "*S 3"],
    pivot: Float[Array, "*S 3"],
    *,
    add_back: bool = True,
) -> Float[Array, "*S 3"]:
    """Translation t' of a motion about a pivot, `R (x - p) + t [+ p] = R x + t'`."""
    folded = t - rotate(R, pivot)
    return folded + pivot if add_back else folded


def object_displacements(
    points: Float[Array, "B H W 3"],
    masks: Float[Array, "B H W K"],
    R: Float[Array, "B K 3 3"],
    t: Float[Array, "B K 3"],
) -> Float[Array, "B H W K 3"]:
    """How far every object moves every point, `m_k (R_k x + t_k - x)` with pivots folded in."""
    x = points[..., None, :]
    moved = rotate(R[:, None, None], x) + t[:, None, None]
    return masks[..., None] * (moved - x)


def camera_path(camera: Float[Array, "T 3 4"]) -> Float[Array, "T 3"]:
    """Positions of the camera in the frame of the first, from motions t to t+1 of the world.

    The last motion, which leads beyond the last frame, is not used.
    """

    def step(pose: tuple, motion: jax.Array) -> tuple:
        R, t = pose
        position = -rotate(jnp.swapaxes(R, 0, 1), t)
        return compose((motion[:, :3], motion[:, 3]), pose), position

    start = (jnp.eye(3), jnp.zeros(3))
    _, positions = jax.lax.scan(step, start, camera)
    return positions

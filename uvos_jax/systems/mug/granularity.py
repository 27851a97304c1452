"""The short-term and long-term granularities as functions of features; no parameters.

Grids are h x w cells; points on them are (row, column).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

SCALES = ("mean", "sqrt", "none")


def scale_of(kind: str, channels: int, cells: int = 1) -> float:
    """Factor on a sum of products over `channels` (and `cells`): `mean`, `sqrt` or `none`."""
    return {"mean": 1.0 / (channels * cells), "sqrt": channels**-0.5, "none": 1.0}[kind]


# ----- short term: tracking a patch forth and back -------------------------------------------


def responses(patch: jax.Array, features: jax.Array, *, scale: str = "sqrt") -> jax.Array:
    """Logits of where a patch is: its sliding inner product with a frame, of the frame's size.

    Args:
      patch: `[B,p,q,C]`. features: `[B,h,w,C]`.

    Returns:
      `[B,h,w]` float32; cell (r, c) puts the patch's cell (p // 2, q // 2) there.
    """

    def one(kernel: jax.Array, x: jax.Array) -> jax.Array:
        p, q, _ = kernel.shape
        pads = [(p // 2, p - 1 - p // 2), (q // 2, q - 1 - q // 2)]
        y = jax.lax.conv_general_dilated(
            x[None], kernel[..., None], (1, 1), pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return y[0, ..., 0]

    p, q, C = patch.shape[1:]
    response = jax.vmap(one)(patch.astype(jnp.float32), features.astype(jnp.float32))
    return response * scale_of(scale, C, p * q)


def peak(response: jax.Array) -> jax.Array:
    """(row, column) of the maximum of `[B,h,w]`, int32 `[B,2]`; no gradient passes."""
    B, h, w = response.shape
    index = jnp.argmax(jax.lax.stop_gradient(response).reshape(B, h * w), axis=-1)
    return jnp.stack([index // w, index % w], axis=-1).astype(jnp.int32)


def crop(images: jax.Array, cells: jax.Array, patch: int, stride: int) -> jax.Array:
    """Patches `[B,patch,patch,3]` around grid cells of `[B,H,W,3]`, moved inside the image."""
    half = patch // stride // 2

    def one(image: jax.Array, cell: jax.Array) -> jax.Array:
        start = (cell - half) * stride
        return jax.lax.dynamic_slice(image, (start[0], start[1], 0), (patch, patch, 3))

    limit = jnp.asarray(images.shape[1:3]) // stride - patch // stride + half
    return jax.vmap(one)(images, jnp.clip(cells, half, limit))


def gaussian_target(cells: jax.Array, grid: tuple[int, int], sigma: float) -> jax.Array:
    """`exp(-d^2 / (2 sigma^2))` around cells `[B,2]` on a grid: `[B,h,w]`."""
    r, c = jnp.meshgrid(jnp.arange(grid[0]), jnp.arange(grid[1]), indexing="ij")
    d2 = (r[None] - cells[:, :1, None]) ** 2 + (c[None] - cells[:, 1:, None]) ** 2
    return jnp.exp(-d2.astype(jnp.float32) / (2.0 * sigma**2))


# ----- long term: an affine map between two frames --------------------------------------------


def column_affinity(first: jax.Array, second: jax.Array, *, scale: str = "none") -> jax.Array:
    """`A[o,o'] = softmax_o(x_i[o] . x_j[o'])` of frames i and j `[B,h,w,C]`: `[B,hw,hw]`."""
    B, h, w, C = first.shape
    a, b = first.reshape(B, h * w, C), second.reshape(B, h * w, C)
    scores = jnp.einsum("bnc,bmc->bnm", a, b, preferred_element_type=jnp.float32)
    return jax.nn.softmax(scores * scale_of(scale, C), axis=1)


def affine_points(theta: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Where theta `[B,6]` sends every cell, in cells `[B,hw,2]` (row, column).

    theta is `(a, b, tx, c, d, ty)`: `x' = a x + b y + tx`, `y' = c x + d y + ty`, with x and y in
    [-1, 1] over the centres of the grid.
    """
    h, w = grid
    y, x = jnp.meshgrid(
        jnp.linspace(-1.0, 1.0, h) if h > 1 else jnp.zeros(1),
        jnp.linspace(-1.0, 1.0, w) if w > 1 else jnp.zeros(1),
        indexing="ij",
    )
    points = jnp.stack([x, y, jnp.ones_like(x)], axis=-1).reshape(h * w, 3)
    moved = jnp.einsum("nk,bik->bni", points, theta.astype(jnp.float32).reshape(-1, 2, 3))
    half = jnp.asarray([(h - 1) / 2, (w - 1) / 2])
    return (moved[..., ::-1] + 1.0) * half


def inlier_share(
    affinity: jax.Array, theta: jax.Array, grid: tuple[int, int], *, radius: float, soft: bool
) -> jax.Array:
    """How much of the affinity an affine map explains, `[B]` in [0, 1].

    `1/(hw) sum A[o,o'] psi(o,o')` with psi = `exp(-d^2 / (2 radius^2))`, d the distance of o from
    T_theta(o') in cells; with `soft=False` psi counts the cells within the radius, which has no
    gradient in theta.
    """
    h, w = grid
    r, c = jnp.meshgrid(jnp.arange(h), jnp.arange(w), indexing="ij")
    cells = jnp.stack([r, c], axis=-1).reshape(h * w, 2).astype(jnp.float32)
    moved = affine_points(theta, grid)
    d2 = jnp.sum((cells[None, :, None] - moved[:, None]) ** 2, axis=-1)
    psi = jnp.exp(-d2 / (2.0 * radius**2)) if soft else (d2 <= radius**2).astype(jnp.float32)
    return jnp.sum(affinity * psi, axis=(1, 2)) / (h * w)

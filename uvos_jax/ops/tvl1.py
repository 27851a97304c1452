"""Dense optical flow without a network: pyramidal TV-L1, and Lucas-Kanade as a cheaper fallback.

TV-L1 (Zach, Pock and Bischof 2007, in the dual scheme of Sanchez, Meinhardt-Llopis and Facciolo
2013) minimises `sum lambda |I1(x + w) - I0| + |grad u| + |grad v|`. Everything is jittable with
static loop counts, batched and differentiable. Flow is `(u right, v down)` in pixels of the given
resolution; intensities are 0..255.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from uvos_jax.errors import ShapeError
from uvos_jax.ops.resize import resize_bilinear

#: Grey value weights of R, G, B (ITU-R BT.601).
LUMA = (0.299, 0.587, 0.114)
#: No pyramid level is smaller than this on its short side.
MIN_SIDE = 16


def to_gray(images: Float[Array, "*B H W C"]) -> Float[Array, "*B H W"]:
    """Luminance of RGB images (or the single channel), in the range of the input."""
    if images.shape[-1] == 1:
        return images[..., 0]
    return images @ jnp.asarray(LUMA, images.dtype)


def median3x3(x: Float[Array, "*B H W"]) -> Float[Array, "*B H W"]:
    """Median over each 3x3 neighbourhood, borders repeated, by minima and maxima instead of a sort.

    Each column of three is sorted once and shared by its neighbours; the median of nine is that of
    the largest minimum, the median of medians and the smallest maximum.
    """
    # Barriers keep XLA from computing the network anew inside everything that reads the result,
    # which made the flow solvers slower by half and twice as long to compile.
    x = lax.optimization_barrier(x)
    widths = [(0, 0)] * (x.ndim - 2) + [(1, 1), (1, 1)]
    padded = jnp.pad(x, widths, mode="edge")
    a, b, c = (padded[..., i : i + x.shape[-2], :] for i in range(3))
    low, high = jnp.minimum(a, b), jnp.maximum(a, b)
    rest = jnp.maximum(low, c)
    columns = jnp.minimum(low, c), jnp.minimum(rest, high), jnp.maximum(rest, high)
    columns = lax.optimization_barrier(columns)

    def neighbours(y: jax.Array) -> list[jax.Array]:
        return [y[..., j : j + x.shape[-1]] for j in range(3)]

    def middle(a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
        return jnp.maximum(jnp.minimum(a, b), jnp.minimum(jnp.maximum(a, b), c))

    minima, medians, maxima = (neighbours(y) for y in columns)
    largest = jnp.maximum(jnp.maximum(minima[0], minima[1]), minima[2])
    smallest = jnp.minimum(jnp.minimum(maxima[0], maxima[1]), maxima[2])
    return lax.optimization_barrier(middle(largest, middle(*medians), smallest))


def _blur(x: jax.Array, sigma: float) -> jax.Array:
    """Separable Gaussian over the last two axes, borders repeated, as shifted sums."""
    radius = max(1, round(2.5 * sigma))
    taps = jnp.exp(-0.5 * (jnp.arange(-radius, radius + 1) / sigma) ** 2)
    taps = taps / taps.sum()
    for axis in (-2, -1):
        widths = [(0, 0)] * x.ndim
        widths[axis] = (radius, radius)
        padded = jnp.pad(x, widths, mode="edge")
        size = x.shape[axis]
        x = sum(
            taps[k] * lax.slice_in_dim(padded, k, k + size, axis=padded.ndim + axis)
            for k in range(2 * radius + 1)
        )
    return x


def _forward_difference(x: jax.Array, axis: int) -> jax.Array:
    """`x[i+1] - x[i]`, zero at the far border."""
    last = lax.slice_in_dim(x, x.shape[axis] - 1, x.shape[axis], axis=x.ndim + axis)
    ahead = lax.slice_in_dim(x, 1, x.shape[axis], axis=x.ndim + axis)
    return jnp.concatenate([ahead, last], axis=axis) - x


def _divergence(px: jax.Array, py: jax.Array) -> jax.Array:
    """Negative adjoint of the forward differences: backward differences."""

    def backward(p: jax.Array, axis: int) -> jax.Array:
        n = p.shape[axis]
        inner = lax.slice_in_dim(p, 0, n - 1, axis=p.ndim + axis)
        zero = jnp.zeros_like(lax.slice_in_dim(p, 0, 1, axis=p.ndim + axis))
        return jnp.concatenate([inner, zero], axis=axis) - jnp.concatenate([zero, inner], axis)

    return backward(px, -1) + backward(py, -2)


def _central_gradient(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(d/dx, d/dy) by central differences, borders repeated."""
    grads = []
    for axis in (-1, -2):
        widths = [(0, 0)] * x.ndim
        widths[axis] = (1, 1)
        p = jnp.pad(x, widths, mode="edge")
        n = x.shape[axis]
        ahead = lax.slice_in_dim(p, 2, n + 2, axis=p.ndim + axis)
        behind = lax.slice_in_dim(p, 0, n, axis=p.ndim + axis)
        grads.append(0.5 * (ahead - behind))
    return grads[0], grads[1]


def _sample(planes: jax.Array, u: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Bilinear samples of `planes [K,B,H,W]` at `x + (u, v)`, and whether they lie inside.

    Planes lie one after the other: with channels side by side XLA's CPU back end computed weights
    and positions anew for each of them, and warping took as long as 25 dual steps.
    """
    K, B, H, W = planes.shape
    x = jnp.arange(W, dtype=u.dtype) + u
    y = jnp.arange(H, dtype=v.dtype)[:, None] + v
    inside = (x >= 0) & (x <= W - 1) & (y >= 0) & (y <= H - 1)
    x, y = jnp.clip(x, 0, W - 1), jnp.clip(y, 0, H - 1)
    x0 = jnp.minimum(jnp.floor(x), max(W - 2, 0))
    y0 = jnp.minimum(jnp.floor(y), max(H - 2, 0))
    fx, fy = x - x0, y - y0
    step_x, step_y = min(1, W - 1), W * min(1, H - 1)
    flat = planes.reshape(K, B * H * W)
    first = (jnp.arange(B) * (H * W))[:, None, None]
    base = (first + y0.astype(jnp.int32) * W + x0.astype(jnp.int32)).reshape(-1)

    def at(offset: int) -> jax.Array:
        return flat.at[:, base + offset].get(mode="clip").reshape(planes.shape)

    top = at(0) * (1 - fx) + at(step_x) * fx
    bottom = at(step_y) * (1 - fx) + at(step_y + step_x) * fx
    return top * (1 - fy) + bottom * fy, inside


def pyramid_sizes(H: int, W: int, levels: int) -> list[tuple[int, int]]:
    """Sizes from fine to coarse, halved (rounded up) while both sides stay above `MIN_SIDE`."""
    sizes = [(H, W)]
    while len(sizes) < levels and min(sizes[-1]) >= 2 * MIN_SIDE:
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    return sizes


def _pyramid(gray: jax.Array, sizes: list[tuple[int, int]]) -> list[jax.Array]:
    images = [gray]
    for size in sizes[1:]:
        images.append(resize_bilinear(_blur(images[-1], 0.8)[..., None], size)[..., 0])
    return images


def _upscale(flow: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Resizes a flow field and its vectors."""
    h, w = flow.shape[1:3]
    ratio = jnp.asarray([size[1] / w, size[0] / h], flow.dtype)
    return resize_bilinear(flow, size) * ratio


def _check_pair(image0: jax.Array, image1: jax.Array) -> None:
    if image0.shape != image1.shape or image0.ndim != 4:
        raise ShapeError(
            f"optical flow: expected two images of one shape [B,H,W,C], got {image0.shape} and "
            f"{image1.shape}"
        )


def _tvl1_level(
    i0: jax.Array,
    i1: jax.Array,
    flow: jax.Array,
    *,
    warps: int,
    iterations: int,
    lambda_: float,
    theta: float,
    tau: float,
    median: bool,
) -> jax.Array:
    """Refines `flow [B,h,w,2]` between grey images `[B,h,w]` on one pyramid level."""
    gx1, gy1 = _central_gradient(i1)
    planes = jnp.stack([i1, gx1, gy1])
    threshold, ratio = lambda_ * theta, tau / theta

    def warp_once(_, carry):
        u, v, duals = carry
        if median:
            u, v = median3x3(u), median3x3(v)
        u0, v0 = u, v
        warped, inside = _sample(planes, u0, v0)
        i1w, gx, gy = jnp.where(inside, warped, 0.0)
        square = gx * gx + gy * gy
        # rho(w) = constant + gx u + gy v; outside the image there is no data term.
        constant = jnp.where(inside, i1w - gx * u0 - gy * v0 - i0, 0.0)
        inverse = jnp.where(square < 1e-9, 0.0, 1.0 / jnp.maximum(square, 1e-9))

        def iterate(_, inner):
            u, v, (pux, puy, pvx, pvy) = inner
            rho = constant + gx * u + gy * v
            # The clipped form of the three-way thresholding: exact, and one expression.
            step = jnp.clip(-rho * inverse, -threshold, threshold)
            step = jnp.where(square < 1e-9, 0.0, step)
            u = u + step * gx + theta * _divergence(pux, puy)
            v = v + step * gy + theta * _divergence(pvx, pvy)
            ux, uy = _forward_difference(u, -1), _forward_difference(u, -2)
            vx, vy = _forward_difference(v, -1), _forward_difference(v, -2)
            norm_u = 1.0 / (1.0 + ratio * jnp.sqrt(ux * ux + uy * uy + 1e-12))
            norm_v = 1.0 / (1.0 + ratio * jnp.sqrt(vx * vx + vy * vy + 1e-12))
            duals = (
                (pux + ratio * ux) * norm_u,
                (puy + ratio * uy) * norm_u,
                (pvx + ratio * vx) * norm_v,
                (pvy + ratio * vy) * norm_v,
            )
            return u, v, duals

        return lax.fori_loop(0, iterations, iterate, (u, v, duals))

    zeros = jnp.zeros_like(i0)
    u, v, _ = lax.fori_loop(
        0, warps, warp_once, (flow[..., 0], flow[..., 1], (zeros, zeros, zeros, zeros))
    )
    if median:
        u, v = median3x3(u), median3x3(v)
    return jnp.stack([u, v], axis=-1)


@partial(
    jax.jit,
    static_argnames=("levels", "warps", "iterations", "lambda_", "theta", "tau", "median"),
)
def tvl1_flow(
    image0: Float[Array, "B H W C"],
    image1: Float[Array, "..."],
    *,
    levels: int = 5,
    warps: int = 5,
    iterations: int = 20,
    lambda_: float = 0.15,
    theta: float = 0.3,
    tau: float = 0.25,
    median: bool = True,
) -> Float[Array, "B H W 2"]:
    """Flow from `image0` to `image1` by pyramidal TV-L1.

    Args:
      image0, image1: grey or RGB, values 0..255.
      levels: of the pyramid, halving each time; fewer where the image is small.
      warps: linearisations per level.
      iterations: dual steps per linearisation.
      lambda_: weight of the data term at intensities 0..255.
      theta: coupling of the auxiliary field. tau: dual step length, at most 0.25.
      median: 3x3 median filter of the flow before each warp and at the end of a level.

    Returns:
      float32 flow in pixels, `image0[x] ~ image1[x + flow[x]]`.

    Raises:
      ShapeError: the images differ in shape or have no batch axis.
    """
    _check_pair(image0, image1)
    gray0, gray1 = to_gray(image0.astype(jnp.float32)), to_gray(image1.astype(jnp.float32))
    sizes = pyramid_sizes(*gray0.shape[1:3], levels)
    fine_to_coarse = list(zip(_pyramid(gray0, sizes), _pyramid(gray1, sizes), sizes, strict=True))
    flow = jnp.zeros((gray0.shape[0], *sizes[-1], 2), jnp.float32)
    for i0, i1, size in reversed(fine_to_coarse):
        if flow.shape[1:3] != size:
            flow = _upscale(flow, size)
        flow = _tvl1_level(
            i0,
            i1,
            flow,
            warps=warps,
            iterations=iterations,
            lambda_=lambda_,
            theta=theta,
            tau=tau,
            median=median,
        )
    return flow


@partial(jax.jit, static_argnames=("levels", "warps", "radius", "median"))
def lucas_kanade_flow(
    image0: Float[Array, "B H W C"],
    image1: Float[Array, "..."],
    *,
    levels: int = 5,
    warps: int = 5,
    radius: int = 7,
    median: bool = True,
) -> Float[Array, "B H W 2"]:
    """Flow from `image0` to `image1` by iterative pyramidal Lucas-Kanade.

    Cheaper and blurrier than TV-L1, weakest at borders and in texture-free regions, where the
    determinant guard leaves the flow of the coarser level.

    Args:
      image0, image1: grey or RGB, values 0..255.
      radius: of the square window of the normal equations.

    Raises:
      ShapeError: the images differ in shape or have no batch axis.
    """
    _check_pair(image0, image1)
    gray0, gray1 = to_gray(image0.astype(jnp.float32)), to_gray(image1.astype(jnp.float32))
    sizes = pyramid_sizes(*gray0.shape[1:3], levels)
    fine_to_coarse = list(zip(_pyramid(gray0, sizes), _pyramid(gray1, sizes), sizes, strict=True))
    flow = jnp.zeros((gray0.shape[0], *sizes[-1], 2), jnp.float32)
    for i0, i1, size in reversed(fine_to_coarse):
        if flow.shape[1:3] != size:
            flow = _upscale(flow, size)
        gx1, gy1 = _central_gradient(i1)
        planes = jnp.stack([i1, gx1, gy1])

        def refine(_, flow, planes=planes, i0=i0):
            u, v = flow[..., 0], flow[..., 1]
            warped, inside = _sample(planes, u, v)
            i1w, gx, gy = jnp.where(inside, warped, 0.0)
            residual = jnp.where(inside, i1w - i0, 0.0)
            sums = _box(
                jnp.stack([gx * gx, gx * gy, gy * gy, gx * residual, gy * residual]), radius
            )
            a, b, c, d, e = sums
            determinant = a * c - b * b
            solvable = determinant > 1e-6 * jnp.maximum((a + c) ** 2, 1.0)
            inverse = jnp.where(solvable, 1.0 / jnp.where(solvable, determinant, 1.0), 0.0)
            u = u + jnp.clip((b * e - c * d) * inverse, -2.0, 2.0)
            v = v + jnp.clip((b * d - a * e) * inverse, -2.0, 2.0)
            if median:
                u, v = median3x3(u), median3x3(v)
            return jnp.stack([u, v], axis=-1)

        flow = lax.fori_loop(0, warps, refine, flow)
    return flow


def _box(x: jax.Array, radius: int) -> jax.Array:
    """Mean over a square window on the last two axes, zero outside, by shifted sums.

    Sums of 1, 2, 4, ... neighbours are built by doubling and put together to the window's length.
    """
    n = 2 * radius + 1
    for axis in (-2, -1):
        size = x.shape[axis]
        widths = [(0, 0)] * x.ndim
        widths[axis] = (radius, radius)
        run, length = jnp.pad(x, widths), 1
        total, at = None, 0
        while True:
            if n & length:
                part = lax.slice_in_dim(run, at, at + size, axis=x.ndim + axis)
                total, at = part if total is None else total + part, at + length
            if 2 * length > n:
                break
            count = run.shape[axis] - length
            run = lax.slice_in_dim(run, 0, count, axis=x.ndim + axis) + lax.slice_in_dim(
                run, length, length + count, axis=x.ndim + axis
            )
            length *= 2
        x = lax.optimization_barrier(total / n)
    return x

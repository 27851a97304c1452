"""Seeds: a few well-spread positions per frame that stand for the regions of the embedding.

Everything works on one frame on the embedding's grid, with a fixed number of seeds of which some
may be invalid (`Seeds.valid`), so that frames can be mapped and stacked.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from uvos_jax.systems.iet.embed import log_similarity, squared_distance


@struct.dataclass
class Seeds:
    """Seeds of a frame (or, with leading axes, of many).

    Attributes:
      position: `[S,2]` (y, x) on the grid. valid: `[S]`.
      embedding: `[S,E]`. objectness: `[S]`.
      flow: mean flow of the region, `[S,2]`.
      region: nearest valid seed of every position, `[h,w]`.
      motion: how unlike the background's the flow is, in [0,1], `[S]`.
    """

    position: jax.Array
    valid: jax.Array
    embedding: jax.Array
    objectness: jax.Array
    flow: jax.Array
    region: jax.Array
    motion: jax.Array


def edge_strength(embedding: Float[Array, "h w E"]) -> Float[Array, "h w"]:
    """Mean distance of an embedding to its four neighbours; missing ones count as equal."""
    f = embedding.astype(jnp.float32)
    down = jnp.linalg.norm(f[1:] - f[:-1], axis=-1)
    right = jnp.linalg.norm(f[:, 1:] - f[:, :-1], axis=-1)
    total = jnp.zeros(f.shape[:2])
    total = total.at[1:].add(down).at[:-1].add(down)
    return total.at[:, 1:].add(right).at[:, :-1].add(right) / 4


def candidates(edges: Float[Array, "h w"], window: int = 9) -> Bool[Array, "h w"]:
    """Minima of the edge strength within a square window (odd side); ties all count."""
    lowest = lax.reduce_window(edges, jnp.inf, lax.min, (window, window), (1, 1), "SAME")
    return edges == lowest


def select_seeds(
    embedding: Float[Array, "h w E"],
    objects: Float[Array, "h w"],
    allowed: Bool[Array, "h w"],
    count: int,
) -> tuple[Int[Array, " S"], Bool[Array, " S"]]:
    """Farthest-point selection: the surest object, then always what is least like the chosen ones.

    Returns:
      flat positions, and which of them are seeds (there may be fewer candidates than `count`).
    """
    f = embedding.astype(jnp.float32).reshape(-1, embedding.shape[-1])
    open_ = allowed.reshape(-1)
    first = jnp.argmax(jnp.where(open_, objects.reshape(-1), -jnp.inf))

    def add(i, carry):
        chosen, valid, nearest = carry
        pick = jnp.where(i == 0, first, jnp.argmax(nearest))
        ok = nearest[pick] > -jnp.inf
        distance = jnp.sum((f - f[pick]) ** 2, axis=-1)
        nearest = jnp.minimum(nearest, distance).at[pick].set(-jnp.inf)
        return chosen.at[i].set(pick.astype(jnp.int32)), valid.at[i].set(ok), nearest

    start = (
        jnp.zeros(count, jnp.int32),
        jnp.zeros(count, bool),
        jnp.where(open_, jnp.inf, -jnp.inf),
    )
    chosen, valid, _ = lax.fori_loop(0, count, add, start)
    return chosen, valid


def nearest_seed(
    position: Int[Array, "S 2"], valid: Bool[Array, " S"], size: tuple[int, int]
) -> Int[Array, "h w"]:
    """Index of the valid seed that is nearest in space to each position of the grid."""
    y, x = jnp.meshgrid(jnp.arange(size[0]), jnp.arange(size[1]), indexing="ij")
    distance = (y[..., None] - position[:, 0]) ** 2 + (x[..., None] - position[:, 1]) ** 2
    return jnp.argmin(jnp.where(valid, distance, jnp.iinfo(jnp.int32).max), axis=-1)


def frame_seeds(
    embedding: Float[Array, "h w E"],
    objects: Float[Array, "h w"],
    flow: Float[Array, "h w 2"],
    *,
    count: int,
    window: int,
    background_seeds: int,
) -> Seeds:
    """Seeds of a frame with their features.

    Args:
      background_seeds: how many seeds of lowest objectness show how the background moves.
    """
    h, w, E = embedding.shape
    chosen, valid = select_seeds(
        embedding, objects, candidates(edge_strength(embedding), window), count
    )
    position = jnp.stack([chosen // w, chosen % w], axis=-1)
    f = embedding.astype(jnp.float32).reshape(-1, E)
    own = f[chosen]
    score = jnp.where(valid, objects.reshape(-1)[chosen], 0.0)
    region = nearest_seed(position, valid, (h, w))
    labels = region.reshape(-1)
    # the part of a region that looks like its seed
    like = log_similarity(jnp.sum((f - own[labels]) ** 2, -1)) > jnp.log(0.5)
    like = like.astype(jnp.float32)
    area = jax.ops.segment_sum(like, labels, count)
    moved = jax.ops.segment_sum(like[:, None] * flow.reshape(-1, 2), labels, count)
    mean_flow = moved / jnp.maximum(area, 1.0)[:, None]
    motion = motion_saliency(mean_flow, score, valid, background_seeds)
    return Seeds(position, valid, own, score, mean_flow, region, motion)


def motion_saliency(
    flow: Float[Array, "S 2"], objects: Float[Array, " S"], valid: jax.Array, count: int
) -> Float[Array, " S"]:
    """Squared distance to the nearest flow of `count` unlikely objects, over the largest one."""
    ranked = jnp.argsort(jnp.where(valid, objects, jnp.inf))[:count]
    distance = jnp.sum((flow[:, None] - flow[ranked][None]) ** 2, axis=-1)
    nearest = jnp.min(jnp.where(valid[ranked], distance, jnp.inf), axis=1)
    nearest = jnp.where(valid & jnp.isfinite(nearest), nearest, 0.0)
    return nearest / jnp.maximum(jnp.max(nearest), 1e-12)


def links(
    before: Seeds, after: Seeds, *, similarity: float = 0.5, reach: float = 0.2
) -> Int[Array, " S"]:
    """For each seed of a frame the seed of the next frame that continues it, or -1.

    Both must be each other's most similar seed, more similar than `similarity`, and nearer than
    `reach` times the diagonal.
    """
    h, w = before.region.shape
    score = log_similarity(squared_distance(before.embedding, after.embedding))
    score = jnp.where(before.valid[:, None] & after.valid[None], score, -jnp.inf)
    forward, backward = jnp.argmax(score, axis=1), jnp.argmax(score, axis=0)
    S = score.shape[0]
    mutual = backward[forward] == jnp.arange(S)
    shift = (before.position - after.position[forward]).astype(jnp.float32)
    near = jnp.linalg.norm(shift, axis=-1) < reach * jnp.hypot(h, w)
    close = score[jnp.arange(S), forward] > jnp.log(similarity)
    return jnp.where(mutual & near & close & before.valid, forward, -1)

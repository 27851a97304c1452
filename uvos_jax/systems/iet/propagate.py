"""From the seeds of all frames to foreground probabilities: tracks, ranking, labels, slicing.

Functions of stacked `Seeds` with a leading time axis; all can be jitted.
"""

from __future__ import annotations

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from uvos_jax.systems.iet.embed import log_similarity, squared_distance
from uvos_jax.systems.iet.propose import Seeds

LOWEST = 5


def _pull(values: jax.Array, link: jax.Array, size: int) -> jax.Array:
    """Moves `values [S]` of seeds to where `link` points; the rest gets 0."""
    target = jnp.where(link >= 0, link, size)
    return jnp.zeros((size + 1,), values.dtype).at[target].set(values)[:size]


def track_scores(score: Float[Array, "T S"], link: Int[Array, "T-1 S"]) -> Float[Array, "T S"]:
    """Mean of `score` over the track each seed belongs to."""
    S = score.shape[1]

    def forward(carry, x):
        total, length = carry
        own, link = x
        total, length = _pull(total, link, S) + own, _pull(length, link, S) + 1
        return (total, length), (total, length)

    first = (score[0], jnp.ones(S))
    _, (totals, lengths) = lax.scan(forward, first, (score[1:], link))
    totals = jnp.concatenate([score[:1], totals])
    lengths = jnp.concatenate([jnp.ones((1, S)), lengths])

    def backward(carry, x):
        total, length, link = x
        later = (carry[0][jnp.maximum(link, 0)], carry[1][jnp.maximum(link, 0)])
        carry = (jnp.where(link >= 0, later[0], total), jnp.where(link >= 0, later[1], length))
        return carry, carry

    last = (totals[-1], lengths[-1])
    _, (totals, lengths) = lax.scan(backward, last, (totals[:-1], lengths[:-1], link), reverse=True)
    totals = jnp.concatenate([totals, last[0][None]])
    lengths = jnp.concatenate([lengths, last[1][None]])
    return totals / lengths


def best_log_similarity(
    embedding: Float[Array, "N E"], seeds: Float[Array, "S E"], chosen: Bool[Array, " S"]
) -> Float[Array, " N"]:
    """`log max R` of positions to the chosen seeds; -inf if none is chosen."""
    values = log_similarity(squared_distance(embedding, seeds))
    return jnp.max(jnp.where(chosen, values, -jnp.inf), axis=-1)


def probability(foreground: jax.Array, background: jax.Array) -> jax.Array:
    """`R_F / (R_F + R_B)` of two log similarities; one half where there is neither."""
    low = -1e9
    return jax.nn.sigmoid(jnp.maximum(foreground, low) - jnp.maximum(background, low))


def seed_sets(
    embedding: Float[Array, "h w E"],
    seeds: Seeds,
    foreground: Bool[Array, " S"],
    background: Bool[Array, " S"],
    *,
    overlap: float,
    object_threshold: float,
    motion_threshold: float,
) -> tuple[Bool[Array, " S"], Bool[Array, " S"]]:
    """Both sets of a frame after expansion by the mask that the first sets give."""
    h, w, E = embedding.shape
    S = seeds.valid.shape[0]
    flat = embedding.reshape(-1, E)
    inside = best_log_similarity(flat, seeds.embedding, foreground) > best_log_similarity(
        flat, seeds.embedding, background
    )
    labels = seeds.region.reshape(-1)
    area = jax.ops.segment_sum(jnp.ones(h * w), labels, S)
    covered = jax.ops.segment_sum(inside.astype(jnp.float32), labels, S)
    grown = seeds.valid & ~background & (covered > overlap * jnp.maximum(area, 1.0))
    foreground = foreground | grown
    unlikely = (seeds.objectness < object_threshold) | (seeds.motion < motion_threshold)
    background = background | (seeds.valid & unlikely & ~foreground)
    return foreground, background


def embedding_labels(
    embedding: Float[Array, "T h w E"],
    seeds: Seeds,
    link: Int[Array, "T-1 S"],
    *,
    online: bool = True,
    background_objectness: float = 0.1,
    overlap: float = 0.8,
    object_threshold: float = 0.3,
    motion_threshold: float = 0.05,
) -> Float[Array, "T h w"]:
    """Foreground probabilities: every position goes with the set that holds what it is most like.

    A frame's foreground begins with the seed on the best track, its background with the seeds of
    low objectness (`LOWEST` at least); sets of the frame before come along the tracks (`online`),
    or the sets of the first frame serve all frames.
    """
    T, h, w, E = embedding.shape
    S = seeds.valid.shape[1]
    ranking = track_scores(seeds.objectness * seeds.motion, link)
    ranking = jnp.where(seeds.valid, ranking, -jnp.inf)

    def first_sets(seeds: Seeds, ranking: jax.Array):
        best = jnp.arange(S) == jnp.argmax(ranking)
        order = jnp.argsort(jnp.argsort(jnp.where(seeds.valid, seeds.objectness, jnp.inf)))
        unlikely = (seeds.objectness < background_objectness) | (order < LOWEST)
        return best & seeds.valid, unlikely & seeds.valid & ~best

    expand = functools.partial(
        seed_sets,
        overlap=overlap,
        object_threshold=object_threshold,
        motion_threshold=motion_threshold,
    )

    def frame(carry, x):
        foreground_before, background_before = carry
        embedding, seeds, ranking, link = x
        foreground, background = first_sets(seeds, ranking)
        carried = _pull(foreground_before, link, S) & seeds.valid & ~background
        foreground = foreground | carried
        background = background | (_pull(background_before, link, S) & seeds.valid & ~foreground)
        sets = expand(embedding, seeds, foreground, background)
        return sets, sets

    none = jnp.zeros(S, bool)
    before = jnp.concatenate([jnp.full((1, S), -1, link.dtype), link])
    _, (foreground, background) = lax.scan(frame, (none, none), (embedding, seeds, ranking, before))
    flat = embedding.reshape(T, h * w, E)
    known = seeds.embedding
    if not online:
        known, foreground, background = (
            jnp.broadcast_to(x[:1], x.shape) for x in (known, foreground, background)
        )
    score = jax.vmap(best_log_similarity)
    return probability(score(flat, known, foreground), score(flat, known, background)).reshape(
        T, h, w
    )


# ----- the graph over seeds ------------------------------------------------------------------


def touching(region: Int[Array, "h w"], count: int) -> Bool[Array, "S S"]:
    """Seeds whose regions share a border."""
    out = jnp.zeros((count, count), bool)
    for a, b in ((region[1:], region[:-1]), (region[:, 1:], region[:, :-1])):
        a, b = a.reshape(-1), b.reshape(-1)
        out = out.at[a, b].set(True).at[b, a].set(True)
    return out & ~jnp.eye(count, dtype=bool)


def overlapping(before: Int[Array, "h w"], after: Int[Array, "h w"], count: int) -> jax.Array:
    """Seeds `[before, after]` of consecutive frames whose regions overlap."""
    return jnp.zeros((count, count), bool).at[before.reshape(-1), after.reshape(-1)].set(True)


def graph_weights(seeds: Seeds) -> tuple[Float[Array, "T S S"], Float[Array, "T-1 S S"]]:
    """`exp(-|f - f'|^2)` along the edges within frames and between consecutive ones."""
    S = seeds.valid.shape[1]

    def weigh(edges, a, b, valid_a, valid_b):
        values = jnp.exp(-squared_distance(a, b))
        return jnp.where(edges & valid_a[:, None] & valid_b[None], values, 0.0)

    f, v = seeds.embedding, seeds.valid
    within = jax.vmap(lambda r: touching(r, S))(seeds.region)
    between = jax.vmap(lambda a, b: overlapping(a, b, S))(seeds.region[:-1], seeds.region[1:])
    return (
        jax.vmap(weigh)(within, f, f, v, v),
        jax.vmap(weigh)(between, f[:-1], f[1:], v[:-1], v[1:]),
    )


def relaxed_cut(
    unary: Float[Array, "T S"], within: jax.Array, between: jax.Array, smoothness: float = 1.0
) -> Bool[Array, "T S"]:
    """Labels above one half of the x that minimises `|x - q|^2 + smoothness x' L x`.

    The linear system `(1 + smoothness L) x = q` is solved by conjugate gradients.
    """
    degree = jnp.sum(within, axis=2)
    degree = degree.at[:-1].add(jnp.sum(between, axis=2)).at[1:].add(jnp.sum(between, axis=1))

    def apply(x: jax.Array) -> jax.Array:
        spread = jnp.einsum("tij,tj->ti", within, x)
        spread = spread.at[:-1].add(jnp.einsum("tij,tj->ti", between, x[1:]))
        spread = spread.at[1:].add(jnp.einsum("tij,ti->tj", between, x[:-1]))
        return x + smoothness * (degree * x - spread)

    solution, _ = jax.scipy.sparse.linalg.cg(apply, unary, x0=unary, tol=1e-5, maxiter=200)
    return solution > 0.5


def exact_cut(
    unary: np.ndarray, within: np.ndarray, between: np.ndarray, smoothness: float = 1.0
) -> np.ndarray:
    """The labels of least energy by maximum flow, on the host.

    Energy: `-log q` where a seed is foreground, `-log (1 - q)` where it is not, and the weight of
    every edge whose ends differ, times `smoothness`.

    Args:
      unary: q, `[T,S]`, within (0, 1). within, between: weights of `graph_weights`.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import breadth_first_order, maximum_flow

    unary, within, between = (np.asarray(x, np.float64) for x in (unary, within, between))
    T, S = unary.shape
    scale, source, sink = 1e5, T * S, T * S + 1
    q = np.clip(unary.reshape(-1), 1e-6, 1 - 1e-6)
    nodes = np.arange(T * S)
    rows, cols, values = [np.full(T * S, source), nodes], [nodes, np.full(T * S, sink)], []
    values += [-np.log(1 - q), -np.log(q)]  # cut when background; cut when foreground
    for t in range(T):
        a, b = np.nonzero(within[t])
        rows, cols = [*rows, t * S + a], [*cols, t * S + b]
        values.append(smoothness * within[t][a, b])
    for t in range(T - 1):
        a, b = np.nonzero(between[t])
        weights = smoothness * between[t][a, b]
        rows = [*rows, t * S + a, (t + 1) * S + b]
        cols = [*cols, (t + 1) * S + b, t * S + a]
        values += [weights, weights]
    capacity = np.round(scale * np.concatenate(values)).astype(np.int32)
    shape = (T * S + 2, T * S + 2)
    graph = coo_matrix((capacity, (np.concatenate(rows), np.concatenate(cols))), shape).tocsr()
    residual = graph - maximum_flow(graph, source, sink).flow
    residual.data = np.maximum(residual.data, 0)
    residual.eliminate_zeros()
    reached = breadth_first_order(residual, source, return_predecessors=False)
    labels = np.zeros(T * S + 2, bool)
    labels[reached] = True
    return labels[: T * S].reshape(T, S)


def slice_labels(
    embedding: Float[Array, "T h w E"], seeds: Seeds, labels: Bool[Array, "T S"],
    within: jax.Array, between: jax.Array,
) -> Float[Array, "T h w"]:  # fmt: skip
    """Foreground probability of positions from the labels of seeds around their region.

    A position looks at the seeds next to its own region's in its frame and the neighbouring ones;
    foreground and background are the largest `exp(-|f - f_s|^2)` to a seed of either label.
    """
    T, h, w, E = embedding.shape
    S = seeds.valid.shape[1]
    same = (within > 0) | jnp.eye(S, dtype=bool)
    none = jnp.zeros((1, S, S), bool)
    before = jnp.concatenate([none, (between > 0).swapaxes(1, 2)])  # [t, own, earlier]
    after = jnp.concatenate([between > 0, none])  # [t, own, later]

    def frame(t):
        f, region = embedding[t].reshape(-1, E), seeds.region[t].reshape(-1)
        found = []
        for shift, near in ((0, same[t]), (-1, before[t]), (1, after[t])):
            other = jnp.clip(t + shift, 0, T - 1)
            value = -squared_distance(f, seeds.embedding[other])
            near = near[region] & seeds.valid[other]
            label = labels[other]
            found.append([jnp.max(jnp.where(near & side, value, -1e9), -1)
                          for side in (label, ~label)])  # fmt: skip
        sides = jnp.max(jnp.asarray(found), axis=0)
        values = jnp.exp(sides) + 1e-8
        return (values[0] / jnp.sum(values, axis=0)).reshape(h, w)

    return lax.map(frame, jnp.arange(T))


def graph_labels(
    embedding: Float[Array, "T h w E"],
    seeds: Seeds,
    background: Float[Array, "T h w"],
    *,
    cut: Literal["exact", "relaxed"] = "exact",
    smoothness: float = 1.0,
) -> Float[Array, "T h w"]:
    """Foreground probabilities by a cut of the graph over all seeds.

    Args:
      background: probability that a position moves as the background does.
    """
    T, h, w, _ = embedding.shape
    S = seeds.valid.shape[1]
    at = seeds.position[..., 0] * w + seeds.position[..., 1]
    moving = jnp.take_along_axis(background.reshape(T, h * w), at, axis=1)
    unary = jnp.clip(0.5 * (1 + seeds.objectness - moving), 1e-4, 1 - 1e-4)
    unary = jnp.where(seeds.valid, unary, 0.5)
    within, between = graph_weights(seeds)
    if cut == "relaxed":
        labels = relaxed_cut(unary, within, between, smoothness)
    else:
        labels = jax.pure_callback(
            functools.partial(exact_cut, smoothness=smoothness),
            jax.ShapeDtypeStruct((T, S), bool), unary, within, between,
            vmap_method="sequential",
        )  # fmt: skip
    return slice_labels(embedding, seeds, labels, within, between)

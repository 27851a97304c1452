"""Masks from boxes: what a segmenter finds inside an annotated box, if box and flow agree with it.

FusionSeg (Jain, Xiong, Grauman, CVPR 2017) trains its motion stream on such masks. Boxes are
`(x0, y0, x1, y1)` in pixels, the far sides excluded.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from uvos_jax.errors import ConfigError
from uvos_jax.types import VOID

BOX_TESTS = ("area", "tight_box")


def boxes_of_ids(
    masks: Integer[Array, "*B H W"], count: int
) -> tuple[Integer[Array, "*B N 4"], Bool[Array, "*B N"]]:
    """Bounding boxes of the ids 1..count of instance masks, and which ids occur."""
    ids = jnp.arange(1, count + 1)
    inside = masks[..., None, :, :] == ids[:, None, None]
    columns, rows = jnp.any(inside, axis=-2), jnp.any(inside, axis=-1)

    def span(hits: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.argmax(hits, axis=-1), hits.shape[-1] - jnp.argmax(hits[..., ::-1], axis=-1)

    (x0, x1), (y0, y1) = span(columns), span(rows)
    present = jnp.any(columns, axis=-1)
    boxes = jnp.stack([x0, y0, x1, y1], axis=-1)
    return jnp.where(present[..., None], boxes, 0), present


def _fill(box: jax.Array, H: int, W: int) -> jax.Array:
    """Pixels inside a box, bool `[H,W]`."""
    x0, y0, x1, y1 = box
    y, x = jnp.arange(H)[:, None], jnp.arange(W)[None]
    return (x >= x0) & (x < x1) & (y >= y0) & (y < y1)


def _widened(box: jax.Array, margin: float) -> jax.Array:
    x0, y0, x1, y1 = box.astype(jnp.float32)
    dx, dy = margin * (x1 - x0), margin * (y1 - y0)
    return jnp.stack([x0 - dx, y0 - dy, x1 + dx, y1 + dy])


def _area(region: jax.Array) -> jax.Array:
    return jnp.sum(region.astype(jnp.float32))


def _mean_flow(flow: jax.Array, region: jax.Array) -> jax.Array:
    weights = region.astype(jnp.float32)[..., None]
    return jnp.sum(flow * weights, axis=(0, 1)) / jnp.maximum(jnp.sum(weights), 1.0)


def pseudo_mask(
    foreground: Bool[Array, "H W"],
    boxes: Integer[Array, "N 4"],
    present: Bool[Array, "N"],
    flow: Float[Array, "H W 2"],
    *,
    box_overlap: float = 0.75,
    flow_difference: float = 0.3,
    box_test: str = "area",
    margin: float = 0.5,
) -> tuple[Integer[Array, "H W"], Bool[Array, ""], Bool[Array, "N"]]:
    """A mask of one frame from a segmenter's foreground and annotated boxes.

    A box passes if the foreground inside fits it and moves unlike its surroundings:

    - `area`: the foreground fills at least `box_overlap` of the box; `tight_box`: the bounding box
      of the foreground inside has at least that intersection over union with the box;
    - `|m - s| >= flow_difference max(|m|, |s|)`, with m the mean flow of the foreground inside the
      box and s that of the surroundings: the box grown by `margin` of its size on every side,
      without any box. A box without surroundings in the image fails.

    Args:
      present: which of the N boxes exist.

    Returns:
      uint8 labels: 1 foreground in boxes that pass, 255 in the others, 0 elsewhere; whether any
      box passed (frames without one are not for training); which boxes passed.

    Raises:
      ConfigError: unknown `box_test`.
    """
    if box_test not in BOX_TESTS:
        raise ConfigError(f"box_test is {box_test!r}: use one of {BOX_TESTS}")
    H, W = foreground.shape
    filled = jax.vmap(lambda box: _fill(box, H, W))(boxes) & present[:, None, None]
    anywhere = jnp.any(filled, axis=0)

    def passes(box: jax.Array, inside: jax.Array) -> jax.Array:
        mask = foreground & inside
        if box_test == "area":
            overlap = _area(mask) / jnp.maximum(_area(inside), 1.0)
        else:
            tight, found = boxes_of_ids(mask.astype(jnp.int32), 1)
            tight = _fill(tight[0], H, W) & found[0]
            overlap = _area(tight & inside) / jnp.maximum(_area(tight | inside), 1.0)
        around = _fill(_widened(box, margin), H, W) & ~anywhere
        own, other = _mean_flow(flow, mask), _mean_flow(flow, around)
        size = jnp.maximum(jnp.linalg.norm(own), jnp.linalg.norm(other))
        differs = (jnp.linalg.norm(own - other) >= flow_difference * size) & (size > 0)
        return (overlap >= box_overlap) & differs & jnp.any(mask) & jnp.any(around)

    passed = jax.vmap(passes)(boxes, filled) & present
    good = jnp.any(filled & passed[:, None, None], axis=0)
    labels = jnp.where(anywhere & ~good, VOID, (foreground & good).astype(jnp.int32))
    return labels.astype(jnp.uint8), jnp.any(passed), passed

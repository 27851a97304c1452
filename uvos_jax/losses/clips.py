"""The mask loss of a clip: logits at network stride against masks at input size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from uvos_jax.errors import ConfigError
from uvos_jax.losses import balanced_bce, masks
from uvos_jax.losses.dice import soft_iou_loss
from uvos_jax.ops.resize import resize_bilinear

KINDS = ("code", "paper", "bce")


def target_and_weights(batch: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
    """Binary targets and pixel weights `[B,T,H,W]` of a batch of the data contract."""
    labels = jnp.asarray(batch["masks"])
    flags = {k: jnp.asarray(batch[k]) for k in ("valid", "has_mask") if k in batch}
    return masks.binary_target(labels), masks.pixel_weights(labels, **flags)


def upsampled(logits: Float[Array, "B T h w 1"], size: tuple[int, int]) -> jax.Array:
    """float32 logits `[B,T,H,W]` at `size` (H, W)."""
    B, T, h, w, _ = logits.shape
    full = resize_bilinear(logits.astype(jnp.float32).reshape(B * T, h, w, 1), size)
    return full.reshape(B, T, *size)


def mask_loss(
    full: Float[Array, "B T H W"],
    target: Float[Array, "B T H W"],
    weights: Float[Array, "B T H W"],
    *,
    kind: str,
    l1_weight: float = 0.8,
    iou_weight: float = 0.0,
    min_ratio: float = 0.0,
) -> dict[str, jax.Array]:
    """Terms of the loss, each summed over the frames of the clip.

    Args:
      kind: `code`, cross entropy over the share of foreground plus `l1_weight` mean |s - o| (the
        code of COSNet and AGNN); `paper`, class-weighted cross entropy; `bce`, the plain mean.
      iou_weight: of a soft IoU loss, a term of its own.

    Returns:
      `bce`, and `l1` (kind `code`) and `soft_iou` (weight above 0).

    Raises:
      ConfigError: unknown kind.
    """
    if kind not in KINDS:
        raise ConfigError(f"config field model.loss is {kind!r}: use one of {KINDS}")
    terms: dict[str, jax.Array] = {}

    def add(name: str, value: jax.Array) -> None:
        terms[name] = terms.get(name, 0.0) + value

    for t in range(full.shape[1]):  # every frame of the clip has its own foreground ratio
        of_frame = (full[:, t], target[:, t], weights[:, t])
        if kind == "code":
            add("bce", balanced_bce.ratio_weighted_bce(*of_frame, min_ratio=min_ratio))
            add("l1", l1_weight * balanced_bce.mean_absolute_error(*of_frame))
        elif kind == "paper":
            add("bce", balanced_bce.class_weighted_bce(*of_frame))
        else:
            x, o, w = of_frame
            add("bce", masks.weighted_mean(jax.nn.softplus(x) - o * x, w))
        if iou_weight:
            add("soft_iou", iou_weight * soft_iou_loss(*of_frame))
    return terms


def hard_iou(full: jax.Array, target: jax.Array, weights: jax.Array) -> jax.Array:
    """Overlap over union of all pixels that count, at probability 0.5; for the log only."""
    predicted = (full > 0).astype(jnp.float32)
    union = jnp.sum(jnp.maximum(predicted, target) * weights)
    overlap = jnp.sum(predicted * target * weights)
    return overlap / jnp.maximum(union, 1.0)

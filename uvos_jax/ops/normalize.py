"""From uint8 RGB frames to what each family of networks was trained on."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from uvos_jax.errors import ConfigError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
#: B, G, R means of the Caffe-born systems as COSNet and AGNN write them.
CAFFE_BGR_MEAN = (104.00699, 116.66877, 122.67892)

NORMALIZATIONS = ("imagenet", "caffe_bgr", "unit")


def normalize_frames(
    frames: jax.Array,
    kind: str,
    *,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
) -> jax.Array:
    """Normalises RGB frames with values 0..255 (uint8 or float), last axis 3; returns float32.

    Args:
      frames: `[...,3]`, RGB.
      kind: `imagenet` (scaled to 0..1, minus mean, over std; RGB), `caffe_bgr` (reversed to BGR,
        0..255 minus mean, over std if given), `unit` (scaled to 0..1; minus mean, over std if
        given; RGB).
      mean, std: override the constants of `kind`, in the channel order of the result.

    Raises:
      ConfigError: `kind` is not one of the three.
    """
    if kind not in NORMALIZATIONS:
        raise ConfigError(f"normalization {kind!r} is unknown: use one of {NORMALIZATIONS}")
    x = frames.astype(jnp.float32)
    if kind == "caffe_bgr":
        x = x[..., ::-1] - jnp.asarray(mean or CAFFE_BGR_MEAN, jnp.float32)
    else:
        x = x / 255.0
        if kind == "imagenet" or mean is not None:
            x = x - jnp.asarray(mean or IMAGENET_MEAN, jnp.float32)
        std = std or (IMAGENET_STD if kind == "imagenet" else None)
    return x if std is None else x / jnp.asarray(std, jnp.float32)

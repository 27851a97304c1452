"""Official MP-Net weights: `model_new.dat` or `model_paper.dat`, Torch7 networks."""

from __future__ import annotations

from typing import Any

from uvos_jax.convert.mpnet_stream import load as load
from uvos_jax.convert.mpnet_stream import stream_table
from uvos_jax.convert.table import NameTable
from uvos_jax.errors import UnsupportedError


def table(config: Any) -> NameTable:
    """Layers by order and our paths.

    Raises:
      UnsupportedError: an encoding with other channels than angle and length.
    """
    if config.angle_mode == "sincos":
        raise UnsupportedError(
            "official MP-Net weights do not fit model.angle_mode='sincos': the release sees two "
            "channels; convert with the configuration mpnet:full"
        )
    return stream_table("stream")

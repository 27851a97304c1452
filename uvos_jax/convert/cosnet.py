"""Official COSNet weights: `co_attention_davis_<epoch>.pth`, pair and group networks alike.

A torch pickle `{"epoch": int, "model": state_dict}` whose keys carry DataParallel's `module.`. Of
its 687 arrays, 112 are counters that nothing needs; the rest fills every variable of the `full`
configuration (vanilla or symmetric attention, one convolution per head, gate without bias).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from uvos_jax.convert.backbones import deeplab_embedding
from uvos_jax.convert.readers import Source, read_official
from uvos_jax.convert.table import NameTable, batch_norm, conv, dense, joined
from uvos_jax.errors import UnsupportedError


def load(source: Source) -> dict[str, np.ndarray]:
    """Official arrays by name, without the prefix of DataParallel."""
    return {k.removeprefix("module."): v for k, v in read_official(source).items()}


def table(config: Any) -> NameTable:
    """Names of the release and our paths for a COSNet with the given `model` section.

    Raises:
      UnsupportedError: the configuration has parts that the release lacks.
    """
    extra = {
        "attention": config.attention in ("vanilla", "symmetric"),
        "gate_bias": not config.gate_bias,
        "head_convs": config.head_convs == 1,
    }
    for field, fits in extra.items():
        if not fits:
            raise UnsupportedError(
                f"official COSNet weights do not fit model.{field}={config[field]!r}: the release "
                "has vanilla attention, a gate without bias and one convolution per head; convert "
                "with the configuration cosnet:full"
            )
    heads = [
        conv(f"conv{i}", f"{head}/conv1")
        + batch_norm(f"bn{i}", f"{head}/norm1")
        + conv(f"main_classifier{i}", f"{head}/classifier", bias=True)
        for i, head in ((1, "query_head"), (2, "reference_head"))
    ]
    encoder = encoder_table(config).renamed("encoder.")
    return joined([encoder, dense("linear_e", "affinity"), conv("gate", "gate/conv"), *heads])


def encoder_table(config: Any) -> NameTable:
    """Names of the saliency-trained encoder training starts from (`deeplab_davis_12_0.pth`)."""
    return deeplab_embedding(config.block_counts, len(config.aspp_rates)).renamed(ours="encoder")


PARTS = {"encoder": encoder_table}

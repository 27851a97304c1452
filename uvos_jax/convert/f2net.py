"""Checkpoints of the released F2Net trainer: `co_attention_davis_<epoch>.pth`.

A torch pickle `{"epoch": int, "model": state_dict}` whose keys carry DataParallel's `module.`. Of
its 742 arrays, 120 are counters; the rest fills every variable of any variant. The authors
published no weights; the encoder training starts from is COSNet's (`deeplab_davis_12_0.pth`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from uvos_jax.convert.backbones import deeplab_embedding
from uvos_jax.convert.readers import Source, read_official
from uvos_jax.convert.table import NameTable, batch_norm, conv, joined


def load(source: Source) -> dict[str, np.ndarray]:
    """Official arrays by name, without the prefix of DataParallel."""
    return {k.removeprefix("module."): v for k, v in read_official(source).items()}


def table(config: Any) -> NameTable:
    """Names of the release and our paths for an F2Net with the given `model` section."""
    units = []
    for k in range(1, len(config.block_counts) + 1):
        name, path = f"upsample.up{k}", f"upsample/up{k}"
        units += [
            conv(f"{name}.u_skip", f"{path}/u_skip"),
            batch_norm(f"{name}.bn1", f"{path}/bn1"),
        ]
        if k > 1:
            units.append(conv(f"{name}.up_conv", f"{path}/up_conv"))
            units.append(batch_norm(f"{name}.bn2", f"{path}/bn2"))
        if k == len(config.block_counts):
            units.append(conv(f"{name}.cross_conv", f"{path}/cross_conv"))
            units.append(batch_norm(f"{name}.bn5", f"{path}/bn5"))
    return joined(
        [
            encoder_table(config).renamed("encoder."),
            *units,
            conv("fc.0", "fc_0", bias=True),
            conv("fc.2", "fc_2", bias=True),
            conv("motion_conv_w", "motion_conv_w", bias=True),
            conv("motion_conv_b", "motion_conv_b", bias=True),
            conv("channel_attention_conv1", "channel_attention_conv1"),
            batch_norm("channel_attention_bn", "channel_attention_bn/bn"),
            conv("channel_attention_conv2", "channel_attention_conv2"),
            conv("spatial_attention_conv", "spatial_attention_conv"),
            conv("cls.0", "cls_0", bias=True),
            batch_norm("cls.1", "cls_1/bn"),
            conv("cls.3", "cls_3", bias=True),
        ]
    )


def encoder_table(config: Any) -> NameTable:
    """Names of the saliency-trained encoder training starts from (`deeplab_davis_12_0.pth`)."""
    return deeplab_embedding(config.block_counts, len(config.aspp_rates)).renamed(ours="encoder")


PARTS = {"encoder": encoder_table}

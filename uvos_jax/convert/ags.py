"""Official AGS weights: `dvap_agos.caffemodel`.

660 blobs that matter and 4 placeholders: the network at 473x473 (the peepholes are maps of 30x30),
in the `full` configuration.
"""

from __future__ import annotations

from typing import Any

from uvos_jax.convert.caffe_names import batch_norm, conv, conv_lstm, psp_resnet
from uvos_jax.convert.table import NameTable, joined
from uvos_jax.errors import UnsupportedError

#: Settings of the released network.
RELEASED = {
    "aspp_blocks": 3,
    "temporal_module": "convlstm",
    "peephole": "spatial",
    "head_channels": 2,
}
#: Per block: prefix of its branches, its last convolution and that one's BN layer.
BLOCKS = (
    ("conv5_3", "conv5_4_", "conv5_4/bn_"),
    ("conv5_4", "conv5_5", "conv5_5/bn"),
    ("conv5_8", "conv5_8", "conv5_8/bn"),
)
FIXATION = ("conv5_5_att", "conv5_6_att", "conv5_7_att")


def _conv_bn(name: str, path: str, bn: str = "") -> list[NameTable]:
    return [conv(name, f"{path}/conv"), batch_norm(bn or f"{name}/bn", f"{path}/bn")]


def table(config: Any) -> NameTable:
    """Names of the release and our paths for an AGS with the given `model` section.

    Raises:
      UnsupportedError: the configuration has other parts than the release.
    """
    for field, released in RELEASED.items():
        if config[field] != released:
            raise UnsupportedError(
                f"official AGS weights do not fit model.{field}={config[field]!r}: the release has "
                f"{released!r}; convert with the configuration ags:full"
            )
    if config.attention == "none":
        raise UnsupportedError(
            "official AGS weights do not fit model.attention='none': the release has an attention "
            "branch; convert with the configuration ags:full"
        )
    tables = [psp_resnet(config.block_counts).renamed(ours="backbone")]
    for i, (prefix, last, bn) in enumerate(BLOCKS):
        tables += _conv_bn(f"{prefix}_{config.pyramid_widths[i]}_conv", f"pyramid_{i}/point")
        for dilation in config.pyramid_dilations[i]:
            tables += _conv_bn(f"{prefix}_d{dilation}_conv", f"pyramid_{i}/d{dilation}")
        tables += _conv_bn(f"{prefix}_pool_conv", f"pyramid_{i}/pool")
        tables += _conv_bn(last, f"pyramid_{i}/join", bn)
    for i, name in enumerate(FIXATION):
        tables += _conv_bn(name, f"fixation_{i}")
    tables += [
        conv_lstm("encode1", "recurrence"),
        conv("conv7", "fixation_head", bias=True),
        conv("conv6_", "head", bias=True),
    ]
    return joined(tables)

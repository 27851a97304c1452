"""Official PDB-ConvLSTM weights: `pdb-convlstm.caffemodel`.

341 blobs that matter and 16 placeholders: the network at 473x473 (the peepholes are maps of 60x60),
in the `full` configuration. The spatial head, with which the first stage of training supervises the
squeezed features, is in no release; it starts at zero and has no part in a prediction.
"""

from __future__ import annotations

from typing import Any

from uvos_jax.convert.caffe_names import (
    batch_norm,
    conv,
    conv_lstm,
    new_parameter,
    psp_resnet,
)
from uvos_jax.convert.table import NameTable, joined
from uvos_jax.errors import UnsupportedError

#: ConvLSTM layers of the release by dilation and direction.
ENCODERS = {
    (1, "forward"): "encode1",
    (2, "forward"): "encode2",
    (1, "backward"): "encode3",
    (2, "backward"): "encode4",
}
#: Settings of the released network.
RELEASED = {
    "spatial_module": "pdc",
    "temporal_module": "pdb_convlstm",
    "lstm_dilations": (1, 2),
    "peephole": "spatial",
    "fusion": "sum",
    "head_channels": 2,
}


def table(config: Any) -> NameTable:
    """Names of the release and our paths for a PDB-ConvLSTM with the given `model` section.

    Raises:
      UnsupportedError: the configuration has other parts than the release.
    """
    for field, released in RELEASED.items():
        if config[field] != released:
            raise UnsupportedError(
                f"official PDB-ConvLSTM weights do not fit model.{field}={config[field]!r}: the "
                f"release has {released!r}; convert with the configuration pdb_convlstm:full"
            )
    tables = [psp_resnet(config.block_counts).renamed(ours="backbone")]
    for dilation in config.pdc_dilations:
        name = f"conv5_3_d{dilation}_conv"
        tables.append(conv(name, f"pdc/d{dilation}/conv"))
        tables.append(batch_norm(f"{name}/bn", f"pdc/d{dilation}/bn"))
    tables += [conv("conv5_4_", "pdc/squeeze/conv"), batch_norm("conv5_4/bn_", "pdc/squeeze/bn")]
    for (dilation, direction), name in ENCODERS.items():
        tables.append(conv_lstm(name, f"recurrence/dilation{dilation}/{direction}"))
    tables += [
        conv("conv7", "head", bias=True),
        new_parameter("spatial_head/kernel", (1, 1, config.squeeze, 1)),
        new_parameter("spatial_head/bias", (1,)),
    ]
    return joined(tables)

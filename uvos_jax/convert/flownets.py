"""Name tables of FlowNetS and FlowNetC: PyTorch (`FlowNetPytorch`, `flownet2-pytorch`) and Caffe.

A system with a FlowNet inside joins one of these to its own table, for example
`flownets_caffe().renamed(ours="flow")`.
"""

from __future__ import annotations

import os
from typing import Any

from flax import linen as nn

from uvos_jax.convert import caffe_names
from uvos_jax.convert.readers import read_official
from uvos_jax.convert.table import (
    TRANSPOSED_CONV,
    Entry,
    NameTable,
    batch_norm,
    conv,
    joined,
)
from uvos_jax.convert.variables import load_variables, save_variables, unflatten
from uvos_jax.errors import CheckpointError
from uvos_jax.modules.flownets import FlowNetC, FlowNetS, PWCNet

_TOP = 6


def _pytorch(convs: list[str], *, norm: bool, decoder_bias: bool, upsample_bias: bool) -> NameTable:
    tables = []
    for name in convs:
        tables.append(conv(f"{name}.0", f"{name}/conv", bias=not norm))
        if norm:
            tables.append(batch_norm(f"{name}.1", f"{name}/bn"))
    for level in range(_TOP - 1, 1, -1):
        tables.append(
            conv(f"deconv{level}.0", f"decoder/deconv{level}", bias=decoder_bias,
                 layout=TRANSPOSED_CONV)
        )  # fmt: skip
        tables.append(
            conv(f"upsampled_flow{level + 1}_to_{level}", f"decoder/upsample_flow{level + 1}",
                 bias=upsample_bias, layout=TRANSPOSED_CONV)
        )  # fmt: skip
    for level in range(_TOP, 1, -1):
        name = f"predict_flow{level}"
        tables.append(conv(name, f"decoder/{name}", bias=decoder_bias))
    return joined(tables)


_HEAD = ["conv1", "conv2", "conv3"]
_TAIL = ["conv3_1", "conv4", "conv4_1", "conv5", "conv5_1", "conv6", "conv6_1"]


def flownets(
    *, norm: bool = False, decoder_bias: bool = False, upsample_bias: bool = False
) -> NameTable:
    """`conv1.0.weight`, ..., `predict_flow2.weight` of a full-size `FlowNetS` of equal options."""
    return _pytorch(
        _HEAD + _TAIL, norm=norm, decoder_bias=decoder_bias, upsample_bias=upsample_bias
    )


def flownetc(
    *, norm: bool = False, decoder_bias: bool = False, upsample_bias: bool = False
) -> NameTable:
    """The same of a full-size `FlowNetC`."""
    return _pytorch(
        [*_HEAD, "conv_redir", *_TAIL],
        norm=norm,
        decoder_bias=decoder_bias,
        upsample_bias=upsample_bias,
    )


def flownets_caffe(first: str = "conv1") -> NameTable:
    """Blobs `conv1:0`, ..., `Convolution5:1` of the Caffe FlowNetS, with biases everywhere.

    Args:
      first: name of the first layer; SegFlow calls it `conv1_flowS`.
    """
    tables = [caffe_names.conv(first, "conv1/conv", bias=True)]
    tables += [caffe_names.conv(name, f"{name}/conv", bias=True) for name in [*_HEAD[1:], *_TAIL]]

    def deconvolution(name: str, path: str) -> NameTable:
        return NameTable(
            (
                Entry((f"{name}:0",), (f"params/decoder/{path}/kernel",), TRANSPOSED_CONV),
                Entry((f"{name}:1",), (f"params/decoder/{path}/bias",)),
            )
        )

    for index, level in enumerate(range(_TOP, 1, -1), start=1):
        tables.append(
            caffe_names.conv(f"Convolution{index}", f"decoder/predict_flow{level}", bias=True)
        )
        if level > 2:
            tables.append(deconvolution(f"deconv{level - 1}", f"deconv{level - 1}"))
            tables.append(
                deconvolution(f"upsample_flow{level}to{level - 1}", f"upsample_flow{level}")
            )
    return joined(tables)


# ----- networks on their own ----------------------------------------------------------------------

#: Networks that estimate flow by themselves, by the names of their providers.
NETWORKS = {"flownets": FlowNetS, "flownetc": FlowNetC, "pwc_lite": PWCNet}


def save_network(
    kind: str, arguments: dict[str, Any], variables: Any, path: str | os.PathLike, **options: Any
) -> None:
    """Writes a flow network with the arguments of its module (options: of `save_variables`)."""
    extra = {"flow_network": {"kind": kind, "arguments": arguments}, **options.pop("extra", {})}
    save_variables(variables, path, extra=extra, **options)


def load_network(kind: str, path: str | os.PathLike) -> tuple[nn.Module, Any]:
    """The module and variables of a file of `save_network`, or of FlowNetPytorch's checkpoints.

    Raises:
      CheckpointError: no such file, another network, or weights that expect images normalised
        otherwise (flownet2-pytorch, Caffe).
    """
    try:
        variables = load_variables(path)
        stored = variables.meta.get("flow_network")
    except CheckpointError:
        stored, variables = None, None
    if stored:
        if stored["kind"] != kind:
            raise CheckpointError(
                f"flow weights {path} belong to {stored['kind']!r}, not to {kind!r}"
            )
        arguments = {
            k: tuple(v) if isinstance(v, list) else v for k, v in stored["arguments"].items()
        }
        return NETWORKS[kind](**arguments), dict(variables)
    if kind == "pwc_lite":
        raise CheckpointError(
            f"{path} holds no weights of a PWC-Net made here (tools/train_flow.py writes them)"
        )
    arrays = read_official(path)
    if "predict_flow2.bias" in arrays or "Convolution1:0" in arrays:
        raise CheckpointError(
            f"{path} holds a FlowNet of flownet2-pytorch or Caffe, which expects images normalised "
            "otherwise; FlowNetPytorch's checkpoints (no bias in predict_flow2) can be used"
        )
    norm = "conv1.1.weight" in arrays
    table = (flownets if kind == "flownets" else flownetc)(norm=norm)
    ours, report = table.to_ours(arrays)
    if not report.complete:
        raise CheckpointError(f"{path} is no {kind}: {'; '.join(report.problems())}")
    return NETWORKS[kind](norm=norm), unflatten(ours)

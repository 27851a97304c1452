"""Official AGNN weights: `attention_agnn_<epoch>.pth`.

A torch pickle `{"epoch": int, "model": state_dict}` whose keys carry DataParallel's `module.`. What
is not a counter of batches fills every variable of the `full` configuration (`variant="release"`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from uvos_jax.convert.backbones import deeplab_embedding
from uvos_jax.convert.readers import Source, read_official
from uvos_jax.convert.table import Entry, Layout, NameTable, array, batch_norm, conv, dense, joined
from uvos_jax.errors import UnsupportedError
from uvos_jax.systems.agnn import VARIANTS, settings


def load(source: Source) -> dict[str, np.ndarray]:
    """Official arrays by name, without the prefix of DataParallel."""
    return {k.removeprefix("module."): v for k, v in read_official(source).items()}


def _kernels_to_ours(reset, update, candidate):
    """Three `(F, 2F, 1, 1)` kernels over [message, state] to input, gate and candidate kernels."""
    r, z, q = (x.transpose(2, 3, 1, 0) for x in (reset, update, candidate))
    F = r.shape[-1]
    return (
        np.concatenate([x[:, :, :-F] for x in (r, z, q)], axis=-1),
        np.concatenate([x[:, :, -F:] for x in (r, z)], axis=-1),
        q[:, :, -F:],
    )


def _kernels_to_official(inputs, gates, candidate):
    F = candidate.shape[-1]
    of_message = np.split(inputs, 3, axis=-1)
    of_state = [gates[..., :F], gates[..., F:], candidate]
    return tuple(
        np.concatenate(pair, axis=2).transpose(3, 2, 0, 1)
        for pair in zip(of_message, of_state, strict=True)
    )


_GRU = Layout("three gates to one kernel", _kernels_to_ours, _kernels_to_official)
_BIASES = Layout(
    "three biases to one",
    lambda *x: np.concatenate(x),
    lambda x: tuple(np.split(x, 3)),
)


def _update() -> NameTable:
    gates = ("reset_gate", "update_gate", "out_gate")
    path = "params/graph/round/update"
    ours = (f"{path}/input/kernel", f"{path}/gate_kernel", f"{path}/candidate_kernel")
    return NameTable(
        (
            Entry(tuple(f"ConvGRU.{g}.weight" for g in gates), ours, _GRU),
            Entry(tuple(f"ConvGRU.{g}.bias" for g in gates), (f"{path}/input/bias",), _BIASES),
        )
    )


def table(config: Any) -> NameTable:
    """Names of the release and our paths for an AGNN with the given `model` section.

    Raises:
      UnsupportedError: the configuration has parts that the release lacks, or lacks some it has.
    """
    chosen = settings(config)
    release = VARIANTS["release"]
    for field in ("gate", "gate_bias", "aggregation", "loop", "self_attention"):
        if chosen[field] != release[field]:
            raise UnsupportedError(
                f"official AGNN weights do not fit {field}={chosen[field]!r}: the release has "
                f"{field}={release[field]!r}; convert with the configuration agnn:full"
            )
    tail = [
        conv("layer5.sa.query_conv", "sa/query_conv", bias=True),
        conv("layer5.sa.key_conv", "sa/key_conv", bias=True),
        conv("layer5.sa.value_conv", "sa/value_conv", bias=True),
        array("layer5.sa.gamma", "sa/gamma"),
        conv("layer5.conv51.0", "conv51/conv"),
        batch_norm("layer5.conv51.1", "conv51/bn"),
    ]
    encoder = joined([deeplab_embedding(config.block_counts, len(config.aspp_rates)), *tail])
    return joined(
        [
            encoder.renamed("encoder.", "encoder"),
            dense("linear_e", "graph/round/affinity"),
            conv("gate", "graph/round/gate_of/conv"),
            conv("conv_fusion", "graph/round/fusion", bias=True),
            _update(),
            conv("conv1", "head/conv1"),
            batch_norm("bn1", "head/norm1"),
            conv("main_classifier1", "head/classifier", bias=True),
        ]
    )


def encoder_table(config: Any) -> NameTable:
    """Names of the saliency-trained DeepLabv3 training starts from (`deeplab_davis_12_0.pth`).

    It lacks the self-attention behind the ASPP, which starts fresh.
    """
    return deeplab_embedding(config.block_counts, len(config.aspp_rates)).renamed(ours="encoder")


PARTS = {"encoder": encoder_table}

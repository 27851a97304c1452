"""Transposed convolutions against PyTorch's."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvos_jax.convert.table import TRANSPOSED_CONV
from uvos_jax.modules.layers import ConvTranspose

STORED = dict(np.load(Path(__file__).resolve().parents[1] / "data" / "transposed_conv.npz"))


@pytest.mark.parametrize("case", [0, 1, 2])
def test_transposed_convolution_equals_pytorch(case):
    x, y, weight, (stride, padding), bias = (
        STORED.get(f"case{case}__{k}") for k in ("x", "y", "weight", "stride_pad", "bias")
    )
    module = ConvTranspose(
        y.shape[1], weight.shape[-1], int(stride), int(padding), use_bias=bias is not None
    )
    params = {"kernel": TRANSPOSED_CONV.to_ours(weight)}
    if bias is not None:
        params["bias"] = bias
    with jax.default_matmul_precision("highest"):
        got = module.apply({"params": params}, jnp.asarray(x.transpose(0, 2, 3, 1)))
    np.testing.assert_allclose(np.asarray(got).transpose(0, 3, 1, 2), y, rtol=1e-5, atol=1e-5)

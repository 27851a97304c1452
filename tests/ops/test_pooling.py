"""Pooling against stored outputs of PyTorch, Caffe and TF1, and its size rules."""

import inspect
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvos_jax.errors import ConfigError, ShapeError
from uvos_jax.ops.pooling import avg_pool, caffe_pool, max_pool, pooled_size

STORED = dict(np.load(Path(__file__).resolve().parents[1] / "data" / "ops_pooling.npz"))


def cases(framework, pattern):
    matches = [re.fullmatch(f"{framework}/{pattern}", name) for name in sorted(STORED)]
    return [pytest.param(m.group(), *m.groups(), id=m.group()) for m in matches if m]


@pytest.mark.parametrize(
    "name, kind, k, s, p, ceil, size",
    cases("torch", r"(max|avg)_k(\d)s(\d)p(\d)_ceil(\d)(?:_countpad1)?_(\d+x\d+)"),
)
def test_pooling_equals_pytorch(name, kind, k, s, p, ceil, size):
    pool = {"max": max_pool, "avg": avg_pool}[kind]
    x = jnp.asarray(STORED[f"torch/x_{size}"])
    ours = pool(x, int(k), int(s), int(p), ceil_mode=ceil == "1")
    np.testing.assert_allclose(ours, STORED[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "name, kind, k, s, p, size", cases("caffe", r"(max|ave)_k(\d)s(\d)p(\d)_(\d+x\d+)")
)
def test_pooling_equals_caffe(name, kind, k, s, p, size):
    x = jnp.asarray(STORED[f"caffe/x_{size}"])
    ours = caffe_pool(x, kind, int(k), int(s), int(p))
    np.testing.assert_allclose(ours, STORED[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name, case", cases("tf1", r"(case\d)__maxpool_k3s2_SAME"))
def test_same_padding_equals_tf1(name, case):
    ours = max_pool(jnp.asarray(STORED[f"tf1/{case}__x"]), 3, 2, "SAME")
    np.testing.assert_array_equal(ours, STORED[name])


@pytest.mark.parametrize(
    "conv1, floor, ceil", [(33, 17, 17), (112, 56, 57), (120, 60, 61), (237, 119, 119)]
)
def test_ceil_mode_matters_for_even_sizes_only(conv1, floor, ceil):
    assert pooled_size(conv1, 3, 2, 1, ceil_mode=False) == floor
    assert pooled_size(conv1, 3, 2, 1, ceil_mode=True) == ceil


def test_valid_count_ignores_padding():
    y = avg_pool(jnp.ones((1, 4, 5, 1)), 3, 2, 1, ceil_mode=True, count="valid")
    np.testing.assert_allclose(y, 1.0, rtol=1e-6)
    padded = avg_pool(jnp.ones((1, 4, 5, 1)), 3, 2, 1, ceil_mode=True)
    assert float(padded[0, 0, 0, 0]) == pytest.approx(4 / 9)


def test_pooling_has_gradients():
    x = jnp.arange(25.0).reshape(1, 5, 5, 1)
    assert float(jax.grad(lambda x: max_pool(x, 3, 2, 1).sum())(x).sum()) == 9
    gradient = jax.grad(lambda x: avg_pool(x, 5, 1).sum())(x)
    np.testing.assert_allclose(gradient, 1 / 25, rtol=1e-6)


def test_wrong_arguments_are_explained():
    x = jnp.zeros((1, 2, 9, 1))
    with pytest.raises(ShapeError, match=r"window 5 does not fit into 2 pixels \+ 2 x 1"):
        max_pool(x, 5, 2, 1)
    with pytest.raises(ConfigError, match="use 'padded' or 'valid'"):
        inspect.unwrap(avg_pool)(x, 2, 2, count="all")
    with pytest.raises(ConfigError, match="use 'max' or 'ave'"):
        inspect.unwrap(caffe_pool)(x, "mean", 2, 2)

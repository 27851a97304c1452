"""MP-Net under the names of its Torch7 release: layers by order, flat kernels, old statistics.

No outputs of the released network are at hand; the network is compared with a slow one in loops.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uvos_jax as uvos
from uvos_jax.convert import convert
from uvos_jax.convert.mpnet import table
from uvos_jax.convert.mpnet_stream import KERNELS, numbered
from uvos_jax.convert.official import to_official
from uvos_jax.convert.variables import flatten
from uvos_jax.errors import CheckpointError, UnsupportedError


def arrays_of(config="mpnet:tiny", seed=0):
    """Official names of a network with random values (variances positive)."""
    system = uvos.build(config)
    targets = dict(flatten(jax.eval_shape(system.init, jax.random.key(0))))
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, shape in table(system.config).official_shapes(targets).items():
        values = rng.standard_normal(shape)
        if len(shape) == 4:
            values *= np.sqrt(2 / np.prod(shape[1:]))
        elif name.endswith(("running_var", "SpatialBatchNormalization.weight")):
            values = 0.5 + np.abs(values)
        arrays[name] = values.astype(np.float32)
    return arrays


def test_layers_are_those_of_the_release_in_order():
    system = uvos.build("mpnet")
    targets = dict(flatten(jax.eval_shape(system.init, jax.random.key(0))))
    shapes = table(system.config).official_shapes(targets)
    inputs = (2, 64, 128, 256, 256, 256, 256, 512, 256, 512, 256, 512, 256, 384, 256, 512)
    outputs = (64, 128, *(256,) * 12, 512, 1)
    assert len(shapes) == 2 * 16 + 4 * 15
    for i, (c, o, k) in enumerate(zip(inputs, outputs, KERNELS, strict=True), start=1):
        assert tuple(shapes[f"SpatialConvolution.{i}.weight"]) == (o, c, k, k)


def test_conversion_goes_there_and_back():
    arrays = arrays_of()
    back = to_official("mpnet", convert("mpnet", arrays, "mpnet:tiny"))
    assert set(back) == set(arrays)
    for name, array in back.items():
        np.testing.assert_array_equal(array, arrays[name])


def test_flat_kernels_and_old_statistics_are_understood():
    arrays = arrays_of()
    expected = convert("mpnet", arrays, "mpnet:tiny")
    old = dict(arrays)
    for name, value in arrays.items():
        if value.ndim == 4:
            old[name] = value.reshape(value.shape[0], -1)
        elif name.endswith("running_var"):
            epsilon = 1e-4 if ".1." in name else 1e-5
            std = 1 / np.sqrt(old.pop(name).astype(np.float64) + epsilon)
            old[name.replace("_var", "_std")] = std
    got = convert("mpnet", old, "mpnet:tiny")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, expected)


def test_modules_are_numbered_by_kind():
    x = np.zeros(1)
    layers = [
        ("nn.Identity", {}),
        ("cudnn.SpatialConvolution", {"weight": x, "bias": x, "stride": 1}),
        ("nn.SpatialBatchNormalization", {"weight": x, "running_mean": x}),
        ("nn.SpatialConvolutionMM", {"weight": x}),
    ]
    assert set(numbered(layers)) == {
        "SpatialConvolution.1.weight",
        "SpatialConvolution.1.bias",
        "SpatialConvolution.2.weight",
        "SpatialBatchNormalization.1.weight",
        "SpatialBatchNormalization.1.running_mean",
    }


def test_a_partial_fit_is_refused():
    arrays = arrays_of()
    del arrays["SpatialConvolution.9.bias"]
    with pytest.raises(CheckpointError, match=r"1 missing \(such as SpatialConvolution\.9\.bias"):
        convert("mpnet", arrays, "mpnet:tiny")
    with pytest.raises(UnsupportedError, match=r"angle_mode='sincos'.*mpnet:full"):
        convert("mpnet", {}, "mpnet:sincos")


# ----- the whole network in loops -------------------------------------------------------------


def slow_block(x, arrays, i, activate=True):
    kernel, bias = (arrays[f"SpatialConvolution.{i}.{f}"] for f in ("weight", "bias"))
    k = kernel.shape[2]
    padded = np.pad(x, ((0, 0), (k // 2,) * 2, (k // 2,) * 2))
    H, W = x.shape[1:]
    y = np.zeros((kernel.shape[0], H, W)) + bias[:, None, None]
    for dy, dx in np.ndindex(k, k):
        y += np.einsum("oi,ihw->ohw", kernel[:, :, dy, dx], padded[:, dy : dy + H, dx : dx + W])
    if not activate:
        return y
    norm = [arrays[f"SpatialBatchNormalization.{i}.{f}"][:, None, None]
            for f in ("weight", "bias", "running_mean", "running_var")]  # fmt: skip
    scale, shift, mean, var = norm
    y = (y - mean) / np.sqrt(var + (1e-4 if i == 1 else 1e-5)) * scale + shift
    return np.maximum(y, 0)


def slow_pool(x):
    C, H, W = x.shape
    return x[:, : H // 2 * 2, : W // 2 * 2].reshape(C, H // 2, 2, W // 2, 2).max((2, 4))


def slow_join(x, skip):
    """Bilinear with aligned corners to the skip's size, then [x, skip]."""
    out = np.zeros((x.shape[0], *skip.shape[1:]))
    for index in np.ndindex(skip.shape[1:]):
        total = 0.0
        at = [i * (n - 1) / (m - 1) if m > 1 else 0.0
              for i, n, m in zip(index, x.shape[1:], skip.shape[1:], strict=True)]  # fmt: skip
        for corner in np.ndindex(2, 2):
            low = [int(p) for p in at]
            near = [min(a + c, n - 1) for a, c, n in zip(low, corner, x.shape[1:], strict=True)]
            w = np.prod([abs(1 - c - (p - a)) for p, a, c in zip(at, low, corner, strict=True)])
            total = total + w * x[:, near[0], near[1]]
        out[(slice(None), *index)] = total
    return np.concatenate([out, skip])


def test_the_network_equals_one_in_loops():
    arrays = arrays_of()
    system = uvos.build("mpnet:tiny")
    field = np.random.default_rng(3).standard_normal((58, 70, 2)).astype(np.float32)
    block = lambda x, i: slow_block(x, arrays, i)  # noqa: E731
    s1 = block(slow_pool(block(field.transpose(2, 0, 1), 1)), 2)
    s2 = block(slow_pool(s1), 3)
    s3 = block(block(slow_pool(s2), 4), 5)
    s4 = block(slow_pool(s3), 6)
    x = block(slow_pool(s4), 7)
    for i, skip in zip((8, 10, 12, 14), (s4, s3, s2, s1), strict=True):
        x = block(block(slow_join(x, skip), i), i + 1)
    expected = slow_block(x, arrays, 16, activate=False)[0]
    variables = convert("mpnet", arrays, "mpnet:tiny")
    with jax.default_matmul_precision("highest"):
        logits = jax.jit(system.module.apply)(dict(variables), jnp.asarray(field)[None, None])
    got = np.asarray(logits["logits"])[0, 0, ..., 0]
    assert got.shape == (29, 35)
    np.testing.assert_allclose(got, expected, atol=1e-4 * max(1, np.abs(expected).max()))

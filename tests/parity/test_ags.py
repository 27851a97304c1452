"""AGS: official names, and every part against a slow NumPy network under its official weights.

The oracle below walks through `deploy.prototxt@wenguanwang/AGS` (commit 6b2edc6) layer by layer at
65x65 instead of 473x473, with loops and index arithmetic only; names are those of the prototxt.
"""

import json
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uvos_jax as uvos
from tests.parity.rule import relative_difference
from uvos_jax.convert import convert
from uvos_jax.convert.ags import table
from uvos_jax.convert.official import to_official
from uvos_jax.convert.variables import flatten
from uvos_jax.errors import CheckpointError, UnsupportedError

#: Full size: minutes in all.
pytestmark = pytest.mark.slow

DATA = Path(__file__).resolve().parents[1] / "data"
NAMES = {k: tuple(v) for k, v in json.loads((DATA / "ags_names.json").read_text()).items()}
SIZE = (65, 65)


def official_array(name):
    """A deterministic weight for `name`; each blob has its own generator."""
    shape = NAMES[name]
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    layer, _, index = name.partition(":")
    if "/bn" in layer:
        value = {
            "0": lambda: 1 + 0.1 * rng.standard_normal(shape),
            "3": lambda: 0.5 + rng.random(shape),
        }.get(index, lambda: 0.1 * rng.standard_normal(shape))()
        if layer.endswith("_1x1_increase/bn") and index == "0":
            value = value * 0.2  # the plain rule explodes through 33 residual blocks
    elif shape == (1,) and layer == "encode1":
        value = np.zeros(shape)
    elif len(shape) == 4:
        value = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        value = value * (0.1 if layer == "conv6_" else 1.0)
    else:
        shape = (5, 5) if shape == (30, 30) else shape  # peepholes at 65x65
        value = 0.1 * rng.standard_normal(shape)
    return value.astype(np.float32)


def small_arrays(config="ags:tiny"):
    """Official names of a small network with random values, for tests of names only."""
    system = uvos.build(config)
    targets = dict(flatten(jax.eval_shape(system.init, jax.random.key(0))))
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in table(system.config).official_shapes(targets).items()
    }
    return arrays | {f"encode1:{j}": np.zeros(1, np.float32) for j in "1289"}


# ----- names ----------------------------------------------------------------------------------


def test_table_lists_every_official_name_and_shape():
    system = uvos.build("ags")
    targets = dict(flatten(jax.eval_shape(system.init, jax.random.key(0))))
    shapes = table(system.config).official_shapes(targets)
    unused = {f"encode1:{j}" for j in "1289"}
    assert len(NAMES) == 664
    assert set(shapes) | unused == set(NAMES)
    assert all(tuple(shapes[name]) == NAMES[name] for name in shapes)
    assert sum(int(np.prod(shape)) for shape in NAMES.values()) == 68_915_507


def test_conversion_goes_there_and_back_without_loss():
    arrays = small_arrays()
    back = to_official("ags", convert("ags", arrays, "ags:tiny"))
    assert set(arrays) - set(back) == {f"encode1:{j}" for j in "1289"}
    for name, array in back.items():
        np.testing.assert_array_equal(array, arrays[name])


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda a: a.pop("conv5_5_att:0"), r"1 missing \(such as conv5_5_att:0\)"),
        (lambda a: a.update({"conv5_6:0": np.zeros(3)}), r"1 unknown \(such as conv5_6:0\)"),
        (
            lambda a: a.update({"encode1:5": np.zeros((30, 30))}),
            r"recurrence/peephole_i \(30, 30\), expected \(5, 5\)",
        ),
    ],
)
def test_a_partial_fit_is_refused(change, message):
    arrays = small_arrays()
    change(arrays)
    with pytest.raises(CheckpointError, match=message):
        convert("ags", arrays, "ags:tiny")


@pytest.mark.parametrize("variant", ["no_attention", "no_recurrence", "aspp1"])
def test_weights_for_parts_the_release_lacks_are_refused(variant):
    with pytest.raises(UnsupportedError, match=r"do not fit model\..*ags:full"):
        convert("ags", {}, f"ags:{variant}")


# ----- a network in NumPy ---------------------------------------------------------------------


def conv(x, w, stride=1, pad=0, dilation=1):
    """Cross-correlation of `[N,C,H,W]`, one kernel position after another."""
    kh, kw = w.shape[2:]
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    out = [(n - dilation * (k - 1) - 1) // stride + 1 for n, k in zip(x.shape[2:], (kh, kw))]  # noqa: B905
    y = np.zeros((x.shape[0], w.shape[0], *out))
    for i in range(kh):
        for j in range(kw):
            rows = slice(i * dilation, i * dilation + (out[0] - 1) * stride + 1, stride)
            cols = slice(j * dilation, j * dilation + (out[1] - 1) * stride + 1, stride)
            y += np.einsum("nchw,oc->nohw", x[:, :, rows, cols], w[:, :, i, j], optimize=True)
    return y


def pool(x, kind, kernel, stride, pad):
    """Caffe's pooling: sizes round up, averages divide by the window's cells inside the padding."""
    n = x.shape[-1]
    out = -(-(n + 2 * pad - kernel) // stride) + 1
    if pad and (out - 1) * stride >= n + pad:
        out -= 1
    y = np.zeros((*x.shape[:2], out, out))
    for i in range(out):
        for j in range(out):
            top, left = i * stride - pad, j * stride - pad
            bottom, right = min(top + kernel, n + pad), min(left + kernel, n + pad)
            cells = (bottom - top) * (right - left)
            window = x[:, :, max(top, 0) : min(bottom, n), max(left, 0) : min(right, n)]
            y[:, :, i, j] = window.max((2, 3)) if kind == "max" else window.sum((2, 3)) / cells
    return y


def interp(x, size):
    """Bilinear with aligned corners."""
    n = x.shape[-1]
    position = np.arange(size) * ((n - 1) / (size - 1))
    low = np.minimum(position.astype(int), n - 1)
    high = np.minimum(low + 1, n - 1)
    f = position - low
    rows = x[:, :, low] * (1 - f)[:, None] + x[:, :, high] * f[:, None]
    return rows[..., low] * (1 - f) + rows[..., high] * f


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


class Oracle:
    """The deployed network on a clip `[T,3,H,W]`; `block_counts` blocks per stage."""

    def __init__(self, arrays, config):
        self.w = {k: v.astype(np.float64) for k, v in arrays.items()}
        self.config = config

    def layer(self, x, name, *, relu=True, bn=None, **kw):
        x = conv(x, self.w[f"{name}:0"], **kw)
        slope, bias, mean, var = (self.w[f"{bn or name + '/bn'}:{i}"] for i in range(4))
        x = (x - mean) / np.sqrt(var + 1e-5) * slope + bias
        return np.maximum(x, 0) if relu else x

    def block(self, x, name, stride, dilation):
        y = self.layer(x, f"{name}_1x1_reduce")
        y = self.layer(y, f"{name}_3x3", stride=stride, pad=dilation, dilation=dilation)
        y = self.layer(y, f"{name}_1x1_increase", relu=False)
        if name.endswith("_1"):
            x = self.layer(x, f"{name}_1x1_proj", relu=False, stride=stride)
        return np.maximum(x + y, 0)

    def backbone(self, x):
        x = self.layer(x, "conv1_1_3x3_s2", stride=2, pad=1)
        x = self.layer(x, "conv1_2_3x3", pad=1)
        x = pool(self.layer(x, "conv1_3_3x3", pad=1), "max", 3, 2, 1)
        for stage, count in enumerate(self.config.block_counts, start=2):
            dilation = {4: 2, 5: 4}.get(stage, 1)
            for i in range(1, count + 1):
                stride = 2 if stage == 3 and i == 1 else 1
                x = self.block(x, f"conv{stage}_{i}", stride, dilation)
        return x

    def aspp(self, x, prefix, width, dilations, size, last, bn):
        branches = [self.layer(x, f"{prefix}_{width}_conv")]
        branches += [self.layer(x, f"{prefix}_d{d}_conv", pad=d, dilation=d) for d in dilations]
        pooled = self.layer(pool(x, "ave", size, size, 0), f"{prefix}_pool_conv")
        branches.append(interp(pooled, x.shape[-1]))
        return self.layer(np.concatenate(branches, 1), last, bn=bn)

    def conv_lstm(self, x, markers):
        wx, wh, b = (self.w[f"encode1:{i}"] for i in (0, 3, 4))
        p_i, p_f, p_o = (self.w[f"encode1:{i}"] for i in (5, 6, 7))
        F = wh.shape[1]
        h = c = np.zeros((1, F, *x.shape[2:]))
        out = []
        for t in range(len(x)):
            a = conv(x[t : t + 1], wx, pad=2, dilation=2) + b[:, None, None]
            a = a + conv(markers[t] * h, wh, pad=2, dilation=2)
            a_i, a_f, a_o, a_g = (a[:, k * F : (k + 1) * F] for k in range(4))
            i, o = sigmoid(a_i + p_i * c), sigmoid(a_o + p_o * c)
            f = markers[t] * sigmoid(a_f + p_f * c)
            c = f * c + i * np.tanh(a_g)
            h = o * np.tanh(c)
            out.append(h)
        return np.concatenate(out)

    def __call__(self, frames, markers):
        deep = self.backbone(frames)
        x = self.layer(deep, "conv5_5_att", stride=2, pad=2, dilation=2)
        x = self.layer(x, "conv5_6_att", pad=4, dilation=4)
        x = self.layer(x, "conv5_7_att", pad=8, dilation=8)
        hidden = self.conv_lstm(x, markers)
        conv7 = conv(hidden, self.w["conv7:0"]) + self.w["conv7:1"][:, None, None]
        attention = sigmoid(interp(conv7, deep.shape[-1]))
        y, c = deep, self.config
        for (prefix, last, bn), width, dilations, size in zip(
            (
                ("conv5_3", "conv5_4_", "conv5_4/bn_"),
                ("conv5_4", "conv5_5", None),
                ("conv5_8", "conv5_8", None),
            ),
            c.pyramid_widths,
            c.pyramid_dilations,
            c.pyramid_pools,
            strict=True,
        ):
            y = self.aspp(y, prefix, width, dilations, size, last, bn)
        guided = y + y * attention
        conv6 = conv(guided, self.w["conv6_:0"]) + self.w["conv6_:1"][:, None, None]
        size = frames.shape[-1]
        return {
            "conv5_3": deep,
            "encode1": hidden,
            "conv7": conv7,
            "attention": attention,
            "guided": guided,
            "conv6": conv6[:, 1:],
            "conv6_sm": sigmoid(interp(conv6[:, 1:], size)),
            "conv7_sm": sigmoid(interp(conv7, size)),
        }


def run_ours(config, arrays, markers):
    system = uvos.build(config)
    variables = convert("ags", arrays, config)
    clip = np.random.default_rng(7).standard_normal((3, 3, *SIZE)).astype(np.float32)

    @jax.jit
    def run(variables, clip):
        outputs, extra = system.module.apply(
            variables,
            clip,
            markers=jnp.asarray([markers], jnp.float32),
            capture_intermediates=lambda module, _: module.name in ("backbone", "recurrence"),
            mutable=["intermediates"],
        )
        return outputs, extra["intermediates"]

    with jax.default_matmul_precision("highest"):
        outputs, extra = run(dict(variables), jnp.asarray(clip.transpose(0, 2, 3, 1)[None]))
        ours = {
            "conv5_3": extra["backbone"]["__call__"][0][-1],
            "encode1": extra["recurrence"]["__call__"][0][1][0],
            "conv7": outputs["attention_logits"][0],
            "attention": outputs["attention"][0],
            "guided": outputs["features"][0],
            "conv6": outputs["logits"][0],
            "conv6_sm": system.probabilities(outputs["logits"], SIZE)[0][..., None],
            "conv7_sm": system.probabilities(outputs["attention_logits"], SIZE)[0][..., None],
        }
    return {k: np.moveaxis(np.asarray(v), -1, 1) for k, v in ours.items()}, clip


@pytest.mark.parametrize("markers", [(0, 1, 1), (0, 1, 0)])
def test_every_map_of_the_tiny_network_equals_the_oracle(markers):
    config = uvos.load_config("ags:tiny")
    arrays = small_arrays(config)
    rng = np.random.default_rng(1)
    for name, array in arrays.items():
        if "/bn" in name:
            index = name[-1]
            scale = {"0": 1 + 0.1 * array, "3": 0.5 + rng.random(array.shape)}
            arrays[name] = scale.get(index, 0.1 * array).astype(np.float32)
        elif array.ndim == 4:
            arrays[name] = array * np.float32(np.sqrt(2 / np.prod(array.shape[1:])))
    ours, clip = run_ours(config, arrays, markers)
    expected = Oracle(arrays, config.model)(clip, markers)
    for name, reference in expected.items():
        difference = relative_difference(ours[name], reference)
        assert difference <= (1e-4 if name.endswith("_sm") else 1e-3), f"{name}: {difference:.1e}"


@pytest.mark.slow
def test_every_map_of_the_full_network_equals_the_oracle():
    config = uvos.load_config("ags")
    config.model.input_size = SIZE
    arrays = {name: official_array(name) for name in NAMES}
    ours, clip = run_ours(config, arrays, (0, 1, 1))
    expected = Oracle(arrays, config.model)(clip, (0, 1, 1))
    for name, reference in expected.items():
        difference = relative_difference(ours[name], reference)
        assert difference <= 1e-4, f"{name}: {difference:.1e}"

"""SegFlow under the blob names of its Caffe release, and its decoder against loops.

The decoder, whose cuts and enlargements are Caffe's, is compared with a slow one; FlowNetS, the
ResNet, pooling and resampling are compared with released layers in their own tests.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uvos_jax as uvos
from uvos_jax.convert import convert
from uvos_jax.convert.official import to_official
from uvos_jax.convert.segflow import table
from uvos_jax.convert.variables import flatten
from uvos_jax.errors import CheckpointError
from uvos_jax.systems.segflow import JOINT_OFFSETS, ScoreDecoder

DATA = Path(__file__).resolve().parents[1] / "data"
NAMES = {k: tuple(v) for k, v in json.loads((DATA / "segflow_names.json").read_text()).items()}
UNUSED = {"img0s_aug:1", "img1s_aug:1"}


def small_arrays():
    """Official names of a small network with random values."""
    system = uvos.build("segflow:tiny")
    targets = dict(flatten(jax.eval_shape(system.init, jax.random.key(0))))
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in table(system.config).official_shapes(targets).items()
    }
    ones = {name: np.ones(1, np.float32) for name in arrays if name[:2] == "bn" and name[-1] == "2"}
    return arrays | ones | {name: np.zeros((1, 3, 8, 8), np.float32) for name in UNUSED}


def test_table_lists_every_official_name_and_shape():
    system = uvos.build("segflow")
    targets = dict(flatten(jax.eval_shape(system.init, jax.random.key(0))))
    shapes = table(system.config).official_shapes(targets)
    assert len(NAMES) == 698
    assert set(shapes) | UNUSED == set(NAMES)
    assert {n: tuple(s) for n, s in shapes.items()} == {n: NAMES[n] for n in shapes}


def test_conversion_goes_there_and_back():
    arrays = small_arrays()
    variables = convert("segflow", arrays, "segflow:tiny")
    back = to_official("segflow", variables)
    assert set(arrays) - UNUSED == set(back)
    for name, array in back.items():
        np.testing.assert_allclose(array, arrays[name], rtol=1e-6)
    mean = variables["batch_stats"]["second_mean"]["mean"]
    np.testing.assert_array_equal(mean, arrays["img1s_aug:2"].reshape(3))


def test_files_without_the_layers_of_constants_are_complete():
    arrays = {k: v for k, v in small_arrays().items() if not k.startswith(("img", "Convolution6"))}
    variables = convert("segflow", arrays, "segflow:tiny")
    assert not np.any(variables["batch_stats"]["first_mean"]["mean"])
    kernel = variables["params"]["flow_scale"]["kernel"][0, 0]
    np.testing.assert_allclose(kernel, [[0.953125, 0], [0, 0.9375]])


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda a: a.pop("img0s_aug:2"), r"1 missing \(such as img0s_aug:2\)"),
        (lambda a: a.pop("upscore8_flow:0"), r"1 missing \(such as upscore8_flow:0\)"),
        (lambda a: a.update({"conv7:0": np.zeros(3)}), r"1 unknown \(such as conv7:0\)"),
    ],
)
def test_a_partial_fit_is_refused(change, message):
    arrays = small_arrays()
    change(arrays)
    with pytest.raises(CheckpointError, match=message):
        convert("segflow", arrays, "segflow:tiny")


# ----- the decoder in loops -------------------------------------------------------------------


def slow_enlarge(x, kernel, stride):
    """Caffe's Deconvolution without padding: x `[h,w,I]`, kernel `[k,k,I,O]`."""
    h, w, _ = x.shape
    k = kernel.shape[0]
    y = np.zeros(((h - 1) * stride + k, (w - 1) * stride + k, kernel.shape[3]))
    for i, j in np.ndindex(h, w):
        y[i * stride : i * stride + k, j * stride : j * stride + k] += np.einsum(
            "i,klio->klo", x[i, j], kernel
        )
    return y


def slow_pool(x):
    """Caffe's 3x3 maximum with stride 2, sizes rounded up."""
    h, w, C = x.shape
    sizes = [int(np.ceil((n - 3) / 2)) + 1 for n in (h, w)]
    y = np.zeros((*sizes, C))
    for i, j in np.ndindex(*sizes):
        y[i, j] = x[2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max((0, 1))
    return y


def test_scores_equal_a_decoder_in_loops():
    """At 96x160, where the release's offsets all fit: res5 3x5, res4 6x10, res3 12x20."""
    rng = np.random.default_rng(0)
    joint = [rng.standard_normal((h, w, c)) for h, w, c in ((3, 5, 7), (6, 10, 5), (12, 20, 4))]
    params = {}
    for name, x in zip(("score5", "score4", "score3"), joint, strict=True):
        kernel = rng.standard_normal((1, 1, x.shape[-1], 2))
        params[name] = {"kernel": kernel, "bias": rng.standard_normal(2)}
    for name, k in (("up5", 4), ("up4", 4), ("up3", 16)):
        params[name] = {"kernel": rng.standard_normal((k, k, 2, 2))}

    def score(x, name):
        return x @ params[name]["kernel"][0, 0] + params[name]["bias"]

    y = score(joint[0], "score5")
    y = slow_enlarge(y, params["up5"]["kernel"], 2)[2:8, 2:12] + score(joint[1], "score4")
    y = slow_enlarge(y, params["up4"]["kernel"], 2)[2:14, 2:22] + score(joint[2], "score3")
    expected = slow_enlarge(y, params["up3"]["kernel"], 8)[8:104, 8:168]
    single = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (params, joint))
    with jax.default_matmul_precision("highest"):
        got = ScoreDecoder().apply(
            {"params": single[0]}, tuple(x[None] for x in single[1]), (96, 160)
        )
    np.testing.assert_allclose(got[0], expected, atol=1e-4 * np.abs(expected).max())


def test_joint_maps_are_pooled_and_cut_as_the_release_does():
    """The network's own maps, put together in loops, give its scores."""
    system = uvos.build("segflow:tiny")
    variables = convert("segflow", small_arrays(), "segflow:tiny")
    # random values in every layer, but gentle ones
    variables = jax.tree.map(lambda x: 0.1 * x, variables)
    stats = variables["batch_stats"]["trunk"]
    variables["batch_stats"]["trunk"] = jax.tree.map(lambda x: 1 + np.abs(x), stats)
    rng = np.random.default_rng(1)
    frames = jnp.asarray(rng.standard_normal((1, 100, 160, 3)), jnp.float32)
    pair = jnp.asarray(rng.standard_normal((1, 128, 192, 6)), jnp.float32)
    run = jax.jit(lambda v, *x: system.module.apply(v, *x, method="decode"))
    decoder = jax.jit(ScoreDecoder().apply, static_argnums=2)
    with jax.default_matmul_precision("highest"):
        maps = jax.tree.map(np.asarray, run(dict(variables), frames, pair))
        own = (
            maps["res5"][0],
            maps["res4"][0] * variables["params"]["gain4"],
            maps["res3"][0] * variables["params"]["gain3"],
        )
        for name, key in (("segmentation", "score"), ("refinement", "score_flow")):
            joint = []
            for x, level, offset in zip(own, (4, 3, 2), JOINT_OFFSETS[name], strict=True):
                h, w, _ = x.shape
                pooled = slow_pool(maps[f"concat{level}"][0])
                y0, x0 = min(offset, pooled.shape[0] - h), min(offset, pooled.shape[1] - w)
                joint.append(np.concatenate([x, pooled[y0 : y0 + h, x0 : x0 + w]], -1))
            joint = tuple(jnp.asarray(x, jnp.float32)[None] for x in joint)
            expected = np.asarray(decoder({"params": variables["params"][name]}, joint, (100, 160)))
            scale = max(1.0, np.abs(expected).max())
            np.testing.assert_allclose(maps[key], expected, atol=1e-4 * scale)

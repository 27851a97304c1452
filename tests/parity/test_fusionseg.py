"""FusionSeg against outputs of the released networks, run with the original Caffe layers.

The networks are those of `python/models/*/deploy.prototxt@suyogduttjain/fusionseg` (commit a57ca36)
at 65x73, on two images of noise; the fusion network on noise in place of logits. Weights follow a
deterministic rule and pass through the converter under their official names. Stored are every
64th to 256th channel of the intermediate maps (two steps: 16 channels, of which every fourth),
all classifier outputs, and every third pixel of the enlarged logits.
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
from uvos_jax.convert.fusionseg import joint_table, stream_table, table
from uvos_jax.convert.official import to_official
from uvos_jax.convert.variables import flatten
from uvos_jax.errors import CheckpointError, ConfigError, UnsupportedError
from uvos_jax.ops.resize import resize_bilinear
from uvos_jax.systems.fusionseg import MaxFusion, Stream, SumFusion

#: Full size: minutes in all.
pytestmark = pytest.mark.slow

DATA = Path(__file__).resolve().parents[1] / "data"
NAMES = json.loads((DATA / "fusionseg_names.json").read_text())
SIZE = (65, 73)


def official_array(name, shape):
    """The weight the reference run used under `name`; each blob has its own generator."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    layer, _, index = name.partition(":")
    if layer.startswith("bn"):
        if index == "2":
            return np.full(shape, 2.0, np.float32)  # what mean and variance are divided by
        value = 0.5 + rng.random(shape) if index == "1" else 0.1 * rng.standard_normal(shape)
        value = value * 2
    elif layer.startswith("scale") and index == "0":
        value = 1 + 0.1 * rng.standard_normal(shape)
        if "_branch2c" in layer:
            value = value * 0.2  # the plain rule explodes through 33 residual blocks
    elif len(shape) == 4:
        value = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        if layer.startswith("fc1"):
            value = value * 0.2
    else:
        value = 0.1 * rng.standard_normal(shape)
    return value.astype(np.float32)


def small_arrays(part):
    """Official names of a small network with random values, for tests of names only."""
    system = uvos.build("fusionseg:tiny")
    targets = dict(flatten(jax.eval_shape(system.init, jax.random.key(0))))
    config = system.config
    names = joint_table(config) if part == "joint" else stream_table(config, part)
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in names.official_shapes(targets).items()
    }
    ones = {name: np.ones(1, np.float32) for name in arrays if name[:2] == "bn" and name[-1] == "2"}
    return arrays | ones


# ----- names ----------------------------------------------------------------------------------


def test_tables_list_every_official_name_and_shape():
    system = uvos.build("fusionseg")
    targets = dict(flatten(jax.eval_shape(system.init, jax.random.key(0))))
    shapes = table(system.config).official_shapes(targets)
    expected = {f"{part}/{n}": tuple(s) for part, names in NAMES.items() for n, s in names.items()}
    assert len(expected) == 632 + 632 + 8
    assert {n: tuple(s) for n, s in shapes.items()} == expected
    count = sum(x.size for path, x in targets.items() if path.startswith("params/joint/"))
    assert count == 374
    stream = sum(x.size for path, x in targets.items() if path.startswith("params/motion/"))
    assert stream == 42_647_624


def test_three_parts_make_a_network_and_go_back():
    arrays = {part: small_arrays(part) for part in NAMES}
    variables = convert("fusionseg", arrays, "fusionseg:tiny")
    back = to_official("fusionseg", variables)
    assert len(back) == sum(map(len, arrays.values()))
    for name, array in back.items():
        part, _, official = name.partition("/")
        np.testing.assert_allclose(array, arrays[part][official], rtol=1e-6)


def test_three_files_are_told_apart_by_what_they_hold(tmp_path):
    paths = []
    for i, part in enumerate(("joint", "motion", "appearance")):
        paths.append(tmp_path / f"{i}.npz")
        np.savez(paths[-1], **small_arrays(part))
    variables = convert("fusionseg", paths, "fusionseg:tiny")
    assert set(variables["params"]) == {"appearance", "motion", "joint"}
    with pytest.raises(CheckpointError, match=r"1\.npz and .*1\.npz both hold.*motion part"):
        convert("fusionseg", [paths[1], paths[1]], "fusionseg:tiny")


def test_a_part_converts_on_its_own():
    variables = convert("fusionseg", small_arrays("motion"), "fusionseg:tiny", part="motion")
    assert set(variables["params"]) == {"motion"}
    with pytest.raises(ConfigError, match=r"no part 'flow'.*appearance, motion, joint"):
        convert("fusionseg", {}, "fusionseg:tiny", part="flow")


def test_statistics_are_divided_by_their_factor():
    arrays = small_arrays("appearance")
    arrays["bn_conv1:2"] = np.full(1, 4.0, np.float32)
    stats = convert("fusionseg", arrays, "fusionseg:tiny", part="appearance")["batch_stats"]
    got = stats["appearance"]["resnet"]["bn1"]
    np.testing.assert_allclose(got["mean"], arrays["bn_conv1:0"] / 4)
    np.testing.assert_allclose(got["var"], arrays["bn_conv1:1"] / 4)


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda a: a.pop("res2a_branch1:0"), r"1 missing \(such as res2a_branch1:0\)"),
        (lambda a: a.update({"fc2:0": np.zeros(3)}), r"1 unknown \(such as fc2:0\)"),
        (
            lambda a: a.update({"conv1:0": np.zeros((8, 1, 7, 7), np.float32)}),
            r"resnet/conv1/kernel \(7, 7, 1, 8\), expected \(7, 7, 3, 8\)",
        ),
    ],
)
def test_a_partial_fit_is_refused(change, message):
    arrays = small_arrays("appearance")
    change(arrays)
    with pytest.raises(CheckpointError, match=message):
        convert("fusionseg", arrays, "fusionseg:tiny", part="appearance")


def test_the_fusion_of_the_paper_has_no_official_weights():
    with pytest.raises(UnsupportedError, match=r"model\.fusion='paper_max'.*fusionseg:full"):
        convert("fusionseg", small_arrays("joint"), "fusionseg:paper", part="joint")


# ----- numbers --------------------------------------------------------------------------------


def nchw(x):
    return np.moveaxis(np.asarray(x), -1, -3)


def noise(count, channels, size):
    rng = np.random.default_rng(7)
    shape = (2, channels, *size)
    maps = [rng.standard_normal(shape).astype(np.float32) for _ in range(count)]
    return [jnp.asarray(x.transpose(0, 2, 3, 1)) for x in maps]


@pytest.fixture(scope="module")
def released():
    return dict(np.load(DATA / "fusionseg_parity.npz"))


@pytest.fixture(scope="module")
def run_stream():
    def run(variables, x):
        return Stream().apply(
            variables,
            x,
            capture_intermediates=lambda module, _: module.name != "bn1",
            mutable=["intermediates"],
        )

    return jax.jit(run)


@pytest.mark.parametrize("part,suffix", [("appearance", ""), ("motion", "_motion")])
def test_streams_equal_the_release(run_stream, released, part, suffix):
    arrays = {name: official_array(name, shape) for name, shape in NAMES[part].items()}
    variables = convert("fusionseg", arrays, part=part)
    (images,) = noise(1, 3, SIZE)
    own = {kind: variables[kind][part] for kind in ("params", "batch_stats")}
    with jax.default_matmul_precision("highest"):
        scores, extra = run_stream(own, images)
    maps = extra["intermediates"]
    head = "fc1_binary_seg_flow" if suffix else "fc1_binary_seg"
    names = ("pool1", "res2c", "res3b3", "res4b22", "res5c")
    stages = dict(zip(names, maps["resnet"]["__call__"][0], strict=True))
    ours = {f"{name}{suffix}": nchw(x) for name, x in stages.items()}
    ours = {k: x[:, :: x.shape[1] // 16][:, :16:4] for k, x in ours.items()}
    for i in range(4):
        ours[f"{head}_c{i}{suffix}"] = nchw(maps[f"classifier{i}"]["__call__"][0])
    ours[f"{head}{suffix}"] = nchw(scores)
    enlarged = nchw(resize_bilinear(scores, SIZE, align_corners=True))
    ours[f"fc1_interp{suffix}"] = enlarged[..., ::3, ::3]
    assert {f"{part}/{name}" for name in ours} == {n for n in released if n.startswith(part + "/")}
    for name, array in ours.items():
        difference = relative_difference(array, released[f"{part}/{name}"])
        assert difference <= 1e-4, f"{name}: {difference:.1e}"


def test_fusion_equals_the_release(released):
    arrays = {name: official_array(name, shape) for name, shape in NAMES["joint"].items()}
    params = convert("fusionseg", arrays, part="joint")["params"]["joint"]
    appearance, motion = noise(2, 2, (33, 41))
    with jax.default_matmul_precision("highest"):
        logits, extra = SumFusion().apply(
            {"params": params},
            appearance,
            motion,
            capture_intermediates=True,
            mutable=["intermediates"],
        )
    hidden = {k: jax.nn.relu(v["__call__"][0]) for k, v in extra["intermediates"].items()
              if k in ("conv1", "conva", "convm")}  # fmt: skip
    ours = {**hidden, "conv_sum": sum(hidden.values()), "conv2": logits}
    for name, array in ours.items():
        difference = relative_difference(nchw(array)[..., ::2, ::2], released[f"joint/{name}"])
        assert difference <= 1e-5, f"{name}: {difference:.1e}"
    probability = jax.nn.softmax(logits)[..., 1]
    reference = jax.nn.softmax(jnp.asarray(released["joint/conv2"]), axis=1)[:, 1]
    np.testing.assert_allclose(probability[:, ::2, ::2], reference, atol=1e-5)


def test_fusion_of_the_paper_is_the_maximum_of_three_branches():
    rng = np.random.default_rng(3)
    a, m = rng.standard_normal((2, 1, 4, 5, 2)).astype(np.float32)
    params = {
        name: {"kernel": rng.standard_normal((1, 1, 2, 2)), "bias": rng.standard_normal(2)}
        for name in ("conva", "convm", "convp")
    }
    got = MaxFusion().apply({"params": params}, jnp.asarray(a), jnp.asarray(m))
    inputs = {"conva": a, "convm": m, "convp": a * m}
    for y, x, k in np.ndindex(4, 5, 2):
        branches = [
            max(0.0, float(v[0, y, x] @ params[n]["kernel"][0, 0, :, k]) + params[n]["bias"][k])
            for n, v in inputs.items()
        ]
        np.testing.assert_allclose(got[0, y, x, k], max(branches), rtol=1e-5)

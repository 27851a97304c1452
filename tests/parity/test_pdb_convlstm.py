"""PDB-ConvLSTM against outputs of the released network, run with the original Caffe layers.

The network is that of `test.prototxt@shenjianbing/PDB-ConvLSTM` (commit 745278a) at 65x65 instead
of 473x473, over one clip of five frames of noise. The weights follow a deterministic rule and pass
through the converter under their official names. Stored are parts of the intermediate maps
(`CHANNELS`: every n-th channel) and every second pixel of the masks.
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
from uvos_jax.convert.official import to_official
from uvos_jax.convert.pdb_convlstm import table
from uvos_jax.convert.variables import flatten
from uvos_jax.errors import CheckpointError, UnsupportedError
from uvos_jax.ops.resize import resize_bilinear

DATA = Path(__file__).resolve().parents[1] / "data"
NAMES = {k: tuple(v) for k, v in json.loads((DATA / "pdb_names.json").read_text()).items()}
SIZE = (65, 65)
CHANNELS = {
    "pool1_3x3_s2": 16,
    "conv2_3": 32,
    "conv3_4": 32,
    "conv4_6": 64,
    "conv5_3": 128,
    "conv5_3_d16_conv": 32,
    "conv5_3_d2_conv": 32,
    "conv5_4": 2,
    "encode1": 2,
    "encode2": 2,
    "encode1_c": 2,
    "encode3_": 2,
    "encode4_": 2,
    "sum_encode13": 2,
    "conv7": 1,
}


def official_array(name):
    """The weight the reference run used under `name`; each blob has its own generator."""
    shape = NAMES[name]
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    layer, _, index = name.partition(":")
    if "/bn" in layer:
        value = {
            "0": lambda: 1 + 0.1 * rng.standard_normal(shape),
            "3": lambda: 0.5 + rng.random(shape),
        }.get(index, lambda: 0.1 * rng.standard_normal(shape))()
        if layer.endswith("_1x1_increase/bn") and index == "0":
            value = value * 0.2  # the plain rule explodes through 16 residual blocks
    elif shape == (1,):
        value = np.zeros(shape)
    elif len(shape) == 4:
        value = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    else:
        shape = (9, 9) if shape == (60, 60) else shape  # peepholes at 65x65
        value = 0.1 * rng.standard_normal(shape)
    return value.astype(np.float32)


def small_arrays(config="pdb_convlstm:tiny"):
    """Official names of a small network with random values, for tests of names only."""
    system = uvos.build(config)
    targets = dict(flatten(jax.eval_shape(system.init, jax.random.key(0))))
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in table(system.config).official_shapes(targets).items()
    }
    placeholders = {f"encode{i}:{j}": np.zeros(1, np.float32) for i in "1234" for j in "1289"}
    return arrays | placeholders


# ----- names ----------------------------------------------------------------------------------


def test_table_lists_every_official_name_and_shape():
    system = uvos.build("pdb_convlstm")
    targets = dict(flatten(jax.eval_shape(system.init, jax.random.key(0))))
    shapes = table(system.config).official_shapes(targets)
    unused = {name for name, shape in NAMES.items() if shape == (1,)}
    assert len(NAMES) == 342
    assert len(unused) == 16
    assert set(shapes) | unused == set(NAMES)
    assert all(tuple(shapes[name]) == NAMES[name] for name in shapes)
    assert sum(int(np.prod(shape)) for shape in NAMES.values()) == 61_912_210


def test_conversion_goes_there_and_back_without_loss():
    arrays = small_arrays()
    variables = convert("pdb_convlstm", arrays, "pdb_convlstm:tiny")
    back = to_official("pdb_convlstm", variables)
    assert set(arrays) - set(back) == {name for name in arrays if name[-1] in "1289"} - set(back)
    for name, array in back.items():
        np.testing.assert_array_equal(array, arrays[name])


def test_the_head_of_the_first_stage_starts_at_zero():
    params = convert("pdb_convlstm", small_arrays(), "pdb_convlstm:tiny")["params"]
    assert all(np.all(x == 0) for x in params["spatial_head"].values())
    assert np.any(params["head"]["kernel"] != 0)


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda a: a.pop("encode3:6"), r"1 missing \(such as encode3:6\)"),
        (lambda a: a.update({"conv6:0": np.zeros(3)}), r"1 unknown \(such as conv6:0\)"),
        (
            lambda a: a.update({"encode1:5": np.zeros((60, 60))}),
            r"forward/peephole_i \(60, 60\), expected \(9, 9\)",
        ),
    ],
)
def test_a_partial_fit_is_refused(change, message):
    arrays = small_arrays()
    change(arrays)
    with pytest.raises(CheckpointError, match=message):
        convert("pdb_convlstm", arrays, "pdb_convlstm:tiny")


@pytest.mark.parametrize("variant", ["paper", "db_convlstm", "spatial", "aspp"])
def test_weights_for_parts_the_release_lacks_are_refused(variant):
    with pytest.raises(UnsupportedError, match=r"do not fit model\..*pdb_convlstm:full"):
        convert("pdb_convlstm", {}, f"pdb_convlstm:{variant}")


# ----- numbers --------------------------------------------------------------------------------


def nchw(x):
    return np.moveaxis(np.asarray(x), -1, -3)


@pytest.fixture(scope="module")
def computed():
    config = uvos.load_config("pdb_convlstm")
    config.model.input_size = SIZE
    system = uvos.build(config)
    variables = convert("pdb_convlstm", {name: official_array(name) for name in NAMES}, config)
    clip = np.random.default_rng(7).standard_normal((1, 5, 3, *SIZE)).astype(np.float32)
    markers = jnp.asarray([[0.0, 1.0, 1.0, 1.0, 1.0]])
    kept = ("backbone", "pdc", "d16", "d2", "forward", "backward", "head")

    @jax.jit
    def run(variables, clip):
        outputs, extra = system.module.apply(
            variables,
            clip,
            markers=markers,
            capture_intermediates=lambda module, _: module.name in kept,
            mutable=["intermediates"],
        )
        return outputs["logits"], extra["intermediates"]

    with jax.default_matmul_precision("highest"):
        logits, maps = run(dict(variables), jnp.asarray(clip.transpose(0, 1, 3, 4, 2)))
        probs = system.probabilities(logits, SIZE)
    stages = maps["backbone"]["__call__"][0]
    small, large = (
        {k: v["__call__"][0] for k, v in maps["recurrence"][name].items()}
        for name in ("dilation1", "dilation2")
    )
    names = ("pool1_3x3_s2", "conv2_3", "conv3_4", "conv4_6", "conv5_3")
    arrays = dict(zip(names, stages, strict=True)) | {
        "conv5_3_d16_conv": maps["pdc"]["d16"]["__call__"][0],
        "conv5_3_d2_conv": maps["pdc"]["d2"]["__call__"][0],
        "conv5_4": maps["pdc"]["__call__"][0],
        "encode1": small["forward"][1][0],
        "encode2": large["forward"][1][0],
        "encode1_c": small["forward"][0].c,
        "encode3_": small["backward"][1][0],
        "encode4_": large["backward"][1][0],
        "sum_encode13": (small["forward"][1] + small["backward"][1])[0],
        "conv7": maps["head"]["__call__"][0],
    }
    return arrays, probs


@pytest.fixture(scope="module")
def released():
    return dict(np.load(DATA / "pdb_parity.npz"))


def test_every_intermediate_map_equals_the_release(computed, released):
    maps, _ = computed
    assert set(maps) | {"conv7_interp", "conv7_sm"} == set(released)
    for name, array in maps.items():
        ours = nchw(array)[..., :: CHANNELS[name], :, :]
        reference = released[name].reshape(ours.shape)
        difference = relative_difference(ours, reference)
        assert difference <= 1e-4, f"{name}: {difference:.1e}"


def test_masks_equal_the_release(computed, released):
    maps, probs = computed
    enlarged = nchw(resize_bilinear(maps["conv7"], SIZE, align_corners=True))[..., ::4, ::4]
    np.testing.assert_allclose(enlarged, released["conv7_interp"], atol=1e-4)
    np.testing.assert_allclose(
        np.asarray(probs)[0, :, ::2, ::2], released["conv7_sm"][:, 0], atol=1e-4
    )

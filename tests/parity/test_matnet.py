"""MATNet against outputs of the released network (tfzhou/MATNet, commit c8b95e5).

The weights follow a deterministic rule, pass through the converter under their official names, and
the network runs at full width on 97x113 noise; boundary and mask maps are enlarged to 473x473 as
released. Stored are parts of every map (`STRIDES`: every n-th channel or pixel).
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uvos_jax as uvos
from tests.parity.rule import official_arrays, relative_difference
from uvos_jax.convert import convert
from uvos_jax.convert.matnet import table
from uvos_jax.convert.official import to_official
from uvos_jax.convert.variables import flatten, merge_strict
from uvos_jax.errors import CheckpointError, UnsupportedError
from uvos_jax.ops.resize import resize_bilinear
from uvos_jax.systems.matnet.encoder import ScaleSensitiveAttention, Transition, TransitionStep

#: Full size: minutes in all.
pytestmark = pytest.mark.slow

DATA = Path(__file__).resolve().parents[1] / "data"
NAMES = {k: tuple(v) for k, v in json.loads((DATA / "matnet_names.json").read_text()).items()}
#: The plain rule explodes; these parts are damped.
SCALES = (
    (r"\.bn3\.weight$", 0.2),
    (r"coa_res\d\.proj[ab]\.weight$", 0.3),
    (r"coa_res\d\.proj[12]\.weight$", 0.5),
    (r"decoder\.(RF\d|GC)\..*(conv\w*|block0)\.weight$", 0.5),
    (r"pred2\.weight$", 0.1),
    (r"decoder\.concat\.weight$", 0.2),
    (r"spatial\.conv\.weight$", 0.2),
)
#: Stored channel step by array; spatial steps where they are not 1.
CHANNELS = {
    "enc_res2_1": ("appearance2", 32),
    "enc_res3_1": ("appearance3", 64),
    "coa_res3_Zb": ("z3", 64),
    "coa_res3_Qb": ("m3", 64),
    "coa_res5_Zb": ("z5", 64),
    "coa_res5_Qb": ("m5", 64),
    "r5": ("g5", 128),
    "r4": ("g4", 128),
    "r3": ("g3", 128),
    "r2": ("g2", 128),
    "dec_GC": ("top", 8),
    "dec_RF4": ("refined4", 32),
    "dec_RF3": ("refined3", 64),
    "dec_RF2": ("refined2", 128),
    "mask_logit": ("mask_logits", 1),
    "bdry5_logit": ("boundary5", 1),
    "bdry2_logit": ("boundary2", 1),
}
HALVED = ("enc_res2_1", "r2")


def small_arrays(config="matnet:tiny"):
    """Official names of a small network with random values, for tests of names only."""
    system = uvos.build(config)
    targets = dict(flatten(jax.eval_shape(system.init, jax.random.key(0))))
    rng = np.random.default_rng(0)
    shapes = table(system.config).official_shapes(targets)
    return {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}


# ----- names ----------------------------------------------------------------------------------


def test_table_lists_every_official_name_and_shape():
    system = uvos.build("matnet")
    targets = dict(flatten(jax.eval_shape(system.init, jax.random.key(0))))
    names = table(system.config)
    shapes = names.official_shapes(targets)
    unused = set(NAMES) - set(shapes)
    assert len(NAMES) == 1547
    assert set(shapes) <= set(NAMES)
    assert all(tuple(shapes[name]) == NAMES[name] for name in shapes)
    zeros = {name: np.broadcast_to(np.float32(0), shape) for name, shape in NAMES.items()}
    _, report = names.to_ours(zeros)
    assert report.complete
    assert {name for name, _ in report.ignored} == unused


def test_own_dilated_convolutions_use_the_weights_the_release_ignores():
    system = uvos.build("matnet", shared_dilation=False)
    targets = dict(flatten(jax.eval_shape(system.init, jax.random.key(0))))
    shapes = table(system.config).official_shapes(targets)
    assert shapes["decoder.RF3.pdc.block3.conv.weight"] == (64, 1025, 3, 3)
    assert set(shapes) <= set(NAMES)


def test_conversion_goes_there_and_back_without_loss():
    arrays = small_arrays()
    back = to_official("matnet", convert("matnet", arrays, "matnet:tiny"))
    assert set(arrays) == set(back)
    for name, array in back.items():
        np.testing.assert_array_equal(array, arrays[name])


def test_the_two_files_of_the_release_convert_together(tmp_path):
    arrays = small_arrays()
    paths = []
    for part, prefix in (("encoder", ""), ("decoder", "module.")):
        state = {
            prefix + name.removeprefix(f"{part}."): x
            for name, x in arrays.items()
            if name.startswith(part)
        }
        state[f"{prefix}bn.num_batches_tracked"] = np.zeros((), np.int64)
        paths.append(tmp_path / f"{part}_12.npz")
        np.savez(paths[-1], **state)
    variables = convert("matnet", paths, "matnet:tiny")
    np.testing.assert_array_equal(
        variables["params"]["decoder"]["pred2"]["kernel"],
        arrays["decoder.pred2.weight"].transpose(2, 3, 1, 0),
    )
    with pytest.raises(CheckpointError, match=r"only the encoder's was given: add decoder_"):
        convert("matnet", paths[0], "matnet:tiny")
    with pytest.raises(CheckpointError, match=r"the same part of MATNet as another file"):
        convert("matnet", [paths[1], paths[1]], "matnet:tiny")


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda a: a.pop("decoder.pred2.bias"), r"1 missing \(such as decoder\.pred2\.bias\)"),
        (lambda a: a.update({"decoder.RF9.x": np.zeros(3)}), r"1 unknown \(such as decoder\.RF9"),
        (
            lambda a: a.update({"encoder.coa_res3.proja.bias": np.zeros(3, np.float32)}),
            r"project_appearance/bias \(3,\), expected \(8,\)",
        ),
    ],
)
def test_a_partial_fit_is_refused(change, message):
    arrays = small_arrays()
    change(arrays)
    with pytest.raises(CheckpointError, match=message):
        convert("matnet", arrays, "matnet:tiny")


@pytest.mark.parametrize("override", ["transition=none", "bridge=concat", "boundary=false"])
def test_weights_for_parts_the_release_lacks_are_refused(override):
    with pytest.raises(UnsupportedError, match=r"do not fit model\..*matnet:full"):
        convert("matnet", {}, f"matnet:tiny,{override}")


def test_an_imagenet_backbone_fills_both_trunks():
    arrays = {
        name.removeprefix("encoder.").replace("_1.", ".").replace("res", "layer"): x
        for name, x in small_arrays().items()
        if name.startswith(("encoder.conv1_1", "encoder.bn1_1", "encoder.res"))
        and "_1." in name
    }  # fmt: skip
    for stage in (2, 3, 4, 5):  # res2 is layer1
        arrays = {k.replace(f"layer{stage}", f"layer{stage - 1}"): v for k, v in arrays.items()}
    arrays["fc.weight"] = np.zeros((10, 64), np.float32)
    variables = convert("matnet", arrays, "matnet:tiny", part="backbone")
    trunks = variables["params"]["encoder"]
    assert set(variables["params"]) == {"encoder"}
    assert set(trunks) == {"appearance", "motion"}
    jax.tree.map(np.testing.assert_array_equal, trunks["appearance"], trunks["motion"])
    target = jax.eval_shape(uvos.build("matnet:tiny").init, jax.random.key(0))
    _, report = merge_strict(target, variables, strict=False)
    assert not report["unused"]
    assert not report["mismatched"]


# ----- blocks ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def blocks():
    return dict(np.load(DATA / "matnet_attention.npz"))


def nhwc(x):
    return jnp.asarray(np.moveaxis(x, 1, -1))


def nchw(x):
    return np.moveaxis(np.asarray(x), -1, 1)


def step_params(blocks):
    names = {
        "project_appearance": "proja",
        "project_motion": "projb",
        "attend_appearance": "proj1",
        "attend_motion": "proj2",
    }
    return {
        ours: {
            "kernel": blocks[f"param__{name}.weight"].transpose(2, 3, 1, 0),
            "bias": blocks[f"param__{name}.bias"],
        }
        for ours, name in names.items()
    }


@pytest.mark.parametrize("implementation", ["dense", "blockwise"])
def test_one_transition_and_the_cascade_equal_the_release(blocks, implementation):
    options = {"attention_impl": implementation, "block_size": 10}
    maps = nhwc(blocks["Qa"]), nhwc(blocks["Qb"])
    params = step_params(blocks)
    cascade = Transition(5, **options)
    with jax.default_matmul_precision("highest"):
        z, m = TransitionStep(**options).apply({"params": params}, *maps)
        np.testing.assert_allclose(nchw(m), blocks["sa_b"], atol=1e-6)
        z5, m5 = cascade.apply({"params": {"step": params}}, *maps)
    np.testing.assert_allclose(nchw(z5), blocks["full_Zb"], atol=1e-5)
    np.testing.assert_allclose(nchw(m5), blocks["full_Qb5"], atol=1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(z, axis=-1), 1.0, atol=1e-5)


def test_the_gate_equals_the_release(blocks):
    def array(name):
        return blocks[f"gated_param__{name}"]

    def dense(name):
        return {"kernel": array(f"{name}.weight").T, "bias": array(f"{name}.bias")}

    params = {
        "squeeze": dense("excitation_1.0"),
        "excite": dense("excitation_2.0"),
        "scale": dense("global_attention.0"),
        "conv": {"kernel": array("spatial.conv.weight").transpose(2, 3, 1, 0)},
        "norm": {"scale": array("spatial.bn.weight"), "bias": array("spatial.bn.bias")},
    }
    stats = {
        "norm": {"mean": array("spatial.bn.running_mean"), "var": array("spatial.bn.running_var")}
    }
    with jax.default_matmul_precision("highest"):
        got = ScaleSensitiveAttention().apply(
            {"params": params, "batch_stats": stats}, nhwc(blocks["gated_in"]), False
        )
    np.testing.assert_allclose(nchw(got), blocks["gated_out"], atol=1e-5)


# ----- the whole network ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def outputs():
    unused = ("bottolneck", "bna", "bnb", "convFS1", "block2", "block3", "pred3", "pred4", "pred5")
    shapes = {k: v for k, v in NAMES.items() if not any(word in k for word in unused)}
    variables = convert("matnet", official_arrays(shapes, SCALES))
    rng = np.random.default_rng(7)
    pictures = [nhwc(rng.standard_normal((2, 3, 97, 113)))[:, None] for _ in range(2)]
    pictures = [x.astype(jnp.float32) for x in pictures]
    module = uvos.build("matnet").module

    @jax.jit
    def run(variables, image, flow):
        out = module.apply(variables, image, flow, size=(473, 473), intermediate=True)
        mask = resize_bilinear(out["logits"][:, 0], (473, 473))
        return {**out, "mask_logits": out["logits"][:, 0], "mask": mask}

    with jax.default_matmul_precision("highest"):
        return jax.device_get(run(variables, *pictures))


@pytest.fixture(scope="module")
def released():
    return dict(np.load(DATA / "matnet_parity.npz"))


@pytest.mark.slow
def test_mask_and_boundaries_equal_the_release(outputs, released):
    masks = nchw(jax.nn.sigmoid(outputs["mask"]))[:, :, ::12, ::12]
    np.testing.assert_allclose(masks, released["mask"], atol=1e-4)
    maps = nchw(jax.nn.sigmoid(outputs["boundary_logits"][:, 0]))
    np.testing.assert_allclose(maps[:, :1, ::12, ::12], released["bdry"], atol=1e-4)
    for i, name in enumerate(("p2", "p3", "p4", "p5"), start=1):
        got = maps[:, i : i + 1, ::24, ::24]
        np.testing.assert_allclose(got, released[name], atol=1e-4, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANNELS)
def test_intermediate_maps_equal_the_release(outputs, released, name):
    ours, step = CHANNELS[name]
    got = nchw(outputs[ours])[:, ::step]
    got = got[:, :, ::2, ::2] if name in HALVED else got
    assert relative_difference(got, released[name]) < 1e-4

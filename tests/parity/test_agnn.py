"""AGNN against outputs of the released network (carrierlxk/AGNN, commit adf9e9a).

Three frames of 241x241 noise through the official code with deterministic weights (`rule.py`).
Stored are thinned-out masks, nodes after every round, messages and logits.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uvos_jax as uvos
from tests.parity.rule import official_arrays
from uvos_jax.convert import convert
from uvos_jax.convert.agnn import table
from uvos_jax.convert.official import to_official
from uvos_jax.convert.variables import flatten
from uvos_jax.errors import CheckpointError, UnsupportedError
from uvos_jax.modules.graph import MessagePassing

#: Full size: minutes in all.
pytestmark = pytest.mark.slow

DATA = Path(__file__).resolve().parents[1] / "data"
NAMES = {k: tuple(v) for k, v in json.loads((DATA / "agnn_names.json").read_text()).items()}
SIZE = (241, 241)
#: Damping of the reference run: the plain rule explodes through 33 blocks.
SCALES = ((r"\.bn3\.weight$", 0.2), (r"layer5\.bn\.weight$", 0.1), (r"^linear_e\.weight$", 0.5))


def official():
    arrays = official_arrays(NAMES, SCALES)
    arrays["encoder.layer5.sa.gamma"] = np.full((1,), 0.5, np.float32)
    return arrays


def small_arrays():
    """Official names of the tiny network, drawn at random."""
    system = uvos.build("agnn:tiny")
    targets = dict(flatten(jax.eval_shape(system.init, jax.random.key(0))))
    rng = np.random.default_rng(0)
    shapes = table(system.config).official_shapes(targets)
    return {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()}


# ----- names ----------------------------------------------------------------------------------


def test_table_lists_every_official_name_and_shape():
    system = uvos.build("agnn")
    targets = dict(flatten(jax.eval_shape(system.init, jax.random.key(0))))
    shapes = table(system.config).official_shapes(targets)
    counters = {name for name in NAMES if name.endswith("num_batches_tracked")}
    assert len(NAMES) == 700
    assert set(shapes) | counters == set(NAMES)
    assert all(tuple(shapes[name]) == NAMES[name] for name in shapes)
    parameters = sum(x.size for p, x in targets.items() if p.startswith("params/"))
    assert parameters == 82_324_932


def test_conversion_goes_back_to_the_same_arrays():
    arrays = small_arrays()
    prefixed = {f"module.{name}": value for name, value in arrays.items()}
    variables = convert("agnn", prefixed, "agnn:tiny")
    back = to_official("agnn", variables)
    assert set(back) == set(arrays)
    for name, value in arrays.items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)


def test_gates_are_split_into_message_and_state():
    arrays = small_arrays()
    variables = convert("agnn", arrays, "agnn:tiny")
    update = variables["params"]["graph"]["round"]["update"]
    reset = arrays["ConvGRU.reset_gate.weight"][:, :, 0, 0].T
    np.testing.assert_array_equal(update["input"]["kernel"][0, 0, :, :16], reset[:16])
    np.testing.assert_array_equal(update["gate_kernel"][0, 0, :, :16], reset[16:])
    candidate = arrays["ConvGRU.out_gate.weight"][:, :, 0, 0].T
    np.testing.assert_array_equal(update["candidate_kernel"][0, 0], candidate[16:])


def test_a_partial_fit_is_refused():
    arrays = small_arrays()
    del arrays["ConvGRU.out_gate.bias"]
    with pytest.raises(CheckpointError, match=r"1 missing \(such as ConvGRU\.out_gate\.bias\)"):
        convert("agnn", arrays, "agnn:tiny")


def test_weights_for_the_papers_form_are_refused():
    with pytest.raises(UnsupportedError, match=r"do not fit gate='channel'.*agnn:full"):
        convert("agnn", {}, "agnn:tiny_paper")


def test_the_pretrained_encoder_converts_without_the_attention_it_lacks():
    arrays = {
        name.removeprefix("encoder."): value
        for name, value in small_arrays().items()
        if name.startswith("encoder.") and ".sa." not in name and ".conv51." not in name
    }
    variables = convert("agnn", arrays, "agnn:tiny", part="encoder")
    assert set(variables["params"]["encoder"]) == {"resnet", "layer5", "main_classifier"}


# ----- numbers --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def released():
    return dict(np.load(DATA / "agnn_parity.npz"))


@pytest.fixture(scope="module")
def converted():
    return convert("agnn", official())


@pytest.fixture(scope="module")
def outputs(converted):
    """The whole network, and the nodes after every round."""
    system = uvos.build("agnn", attention_impl="dense")
    x = np.random.default_rng(7).standard_normal((3, 1, 3, *SIZE)).astype(np.float32)
    frames = jnp.asarray(x.transpose(1, 0, 3, 4, 2))

    def run(variables, frames):
        initial, saliency = system.module.apply(variables, frames, method="encode")
        nodes, rounds = system.module.apply(variables, initial, method="propagate")
        logits = system.module.apply(variables, nodes, initial, method="read_out")
        return {"initial": initial, "saliency": saliency, "rounds": rounds, "logits": logits}

    with jax.default_matmul_precision("highest"):
        return jax.jit(run)(converted, frames)


def masks(logits, step):
    return np.asarray(uvos.build("agnn").probabilities(logits, SIZE))[0, :, ::step, ::step]


def close(value, reference):
    """Within 1e-3 of the reference's largest value."""
    np.testing.assert_allclose(value, reference, atol=1e-3 * np.abs(reference).max())


@pytest.mark.slow
def test_masks_equal_the_release(outputs, released):
    got = masks(outputs["logits"], 3)
    for i in range(3):
        np.testing.assert_allclose(got[i], released[f"x{i + 1}"], atol=1e-4)
    saliency = masks(outputs["saliency"], 4)
    for i in (1, 2):
        np.testing.assert_allclose(saliency[i], released[f"enc_sal_input{i + 1}"], atol=1e-4)


@pytest.mark.slow
def test_logits_and_initial_nodes_equal_the_release(outputs, released):
    close(outputs["logits"][0, :, ::2, ::2, 0], released["head_logits"])
    close(outputs["saliency"][0, :, ::2, ::2, 0], released["enc_logits"])
    nodes = np.asarray(outputs["initial"])[0].transpose(0, 3, 1, 2)[:, ::16, ::3, ::3]
    for i in range(3):
        close(nodes[i], released[f"node{i + 1}_init"])


@pytest.mark.slow
def test_nodes_after_every_round_equal_the_release(outputs, released):
    rounds = np.asarray(outputs["rounds"])[:, 0].transpose(0, 1, 4, 2, 3)  # [K,N,C,h,w]
    thin = rounds[:, :, :32][:, :, ::4, ::4, ::4]
    for k in range(5):
        close(thin[k, 0], released[f"node1_round{k + 1}_c0_32"])
    close(thin[4, 1], released["node2_round5_c0_32"])
    close(thin[4, 2], released["node3_round5_c0_32"])
    close(rounds[4, 0, ::8, ::3, ::3], released["node1_round5"])


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["dense", "blockwise"])
def test_messages_and_gates_equal_the_release(outputs, converted, released, implementation):
    options = {"features": 256, "aggregation": "fusion", "loop": False}
    step = MessagePassing(**options, attention_impl=implementation, block_size=400)
    variables = {"params": converted["params"]["graph"]["round"]}

    @jax.jit
    def run(nodes):
        gated = step.apply(variables, nodes, method="messages")
        return gated, step.apply(variables, gated, (31, 31), method="aggregate")

    with jax.default_matmul_precision("highest"):
        gated, first = run(outputs["initial"])
        _, last = run(outputs["rounds"][3])
        ungated = MessagePassing(**options, gate="none")
        bare = jax.jit(lambda x: ungated.apply(variables, x, method="messages"))(outputs["initial"])
    ratio = jnp.nanmedian(gated / bare, axis=-1)  # channels may be dead
    ratio = ratio.reshape(6, 31, 31)[:, ::3, ::3]
    expected = jax.nn.sigmoid(released["gate_logits_first6"])
    np.testing.assert_allclose(ratio, expected, atol=1e-4)
    for got, name in ((first, "round1"), (last, "round5")):
        thin = np.asarray(got)[0, 0].transpose(2, 0, 1)[:32][::4, ::4, ::4]
        close(thin, released[f"fusion_node1_{name}_c0_32"])

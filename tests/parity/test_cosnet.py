"""COSNet against outputs of the released network (carrierlxk/COSNet, commit 549109d).

The weights follow a deterministic rule, pass through the converter under their official names, and
the network runs at full size on 241x241 noise. Stored are every third row and column of the masks
(sigmoid at input size) and parts of the intermediate maps.
"""

import json
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uvos_jax as uvos
from uvos_jax.convert import convert
from uvos_jax.errors import CheckpointError, ConfigError, UnsupportedError
from uvos_jax.modules import attention

DATA = Path(__file__).resolve().parents[1] / "data"
NAMES = {k: tuple(v) for k, v in json.loads((DATA / "cosnet_names.json").read_text()).items()}
SIZE = (241, 241)


def official_array(name):
    """The weight the reference run used under `name`; each tensor has its own generator."""
    shape = NAMES[name]
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    module, _, leaf = name.rpartition(".")
    if f"{module}.running_mean" in NAMES:
        value = (
            0.5 + rng.random(shape) if leaf == "running_var" else 0.1 * rng.standard_normal(shape)
        )
        value = value + 1 if leaf == "weight" else value
    elif leaf == "weight" and len(shape) >= 2:
        value = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    else:
        value = 0.1 * rng.standard_normal(shape)
    # the plain rule explodes through 33 residual blocks
    if ".bn3.weight" in name:
        value = value * 0.2
    elif name == "encoder.layer5.bn.weight":
        value = value * 0.1
    elif name == "linear_e.weight":
        value = value * 0.5
    return value.astype(np.float32)


def small_arrays(config):
    """Official names and shapes of a small network with zeros, for tests of names only."""
    from uvos_jax.convert.cosnet import table
    from uvos_jax.convert.variables import flatten

    system = uvos.build(config)
    targets = dict(flatten(jax.eval_shape(system.init, jax.random.key(0))))
    shapes = table(system.config).official_shapes(targets)
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def released():
    return dict(np.load(DATA / "cosnet_parity.npz"))


# ----- names ----------------------------------------------------------------------------------


def test_table_lists_every_official_name_and_shape():
    from uvos_jax.convert.cosnet import table
    from uvos_jax.convert.variables import flatten

    system = uvos.build("cosnet")
    targets = dict(flatten(jax.eval_shape(system.init, jax.random.key(0))))
    shapes = table(system.config).official_shapes(targets)
    counters = {name for name in NAMES if name.endswith("num_batches_tracked")}
    assert len(NAMES) == 687
    assert len(counters) == 112
    assert set(shapes) | counters == set(NAMES)
    assert all(tuple(shapes[name]) == NAMES[name] for name in shapes)


def test_dataparallel_prefix_and_counters_are_handled():
    arrays = small_arrays("cosnet:tiny")
    arrays["bn1.num_batches_tracked"] = np.zeros((), np.int64)
    prefixed = {f"module.{name}": value for name, value in arrays.items()}
    variables = convert("cosnet", prefixed, "cosnet:tiny")
    assert variables.meta["system"] == "cosnet"
    assert variables["params"]["affinity"]["kernel"].shape == (16, 16)


def test_a_training_checkpoint_file_converts(tmp_path):
    torch = pytest.importorskip("torch")
    arrays = small_arrays("cosnet:tiny")
    arrays["gate.weight"] = np.arange(16, dtype=np.float32).reshape(1, 16, 1, 1)
    state = {f"module.{name}": torch.from_numpy(value) for name, value in arrays.items()}
    state["module.bn1.num_batches_tracked"] = torch.zeros((), dtype=torch.int64)
    path = tmp_path / "co_attention_davis_7.pth"
    torch.save({"epoch": 7, "model": state}, path)
    variables = convert("cosnet", path, "cosnet:tiny")
    kernel = variables["params"]["gate"]["conv"]["kernel"]
    np.testing.assert_array_equal(kernel, np.arange(16).reshape(1, 1, 16, 1))


def test_matrices_of_linear_layers_are_transposed():
    arrays = small_arrays("cosnet:tiny")
    arrays["linear_e.weight"] = np.arange(256, dtype=np.float32).reshape(16, 16)
    variables = convert("cosnet", arrays, "cosnet:tiny")
    np.testing.assert_array_equal(
        variables["params"]["affinity"]["kernel"], arrays["linear_e.weight"].T
    )


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda a: a.pop("gate.weight"), r"1 missing \(such as gate\.weight\)"),
        (lambda a: a.update({"conv3.weight": np.zeros(3)}), r"1 unknown \(such as conv3\.weight\)"),
        (
            lambda a: a.update({"linear_e.weight": np.zeros((16, 8), np.float32)}),
            r"affinity/kernel \(8, 16\), expected \(16, 16\)",
        ),
    ],
)
def test_a_partial_fit_is_refused(change, message):
    arrays = small_arrays("cosnet:tiny")
    change(arrays)
    with pytest.raises(CheckpointError, match=message):
        convert("cosnet", arrays, "cosnet:tiny")


def test_weights_for_parts_the_release_lacks_are_refused():
    config = uvos.load_config("cosnet:tiny,gate_bias=true")
    with pytest.raises(UnsupportedError, match=r"do not fit model\.gate_bias=True.*cosnet:full"):
        convert("cosnet", {}, config)


def test_the_pretrained_encoder_converts_on_its_own():
    arrays = {
        name.removeprefix("encoder."): value
        for name, value in small_arrays("cosnet:tiny").items()
        if name.startswith("encoder.")
    }
    variables = convert("cosnet", arrays, "cosnet:tiny", part="encoder")
    assert set(variables["params"]) == {"encoder"}
    with pytest.raises(ConfigError, match=r"no part 'head'.*encoder"):
        convert("cosnet", arrays, "cosnet:tiny", part="head")


# ----- numbers --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def converted():
    return convert("cosnet", {name: official_array(name) for name in NAMES})


@pytest.fixture(scope="module")
def images():
    x = np.random.default_rng(7).standard_normal((3, 1, 3, *SIZE)).astype(np.float32)
    return jnp.asarray(x.transpose(0, 1, 3, 4, 2))


@pytest.fixture(scope="module")
def pair(converted, images):
    """One query and two references through the pair network, masks fused as released."""
    module = uvos.build("cosnet", fusion="prediction", attention_impl="dense").module
    with jax.default_matmul_precision("highest"):
        return jax.jit(module.apply)(converted, images[0], images[1:].swapaxes(0, 1))


def masks(logits):
    """Sigmoid at input size of logits `[1,T,h,w,1]`, every third pixel."""
    return np.asarray(uvos.build("cosnet").probabilities(logits, SIZE))[0, :, ::3, ::3]


@pytest.mark.slow
def test_pair_masks_equal_the_release(pair, released):
    query = masks(pair["query_logits"])
    np.testing.assert_allclose(query[0], released["pair_x1"], atol=1e-4)
    np.testing.assert_allclose(masks(pair["logits"])[1], released["pair_x2"], atol=1e-4)
    saliency = masks(pair["saliency_logits"])
    np.testing.assert_allclose(saliency[1], released["pair_enc_sal_input2"], atol=1e-4)


@pytest.mark.slow
def test_two_references_equal_the_release(pair, converted, released):
    query = masks(pair["query_logits"])
    np.testing.assert_allclose(query[1], released["two_x1_ref2"], atol=1e-4)
    np.testing.assert_allclose(query.mean(0), released["two_x1_mean"], atol=1e-4)
    # the same through the inference path, with the attention in blocks
    module = uvos.build("cosnet", fusion="prediction", attention_impl="blockwise").module
    embedding = pair["embedding"]
    with jax.default_matmul_precision("highest"):
        logits, weights = jax.jit(lambda *x: module.apply(*x, method="segment"))(
            converted, embedding[:, 0], embedding[:, 1:]
        )
    np.testing.assert_allclose(weights, 0.5)
    np.testing.assert_allclose(masks(logits).mean(0), released["two_x1_mean"], atol=1e-4)


@pytest.mark.slow
def test_intermediate_maps_equal_the_release(pair, converted, released):
    embedding = np.asarray(pair["embedding"])[0].transpose(0, 3, 1, 2)[:, ::8, ::3, ::3]
    for t, name in enumerate(("embedding_input1", "embedding_input2")):
        tolerance = 1e-3 * np.abs(released[name]).max()
        np.testing.assert_allclose(embedding[t], released[name], atol=tolerance)
    for t in range(2):
        got = pair["saliency_logits"][0, t, ..., 0]
        np.testing.assert_allclose(got, released[f"enc_logit_input{t + 1}"], atol=1e-3)
    got = pair["query_logits"][0, 0, ..., 0]
    np.testing.assert_allclose(got, released["head_logit_input1"], atol=1e-3)
    got = pair["logits"][0, 1, ..., 0]
    np.testing.assert_allclose(got, released["head_logit_input2"], atol=1e-3)


@pytest.mark.slow
def test_affinity_equals_the_release(pair, converted, released):
    a, b = (pair["embedding"][:, t].reshape(1, 31 * 31, 256) for t in range(2))
    module = uvos.build("cosnet").module
    with jax.default_matmul_precision("highest"):
        queries, _ = module.apply(converted, a, method="queries_and_keys")
        affinity = np.asarray(attention.affinity(queries, b))[0]
    tolerance = {"atol": 1e-3 * np.abs(affinity).max()}
    np.testing.assert_allclose(affinity[:64, :64], released["affinity_block"], **tolerance)
    np.testing.assert_allclose(affinity.max(1), released["affinity_rowmax"], **tolerance)
    np.testing.assert_allclose(affinity.max(0), released["affinity_colmax"], **tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", attention.IMPLEMENTATIONS)
def test_group_network_equals_the_release(pair, converted, released, implementation):
    module = uvos.build("cosnet:group", attention_impl=implementation).module
    embedding = pair["embedding"]
    with jax.default_matmul_precision("highest"):
        logits, _ = jax.jit(lambda *x: module.apply(*x, method="segment"))(
            converted, embedding[:, 0], embedding[:, 1:]
        )
    np.testing.assert_allclose(masks(logits)[0], released["group_x1"], atol=1e-4)
    saliency = masks(pair["saliency_logits"])
    np.testing.assert_allclose(saliency[0], released["group_enc_sal_target"], atol=1e-4)

"""DLVS against the released architecture: names, numbers of parameters, and a slow NumPy oracle.

The authors' Keras code cannot be run here; the oracle follows its layers one by one, in float64 and
in its own layout and names, which reach ours through the converter.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uvos_jax as uvos
from uvos_jax.convert import convert
from uvos_jax.convert.dlvs import table
from uvos_jax.convert.official import to_official
from uvos_jax.convert.variables import flatten
from uvos_jax.errors import CheckpointError, ConfigError, UnsupportedError

COUNTS = (2, 2, 3, 3, 3)
SIDES = ("sal_conv_5", "conv_4_out", "sal_conv4", "conv_3_out", "sal_conv3")
NAMES = [f"block{b}_conv{i}" for b, n in enumerate(COUNTS, 1) for i in range(1, n + 1)]


def small_config(**fields):
    """The released topology with few channels."""
    config = uvos.load_config("dlvs:full")
    config.model.widths = (4, 5, 6, 7, 8)
    config.model.side_features = 3
    config.model.input_size = (32, 48)
    config.model.clip_len = 3
    for key, value in fields.items():
        config.model[key] = value
    return config


def official_shapes(config):
    system = uvos.build(config)
    targets = dict(flatten(jax.eval_shape(system.init, jax.random.key(0))))
    return table(system.config).official_shapes(targets)


def official_arrays(config, seed=0):
    """Random weights under official names; large enough for sigmoids to leave their middle."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, shape in official_shapes(config).items():
        scale = np.sqrt(2 / np.prod(shape[:-1])) if len(shape) == 4 else 0.3
        if "block1_conv1" in name and name.endswith("kernel"):
            scale /= 40
        arrays[name] = (scale * rng.standard_normal(shape)).astype(np.float32)
    return arrays


# ----- oracle ---------------------------------------------------------------------------------


def conv(x, kernel, bias):
    """3x3 'same' convolution of `[H,W,C]`, one output pixel at a time."""
    H, W, _ = x.shape
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    out = np.zeros((H, W, kernel.shape[-1]))
    for i in range(H):
        for j in range(W):
            out[i, j] = np.tensordot(padded[i : i + 3, j : j + 3], kernel, 3) + bias
    return out


def pool(x):
    H, W, C = x.shape
    return x.reshape(H // 2, 2, W // 2, 2, C).max((1, 3))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def network(arrays, x, name):
    """Three sigmoid maps `[h,w]`, coarse to fine, of one network of the release."""

    def layer(x, layer_name):
        prefix = f"{name}/{layer_name}"
        return conv(x, *(np.float64(arrays[f"{prefix}/{k}"]) for k in ("kernel", "bias")))

    blocks = {}
    for b, count in enumerate(COUNTS, 1):
        for i in range(1, count + 1):
            new = "_new" if name == "dynamic" and (b, i) == (1, 1) else ""
            x = np.maximum(layer(x, f"block{b}_conv{i}{new}"), 0)
        blocks[b] = x
        x = pool(x) if b < 5 else x
    maps = [sigmoid(layer(blocks[5], "sal_conv_5"))]
    for b in (4, 3):
        own = sigmoid(layer(blocks[b], f"conv_{b}_out"))
        up = maps[-1].repeat(2, 0).repeat(2, 1)
        maps.append(sigmoid(layer(np.concatenate([own, up], -1), f"sal_conv{b}")))
    return [m[..., 0] for m in maps]


def released_input(frame):
    """The means as the release subtracts them: before the channels are reversed."""
    return (np.float64(frame) - [103.939, 116.779, 123.68])[..., ::-1]


def enlarged(x, size):
    """Bilinear with pixel centres, two loops."""
    out = np.zeros(size)
    for i in range(size[0]):
        for j in range(size[1]):
            y = np.clip((i + 0.5) * x.shape[0] / size[0] - 0.5, 0, x.shape[0] - 1)
            z = np.clip((j + 0.5) * x.shape[1] / size[1] - 0.5, 0, x.shape[1] - 1)
            a, b = int(y), int(z)
            c, d = min(a + 1, x.shape[0] - 1), min(b + 1, x.shape[1] - 1)
            top = x[a, b] * (1 - z + b) + x[a, d] * (z - b)
            low = x[c, b] * (1 - z + b) + x[c, d] * (z - b)
            out[i, j] = top * (1 - y + a) + low * (y - a)
    return out


def spread(x):
    return (x - x.min()) / (x.max() - x.min())


# ----- numbers --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run():
    """Config, official arrays, frames `[3,H,W,3]` and our outputs on them."""
    config = small_config(round_prior=False)
    arrays = official_arrays(config)
    variables = convert("dlvs", arrays, config)
    system = uvos.build(config)
    frames = np.random.default_rng(1).integers(0, 256, (3, 32, 48, 3)).astype(np.uint8)
    batch = {"frames": jnp.asarray(frames)[None]}
    with jax.default_matmul_precision("highest"):
        outputs = jax.jit(lambda v, b: system.apply(v, b, train=False)[0])(variables, batch)
        _, probs = jax.jit(system.predict)(variables, (), batch)
    return arrays, frames, outputs, np.asarray(probs)


def test_static_map_equals_the_oracle(run):
    arrays, frames, outputs, _ = run
    expected = network(arrays, released_input(frames[1]), "static")[-1]
    got = sigmoid(np.asarray(outputs["static_logits"], np.float64)[0, 1, ..., 0])
    assert expected.std() > 0.01
    np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize("t,partner", [(0, 1), (2, 1)])
def test_dynamic_maps_and_saliency_equal_the_oracle(run, t, partner):
    arrays, frames, outputs, probs = run
    static = network(arrays, released_input(frames[t]), "static")[-1]
    prior = 255 * spread(enlarged(spread(static), (32, 48)))
    stacked = np.concatenate(
        [released_input(frames[t]), released_input(frames[partner]), prior[..., None]], -1
    )
    expected = network(arrays, stacked, "dynamic")
    for logits, want in zip(outputs["side_logits"], expected, strict=True):
        got = sigmoid(np.asarray(logits, np.float64)[0, t, ..., 0])
        np.testing.assert_allclose(got, want, atol=1e-4)
    assert expected[-1].std() > 0.01
    full = spread(enlarged(expected[-1], (32, 48)))
    np.testing.assert_allclose(probs[0, t], full, atol=1e-3)


def test_rounded_priors_are_multiples_of_a_grey_level():
    module = uvos.build(small_config()).module
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((2, 8, 12, 1)), jnp.float32)
    prior = np.asarray(module.prior(logits, (32, 48)))
    np.testing.assert_allclose(prior, np.round(prior), atol=1e-4)
    assert prior.min() == 0
    assert prior.max() == 255
    smooth = np.asarray(module.clone(round_prior=False).prior(logits, (32, 48)))
    assert np.abs(prior - smooth).max() < 2.5


# ----- names ----------------------------------------------------------------------------------


def test_names_shapes_and_parameters_are_those_of_the_release():
    config = uvos.load_config("dlvs:full")
    shapes = official_shapes(config)
    layers = {name.rpartition("/")[0] for name in shapes}
    static = {f"static/{n}" for n in (*NAMES, *SIDES)}
    dynamic = {f"dynamic/{n}" for n in ("block1_conv1_new", *NAMES[1:], *SIDES)}
    assert layers == static | dynamic
    assert all({f"{n}/kernel", f"{n}/bias"} <= set(shapes) for n in layers)
    assert shapes["dynamic/block1_conv1_new/kernel"] == (3, 3, 7, 64)
    assert shapes["static/sal_conv3/kernel"] == (3, 3, 65, 1)

    def count(prefix):
        return sum(int(np.prod(s)) for n, s in shapes.items() if n.startswith(prefix))

    assert count("static/") == 15_162_965
    assert count("dynamic/") == 15_165_269


def test_conversion_goes_back_exactly():
    config = small_config()
    arrays = official_arrays(config)
    back = to_official("dlvs", convert("dlvs", arrays, config))
    assert set(back) == set(arrays)
    assert all(np.array_equal(back[name], arrays[name]) for name in arrays)


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda a: a.pop("static/sal_conv4/bias"), r"1 missing \(such as static/sal_conv4/bias"),
        (lambda a: a.update({"static/fc1/kernel": np.zeros(3)}), r"1 unknown \(such as static/fc1"),
        (
            lambda a: a.update({"dynamic/sal_conv3/kernel": np.zeros((3, 3, 9, 1), np.float32)}),
            r"head/sal_conv3/kernel \(3, 3, 9, 1\), expected \(3, 3, 4, 1\)",
        ),
    ],
)
def test_a_partial_fit_is_refused(change, message):
    config = small_config()
    arrays = official_arrays(config)
    change(arrays)
    with pytest.raises(CheckpointError, match=message):
        convert("dlvs", arrays, config)


def test_each_network_converts_on_its_own():
    config = small_config()
    arrays = official_arrays(config)
    static = {k: v for k, v in arrays.items() if k.startswith("static/")}
    assert set(convert("dlvs", static, config, part="static")["params"]) == {"static"}
    dynamic = {k: v for k, v in arrays.items() if k.startswith("dynamic/")}
    assert set(convert("dlvs", dynamic, config, part="dynamic")["params"]) == {"motion"}
    with pytest.raises(CheckpointError, match="missing"):
        convert("dlvs", static, config)
    alone = convert("dlvs", static, small_config(static_only=True))
    assert set(alone["params"]) == {"static"}
    with pytest.raises(ConfigError, match="no part 'head'"):
        convert("dlvs", static, config, part="head")


def test_imagenet_weights_start_both_networks():
    config = small_config()
    shapes = official_shapes(config)
    arrays = {
        f"static/{n}/{k}": np.random.default_rng(3).standard_normal(shapes[f"static/{n}/{k}"])
        for n in NAMES
        for k in ("kernel", "bias")
    }
    params = convert("dlvs", arrays, config, part="vgg")["params"]
    kernel = arrays["static/block1_conv1/kernel"].astype(np.float32)
    np.testing.assert_array_equal(params["static"]["vgg"]["conv1_1"]["kernel"], kernel)
    doubled = params["motion"]["vgg"]["conv1_1"]["kernel"]
    np.testing.assert_array_equal(doubled[:, :, :3] + doubled[:, :, 3:6], kernel)
    np.testing.assert_array_equal(doubled[:, :, 6], 0)
    np.testing.assert_array_equal(
        params["motion"]["vgg"]["conv5_3"]["bias"], params["static"]["vgg"]["conv5_3"]["bias"]
    )


@pytest.mark.parametrize("fields", [{"head": "deconv"}, {"use_static_prior": False}])
def test_parts_the_release_lacks_are_refused(fields):
    with pytest.raises(UnsupportedError, match="dlvs:full"):
        convert("dlvs", {}, small_config(**fields))


# ----- files ----------------------------------------------------------------------------------


def write_keras(path, arrays, version=2):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            layer, _, kind = name.rpartition("/")
            inner = f"{layer}/{kind}:0" if version == 2 else f"{layer}_{kind[0].upper()}_1:0"
            file.create_dataset(f"{layer}/{inner}", data=array)
        file.create_group("input_1")  # layers without weights are there as well


@pytest.mark.parametrize("version", [1, 2])
def test_keras_files_convert_and_are_told_apart(tmp_path, version):
    config = small_config()
    arrays = official_arrays(config)
    for network in ("static", "dynamic"):
        own = {k.removeprefix(f"{network}/"): v for k, v in arrays.items() if network in k}
        write_keras(tmp_path / f"{network}_vgg.h5", own, version)
    files = [tmp_path / "dynamic_vgg.h5", tmp_path / "static_vgg.h5"]
    variables = convert("dlvs", files, config)
    back = to_official("dlvs", variables)
    assert all(np.array_equal(back[name], arrays[name]) for name in arrays)
    with pytest.raises(CheckpointError, match="one file of the static and one of the dynamic"):
        convert("dlvs", [files[0], files[0]], config)


def test_damaged_and_missing_files_are_refused(tmp_path):
    path = tmp_path / "static_vgg.h5"
    with pytest.raises(CheckpointError, match="does not exist"):
        convert("dlvs", path)
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(50))
    with pytest.raises((CheckpointError, UnsupportedError), match=r"cannot be read|pip install"):
        convert("dlvs", path)

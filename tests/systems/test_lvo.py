"""LVO: its memory, streams, stop-and-go windows, losses, names and refusals on small networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uvos_jax as uvos
from uvos_jax.config import _import_config_file, config_folder
from uvos_jax.convert import convert
from uvos_jax.convert.lvo import appearance_table, motion_table, table
from uvos_jax.convert.official import to_official
from uvos_jax.convert.variables import flatten
from uvos_jax.errors import CheckpointError, ConfigError, DataError, UnsupportedError
from uvos_jax.systems.lvo import LVONetwork, stop_and_go

SIZE = (64, 96)


def small(**overrides):
    return uvos.build("lvo:tiny", input_size=SIZE, **overrides)


def batch(B=1, T=4, seed=0):
    rng = np.random.default_rng(seed)
    masks = np.zeros((B, T, *SIZE), np.uint8)
    masks[:, :, 16:32, 8:40] = 1
    arrays = {
        "frames": rng.integers(0, 256, (B, T, *SIZE, 3)).astype(np.uint8),
        "masks": masks,
        "flow": rng.standard_normal((B, T, *SIZE, 2)).astype(np.float32),
        "flow_valid": np.ones((B, T), bool),
    }
    return jax.tree.map(jnp.asarray, arrays)


# ----- memory ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def memory():
    """A bidirectional memory alone, its variables and an input `[2,5,3,4,6]`."""
    system = small(features=5, hidden=3)
    module = system.module
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 3, 4, 6)), jnp.float32)
    variables = module.init(jax.random.key(1), x, method="decide")
    return module, variables, x


def convolve(x, kernel):
    """`x [h,w,C]` with a 3x3 kernel, loops over positions."""
    h, w, _ = x.shape
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    out = np.zeros((h, w, kernel.shape[-1]))
    for i in range(h):
        for j in range(w):
            patch = padded[i : i + 3, j : j + 3]
            out[i, j] = np.einsum("abc,abcd->d", patch, kernel)
    return out


def slow_gru(params, frames):
    """States of the sheet equations over `frames [T,h,w,C]`, float64."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    F = p["candidate_kernel"].shape[-1]
    h = np.zeros((*frames.shape[1:3], F))
    states = []
    for x in frames:
        gates = convolve(x, p["input"]["kernel"]) + p["input"]["bias"]
        rz = 1 / (1 + np.exp(-gates[..., : 2 * F] - convolve(h, p["gate_kernel"])))
        r, z = rz[..., :F], rz[..., F:]
        c = np.tanh(gates[..., 2 * F :] + convolve(r * h, p["candidate_kernel"]))
        h = (1 - z) * h + z * c
        states.append(h)
    return np.stack(states)


def test_both_directions_share_the_cell_and_match_loops(memory):
    module, variables, x = memory
    _, logits = module.apply(variables, x, method="decide")
    params = variables["params"]
    head, last = params["head"], params["classifier"]
    for b in range(2):
        frames = np.asarray(x[b], np.float64)
        ahead = slow_gru(params["recurrence"], frames)
        back = slow_gru(params["recurrence"], frames[::-1])[::-1]
        joined = np.concatenate([ahead, back], axis=-1)
        for t in range(5):
            y = convolve(joined[t], np.asarray(head["kernel"], np.float64)) + head["bias"]
            y = y @ np.asarray(last["kernel"])[0, 0] + last["bias"]
            np.testing.assert_allclose(logits[b, t], y, atol=1e-5)


def test_reversing_time_swaps_the_directions(memory):
    module, variables, x = memory
    params = dict(variables["params"])
    half = params["head"]["kernel"].shape[2] // 2
    kernel = params["head"]["kernel"]
    swapped = jnp.concatenate([kernel[:, :, half:], kernel[:, :, :half]], axis=2)
    other = {"params": {**params, "head": {**params["head"], "kernel": swapped}}}
    _, plain = module.apply(variables, x, method="decide")
    _, reverse = module.apply(other, x[:, ::-1], method="decide")
    np.testing.assert_allclose(plain, reverse[:, ::-1], atol=1e-6)


def test_a_marked_shot_is_as_a_clip_of_its_own(memory):
    module, variables, x = memory
    markers = jnp.ones((2, 5)).at[:, 3].set(0)
    _, marked = module.apply(variables, x, None, markers, method="decide")
    _, first = module.apply(variables, x[:, :3], method="decide")
    _, second = module.apply(variables, x[:, 3:], method="decide")
    np.testing.assert_allclose(marked, jnp.concatenate([first, second], 1), atol=1e-6)


def test_the_memory_of_the_full_network_has_the_published_size():
    shapes = jax.eval_shape(uvos.build("lvo").init, jax.random.key(0))["params"]

    def count(tree):
        return sum(x.size for x in jax.tree.leaves(tree))

    assert count(shapes["recurrence"]) == 1_815_936
    assert count(shapes["motion"]) == 10_774_209
    assert shapes["head"]["kernel"].shape == (3, 3, 128, 64)
    assert shapes["appearance"]["fc6"]["kernel"].shape == (3, 3, 512, 1024)


def test_full_feature_maps_are_60_by_107_at_854x480():
    system = uvos.build("lvo")
    variables = jax.eval_shape(system.init, jax.random.key(0))
    one = {
        "frames": jax.ShapeDtypeStruct((1, 2, 480, 854, 3), jnp.uint8),
        "flow": jax.ShapeDtypeStruct((1, 2, 480, 854, 2), jnp.float32),
    }
    x = jax.eval_shape(system._inputs, variables, one)
    assert x.shape == (1, 2, 60, 107, 129)


# ----- streams and stop-and-go ----------------------------------------------------------------


def test_stop_and_go_stands_still_at_one_end_in_a_share_of_windows():
    source, stopped = stop_and_go(jax.random.key(0), 4000, 14, share=0.2, frames=5)
    kinds = {"plain": 0, "end": 0, "begin": 0}
    for shown, still in zip(np.asarray(source), np.asarray(stopped), strict=True):
        moving = np.arange(14)
        if not still.any():
            kinds["plain"] += 1
            np.testing.assert_array_equal(shown, moving)
            continue
        assert still.sum() == 5
        kind = "end" if still[-1] else "begin"
        kinds[kind] += 1
        expected = np.where(still, 9 if kind == "end" else 4, moving)
        np.testing.assert_array_equal(shown, expected)
    assert abs(kinds["plain"] / 4000 - 0.8) < 0.03
    assert abs(kinds["end"] - kinds["begin"]) < 200


@pytest.fixture(scope="module")
def built():
    system = small()
    return system, system.init(jax.random.key(0))


def test_a_stopped_window_is_one_of_copies_without_motion(built):
    system, variables = built
    arrays = batch()
    source = jnp.asarray([[0, 1, 2, 2]])
    stopped = jnp.asarray([[False, False, True, True]])
    inputs = system.module_inputs(arrays)
    module = system.module
    out = module.apply(variables, *inputs, source=source, stopped=stopped)
    copies = {k: arrays[k][:, source[0]] for k in ("frames", "flow", "flow_valid")}
    copies["flow_valid"] = copies["flow_valid"] & ~stopped
    same = module.apply(variables, *system.module_inputs(copies))
    np.testing.assert_allclose(out["logits"], same["logits"], atol=1e-5)


def test_targets_of_a_stopped_window_are_the_shown_frames_masks(built):
    system, _ = built
    arrays = batch()
    masks = arrays["masks"].at[:, 3].set(0)
    logits = jax.random.normal(jax.random.key(3), (1, 4, 8, 12, 2))
    source = jnp.asarray([[0, 1, 2, 2]])
    shown = system.loss_fn({"logits": logits, "source": source}, {**arrays, "masks": masks}, step=0)
    plain = system.loss_fn({"logits": logits}, arrays, step=0)
    np.testing.assert_allclose(shown[0], plain[0], rtol=1e-6)


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_loss_is_the_mean_cross_entropy_at_an_eighth_and_the_overlap(weight):
    system = small(iou_weight=weight)
    arrays = batch()
    logits = jax.random.normal(jax.random.key(3), (1, 4, 8, 12, 2))
    value, _ = system.loss_fn({"logits": logits}, arrays, step=0)
    log_probs = np.asarray(jax.nn.log_softmax(logits), np.float64)
    target = np.asarray(arrays["masks"])[:, :, ::8, ::8]
    expected = -np.where(target == 1, log_probs[..., 1], log_probs[..., 0]).mean()
    p = np.exp(log_probs[..., 1])
    overlap, union = ((x).sum((2, 3)) + 1 for x in (p * target, p + target - p * target))
    expected += weight * np.mean(1 - overlap / union)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_the_memory_trains_on_streams_that_do_not_move(built):
    system, variables = built

    @jax.jit
    def gradient(params):
        def value(params):
            out, new = system.apply(
                {**variables, "params": params},
                batch(),
                train=True,
                rngs={"dropout": jax.random.key(0)},
                phase="memory",
            )
            return system.loss_fn(out, batch(), step=0, phase="memory")[0], new

        return jax.grad(value, has_aux=True)(params)

    grads, new = gradient(variables["params"])
    moved = {k: any(np.any(g != 0) for g in jax.tree.leaves(v)) for k, v in grads.items()}
    frozen = {"appearance", "appearance_head", "motion"}
    assert {k for k, m in moved.items() if not m} == frozen
    jax.tree.map(np.testing.assert_array_equal, new["batch_stats"], variables["batch_stats"])


def test_frames_without_flow_have_no_motion(built):
    system, variables = built
    arrays = {**batch(), "flow_valid": jnp.asarray([[True, True, True, False]])}
    maps = system.module.apply(variables, *system.module_inputs(arrays), method="encode")
    motion = np.asarray(maps["motion"])
    assert not motion[:, 3].any()
    assert motion[:, :3].any()
    x = np.asarray(system.module.apply(variables, maps, method="fuse"))
    assert np.abs(x).max() < 1.0


def test_a_batch_without_flow_is_refused(built):
    system, variables = built
    with pytest.raises(DataError, match="lvo needs optical flow and the batch has none"):
        system.apply(variables, {"frames": batch()["frames"]}, train=False)


def test_a_forward_memory_streams():
    system = small(memory="forward")
    assert system.spec.causal
    variables = system.init(jax.random.key(0))
    arrays = {k: batch()[k] for k in ("frames", "flow")}
    predict = jax.jit(system.predict)
    start = system.init_state(variables, 1, SIZE)
    _, together = predict(variables, start, arrays)
    state, parts = start, []
    for t in range(4):
        state, p = predict(variables, state, jax.tree.map(lambda x: x[:, t : t + 1], arrays))  # noqa: B023
        parts.append(p)
    np.testing.assert_allclose(np.concatenate(parts, 1), together, atol=2e-5)


# ----- recipe, names, configuration -----------------------------------------------------------


def test_the_published_recipe_trains_the_memory_only():
    config = uvos.load_config("lvo")
    streams, memory = uvos.build(config).stages(config)
    assert (streams.steps, memory.steps) == (0, 30_000)
    groups = uvos.build(config).parameter_groups
    assert memory.phases[0].frozen == (groups["appearance"][0], groups["motion"][0])
    assert streams.phases[0].frozen == groups["memory"]


def official(which, config="lvo:tiny"):
    system = uvos.build(config)
    targets = dict(flatten(jax.eval_shape(system.init, jax.random.key(0))))
    rng = np.random.default_rng(0)
    shapes = which(system.config).official_shapes(targets)
    return {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}


def test_conversion_goes_there_and_back_without_loss():
    arrays = official(table)
    variables = convert("lvo", arrays, "lvo:tiny")
    back = to_official("lvo", variables)
    assert set(back) == set(arrays)
    for name, array in back.items():
        np.testing.assert_array_equal(array, arrays[name])
    kernel = variables["params"]["recurrence"]["gate_kernel"]
    np.testing.assert_array_equal(kernel[..., :8], arrays["memory.hr.weight"].transpose(2, 3, 1, 0))


def test_streams_convert_on_their_own():
    motion = official(motion_table)
    flat = {k: v.reshape(len(v), -1) if v.ndim == 4 else v for k, v in motion.items()}
    variables = convert("lvo", flat, "lvo:tiny", part="motion")
    assert set(variables["params"]) == {"motion"}
    np.testing.assert_array_equal(
        variables["params"]["motion"]["block2"]["conv"]["kernel"],
        motion["SpatialConvolution.2.weight"].transpose(2, 3, 1, 0),
    )
    appearance = official(appearance_table)
    appearance["fc8_voc12:0"] = np.zeros((21, 16, 1, 1), np.float32)
    variables = convert("lvo", appearance, "lvo:tiny", part="appearance")
    assert set(variables["params"]) == {"appearance"}
    del appearance["fc6:1"]
    with pytest.raises(CheckpointError, match=r"1 missing \(such as fc6:1\)"):
        convert("lvo", appearance, "lvo:tiny", part="appearance")


def test_full_table_names_sixteen_convolutions_of_mpnet():
    names = official(lambda c: motion_table(uvos.load_config("lvo:tiny").model))
    assert sum(n.startswith("SpatialConvolution.") for n in names) == 32
    assert sum(n.startswith("SpatialBatchNormalization.") for n in names) == 60
    with pytest.raises(UnsupportedError, match=r"does not fit model\.cell='lstm'"):
        convert("lvo", {}, "lvo:tiny,cell=lstm")


@pytest.mark.parametrize(
    "field,value,message",
    [
        ("memory", "backward", r"model\.memory is 'backward'.*forward"),
        ("cell", "rnn", r"model\.cell is 'rnn'.*lstm"),
        ("streams", "none", r"model\.streams is 'none'.*motion"),
        ("backbone", "vgg", r"model\.backbone is 'vgg'.*resnet101"),
        ("motion_pool", "sum", r"model\.motion_pool is 'sum'.*max"),
        ("kernel", 4, r"model\.kernel must be odd, got 4"),
        ("hidden", 0, r"model\.hidden must be at least 1, got 0"),
        ("stop_share", 1.5, r"model\.stop_share must lie in \[0, 1\], got 1\.5"),
        ("stage_shares", (0.0, 0.0), r"model\.stage_shares must be two numbers"),
    ],
)
def test_wrong_options_are_refused_by_name(field, value, message):
    with pytest.raises(ConfigError, match=message):
        uvos.build("lvo:tiny", **{field: value})


@pytest.mark.parametrize("variant", _import_config_file(config_folder() / "lvo.py").VARIANTS)
def test_every_variant_of_the_config_file_builds_and_decides(variant):
    system = uvos.build(f"lvo:{variant}")
    assert isinstance(system.module, LVONetwork)
    shapes = system.example_batch(1, (64, 64))
    variables = jax.eval_shape(lambda k: system.init(k, shapes), jax.random.key(0))
    out, _ = jax.eval_shape(lambda v, b: system.apply(v, b, train=False), variables, shapes)
    side = 9 if variant == "resnet" else 8  # whose pooling rounds up
    assert out["logits"].shape == (1, system.spec.clip_len, side, side, 2)
    assert set(system.spec.outputs) <= set(out)

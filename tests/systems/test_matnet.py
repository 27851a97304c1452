"""MATNet: its transition, gates, boundaries, losses and refusals on small networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uvos_jax as uvos
from uvos_jax.config import _import_config_file, config_folder
from uvos_jax.errors import ConfigError, DataError
from uvos_jax.losses.boundaries import boundary_target
from uvos_jax.ops.flow import flow_to_color
from uvos_jax.systems.matnet.encoder import ScaleSensitiveAttention, Transition, TransitionStep

SIZE = (33, 41)


def batch(B=2, T=1, seed=0):
    rng = np.random.default_rng(seed)
    masks = np.zeros((B, T, *SIZE), np.uint8)
    masks[:, :, 10:20, 12:25] = 1
    arrays = {
        "frames": rng.integers(0, 256, (B, T, *SIZE, 3)).astype(np.uint8),
        "masks": masks,
        "flow": rng.standard_normal((B, T, *SIZE, 2)).astype(np.float32),
    }
    return jax.tree.map(jnp.asarray, arrays)


def small(**overrides):
    return uvos.build("matnet:tiny", input_size=SIZE, **overrides)


def fake_outputs(B=2, seed=1):
    keys = jax.random.split(jax.random.key(seed))
    return {
        "logits": jax.random.normal(keys[0], (B, 1, 9, 11, 1)),
        "boundary_logits": jax.random.normal(keys[1], (B, 1, *SIZE, 5)),
    }


# ----- transition and gate --------------------------------------------------------------------


def slow_step(params, a, m):
    """One transition of maps `[n,C]` in float64 loops over positions."""

    def conv(name, x):
        p = params[name]
        return x @ np.asarray(p["kernel"], np.float64)[0, 0] + np.asarray(p["bias"], np.float64)

    def softmax(x):
        e = np.exp(x - x.max(0))
        return e / e.sum(0)

    a = softmax(conv("attend_appearance", a)) * a
    m = softmax(conv("attend_motion", m)) * m
    keys, queries = conv("project_appearance", a), conv("project_motion", m)
    z = np.zeros_like(a)
    for j in range(len(a)):
        for i in range(len(a)):
            z[j] += np.tanh(queries[j] @ keys[i]) * a[i]
        z[j] /= max(np.linalg.norm(z[j]), 1e-12)
    return z, m


@pytest.fixture(scope="module")
def maps():
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(rng.standard_normal((2, 3, 4, 8)), jnp.float32) for _ in range(2))


def test_cascade_matches_loops(maps):
    cascade = Transition(3, reduction=4, block_size=5)
    variables = cascade.init(jax.random.key(0), *maps)
    z, m = cascade.apply(variables, *maps)
    for b in range(2):
        a_b, m_b = (np.asarray(x[b], np.float64).reshape(12, 8) for x in maps)
        for _ in range(2):
            z_b, attended = slow_step(variables["params"]["step"], a_b, m_b)
            a_b, m_b = np.maximum(z_b + a_b, 0), np.maximum(attended + m_b, 0)
        z_b, m_b = slow_step(variables["params"]["step"], a_b, m_b)
        np.testing.assert_allclose(z[b].reshape(12, 8), z_b, atol=1e-4)
        np.testing.assert_allclose(m[b].reshape(12, 8), m_b, atol=1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(z, axis=-1), 1.0, atol=1e-4)


def test_moving_positions_moves_the_result(maps):
    step = TransitionStep(reduction=4)
    variables = step.init(jax.random.key(0), *maps)
    order = np.random.default_rng(1).permutation(12)

    def moved(x):
        return x.reshape(2, 12, 8)[:, order].reshape(x.shape)

    plain = step.apply(variables, *maps)
    for a, b in zip(step.apply(variables, *map(moved, maps)), plain, strict=True):
        np.testing.assert_allclose(a, moved(b), atol=1e-5)


def test_blocks_of_rows_change_neither_values_nor_gradients(maps):
    dense = Transition(2, reduction=4, attention_impl="dense")
    blockwise = Transition(2, reduction=4, attention_impl="blockwise", block_size=5)
    variables = dense.init(jax.random.key(0), *maps)

    def total(module):
        def value(v):
            z, m = module.apply(v, *maps)
            return jnp.sum(jnp.sin(3 * z)) + jnp.sum(m)

        return jax.jit(jax.value_and_grad(value))(variables)

    (a, grad_a), (b, grad_b) = total(dense), total(blockwise)
    np.testing.assert_allclose(a, b, rtol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), grad_a, grad_b)


def test_ablated_transitions_differ(maps):
    full = TransitionStep(reduction=4)
    variables = full.init(jax.random.key(0), *maps)
    z, _ = full.apply(variables, *maps)
    hard, motion = TransitionStep(reduction=4, soft_attention=False).apply(variables, *maps)
    np.testing.assert_array_equal(motion, maps[1])
    soft, _ = TransitionStep(reduction=4, affinity="softmax").apply(variables, *maps)
    for other in (hard, soft):
        assert float(jnp.max(jnp.abs(z - other))) > 1e-3


def test_gate_with_a_closed_scale_returns_its_input(maps):
    gate = ScaleSensitiveAttention(reduction=4)
    variables = gate.init(jax.random.key(0), maps[0], False)
    shut = jax.tree.map(lambda x: x, variables)
    shut["params"]["scale"]["bias"] = jnp.full((1,), -100.0)
    np.testing.assert_allclose(gate.apply(shut, maps[0], False), maps[0], atol=1e-6)


def test_the_full_network_never_holds_a_whole_affinity():
    """3600 x 3600 floats of res3 would be 52 MB; one block of rows is 7 MB."""
    options = {"steps": 5, "reduction": 16}
    maps = [jax.ShapeDtypeStruct((1, 60, 60, 512), jnp.float32)] * 2

    def memory(implementation):
        module = Transition(attention_impl=implementation, **options)
        variables = jax.eval_shape(module.init, jax.random.key(0), *maps)

        def value(v, a, m):
            z, attended = module.apply(v, a, m)
            return jnp.sum(z) + jnp.sum(attended)

        compiled = jax.jit(jax.grad(value)).lower(variables, *maps).compile()
        return compiled.memory_analysis().temp_size_in_bytes / 2**20

    blockwise, dense = memory("blockwise"), memory("dense")
    assert blockwise < dense - 60
    assert blockwise < 250


# ----- input ----------------------------------------------------------------------------------


def test_flow_is_coloured_with_the_aspect_of_the_source():
    system = small(source_aspect=2.0)
    flow = batch()["flow"]
    stretched = flow * jnp.asarray([2.0 * SIZE[0] / SIZE[1], 1.0])
    np.testing.assert_array_equal(system.flow_picture(flow), flow_to_color(stretched))
    plain = small(source_aspect=0.0)
    np.testing.assert_array_equal(plain.flow_picture(flow), flow_to_color(flow))


def test_only_the_direction_and_relative_speed_of_flow_matter():
    system = small()
    flow = batch()["flow"]
    a, b = system.flow_picture(flow), system.flow_picture(4.0 * flow)
    assert float(jnp.mean(jnp.abs(a - b))) < 0.5  # rounding to 8-bit levels


def test_a_batch_without_flow_is_refused():
    system = small()
    arrays = batch()
    del arrays["flow"]
    with pytest.raises(DataError, match="matnet needs optical flow and the batch has none"):
        system.apply({}, arrays, train=False)


# ----- loss -----------------------------------------------------------------------------------


def test_loss_is_the_weighted_cross_entropy_of_mask_and_boundaries():
    system = small(iou_weight=0.0)
    arrays = {**batch(), "has_mask": jnp.ones((2, 1), bool)}
    outputs = fake_outputs()
    value, terms = system.loss_fn(outputs, arrays, step=0)
    hard = np.asarray(system._hard_negatives(arrays, (arrays["masks"] > 0).astype(jnp.float32)))
    assert hard.max() == 1.0
    weights = 1.0 + hard.astype(np.float64)

    def bce(p, y):
        p, y = np.asarray(p, np.float64), np.asarray(y, np.float64)
        return np.mean(weights * (-y * np.log(p) - (1 - y) * np.log(1 - p)))

    mask = system.probabilities(outputs["logits"], SIZE)
    edges = boundary_target(arrays["masks"], 1)
    maps = jax.nn.sigmoid(outputs["boundary_logits"])
    boundary = 0.2 * sum(bce(maps[..., i], edges) for i in range(5))
    np.testing.assert_allclose(terms["bce"], bce(mask, arrays["masks"]), rtol=1e-4)
    np.testing.assert_allclose(terms["boundary"], boundary, rtol=1e-4)
    np.testing.assert_allclose(value, terms["bce"] + terms["boundary"], rtol=1e-6)


def test_without_hard_negatives_the_loss_is_plain_cross_entropy():
    arrays, outputs = batch(), fake_outputs()
    _, plain = small(edges="none", iou_weight=0.0).loss_fn(outputs, arrays, step=0)
    black = {**arrays, "edges": jnp.zeros(arrays["masks"].shape, jnp.uint8)}
    _, given = small(edges="given", iou_weight=0.0).loss_fn(outputs, black, step=0)
    full = small().probabilities(outputs["logits"], SIZE)
    y = arrays["masks"].astype(jnp.float32)
    expected = -jnp.mean(y * jnp.log(full) + (1 - y) * jnp.log(1 - full))
    np.testing.assert_allclose(plain["bce"], expected, rtol=1e-5)
    np.testing.assert_allclose(given["bce"], expected, rtol=1e-5)


def test_given_edges_raise_the_loss_and_their_absence_is_named():
    arrays, outputs = batch(), fake_outputs()
    system = small(edges="given")
    bright = jnp.zeros(arrays["masks"].shape, jnp.uint8).at[:, :, :4].set(255)
    low = small(edges="none").loss_fn(outputs, arrays, step=0)[0]
    assert system.loss_fn(outputs, {**arrays, "edges": bright}, step=0)[0] > low
    with pytest.raises(DataError, match=r"edges='given' needs edge maps.*'sobel' or 'none'"):
        system.loss_fn(outputs, arrays, step=0)


def test_frames_without_flow_do_not_count():
    system = small()
    arrays, outputs = batch(), fake_outputs()
    half = {**arrays, "flow_valid": jnp.asarray([[True], [False]])}
    changed = {**half, "masks": half["masks"].at[1].set(0)}
    a, b = (system.loss_fn(outputs, x, step=0)[0] for x in (half, changed))
    assert float(a) == float(b)
    assert float(system.loss_fn(outputs, arrays, step=0)[0]) != float(a)


# ----- recipe and configuration ---------------------------------------------------------------


def test_the_encoder_learns_at_a_tenth_of_the_rate():
    config = uvos.load_config("matnet")
    (stage,) = uvos.build(config).stages(config)
    (phase,) = stage.phases
    assert dict(phase.lr_multipliers) == {r"(^|/)encoder/": 0.1}
    assert config.optim.lr == 1e-3


def test_full_network_has_the_published_size():
    shapes = jax.eval_shape(uvos.build("matnet").init, jax.random.key(0))["params"]
    count = {k: sum(x.size for x in jax.tree.leaves(v)) for k, v in shapes.items()}
    trunk = sum(x.size for x in jax.tree.leaves(shapes["encoder"]["motion"]))
    assert trunk == 42_500_160
    assert 88.3e6 < count["encoder"] < 88.7e6  # 99.54 M of which 11.05 M are never used
    assert 30e6 < count["decoder"] < 43.2e6


@pytest.mark.parametrize(
    "field,value,message",
    [
        ("transition", "mats", r"model\.transition is 'mats'.*none"),
        ("affinity", "cosine", r"model\.affinity is 'cosine'.*softmax"),
        ("bridge", "se", r"model\.bridge is 'se'.*ssa"),
        ("edges", "hed", r"model\.edges is 'hed'.*sobel"),
        ("attention_impl", "flash", r"model\.attention_impl is 'flash'.*blockwise"),
        ("steps", 0, r"model\.steps must be at least 1, got 0"),
        ("hard_margin", 4, r"model\.hard_margin must be an odd number of pixels, got 4"),
        ("decoder_width", 6, r"model\.decoder_width must be a multiple of 4, got 6"),
        ("dilations", (3, 5), r"model\.dilations must be three positive numbers, got \(3, 5\)"),
        ("source_aspect", -1.0, r"model\.source_aspect must be a width over a height.*-1\.0"),
    ],
)
def test_wrong_options_are_refused_by_name(field, value, message):
    with pytest.raises(ConfigError, match=message):
        uvos.build("matnet:tiny", **{field: value})


def test_every_variant_of_the_config_file_builds():
    variants = _import_config_file(config_folder() / "matnet.py").VARIANTS
    for variant in variants:
        system = uvos.build(f"matnet:{variant}")
        assert ("boundary_logits" in system.spec.outputs) == (variant != "no_boundary")


@pytest.mark.parametrize(
    "overrides",
    [
        {"transition": "none", "bridge": "concat", "boundary": False},
        {"affinity": "softmax", "soft_attention": False, "shared_dilation": False},
    ],
)
def test_ablations_have_the_parameters_they_need_and_a_loss(overrides):
    system = small(**overrides)
    variables = jax.eval_shape(system.init, jax.random.key(0))
    encoder = variables["params"]["encoder"]
    assert ("transition3" in encoder) == (overrides.get("transition") != "none")
    assert ("gate2" in encoder) == (overrides.get("bridge") != "concat")
    own = "pyramid3" in variables["params"]["decoder"]["RF2"]
    assert own == (overrides.get("shared_dilation") is False)

    def loss(v, b):
        outputs, _ = system.apply(v, b, train=True)
        return system.loss_fn(outputs, b, step=0)[0]

    assert jax.eval_shape(loss, variables, batch()).shape == ()

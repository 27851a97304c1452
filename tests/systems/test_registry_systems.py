"""What every system must do, checked on its tiny configuration: registering it tests it."""

import json
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import uvos_jax as uvos
from uvos_jax import config as configs
from uvos_jax import registry

SYSTEMS = [name for name in uvos.list_systems() if registry.is_available(name)]
every_system = pytest.mark.parametrize("name", SYSTEMS)


@cache
def built(name):
    """(config, system, variables) of the tiny configuration; compiled once per session."""
    config = uvos.load_config(f"{name}:tiny")
    system = uvos.build(config)
    return config, system, system.init(jax.random.key(0))


def make_batch(system, batch_size=2, clip_len=None, seed=0):
    """A valid batch of the data contract with a moving square as its object."""
    rng = np.random.default_rng(seed)
    shapes = system.example_batch(batch_size)
    B, T, H, W, _ = shapes["frames"].shape
    T = clip_len or T
    frames = rng.integers(0, 120, (B, T, H, W, 3))
    masks = np.zeros((B, T, H, W), np.uint8)
    for b in range(B):
        for t in range(T):
            y, x = rng.integers(0, H // 2), (3 * t + 5 * b) % (W // 2)
            masks[b, t, y : y + H // 3, x : x + W // 3] = 1
    frames = np.clip(frames + 100 * masks[..., None], 0, 255).astype(np.uint8)
    batch = {
        "frames": frames,
        "masks": masks,
        "valid": np.ones((B, T), bool),
        "has_mask": np.ones((B, T), bool),
        "example_id": np.arange(B, dtype=np.int32),
    }
    if "flow" in system.spec.requires:
        batch["flow"] = rng.standard_normal((B, T, H, W, 2)).astype(np.float32)
        batch["flow_valid"] = np.ones((B, T), bool)
    if "fixations" in {*system.spec.requires, *system.training_requires}:
        batch["fixations"] = masks.astype(np.float32)
    for key, shape in shapes.items():
        batch.setdefault(key, np.zeros((B, T, *shape.shape[2:]), shape.dtype))
    return jax.tree.map(jnp.asarray, batch)


def phases(name):
    """(phase name, clip length) of every distinct phase of the recipe."""
    config, system, _ = built(name)
    found = {p.name: p for stage in system.stages(config) for p in stage.phases}
    return {n: 1 if p.data == "static" else system.spec.clip_len for n, p in found.items()}


@cache
def train_function(name, phase):
    """Jitted (variables, batch) -> loss, terms, new collections, gradients."""
    _, system, _ = built(name)

    def loss(params, variables, batch):
        outputs, collections = system.apply(
            {**variables, "params": params},
            batch,
            train=True,
            rngs={"dropout": jax.random.key(1)},
            phase=phase,
        )
        value, terms = system.loss_fn(outputs, batch, step=0, phase=phase)
        return value, (terms, collections)

    grad = jax.value_and_grad(loss, has_aux=True)
    return jax.jit(lambda variables, batch: grad(variables["params"], variables, batch))


@cache
def settled(name):
    """Variables whose BatchNorm statistics fit the data, as those of a trained network do.

    With fresh ones activations grow from block to block and rounding errors with them.
    """
    _, system, variables = built(name)
    phase, clip_len = next(reversed(phases(name).items()))
    batch = make_batch(system, clip_len=clip_len)
    for _ in range(30):
        (_, (_, collections)), _ = train_function(name, phase)(variables, batch)
        variables = type(variables)({**variables, **collections})
    return variables


@cache
def predict_function(name):
    return jax.jit(built(name)[1].predict)


@every_system
def test_parameters_are_float32_and_named_by_strings(name):
    variables = built(name)[2]
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        assert leaf.dtype == jnp.float32, jax.tree_util.keystr(path)
        assert np.all(np.isfinite(leaf)), jax.tree_util.keystr(path)


@every_system
def test_forward_returns_what_the_spec_promises(name):
    _, system, variables = built(name)
    batch = make_batch(system)
    outputs, collections = jax.eval_shape(
        lambda v, b: system.apply(v, b, train=False), variables, batch
    )
    B, T = batch["frames"].shape[:2]
    logits = outputs["logits"]
    assert logits.ndim == 5
    assert logits.shape[:2] == (B, T)
    assert logits.shape[-1] == system.spec.num_classes
    assert set(system.spec.outputs) <= set(outputs)
    assert collections == {}


@every_system
def test_loss_and_gradient_are_finite_in_every_phase(name):
    _, system, variables = built(name)
    for phase, clip_len in phases(name).items():
        batch = make_batch(system, clip_len=clip_len)
        (value, (terms, collections)), grads = train_function(name, phase)(variables, batch)
        assert np.isfinite(value), phase
        assert value.dtype == jnp.float32
        assert all(np.isfinite(t) for t in terms.values()), (phase, terms)
        assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads)), phase
        assert any(np.any(g != 0) for g in jax.tree.leaves(grads)), phase
        if "batch_stats" in variables:
            assert jax.tree.structure(collections["batch_stats"]) == jax.tree.structure(
                variables["batch_stats"]
            )


@every_system
def test_frames_without_annotation_do_not_change_the_loss(name):
    _, system, variables = built(name)
    phase, clip_len = next(reversed(phases(name).items()))
    batch = make_batch(system, clip_len=clip_len)
    unmarked = {**batch, "has_mask": jnp.zeros_like(batch["has_mask"])}
    other = {**unmarked, "masks": 1 - batch["masks"]}
    function = train_function(name, phase)
    (a, _), _ = function(variables, unmarked)
    (b, _), _ = function(variables, other)
    assert np.isfinite(a)
    np.testing.assert_array_equal(a, b)


@every_system
def test_predict_returns_probabilities_and_a_state_of_the_same_kind(name):
    _, system, variables = built(name)
    batch = make_batch(system)
    B, T, H, W, _ = batch["frames"].shape
    chunk = {k: v for k, v in batch.items() if k in {"frames", *system.spec.requires}}
    states = {"stream": system.init_state(variables, B, (H, W))}
    if system.spec.num_references:
        references = make_batch(system, clip_len=system.spec.num_references, seed=1)
        states["whole video"] = system.prepare(variables, references)
    for kind, state in states.items():
        after, probs = predict_function(name)(variables, state, chunk)
        assert probs.shape == (B, T, H, W), kind
        assert probs.dtype == jnp.float32
        assert np.all((probs >= 0) & (probs <= 1))
        shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), s) for s in (state, after)]
        assert shapes[0] == shapes[1], kind


@every_system
def test_a_causal_system_fed_frame_by_frame_equals_one_call(name):
    system = built(name)[1]
    if not system.spec.causal:
        pytest.skip("not causal")
    variables, T = settled(name), 5
    batch = make_batch(system, batch_size=1, clip_len=T)
    chunk = {k: v for k, v in batch.items() if k in {"frames", *system.spec.requires}}
    start = system.init_state(variables, 1, batch["frames"].shape[2:4])
    predict = predict_function(name)
    end, together = predict(variables, start, chunk)
    state, single = start, []
    for t in range(T):
        state, probs = predict(variables, state, jax.tree.map(lambda x: x[:, t : t + 1], chunk))  # noqa: B023
        single.append(probs)
    # other batch sizes may use other convolution algorithms: float32 rounding only
    np.testing.assert_allclose(np.concatenate(single, 1), together, atol=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3, rtol=1e-3), state, end)


@every_system
def test_configuration_survives_json(name):
    config, system, _ = built(name)
    again = configs.from_dict(json.loads(configs.to_json(config)))
    configs.validate(again)
    rebuilt = uvos.build(again)
    assert rebuilt.spec == system.spec
    assert rebuilt.module == system.module
    assert rebuilt.stages(again) == system.stages(config)


@every_system
def test_full_configuration_builds_without_weights(name):
    system = uvos.build(name)
    shapes = jax.eval_shape(system.init, jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(shapes["params"])) > 0
    assert system.spec.name == name
    assert system.card is not None


@every_system
def test_learning_rate_groups_cover_every_parameter_once(name):
    import re

    _, system, variables = built(name)
    if not system.parameter_groups:
        pytest.skip("one group")
    for path, _ in jax.tree_util.tree_leaves_with_path(variables["params"]):
        text = jax.tree_util.keystr(path, simple=True, separator="/")
        hits = [
            g
            for g, rules in system.parameter_groups.items()
            if any(re.search(r, text) for r in rules)
        ]
        assert len(hits) == 1, (text, hits)


@every_system
def test_loss_on_eight_devices_equals_one_device(name):
    _, system, variables = built(name)
    phase, clip_len = next(reversed(phases(name).items()))
    batch = make_batch(system, batch_size=8, clip_len=clip_len)

    @jax.jit
    def loss(variables, batch):
        outputs, _ = system.apply(
            variables, batch, train=True, rngs={"dropout": jax.random.key(1)}, phase=phase
        )
        return system.loss_fn(outputs, batch, step=0, phase=phase)[0]

    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    spread = jax.device_put(batch, NamedSharding(mesh, P("data")))
    everywhere = jax.device_put(variables, NamedSharding(mesh, P()))
    # BatchNorm and the loss see the whole batch, however it is spread
    np.testing.assert_allclose(
        loss(everywhere, spread), loss(variables, batch), rtol=1e-5, atol=1e-5
    )


@every_system
def test_bfloat16_compute_keeps_float32_parameters_and_loss(name):
    config = configs.from_dict(built(name)[0].to_dict())
    config.compute_dtype = "bfloat16"
    system = uvos.build(config)
    variables = built(name)[2]
    shapes = jax.eval_shape(system.init, jax.random.key(0))
    assert jax.tree.map(lambda x: x.dtype, shapes) == jax.tree.map(lambda x: x.dtype, variables)
    phase, clip_len = next(reversed(phases(name).items()))
    batch = make_batch(system, clip_len=clip_len)

    @jax.jit
    def loss(variables):
        outputs, _ = system.apply(
            variables, batch, train=False, rngs={"dropout": jax.random.key(1)}, phase=phase
        )
        return outputs["logits"], system.loss_fn(outputs, batch, step=0, phase=phase)[0]

    logits, value = loss(variables)
    assert logits.dtype == jnp.bfloat16
    assert value.dtype == jnp.float32
    assert np.isfinite(value)

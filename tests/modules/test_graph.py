"""Message passing: loops as the oracle, properties of graphs, sharded nodes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from uvos_jax.errors import ShapeError
from uvos_jax.modules import graph, memory

B, N, H, W, C = 2, 4, 3, 4, 8
SHARED = {"features": C, "loop_features": 4, "attention_impl": "dense"}
PAPER = {"gate": "channel", "gate_bias": True, "aggregation": "sum", "loop": True}
RELEASE = {"gate": "spatial", "aggregation": "fusion", "loop": False}


@pytest.fixture(scope="module")
def nodes():
    rng = np.random.default_rng(4)
    return jnp.asarray(rng.standard_normal((B, N, H, W, C)), jnp.float32)


def drawn(module, x):
    """Variables of a module with normal entries (zeros would hide gamma and biases)."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    return jax.tree.map(
        lambda s: jnp.asarray(0.4 * rng.standard_normal(s.shape), jnp.float32), shapes
    )


@pytest.fixture(scope="module")
def paper(nodes):
    module = graph.MessagePassing(**SHARED, **PAPER)
    return module, drawn(module, nodes)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_a_round_of_the_paper_equals_loops_over_nodes_and_edges(nodes, paper):
    module, variables = paper
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])
    x = np.asarray(nodes, np.float64).reshape(B, N, H * W, C)
    expected = np.zeros_like(x)
    F = C
    kernel, bias = p["update"]["input"]["kernel"][0, 0], p["update"]["input"]["bias"]
    of_gates = p["update"]["gate_kernel"][0, 0]
    of_candidate = p["update"]["candidate_kernel"][0, 0]
    for b in range(B):
        for i in range(N):
            total = 0.0
            h = x[b, i]
            for j in range(N):
                if j == i:
                    q, k, v = (
                        h @ p["intra"][f"{n}_conv"]["kernel"][0, 0]
                        for n in ("query", "key", "value")
                    )
                    m = p["intra"]["gamma"] * (softmax(q @ k.T) @ v) + h
                else:
                    scores = h @ p["affinity"]["kernel"] @ x[b, j].T
                    m = softmax(scores) @ x[b, j]
                dense = p["gate_of"]["conv"]
                total = total + sigmoid((m @ dense["kernel"] + dense["bias"]).mean(0)) * m
            gates = total @ kernel + bias
            r, z = np.split(sigmoid(gates[:, : 2 * F] + h @ of_gates), 2, axis=-1)
            candidate = np.tanh(gates[:, 2 * F :] + (r * h) @ of_candidate)
            expected[b, i] = (1 - z) * h + z * candidate
    with jax.default_matmul_precision("highest"):
        got, _ = jax.jit(module.apply)(variables, nodes)
    np.testing.assert_allclose(got.reshape(x.shape), expected, atol=2e-5)


@pytest.mark.parametrize("aggregation", ["sum", "mean", "fusion"])
def test_permuting_the_nodes_permutes_the_result(nodes, aggregation):
    # fusion of four nodes sees the mean message: no order either
    module = graph.MessagePassing(**SHARED, **{**PAPER, "aggregation": aggregation})
    variables = drawn(module, nodes)
    order = np.array([2, 0, 3, 1])
    run = jax.jit(module.apply)
    straight, _ = run(variables, nodes)
    permuted, _ = run(variables, nodes[:, order])
    np.testing.assert_allclose(permuted, straight[:, order], atol=1e-5)


def test_fusion_of_three_nodes_knows_the_order_unless_its_halves_are_tied(nodes):
    module = graph.MessagePassing(**SHARED, **RELEASE)
    three = nodes[:, :3]
    variables = drawn(module, three)
    swapped = three[:, np.array([0, 2, 1])]
    run = jax.jit(lambda v, x: module.apply(v, x)[0][:, 0])
    assert float(jnp.max(jnp.abs(run(variables, three) - run(variables, swapped)))) > 1e-3
    kernel = variables["params"]["fusion"]["kernel"]
    tied = jnp.concatenate([kernel[:, :, :C], kernel[:, :, :C]], axis=2)
    params = {**variables["params"], "fusion": {**variables["params"]["fusion"], "kernel": tied}}
    tied = {"params": params}
    np.testing.assert_allclose(run(tied, three), run(tied, swapped), atol=1e-5)


def test_messages_of_blocks_equal_the_dense_ones_with_gradients(nodes):
    flat = nodes.reshape(B, N, H * W, C)

    def loss(x, **options):
        found = graph.inter_attention(jnp.tanh(x), x, x, **options)
        return jnp.sum(jnp.sin(found)), found

    both = jax.value_and_grad(loss, has_aux=True)
    (_, a), da = jax.jit(partial(both, attention_impl="dense"))(flat)
    (_, b), db = jax.jit(partial(both, attention_impl="blockwise", block_size=5))(flat)
    assert a.shape == (B, N, N - 1, H * W, C)
    np.testing.assert_allclose(a, b, atol=2e-6)
    np.testing.assert_allclose(da, db, atol=1e-5)
    # ascending order of the senders: constant senders tell who is who
    constant = jnp.broadcast_to(jnp.arange(4.0)[None, :, None, None], flat.shape)
    found = graph.inter_attention(flat, flat, constant, attention_impl="dense")
    senders = np.round(np.asarray(found[0, :, :, 0, 0]))
    np.testing.assert_array_equal(senders, [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])


def test_an_update_gate_held_shut_keeps_the_nodes(nodes, paper):
    module, variables = paper
    update = variables["params"]["update"]
    bias = update["input"]["bias"].at[C : 2 * C].set(-1e4)
    kernel = update["input"]["kernel"]
    shut = {**update, "input": {"bias": bias, "kernel": kernel}}
    got, _ = jax.jit(module.apply)({"params": {**variables["params"], "update": shut}}, nodes)
    np.testing.assert_allclose(got, nodes, atol=1e-6)


def test_rounds_share_their_weights_and_repeat_one_round(nodes, paper):
    module, variables = paper
    options = tuple({**SHARED, **PAPER}.items())
    rounds = graph.MessageRounds(3, options)
    inner = {"params": {"round": variables["params"]}}
    shapes = jax.eval_shape(rounds.init, jax.random.key(0), nodes)
    assert jax.tree.map(jnp.shape, inner) == jax.tree.map(lambda x: x.shape, dict(shapes))
    last, each = jax.jit(rounds.apply)(inner, nodes)
    x = nodes
    for k in range(3):
        x, _ = jax.jit(module.apply)(variables, x)
        np.testing.assert_allclose(each[k], x, atol=1e-5)
    np.testing.assert_array_equal(last, each[-1])
    none, _ = graph.MessageRounds(0, options).apply(inner, nodes)
    np.testing.assert_array_equal(none, nodes)


def test_nodes_spread_over_devices_give_the_same_and_travel_in_a_ring(nodes, paper):
    module, variables = paper
    mesh = jax.make_mesh((N,), ("nodes",), devices=jax.devices()[:N], axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, P(None, "nodes"))
    one = nodes[:1]
    run = jax.jit(lambda v, x: module.apply(v, x)[0], out_shardings=sharding)
    spread = jax.device_put(one, sharding)
    everywhere = jax.device_put(variables, NamedSharding(mesh, P()))
    program = run.lower(everywhere, spread).compile()
    assert "collective-permute" in program.as_text()
    np.testing.assert_allclose(
        program(everywhere, spread), jax.jit(module.apply)(variables, one)[0], atol=1e-5
    )


def test_eight_nodes_on_eight_devices_give_the_same_in_every_order(paper):
    module, variables = paper
    rng = np.random.default_rng(7)
    x = jnp.asarray(rng.standard_normal((1, 8, H, W, C)), jnp.float32)
    order = rng.permutation(8)
    mesh = jax.make_mesh((8,), ("nodes",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, P(None, "nodes"))
    run = jax.jit(lambda v, x: module.apply(v, x)[0], out_shardings=sharding)
    everywhere = jax.device_put(variables, NamedSharding(mesh, P()))
    program = run.lower(everywhere, jax.device_put(x, sharding)).compile()
    assert "all-gather" not in program.as_text()  # no device ever holds all nodes
    spread = program(everywhere, jax.device_put(x, sharding))
    assert len(spread.addressable_shards) == 8
    assert spread.addressable_shards[0].data.shape == (1, 1, H, W, C)
    alone = jax.jit(lambda v, x: module.apply(v, x)[0])(variables, x)
    np.testing.assert_allclose(spread, alone, atol=1e-5)
    permuted = program(everywhere, jax.device_put(x[:, order], sharding))
    np.testing.assert_allclose(permuted, spread[:, order], atol=1e-5)


def test_memory_of_blockwise_messages_grows_linearly_with_the_positions():
    """Compiled for training at one, two and four times the positions, block size unchanged."""

    def temporary_bytes(n, implementation):
        x = jax.ShapeDtypeStruct((1, 3, n, 8), jnp.float32)

        def loss(x):
            found = graph.inter_attention(
                jnp.tanh(x), x, x, attention_impl=implementation, block_size=64
            )
            return jnp.sum(jnp.square(found))

        compiled = jax.jit(jax.grad(loss)).lower(x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    one, two, four = (temporary_bytes(n, "blockwise") for n in (576, 1152, 2304))
    assert two < 2.2 * one
    assert four < 2.2 * two
    affinities = 3 * 2304 * 2304 * 4  # of one turn of the ring
    assert four < affinities / 4
    assert temporary_bytes(2304, "dense") > affinities


def test_self_attention_starts_as_the_identity(nodes):
    block = graph.IntraAttention(4, attention_impl="dense")
    variables = block.init(jax.random.key(0), nodes)
    np.testing.assert_array_equal(block.apply(variables, nodes), nodes)


def test_a_lonely_node_without_loop_is_refused(nodes):
    module = graph.MessagePassing(**SHARED, **RELEASE)
    with pytest.raises(ShapeError, match="one node without loops"):
        module.init(jax.random.key(0), nodes[:, :1])


def test_a_young_memory_repeats_the_frames_it_has():
    state = memory.empty(jax.ShapeDtypeStruct((1, 2), jnp.float32), 4)

    def frame(t):
        return jnp.full((1, 2), t, jnp.float32)

    np.testing.assert_array_equal(memory.cycled(state, frame(7.0)), np.full((1, 4, 2), 7.0))
    for t in (1.0, 2.0, 3.0):
        state = memory.remember(state, frame(t))
    np.testing.assert_array_equal(memory.cycled(state, frame(9.0))[0, :, 0], [1, 2, 3, 1])

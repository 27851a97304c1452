"""Co-attention: the released order of operations, dense against blockwise, properties."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvos_jax.errors import ConfigError
from uvos_jax.modules import attention

DATA = Path(__file__).resolve().parents[1] / "data"


def positions(x):
    """[B,C,h,w] to [B,h*w,C]."""
    B, C, h, w = x.shape
    return jnp.asarray(x.reshape(B, C, h * w).transpose(0, 2, 1))


@pytest.fixture(scope="module")
def released():
    """Arrays of one co-attention step of `siamese_model_conf.py@carrierlxk/COSNet`."""
    return dict(np.load(DATA / "cosnet_coattention.npz"))


@pytest.fixture(scope="module")
def pair():
    rng = np.random.default_rng(3)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    return {"projected": draw(2, 35, 8), "a": draw(2, 35, 8), "b": draw(2, 27, 8)}


@pytest.mark.parametrize("implementation", attention.IMPLEMENTATIONS)
def test_released_arrays_are_reproduced(released, implementation):
    a, b = positions(released["Va"]), positions(released["Vb"])
    projection = attention.AffinityProjection(8)
    variables = {"params": {"kernel": jnp.asarray(released["W_linear"].T)}}
    with jax.default_matmul_precision("highest"):
        projected = projection.apply(variables, a)
        scores = attention.affinity(projected, b)
        # the source calls the reference's summary of a `query` and a's summary `exemplar`
        summary_a, summary_b = attention.co_attention(
            projected, b, a, b, implementation=implementation, block_size=7
        )
        gate = attention.SpatialGate()
        gate_kernel = released["gate_w"].transpose(2, 3, 1, 0)
        gate_variables = {"params": {"conv": {"kernel": jnp.asarray(gate_kernel)}}}
        gated_a = gate.apply(gate_variables, summary_a)
        gated_b = gate.apply(gate_variables, summary_b)
    np.testing.assert_allclose(scores, released["affinity"], atol=1e-5)
    np.testing.assert_allclose(summary_a, positions(released["exemplar_att"]), atol=1e-5)
    np.testing.assert_allclose(summary_b, positions(released["query_att"]), atol=1e-5)
    np.testing.assert_allclose(gated_a, positions(released["gated_exemplar"]), atol=1e-5)
    np.testing.assert_allclose(gated_b, positions(released["gated_query"]), atol=1e-5)


@pytest.mark.parametrize("block_size", [1, 8, 35, 100])
def test_blockwise_equals_dense_with_gradients(pair, block_size):
    def loss(x, implementation):
        z = attention.co_attention(
            x["projected"],
            x["b"],
            x["a"],
            x["b"],
            implementation=implementation,
            block_size=block_size,
        )
        return sum(jnp.sum(jnp.sin(s)) for s in z), z

    dense = jax.value_and_grad(loss, has_aux=True)
    (_, z), grad = jax.jit(lambda x: dense(x, "dense"))(pair)
    (_, zb), grad_b = jax.jit(lambda x: dense(x, "blockwise"))(pair)
    jax.tree.map(lambda p, q: np.testing.assert_allclose(p, q, atol=2e-6), z, zb)
    jax.tree.map(lambda p, q: np.testing.assert_allclose(p, q, atol=1e-5), grad, grad_b)


@pytest.mark.parametrize("block_size", [5, 40])
def test_blockwise_group_attention_equals_dense_with_gradients(pair, block_size):
    valid = jnp.arange(27)[None, :] < jnp.array([[18], [27]])

    def loss(x, implementation):
        z = attention.group_attend(
            x["projected"],
            x["b"],
            x["b"],
            valid=valid,
            implementation=implementation,
            block_size=block_size,
        )
        return jnp.sum(jnp.sin(z)), z

    both = jax.value_and_grad(loss, has_aux=True)
    (_, z), grad = jax.jit(lambda x: both(x, "dense"))(pair)
    (_, zb), grad_b = jax.jit(lambda x: both(x, "blockwise"))(pair)
    np.testing.assert_allclose(z, zb, atol=2e-6)
    jax.tree.map(lambda p, q: np.testing.assert_allclose(p, q, atol=1e-5), grad, grad_b)


def test_group_attention_matches_loops(rng):
    q, r = rng.standard_normal((4, 3)), rng.standard_normal((6, 3))
    A = q @ r.T
    first = np.stack([np.exp(A[:, j]) / np.exp(A[:, j]).sum() for j in range(6)], axis=1)
    expected = np.stack(
        [
            sum(np.exp(first[i, j]) * r[j] for j in range(6)) / np.exp(first[i]).sum()
            for i in range(4)
        ]
    )
    queries, keys = jnp.asarray(q[None], jnp.float32), jnp.asarray(r[None], jnp.float32)
    got = attention.group_attend(queries, keys, keys)
    np.testing.assert_allclose(got[0], expected, atol=1e-6)


def test_summary_lies_in_the_convex_hull_of_the_other_frame(pair):
    summary, _ = attention.co_attention(pair["projected"], pair["b"], pair["a"], pair["b"])
    assert np.all(summary <= pair["b"].max(1, keepdims=True) + 1e-6)
    assert np.all(summary >= pair["b"].min(1, keepdims=True) - 1e-6)


@pytest.mark.parametrize("implementation", attention.IMPLEMENTATIONS)
def test_attention_weights_sum_to_one(pair, implementation):
    ones = jnp.ones((*pair["b"].shape[:2], 1))
    total = attention.attend(
        pair["projected"], pair["b"], ones, implementation=implementation, block_size=9
    )
    np.testing.assert_allclose(total, 1.0, atol=1e-6)


def test_a_constant_reference_gives_a_constant_summary(pair):
    constant = jnp.broadcast_to(pair["b"][:, :1], pair["b"].shape)
    summary, _ = attention.co_attention(pair["projected"], constant, pair["a"], constant)
    np.testing.assert_allclose(summary, jnp.broadcast_to(constant[:, :1], summary.shape), atol=1e-6)


def test_swapping_the_frames_swaps_the_summaries_when_the_matrix_is_symmetric(pair, rng):
    M = rng.standard_normal((8, 8)).astype(np.float32)
    M = M + M.T
    a, b = pair["a"], pair["b"]
    za, zb = attention.co_attention(a @ M, b, a, b)
    yb, ya = attention.co_attention(b @ M, a, b, a)
    np.testing.assert_allclose(za, ya, atol=1e-5)
    np.testing.assert_allclose(zb, yb, atol=1e-5)


def test_invalid_columns_have_no_influence(pair):
    valid = jnp.arange(27)[None, :] < jnp.array([[10], [10]])
    changed = pair["b"].at[:, 10:].set(1e3)
    options = {"valid": valid, "implementation": "blockwise", "block_size": 8}
    got = attention.attend(pair["projected"], changed, changed, **options)
    kept = pair["b"][:, :10]
    np.testing.assert_allclose(got, attention.attend(pair["projected"], kept, kept), atol=1e-6)


def test_softmax_stays_in_float32_for_bfloat16_features(pair):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), pair)
    summary, _ = attention.co_attention(half["projected"], half["b"], half["a"], half["b"])
    exact, _ = attention.co_attention(pair["projected"], pair["b"], pair["a"], pair["b"])
    assert summary.dtype == jnp.bfloat16
    # bfloat16 rounds the features themselves by 2^-9
    np.testing.assert_allclose(summary.astype(jnp.float32), exact, atol=0.06)
    assert attention.affinity(half["a"], half["b"]).dtype == jnp.float32


def test_blockwise_attention_never_holds_the_whole_affinity():
    n, C = 1600, 16
    x = jax.ShapeDtypeStruct((1, n, C), jnp.float32)

    def temporary_bytes(implementation):
        def loss(p, a, b):
            z = attention.co_attention(p, b, a, b, implementation=implementation, block_size=100)
            return sum(jnp.sum(jnp.square(s)) for s in z)

        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(x, x, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    full = n * n * 4
    assert temporary_bytes("dense") > full
    assert temporary_bytes("blockwise") < full / 2


def test_unknown_implementation_is_refused(pair):
    with pytest.raises(ConfigError, match=r"attention_impl 'flash'.*dense.*blockwise"):
        attention.attend(pair["a"], pair["b"], pair["b"], implementation="flash")


def test_channel_weights_lie_between_zero_and_one_and_ignore_order(pair):
    block = attention.ChannelWeights(reduction=2)
    variables = block.init(jax.random.key(0), pair["a"])
    weights = block.apply(variables, pair["a"])
    assert weights.shape == (2, 8)
    assert np.all((weights > 0) & (weights < 1))
    np.testing.assert_allclose(block.apply(variables, pair["a"][:, ::-1]), weights, atol=1e-6)


@pytest.mark.parametrize("implementation", attention.IMPLEMENTATIONS)
def test_unnormalized_attention_sums_activated_affinities(implementation):
    rng = np.random.default_rng(3)
    q, k = (rng.standard_normal((2, n, 4)).astype(np.float32) for n in (7, 9))
    v = rng.standard_normal((2, 9, 5)).astype(np.float32)
    arrays = (jnp.asarray(x) for x in (q, k, v))
    got = attention.attend_unnormalized(*arrays, implementation=implementation, block_size=3)
    expected = np.zeros((2, 7, 5))
    for b in range(2):
        for i in range(7):
            for j in range(9):
                expected[b, i] += np.tanh(np.dot(q[b, i], k[b, j])) * v[b, j]
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_leading_axes_beyond_the_batch_are_batch_axes(pair):
    q, k = pair["projected"], pair["b"]
    for options in ({"implementation": "dense"}, {"implementation": "blockwise", "block_size": 8}):
        flat = attention.attend(q, k, k, **options)
        split = attention.attend(q[:, None], k[:, None], k[:, None], **options)
        np.testing.assert_allclose(split[:, 0], flat, atol=1e-6)


def test_fused_attention_needs_half_precision_on_a_gpu(pair):
    q, k = pair["projected"], pair["b"]
    assert not attention.fused_applies(q, k, k)
    half = (x.astype(jnp.bfloat16) for x in (q, k, k))
    assert attention.fused_applies(*half) == (jax.default_backend() == "gpu")
    np.testing.assert_array_equal(
        attention.attend(q, k, k, implementation="fused", block_size=8),
        attention.attend(q, k, k, implementation="blockwise", block_size=8),
    )


def test_memory_of_blockwise_attention_is_linear_in_positions():
    """Compiled for training at one, two and four times the positions, block size unchanged."""

    def temporary_bytes(n):
        x = jax.ShapeDtypeStruct((1, n, 16), jnp.float32)

        def loss(q, k, v):
            z = attention.attend(q, k, v, implementation="blockwise", block_size=100)
            return jnp.sum(jnp.square(z))

        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(x, x, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    one, two, four = (temporary_bytes(n) for n in (900, 1800, 3600))
    assert two < 2.2 * one
    assert four < 2.2 * two
    assert four < 3600 * 3600 * 4 / 4  # a quarter of one whole affinity

"""Counting floating-point operations."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import uvos_jax as uvos
from uvos_jax.evaluation.cost import flops, gflop_per_frame

N = 32
SQUARE = jax.ShapeDtypeStruct((N, N), jnp.float32)
STACK = jax.ShapeDtypeStruct((5, N, N), jnp.float32)
PRODUCT = 2 * N**3


def test_a_product_counts_two_operations_per_multiply_add():
    assert flops(lambda a: a @ a, SQUARE) == PRODUCT


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint])
def test_every_turn_of_a_loop_counts(wrap):
    found = flops(wrap(lambda xs: lax.map(lambda a: a @ a, xs)), STACK)
    assert found == pytest.approx(5 * PRODUCT, rel=0.01)


def test_loops_in_loops_multiply():
    def inner(a, _):
        return a @ a, None

    def outer(a, b):
        return lax.scan(inner, a, None, length=3)[0] @ b, None

    found = flops(lambda a, xs: lax.scan(outer, a, xs)[0], SQUARE, STACK)
    assert found == pytest.approx(5 * (3 + 1) * PRODUCT, rel=0.01)


def test_a_loop_over_frames_costs_per_frame_what_one_frame_costs():
    """IET maps its network over the frames of a clip: twice the clip, the same per frame."""
    found = []
    for frames in (2, 4):
        system = uvos.build("iet:tiny", clip_len=frames)
        shapes = jax.eval_shape(system.init, jax.random.key(0))
        found.append(gflop_per_frame(system, shapes))
    assert found[0] == pytest.approx(found[1], rel=0.1)

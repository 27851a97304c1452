"""MP-Net's network: sizes, number of parameters, order of layers."""

import jax
import jax.numpy as jnp
import pytest

from uvos_jax.modules.mpnet_stream import MPNetStream

TINY = {"widths": (4, 4, 8, 8, 8, 8), "decoder": 8, "head": 8}


def test_the_published_network_has_10774209_parameters():
    flow = jax.ShapeDtypeStruct((1, 64, 96, 2), jnp.float32)
    params = jax.eval_shape(MPNetStream().init, jax.random.key(0), flow)["params"]
    assert sum(x.size for x in jax.tree.leaves(params)) == 10_774_209
    assert len(params) == 16
    kernels = [params[f"block{i}"]["conv"]["kernel"].shape for i in range(1, 16)]
    assert kernels[:4] == [(7, 7, 2, 64), (5, 5, 64, 128), (5, 5, 128, 256), (3, 3, 256, 256)]
    assert kernels[7] == kernels[9] == kernels[11] == (3, 3, 512, 256)
    assert kernels[13:] == [(3, 3, 384, 256), (3, 3, 256, 512)]


@pytest.mark.parametrize("size", [(232, 424), (58, 106), (33, 47)])
def test_output_has_half_the_size_rounded_down(size):
    flow = jax.ShapeDtypeStruct((2, *size, 2), jnp.float32)
    net = MPNetStream(**TINY)
    variables = jax.eval_shape(net.init, jax.random.key(0), flow)
    out = jax.eval_shape(net.apply, variables, flow)
    assert out.shape == (2, size[0] // 2, size[1] // 2, 1)


def test_first_layer_has_its_own_epsilon():
    """With a variance of 1e-4 in the running statistics, epsilon 1e-4 halves the power."""
    flow = jax.random.normal(jax.random.key(1), (1, 32, 32, 2))
    net = MPNetStream(**TINY)
    variables = net.init(jax.random.key(0), flow)
    stats = variables["batch_stats"]
    stats["block1"]["norm"]["var"] = jnp.full((4,), 1e-4)
    _, state = net.apply({**variables, "batch_stats": stats}, flow, capture_intermediates=True)
    block = state["intermediates"]["block1"]
    ratio = block["norm"]["__call__"][0] / block["conv"]["__call__"][0]
    assert jnp.allclose(ratio, (2e-4) ** -0.5, rtol=1e-3)

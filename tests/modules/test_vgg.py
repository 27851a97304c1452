"""VGG-16: names, sizes and pooling of its variants."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvos_jax.errors import ConfigError
from uvos_jax.modules.backbones.vgg import COUNTS, DEEPLAB, DSS, KERAS, VGG16

NARROW = {"widths": (2, 2, 3, 4, 4)}


def shapes(size, channels=3, **settings):
    """(variables, outputs) of a network on one frame, shapes only."""
    x = jax.ShapeDtypeStruct((1, *size, channels), jnp.float32)
    module = VGG16(**settings)
    outputs, variables = jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x), x)
    return variables["params"], {k: v.shape[1:] for k, v in outputs.items()}


def test_parameters_are_those_of_the_published_network():
    params, outputs = shapes((224, 224))
    names = [f"conv{b}_{i}" for b, n in enumerate(COUNTS, 1) for i in range(1, n + 1)]
    assert set(params) == set(names)
    assert sum(x.size for x in jax.tree.leaves(params)) == 14_714_688
    assert outputs == {
        "c1": (224, 224, 64),
        "c2": (112, 112, 128),
        "c3": (56, 56, 256),
        "c4": (28, 28, 512),
        "c5": (14, 14, 512),
    }


def test_large_fov_has_stride_8_and_its_1024_channels():
    params, outputs = shapes((321, 473), fc6=1024, pool5=True, **DEEPLAB)
    # 3x3 pools with padding 1, rounded up: 321 -> 161 -> 81 -> 41
    assert outputs["c4"] == (41, 60, 512)
    assert outputs["c5"] == (41, 60, 512)
    assert outputs["fc6"] == (41, 60, 1024)
    assert params["fc6"]["kernel"].shape == (3, 3, 512, 1024)


def test_dss_pools_round_up_behind_a_wide_first_padding():
    _, outputs = shapes((100, 75), pool5=True, **DSS)
    assert [outputs[f"c{i}"][:2] for i in range(1, 6)] == [
        (108, 83),
        (54, 42),
        (27, 21),
        (14, 11),
        (8, 6),
    ]
    assert outputs["pool5"][:2] == (5, 4)


def test_keras_pools_round_up_and_plain_ones_down():
    assert shapes((35, 50), **KERAS, **NARROW)[1]["c5"][:2] == (3, 4)
    assert shapes((35, 50), **NARROW)[1]["c5"][:2] == (2, 3)


def test_any_number_of_input_channels_and_no_bias():
    params, _ = shapes((32, 32), channels=7, use_bias=False, **NARROW)
    assert params["conv1_1"]["kernel"].shape == (3, 3, 7, 2)
    assert "bias" not in params["conv1_1"]


def test_dilation_widens_the_last_block_only():
    """A pixel far from the centre reaches it through dilated convolutions."""
    x = jnp.zeros((1, 33, 33, 3)).at[0, 16, 16].set(1.0)
    ones = {"use_bias": False, "kernel_init": jax.nn.initializers.ones}
    flat = {"pool_strides": (1,) * 5, "pool_windows": (1,) * 5}
    plain = VGG16(**NARROW, counts=(1, 1, 1, 1, 3), **flat, **ones)
    dilated = plain.clone(dilations=(1, 1, 1, 1, 4))
    variables = plain.init(jax.random.key(0), x)
    reach = []
    for module in (plain, dilated):
        out = module.apply(variables, x)
        reach.append([int((np.asarray(out[k])[0, 16, :, 0] > 0).sum()) for k in ("c4", "c5")])
    assert reach == [[9, 15], [9, 33]]


def test_recomputing_blocks_changes_neither_names_nor_gradients(rng):
    x = jnp.asarray(rng.standard_normal((1, 32, 32, 3)), jnp.float32)
    plain = VGG16(**NARROW)
    variables = plain.init(jax.random.key(0), x)

    def gradient(module):
        return jax.grad(lambda v: jnp.sum(module.apply(v, x)["c5"] ** 2))(variables)

    remat = gradient(plain.clone(remat=True))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        remat,
        gradient(plain),
    )


def test_other_than_five_blocks_are_refused():
    with pytest.raises(ConfigError, match=r"counts must have 5 entries, got \(2, 2\)"):
        shapes((32, 32), counts=(2, 2))

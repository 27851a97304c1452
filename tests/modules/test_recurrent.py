"""Recurrent cells against reference implementations, and the properties of their stacks.

`tests/data/cell_*.npz` hold inputs, weights, outputs and gradients of four public implementations:
ConvLSTM without peepholes (ndrplz/ConvLSTM_pytorch), with full peepholes
(automan000/Convolutional_LSTM_PyTorch), the Caffe layer (agethen/ConvLSTM-for-Caffe), and ConvGRU
(jacobkimmel/pytorch_convgru).
"""

import os
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvos_jax.errors import ConfigError
from uvos_jax.modules.recurrent import (
    Bidirectional,
    ConvGRU,
    ConvLSTM,
    DilationPyramid,
    LSTMCarry,
    recurrent_conv,
)

DATA = Path(__file__).resolve().parents[1] / "data"
HIGHEST = partial(jax.default_matmul_precision, "highest")
#: single precision accumulated over a handful of steps
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def golden(name):
    with np.load(DATA / f"cell_{name}.npz") as f:
        return dict(f)


def hwio(w):
    return np.transpose(w, (2, 3, 1, 0))


def nhwc(x):
    return np.moveaxis(x, -3, -1)


def lstm_params(kernel, bias, split):
    """Joint kernel over [x, h] (OIHW) into ours; gate order i, f, o, g on both sides."""
    kernel = hwio(kernel)
    return {
        "input": {"kernel": kernel[:, :, :split], "bias": bias},
        "recurrent_kernel": kernel[:, :, split:],
    }


def test_two_layers_without_peepholes_equal_the_reference():
    g = golden("convlstm_nopeephole")
    x = jnp.asarray(nhwc(g["x"]))
    first, second = ConvLSTM(6, 3), ConvLSTM(4, 5)
    w0, w1 = (
        g["param__cell_list.0.conv.weight"],
        g["param__cell_list.1.conv.weight"],
    )
    b0, b1 = g["param__cell_list.0.conv.bias"], g["param__cell_list.1.conv.bias"]
    p1 = {"params": lstm_params(w1, b1, 6)}

    def run(x, w0):
        carry0, h0 = first.apply({"params": lstm_params_jax(w0, b0, 5)}, x)
        carry1, h1 = second.apply(p1, h0)
        return (h0, h1), (carry0, carry1)

    def lstm_params_jax(w, b, split):
        k = jnp.transpose(w, (2, 3, 1, 0))
        return {
            "input": {"kernel": k[:, :, :split], "bias": b},
            "recurrent_kernel": k[:, :, split:],
        }

    with HIGHEST():
        (h0, h1), (carry0, carry1) = run(x, jnp.asarray(w0))
        grad_x, grad_w = jax.grad(
            lambda x, w: jnp.sum(run(x, w)[0][1] * nhwc(g["cotangent_layer1"])), (0, 1)
        )(x, jnp.asarray(w0))
    np.testing.assert_allclose(h0, nhwc(g["layer0_h_seq"]), **CLOSE)
    np.testing.assert_allclose(h1, nhwc(g["layer1_h_seq"]), **CLOSE)
    np.testing.assert_allclose(carry0.c, nhwc(g["layer0_c_T"]), **CLOSE)
    np.testing.assert_allclose(carry1.h, nhwc(g["layer1_h_T"]), **CLOSE)
    np.testing.assert_allclose(grad_x, nhwc(g["grad_x"]), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(grad_w, g["grad_w0"], rtol=1e-4, atol=1e-4)


def test_full_peepholes_equal_the_reference():
    g = golden("convlstm_peephole")
    order = "ifoc"
    kernel_x = np.concatenate([hwio(g[f"param__Wx{k}.weight"]) for k in order], -1)
    kernel_h = np.concatenate([hwio(g[f"param__Wh{k}.weight"]) for k in order], -1)
    params = {
        "input": {
            "kernel": kernel_x,
            "bias": np.concatenate([g[f"param__Wx{k}.bias"] for k in order]),
        },
        "recurrent_kernel": kernel_h,
        **{f"peephole_{k}": nhwc(g[f"param__Wc{k}"])[0] for k in "ifo"},
    }
    layer = ConvLSTM(6, 3, peephole="full", output_sees="new")
    x = jnp.asarray(np.swapaxes(nhwc(g["x"]), 0, 1))
    cotangent = np.swapaxes(nhwc(g["cotangent_h"]), 0, 1)

    def loss(x, params):
        return jnp.sum(layer.apply({"params": params}, x)[1] * cotangent)

    with HIGHEST():
        carry, h = layer.apply({"params": params}, x)
        grad_x, grad_p = jax.grad(loss, (0, 1))(x, params)
    np.testing.assert_allclose(h, np.swapaxes(nhwc(g["h_seq"]), 0, 1), **CLOSE)
    np.testing.assert_allclose(carry.c, nhwc(g["c_seq"][-1]), **CLOSE)
    np.testing.assert_allclose(grad_x, np.swapaxes(nhwc(g["grad_x"]), 0, 1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(grad_p["peephole_i"], nhwc(g["grad_Wci"])[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(grad_p["peephole_o"], nhwc(g["grad_Wco"])[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case,dilation", [("d1", 1), ("d2_reset", 2)])
def test_caffe_layer_equals_the_reference(case, dilation):
    g = {k.split("__")[1]: v for k, v in golden("convlstm_caffe").items() if k.startswith(case)}
    params = {
        "input": {"kernel": hwio(g["W_x"])},
        "recurrent_kernel": hwio(g["W_h"]),
        "recurrent_bias": g["b"],
        **{f"peephole_{k}": g[f"peep_{k}"] for k in "ifo"},
    }
    layer = ConvLSTM(
        4, 3, dilation=dilation, peephole="spatial", output_sees="old", bias="recurrent"
    )
    carry = LSTMCarry(jnp.asarray(nhwc(g["h0"])[0]), jnp.asarray(nhwc(g["c0"])[0]))
    with HIGHEST():
        carry, h = layer.apply(
            {"params": params},
            jnp.asarray(np.swapaxes(nhwc(g["x"]), 0, 1)),
            carry,
            markers=jnp.asarray(g["cm"].T.astype(np.float32)),
        )
    np.testing.assert_allclose(h, np.swapaxes(nhwc(g["h"]), 0, 1), **CLOSE)
    np.testing.assert_allclose(carry.h, nhwc(g["hT"])[0], **CLOSE)
    np.testing.assert_allclose(carry.c, nhwc(g["cT"])[0], **CLOSE)


def gru_params(g, split=5):
    kernels = {k: hwio(g[f"param__{k}_gate.weight"]) for k in ("reset", "update", "out")}
    return {
        "input": {
            "kernel": np.concatenate([k[:, :, :split] for k in kernels.values()], -1),
            "bias": np.concatenate([g[f"param__{k}_gate.bias"] for k in kernels]),
        },
        "gate_kernel": np.concatenate([kernels[k][:, :, split:] for k in ("reset", "update")], -1),
        "candidate_kernel": kernels["out"][:, :, split:],
    }


def test_convgru_equals_the_reference_in_both_directions():
    g = golden("convgru")
    params = gru_params(g)
    layer = ConvGRU(6, 3)
    x, h0 = jnp.asarray(nhwc(g["x"])), jnp.asarray(nhwc(g["h0"]))
    if x.shape[0] == g["h_seq"].shape[0] and x.shape[1] == h0.shape[0]:
        x = jnp.swapaxes(x, 0, 1)
        seq = np.swapaxes(nhwc(g["h_seq"]), 0, 1)
        back = np.swapaxes(nhwc(g["backward_direction_h_seq_zero_init"]), 0, 1)
        cot = np.swapaxes(nhwc(g["cotangent"]), 0, 1)
        grad_ref = np.swapaxes(nhwc(g["grad_x"]), 0, 1)
    with HIGHEST():
        _, h = layer.apply({"params": params}, x, h0)
        _, h_back = layer.apply({"params": params}, x, reverse=True)
        grad_x, grad_p = jax.grad(
            lambda x, p: jnp.sum(layer.apply({"params": p}, x, h0)[1] * cot), (0, 1)
        )(x, params)
    np.testing.assert_allclose(h, seq, **CLOSE)
    np.testing.assert_allclose(h_back, back, **CLOSE)
    np.testing.assert_allclose(grad_x, grad_ref, rtol=1e-4, atol=1e-5)
    grad_reset = np.concatenate(
        [grad_p["input"]["kernel"][..., :6], grad_p["gate_kernel"][..., :6]], axis=2
    )
    np.testing.assert_allclose(grad_reset, hwio(g["grad_reset_w"]), rtol=1e-4, atol=1e-4)


LAYERS = {
    "lstm": partial(ConvLSTM, 4),
    "lstm_full": partial(ConvLSTM, 4, peephole="full", peephole_init=0.5),
    "lstm_spatial": partial(
        ConvLSTM, 4, peephole="spatial", output_sees="old", peephole_init=1.0, dilation=2
    ),
    "gru": partial(ConvGRU, 4, 5),
}


@pytest.fixture(params=LAYERS, name="layer", scope="module")
def _layer(request):
    rng = np.random.default_rng(0)
    layer = LAYERS[request.param]()
    x = jnp.asarray(rng.normal(size=(2, 6, 5, 7, 3)), jnp.float32)
    return layer, jax.jit(layer.init)(jax.random.key(0), x), x


def test_feeding_the_carry_back_continues_the_sequence_exactly(layer):
    module, variables, x = layer
    apply = jax.jit(module.apply)
    _, whole = apply(variables, x)
    carry, first = apply(variables, x[:, :2])
    _, second = apply(variables, x[:, 2:], carry)
    np.testing.assert_array_equal(np.concatenate([first, second], 1), whole)


def test_dot_and_conv_implementations_agree(layer):
    module, variables, x = layer
    outputs, grads = [], []
    for implementation in ("conv", "dot", "auto"):
        m = module.clone(recurrent_implementation=implementation)

        def loss(v, m=m):
            h = m.apply(v, x)[1]
            return jnp.sum(h**2), h

        with HIGHEST():
            grad, h = jax.jit(jax.grad(loss, has_aux=True))(variables)
        outputs.append(h)
        grads.append(grad)
    for other, grad in zip(outputs[1:], grads[1:], strict=True):
        np.testing.assert_allclose(other, outputs[0], rtol=1e-5, atol=1e-6)
        for a, b in zip(jax.tree.leaves(grad), jax.tree.leaves(grads[0]), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_remat_changes_neither_values_nor_gradients(layer):
    module, variables, x = layer
    again = module.clone(remat=True)

    def loss(v, m):
        return jnp.sum(m.apply(v, x)[1] ** 2)

    # With the code generator that conftest chooses to save time the two programs round differently,
    # by up to 1.5e-6 here: this test takes XLA's default.
    flag = "xla_cpu_use_fusion_emitters"
    options = {flag: True} if flag in os.environ["XLA_FLAGS"] else {}
    gradient = jax.jit(jax.grad(loss), static_argnums=1, compiler_options=options)
    plain, remat = gradient(variables, module), gradient(variables, again)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(remat), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_marker_of_zero_starts_a_new_sequence(rng):
    module = ConvLSTM(4, peephole="full", peephole_init=0.5, reset_peephole=True)
    x = jnp.asarray(rng.normal(size=(1, 6, 5, 7, 3)), jnp.float32)
    variables = module.init(jax.random.key(0), x)
    markers = jnp.ones((1, 6)).at[0, 3].set(0)
    _, joint = module.apply(variables, x, markers=markers)
    _, tail = module.apply(variables, x[:, 3:])
    np.testing.assert_allclose(joint[:, 3:], tail, rtol=1e-6, atol=1e-6)


def test_reversing_time_swaps_the_roles_of_the_two_directions(rng):
    x = jnp.asarray(rng.normal(size=(1, 4, 5, 5, 3)), jnp.float32)
    module = Bidirectional(partial(ConvLSTM, 4), merge="sum")
    variables = module.init(jax.random.key(0), x)
    swapped = {
        "params": {
            "forward": variables["params"]["backward"],
            "backward": variables["params"]["forward"],
        }
    }
    a = module.apply(variables, x)
    b = module.apply(swapped, x[:, ::-1])[:, ::-1]
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("merge,channels", [("sum", 4), ("concat", 8), ("conv_tanh", 6)])
@pytest.mark.parametrize("mode", ["parallel", "cascaded"])
def test_bidirectional_markers_separate_clips(mode, merge, channels, rng):
    x = jnp.asarray(rng.normal(size=(1, 6, 5, 5, 3)), jnp.float32)
    module = Bidirectional(partial(ConvLSTM, 4), mode=mode, merge=merge, features=6)
    variables = module.init(jax.random.key(0), x)
    markers = jnp.asarray([[0, 1, 1, 0, 1, 1]], jnp.float32)
    joint = module.apply(variables, x, markers=markers)
    assert joint.shape == (1, 6, 5, 5, channels)
    parts = [module.apply(variables, x[:, :3]), module.apply(variables, x[:, 3:])]
    np.testing.assert_allclose(joint, jnp.concatenate(parts, 1), rtol=1e-5, atol=1e-6)


def test_pyramid_concatenates_its_branches_in_order(rng):
    x = jnp.asarray(rng.normal(size=(1, 3, 7, 7, 3)), jnp.float32)

    def branch(dilation, name):
        return Bidirectional(
            partial(ConvLSTM, 4, dilation=dilation), mode="cascaded", merge="sum", name=name
        )

    module = DilationPyramid(branch, (1, 2))
    variables = module.init(jax.random.key(0), x)
    out = module.apply(variables, x)
    alone = branch(2, None).apply({"params": variables["params"]["dilation2"]}, x)
    np.testing.assert_allclose(out[..., 4:], alone, rtol=1e-6, atol=1e-6)


def test_a_repeated_frame_still_changes_the_state(rng):
    x = jnp.repeat(jnp.asarray(rng.normal(size=(1, 1, 5, 5, 3)), jnp.float32), 3, axis=1)
    module = ConvLSTM(4)
    _, h = module.apply(module.init(jax.random.key(0), x), x)
    assert float(jnp.abs(h[:, 1] - h[:, 0]).max()) > 1e-3


def test_even_kernels_are_refused():
    with pytest.raises(ConfigError, match="odd"):
        recurrent_conv(jnp.zeros((1, 4, 4, 2)), jnp.zeros((2, 2, 2, 3)))


def test_unknown_peephole_is_refused():
    with pytest.raises(ConfigError, match="peephole 'some'"):
        ConvLSTM(2, peephole="some").init(jax.random.key(0), jnp.zeros((1, 1, 3, 3, 1)))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("T", [9, 11])
def test_recomputing_in_segments_changes_nothing(T, reverse, rng):
    x = jnp.asarray(rng.normal(size=(1, T, 5, 7, 3)), jnp.float32)
    markers = jnp.ones((1, T)).at[0, 4].set(0)
    plain = ConvLSTM(4, peephole="spatial", output_sees="old", peephole_init=1.0)
    variables = jax.jit(plain.init)(jax.random.key(0), x)

    @partial(jax.jit, static_argnums=0)
    def run(module, variables, x):
        def loss(v, x):
            carry, h = module.apply(v, x, markers=markers, reverse=reverse)
            return jnp.sum(h**2) + jnp.sum(carry.c**2), h

        return jax.grad(loss, (0, 1), has_aux=True)(variables, x)

    gradients, h = run(plain, variables, x)
    again, h_again = run(plain.clone(remat=True), variables, x)
    np.testing.assert_allclose(h_again, h, rtol=1e-6, atol=1e-6)
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_memory_of_recomputation_hardly_grows_with_time():
    layer = ConvLSTM(8, remat=True)

    def beside_the_maps(T):
        """Temporary bytes of the backward pass beyond the hidden maps and their cotangents."""
        x = jax.ShapeDtypeStruct((1, T, 24, 24, 8), jnp.float32)
        variables = jax.eval_shape(layer.init, jax.random.key(0), x)

        def loss(v, x):
            return jnp.sum(layer.apply(v, x)[1] ** 2)

        compiled = jax.jit(jax.grad(loss, (0, 1))).lower(variables, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes - 2 * 4 * T * 24 * 24 * 8

    assert beside_the_maps(144) < 3 * beside_the_maps(16)


def test_where_the_input_convolution_stands_does_not_matter(layer):
    module, variables, x = layer
    outputs = [
        jax.jit(module.clone(hoist_input=hoist).apply)(variables, x)[1] for hoist in (True, False)
    ]
    np.testing.assert_allclose(*outputs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 6, 7, 3), (2, 40, 40, 80)])
@pytest.mark.parametrize("kernel,dilation", [(3, 2), (5, 1)])
def test_gradients_in_loops_equal_those_of_a_convolution(shape, kernel, dilation, rng):
    """Small maps take shifted copies, large ones and wide kernels convolutions."""
    x = jnp.asarray(rng.normal(size=shape), jnp.float32)
    k = jnp.asarray(rng.normal(size=(kernel, kernel, shape[-1], 4)), jnp.float32)

    def gradients(implementation):
        def loss(x, k):
            y = recurrent_conv(x, k, dilation=dilation, implementation=implementation)
            return jnp.sum(jnp.sin(y))

        return jax.jit(jax.grad(loss, (0, 1)))(x, k)

    with HIGHEST():
        for a, b in zip(gradients("auto"), gradients("conv"), strict=True):
            scale = float(jnp.abs(b).max())
            np.testing.assert_allclose(a, b, atol=2e-5 * scale)

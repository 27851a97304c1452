"""The training step on toys: accumulation, averaging, guards, precision, BatchNorm modes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uvos_jax as uvos
from tests.train import toy
from uvos_jax.train.loop import NonFiniteError, Trainer
from uvos_jax.train.mesh import make_mesh


@pytest.fixture(scope="module")
def one():
    return make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def history():
    """The states before and after each step of `plain`."""
    return []


@pytest.fixture(scope="module")
def plain(one, history):
    """Three steps of the plain toy."""
    return toy.run_steps(toy.Toy(), toy.config(), one, history=history)


def close(a, b, tolerance=1e-6):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), atol=tolerance, rtol=tolerance)


def test_the_loss_falls_and_metrics_are_complete(plain):
    losses, metrics, state = plain
    assert losses[-1] < losses[0]
    assert {"loss", "bce", "grad_norm", "lr", "finite"} <= set(metrics)
    assert int(state.step) == 3
    assert float(metrics["lr"]) == pytest.approx(0.5)


def test_accumulated_gradients_equal_those_of_the_whole_batch(plain, one):
    losses, _, state = toy.run_steps(toy.Toy(), toy.config(optim__accumulate=4), one)
    np.testing.assert_allclose(losses, plain[0], rtol=1e-6)
    close(state.params, plain[2].params)


def test_accumulation_over_sharded_batches_equals_it_too(plain):
    losses, _, state = toy.run_steps(
        toy.Toy(), toy.config(optim__accumulate=2), make_mesh(devices=jax.devices()[:4])
    )
    np.testing.assert_allclose(losses, plain[0], rtol=1e-6)
    close(state.params, plain[2].params)


def test_averaged_parameters_follow_their_formula(one):
    settings, states = toy.config(optim__ema=0.5, optim__lr=1.0), []
    _, _, final = toy.run_steps(toy.Toy(), settings, one, steps=12, ema=True, history=states)
    average = states[0].params
    for number, state in enumerate(states[1:], 1):
        decay = min(0.5, (1 + number) / (10 + number))
        average = jax.tree.map(lambda a, p, d=decay: d * a + (1 - d) * p, average, state.params)
        close(state.ema, average)
    assert toy.same(final.variables(averaged=True)["params"], final.ema)


# ----- loss that is not finite ----------------------------------------------------------------


def test_a_step_that_is_not_finite_changes_nothing_but_the_count(one, plain, history):
    _, metrics, state = toy.run_steps(toy.Toy(blow_up_at=2), toy.config(), one)
    before = history[2]
    assert not bool(metrics["finite"])
    assert int(state.step) == 3
    assert toy.same(state.params, before.params)
    assert toy.same(state.opt_state, before.opt_state)


def test_a_run_stops_at_a_loss_that_is_not_finite_and_names_step_terms_and_checkpoint(tmp_path):
    settings = toy.config(train__checkpoint_every=2, train__log_every=3, train__total_steps=9)
    trainer = Trainer(
        settings, tmp_path, inputs={"default": toy.Batches()}, system=toy.Toy(blow_up_at=4),
        progress=False,
    )  # fmt: skip
    with pytest.raises(NonFiniteError) as caught:
        trainer.run()
    message = str(caught.value)
    assert "not finite at step 5" in message
    assert "'loss': inf" in message
    assert "'bce': 0." in message
    assert "last good checkpoint is step 4" in message
    assert "optim.clip_norm" in message
    assert (tmp_path / "checkpoints" / "4").is_dir()
    assert not (tmp_path / "checkpoints" / "6").exists()


# ----- precision, BatchNorm, rematerialisation ------------------------------------------------


def test_bfloat16_computes_in_half_and_keeps_parameters_and_moments_in_float32(plain, one):
    losses, _, state = toy.run_steps(toy.Toy(dtype="bfloat16"), toy.config(), one)
    assert {x.dtype for x in jax.tree.leaves((state.params, state.opt_state))} == {
        np.dtype("float32")
    }
    np.testing.assert_allclose(losses, plain[0], atol=0.02)
    assert losses != plain[0]


def test_frozen_batch_norm_keeps_its_statistics(one):
    states = []
    toy.run_steps(toy.Toy(norm=True, freeze_bn=True), toy.config(), one, 1, history=states)
    assert jax.tree.leaves(states[0].batch_stats)
    assert toy.same(states[1].batch_stats, states[0].batch_stats)
    assert not toy.same(states[1].params, states[0].params)


def test_batch_norm_over_devices_uses_the_statistics_of_the_whole_batch(one):
    states = []
    single = toy.run_steps(toy.Toy(norm=True), toy.config(), one, 2, history=states)
    many = toy.run_steps(toy.Toy(norm=True), toy.config(), make_mesh(), 2)
    np.testing.assert_allclose(many[0], single[0], rtol=1e-5)
    close(many[2].batch_stats, single[2].batch_stats, 1e-5)
    assert not toy.same(states[1].batch_stats, states[0].batch_stats)


def test_remat_recomputes_the_encoder_in_the_backward_pass_when_asked():
    batch = {"frames": jnp.zeros((1, 2, 33, 33, 3), jnp.uint8)}

    def recomputed(remat):
        config = uvos.load_config("cosnet:tiny")
        config.train.remat = remat
        config.model.attention_impl = "dense"
        system = uvos.build(config)
        shapes = jax.eval_shape(system.init, jax.random.key(0))
        program = jax.make_jaxpr(lambda v: system.apply(v, batch, train=True)[0]["logits"])
        return str(program(dict(shapes))).count("prevent_cse")

    assert recomputed(False) == 0
    assert recomputed(True) > 0

"""Schedules, learning-rate groups, freezing and weight decay against written-out formulas."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.train import toy
from uvos_jax.errors import ConfigError
from uvos_jax.train.optimizer import make_optimizer, make_schedule, multiplier_tree
from uvos_jax.types import Phase

PARAMS = {
    "encoder": {"kernel": np.full((2, 3), 2.0, np.float32), "bias": np.ones(3, np.float32)},
    "head": {"kernel": np.full((3, 1), -1.0, np.float32)},
}
GRADS = {
    "encoder": {"kernel": np.full((2, 3), 0.5, np.float32), "bias": np.ones(3, np.float32)},
    "head": {"kernel": np.full((3, 1), 4.0, np.float32)},
}


def optim(**changes):
    return toy.config(**{f"optim__{key}": value for key, value in changes.items()}).optim


def updates_of(settings, steps=1, phase=None):
    """Updates of the last of several steps with the same gradients, and the state."""
    optimizer = make_optimizer(settings, PARAMS, phase)
    state = optimizer.init(PARAMS)
    for _ in range(steps):
        updates, state = optimizer.update(GRADS, state, PARAMS)
    return updates, state


# ----- schedules ------------------------------------------------------------------------------


def rates(steps, total, **schedule):
    settings = {"power": 0.9, "warmup_steps": 0, "end_factor": 0.0, **schedule}
    made = make_schedule(SimpleNamespace(schedule=settings_of(settings), lr=2.0), total)
    return [float(made(step)) for step in steps]


def settings_of(values):
    space = SimpleNamespace(**values)
    space.get = lambda key, default=None: values.get(key, default)
    return space


def test_the_poly_schedule_falls_with_its_power():
    expected = [2.0 * (1 - t / 10) ** 0.9 for t in range(10)]
    np.testing.assert_allclose(rates(range(10), 10, name="poly"), expected, rtol=1e-6)


def test_the_cosine_schedule_ends_at_its_end_factor():
    expected = [0.2 + 0.9 * (1 + np.cos(np.pi * t / 8)) for t in range(9)]
    found = rates(range(9), 8, name="cosine", end_factor=0.1)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_schedule_runs_on_through_the_stages_of_a_run():
    whole = rates(range(10), 10, name="poly", boundaries=(6,), factors=(0.5,))
    settings = {"name": "poly", "boundaries": (6,), "factors": (0.5,), "total_steps": 10}
    found = rates(range(4), 4, **settings), rates(range(6), 6, **settings, start_step=4)
    np.testing.assert_allclose(np.concatenate(found), whole, rtol=1e-6)


def test_warm_up_rises_in_equal_steps_and_the_first_is_not_zero():
    found = rates(range(6), 10, name="constant", warmup_steps=4)
    np.testing.assert_allclose(found, [0.5, 1.0, 1.5, 2.0, 2.0, 2.0], rtol=1e-6)


def test_steps_multiply_the_rate_from_their_boundary_on():
    found = rates(range(6), 6, name="step", boundaries=(2, 4), factors=(0.5, 0.1))
    np.testing.assert_allclose(found, [2.0, 2.0, 1.0, 1.0, 0.1, 0.1], rtol=1e-6)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"name": "linear"}, "optim.schedule.name 'linear' is unknown"),
        ({"name": "step"}, "give one factor for each boundary"),
        ({"name": "poly", "boundaries": (3,)}, "1 boundaries and 0 factors"),
    ],
)
def test_an_impossible_schedule_is_refused(schedule, message):
    with pytest.raises(ConfigError, match=message):
        rates([0], 10, **schedule)


# ----- groups and freezing --------------------------------------------------------------------


def test_the_first_matching_multiplier_counts_and_frozen_beats_it():
    factors = multiplier_tree(
        PARAMS, (("encoder/kernel", 0.1), ("encoder", 3.0)), frozen=("^head/",)
    )
    assert factors == {"encoder": {"kernel": 0.1, "bias": 3.0}, "head": {"kernel": 0.0}}


@pytest.mark.parametrize("pattern", ["backbone", "encoder/("])
def test_a_pattern_that_matches_nothing_or_is_malformed_is_refused(pattern):
    with pytest.raises(ConfigError, match=r"no parameter path matches|no regular expression"):
        multiplier_tree(PARAMS, (), (pattern,))


def test_updates_are_scaled_by_group():
    updates, _ = updates_of(optim(momentum=0.0, lr_multipliers=(("^head/", 10.0),)))
    np.testing.assert_allclose(updates["encoder"]["kernel"], 0.5)
    np.testing.assert_allclose(updates["head"]["kernel"], 40.0)


def test_a_frozen_parameter_gets_no_decay_and_does_not_count_for_clipping():
    settings = optim(momentum=0.0, weight_decay=0.1, clip_norm=1.0, frozen=("^head/",))
    updates, _ = updates_of(settings)
    norm = np.sqrt(6 * 0.5**2 + 3 * 1.0**2)
    assert np.all(np.asarray(updates["head"]["kernel"]) == 0.0)
    np.testing.assert_allclose(updates["encoder"]["kernel"], 0.5 / norm + 0.1 * 2.0, rtol=1e-6)


def test_momentum_of_a_parameter_that_rests_in_a_phase_is_kept():
    settings = optim(momentum=0.9)
    video, static = Phase("video"), Phase("static", lr_multipliers=(("^head/", 0.0),))
    optimizers = [make_optimizer(settings, PARAMS, phase) for phase in (video, static)]
    state = optimizers[0].init(PARAMS)
    assert jax.tree.structure(state) == jax.tree.structure(optimizers[1].init(PARAMS))
    _, state = optimizers[0].update(GRADS, state, PARAMS)
    for _ in range(5):
        updates, state = optimizers[1].update(GRADS, state, PARAMS)
        assert np.all(np.asarray(updates["head"]["kernel"]) == 0.0)
    updates, _ = optimizers[0].update(GRADS, state, PARAMS)
    np.testing.assert_allclose(updates["head"]["kernel"], 0.9 * 4.0 + 4.0, rtol=1e-6)
    np.testing.assert_allclose(updates["encoder"]["bias"], sum(0.9**i for i in range(7)), rtol=1e-6)


# ----- optimisers against torch's formulas ----------------------------------------------------


def test_sgd_adds_decay_to_the_gradient_and_keeps_momentum():
    settings = optim(momentum=0.9, weight_decay=0.1)
    updates, _ = updates_of(settings, steps=3)
    gradient = 0.5 + 0.1 * 2.0
    expected = gradient * (1 + 0.9 + 0.81)
    np.testing.assert_allclose(updates["encoder"]["kernel"], expected, rtol=1e-6)


def adam_reference(gradient, steps):
    first = second = 0.0
    for _ in range(steps):
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
    first, second = first / (1 - 0.9**steps), second / (1 - 0.999**steps)
    return first / (np.sqrt(second) + 1e-8)


def test_adam_follows_its_formula_with_coupled_decay():
    updates, _ = updates_of(optim(name="adam", weight_decay=0.1), steps=3)
    expected = adam_reference(4.0 - 0.1, 3)
    np.testing.assert_allclose(updates["head"]["kernel"], expected, rtol=1e-5)


def test_adamw_decays_kernels_only_and_apart_from_the_moments():
    updates, _ = updates_of(optim(name="adamw", weight_decay=0.1), steps=3)
    expected = adam_reference(0.5, 3) + 0.1 * 2.0
    np.testing.assert_allclose(updates["encoder"]["kernel"], expected, rtol=1e-5)
    np.testing.assert_allclose(updates["encoder"]["bias"], adam_reference(1.0, 3), rtol=1e-5)


def test_an_unknown_optimiser_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"optim\.name 'lion' is unknown: use one of \('sgd'"):
        make_optimizer(optim(name="lion"), PARAMS)


def test_shapes_are_enough_to_build_an_optimiser():
    shapes = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, PARAMS))
    optimizer = make_optimizer(optim(name="adamw", weight_decay=0.1), shapes)
    jax.eval_shape(optimizer.init, shapes)


# ----- rmsprop --------------------------------------------------------------------------------


def test_rmsprop_divides_by_the_root_of_the_averaged_square():
    updates, _ = updates_of(optim(name="rmsprop", weight_decay=0.1), steps=2)
    square = 0.0
    gradient = 4.0 + 0.1 * -1.0
    for _ in range(2):
        square = 0.99 * square + 0.01 * gradient**2
    np.testing.assert_allclose(updates["head"]["kernel"], gradient / np.sqrt(square), rtol=1e-5)


def test_single_gradients_are_bounded():
    settings = optim(momentum=0.0, weight_decay=0.0)
    with settings.unlocked():
        settings.clip_value = 0.75
    updates, _ = updates_of(settings)
    np.testing.assert_allclose(updates["head"]["kernel"], 0.75)
    np.testing.assert_allclose(updates["encoder"]["kernel"], 0.5)

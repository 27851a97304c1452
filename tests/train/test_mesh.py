"""Sharding: any number of devices gives the same numbers; fsdp splits what is large."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from tests.train import toy
from uvos_jax.errors import ConfigError
from uvos_jax.train import mesh as meshes
from uvos_jax.train.optimizer import make_optimizer, make_schedule
from uvos_jax.train.step import compile_step, init_state, make_train_step
from uvos_jax.types import Phase

WIDE = 1024  # channels that make the first kernel large enough to be split


@pytest.fixture(scope="module")
def runs():
    """The wide toy on one device, on eight, and with parameters split in two and in eight."""
    system, settings = toy.Toy(features=WIDE), toy.config(optim__lr=0.05)
    grids = {
        "one": meshes.make_mesh(devices=jax.devices()[:1]),
        "data": meshes.make_mesh(),
        "fsdp2": meshes.make_mesh(fsdp=2),
        "fsdp8": meshes.make_mesh(fsdp=8),
    }
    return {name: toy.run_steps(system, settings, grid) for name, grid in grids.items()}


@pytest.mark.parametrize("name", ["data", "fsdp2", "fsdp8"])
def test_losses_and_parameters_equal_those_of_one_device(runs, name):
    np.testing.assert_allclose(runs[name][0], runs["one"][0], rtol=1e-5)
    for many, single in zip(
        jax.tree.leaves(runs[name][2].params), jax.tree.leaves(runs["one"][2].params), strict=True
    ):
        np.testing.assert_allclose(np.asarray(many), np.asarray(single), atol=1e-5)


@pytest.mark.parametrize("name, parts", [("fsdp2", 2), ("fsdp8", 8)])
def test_fsdp_splits_large_parameters_and_their_moments(runs, name, parts):
    state = runs[name][2]
    trace = next(x for x in jax.tree.leaves(state.opt_state) if x.shape == (3, 3, 3, WIDE))
    for array in (state.params["encoder"]["kernel"], trace):
        assert array.sharding.spec == P(None, None, None, "fsdp")
        assert {s.data.shape[-1] for s in array.addressable_shards} == {WIDE // parts}
    assert state.params["encoder"]["bias"].sharding.is_fully_replicated


def test_without_fsdp_parameters_are_on_every_device(runs):
    assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(runs["data"][2].params))


def test_the_batch_is_split_over_all_devices():
    mesh = meshes.make_mesh(fsdp=2)
    placed = meshes.place_batch(toy.make_batch(16), mesh)
    assert {s.data.shape[0] for s in placed["frames"].addressable_shards} == {2}


def test_split_arrays_come_back_whole(runs):
    state = runs["fsdp2"][2]
    host = meshes.to_host(state.params, meshes.make_mesh(fsdp=2))
    assert host["encoder"]["kernel"].shape == (3, 3, 3, WIDE)


def test_the_step_talks_to_the_host_for_nothing():
    system, settings = toy.Toy(), toy.config()
    mesh = meshes.make_mesh()
    state = jax.jit(
        lambda: init_state(system, 0, lambda p: make_optimizer(settings.optim, p)),
        out_shardings=meshes.replicated(mesh),
    )()
    shardings = jax.tree.map(lambda x: x.sharding, state)
    step = make_train_step(
        system,
        make_optimizer(settings.optim, state.params),
        make_schedule(settings.optim, 4),
        phase=Phase(),
    )
    batch = meshes.place_batch(toy.make_batch(), mesh)
    compiled = compile_step(step, mesh, shardings).lower(state, batch).compile()
    with jax.transfer_guard("disallow"):
        state, _ = compiled(state, batch)
        state, metrics = compiled(state, batch)
    assert not any(word in compiled.as_text() for word in ("outfeed", "infeed", "CallbackTo"))
    assert int(state.step) == 2
    assert np.isfinite(float(metrics["loss"]))


@pytest.mark.parametrize(
    "axes, message",
    [
        ({"fsdp": 3}, "mesh.fsdp=3 must divide the number of devices, 8"),
        ({"data": 3, "fsdp": 2}, "multiply to 6, but there are 8 devices; set mesh.data=-1"),
    ],
)
def test_axes_that_do_not_fit_the_devices_are_refused(axes, message):
    with pytest.raises(ConfigError, match=message):
        meshes.make_mesh(**axes)


def test_a_batch_that_does_not_divide_over_the_devices_is_refused():
    with pytest.raises(ConfigError, match="must be a multiple of the 8 devices"):
        meshes.local_batch_size(12, meshes.make_mesh())


@pytest.mark.parametrize(
    "kind, dtype, peak",
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989e12),
        ("NVIDIA H100 80GB HBM3", "float32", 495e12),
        ("NVIDIA H100 PCIe", "bfloat16", 756e12),
        ("TPU v5 lite", "bfloat16", 197e12),
        ("TPU v5p", "float32", 459e12),
        ("cpu", "float32", None),
    ],
)
def test_peaks_of_known_devices(kind, dtype, peak):
    assert meshes.peak_flops(dtype, kind) == peak

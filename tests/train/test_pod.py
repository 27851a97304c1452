"""Plans of training steps: what is read from compiled programs, and the arithmetic on it."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tests.train import toy
from uvos_jax.train import mesh as meshes
from uvos_jax.train import pod, stages

ROOT = Path(__file__).parents[2]
V5E = pod.CHIPS["v5e"]


def compiled(function, *shapes, out=P()):
    mesh = meshes.make_mesh()
    arguments = [
        jax.ShapeDtypeStruct(s, jnp.float32, sharding=NamedSharding(mesh, p)) for s, p in shapes
    ]
    return jax.jit(function, out_shardings=NamedSharding(mesh, out)).lower(*arguments).compile()


def test_an_all_reduce_is_found_with_its_size():
    program = compiled(lambda x: x.sum(0), ((8, 1000), P("data"))).as_text()
    assert pod.find_collectives(program) == (("all-reduce", 4000, 1),)


def test_an_all_gather_is_found_with_its_size():
    program = compiled(lambda x: x + 1, ((8, 1000), P("data"))).as_text()
    assert pod.find_collectives(program) == (("all-gather", 32000, 1),)


def test_combined_and_asynchronous_collectives_are_counted_once():
    program = """
  %a = (f32[10]{0}, bf16[4,5]{1,0}) all-reduce(%x, %y), channel_id=1
  %b = (f32[2]{0}, f32[16]{0}) all-gather-start(%z), channel_id=2
  %c = f32[16]{0} all-gather-done(%b)
  %d = (f32[10]{0}, bf16[4,5]{1,0}) all-reduce(%x, %y), channel_id=3
"""
    assert pod.find_collectives(program) == (("all-gather", 64, 1), ("all-reduce", 80, 2))


@pytest.fixture(scope="module")
def planned():
    """The wide toy's step on eight devices, replicated and split."""
    costs = {}
    for fsdp in (1, 8):
        config = toy.config(mesh__fsdp=fsdp)
        system = toy.Toy(features=1024)
        (segment,) = stages.plan(config, system)
        mesh = meshes.make_mesh(-1, fsdp)
        costs[fsdp] = pod.plan_step(config, segment, segment.stage.phases[0], mesh)
    return costs


def test_gradients_travel_once_a_step(planned):
    # kernel 3x3x3x1024, bias 1024, head 1024 and 1, and a few scalars for loss and norm
    gradients = 4 * (27 * 1024 + 1024 + 1024 + 1)
    moved = sum(size * count for kind, size, count in planned[1].collectives)
    assert {kind for kind, _, _ in planned[1].collectives} == {"all-reduce"}
    assert gradients <= moved <= gradients + 200


def test_split_parameters_take_less_memory_and_are_gathered(planned):
    assert planned[8].memory < planned[1].memory
    assert "all-gather" in {kind for kind, _, _ in planned[8].collectives}


def test_collectives_cost_more_on_more_chips_and_nothing_on_one():
    times = [pod.collective_seconds("all-reduce", 10**8, n, V5E) for n in (1, 4, 16, 64, 256)]
    assert times[0] == 0.0
    assert times == sorted(times)
    # Large ones are bound by bandwidth: 2 x 100 MB over 200 GB/s.
    assert times[-1] == pytest.approx(1e-3, rel=0.07)


def test_throughput_grows_less_than_the_number_of_chips():
    cost = pod.StepCost(16, 32, 2**30, 1e12, 1e9, (("all-reduce", 10**8, 1),))
    (few, little), (many, more) = cost.scaled(V5E, 16), cost.scaled(V5E, 256)
    assert 0 < little < more < 0.1
    assert 14 * few < many < 16 * few


def test_accumulated_parts_count(planned):
    config = toy.config(optim__accumulate=2, data__batch_size=16)
    (segment,) = stages.plan(config, toy.Toy(features=1024))
    cost = pod.plan_step(config, segment, segment.stage.phases[0], meshes.make_mesh())
    assert cost.flops == pytest.approx(2 * planned[1].flops, rel=0.2)


@pytest.mark.slow
def test_the_tool_prints_a_plan_and_refuses_mistakes_in_one_line(tmp_path):
    def tool(*arguments):
        command = [sys.executable, "tools/plan_pod.py", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)

    log = tmp_path / "plan.jsonl"
    good = tool("--config", "cosnet:tiny", "--devices", "2", "--phase", "static",
                "--json", str(log), "--config.data.batch_size=2")  # fmt: skip
    assert good.returncode == 0, good.stderr
    assert "memory per chip" in good.stdout
    assert json.loads(log.read_text())["chips"] == 2
    for arguments, hint in (
        (("--config", "cosnet:tiny", "--devices", "2", "--chip", "v9"), "v9"),
        (("--config", "cosnet:tiny", "--devices", "2", "--config.data.batch_size=3"), "multiple"),
        (("--config", "cosnett", "--devices", "2"), "cosnet"),
    ):
        bad = tool(*arguments)
        assert bad.returncode == 2
        assert bad.stderr.count("\n") == 1
        assert hint in bad.stderr


def test_a_chip_is_described_completely():
    for chip in pod.CHIPS.values():
        assert all(getattr(chip, f.name) for f in dataclasses.fields(chip))

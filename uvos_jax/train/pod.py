"""What a training step costs on many chips, told before any chip is rented.

The step is compiled ahead of time for a topology (a TPU slice, or simulated CPU devices); memory,
FLOPs and collectives come from the compiled program. Times are arithmetic on those numbers and on
the chips' data sheets, never measurements:

- computing: the larger of FLOPs / (peak x `EFFICIENCY`) and bytes / memory bandwidth;
- an all-reduce of b bytes over n chips: 2 (n-1)/n b / bandwidth + 2 hops x `HOP_SECONDS`, as a ring
  on each axis of the torus; an all-gather or reduce-scatter half of it;
- nothing overlaps. XLA hides part of the gradients' all-reduce behind the backward pass, so the
  share of collectives is an upper bound.

XLA's cost analysis counts the body of a loop once; `flops` is a lower bound where a system scans.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from uvos_jax.train import mesh as meshes
from uvos_jax.train import stages
from uvos_jax.train.optimizer import make_schedule
from uvos_jax.train.step import compile_step, init_state, make_train_step
from uvos_jax.types import Phase

#: Share of the peak that convolution networks of this kind reach.
EFFICIENCY = 0.4
#: Latency of one hop between neighbouring chips, with the software around it.
HOP_SECONDS = 1e-6
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "f64": 8}


@dataclasses.dataclass(frozen=True)
class Chip:
    """Data sheet of one chip: bytes of memory, FLOP/s in bfloat16, bytes/s, torus dimensions."""

    name: str
    memory: float
    peak: float
    memory_bandwidth: float
    link_bandwidth: float
    torus: int


#: Vendor's figures; `link_bandwidth` is the sum over a chip's links.
CHIPS = {
    "v4": Chip("TPU v4", 32 * 2**30, 275e12, 1228e9, 300e9, 3),
    "v5e": Chip("TPU v5e", 16 * 2**30, 197e12, 819e9, 200e9, 2),
    "v5p": Chip("TPU v5p", 95 * 2**30, 459e12, 2765e9, 600e9, 3),
    "v6e": Chip("TPU v6e", 32 * 2**30, 918e12, 1640e9, 448e9, 2),
}


@dataclasses.dataclass(frozen=True)
class StepCost:
    """Per chip: bytes of memory, FLOPs, bytes moved; collectives as (kind, bytes, how often)."""

    chips: int
    frames: int  # of the global batch
    memory: int
    flops: float
    bytes_accessed: float
    collectives: tuple[tuple[str, int, int], ...]

    def compute_seconds(self, chip: Chip) -> float:
        """Roofline estimate of the time without collectives."""
        return max(
            self.flops / (chip.peak * EFFICIENCY), self.bytes_accessed / chip.memory_bandwidth
        )

    def collective_seconds(self, chip: Chip, chips: int | None = None) -> float:
        """Estimate of the time in collectives, were the slice `chips` large."""
        return sum(
            count * collective_seconds(kind, size, chips or self.chips, chip)
            for kind, size, count in self.collectives
        )

    def scaled(self, chip: Chip, chips: int) -> tuple[float, float]:
        """(frames/s, share of collectives) at `chips` chips with the same batch per chip."""
        compute = self.compute_seconds(chip)
        total = compute + self.collective_seconds(chip, chips)
        return self.frames / self.chips * chips / total, 1 - compute / total


def collective_seconds(kind: str, size: int, chips: int, chip: Chip) -> float:
    """Estimated seconds of one collective over `size` bytes per chip."""
    if chips == 1:
        return 0.0
    hops = chip.torus * (chips ** (1 / chip.torus) - 1)
    rounds = 2 if kind == "all-reduce" else 1
    if kind == "collective-permute":
        return size / chip.link_bandwidth + HOP_SECONDS
    return rounds * ((chips - 1) / chips * size / chip.link_bandwidth + hops * HOP_SECONDS)


def find_collectives(program: str) -> tuple[tuple[str, int, int], ...]:
    """(kind, bytes of the result, how often) of the collectives in the text of an HLO module.

    Combined collectives count once with the sum of their parts; of an asynchronous pair only the
    start counts, with the larger half of its operands and results.
    """
    found: dict[tuple[str, int], int] = {}
    kinds = "|".join(COLLECTIVES)
    pattern = re.compile(rf"= (.+?) ({kinds})(-start)?\(")
    for line in program.splitlines():
        match = pattern.search(line)
        if match is None:
            continue
        shapes, kind, start = match.groups()
        sizes = [
            BYTES.get(dtype, 4) * math.prod(int(d) for d in dims.split(",") if d)
            for dtype, dims in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", shapes)
        ]
        size = sum(sizes)
        if start and kind != "all-reduce":
            size = size - min(sizes)  # (operand, result, ...)
        if size:
            found[kind, size] = found.get((kind, size), 0) + 1
    return tuple((kind, size, count) for (kind, size), count in sorted(found.items()))


def topology_devices(name: str) -> Sequence[Any]:
    """Devices of a TPU slice such as `v5e:4x4`, without the hardware (needs libtpu).

    Raises:
      RuntimeError: libtpu is not installed, or does not know the topology.
    """
    from jax.experimental import topologies

    return topologies.get_topology_desc(platform="tpu", topology_name=name).devices


def abstract_batch(system: Any, config: Any, phase: Phase, mesh: Mesh, rows: int) -> dict[str, Any]:
    """Shapes, dtypes and shardings of a training batch of `rows` clips."""
    H, W = config.data.size
    T = 1 if phase.data == "static" else config.data.clip_len
    shapes = {
        "frames": ((rows, T, H, W, 3), jnp.uint8),
        "masks": ((rows, T, H, W), jnp.uint8),
        "valid": ((rows, T), jnp.bool_),
        "has_mask": ((rows, T), jnp.bool_),
        "example_id": ((rows,), jnp.int32),
    }
    for key, value in system.example_batch(rows, (H, W)).items():
        shapes.setdefault(key, ((rows, T, *value.shape[2:]), value.dtype))
    if "fixations" in system.training_requires:
        shapes["fixations"] = ((rows, T, H, W), jnp.float32)
    if "flow" in shapes:
        shapes["flow_valid"] = ((rows, T), jnp.bool_)
    sharding = meshes.batch_sharding(mesh)
    return {k: jax.ShapeDtypeStruct(s, d, sharding=sharding) for k, (s, d) in shapes.items()}


def plan_step(
    config: Any, segment: stages.Segment, phase: Phase, mesh: Mesh, platform: str | None = None
) -> StepCost:
    """Compiles the step of one phase for the mesh and reads its cost.

    Args:
      platform: `tpu` for a topology's devices; None for devices of this machine.
    """
    settings = segment.config.optim

    def fresh() -> Any:
        return init_state(
            segment.system,
            config.seed,
            lambda params: stages.optimizer_of(segment, phase, params),
            ema=settings.ema > 0,
        )

    shapes = jax.eval_shape(fresh)
    shardings = meshes.parameter_shardings(mesh, shapes)
    state = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )
    batch = abstract_batch(segment.system, config, phase, mesh, config.data.batch_size)
    step = make_train_step(
        segment.system,
        stages.optimizer_of(segment, phase, shapes.params),
        make_schedule(settings, max(segment.end - segment.start, 1)),
        phase=phase,
        accumulate=settings.accumulate,
        ema=settings.ema,
    )
    platforms = {"lowering_platforms": (platform,)} if platform else {}
    run = compile_step(step, mesh, shardings)
    compiled = run.trace(state, batch).lower(**platforms).compile()
    memory = compiled.memory_analysis()
    cost = compiled.cost_analysis() or {}
    return StepCost(
        chips=mesh.devices.size,
        frames=int(np.prod(batch["frames"].shape[:2])),
        memory=memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes,
        flops=float(cost.get("flops", 0.0)) * settings.accumulate,
        bytes_accessed=float(cost.get("bytes accessed", 0.0)) * settings.accumulate,
        collectives=find_collectives(compiled.as_text()),
    )

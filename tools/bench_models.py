"""Times every system at its own resolution: one table of sizes, work, speed and memory.

    python tools/bench_models.py                                  # all systems, `full`
    python tools/bench_models.py cosnet agnn --dtype bfloat16     # some of them
    python tools/bench_models.py matnet:tiny --train --repeats 10
    python tools/bench_models.py --json speed.jsonl               # a line each, for comparisons

Frames go through `predict` as in a video: one frame a call, or one window of a clip system, with
its references encoded before. Fresh weights; speed does not depend on them. `MFU` is the share of
the peak, which is what a large matrix product of the same type reaches on this device in the same
run. `memory` is what the compiled program needs beside its arguments. `--train` adds a training
step of the recipe's first stage at its own batch size (`--batch` sets another). Each system runs in
a process of its own, so that nothing is left in memory by the one before.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HEADER = (
    "| configuration | parameters | GFLOP/frame | frames/s | GFLOP/s | MFU | memory MiB | "
    "compile s | train steps/s | train memory MiB |\n" + "|---" * 10 + "|"
)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="ID[:VARIANT]", help="default: all systems")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rows", type=int, default=1, help="videos at once (forward)")
    parser.add_argument("--train", action="store_true", help="time a training step, too")
    parser.add_argument("--batch", type=int, help="clips in a training step")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--timeout", type=int, default=1800, help="seconds for one system")
    parser.add_argument("--json", type=Path, help="append the numbers to this file")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.names[0], args)))
        return 0
    return table(args)


def table(args: argparse.Namespace) -> int:
    """Measures each system in a process of its own and prints rows as they come."""
    from uvos_jax import registry

    names = args.names or [n for n in registry.list_systems() if registry.is_available(n)]
    failed = []
    for number, name in enumerate(names):
        command = [sys.executable, __file__, name, "--one", "--dtype", args.dtype,
                   "--rows", str(args.rows), "--repeats", str(args.repeats)]  # fmt: skip
        command += ["--train"] * args.train
        command += ["--batch", str(args.batch)] if args.batch else []
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=args.timeout, check=False
            )
            row = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None
            reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        except subprocess.TimeoutExpired:
            row, reason = None, f"no result within {args.timeout} s"
        if row is None:
            failed.append(f"{name}: {reason[:200]}")
            continue
        if number == 0:
            print(f"{row['device']}, {args.dtype}, {args.rows} video(s) at once, "
                  f"peak {row['peak_gflops']:.0f} GFLOP/s\n{HEADER}")  # fmt: skip
        print(line(row), flush=True)
        if args.json:
            with open(args.json, "a") as file:
                file.write(json.dumps(row) + "\n")
    for text in failed:
        print(f"not measured: {text}", file=sys.stderr)
    return int(bool(failed))


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    steps = f"{row['steps_per_s']:.3g}" if "steps_per_s" in row else ""
    memory = f"{row['train_memory_mib']:.0f}" if "train_memory_mib" in row else ""
    return (
        f"| {row['name']} | {row['parameters'] / 1e6:.1f} M | {row['gflop_per_frame']:.3g} "
        f"| {row['frames_per_s']:.3g} | {row['gflops']:.0f} | {row['mfu']:.0%} "
        f"| {row['memory_mib']:.0f} | {row['compile_s']:.1f} | {steps} | {memory} |"
    )


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Numbers of one configuration."""
    import jax
    import jax.numpy as jnp

    import uvos_jax as uvos
    from uvos_jax.evaluation.cost import flops, parameter_count

    config = uvos.load_config(name)
    config.compute_dtype = args.dtype
    system = uvos.build(config)
    variables = system.init(jax.random.key(0))
    chunk = dummy(chunk_shapes(system, args.rows))
    frames = chunk["frames"].shape[1] * args.rows
    if system.spec.num_references:
        shape = (args.rows, system.spec.num_references, *chunk["frames"].shape[2:])
        state = jax.jit(system.prepare)(variables, {"frames": jnp.zeros(shape, jnp.uint8)})
    else:
        size = chunk["frames"].shape[2:4]
        state = jax.jit(lambda v: system.init_state(v, args.rows, size))(variables)
    work = flops(system.predict, *jax.eval_shape(lambda *x: x, variables, state, chunk)) / 1e9
    compiled, compile_s = compile_(system.predict, variables, state, chunk)
    seconds = best_of(lambda: compiled(variables, state, chunk), args.repeats)
    peak = peak_gflops(jnp.dtype(args.dtype))
    row = {
        "name": name,
        "device": jax.devices()[0].device_kind,
        "dtype": args.dtype,
        "rows": args.rows,
        "parameters": parameter_count(variables),
        "gflop_per_frame": work / frames,
        "frames_per_s": frames / seconds,
        "gflops": work / seconds,
        "peak_gflops": peak,
        "mfu": work / seconds / peak,
        "memory_mib": compiled.memory_analysis().temp_size_in_bytes / 2**20,
        "compile_s": compile_s,
    }
    if args.train:
        row |= train_step(system, config, args)
    return row


def train_step(system: Any, config: Any, args: argparse.Namespace) -> dict[str, float]:
    """Speed and memory of a step of the recipe's first stage."""
    import jax

    from uvos_jax.train import mesh as meshes
    from uvos_jax.train import pod, stages
    from uvos_jax.train.optimizer import make_schedule
    from uvos_jax.train.step import init_state, make_train_step

    segment = stages.plan(config)[0]
    phase = segment.stage.phases[0]
    rows = args.batch or config.data.batch_size
    mesh = meshes.make_mesh(1, 1, jax.devices()[:1])
    batch = dummy(pod.abstract_batch(segment.system, segment.config, phase, mesh, rows))
    state = init_state(
        segment.system, 0, lambda params: stages.optimizer_of(segment, phase, params)
    )
    optimizer = stages.optimizer_of(segment, phase, state.params)
    schedule = make_schedule(segment.config.optim, segment.stage.steps)
    step = make_train_step(segment.system, optimizer, schedule, phase=phase)
    compiled, _ = compile_(step, state, batch)
    seconds = best_of(lambda: compiled(state, batch), args.repeats)
    memory = compiled.memory_analysis().temp_size_in_bytes / 2**20
    return {"steps_per_s": 1 / seconds, "train_memory_mib": memory, "train_batch": rows}


def chunk_shapes(system: Any, rows: int) -> dict[str, Any]:
    """What one call of `predict` sees."""
    import jax

    length = system.spec.clip_len if system.spec.temporal == "clip" else 1
    return {
        k: jax.ShapeDtypeStruct((rows, length, *v.shape[2:]), v.dtype)
        for k, v in system.example_batch(rows).items()
        if k == "frames" or k in system.spec.requires
    }


def dummy(shapes: dict[str, Any]) -> dict[str, Any]:
    """Arrays of small whole numbers in the given shapes."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    rng = np.random.default_rng(0)

    def array(x):
        if x.dtype == jnp.bool_:
            return jnp.ones(x.shape, bool)
        return jnp.asarray(rng.integers(0, 2, x.shape)).astype(x.dtype)

    return jax.tree.map(array, shapes)


def compile_(function: Any, *arguments: Any) -> tuple[Any, float]:
    """The compiled function and the seconds that took."""
    import jax

    start = time.perf_counter()
    compiled = jax.jit(function).lower(*arguments).compile()
    return compiled, time.perf_counter() - start


def best_of(run: Any, repeats: int) -> float:
    """Seconds of the fastest of several calls after a first one."""
    import jax

    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return min(times[1:])


def peak_gflops(dtype: Any) -> float:
    """What a large matrix product reaches here."""
    import jax
    import jax.numpy as jnp

    n = 2048 if jax.default_backend() == "cpu" else 8192
    a = jnp.ones((n, n), dtype)
    product = jax.jit(lambda x: x @ x)
    return 2 * n**3 / best_of(lambda: product(a), 5) / 1e9


if __name__ == "__main__":
    sys.exit(main())

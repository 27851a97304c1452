"""Time and memory of attention over the positions of feature maps, by implementation.

    python tools/bench_attention.py                                    # 3600 and 10800 positions
    python tools/bench_attention.py --positions 3600 --channels 64 --dtype bfloat16 --json out.jsonl

Compares `dense`, `blockwise` and `fused` of `uvos_jax.modules.attention` with PyTorch's
`scaled_dot_product_attention` where torch is installed (else it is skipped, with the reason),
forward alone and forward with backward. Times are medians of `--repeats` calls after a first one:
`ms` by the clock, `cpu` of all cores together, which other work on the machine disturbs less.
Memory is what the compiled program needs besides arguments and results (XLA's own analysis); for
torch the allocator's peak on a GPU, and on a CPU the growth of a fresh process, which is coarse and
holds the results, too.
Differences are to float32 at the highest matmul precision. The last line names the device.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import importlib.util
import json
import multiprocessing
import resource
import statistics
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from uvos_jax.modules import attention


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--positions", type=int, nargs="+", default=[3600, 10800])
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--block-size", type=int, default=512)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="append the numbers to this file, a line each")
    return parser.parse_args(argv)


def inputs(args: argparse.Namespace, n: int) -> list[np.ndarray]:
    """Queries, keys and values `[B,n,C]`; scores have unit variance."""
    rng = np.random.default_rng(0)
    shape = (args.batch, n, args.channels)
    q, k, v = (rng.standard_normal(shape, np.float32) for _ in range(3))
    return [q / np.sqrt(args.channels), k, v]


def timed(run, repeats: int, wait) -> tuple[float, float]:
    """Median milliseconds of a call: by the clock, and of all processor cores together."""
    wait(run())
    wall, cpu = [], []
    for _ in range(repeats):
        began, began_cpu = time.perf_counter(), time.process_time()
        wait(run())
        wall.append(1e3 * (time.perf_counter() - began))
        cpu.append(1e3 * (time.process_time() - began_cpu))
    return statistics.median(wall), statistics.median(cpu)


def measure_jax(args: argparse.Namespace, n: int, implementation: str, exact) -> dict:
    """Times, temporary memory and the largest difference to `exact`."""
    x = [jnp.asarray(a, args.dtype) for a in inputs(args, n)]

    def forward(q, k, v):
        return attention.attend(q, k, v, implementation=implementation, block_size=args.block_size)

    def loss(q, k, v):
        return jnp.sum(jnp.square(forward(q, k, v).astype(jnp.float32)))

    row = {"implementation": implementation}
    if implementation == "fused" and not attention.fused_applies(*x):
        return {**row, "note": "skipped: cuDNN's kernel does not apply here, blockwise takes over"}
    for name, function in (("fwd", forward), ("fwd+bwd", jax.grad(loss, argnums=(0, 1, 2)))):
        program = jax.jit(function).lower(*x).compile()
        memory = program.memory_analysis()
        row[f"{name} MB"] = memory.temp_size_in_bytes / 1e6 if memory else float("nan")
        row[f"{name} ms"], row[f"{name} cpu"] = timed(
            lambda p=program: p(*x), args.repeats, jax.block_until_ready
        )
        if name == "fwd":
            row["max diff"] = float(np.abs(np.asarray(program(*x), np.float32) - exact).max())
    return row


def measure_torch(args: argparse.Namespace, n: int, exact) -> dict:
    """The same for PyTorch, or why not; a process of its own per measurement."""
    row = {"implementation": "torch sdpa"}
    if importlib.util.find_spec("torch") is None:
        return {**row, "note": "skipped: torch is not installed"}
    spawn = multiprocessing.get_context("spawn")
    for name in ("fwd", "fwd+bwd"):
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
            numbers, result = pool.submit(torch_alone, args, n, name).result()
        row |= numbers
        if name == "fwd":
            row["max diff"] = float(np.abs(result - exact).max())
    return row


def torch_alone(args: argparse.Namespace, n: int, name: str) -> tuple[dict, np.ndarray | None]:
    """Times and memory of one kind of call, in a process that has done nothing else."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, args.dtype)
    x = [torch.from_numpy(a)[:, None].to(device, dtype).requires_grad_() for a in inputs(args, n)]
    wait = (lambda _: torch.cuda.synchronize()) if device == "cuda" else (lambda _: None)

    def forward():
        return torch.nn.functional.scaled_dot_product_attention(*x, scale=1.0)

    def forward_only():
        with torch.no_grad():
            return forward()

    def both():
        for a in x:
            a.grad = None
        forward().float().square().sum().backward()

    def held() -> int:
        if device == "cuda":
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    before = held()
    run = forward_only if name == "fwd" else both
    wall, cpu = timed(run, args.repeats, wait)
    row = {f"{name} ms": wall, f"{name} cpu": cpu, f"{name} MB": (held() - before) / 1e6}
    return row, forward_only()[:, 0].float().cpu().numpy() if name == "fwd" else None


def main(argv: list[str]) -> int:
    args = parse(argv)
    columns = ("fwd ms", "fwd cpu", "fwd+bwd ms", "fwd+bwd cpu", "fwd MB", "fwd+bwd MB", "max diff")
    for n in args.positions:
        print(f"\n{n} positions, {args.channels} channels, batch {args.batch}, {args.dtype}, "
              f"blocks of {args.block_size}")  # fmt: skip
        print(f"{'':12s}" + "".join(f"{c:>12s}" for c in columns))
        with jax.default_matmul_precision("highest"):
            q, k, v = (jnp.asarray(a) for a in inputs(args, n))
            run = jax.jit(lambda *x: attention.attend(*x, implementation="blockwise"))
            exact = np.asarray(run(q, k, v))
        rows = [measure_jax(args, n, name, exact) for name in attention.IMPLEMENTATIONS]
        rows.append(measure_torch(args, n, exact))
        for row in rows:
            cells = "".join(f"{row[c]:12.3g}" if c in row else f"{'':12s}" for c in columns)
            print(f"{row['implementation']:12s}{cells}  {row.get('note', '')}".rstrip())
            if args.json:
                record = {"positions": n, "channels": args.channels, "batch": args.batch,
                          "dtype": args.dtype, "device": jax.devices()[0].device_kind,
                          **row}  # fmt: skip
                with args.json.open("a") as file:
                    file.write(json.dumps(record) + "\n")
    print(f"\ndevice: {jax.devices()[0].device_kind} ({jax.default_backend()})")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

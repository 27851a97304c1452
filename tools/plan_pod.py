"""What training a system on a TPU slice would take, from a machine without one.

    python tools/plan_pod.py --config cosnet:full --topology v5e:4x4 \\
        --config.compute_dtype=bfloat16 [--largest-batch]
    python tools/plan_pod.py --config cosnet:tiny --devices 8      # simulated CPU devices

Compiles the full-size training step of every phase ahead of time for the topology (libtpu comes
with the extra [tpu]; no TPU is needed) and prints memory per chip against the chip's, FLOPs, bytes,
collectives with their sizes, and the frames/s to expect at 8 to 1024 chips with the same batch per
chip. Memory, FLOPs and collectives are the compiler's; times are arithmetic on them, explained in
`uvos_jax/train/pod.py`. A ResNet-101 takes minutes to compile.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

PROJECTED = (8, 64, 256, 1024)
GIB = 2**30


def parse(argv: list[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    from uvos_jax.train.command import split_overrides

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="config file or name, with :variant")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--topology", help="TPU slice, e.g. v5e:4x4, v5e:16x16, v4:2x2x2")
    where.add_argument("--devices", type=int, help="this many simulated CPU devices instead")
    parser.add_argument("--chip", default="v5e", help="data sheet for --devices (default v5e)")
    parser.add_argument("--phase", help="only this phase of the recipe")
    parser.add_argument(
        "--largest-batch", action="store_true", help="double the batch until it does not fit"
    )
    parser.add_argument("--json", type=Path, help="append the numbers to this file, a line each")
    rest, overrides = split_overrides(argv)
    return parser.parse_args(rest), overrides


def main(argv: list[str]) -> int:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    args, overrides = parse(argv)
    if args.devices:
        os.environ["XLA_FLAGS"] = (
            os.environ.get("XLA_FLAGS", "")
            + f" --xla_force_host_platform_device_count={args.devices}"
        )
    import jax

    from uvos_jax import config as configs
    from uvos_jax.cli.common import print_error
    from uvos_jax.errors import ConfigError, UvosError
    from uvos_jax.train import mesh as meshes
    from uvos_jax.train import pod, stages

    try:
        name = args.topology.partition(":")[0] if args.topology else args.chip
        if name not in pod.CHIPS:
            raise ConfigError(f"no data sheet of chip {name!r}: there are {sorted(pod.CHIPS)}")
        config = configs.load_config(args.config)
        configs.override(config, overrides)
        configs.validate(config)
        try:
            devices = pod.topology_devices(args.topology) if args.topology else jax.devices()
        except (ImportError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"topology {args.topology!r} is not available ({reason}); install libtpu with "
                '`pip install "uvos_jax[tpu]"` and give a slice such as v5e:4x4'
            ) from None
        mesh = meshes.make_mesh(config.mesh.data, config.mesh.fsdp, devices)
        meshes.local_batch_size(config.data.batch_size, mesh)
        chip = pod.CHIPS[name]
        shown = set()
        for segment in stages.plan(config):
            for phase in segment.stage.phases:
                key = (segment.stage.name, phase.name)
                if key in shown or (args.phase and phase.name != args.phase):
                    continue
                shown.add(key)
                show(args, config, segment, phase, mesh, chip)
        if not shown:
            raise ConfigError(f"the recipe of {args.config} has no phase {args.phase!r}")
    except UvosError as error:
        return print_error(error)
    return 0


def show(args, config, segment, phase, mesh, chip) -> None:
    """Prints the plan of one phase."""
    from uvos_jax.train import pod

    began = time.monotonic()
    cost = pod.plan_step(config, segment, phase, mesh, "tpu" if args.topology else None)
    chips, rows = cost.chips, config.data.batch_size
    where = args.topology or f"{args.devices} simulated devices"
    H, W = config.data.size
    print(
        f"\n{args.config}, stage {segment.stage.name!r}, phase {phase.name!r}, {H}x{W}, global "
        f"batch {rows} on {where}, {config.compute_dtype}"
        f" (compiled in {time.monotonic() - began:.0f} s)"
    )
    fits = "fits" if cost.memory <= chip.memory else "DOES NOT FIT"
    print(f"  memory per chip   {cost.memory / GIB:.2f} of {chip.memory / GIB:.0f} GiB: {fits}")
    print(f"  FLOPs per chip    {cost.flops / 1e12:.3f} T a step")
    print(f"  bytes per chip    {cost.bytes_accessed / 1e9:.1f} GB a step")
    total = sum(size * count for _, size, count in cost.collectives)
    number = sum(count for _, _, count in cost.collectives)
    print(f"  collectives       {number}, {total / 1e6:.1f} MB; the largest:")
    for kind, size, count in sorted(cost.collectives, key=lambda c: -c[1])[:4]:
        print(f"    {count} x {kind} of {size / 1e6:.3f} MB")
    compute = cost.compute_seconds(chip)
    print(
        f"  computing, est.   {1e3 * compute:.1f} ms = max({cost.flops / 1e12:.2f} T / "
        f"({chip.peak / 1e12:.0f} T/s x {pod.EFFICIENCY}), {cost.bytes_accessed / 1e9:.1f} GB / "
        f"{chip.memory_bandwidth / 1e9:.0f} GB/s)"
    )
    print("  chips   frames/s (est.)   share of collectives")
    rates = {n: cost.scaled(chip, n) for n in sorted({chips, *PROJECTED})}
    for n, (rate, share) in rates.items():
        print(f"  {n:5d}   {rate:15.0f}   {100 * share:.1f} %")
    record = {
        "config": args.config, "phase": phase.name, "where": where, "batch": rows,
        "dtype": config.compute_dtype, "chip": chip.name, "chips": chips,
        "memory_gib": cost.memory / GIB, "tflop": cost.flops / 1e12,
        "gigabytes": cost.bytes_accessed / 1e9, "collectives": number,
        "collective_mb": total / 1e6, "compute_ms": 1e3 * compute, "rates": rates,
    }  # fmt: skip
    if args.largest_batch:
        record["largest_batch"] = largest(args, config, segment, phase, mesh, chip)
        print(f"  largest batch     {record['largest_batch']} (a power of two per chip)")
    if args.json:
        with args.json.open("a") as file:
            file.write(json.dumps(record) + "\n")


def largest(args, config, segment, phase, mesh, chip) -> int:
    """Largest global batch, in powers of two per chip, whose step fits the chip's memory."""
    from uvos_jax import config as configs
    from uvos_jax.train import pod

    per_chip, fitting = 1, 0
    while True:
        own = configs.from_dict(config.to_dict())
        own.data.batch_size = per_chip * mesh.devices.size * segment.config.optim.accumulate
        try:
            cost = pod.plan_step(own, segment, phase, mesh, "tpu" if args.topology else None)
        except Exception as error:  # the TPU compiler refuses programs that do not fit
            if "RESOURCE_EXHAUSTED" not in str(error) and "memory" not in str(error).lower():
                raise
            return fitting
        if cost.memory > chip.memory:
            return fitting
        fitting = own.data.batch_size
        per_chip *= 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

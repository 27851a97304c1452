"""Joining the processes of a multi-host run."""

from __future__ import annotations

import argparse
import os

#: Variables that show a cluster `jax.distributed.initialize` recognises by itself.
CLUSTER_VARIABLES = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that join processes on several machines where no cluster is recognised."""
    parser.add_argument("--coordinator", help="host:port of process 0, for several processes")
    parser.add_argument("--num-processes", "--num_processes", type=int)
    parser.add_argument("--process-id", "--process_id", type=int)


def initialize(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins a job of several processes; does nothing for a single one.

    Explicit arguments win; else SLURM, Open MPI or a TPU pod slice is recognised from the
    environment. Must run before any other use of JAX.
    """
    import jax

    if coordinator:
        jax.distributed.initialize(coordinator, num_processes, process_id)
        return
    for name in CLUSTER_VARIABLES:
        value = os.environ.get(name, "")
        several = value.isdigit() and int(value) > 1
        if several or (name == "TPU_WORKER_HOSTNAMES" and "," in value):
            jax.distributed.initialize()
            return

"""Several real processes on this machine make the same run as one."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.train import toy
from tests.train.launch import write_config
from uvos_jax.train.logging import read_log

STEPS = 12


def start(config, workdir, index=0, count=1, port=0, *flags):
    command = [sys.executable, "-m", "tests.train.launch", f"--config={config}"]
    command += [f"--workdir={workdir}", *flags]
    if count > 1:
        command += [f"--coordinator=127.0.0.1:{port}", f"--num-processes={count}"]
        command += [f"--process-id={index}"]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ
        | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": ""},
    )  # fmt: skip


def run(config, workdir, count=1, *flags, act=None):
    """Runs `count` processes to their end; `act(processes)` is called meanwhile."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [start(config, workdir, i, count, port, *flags) for i in range(count)]
    try:
        if act:
            act(processes)
        outputs = [p.communicate(timeout=240) for p in processes]
    finally:
        for process in processes:
            process.kill()
    return [
        SimpleNamespace(code=p.returncode, out=out, err=err)
        for p, (out, err) in zip(processes, outputs, strict=True)
    ]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    toy.write_clips(folder / "clips")
    return write_config(folder / "toy.py", folder / "clips", features=1024)


@pytest.fixture(scope="module")
def alone(config):
    workdir = config.parent / "alone"
    (only,) = run(config, workdir, 1, "--config.train.eval_every=6")
    assert only.code == 0, only.err
    return workdir


@pytest.fixture(scope="module")
def pair(config):
    """Two processes that share parameters (fsdp), to the end."""
    workdir = config.parent / "pair"
    flags = ("--config.mesh.fsdp=2", "--config.train.eval_every=6")
    results = run(config, workdir, 2, *flags)
    for result in results:
        assert result.code == 0, result.err
    return SimpleNamespace(workdir=workdir, results=results)


def test_two_processes_make_the_loss_curve_of_one(alone, pair):
    assert len(toy.losses(pair.workdir)) == STEPS
    np.testing.assert_allclose(toy.losses(pair.workdir), toy.losses(alone), rtol=1e-5)


def test_two_processes_agree_with_one_on_the_scores(alone, pair):
    def scores(workdir):
        return [row["J"] for row in read_log(workdir / "metrics.jsonl") if "J" in row]

    assert len(scores(alone)) == 2
    np.testing.assert_allclose(scores(pair.workdir), scores(alone), atol=1e-3)


def test_only_the_first_process_speaks_and_writes(pair):
    first, second = pair.results
    assert "finished at step 12" in first.out
    assert "step 12/12" in first.err
    assert "finished" not in second.out
    assert "step 12/12" not in second.err
    rows = [row["step"] for row in read_log(pair.workdir / "metrics.jsonl") if "losses" in row]
    assert rows == list(range(1, STEPS + 1))


def test_final_weights_are_whole_although_no_process_held_them_all(alone, pair):
    with np.load(alone / "weights.npz") as a, np.load(pair.workdir / "weights.npz") as b:
        name = "params/encoder/kernel"
        assert b[name].shape == (3, 3, 3, 1024)
        np.testing.assert_allclose(b[name], a[name], atol=1e-5)


@pytest.fixture(scope="module")
def interrupted(config):
    """Two processes, of which one gets a SIGTERM on the way."""
    workdir = config.parent / "interrupted"

    def stop_one(processes):
        log, deadline = workdir / "metrics.jsonl", time.monotonic() + 120
        while time.monotonic() < deadline and processes[1].poll() is None:
            if log.exists() and len(read_log(log)) >= 6:
                processes[1].send_signal(signal.SIGTERM)
                return
            time.sleep(0.01)

    flags = ("--config.mesh.fsdp=2", "--config.train.total_steps=4000")
    flags += ("--config.optim.schedule.name=constant", "--config.train.checkpoint_every=1000")
    results = run(config, workdir, 2, *flags, act=stop_one)
    return SimpleNamespace(workdir=workdir, results=results)


def test_a_signal_to_one_process_stops_and_saves_all(interrupted):
    first, second = interrupted.results
    assert (first.code, second.code) == (0, 0), first.err + second.err
    saved = [int(p.name) for p in (interrupted.workdir / "checkpoints").iterdir()]
    assert saved == [len(toy.losses(interrupted.workdir))]
    assert f"stopped at step {saved[0]}" in first.out


def test_one_process_goes_on_from_what_two_saved(config, interrupted):
    step = len(toy.losses(interrupted.workdir))
    flags = (f"--config.train.total_steps={step + 5}", "--config.optim.schedule.name=constant")
    (only,) = run(config, interrupted.workdir, 1, *flags)
    assert only.code == 0, only.err
    straight = config.parent / "straight"
    (other,) = run(config, straight, 1, *flags)
    assert other.code == 0, other.err
    np.testing.assert_allclose(toy.losses(interrupted.workdir), toy.losses(straight), rtol=1e-5)


@pytest.mark.slow
def test_four_processes_go_on_from_what_two_saved(config, pair, alone):
    flags = ("--config.mesh.fsdp=2", "--config.train.total_steps=16")
    results = run(config, pair.workdir, 4, *flags, "--config.train.eval_every=6")
    for result in results:
        assert result.code == 0, result.err
    assert len(toy.losses(pair.workdir)) == 16

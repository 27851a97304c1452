"""A corpus shared by the processes of one job, one of which is killed: nothing is lost, nothing is
done twice."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.cli.conftest import scene, write_frames

COUNT = 50


def start(arguments, port, process):
    command = [sys.executable, "-m", "uvos_jax", "predict", *map(str, arguments)]
    command += ["--shard", "auto", "--coordinator", f"127.0.0.1:{port}"]
    command += ["--num-processes", "2", "--process-id", str(process)]
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def done(out):
    return {p.name: p for p in out.iterdir() if p.name.startswith("v")} if out.is_dir() else {}


@pytest.mark.slow
def test_a_job_whose_process_is_killed_goes_on_when_it_is_started_again(tmp_path, weights):
    for i in range(COUNT):
        write_frames(tmp_path / "corpus" / f"v{i:02d}", scene(2, (36, 50), seed=i))
    out = tmp_path / "o"
    arguments = (tmp_path / "corpus", "--weights", weights, "--out", out, "--skip-existing")
    port = free_port()
    job = [start(arguments, port, i) for i in range(2)]
    deadline = time.monotonic() + 240
    while len(done(out)) < 8:
        assert time.monotonic() < deadline, "nothing was written in four minutes"
        assert job[1].poll() is None, job[1].stderr.read().decode()[-2000:]
        time.sleep(0.02)
    job[1].send_signal(signal.SIGKILL)
    job[1].wait()
    job[0].kill()  # a job whose process is lost is stopped by its launcher
    job[0].wait()
    finished = {name: path.stat().st_mtime_ns for name, path in done(out).items()}
    assert 8 <= len(finished) < COUNT

    port = free_port()
    for process in [start(arguments, port, i) for i in range(2)]:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors.decode()[-2000:]
    masks = done(out)
    assert sorted(masks) == [f"v{i:02d}" for i in range(COUNT)]
    assert all(len(list(path.glob("*.png"))) == 2 for path in masks.values())
    assert all(masks[name].stat().st_mtime_ns == when for name, when in finished.items())
    assert not list(out.glob(".*.partial"))

"""A run that is stopped, killed or finds its newest checkpoint damaged goes on as if nothing had
happened: the same losses, bit for bit."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.train import toy
from uvos_jax.errors import CheckpointError, ConfigError
from uvos_jax.train.checkpoint import check_same_config
from uvos_jax.train.logging import read_log
from uvos_jax.train.loop import Trainer

STEPS = 60
CONFIG = """
from uvos_jax.config import load_config

def get_config(arg="full"):
    config = load_config("cosnet:tiny")
    config.model.update(
        static_steps=False, block_counts=(1, 1, 1, 1), widths=(4, 8, 8, 8), aspp_depth=8,
        embedding=8, attention_impl="dense", input_size=(33, 33),
    )
    config.data.update(
        size=(33, 33), train=({{"name": "folder", "root": {clips!r}, "group": "video"}},),
        batch_size=4,
    )
    config.data.sampling = "pair"
    config.data.augment.update(scale=(0.8, 1.2), crop=(0.8, 0.8))
    config.optim.ema = 0.9
    config.train.update(total_steps={steps}, checkpoint_every=10)
    return config
"""


def environment(cache):
    """Of a process with one device and the compilation cache all runs here share."""
    return {
        **os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
    }  # fmt: skip


class Runner:
    def __init__(self, folder):
        toy.write_clips(folder / "clips")
        self.config = folder / "small.py"
        self.config.write_text(CONFIG.format(clips=str(folder / "clips"), steps=STEPS))
        self.cache = folder / "cache"

    def start(self, workdir):
        command = [sys.executable, "-m", "uvos_jax.train", f"--config={self.config}"]
        return subprocess.Popen(
            [*command, f"--workdir={workdir}"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(self.cache),
            cwd=Path(__file__).parents[2],
        )  # fmt: skip

    def finish(self, process):
        out, err = process.communicate(timeout=300)
        return SimpleNamespace(code=process.returncode, out=out, err=err)

    def signal_at(self, workdir, step, number):
        """Starts a run and sends it a signal when its log reaches a step."""
        process = self.start(workdir)
        log = workdir / "metrics.jsonl"
        reached = -1
        deadline = time.monotonic() + 300
        while reached < step and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
            rows = read_log(log) if log.exists() else []
            reached = rows[-1]["step"] if rows else -1
        process.send_signal(number)
        return self.finish(process)


def newest_checkpoint(workdir):
    steps = [p for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()]
    return max(steps, key=lambda p: int(p.name))


def damage(checkpoint):
    """Turns one bit in the middle of the largest file of every folder of a checkpoint's arrays.

    A killed run can leave a folder behind that nothing refers to; damage there would go unnoticed.
    """
    for folder in (p for p in (checkpoint / "state").rglob("d") if p.is_dir()):
        file = max(folder.iterdir(), key=lambda p: p.stat().st_size)
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """One run left alone; another stopped, resumed, killed, damaged and resumed again."""
    folder = tmp_path_factory.mktemp("resume")
    runner = Runner(folder)
    alone, troubled = folder / "alone", folder / "troubled"
    first = runner.finish(runner.start(alone))
    assert first.code == 0, first.err
    stopped = runner.signal_at(troubled, 14, signal.SIGTERM)
    saved_by_stop = newest_checkpoint(troubled)
    logged_by_stop = read_log(troubled / "metrics.jsonl")[-1]["step"]
    killed = runner.signal_at(troubled, 34, signal.SIGKILL)
    damaged = newest_checkpoint(troubled)
    damage(damaged)
    last = runner.finish(runner.start(troubled))
    return SimpleNamespace(
        runner=runner, alone=alone, troubled=troubled, first=first, stopped=stopped,
        saved_by_stop=saved_by_stop, logged_by_stop=logged_by_stop, killed=killed,
        damaged=damaged, last=last,
    )  # fmt: skip


def test_a_run_that_was_stopped_killed_and_damaged_repeats_every_loss_bit_for_bit(story):
    assert story.last.code == 0, story.last.err
    alone, troubled = toy.losses(story.alone), toy.losses(story.troubled)
    assert len(alone) == STEPS
    assert alone == troubled
    assert len(set(alone)) > STEPS // 2


def test_final_weights_of_both_runs_are_the_same_bits(story):
    with np.load(story.alone / "weights.npz") as a, np.load(story.troubled / "weights.npz") as b:
        names = [name for name in a.files if name.startswith(("params", "batch_stats"))]
        assert names
        assert all(np.array_equal(a[name], b[name]) for name in names)


def test_sigterm_saves_the_step_it_interrupts_and_exits_with_0(story):
    assert story.stopped.code == 0, story.stopped.err
    assert int(story.saved_by_stop.name) == story.logged_by_stop
    assert 14 <= story.logged_by_stop < STEPS
    assert "run the same command to go on" in story.stopped.out


def test_sigkill_left_no_chance_to_save(story):
    assert story.killed.code == -signal.SIGKILL
    assert "resuming at step" in story.killed.err


def test_a_checkpoint_with_one_wrong_bit_is_passed_over_with_a_warning(story):
    step = int(story.damaged.name)
    (warning,) = [line for line in story.last.err.splitlines() if line.startswith("warning")]
    assert f"checkpoint of step {step} is damaged" in warning
    assert "falling back to the one before it" in warning
    (resumed,) = [line for line in story.last.err.splitlines() if line.startswith("resuming")]
    assert int(resumed.split()[3]) < step


def test_messages_appear_once_and_without_logger_names(story):
    for run in (story.first, story.stopped, story.last):
        assert "INFO:" not in run.err
        assert run.err.count("stage 'alternating'") <= 1
        lines = [line for line in run.err.splitlines() if line.startswith("step ")]
        assert len(lines) == len(set(lines))


def test_the_first_estimate_of_the_remaining_time_leaves_compiling_out(story):
    row = read_log(story.alone / "metrics.jsonl")[0]
    assert row["compile_seconds"] > row["step_seconds"]
    first = next(line for line in story.first.err.splitlines() if line.startswith("step 1/"))
    hours, minutes, seconds = first.rpartition("ETA ")[2].split(":")
    eta = 3600 * int(hours) + 60 * int(minutes) + int(seconds)
    assert eta <= row["step_seconds"] * STEPS + 1


# ----- in this process, on a toy --------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished toy run with two checkpoints, at steps 2 and 4."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    run_toy(workdir).run()
    return workdir


def run_toy(workdir, **changes):
    settings = toy.config(train__checkpoint_every=2, **changes)
    inputs = {"default": toy.Batches()}
    return Trainer(settings, workdir, inputs=inputs, system=toy.Toy(), progress=False)


def copy(source, target):
    import shutil

    shutil.copytree(source, target)
    return target


HARM = {
    "truncated": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "emptied": lambda file: file.write_bytes(b""),
    "removed": lambda file: file.unlink(),
}


@pytest.mark.parametrize("how", HARM)
@pytest.mark.parametrize("part", ["state/manifest.ocdbt", "state/_METADATA", "data", "config"])
def test_any_damaged_part_of_the_newest_checkpoint_is_noticed(
    finished, tmp_path, part, how, caplog
):
    workdir = copy(finished, tmp_path / "run")
    path = workdir / "checkpoints" / "4" / part
    if path.is_dir():
        path = next(p for p in path.iterdir() if p.name != "commit_success.txt")
    HARM[how](path)
    trainer = run_toy(workdir)
    with caplog.at_level(logging.WARNING, logger="uvos_jax"):
        state = trainer.start()
    trainer.checkpoints.close()
    assert int(state.step) == 2
    assert trainer.inputs["default"].step == 2
    assert "checkpoint of step 4 is damaged" in caplog.text


def test_with_every_checkpoint_damaged_the_run_refuses_to_start_over(finished, tmp_path):
    workdir = copy(finished, tmp_path / "run")
    for step in ("2", "4"):
        (workdir / "checkpoints" / step / "state" / "manifest.ocdbt").write_bytes(b"")
    trainer = run_toy(workdir)
    with pytest.raises(CheckpointError, match=r"none of the checkpoints .* can be read"):
        trainer.start()
    trainer.checkpoints.close()


def test_resuming_with_another_configuration_names_the_fields(finished, tmp_path):
    trainer = run_toy(copy(finished, tmp_path / "run"), optim__lr=0.25, seed=7)
    with pytest.raises(ConfigError) as caught:
        trainer.start()
    trainer.checkpoints.close()
    assert "optim.lr was 0.5, is 0.25" in str(caught.value)
    assert "seed was 0, is 7" in str(caught.value) or "seed was 1234, is 7" in str(caught.value)
    assert "new --workdir" in str(caught.value)


def test_a_finished_run_can_be_made_longer(finished, tmp_path):
    longer = run_toy(copy(finished, tmp_path / "run"), train__total_steps=6).run()
    assert longer["step"] == 6
    straight = run_toy(tmp_path / "straight", train__total_steps=6).run()
    assert straight["finished"]
    assert toy.losses(tmp_path / "run") == toy.losses(tmp_path / "straight")


def test_a_finished_run_does_nothing_more(finished, tmp_path):
    workdir = copy(finished, tmp_path / "run")
    before = (workdir / "metrics.jsonl").read_text()
    summary = run_toy(workdir).run()
    assert summary["finished"]
    assert (workdir / "metrics.jsonl").read_text() == before


def test_a_line_cut_short_by_a_kill_is_dropped_from_the_log(finished, tmp_path):
    workdir = copy(finished, tmp_path / "run")
    log = workdir / "metrics.jsonl"
    log.write_text(log.read_text() + '{"step": 5, "los')
    run_toy(workdir, train__total_steps=6).run()
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [1, 2, 3, 4, 5, 6]


def test_fields_that_do_not_change_the_computation_may_differ():
    saved = {"train": {"log_every": 1, "keep_latest": 2}, "optim": {"lr": 0.1}}
    check_same_config(saved, {"train": {"log_every": 5, "keep_latest": 9}, "optim": {"lr": 0.1}})
    with pytest.raises(ConfigError, match=r"optim\.lr was 0\.1, is 0\.2"):
        check_same_config(saved, {**saved, "optim": {"lr": 0.2}})

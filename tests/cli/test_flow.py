"""`uvos flow` and tools/compute_flow.py: files, resuming, refusals."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import scene, write_frames, write_mp4
from uvos_jax.data.flow_files import read_flow

TOOL = Path(__file__).resolve().parents[2] / "tools" / "compute_flow.py"
PROVIDER = ("--provider", "lk:levels=1,warps=1,radius=2")


@pytest.fixture(scope="module")
def compute_flow():
    spec = importlib.util.spec_from_file_location("compute_flow", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_video_becomes_flow_files_and_pictures(tmp_path, uvos_command):
    video = write_mp4(tmp_path / "clip.mp4", scene(3, (36, 50)))
    out = tmp_path / "flow"
    code, text, _ = uvos_command("flow", video, "--out", out, *PROVIDER)
    assert code == 0
    assert "clip: 2 flow fields" in text
    assert sorted(p.name for p in (out / "clip").iterdir()) == ["00000.flo", "00001.flo"]
    assert read_flow(out / "clip" / "00000.flo").shape == (36, 50, 2)
    assert np.asarray(Image.open(out / "color" / "clip" / "00001.png")).shape == (36, 50, 3)
    assert json.loads((out / "flow.json").read_text())["direction"] == "forward"


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path, uvos_command):
    folder = write_frames(tmp_path / "walk", scene(4, (20, 30)))
    out = tmp_path / "flow"
    command = ("flow", folder, "--out", out, *PROVIDER, "--direction", "backward", "--no-color")
    assert uvos_command(*command)[0] == 0
    names = ["00001.flo", "00002.flo", "00003.flo"]
    assert sorted(p.name for p in (out / "walk").iterdir()) == names
    kept = (out / "walk" / "00001.flo").stat().st_mtime_ns
    (out / "walk" / "00002.flo").unlink()
    code, text, _ = uvos_command(*command)
    assert code == 0
    assert "1 flow fields" in text
    assert "2 were there" in text
    assert (out / "walk" / "00001.flo").stat().st_mtime_ns == kept


@pytest.mark.parametrize(
    "options,message",
    [
        (("--provider", "horn"), "flow provider 'horn' is unknown"),
        ((*PROVIDER, "--direction", "backward"), "holds flow with direction 'forward'"),
        (("--provider", "lk:levels=1"), "holds flow with provider"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(tmp_path, uvos_command, options, message):
    folder = write_frames(tmp_path / "walk", scene(2, (20, 30)))
    out = tmp_path / "flow"
    assert uvos_command("flow", folder, "--out", out, *PROVIDER, "--no-color")[0] == 0
    code, _, error = uvos_command("flow", folder, "--out", out, *options)
    assert code == 2
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_a_single_frame_has_no_flow(tmp_path, uvos_command):
    folder = write_frames(tmp_path / "still", scene(1, (20, 30)))
    code, _, error = uvos_command("flow", folder, "--out", tmp_path / "flow", *PROVIDER)
    assert code == 2
    assert "one frame only" in error


def test_a_data_set_is_computed_by_shards_and_resumed(tmp_path, compute_flow, capsys):
    for name in ("a", "b", "c"):
        write_frames(tmp_path / "frames" / name, scene(3, (20, 30)))
    out = tmp_path / "flow"
    command = [str(tmp_path / "frames"), "--out", str(out), *PROVIDER, "--processes", "1"]
    assert compute_flow.main([*command, "--shard", "0/2"]) == 0
    assert sorted(p.name for p in out.iterdir() if p.is_dir()) == ["a", "c"]
    assert compute_flow.main(command) == 0
    text = capsys.readouterr().out
    assert "a: 0 written, 2 were there" in text
    assert "b: 2 written" in text
    assert read_flow(out / "b" / "00001.npz").shape == (20, 30, 2)
    assert compute_flow.main([*command, "--shard", "2/2"]) == 2
    assert "0 <= I < N" in capsys.readouterr().err


@pytest.mark.slow
def test_sequences_are_shared_between_processes(tmp_path, compute_flow, capsys):
    for name in ("a", "b"):
        write_frames(tmp_path / "frames" / name, scene(2, (20, 30)))
    out = tmp_path / "flow"
    command = [str(tmp_path / "frames"), "--out", str(out), *PROVIDER, "--processes", "2"]
    assert compute_flow.main(command) == 0
    assert "2 flow fields" in capsys.readouterr().out
    assert read_flow(out / "a" / "00000.npz").shape == (20, 30, 2)

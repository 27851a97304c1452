"""Weights and small videos that the command tests share."""

import av
import jax
import numpy as np
import pytest
from PIL import Image

import uvos_jax as uvos
from uvos_jax.convert.variables import save_variables


def scene(count, size, seed=0):
    """A bright square that moves over noise: frames uint8 `[T,H,W,3]`."""
    H, W = size
    frames = np.random.default_rng(seed).integers(0, 90, (count, H, W, 3)).astype(np.uint8)
    for t, frame in enumerate(frames):
        x = (3 + t) % max(W - 8, 1)
        frame[H // 4 : H // 4 + H // 3, x : x + 8] = (220, 60, 40)
    return frames


def write_frames(folder, frames, suffix=".png"):
    folder.mkdir(parents=True)
    for t, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{t:05d}{suffix}")
    return folder


def write_mp4(path, frames):
    """Encodes with the even sizes that 4:2:0 chroma asks for."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A file with the tiny COSNet, not trained."""
    config = uvos.load_config("cosnet:tiny")
    variables = uvos.build(config).init(jax.random.key(0))
    path = tmp_path_factory.mktemp("weights") / "tiny.npz"
    save_variables(variables, path, config=config)
    return path


@pytest.fixture
def uvos_command(capsys):
    """Runs `uvos ARGS` in this process; returns exit code, stdout and stderr."""
    from uvos_jax.cli.main import main

    def call(*arguments):
        code = main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def refused(uvos_command):
    """Runs `uvos ARGS`, which must end with code 2 and one line; returns that line."""

    def call(*arguments):
        code, _, err = uvos_command(*arguments)
        lines = [line for line in err.splitlines() if line.strip()]
        assert code == 2, (code, err)
        assert len(lines) == 1, err
        assert lines[0].startswith("error: "), err
        return lines[0]

    return call

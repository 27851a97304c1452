"""Exported weights and programs answer as the system does."""

import io
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest

import uvos_jax as uvos
from uvos_jax import export
from uvos_jax.convert.variables import load_variables
from uvos_jax.errors import CheckpointError


@pytest.fixture(scope="module")
def tiny():
    config = uvos.load_config("cosnet:tiny")
    system = uvos.build(config)
    variables = system.init(jax.random.key(0))
    # Statistics of normalisation are not learnt yet: without this, activations grow to hundreds
    # and rounding shows in the fourth digit of a probability.
    conv = variables["params"]["encoder"]["resnet"]["conv1"]
    conv["kernel"] = 0.01 * conv["kernel"]
    variables.meta.update(system="cosnet", config=config.to_dict())
    return system, variables


@pytest.fixture(scope="module")
def program(tiny, tmp_path_factory):
    pytest.importorskip("flatbuffers", reason="programs are serialised with flatbuffers")
    path = tmp_path_factory.mktemp("export") / "tiny.stablehlo"
    return export.to_stablehlo(*tiny, path, platforms=("cpu",))


def frames_of(tiny, batch, count, seed=0):
    H, W = tiny[0].spec.input_size
    return np.random.default_rng(seed).integers(0, 256, (batch, count, H, W, 3)).astype(np.uint8)


@pytest.mark.parametrize(
    "write, name", [(export.to_numpy, "w.npz"), (export.to_safetensors, "w.safetensors")]
)
def test_plain_arrays_come_back(tiny, tmp_path, write, name):
    loaded = load_variables(write(tiny[1], tmp_path / name))
    jax.tree.map(np.testing.assert_array_equal, dict(loaded), dict(tiny[1]))
    with pytest.raises(CheckpointError, match="must end in"):
        write(tiny[1], tmp_path / "w.bin")


@pytest.mark.parametrize("batch, length", [(1, 1), (2, 3)])
def test_a_program_of_open_size_equals_the_system(tiny, program, batch, length):
    system, variables = tiny
    references = {"frames": frames_of(tiny, batch, system.spec.num_references)}
    chunk = {"frames": frames_of(tiny, batch, length, seed=1)}
    loaded = export.load_stablehlo(program)
    _, got = loaded.predict(loaded.prepare(references), chunk)

    @jax.jit
    def whole(references, chunk):
        return system.predict(variables, system.prepare(variables, references), chunk)[1]

    np.testing.assert_allclose(got, whole(references, chunk), atol=5e-5)
    assert got.shape == (batch, length, *system.spec.input_size)


def test_a_program_of_open_size_remembers_frames_and_odds(tmp_path):
    """The state of the packaged network: the previous frame, whether there was one, log-odds."""
    pytest.importorskip("flatbuffers", reason="programs are serialised with flatbuffers")
    overrides = "angle_mode=residual,flow_direction=both,edges=true,edge_dropout=0.5,memory=0.5"
    system = uvos.build(f"mpnet:tiny,{overrides},evidence=true,evidence_full=0.2")
    variables = system.init(jax.random.key(0))
    file = export.to_stablehlo(system, variables, tmp_path / "m.stablehlo", platforms=("cpu",))
    rng = np.random.default_rng(2)
    chunk = {
        "frames": rng.integers(0, 256, (2, 3, 64, 64, 3)).astype(np.uint8),
        "flow": rng.standard_normal((2, 3, 64, 64, 4)).astype(np.float32),
    }
    loaded, state = export.load_stablehlo(file), system.init_state(variables, 2, (64, 64))
    _, expected = jax.jit(system.predict)(variables, state, chunk)
    got = loaded.predict(state, chunk)[1]
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(got, expected, atol=5e-5)


def test_jax_alone_runs_a_program(tiny, program, tmp_path):
    count, (H, W) = tiny[0].spec.num_references, tiny[0].spec.input_size
    code = f"""
import io, sys, zipfile, jax, jax.export, numpy as np
with zipfile.ZipFile({str(program)!r}) as file:
    weights = dict(np.load(io.BytesIO(file.read("weights.npz"))))
    prepare, predict = (jax.export.deserialize(bytearray(file.read(name))).call
                        for name in ("prepare", "predict"))
state = prepare(weights, {{"frames": np.zeros((1, {count}, {H}, {W}, 3), np.uint8)}})
state, probs = predict(weights, state, {{"frames": np.zeros((1, 1, {H}, {W}, 3), np.uint8)}})
assert "uvos_jax" not in sys.modules
print(probs.shape)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=300
    )
    assert done.stdout.strip() == str((1, 1, H, W)), done.stderr


def test_a_damaged_program_is_refused(program, tmp_path):
    cut = tmp_path / "cut.stablehlo"
    cut.write_bytes(program.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="no exported predictor, or damaged"):
        export.load_stablehlo(cut)
    other = tmp_path / "other.stablehlo"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a.txt", "a")
    other.write_bytes(buffer.getvalue())
    with pytest.raises(CheckpointError, match="no exported predictor, or damaged"):
        export.load_stablehlo(other)

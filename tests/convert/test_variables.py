"""Weight files: what is written comes back, what does not fit is refused."""

import errno
import json

import jax
import numpy as np
import pytest

import uvos_jax as uvos
from uvos_jax.convert import variables as files
from uvos_jax.convert.variables import load_variables, merge_strict, save_variables
from uvos_jax.errors import CheckpointError
from uvos_jax.types import Variables


def small():
    rng = np.random.default_rng(0)
    tree = {
        "params": {
            "encoder": {"conv": {"kernel": rng.normal(size=(3, 3, 2, 4)).astype(np.float32)}},
            "head": {"bias": np.arange(4, dtype=np.float32)},
        },
        "batch_stats": {"encoder": {"bn": {"mean": np.zeros(4, np.float32)}}},
    }
    return Variables(tree, meta={"system": "cosnet", "note": "a test"})


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_arrays_and_facts_come_back(tmp_path, suffix):
    path = save_variables(small(), tmp_path / f"w{suffix}", extra={"command": "uvos train"})
    loaded = load_variables(path)
    jax.tree.map(np.testing.assert_array_equal, dict(loaded), dict(small()))
    assert loaded.meta["command"] == "uvos train"
    assert loaded.meta["note"] == "a test"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_half_precision_files_come_back_as_float32_within_a_half_ulp(tmp_path, suffix):
    path = save_variables(small(), tmp_path / f"w{suffix}", storage_dtype="float16")
    whole = save_variables(small(), tmp_path / f"whole{suffix}")
    loaded = load_variables(path)
    for (name, a), (_, b) in zip(files.flatten(loaded), files.flatten(small()), strict=True):
        assert a.dtype == np.float32, name
        np.testing.assert_allclose(a, b, rtol=2**-11, atol=2**-25)
    assert path.stat().st_size < whole.stat().st_size


def test_numpy_alone_reads_a_file(tmp_path):
    path = save_variables(small(), tmp_path / "w.npz")
    with np.load(path) as file:
        about = json.loads(str(file["metadata"]))
        names = sorted(n for n in file.files if n != "metadata")
    assert about["system"] == "cosnet"
    assert names == [
        "batch_stats/encoder/bn/mean", "params/encoder/conv/kernel", "params/head/bias",
    ]  # fmt: skip


def test_the_configuration_travels_with_the_weights(tmp_path):
    config = uvos.load_config("cosnet:tiny")
    loaded = load_variables(save_variables(small(), tmp_path / "w.npz", config=config))
    assert loaded.meta["system"] == "cosnet"
    assert tuple(loaded.meta["config"]["model"]["input_size"]) == config.model.input_size


def damaged(kind, path):
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    elif kind == "text":
        path.write_text("no weights")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "other arrays":
        np.savez(path, x=np.zeros(3))


@pytest.mark.parametrize(
    "kind, message",
    [
        ("cut", "damaged"),
        ("text", "damaged or not"),
        ("empty", "damaged or not"),
        ("other arrays", "holds no uvos_jax weights"),
    ],
)
def test_damaged_files_are_named(tmp_path, kind, message):
    path = save_variables(small(), tmp_path / "w.npz")
    damaged(kind, path)
    with pytest.raises(CheckpointError, match=message) as error:
        load_variables(path)
    assert "w.npz" in str(error.value)


@pytest.mark.parametrize(
    "name, message",
    [("w.pth", "uvos convert"), ("folder", "no training checkpoint"), ("none.npz", "do not exist")],
)
def test_other_things_are_refused_with_advice(tmp_path, name, message):
    (tmp_path / "w.pth").write_bytes(b"PK")
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match=message):
        load_variables(tmp_path / name)


def test_writing_refuses_other_suffixes(tmp_path):
    with pytest.raises(CheckpointError, match=r"use the suffix \.npz or \.safetensors"):
        save_variables(small(), tmp_path / "w.pkl")


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = save_variables(small(), tmp_path / "w.npz")
    before = path.read_bytes()

    def full(file, **arrays):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        save_variables(small(), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["w.npz"]


def test_strict_merging_takes_what_fits_exactly():
    merged, report = merge_strict(small(), small())
    jax.tree.map(np.testing.assert_array_equal, merged, dict(small()))
    assert report == {"missing": [], "unused": [], "mismatched": []}


def changed(kind):
    tree = small()
    if kind == "missing":
        del tree["params"]["head"]
    elif kind == "unused":
        tree["params"]["extra"] = {"bias": np.zeros(1, np.float32)}
    else:
        tree["params"]["head"]["bias"] = np.zeros(5, np.float32)
    return tree


@pytest.mark.parametrize(
    "kind, message",
    [
        ("missing", "1 missing (such as params/head/bias)"),
        ("unused", "1 unused (such as params/extra/bias)"),
        ("mismatched", "params/head/bias is (5,), expected (4,)"),
    ],
)
def test_a_partial_fit_is_refused_or_taken_on_request(kind, message):
    with pytest.raises(CheckpointError) as error:
        merge_strict(small(), changed(kind))
    assert message in str(error.value)
    merged, report = merge_strict(small(), changed(kind), strict=False)
    assert len(report[kind]) == 1
    assert sorted(dict(files.flatten(merged))) == sorted(dict(files.flatten(small())))


def test_weights_of_another_network_are_refused_even_when_not_strict():
    other = {"params": {"x": np.zeros(1, np.float32)}}
    with pytest.raises(CheckpointError, match="do not fit"):
        merge_strict(small(), other, strict=False)

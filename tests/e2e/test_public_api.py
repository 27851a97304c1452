"""What a user imports and installs: light imports, names that resolve, a wheel with configs."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import uvos_jax as uvos

ROOT = Path(__file__).resolve().parents[2]

HEAVY = ("tensorflow", "tensorflow_datasets", "av", "cv2", "torch", "grain", "orbax", "flax")


def test_importing_is_light():
    code = (
        "import time, json, sys, jax; t = time.perf_counter(); import uvos_jax; "
        "dt = time.perf_counter() - t; print(json.dumps([dt, sorted(sys.modules)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    seconds, modules = json.loads(done.stdout)
    assert not set(HEAVY) & set(modules)
    assert seconds < 1.0


def test_every_public_name_resolves():
    for name in uvos.__all__:
        assert getattr(uvos, name) is not None
    assert callable(uvos.evaluate)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        uvos.nonsense


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("hatchling", reason="hatchling builds the wheel")
    out = tmp_path_factory.mktemp("wheel")
    source = out / "source"
    ignored = shutil.ignore_patterns(".git", "__pycache__", ".*cache", "tests")
    shutil.copytree(ROOT, source, ignore=ignored)
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)],
        cwd=source, check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    (path,) = out.glob("*.whl")
    return path


def test_the_wheel_carries_configs_and_packaged_weights(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    configs = {p.name for p in (ROOT / "configs").glob("*.py")}
    assert {f"uvos_jax/_configs/{name}" for name in configs} <= names
    assert "uvos_jax/assets/default.npz" in names
    assert not any(name.startswith(("tests/", "configs/")) for name in names)
    assert Path(wheel).stat().st_size < 12e6


def test_configs_are_found_without_a_checkout(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "import sys; sys.path.insert(0, 'site'); import uvos_jax; "
        "assert uvos_jax.__file__.startswith(sys.argv[1]); "
        "print(uvos_jax.load_config('cosnet:tiny').model.name)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.stdout.strip() == "cosnet", done.stderr

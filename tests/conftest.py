"""Test set-up: eight simulated CPU devices, run-time shape checks, a quiet tfds."""

import os
from importlib.metadata import version

os.environ.setdefault("JAX_PLATFORMS", "cpu")
_flags = os.environ.get("XLA_FLAGS", "").split()
# The tests compile more than they compute: with little optimisation they take two thirds, and
# with the older of two code generators four fifths of that.
_wanted = ["--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=1"]
if version("jaxlib").startswith("0.10."):  # XLA stops at flags that it does not know
    _wanted.append("--xla_cpu_use_fusion_emitters=false")
for _flag in _wanted:
    if not any(given.startswith(_flag.partition("=")[0]) for given in _flags):
        _flags.append(_flag)
os.environ["XLA_FLAGS"] = " ".join(_flags)

# jaxtyping annotations of the array layers are checked at run time in tests only.
from jaxtyping import install_import_hook

_hook = install_import_hook(
    ["uvos_jax.ops", "uvos_jax.modules", "uvos_jax.losses", "uvos_jax.metrics"],
    "beartype.beartype",
)

import gc
import shutil
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest

#: Memory maps and bytes of a process above which compiled programs are dropped between files.
MOST_MAPS, MOST_MEMORY = 20_000, 3 * 2**30


#: Tests of the registry that compile much, and the systems that always run them;
#: for the others they are `slow`.
LONG = (
    "test_loss_on_eight_devices_equals_one_device",
    "test_bfloat16_compute_keeps_float32_parameters_and_loss",
    "test_loss_and_gradient_are_finite_in_every_phase",
    "test_frames_without_annotation_do_not_change_the_loss",
    "test_parameters_are_float32_and_named_by_strings",
    "test_a_causal_system_fed_frame_by_frame_equals_one_call",
)
ALWAYS = ("cosnet", "pdb_convlstm", "mpnet", "sfmnet")


def pytest_configure(config):
    """Workers and the commands they start share what they compile, for this run only."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        config.compiled = tempfile.mkdtemp(prefix="uvos_jax_compiled_")
        os.environ["JAX_COMPILATION_CACHE_DIR"] = config.compiled
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def pytest_unconfigure(config):
    _hook.uninstall()
    if hasattr(config, "compiled"):
        shutil.rmtree(config.compiled, ignore_errors=True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Marks the longest tests of the registry as `slow` for most systems."""
    for item in items:
        if item.originalname in LONG and item.callspec.params["name"] not in ALWAYS:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="module", autouse=True)
def _forget_compiled_programs():
    """Compiled programs hold memory, and memory maps, of which a process may have some 65 000."""
    yield
    process = Path("/proc/self")
    if not (process / "statm").exists():
        return
    resident = int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    maps = (process / "maps").read_bytes().count(b"\n")
    if maps > MOST_MAPS or resident > MOST_MEMORY:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def rng():
    """A seeded numpy generator."""
    return np.random.default_rng(0)

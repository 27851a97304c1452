"""Test set-up: eight simulated CPU devices, run-time shape checks, a quiet tfds."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
_flags = os.environ.get("XLA_FLAGS", "")
if "xla_force_host_platform_device_count" not in _flags:
    os.environ["XLA_FLAGS"] = f"{_flags} --xla_force_host_platform_device_count=8".strip()

# jaxtyping annotations of the array layers are checked at run time in tests only.
from jaxtyping import install_import_hook

_hook = install_import_hook(
    ["uvos_jax.ops", "uvos_jax.modules", "uvos_jax.losses", "uvos_jax.metrics"],
    "beartype.beartype",
)

import numpy as np
import pytest


def pytest_unconfigure(config):
    _hook.uninstall()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """With `--dist loadgroup` a file stays on one worker; of the registry's tests, a system."""
    for item in items:
        group = item.nodeid.partition("::")[0]
        if group.endswith("test_registry_systems.py"):
            group += item.callspec.params["name"]
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture
def rng():
    """A seeded numpy generator."""
    return np.random.default_rng(0)

"""The lazy registry of systems."""

import subprocess
import sys

import pytest

from uvos_jax import registry
from uvos_jax.errors import ConfigError, UnsupportedError, UvosError


def test_all_eighteen_systems_are_listed_in_order():
    names = registry.list_systems()
    assert len(names) == 18
    assert list(names) == sorted(names)


def test_listing_imports_no_system_and_no_flax():
    code = (
        "import sys, uvos_jax; uvos_jax.list_systems();"
        "bad = [m for m in sys.modules if m.startswith('uvos_jax.systems') or m == 'flax'];"
        "sys.exit(repr(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_unknown_system_suggests_near_names():
    with pytest.raises(ConfigError, match="did you mean 'cosnet'"):
        registry.get("cosnett")


def test_unknown_system_without_near_name_lists_all():
    with pytest.raises(ConfigError, match="matnet"):
        registry.check_name("zzzzzz")


def test_second_class_under_one_name_is_refused(monkeypatch):
    monkeypatch.setattr(registry, "_CLASSES", {})
    registry.register("cosnet")(type("First", (), {}))
    with pytest.raises(ConfigError, match="registered twice"):
        registry.register("cosnet")(type("Second", (), {}))


def test_known_system_without_code_is_unsupported(monkeypatch):
    monkeypatch.setitem(registry.CATALOGUE, "no_such_code", ("X", "y"))
    with pytest.raises(UnsupportedError, match="not part of this version"):
        registry.get("no_such_code")


def test_every_error_is_a_uvos_error():
    assert issubclass(ConfigError, UvosError)
    assert issubclass(UnsupportedError, UvosError)

"""Converting official weights of any system, strictly."""

from __future__ import annotations

import importlib
import importlib.util
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from uvos_jax import config as configs
from uvos_jax import registry
from uvos_jax.convert.readers import Source, read_official
from uvos_jax.convert.table import NameTable, Report
from uvos_jax.convert.variables import flatten, merge_strict, spec_to_dict, unflatten
from uvos_jax.errors import CheckpointError, ConfigError, UnsupportedError
from uvos_jax.types import Variables


def convert(
    system_id: str,
    source: Source,
    config: ConfigDict | str | None = None,
    *,
    part: str | None = None,
) -> Variables:
    """Official weights as variables of a system.

    Args:
      system_id: `"cosnet"`, ...
      source: path of an official file, several paths, or a mapping official name -> array.
      config: configuration the weights belong to (or its name, `"cosnet:tiny"`); default: the
        system's `full` one, or the one its table names as `CONFIG`.
      part: convert a file that holds only a part of the network, for example `"encoder"`; the
        result is for `model.init_from` with `model.init_strict=False`.

    Returns:
      variables (numpy float32) whose `.meta` holds the configuration, the spec and the source.

    Raises:
      CheckpointError: the file cannot be read, or a name is missing, unknown or misshapen.
      ConfigError: unknown system, configuration or part.
      UnsupportedError: the system has no table.

    Example:
      >>> variables = convert("cosnet", "co_attention_davis_43.pth")
      >>> save_variables(variables, "cosnet.npz")
    """
    variables, report = convert_with_report(system_id, source, config, part=part)
    check_complete(report, system_id, source, part)
    return variables


def check_complete(report: Report, system_id: str, source: Source, part: str | None) -> None:
    """Raises `CheckpointError` with examples unless everything fitted."""
    if report.complete:
        return
    name = f"{_describe(source)} as {part or 'weights'} of {system_id}"
    raise CheckpointError(
        f"cannot convert {name}: {'; '.join(report.problems())}; {len(report.used)} names "
        "fitted; pass the configuration the weights were trained with, or another file"
    )


def convert_with_report(
    system_id: str,
    source: Source,
    config: ConfigDict | str | None = None,
    *,
    part: str | None = None,
) -> tuple[Variables, Report]:
    """As `convert`, but returns what fits and a report instead of refusing a partial fit."""
    module = _table_module(system_id)
    config = _config(system_id, config, module)
    arrays = getattr(module, "load", read_official)(source)
    system = configs.build(config)
    targets = dict(flatten(jax.eval_shape(system.init, jax.random.key(0))))
    table = _table(module, system_id, system.config, part)
    if part is not None:
        listed = {path for entry in table.entries for path in entry.paths}
        targets = {path: target for path, target in targets.items() if path in listed}
    ours, report = table.to_ours(arrays, targets)
    meta = {
        "system": system_id,
        "config": config.to_dict(),
        "spec": spec_to_dict(system.spec),
        "source": _describe(source),
    }
    if part is not None:
        meta["part"] = part
    return Variables(unflatten(ours), meta=meta), report


def to_official(
    system_id: str, variables: Variables, config: ConfigDict | str | None = None
) -> dict[str, np.ndarray]:
    """The inverse of `convert`: official name to array, for use in the authors' code.

    Args:
      config: default: the one the variables carry, else the system's `full` one.

    Raises:
      CheckpointError: a parameter is missing.
    """
    module = _table_module(system_id)
    stored = getattr(variables, "meta", {}).get("config")
    if config is None and stored:
        config = configs.from_weights(stored)
    system = configs.build(_config(system_id, config, module))
    return _table(module, system_id, system.config, None).to_official(dict(flatten(variables)))


def build_for(variables: Variables, system_id: str) -> Any:
    """The system that `variables` belong to, from the configuration they carry.

    Raises:
      CheckpointError: they belong to another system, carry no configuration, or do not fit theirs.
    """
    registry.check_name(system_id)
    stored = getattr(variables, "meta", {}).get("config")
    if not stored:
        raise CheckpointError(
            "the weights hold no configuration, so their system cannot be built: save them with "
            "save_variables(variables, path, config=config)"
        )
    config = configs.from_weights(stored)
    if config.model.name != system_id:
        raise CheckpointError(
            f"the weights belong to {config.model.name!r}, not to {system_id!r}: name that system "
            "or give other weights"
        )
    system = configs.build(config)
    merge_strict(jax.eval_shape(system.init, jax.random.key(0)), variables)
    return system


def table_of(system_id: str) -> Any:
    """The module with a system's names, `uvos_jax.convert.<id>`; None if it has none.

    Raises:
      ConfigError: unknown system.
    """
    registry.check_name(system_id)
    name = f"uvos_jax.convert.{system_id}"
    return importlib.import_module(name) if importlib.util.find_spec(name) else None


def _table_module(system_id: str) -> Any:
    module = table_of(system_id)
    if module is None:
        raise UnsupportedError(
            f"{system_id} has no table of official names (uvos_jax.convert.{system_id}): no "
            "official weights are published for it, or it is not part of this version"
        )
    return module


def _table(module: Any, system_id: str, config: Any, part: str | None) -> NameTable:
    if part is None:
        return module.table(config)
    parts = getattr(module, "PARTS", {})
    if part not in parts:
        known = f"use one of {', '.join(parts)}" if parts else "it has no parts; leave it out"
        raise ConfigError(f"{system_id} has no part {part!r} to convert: {known}")
    return parts[part](config)


def _config(system_id: str, config: ConfigDict | str | None, module: Any) -> ConfigDict:
    if config is None or isinstance(config, str):
        config = configs.load_config(config or getattr(module, "CONFIG", system_id))
    if config.model.name != system_id:
        raise ConfigError(
            f"the configuration is for {config.model.name!r}, not {system_id!r}: pass one of "
            f"{system_id}, for example {system_id + ':full'!r}"
        )
    return config


def _describe(source: Source) -> str:
    if isinstance(source, (str, os.PathLike)):
        return Path(source).name
    if isinstance(source, dict) or hasattr(source, "keys"):
        return f"a mapping of {len(source)} arrays"
    return " + ".join(Path(path).name for path in source)

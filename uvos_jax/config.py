"""Finding, loading and checking configurations; building a system from one.

Configurations are Python files in the top-level `configs/` folder of a checkout, shipped in the
wheel as `uvos_jax/_configs`. `load_config("cosnet:tiny")` works with both.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from uvos_jax import registry
from uvos_jax.errors import ConfigError


def config_folder() -> Path:
    """The folder of config files: the checkout's `configs/`, else the installed copy."""
    package = Path(__file__).resolve().parent
    installed, checkout = package / "_configs", package.parent / "configs"
    for folder in (checkout, installed):
        if (folder / "_base.py").is_file():
            return folder
    raise ConfigError(
        f"no configs found: neither {checkout} nor {installed} holds _base.py; reinstall uvos_jax"
    )


def list_configs() -> tuple[str, ...]:
    """Names of the config files (without `.py`), private ones left out."""
    return tuple(sorted(p.stem for p in config_folder().glob("*.py") if not p.stem.startswith("_")))


def list_variants(name: str) -> tuple[str, ...]:
    """Variants of a system's configuration: its file's `VARIANTS`."""
    return tuple(_import_config_file(config_folder() / f"{name}.py").VARIANTS)


def _import_config_file(path: Path) -> Any:
    name = f"_uvos_config_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    folder = str(path.parent)
    sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(folder)
    return module


def load_config(name: str) -> ConfigDict:
    """Loads a configuration by `"cosnet"`, `"cosnet:tiny"`, `"cosnet:tiny,backbone=..."` or path.

    Raises:
      ConfigError: the file or the variant does not exist, or an override names an unknown field.
    """
    stem, _, arg = name.partition(":")
    if stem.endswith(".py"):
        path = Path(stem)
        if not path.is_file() and (config_folder() / path.name).is_file():
            path = config_folder() / path.name
    else:
        path = config_folder() / f"{stem}.py"
    if not path.is_file():
        near = difflib.get_close_matches(Path(stem).stem, list_configs(), n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ConfigError(
            f"config {stem!r} not found; {hint} available: {', '.join(list_configs())}"
        )
    try:
        config = _import_config_file(path).get_config(arg or "full")
    except ConfigError:
        raise
    except (ValueError, KeyError, AttributeError) as error:
        message = error.args[0] if error.args else error
        raise ConfigError(f"config {name!r}: {message}") from error
    validate(config)
    return config


def override(config: ConfigDict, assignments: dict[str, Any]) -> ConfigDict:
    """Sets dotted keys (`{"optim.lr": "1e-3"}`) in place; text is read as a Python literal.

    Raises:
      ConfigError: unknown key (near names are suggested) or a value of another type.
    """
    for key, value in assignments.items():
        node: Any = config
        *parents, leaf = key.split(".")
        for part in (*parents, leaf):
            if not isinstance(node, ConfigDict) or part not in node:
                known = list(node) if isinstance(node, ConfigDict) else []
                near = difflib.get_close_matches(part, known, n=2, cutoff=0.4)
                hint = (
                    f"did you mean {' or '.join(map(repr, near))}?" if near else f"it has {known}"
                )
                raise ConfigError(f"config has no field {key!r}: no {part!r} there; {hint}")
            parent, node = node, node[part]
        current = node
        if isinstance(value, str) and not isinstance(current, str):
            try:
                value = ast.literal_eval(value)
            except (ValueError, SyntaxError):
                raise ConfigError(
                    f"config field {key}: cannot read {value!r} as {type(current).__name__} "
                    f"(the default is {current!r})"
                ) from None
        if isinstance(current, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if isinstance(value, list):
            value = tuple(value)
        with parent.unlocked():
            try:
                parent[leaf] = value
            except TypeError:
                raise ConfigError(
                    f"config field {key}: expected {type(current).__name__} like {current!r}, "
                    f"got {value!r}"
                ) from None
    return config


def validate(config: ConfigDict) -> None:
    """Raises `ConfigError` for values that contradict each other, before any device work."""
    for section in ("model", "data", "optim", "train", "mesh", "predict"):
        if section not in config:
            raise ConfigError(f"config lacks the section {section!r}: start from get_base_config()")
    registry.check_name(config.model.name)
    if config.compute_dtype not in ("float32", "bfloat16"):
        raise ConfigError(
            f"compute_dtype {config.compute_dtype!r} is unknown: use 'float32' or 'bfloat16'"
        )
    positive = {
        "data.batch_size": config.data.batch_size,
        "data.clip_len": config.data.clip_len,
        "data.stride": config.data.stride,
        "train.log_every": config.train.log_every,
        "train.checkpoint_every": config.train.checkpoint_every,
        "optim.accumulate": config.optim.accumulate,
    }
    for key, value in positive.items():
        if value < 1:
            raise ConfigError(f"config field {key} must be at least 1, got {value}")
    if config.optim.lr < 0:
        raise ConfigError(f"config field optim.lr must not be negative, got {config.optim.lr}")
    if not 0.0 <= config.optim.ema < 1.0:
        raise ConfigError(f"config field optim.ema must lie in [0, 1), got {config.optim.ema}")
    if not 0.0 <= config.predict.threshold <= 1.0:
        raise ConfigError(
            f"config field predict.threshold must lie in [0, 1], got {config.predict.threshold}"
        )


def model_section(config: ConfigDict) -> ConfigDict:
    """The `model` section plus the numeric policy: all that a system's class needs."""
    section = ConfigDict(config.model.to_dict())
    section.compute_dtype = config.compute_dtype
    section.freeze_bn = bool(config.optim.freeze_bn)
    section.remat = config.train.remat
    return section


def to_json(config: ConfigDict) -> str:
    """The configuration as JSON (tuples become lists)."""
    return json.dumps(config.to_dict(), indent=2, default=str)


def from_dict(values: dict[str, Any]) -> ConfigDict:
    """Rebuilds a configuration from parsed JSON (lists become tuples again)."""

    def tuples(x: Any) -> Any:
        if isinstance(x, dict):
            return {k: tuples(v) for k, v in x.items()}
        return tuple(tuples(v) for v in x) if isinstance(x, (list, tuple)) else x

    return ConfigDict(tuples(values))


def from_weights(values: dict[str, Any]) -> ConfigDict:
    """The configuration stored with weights, perhaps by an earlier version.

    Fields of `model` that came later take their published values, with which a system is what it
    was before it had them.
    """
    config = from_dict(values)
    name = config.model.get("name", "")
    if name in list_configs():
        later = load_config(name).model
        for key in later:
            if key not in config.model:
                config.model[key] = later[key]
    return config


def build(config: ConfigDict | str, **overrides: Any) -> Any:
    """Builds a `System` from a configuration, or from an id with `model` overrides.

    `build("cosnet")` is the full published system, `build("cosnet:tiny")` its tiny twin,
    `build("cosnet", attention="symmetric")` a variant.

    Raises:
      ConfigError: unknown system, variant or field.
    """
    if isinstance(config, str):
        registry.check_name(config.partition(":")[0])
        config = load_config(config)
    elif overrides:
        config = ConfigDict(config.to_dict())
    if overrides:
        override(config, {f"model.{k}": v for k, v in overrides.items()})
        validate(config)
    return registry.get(config.model.name)(model_section(config))

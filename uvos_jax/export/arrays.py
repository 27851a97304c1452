"""Weights as plain arrays."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uvos_jax.convert.variables import save_variables
from uvos_jax.errors import CheckpointError


def to_numpy(
    variables: Mapping[str, Any], path: str | os.PathLike, *, storage_dtype: str | None = None
) -> Path:
    """Writes an `.npz` of arrays named by path, with `metadata` (JSON text) among them.

    The configuration and the preprocessing come from `variables.meta`. See the package's docstring
    for a reader in numpy alone.

    Args:
      storage_dtype: `float16` halves the file.

    Raises:
      CheckpointError: the path does not end in `.npz` or cannot be written.
    """
    return _write(variables, path, ".npz", storage_dtype)


def to_safetensors(
    variables: Mapping[str, Any], path: str | os.PathLike, *, storage_dtype: str | None = None
) -> Path:
    """Writes a `.safetensors` file, with the JSON text under `metadata` in its header.

    Raises:
      CheckpointError: the path does not end in `.safetensors` or cannot be written.
    """
    return _write(variables, path, ".safetensors", storage_dtype)


def _write(
    variables: Mapping[str, Any], path: str | os.PathLike, suffix: str, storage_dtype: str | None
) -> Path:
    if Path(path).suffix != suffix:
        raise CheckpointError(f"cannot export to {str(path)!r}: the name must end in {suffix}")
    return save_variables(variables, path, storage_dtype=storage_dtype)

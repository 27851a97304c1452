"""From a file of another framework to a flat mapping: official name to array."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from uvos_jax.convert.caffe_file import read_caffe
from uvos_jax.convert.tf_file import is_tensorflow, read_tensorflow
from uvos_jax.convert.torch7_file import read_torch7
from uvos_jax.convert.torch_file import read_torch, without_common_prefix
from uvos_jax.convert.variables import read_arrays
from uvos_jax.errors import CheckpointError

TORCH7_SUFFIXES = (".t7", ".dat")

Source = str | os.PathLike | Mapping[str, np.ndarray] | Sequence[str | os.PathLike]


def read_official(source: Source) -> dict[str, np.ndarray]:
    """Official names and arrays of a file, of several files together, or of a mapping.

    Files: PyTorch (any suffix; recognised by content), Caffe (`.caffemodel`), Torch7 (`.t7`,
    `.dat`), TensorFlow 1 (a V1 file, or the index or prefix of a V2 checkpoint), and `.npz` and
    `.safetensors` that hold official names.

    Raises:
      CheckpointError: a file is missing, damaged or foreign, or two files share a name.
    """
    if isinstance(source, Mapping):
        return without_common_prefix({str(k): np.asarray(x) for k, x in source.items()})
    if isinstance(source, (str, os.PathLike)):
        return _read_file(Path(source))
    merged: dict[str, np.ndarray] = {}
    for path in source:
        for name, array in _read_file(Path(path)).items():
            if name in merged:
                raise CheckpointError(
                    f"{name} is in {path} and in another of the given files; pass one of them"
                )
            merged[name] = array
    return merged


def _read_file(path: Path) -> dict[str, np.ndarray]:
    if is_tensorflow(path):
        return read_tensorflow(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise CheckpointError(f"{path} {what}: expected a weight file the authors published")
    if path.suffix in (".npz", ".safetensors"):
        return without_common_prefix(read_arrays(path)[0])
    if path.suffix == ".caffemodel":
        return read_caffe(path)
    if path.suffix in TORCH7_SUFFIXES:
        return read_torch7(path)
    return read_torch(path)

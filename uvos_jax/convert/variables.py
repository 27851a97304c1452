"""Variables on disk: npz and safetensors with everything needed to use them, and orbax folders.

A weight file holds flat arrays named by path (`params/encoder/conv1/kernel`,
`batch_stats/encoder/bn1/mean`) and one JSON text, `metadata`, with the system's id, its
configuration and its preprocessing. numpy alone reads it:

    with np.load("cosnet.npz") as file:
        arrays = {k: file[k] for k in file.files if k != "metadata"}
        about = json.loads(str(file["metadata"]))
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from uvos_jax.convert.bounds import COMPRESSED, Budget
from uvos_jax.errors import CheckpointError
from uvos_jax.types import ModelSpec, Variables, flatten, unflatten

METADATA = "metadata"
FORMAT = "uvos_jax/1"


def spec_to_dict(spec: ModelSpec) -> dict[str, Any]:
    """A JSON-able copy of a spec: what preprocessing the weights expect."""
    values = dataclasses.asdict(spec)
    values["requires"] = sorted(spec.requires)
    return values


def save_variables(
    variables: Mapping[str, Any],
    path: str | os.PathLike,
    *,
    config: Any = None,
    spec: ModelSpec | None = None,
    extra: Mapping[str, Any] | None = None,
    storage_dtype: str | None = None,
) -> Path:
    """Writes variables to `.npz` or `.safetensors`, at once or not at all.

    Args:
      config: the configuration (ConfigDict or dict) the system was built from; default: the one
        in `variables.meta`.
      spec: the system's spec, stored as the expected preprocessing.
      extra: JSON-able facts to add, for example the command that made the weights.
      storage_dtype: `float16` halves the file; arrays come back as float32.

    Raises:
      CheckpointError: unknown suffix, or the file cannot be written.
    """
    path = check_suffix(path)
    meta = dict(getattr(variables, "meta", {}) or {})
    if config is not None:
        meta["config"] = config.to_dict() if hasattr(config, "to_dict") else dict(config)
        meta["system"] = meta["config"]["model"]["name"]
    if spec is not None:
        meta["spec"] = spec_to_dict(spec)
    meta.update(extra or {})
    meta["format"] = FORMAT
    arrays = {}
    dtypes = {}
    for name, leaf in flatten(variables):
        array = np.asarray(leaf)
        if storage_dtype and array.dtype == np.float32:
            dtypes[name] = "float32"
            array = array.astype(storage_dtype)
        arrays[name] = array
    if dtypes:
        meta["stored_as"] = storage_dtype
    text = json.dumps(meta, sort_keys=True, default=list)
    writers = {".npz": _write_npz, ".safetensors": _write_safetensors}
    with atomic_file(path) as temporary:
        writers[path.suffix](temporary, arrays, text)
    return path


def check_suffix(path: str | os.PathLike) -> Path:
    """The path; raises `CheckpointError` unless it ends in `.npz` or `.safetensors`."""
    path = Path(path)
    if path.suffix not in (".npz", ".safetensors"):
        raise CheckpointError(
            f"cannot write weights to {path.name!r}: use the suffix .npz or .safetensors"
        )
    return path


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` that takes its name at the end, or vanishes.

    Raises:
      CheckpointError: the file cannot be written (no such place, no rights, disk full).
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise CheckpointError(
            f"cannot write weights to {path}: {error.strerror or error}; choose another place"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _write_npz(path: Path, arrays: Mapping[str, np.ndarray], text: str) -> None:
    with open(path, "wb") as file:
        np.savez_compressed(file, **arrays, **{METADATA: np.asarray(text)})


def _write_safetensors(path: Path, arrays: Mapping[str, np.ndarray], text: str) -> None:
    from safetensors.numpy import save_file

    contiguous = {k: np.ascontiguousarray(v) for k, v in arrays.items()}
    save_file(contiguous, str(path), metadata={METADATA: text})


def load_variables(path: str | os.PathLike) -> Variables:
    """Reads weights from `.npz`, `.safetensors`, or an orbax checkpoint (step) folder.

    The result's `.meta` holds what was saved with them (`system`, `config`, `spec`, ...).

    Raises:
      CheckpointError: the file is missing, damaged, or of another format.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(
            f"weights {path} do not exist; convert official ones with `uvos convert`, train with "
            "`uvos train`, or leave the option out to use the packaged default"
        )
    if path.is_dir():
        return _load_orbax(path)
    flat, text = read_arrays(path)
    if text is None or not any(name.startswith("params/") for name in flat):
        raise CheckpointError(
            f"{path} holds no uvos_jax weights (no params/... arrays with metadata); official "
            "files of other frameworks go through `uvos convert` first"
        )
    try:
        meta = dict(json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"the metadata of {path} are damaged ({str(error)[:200]}); fetch or export it again"
        ) from None
    if meta.get("stored_as"):
        flat = {
            k: v.astype(np.float32) if v.dtype == np.dtype(meta["stored_as"]) else v
            for k, v in flat.items()
        }
    return Variables(unflatten(flat), meta=meta)


def read_arrays(path: Path) -> tuple[dict[str, np.ndarray], str | None]:
    """Arrays by name of an `.npz` or `.safetensors` file, and its metadata text if it has one.

    Raises:
      CheckpointError: the file is damaged or has another suffix.
    """
    readers = {".npz": _read_npz, ".safetensors": _read_safetensors}
    if path.suffix not in readers:
        raise CheckpointError(
            f"cannot read weights from {path.name!r}: expected .npz, .safetensors or a checkpoint "
            "folder; files of other frameworks go through `uvos convert` first"
        )
    return readers[path.suffix](path)


def _read_npz(path: Path) -> tuple[dict[str, np.ndarray], str | None]:
    try:
        with np.load(path, allow_pickle=False) as file:
            _check_npz(file, path.stat().st_size)
            flat = {name: file[name] for name in file.files if name != METADATA}
            text = str(file[METADATA]) if METADATA in file.files else None
    # a damaged archive fails in many ways: in zipfile, zlib, struct or numpy's header parser
    except Exception as error:
        raise CheckpointError(
            f"weights {path} are damaged or not an npz file ({str(error)[:200]}); fetch or export "
            "them again"
        ) from error
    return flat, text


def _check_npz(file: np.lib.npyio.NpzFile, size: int) -> None:
    """Holds an archive to what it says of itself before anything is allocated.

    Raises:
      ValueError: an array's shape does not fit its bytes, or the archive unpacks to far more than
        its size warrants.
    """
    budget = Budget(size, COMPRESSED)
    readers = {(1, 0): np.lib.format.read_array_header_1_0,
               (2, 0): np.lib.format.read_array_header_2_0}  # fmt: skip
    for entry in file.zip.infolist():
        budget.draw(entry.file_size)
        with file.zip.open(entry) as member:
            version = np.lib.format.read_magic(member)
            if version not in readers:
                raise ValueError(f"an array in version {version} of the format")
            shape, _, dtype = readers[version](member)
            if math.prod(shape) * dtype.itemsize != entry.file_size - member.tell():
                raise ValueError(f"{entry.filename[:80]} of shape {shape} has other bytes")


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], str | None]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            text = (file.metadata() or {}).get(METADATA)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(
            f"weights {path} are damaged or not a safetensors file ({error}); export them again"
        ) from error
    return flat, text


def _load_orbax(path: Path) -> Variables:
    """Parameters of a training checkpoint: a step folder, or a run folder's newest step."""
    folder = path
    if not (folder / "state").is_dir():
        root = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
        steps = sorted((int(p.name), p) for p in root.iterdir() if p.name.isdigit())
        if not steps or not (steps[-1][1] / "state").is_dir():
            raise CheckpointError(
                f"{path} is no training checkpoint: expected a step folder with state/ in it"
            )
        folder = steps[-1][1]
    try:
        state = _restore_arrays((folder / "state").resolve(), ("params", "batch_stats", "ema"))
    except Exception as error:
        raise CheckpointError(
            f"checkpoint {folder} is damaged ({type(error).__name__}: {error}); use an older step"
        ) from error
    meta: dict[str, Any] = {}
    config_file = folder / "config" / "metadata"
    if config_file.is_file():
        meta["config"] = json.loads(config_file.read_text())
        meta["system"] = meta["config"]["model"]["name"]
    collections = {"params": state.get("ema") or state["params"]}
    if state.get("batch_stats"):
        collections["batch_stats"] = state["batch_stats"]
    return Variables(collections, meta=meta)


def _restore_arrays(folder: Path, wanted: tuple[str, ...]) -> dict[str, Any]:
    """Some branches of a saved tree as numpy arrays, on whatever devices they were saved."""
    import orbax.checkpoint as ocp

    handler = ocp.PyTreeCheckpointHandler()
    saved = handler.metadata(folder).tree
    item = {k: saved[k] for k in wanted if saved.get(k)}
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
    restored = handler.restore(
        folder,
        args=ocp.args.PyTreeRestore(item=item, restore_args=as_numpy, partial_restore=True),
    )
    return jax.tree.map(np.asarray, restored)


def merge_strict(target: Mapping[str, Any], loaded: Mapping[str, Any], *, strict: bool = True):
    """Fits loaded variables to the shapes a system expects.

    Args:
      target: tree of arrays or shape structs (`eval_shape(system.init, key)`); also the source of
        values for what is missing when not strict.
      loaded: tree of arrays.
      strict: refuse any missing, extra or misshapen array.

    Returns:
      (merged tree of plain dictionaries, report: lists `missing`, `unused`, `mismatched`).

    Raises:
      CheckpointError: strict and something does not fit, or nothing fits.
    """
    want, have = dict(flatten(target)), dict(flatten(loaded))
    mismatched = [k for k in want if k in have and np.shape(have[k]) != tuple(want[k].shape)]
    report = {
        "missing": [k for k in want if k not in have],
        "unused": [k for k in have if k not in want],
        "mismatched": mismatched,
    }
    usable = [k for k in want if k in have and k not in mismatched]
    problems = [
        f"{len(names)} {kind} (such as {names[0]})" for kind, names in report.items() if names
    ]
    if not usable or (strict and problems):
        detail = "; ".join(problems)
        if mismatched:
            k = mismatched[0]
            detail += f"; {k} is {np.shape(have[k])}, expected {tuple(want[k].shape)}"
        raise CheckpointError(
            f"weights do not fit the system: {detail}; build the system with the configuration "
            "the weights were saved with, or set model.init_strict=False to load what fits"
        )
    merged = {
        k: np.asarray(have[k]).astype(want[k].dtype) if k in usable else want[k] for k in want
    }
    return unflatten(merged), report

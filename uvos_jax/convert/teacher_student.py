"""Official teacher and student: TensorFlow 1 checkpoints of MSiam/motion_adaptation.

The release keeps the two networks in two files, so each is a part: `teacher` (319 variables, the
layers of the flow's trunk end in `_1`) and `student` (195). Both files together make the whole
system; as their names overlap, they are then told apart by a prefix, `teacher/` and `student/`
(`join`). Arrays are laid out as ours are.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from uvos_jax.convert.readers import Source, read_official
from uvos_jax.convert.table import Entry, NameTable, joined
from uvos_jax.errors import CheckpointError

#: What TensorFlow's optimisers and counters leave in a checkpoint.
IGNORED = (
    (r"/Adam(_1)?$|(^|/)beta[12]_power$|(^|/)global_step$", "state of the optimiser"),
    (r"/Momentum$", "state of the optimiser"),
)
#: Convolutions of a unit: official W0 is the shortcut; the norm before W1 is bn0.
NORM_NAMES = {1: "bn0", 2: "bn2", 3: "bn3"}


def _norm(name: str, path: str) -> NameTable:
    pairs = (
        ("gamma", "params", "scale"),
        ("beta", "params", "bias"),
        ("mean_ema", "batch_stats", "mean"),
        ("var_ema", "batch_stats", "var"),
    )
    return NameTable(
        tuple(Entry((f"{name}/{a}",), (f"{kind}/{path}/{b}",)) for a, kind, b in pairs)
    )


def _array(name: str, path: str) -> NameTable:
    return NameTable((Entry((name,), (f"params/{path}",)),))


def _unit(name: str, path: str, convs: int, *, project: bool) -> list[NameTable]:
    tables = [_array(f"{name}/W0", f"{path}/shortcut/kernel")] if project else []
    for i in range(1, convs + 1):
        tables.append(_norm(f"{name}/{NORM_NAMES[i]}", f"{path}/norm{i}"))
        tables.append(_array(f"{name}/W{i}", f"{path}/conv{i}/kernel"))
    return tables


def _trunk(config: Any, path: str, suffix: str = "") -> list[NameTable]:
    tables = [_array(f"conv0{suffix}/W", f"{path}/conv0/kernel")]
    number = 0
    for count in config.units:
        for i in range(count):
            tables += _unit(f"res{number}{suffix}", f"{path}/res{number}", 2, project=i == 0)
            number += 1
    return tables


def _head(config: Any, path: str) -> list[NameTable]:
    tables, number, width = [], sum(config.units), tuple(config.widths)[-1]
    sizes = [(2, config.context)] * config.context_units
    sizes += [(3, widths[-1]) for widths in config.bottlenecks]
    for convs, out in sizes:
        tables += _unit(f"res{number}", f"{path}/res{number}", convs, project=width != out)
        number, width = number + 1, out
    tables.append(_norm("conv1/bn", f"{path}/norm1"))
    for name in ("conv1", "output"):
        tables.append(_array(f"{name}/W", f"{path}/{name}/kernel"))
        tables.append(_array(f"{name}/b", f"{path}/{name}/bias"))
    return tables


def student_table(config: Any) -> NameTable:
    """Names of the one-stream checkpoint and our paths."""
    tables = _trunk(config, "student/trunk") + _head(config, "student/head")
    return joined([*tables, NameTable((), IGNORED)])


def teacher_table(config: Any) -> NameTable:
    """Names of the two-stream checkpoint and our paths."""
    tables = _trunk(config, "teacher/appearance") + _trunk(config, "teacher/motion", "_1")
    return joined([*tables, *_head(config, "teacher/head"), NameTable((), IGNORED)])


PARTS = {"student": student_table, "teacher": teacher_table}


def table(config: Any) -> NameTable:
    """Names of both checkpoints, prefixed `student/` and `teacher/`, and our paths."""
    return joined(part(config).renamed(official=f"{name}/") for name, part in PARTS.items())


def load(source: Source) -> dict[str, np.ndarray]:
    """Official arrays by name; those of two checkpoints carry `student/` and `teacher/`.

    Raises:
      CheckpointError: a file cannot be read, or both are of one network.
    """
    if isinstance(source, (Mapping, str, os.PathLike)):
        return read_official(source)
    found: dict[str, dict[str, np.ndarray]] = {}
    for path in source:
        arrays = read_official(path)
        part = "teacher" if any(name.startswith("conv0_1/") for name in arrays) else "student"
        if part in found:
            raise CheckpointError(
                f"{path} is a second checkpoint of the {part}: give one of the one-stream student "
                "and one of the two-stream teacher (layers `..._1`)"
            )
        found[part] = arrays
    return join(found.get("student", {}), found.get("teacher", {}))


def join(
    student: Mapping[str, np.ndarray], teacher: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """One mapping of both official networks, as `table` wants it."""
    both = {f"student/{k}": v for k, v in student.items()}
    return both | {f"teacher/{k}": v for k, v in teacher.items()}

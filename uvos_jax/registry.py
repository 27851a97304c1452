"""The list of systems: names are known without importing anything, code is loaded when asked for.

The registry lives on the ground floor because it reaches system modules by dotted name
(`importlib`), never by import statement. A system file registers its class with
`@register("cosnet")`; the file must be `uvos_jax/systems/cosnet.py` or a package of that name.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from collections.abc import Callable
from typing import TypeVar

from uvos_jax.errors import ConfigError, UnsupportedError

T = TypeVar("T")

#: id -> (what the paper calls it, one-line kind). The order is that of `list_systems()`.
CATALOGUE: dict[str, tuple[str, str]] = {
    "agnn": ("AGNN", "attentive graph message passing between frames"),
    "ags": ("AGS", "fixation-guided saliency with recurrent attention"),
    "cosnet": ("COSNet", "co-attention between frame pairs"),
    "dfnet": ("DFNet", "discriminative feature scoring over all frames"),
    "dlvs": ("DLVS", "static and dynamic fully convolutional saliency"),
    "f2net": ("F2Net", "centre-guided foreground matching"),
    "fgrne": ("FGRNE", "flow-guided recurrent feature encoding"),
    "fusionseg": ("FusionSeg", "appearance and motion streams, fused"),
    "iet": ("IET", "instance embedding transfer with motion saliency"),
    "lvo": ("LVO", "two streams with a ConvGRU visual memory"),
    "matnet": ("MATNet", "motion-attentive transition"),
    "morel": ("MOREL", "motion-based object segments for reinforcement learning"),
    "mpnet": ("MP-Net", "moving-object segmentation from optical flow"),
    "mug": ("MuG", "unlabelled learning over multiple granularities"),
    "pdb_convlstm": ("PDB-ConvLSTM", "pyramid dilated deeper bidirectional ConvLSTM"),
    "segflow": ("SegFlow", "joint segmentation and optical flow"),
    "sfmnet": ("SfM-Net", "structure and motion from video"),
    "teacher_student": ("HRI teacher-student", "online adaptation from a motion teacher"),
}

_CLASSES: dict[str, type] = {}


def list_systems() -> tuple[str, ...]:
    """Returns the ids of all systems in alphabetical order, importing none of them."""
    return tuple(CATALOGUE)


def is_available(name: str) -> bool:
    """Whether the code of system `name` is part of this installation (it is not imported)."""
    check_name(name)
    return name in _CLASSES or importlib.util.find_spec(f"uvos_jax.systems.{name}") is not None


def check_name(name: str) -> str:
    """Returns `name`; raises `ConfigError` with the nearest names when it is no system id."""
    if name not in CATALOGUE:
        near = difflib.get_close_matches(str(name).lower(), CATALOGUE, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(repr(n) for n in near)}?" if near else "no near match;"
        raise ConfigError(
            f"unknown system {name!r}: {hint} `uvos list` shows all: {', '.join(CATALOGUE)}"
        )
    return name


def register(name: str) -> Callable[[type[T]], type[T]]:
    """Class decorator that makes a `System` known under the id `name`.

    Raises `ConfigError` if `name` is not in the catalogue or is taken by another class.
    """

    def add(cls: type[T]) -> type[T]:
        check_name(name)
        known = _CLASSES.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (
            cls.__module__,
            cls.__qualname__,
        ):
            raise ConfigError(
                f"system {name!r} is registered twice: by {known.__module__}.{known.__qualname__} "
                f"and {cls.__module__}.{cls.__qualname__}; give one of them another id"
            )
        _CLASSES[name] = cls
        return cls

    return add


def get(name: str) -> type:
    """Imports and returns the `System` class registered under `name`.

    Raises `ConfigError` for an unknown id and `UnsupportedError` when the catalogue knows the id
    but this installation does not contain its code.
    """
    check_name(name)
    if name not in _CLASSES:
        if not is_available(name):
            raise UnsupportedError(
                f"system {name!r} is not part of this version of uvos_jax; available: "
                f"{', '.join(n for n in CATALOGUE if is_available(n))}"
            )
        importlib.import_module(f"uvos_jax.systems.{name}")
    if name not in _CLASSES:
        raise ConfigError(
            f"uvos_jax.systems.{name} was imported but registers no class as {name!r}; "
            f"decorate its System with @register({name!r})"
        )
    return _CLASSES[name]

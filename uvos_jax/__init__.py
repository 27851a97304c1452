"""Unsupervised video object segmentation in JAX/Flax: eighteen landmark systems, one library.

    import uvos_jax as uvos
    masks = uvos.Predictor.default().predict("clip.mp4")

Heavy parts (data sets, video decoding, training) are imported when first used.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

#: public name -> module it lives in; resolved on first access (PEP 562).
_LAZY = {
    "list_systems": "uvos_jax.registry",
    "load_config": "uvos_jax.config",
    "build": "uvos_jax.config",
    "load_variables": "uvos_jax.convert.variables",
    "Predictor": "uvos_jax.predict.predictor",
    "Masks": "uvos_jax.predict.predictor",
    "evaluate": "uvos_jax.evaluation.evaluator",
}
_SUBPACKAGES = (
    "convert",
    "data",
    "errors",
    "evaluation",
    "export",
    "flow",
    "losses",
    "metrics",
    "modules",
    "ops",
    "predict",
    "synthetic",
    "systems",
    "train",
    "types",
    "viz",
)

__all__ = [*_LAZY, "__version__"]

if TYPE_CHECKING:
    from uvos_jax.config import build, load_config
    from uvos_jax.convert.variables import load_variables
    from uvos_jax.evaluation.evaluator import evaluate
    from uvos_jax.predict.predictor import Masks, Predictor
    from uvos_jax.registry import list_systems


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        module = importlib.import_module(_LAZY[name])
        value = getattr(module, name)
        globals()[name] = value
        return value
    if name in _SUBPACKAGES:
        return importlib.import_module(f"uvos_jax.{name}")
    raise AttributeError(f"module 'uvos_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_SUBPACKAGES])


def _warn_if_shadowed() -> None:
    """A checkout named `uvos_jax` seen from its parent folder hides the installed package."""
    parent = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if os.path.isfile(os.path.join(parent, "uvos_jax", "pyproject.toml")):
        raise ImportError(
            f"the folder {parent} hides the package uvos_jax: Python was started from the parent "
            "of the checkout; change into the checkout or install the package first"
        )


_warn_if_shadowed()

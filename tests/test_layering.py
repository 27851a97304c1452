"""The layering rule of the architecture, enforced on the import statements of every file."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "uvos_jax"

#: top-level part of the package -> parts it may import besides itself.
GROUND = {"types", "errors", "registry"}
PURE = GROUND | {"ops"}
MODEL = PURE | {"modules", "losses", "metrics", "synthetic"}
ENGINE = MODEL | {"systems", "data", "config", "flow", "viz"}
ENGINES = {"flow", "train", "evaluation", "predict", "convert", "export", "viz"}
ALLOWED = {
    "types": set(),
    "errors": set(),
    "registry": {"errors"},
    "ops": GROUND,
    "modules": PURE,
    "losses": PURE,
    "metrics": PURE,
    "synthetic": PURE,
    "systems": MODEL,
    "data": GROUND | {"synthetic"},
    "config": GROUND,
    "flow": MODEL | {"systems", "data", "config", "convert"},
    "viz": MODEL | {"data"},
    "train": ENGINE | {"convert", "evaluation", "predict"},
    "evaluation": ENGINE | {"predict"},
    "predict": ENGINE | {"convert"},
    "convert": ENGINE - {"flow"},
    "export": ENGINE | {"convert"},
}
FORBIDDEN_EXTERNAL = {
    "types": {"flax", "optax", "grain", "tensorflow_datasets"},
    "errors": {"flax", "jax"},
    "registry": {"flax", "jax"},
    "ops": {"flax", "optax", "grain", "PIL", "av", "cv2"},
    "modules": {"grain", "PIL", "av", "cv2", "ml_collections"},
    "losses": {"flax", "optax", "grain", "PIL", "av", "cv2"},
    "metrics": {"flax", "optax", "grain", "av"},
    "synthetic": {"flax", "optax", "grain", "av", "cv2"},
    "data": {"flax", "optax"},
}


def files():
    return sorted(p for p in ROOT.rglob("*.py") if "_configs" not in p.parts)


def imported(path):
    """Yields (dotted name, is at module level) of every import in the file."""
    tree = ast.parse(path.read_text())
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in top
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write it absolutely"
            base = node.module or ""
            yield base, id(node) in top
            for alias in node.names:
                yield f"{base}.{alias.name}", id(node) in top


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_respect_the_layers(path):
    part = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if part in ("__init__", "__main__", "cli", "demo"):
        return
    known = set(ALLOWED) | {"cli", "demo"}
    for name, _ in imported(path):
        pieces = name.split(".")
        if pieces[0] == "uvos_jax" and len(pieces) > 1 and pieces[1] in known:
            target = pieces[1]
            assert target == part or target in ALLOWED[part], (
                f"{path.name} in layer {part!r} imports {name}: {target!r} is above or beside it"
            )
        outside = FORBIDDEN_EXTERNAL.get(part, set())
        assert pieces[0] not in outside, f"{path.name} in layer {part!r} imports {name}"


def test_no_system_imports_another():
    for path in (ROOT / "systems").rglob("*.py"):
        own = path.relative_to(ROOT / "systems").parts[0].removesuffix(".py")
        for name, _ in imported(path):
            pieces = name.split(".")
            if pieces[:2] == ["uvos_jax", "systems"] and len(pieces) > 2:
                assert pieces[2] in (own, "base"), f"{path} imports {name}"


def test_every_layer_is_known():
    parts = {p.name.removesuffix(".py") for p in ROOT.iterdir() if p.name != "__pycache__"}
    unknown = parts - set(ALLOWED) - {"__init__", "__main__", "cli", "demo", "_configs", "assets"}
    assert not unknown, f"give these a place in the layering table: {unknown}"


def test_heavy_libraries_are_imported_lazily():
    heavy = {"tensorflow_datasets", "av", "cv2", "tensorboardX", "torch", "tensorflow"}
    for path in files():
        for name, at_top in imported(path):
            assert not (at_top and name.split(".")[0] in heavy), f"{path}: top-level import {name}"

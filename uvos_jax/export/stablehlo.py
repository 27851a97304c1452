"""A whole predictor as one file that runs without this library, on CPU, GPU or TPU.

The file is a zip of `metadata.json`, `weights.npz` (arrays by path) and two serialised programs of
`jax.export`, with symbolic batch size and chunk length:

- `prepare(weights, inputs) -> state`, where `inputs["frames"]` are the `num_references` frames
  `[b,n,H,W,3]` sampled over a video, or the first frame `[b,1,H,W,3]` where there are none;
- `predict(weights, state, inputs) -> (state, probabilities [b,t,H,W])` for `inputs["frames"]`
  `[b,t,H,W,3]`, uint8 RGB at the input size in `metadata.json`.

jax alone runs it:

    import io, zipfile, jax, jax.export, numpy as np
    with zipfile.ZipFile("cosnet.stablehlo") as file:
        weights = dict(np.load(io.BytesIO(file.read("weights.npz"))))
        prepare, predict = (jax.export.deserialize(bytearray(file.read(name))).call
                            for name in ("prepare", "predict"))
    state = prepare(weights, {"frames": references})
    state, probs = predict(weights, state, {"frames": frames})

Serialised programs are promised to load for some months of jax versions, not for years: keep the
weights too.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import json
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uvos_jax.convert.variables import atomic_file, flatten, spec_to_dict, unflatten
from uvos_jax.errors import CheckpointError, ConfigError, UnsupportedError
from uvos_jax.types import ModelSpec

FORMAT = "uvos_jax/stablehlo/1"
PLATFORMS = ("cpu", "cuda", "tpu")
#: Temporal kinds whose chunks may have any length.
FREE_LENGTH = ("frame", "pair", "recurrent", "global")


def to_stablehlo(
    system: Any,
    variables: Mapping[str, Any],
    path: str | os.PathLike,
    *,
    streaming: bool = False,
    size: tuple[int, int] | None = None,
    batch_size: int | None = None,
    chunk: int | None = None,
    platforms: Sequence[str] = PLATFORMS,
) -> Path:
    """Writes `system.predict` with its weights; see the module's docstring for the file.

    Args:
      streaming: for systems with references: start from an empty memory that `predict` fills,
        instead of from frames sampled over the whole video.
      size: (H, W) of the frames; default: the system's input size.
      batch_size: None leaves it open (symbolic).
      chunk: frames per call of `predict`; None leaves it open where the system allows it.
      platforms: where the programs shall run.

    Raises:
      UnsupportedError: `flatbuffers` is not installed, or the system cannot be traced with an open
        batch size or chunk length.
      ConfigError: the system takes frames of any size and none was given.
      CheckpointError: the file cannot be written.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise UnsupportedError(
            "exporting to StableHLO needs the package flatbuffers, which is not installed: "
            'pip install "uvos_jax[export]"'
        )
    spec: ModelSpec = system.spec
    size = size or spec.input_size
    if size is None:
        raise ConfigError(
            f"{spec.name} takes frames of any size, but a program has one: give size=(H, W)"
        )
    if chunk is None and (spec.temporal not in FREE_LENGTH or not spec.causal):
        chunk = spec.clip_len
    weights = {name: np.asarray(leaf) for name, leaf in flatten(variables)}
    programs = _trace(
        system,
        weights,
        size=tuple(size),
        batch=batch_size,
        chunk=chunk,
        references=0 if streaming else spec.num_references,
        platforms=tuple(platforms),
    )
    metadata = {
        "format": FORMAT,
        "system": spec.name,
        "spec": spec_to_dict(spec),
        "size": list(size),
        "streaming": streaming,
        "num_references": 0 if streaming else spec.num_references,
        "batch_size": batch_size,
        "chunk": chunk,
        "platforms": list(platforms),
        "jax": jax.__version__,
        "config": getattr(variables, "meta", {}).get("config"),
    }
    path = Path(path)
    with atomic_file(path) as temporary, zipfile.ZipFile(temporary, "w") as file:
        file.writestr("metadata.json", json.dumps(metadata, sort_keys=True, indent=1, default=list))
        buffer = io.BytesIO()
        np.savez(buffer, **weights)
        file.writestr("weights.npz", buffer.getvalue())
        for name, program in programs.items():
            file.writestr(name, bytes(program), zipfile.ZIP_DEFLATED)
    return path


def _trace(
    system: Any,
    weights: Mapping[str, np.ndarray],
    *,
    size: tuple[int, int],
    batch: int | None,
    chunk: int | None,
    references: int,
    platforms: tuple[str, ...],
) -> dict[str, bytearray]:
    """The serialised `prepare` and `predict`."""
    scope = jax.export.SymbolicScope()

    def axis(value: int | None, letter: str) -> Any:
        return value if value else jax.export.symbolic_shape(letter, scope=scope)[0]

    def inputs(length: Any) -> dict[str, jax.ShapeDtypeStruct]:
        shapes = system.example_batch(axis(batch, "b"), size)
        return {
            name: jax.ShapeDtypeStruct((s.shape[0], length, *s.shape[2:]), s.dtype)
            for name, s in shapes.items()
        }

    def prepare(weights: dict, batch: dict) -> Any:
        variables = unflatten(weights)
        if references:
            return system.prepare(variables, batch)
        frames = batch["frames"]
        return system.init_state(variables, frames.shape[0], frames.shape[2:4])

    def predict(weights: dict, state: Any, batch: dict) -> Any:
        return system.predict(unflatten(weights), state, batch)

    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in weights.items()}
    first, frames = inputs(references or 1), inputs(axis(chunk, "t"))
    export = jax.export.export
    try:
        prepared = export(jax.jit(prepare), platforms=platforms)(shapes, first)
        state = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype), _outputs(prepared))
        predicted = export(jax.jit(predict), platforms=platforms)(shapes, state, frames)
    except (jax.errors.JAXTypeError, ValueError, TypeError, NotImplementedError) as error:
        is_open = [n for n, v in (("batch_size", batch), ("chunk", chunk)) if v is None]
        if not is_open:
            raise
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UnsupportedError(
            f"{system.spec.name} cannot be exported with an open {' and '.join(is_open)} "
            f"({first_line}): give {', '.join(f'{n}=1' for n in is_open)} or another number"
        ) from error
    return {"prepare": prepared.serialize(), "predict": predicted.serialize()}


def _outputs(exported: Any) -> Any:
    return jax.tree.unflatten(exported.out_tree, exported.out_avals)


@dataclasses.dataclass
class Exported:
    """A file of `to_stablehlo`, ready to run.

    Attributes:
      metadata: system, preprocessing, sizes, platforms.
    """

    metadata: dict[str, Any]
    weights: dict[str, jax.Array]
    _prepare: Callable[..., Any]
    _predict: Callable[..., Any]

    def prepare(self, inputs: Mapping[str, Any]) -> Any:
        """State of a new video from its reference frames (or, streaming, its first frame)."""
        return self._prepare(self.weights, dict(inputs))

    def predict(self, state: Any, inputs: Mapping[str, Any]) -> tuple[Any, jax.Array]:
        """The next state and probabilities `[b,t,H,W]`."""
        return self._predict(self.weights, state, dict(inputs))


def load_stablehlo(path: str | os.PathLike) -> Exported:
    """Reads a file of `to_stablehlo`.

    Raises:
      CheckpointError: the file is missing, damaged, or something else.
    """
    try:
        with zipfile.ZipFile(path) as file:
            metadata = json.loads(file.read("metadata.json"))
            with np.load(io.BytesIO(file.read("weights.npz"))) as arrays:
                weights = {name: jnp.asarray(arrays[name]) for name in arrays.files}
            programs = [
                jax.jit(jax.export.deserialize(bytearray(file.read(name))).call)
                for name in ("prepare", "predict")
            ]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"{path} is no exported predictor, or damaged ({error}); write it again with "
            "`uvos export ... --format stablehlo`"
        ) from error
    return Exported(metadata, weights, *programs)

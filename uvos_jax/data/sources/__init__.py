"""Sources of examples by name: random access, lazily read, one object per data set and split.

A source has `__len__` and `sample(index, rng) -> example`; `rng` decides what is random inside an
example (which partner frame, for instance). `make_source` builds one from a configuration entry.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Any

from uvos_jax.errors import ConfigError

#: name -> "module:class", imported when asked for.
SOURCES = {
    "synthetic": "uvos_jax.data.sources.synthetic:SyntheticSource",
    "raycast": "uvos_jax.data.sources.raycast:RaycastSource",
    "environment": "uvos_jax.data.sources.environment:EnvironmentSource",
    "atari": "uvos_jax.data.sources.atari:AtariSource",
    "pseudo_video": "uvos_jax.data.sources.pseudo:PseudoVideoSource",
    "saliency_pairs": "uvos_jax.data.sources.pairs:SaliencyPairSource",
    "davis": "uvos_jax.data.sources.davis:DavisSource",
    "folder": "uvos_jax.data.sources.folder:FolderSource",
    "image_mask": "uvos_jax.data.sources.image_mask:ImageMaskSource",
    "fixation_video": "uvos_jax.data.sources.fixations:FixationVideoSource",
    "fixation_image": "uvos_jax.data.sources.fixations:FixationImageSource",
    "records": "uvos_jax.data.sources.records:RecordSource",
    "davis16": "uvos_jax.data.sources.annotated:Davis16Source",
    "davis17": "uvos_jax.data.sources.annotated:Davis17Source",
    "youtube_objects": "uvos_jax.data.sources.annotated:YouTubeObjectsSource",
    "fbms": "uvos_jax.data.sources.annotated:FbmsSource",
    "segtrack": "uvos_jax.data.sources.annotated:SegTrackSource",
    "visal": "uvos_jax.data.sources.annotated:ViSalSource",
    "davsod": "uvos_jax.data.sources.annotated:DavsodSource",
    "vsod": "uvos_jax.data.sources.annotated:VideoSaliencySource",
    "youtube_vos": "uvos_jax.data.sources.annotated:YouTubeVosSource",
    "flyingthings3d": "uvos_jax.data.sources.annotated:FlyingThings3DSource",
    "msra10k": "uvos_jax.data.sources.annotated:Msra10kSource",
    "duts": "uvos_jax.data.sources.annotated:DutsSource",
    "dut_omron": "uvos_jax.data.sources.annotated:DutOmronSource",
    "ecssd": "uvos_jax.data.sources.annotated:EcssdSource",
}
#: Fields of a configuration entry that belong to the pipeline, not to the source.
PIPELINE_FIELDS = ("name", "group", "weight")


def source_class(name: str) -> type:
    """The class behind a source name; raises `ConfigError` for an unknown one."""
    if name not in SOURCES:
        near = difflib.get_close_matches(str(name), SOURCES, n=2)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ConfigError(f"data source {name!r} is unknown; {hint} known: {', '.join(SOURCES)}")
    module, _, attribute = SOURCES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def make_source(name: str, **fields: Any) -> Any:
    """Builds a source.

    Raises:
      ConfigError: unknown source, or a field it does not have.
      DataError: its files are missing or laid out otherwise.
    """
    cls = source_class(name)
    try:
        return cls(**fields)
    except TypeError as error:
        if "argument" not in str(error):
            raise
        raise ConfigError(f"data source {name!r}: {error}") from error


def from_entry(entry: Mapping[str, Any], defaults: Mapping[str, Any]) -> Any:
    """Builds the source of a configuration entry, with defaults for fields it leaves out."""
    cls = source_class(entry["name"])
    fields = {k: v for k, v in defaults.items() if k in cls.ACCEPTS}
    fields |= {k: v for k, v in entry.items() if k not in PIPELINE_FIELDS}
    return make_source(entry["name"], **fields)

"""Builders of tensorflow_datasets that write array_record files without TensorFlow.

`builder_class("davis16")` is a `tfds.core.GeneratorBasedBuilder`; `manual_dir` is the folder of
the data set. Two things differ from the stock one:

- records are written in order, shard by shard. The stock writer holds a split in memory and needs
  TensorFlow's file system as soon as it exceeds 1 GB, which most of these sets do.
- finished shards are kept beside the final folder until all are there, so that an interrupted
  preparation goes on where it stopped. The folder gets its name when it is complete.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from uvos_jax.data.sources.check import checkable
from uvos_jax.data.tfds_builders.records import FORMAT, SHARD_BYTES, Shard, Statistics, plan, record
from uvos_jax.data.video_io import atomic_write
from uvos_jax.errors import ConfigError

VERSION = "1.0.0"
#: Folder of finished shards while others are missing, beside that of the version.
STAGING = f"incomplete.shards_{VERSION}"
#: Name of the one split of a set that has none.
WHOLE = "full"
INSTRUCTIONS = """Unpack the data set and pass its folder as manual_dir; `uvos data check` says
whether it is complete."""


def splits_of(dataset: str) -> tuple[str, ...]:
    """The splits a data set is prepared in; those of DAVSOD's test set stay apart."""
    splits = checkable()[dataset].SPLITS or (WHOLE,)
    return tuple(s for s in splits if not (dataset == "davsod" and s == "test"))


@functools.cache
def builder_class(dataset: str) -> type:
    """The builder of a data set; imports tensorflow_datasets.

    Raises:
      ConfigError: no such data set.
    """
    known = checkable()
    if dataset not in known:
        raise ConfigError(f"data set {dataset!r} is unknown: use one of {', '.join(known)}")
    from etils import epath

    name = "".join(word.title() for word in dataset.split("_"))
    fields = {
        "__doc__": known[dataset].__doc__,
        "__module__": __name__,
        "name": dataset,
        "pkg_dir_path": epath.Path(__file__).parent,
        "SOURCE": known[dataset],
    }
    return type(name, (_base_class(),), fields)


@functools.cache
def _base_class() -> type:
    import tensorflow_datasets as tfds

    class FrameBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """One record per frame, in order.

        Args:
          splits: which to prepare; all by default.
          options: of the layout, see `uvos_jax.data.sources.check.check`.
          shard_bytes: size of the source files that go into one shard.
          progress: called with a sentence after each shard.
        """

        VERSION = tfds.core.Version(VERSION)
        MANUAL_DOWNLOAD_INSTRUCTIONS = INSTRUCTIONS
        SOURCE: type

        def __init__(
            self,
            *,
            splits: tuple[str, ...] = (),
            options: dict[str, Any] | None = None,
            shard_bytes: int = SHARD_BYTES,
            progress: Callable[[str], None] = lambda _: None,
            **fields: Any,
        ):
            self.chosen = tuple(splits) or splits_of(self.name)
            self.options, self.shard_bytes = dict(options or {}), shard_bytes
            self.progress = progress
            super().__init__(**{"file_format": "array_record", **fields})

        def _info(self):
            types = tfds.features
            features = {
                "sequence": types.Text(),
                "name": types.Text(),
                "index": types.Scalar(np.int32),
                "frame": types.Image(shape=(None, None, 3)),
                "mask": types.Image(shape=(None, None, 1), encoding_format="png"),
                "has_mask": types.Scalar(np.bool_),
            }
            if self.name == "flyingthings3d":
                features["flow"] = types.Tensor(
                    shape=(None, None, 2), dtype=np.float32, encoding="zlib"
                )
                features["flow_valid"] = types.Scalar(np.bool_)
            return tfds.core.DatasetInfo(
                builder=self,
                description=self.__doc__,
                features=types.FeaturesDict(features),
                disable_shuffling=True,
                metadata=tfds.core.MetadataDict(),
            )

        def _log_download_bytes(self) -> None:
            """Nothing is downloaded, so nothing is said about it."""

        def _log_download_done(self) -> None:
            """Likewise."""

        def _source(self, root: str, split: str):
            return self.SOURCE(
                root,
                None if split == WHOLE else split,
                clips="frames",
                binary=not self.SOURCE.IDS,
                **self.options,
            )

        def _split_generators(self, dl_manager):
            root = os.fspath(dl_manager.manual_dir)
            return {s: self._generate_examples(self._source(root, s)) for s in self.chosen}

        def _generate_examples(self, source) -> Iterator[tuple[int, dict[str, Any]]]:
            frames = ((s, k) for s, q in enumerate(source.sequences) for k in range(len(q.frames)))
            for number, (s, k) in enumerate(frames):
                yield number, record(source, s, k)[0]

        def _generate_splits(self, dl_manager, download_config):
            del download_config
            root = os.fspath(dl_manager.manual_dir)
            # `data_dir` is a temporary folder here, its parent is that of the final one.
            final = Path(self.data_dir)
            staging = final.parent / STAGING
            staging.mkdir(parents=True, exist_ok=True)
            metadata: dict[str, Any] = {
                "format": FORMAT, "dataset": self.name, "ids": self.SOURCE.IDS,
                "options": self.options, "splits": {},
            }  # fmt: skip
            statistics, infos, moves = {}, [], []
            for split in self.chosen:
                source = self._source(root, split)
                shards = plan(source, self.shard_bytes)
                info, summary, files = self._write_split(split, source, shards, staging)
                infos.append(info)
                moves += files
                statistics[split] = {"sequences": len(source.sequences), **summary}
                metadata["splits"][split] = {
                    "fingerprints": [s.fingerprint for s in shards],
                    "layout": source.layout,
                    "sequences": [_entry(q) for q in source.sequences],
                }
            _write_json(final / "stats.json", statistics)
            # `write_to_directory` of the information stores it after this.
            self.info.metadata.clear()
            self.info.metadata.update(metadata)
            for kept, target in moves:
                os.replace(kept, target)
            shutil.rmtree(staging)
            return infos

        def _write_split(self, split, source, shards, staging):
            from tensorflow_datasets.core import example_serializer, file_adapters

            serializer = example_serializer.ExampleSerializer(
                self.info.features.get_serialized_info()
            )
            template = self._get_filename_template(split)
            statistics, total = Statistics(), 0
            paths = []
            for number, shard in enumerate(shards):
                kept = staging / f"{split}-{number}-{shard.fingerprint[:24]}.array_record"
                notes = kept.with_suffix(".json")
                # The notes are written last: a shard without them was interrupted.
                if not (notes.is_file() and kept.is_file()):
                    counted = Statistics()
                    examples = self._serialized(source, shard, serializer, counted)
                    with atomic_write(kept) as part:
                        file_adapters.ArrayRecordFileAdapter.write_examples(part, examples)
                    _write_json(notes, counted.sums)
                    self.progress(f"{self.name} {split}: shard {number + 1} of {len(shards)}")
                statistics.merge(Statistics(json.loads(notes.read_text())))
                total += kept.stat().st_size
                paths.append(kept)
            targets = [
                template.sharded_filepath(shard_index=n, num_shards=len(paths))
                for n in range(len(paths))
            ]
            info = tfds.core.SplitInfo(
                name=split,
                shard_lengths=[len(s.items) for s in shards],
                num_bytes=total,
                filename_template=template,
            )
            return info, statistics.summary(), list(zip(paths, targets, strict=True))

        def _serialized(self, source, shard: Shard, serializer, counted: Statistics):
            for number, (s, k) in enumerate(shard.items):
                features, arrays = record(source, s, k)
                counted.add(arrays)
                encoded = self.info.features.encode_example(features)
                yield number, serializer.serialize_example(encoded)

    return FrameBuilder


def _entry(sequence: Any) -> list[Any]:
    """[name, number of frames, numbers of the annotated ones or None for all]."""
    annotated = [k for k, mask in enumerate(sequence.masks) if mask is not None]
    everything = len(annotated) == len(sequence.frames)
    return [sequence.name, len(sequence.frames), None if everything else annotated]


def _write_json(path: Path, content: Any) -> None:
    with atomic_write(path) as part:
        part.write_text(json.dumps(content, indent=1) + "\n")

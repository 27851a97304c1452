"""From a data set's folder to array_record files: check, pack, count, all or nothing."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from uvos_jax.data.sources.check import check
from uvos_jax.data.tfds_builders.builder import (
    STAGING,
    VERSION,
    WHOLE,
    builder_class,
    splits_of,
)
from uvos_jax.data.tfds_builders.records import SHARD_BYTES, plan
from uvos_jax.errors import ConfigError, DataError


def prepare(
    dataset: str,
    root: str | Path,
    out: str | Path,
    *,
    split: str | None = None,
    partial: bool = False,
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[str], None] = lambda _: None,
    **options: Any,
) -> Path:
    """Checks a data set and packs it as `<out>/<dataset>/1.0.0`.

    The folder holds array_record shards, `stats.json` and what `tfds.builder_from_directory`
    needs. It appears under its name when it is complete; an interrupted call is continued by the
    next one, shard by shard. A prepared set whose sources have not changed is left as it is.

    Args:
      dataset: see `uvos data list`.
      split: only this one; all by default.
      partial: accept a part of the official set.
      overwrite: replace a set prepared from other files.
      shard_bytes: size of the source files of one shard.
      progress: called with a sentence now and then.
      options: of the layout.

    Returns:
      the folder.

    Raises:
      DataError: files are missing or damaged; or `out` holds the set made from other files.
      ConfigError: unknown data set, split or option; or another process is at it.
    """
    cls = builder_class(dataset)
    check(dataset, root, split=split, partial=partial, **options)
    parts = (split,) if split else splits_of(dataset)
    builder = cls(
        data_dir=str(out), splits=parts, options=options, shard_bytes=shard_bytes,
        progress=progress,
    )  # fmt: skip
    final = Path(out) / dataset / VERSION
    with _locked(final.parent):
        _remove_leftovers(final.parent)
        if final.is_dir() and not overwrite:
            if _matches(final, cls.SOURCE, root, parts, options, shard_bytes):
                progress(f"{final} is up to date")
                return final
            raise DataError(
                f"{final} was prepared from other files, splits or options: use overwrite=True "
                "(--overwrite) to replace it, or another output folder"
            )
        import tensorflow_datasets as tfds

        config = tfds.download.DownloadConfig(
            manual_dir=str(root),
            compute_stats=tfds.download.ComputeStatsMode.SKIP,
            download_mode=tfds.GenerateMode.REUSE_CACHE_IF_EXISTS
            if overwrite
            else tfds.GenerateMode.REUSE_DATASET_IF_EXISTS,
        )
        builder.download_and_prepare(download_config=config)
    return final


def _matches(final: Path, source: type, root, parts, options, shard_bytes: int) -> bool:
    try:
        there = json.loads((final / "metadata.json").read_text())
        stored = {s: there["splits"][s]["fingerprints"] for s in there["splits"]}
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{final} is no prepared data set of ours ({error}): remove it or use another folder"
        ) from error
    if set(stored) != set(parts) or there.get("options") != options:
        return False
    for part in parts:
        made = source(
            str(root), None if part == WHOLE else part, clips="frames", binary=not source.IDS,
            **options,
        )  # fmt: skip
        if [s.fingerprint for s in plan(made, shard_bytes)] != stored[part]:
            return False
    return True


def _remove_leftovers(folder: Path) -> None:
    """Temporary folders of killed processes; finished shards stay."""
    for path in folder.glob(f"incomplete.*_{VERSION}"):
        if path.name != STAGING:
            shutil.rmtree(path)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds a folder for this process; the system lets go of it even if the process is killed."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another process is preparing {folder}: wait until it is done"
            ) from None
        yield

"""From sources to batches: shuffled, sharded by process, mixed, augmented, resumable.

A group of sources becomes one iterator of numpy batches. Its position can be saved and restored
exactly (`get_state`, `set_state`, or grain's orbax handler). A group that is nothing but one
synthetic source is rendered in whole batches on the device instead, which costs the host nothing.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Iterator
from functools import partial
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np

from uvos_jax import synthetic
from uvos_jax.data import sources
from uvos_jax.data.cache import DecodedFiles
from uvos_jax.data.schema import validate_example
from uvos_jax.data.sources.environment import EnvironmentSource
from uvos_jax.data.sources.raycast import RaycastSource
from uvos_jax.data.sources.synthetic import SyntheticSource
from uvos_jax.data.transforms import Augment, resize_example
from uvos_jax.errors import ConfigError, DataError, ShapeError

log = logging.getLogger("uvos_jax")
#: Numbers the examples that were skipped (`data.skip_corrupt`), for the log.
_skipped = itertools.count(1)


@dataclasses.dataclass(frozen=True)
class _Sample(grain.transforms.RandomMap):
    """Reads an example by index and augments it with the pipeline's generator."""

    source: Any
    augment: Augment | None
    skip_corrupt: bool

    def random_map(self, index: int, rng: np.random.Generator) -> dict[str, Any] | None:
        try:
            example = self.source.sample(int(index), rng)
            validate_example(example, name=f"{type(self.source).__name__}[{index}]")
        except (DataError, ShapeError) as error:
            if not self.skip_corrupt:
                raise
            log.warning("skipped corrupt example %d of this process: %s", next(_skipped), error)
            return None
        return self.augment(example, rng) if self.augment else example


@partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _render_batch(
    seed, first, batch_size: int, cfg: Any, outputs: tuple[str, ...], fixations: bool = False
):
    indices = first + jnp.arange(batch_size)
    key = jax.random.key(seed)
    record = jax.lax.map(
        lambda i: synthetic.clip(jax.random.fold_in(key, i), cfg, outputs), indices
    )
    T = cfg.frames
    ones = jnp.ones((batch_size, T), bool)
    batch = {
        "frames": jnp.round(record["video"] * 255).astype(jnp.uint8),
        "masks": record["mask"],
        "valid": ones,
        "has_mask": ones,
        "example_id": indices.astype(jnp.int32),
    }
    if "flow_fw" in record:
        batch["flow"] = record["flow_fw"]
        batch["flow_valid"] = ones.at[:, -1].set(False)
    if fixations:
        batch["fixations"] = synthetic.fixation_maps(record["mask"])
    return batch


class SyntheticBatches:
    """Batches of one synthetic source, rendered by one compiled call on the default device.

    Clip numbers advance by the global batch, each process rendering its own share. The next batch
    is started before it is asked for, so that rendering overlaps with the training step.
    """

    def __init__(
        self, source: SyntheticSource | RaycastSource | EnvironmentSource, batch_size: int, *,
        process_index: int, process_count: int, seed: int,
    ):  # fmt: skip
        self.source, self.batch_size = source, batch_size
        self.offset, self.stride = process_index * batch_size, process_count * batch_size
        self.seed = (source.seed * 1_000_003 + seed) % 2**31
        self.step = 0
        self._ahead: dict[int, Any] = {}

    def __iter__(self) -> SyntheticBatches:
        return self

    def _render(self, step: int) -> dict[str, jax.Array]:
        first = np.int32((step * self.stride + self.offset) % 2**31)
        if isinstance(self.source, (RaycastSource, EnvironmentSource)):
            return self.source.render(self.seed, first, self.batch_size)
        return _render_batch(
            np.uint32(self.seed), first, self.batch_size, self.source.cfg, self.source.outputs,
            self.source.fixations,
        )  # fmt: skip

    def __next__(self) -> dict[str, jax.Array]:
        batch = self._ahead.pop(self.step, None)
        batch = self._render(self.step) if batch is None else batch
        self.step += 1
        self._ahead = {self.step: self._render(self.step)}
        return batch

    def get_state(self) -> dict[str, int]:
        return {"step": self.step}

    def set_state(self, state: dict[str, int]) -> None:
        self.step = int(state["step"])
        self._ahead = {}


def group_entries(data: Any, group: str) -> list[dict[str, Any]]:
    """The configuration entries of a group.

    Raises:
      ConfigError: there are none.
    """
    entries = [dict(e) for e in data.train if e.get("group", "default") == group]
    if not entries:
        known = sorted({e.get("group", "default") for e in data.train})
        raise ConfigError(f"data.train has no source of group {group!r}: it has {known}")
    return entries


def make_train_iter(
    data: Any,
    group: str,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    seed: int = 0,
) -> Any:
    """An endless iterator of batches of one group.

    Args:
      data: the `data` section of a configuration.
      batch_size: examples per batch of this process.
      seed: of shuffling and augmentation.

    Returns:
      an iterator with `get_state` and `set_state`, yielding dicts of arrays `[B,...]`.

    Raises:
      ConfigError: no such group, or impossible settings.
      DataError: missing data; while iterating: an unreadable example, naming its file.
    """
    defaults = {"clip_len": data.clip_len, "stride": data.stride, "size": tuple(data.size)}
    if data.get("sampling"):
        defaults["sampling"] = data.sampling
    entries = group_entries(data, group)
    built = [sources.from_entry(entry, defaults) for entry in entries]
    rendered = (SyntheticSource, RaycastSource, EnvironmentSource)
    if len(built) == 1 and isinstance(built[0], rendered):
        return SyntheticBatches(
            built[0], batch_size, process_index=process_index, process_count=process_count,
            seed=seed,
        )  # fmt: skip
    cache = DecodedFiles(1e9 * data.get("cache_gb", 0.0))
    for source in built:
        if hasattr(source, "cache"):
            source.cache = cache
    augment = Augment.from_config(data)
    parts, weights = [], []
    for number, (entry, source) in enumerate(zip(entries, built, strict=True)):
        indices = grain.MapDataset.range(len(source)).seed(seed + number).shuffle()
        own = augment if not isinstance(source, rendered) else None
        part = indices.repeat(None).random_map(_Sample(source, own, bool(data.skip_corrupt)))
        parts.append(part)
        weights.append(float(entry.get("weight", 1.0)))
    mixed = parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, weights)
    # One stream for all, of which each process takes every n-th example: a global batch holds the
    # same examples whatever the number of processes.
    mixed = mixed[process_index::process_count]
    threads = 1 if data.workers else 8
    read = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(8, 2 * batch_size))
    dataset = mixed.to_iter_dataset(read)
    if data.skip_corrupt:
        dataset = dataset.filter(lambda example: example is not None)
    dataset = dataset.batch(batch_size, drop_remainder=True)
    if data.workers:
        from absl import flags

        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(
            num_workers=data.workers, per_worker_buffer_size=max(1, data.prefetch)
        )
        dataset = dataset.mp_prefetch(options)
    return iter(dataset)


def make_eval_examples(data: Any) -> Iterator[dict[str, Any]]:
    """Whole clips of the evaluation sources, resized to `data.size`.

    Synthetic entries give `length` clips (default 16) of 4 frames from seed 1 << 20, which
    training never draws.
    """
    for entry in data.eval:
        entry = dict(entry)
        if entry["name"] in ("synthetic", "raycast", "environment"):
            entry = {"length": 16, "seed": 1 << 20, "clip_len": 4, **entry}
            source = sources.from_entry(entry, {"size": tuple(data.size)})
        else:
            source = sources.from_entry({"clips": "sequences", **entry}, {})
        rng = np.random.default_rng(0)
        for index in range(len(source)):
            yield resize_example(source.sample(index, rng), tuple(data.size))

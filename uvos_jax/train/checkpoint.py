"""Checkpoints of state, input position and configuration, with orbax underneath.

A step folder holds `state` (parameters, statistics, optimiser, random key) with its `fingerprint`,
`data` (the position of every input iterator, per process) and `config` (JSON). The newest and the
best are kept. Saving is asynchronous; a damaged newest checkpoint is passed over, loudly.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from uvos_jax.errors import CheckpointError, ConfigError
from uvos_jax.train.state import TrainState

log = logging.getLogger("uvos_jax")

#: Fields that may differ between the run that saved and the one that resumes.
FREE_FIELDS = (
    "train.total_steps", "train.log_every", "train.eval_every", "train.checkpoint_every",
    "train.keep_latest", "train.keep_best", "train.early_stop", "data.prefetch", "data.eval",
    "predict", "mesh", "model.init_from", "model.init_strict", "rl",
)  # fmt: skip


class InputPosition:
    """Bundles the iterators of all groups under grain's checkpoint interface."""

    def __init__(self, iterators: dict[str, Any]):
        self.iterators = iterators

    def get_state(self) -> bytes:
        return json.dumps({k: _encode(it.get_state()) for k, it in self.iterators.items()}).encode()

    def set_state(self, state: bytes) -> None:
        for name, value in json.loads(state).items():
            self.iterators[name].set_state(_decode(value))

    def start_prefetch(self) -> None:
        """Part of grain's interface; the iterators begin when they are asked."""

    def move_in(self, folder: Path) -> None:
        """Takes over a position that another number of processes saved.

        All of them stood at the same place of one stream of examples, of which every process takes
        every n-th; so the place in that stream is what counts.

        Raises:
          ConfigError: the position cannot be shared out anew.
        """
        files = sorted(folder.glob("process_*-of-*.json"))
        before = int(files[0].stem.rpartition("-of-")[2])
        states = [json.loads(file.read_text()) for file in files]
        if len(files) != before:
            raise ValueError(f"{len(files)} of {before} input positions in {folder}")
        moved = {}
        for name, state in states[0].items():
            alike = all(other[name] == state for other in states)
            if not alike or not isinstance(state, dict) or set(state) - {"step", "next_index"}:
                raise ConfigError(
                    f"the data of group {name!r} were read by {before} processes, each at a place "
                    f"of its own (data.workers or data.skip_corrupt): resume with {before} "
                    f"processes instead of {jax.process_count()}"
                )
            moved[name] = {
                key: value * before // jax.process_count() if key == "next_index" else value
                for key, value in state.items()
            }
        self.set_state(json.dumps(moved).encode())


def _encode(state: Any) -> Any:
    return {"bytes": state.decode()} if isinstance(state, bytes) else state


def _decode(state: Any) -> Any:
    if isinstance(state, dict) and set(state) == {"bytes"}:
        return state["bytes"].encode()
    return state


class Checkpoints:
    """The checkpoints of one run.

    Args:
      folder: `<workdir>/checkpoints`.
      keep_latest: newest steps kept. keep_best: (metric, n) steps kept for their score.
    """

    def __init__(self, folder: Path, *, keep_latest: int, keep_best: tuple[str, int]):
        metric, count = keep_best
        managers = ocp.checkpoint_managers
        policies = [managers.LatestN(keep_latest)]

        def score(metrics: Any) -> float:
            return float((metrics or {}).get(metric, float("-inf")))

        if count:
            policies.append(managers.BestN(get_metric_fn=score, n=count))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=managers.AnyPreservationPolicy(policies),
            best_fn=score if count else None,
            enable_async_checkpointing=True,
        )
        self.folder = folder.resolve()
        self.metric = metric
        self.manager = ocp.CheckpointManager(self.folder, options=options)

    def save(
        self,
        step: int,
        state: TrainState,
        inputs: InputPosition,
        config: dict[str, Any],
        metrics: dict[str, float] | None = None,
    ) -> None:
        """Starts saving; returns when the state has been copied."""
        if step in self.manager.all_steps():
            return
        self.manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(as_tree(state)),
                data=grain.checkpoint.CheckpointSave(inputs),
                config=ocp.args.JsonSave(config),
                fingerprint=ocp.args.JsonSave({"state": fingerprint(as_tree(state))}),
            ),
            metrics=metrics or {},
        )

    def restore(
        self,
        abstract_at: Callable[[int], TrainState],
        inputs: InputPosition,
        config: dict[str, Any],
    ) -> TrainState | None:
        """The newest checkpoint that can be read, or None if there is none.

        Args:
          abstract_at: shapes, dtypes and shardings of the state saved at a step.

        Raises:
          ConfigError: the run was started with another configuration.
          CheckpointError: there are checkpoints, but none can be read.
        """
        steps = sorted(self.manager.all_steps(), reverse=True)
        start = inputs.get_state()
        failures = []
        for step in steps:
            try:
                saved = self.manager.restore(
                    step, args=ocp.args.Composite(config=ocp.args.JsonRestore())
                )["config"]
            except Exception as error:
                self._pass_over(step, error, failures)
                continue
            check_same_config(saved, config)
            abstract = abstract_at(step)
            try:
                restored = self._restore_step(step, abstract, inputs)
            except ConfigError:
                raise
            except Exception as error:
                inputs.set_state(start)
                self._pass_over(step, error, failures)
                continue
            for _, bad in failures:
                self.manager.delete(bad)
            return restored
        if failures:
            error, step = failures[0]
            raise CheckpointError(
                f"none of the checkpoints in {self.folder} can be read (step {step}: {error}); "
                "remove the folder to start anew"
            )
        return None

    def _restore_step(self, step: int, abstract: TrainState, inputs: InputPosition) -> TrainState:
        items: dict[str, Any] = {"state": ocp.args.StandardRestore(as_tree(abstract))}
        folder = self.folder / str(step) / "data"
        same = (folder / f"process_0-of-{jax.process_count()}.json").exists()
        if same:
            items["data"] = grain.checkpoint.CheckpointRestore(inputs)
        items["fingerprint"] = ocp.args.JsonRestore()
        restored = self.manager.restore(step, args=ocp.args.Composite(**items))
        if fingerprint(restored["state"]) != restored["fingerprint"]["state"]:
            raise ValueError("the values are not those that were saved")
        if not same:
            inputs.move_in(folder)
        return from_tree(restored["state"], abstract)

    def _pass_over(self, step: int, error: Exception, failures: list) -> None:
        first_line = str(error).strip().splitlines()[0][:200] if str(error).strip() else ""
        log.warning(
            "checkpoint of step %d is damaged (%s: %s): falling back to the one before it",
            step,
            type(error).__name__,
            first_line,
        )
        failures.append((first_line, step))

    def best(self) -> dict[str, float]:
        """Step and score of the best evaluated checkpoint, empty if none was evaluated."""
        found: dict[str, float] = {}
        for step in self.manager.all_steps():
            score = (self.manager.metrics(step) or {}).get(self.metric)
            if score is not None and score > found.get(self.metric, float("-inf")):
                found = {self.metric: float(score), "step": step}
        return found

    def wait(self) -> None:
        """Returns when everything started is on disk."""
        self.manager.wait_until_finished()

    def close(self) -> None:
        """Waits and releases threads."""
        self.manager.close()


def fingerprint(tree: Any) -> str:
    """A sum over the bits of all arrays that shows damage; the same for any sharding.

    The stored format checks its index, but not the values themselves.
    """
    total = 0
    for number, leaf in enumerate(jax.tree.leaves(tree)):
        own = 0
        for shard in leaf.addressable_shards:
            if shard.replica_id == 0:
                data = np.asarray(shard.data)
                words = np.ascontiguousarray(data).reshape(-1).view(f"u{data.dtype.itemsize}")
                own += int(words.sum(dtype=np.uint64))
        total += own * (2 * number + 1)
    total %= 2**64
    if jax.process_count() > 1:
        halves = np.asarray([total >> 32, total % 2**32], np.uint32)
        parts = np.asarray(multihost_utils.process_allgather(halves)).astype(object)
        total = int(sum((high << 32) + low for high, low in parts)) % 2**64
    return f"{total:016x}"


def as_tree(state: TrainState | dict[str, Any]) -> dict[str, Any]:
    """State as plain nested dictionaries, the form that is stored; such ones stay as they are."""
    if isinstance(state, dict):
        return state
    tree = {
        "step": state.step,
        "params": state.params,
        "batch_stats": state.batch_stats,
        "opt_state": state.opt_state,
        "rng": jax.random.key_data(state.rng)
        if not isinstance(state.rng, jax.ShapeDtypeStruct)
        else jax.ShapeDtypeStruct(
            jax.eval_shape(jax.random.key_data, state.rng).shape,
            jax.numpy.uint32,
            sharding=state.rng.sharding,
        ),
    }
    if state.ema is not None:
        tree["ema"] = state.ema
    return {k: v for k, v in tree.items() if jax.tree.leaves(v)}


def from_tree(tree: dict[str, Any], like: Any) -> Any:
    """Inverse of `as_tree`."""
    if isinstance(like, dict):
        return tree
    return like.replace(
        step=tree["step"],
        params=tree["params"],
        batch_stats=tree.get("batch_stats", {}),
        opt_state=tree.get("opt_state", like.opt_state),
        rng=jax.random.wrap_key_data(tree["rng"]),
        ema=tree.get("ema"),
    )


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(values, dict):
        return {k: v for key in values for k, v in _flat(values[key], f"{prefix}{key}.").items()}
    return {prefix[:-1]: values}


def check_same_config(saved: dict[str, Any], current: dict[str, Any]) -> None:
    """Raises `ConfigError` naming the fields in which a resumed run differs from its start."""
    a, b = _flat(json.loads(json.dumps(saved))), _flat(json.loads(json.dumps(current)))
    differing = [
        k
        for k in sorted(a.keys() | b.keys())
        if a.get(k) != b.get(k) and not any(k == f or k.startswith(f"{f}.") for f in FREE_FIELDS)
    ]
    if differing:
        shown = "; ".join(f"{k} was {a.get(k)!r}, is {b.get(k)!r}" for k in differing[:4])
        raise ConfigError(
            f"cannot resume with another configuration: {shown}; use a new --workdir, or restore "
            "the old values"
        )

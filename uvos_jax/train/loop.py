"""Runs a training recipe: stages, phases, logging, evaluation, checkpoints, resume.

The loop knows nothing of any model. Per step it hands a batch to a compiled function and takes the
new state; numbers stay on the device until they are logged.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import threading
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uvos_jax import config as configs
from uvos_jax import registry
from uvos_jax.errors import ConfigError, DataError, UvosError
from uvos_jax.train import mesh as meshes
from uvos_jax.train.checkpoint import Checkpoints, InputPosition
from uvos_jax.train.logging import Progress, RunLog, log
from uvos_jax.train.optimizer import make_optimizer
from uvos_jax.train.state import TrainState
from uvos_jax.train.step import compile_step, init_state, make_train_step
from uvos_jax.types import Phase, Stage, Variables


class NonFiniteError(UvosError, ArithmeticError):
    """Loss or gradients became NaN or infinite."""


@dataclasses.dataclass(frozen=True)
class Segment:
    """A stage with its place in the run: global steps [start, end)."""

    stage: Stage
    start: int
    end: int
    config: Any

    def phase(self, step: int) -> Phase:
        """The phase of global step `step`."""
        return self.stage.phases[(step - self.start) % len(self.stage.phases)]


def plan(system: Any, config: Any) -> list[Segment]:
    """The stages of a run one after another, with the configuration's overrides applied.

    Raises:
      ConfigError: `train.stages` names a stage the system does not have, or a stage needs data of
        a group no source belongs to.
    """
    stages = {s.name: s for s in system.stages(config)}
    chosen = list(stages.values())
    if config.train.stages:
        chosen = []
        for entry in config.train.stages:
            name = entry["name"]
            if name not in stages:
                raise ConfigError(
                    f"train.stages names {name!r}; {config.model.name} has {list(stages)}"
                )
            steps = int(entry.get("steps", stages[name].steps))
            chosen.append(dataclasses.replace(stages[name], steps=steps))
    groups = {source.get("group", "default") for source in config.data.train}
    segments, start = [], 0
    for stage in chosen:
        for phase in stage.phases:
            if phase.data not in groups:
                raise ConfigError(
                    f"stage {stage.name!r} needs data of group {phase.data!r}, but data.train has "
                    f"{sorted(groups)}; add a source with group={phase.data!r}"
                )
        stage_config = configs.from_dict(config.to_dict())
        configs.override(stage_config, {f"optim.{k}": v for k, v in stage.optim})
        if stage.steps > 0:
            segments.append(Segment(stage, start, start + stage.steps, stage_config))
            start += stage.steps
    if not segments:
        raise ConfigError("nothing to train: every stage has 0 steps; set train.total_steps")
    return segments


class _StopOnSignal:
    """Notes SIGTERM and lets the loop finish its step, save and leave."""

    def __init__(self):
        self.requested = False

    def __enter__(self) -> _StopOnSignal:
        self.previous = None
        if threading.current_thread() is threading.main_thread():
            self.previous = signal.signal(signal.SIGTERM, self._note)
        return self

    def _note(self, *_: Any) -> None:
        self.requested = True

    def __exit__(self, *_: Any) -> None:
        if self.previous is not None:
            signal.signal(signal.SIGTERM, self.previous)


def make_inputs(config: Any, segments: list[Segment], batch_size: int) -> dict[str, Any]:
    """One checkpointable iterator per group of sources that some phase reads."""
    from uvos_jax.data.pipeline import make_train_iter

    groups = {phase.data for segment in segments for phase in segment.stage.phases}
    return {
        group: make_train_iter(
            config.data,
            group,
            batch_size=batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            seed=config.data.shuffle_seed,
        )
        for group in sorted(groups)
    }


def load_initial(system: Any, state: TrainState, config: Any) -> TrainState:
    """Replaces fresh parameters by those of `model.init_from`, checked name by name."""
    from uvos_jax.convert.variables import load_variables, merge_strict

    loaded = load_variables(config.model.init_from)
    merged, report = merge_strict(state.variables(), loaded, strict=config.model.init_strict)
    for kind, names in report.items():
        if names:
            log.warning("init_from: %d parameters %s, such as %s", len(names), kind, names[0])
    params = jax.tree.map(
        lambda old, new: jax.device_put(jnp.asarray(new), old.sharding),
        state.variables(),
        merged,
    )
    state = state.replace(params=params["params"], batch_stats=params.get("batch_stats", {}))
    if state.ema is not None:
        state = state.replace(ema=jax.tree.map(jnp.copy, state.params))
    return state


class Trainer:
    """One run in one working directory.

    Args:
      config: the full configuration.
      workdir: where logs, checkpoints and the final weights go; an earlier run there is resumed.
      inputs: iterators per group, instead of those the configuration describes.
      system: a built system, instead of the configuration's.
      progress: show a progress line.
    """

    def __init__(
        self,
        config: Any,
        workdir: str | Path,
        *,
        inputs: dict[str, Any] | None = None,
        system: Any = None,
        progress: bool = True,
    ):
        self.config = config
        self.workdir = Path(workdir).resolve()
        self.main = jax.process_index() == 0
        self.show = progress and self.main
        self.system = system or registry.get(config.model.name)(configs.model_section(config))
        self.segments = plan(self.system, config)
        self.total = self.segments[-1].end
        self.mesh = meshes.make_mesh(config.mesh.data, config.mesh.fsdp)
        local = meshes.local_batch_size(config.data.batch_size, self.mesh)
        if config.data.batch_size % (config.optim.accumulate * self.mesh.devices.size):
            raise ConfigError(
                f"data.batch_size={config.data.batch_size} must be a multiple of devices x "
                f"optim.accumulate = {self.mesh.devices.size} x {config.optim.accumulate}"
            )
        self.workdir.mkdir(parents=True, exist_ok=True)
        self.inputs = inputs or make_inputs(config, self.segments, local)
        self.position = InputPosition(self.inputs)
        best = config.train.keep_best
        self.checkpoints = Checkpoints(
            self.workdir / "checkpoints",
            keep_latest=config.train.keep_latest,
            keep_best=(best["metric"], best["n"]) if config.train.eval_every else ("J", 0),
        )
        self.stored_config = json.loads(configs.to_json(config))
        self._steps: dict[tuple[int, str], Any] = {}
        self.last_saved: int | None = None
        self.best: dict[str, float] = {}

    # ----- state --------------------------------------------------------------------------

    def _optimizer(self, segment: Segment, phase: Phase, params: Any):
        return make_optimizer(segment.config.optim, params, segment.end - segment.start, phase)

    def start(self) -> TrainState:
        """A fresh or restored state, placed on the mesh."""
        first = self.segments[0]

        def build() -> TrainState:
            return init_state(
                self.system,
                self.config.seed,
                lambda params: self._optimizer(first, first.phase(0), params)[0],
                ema=self.config.optim.ema > 0,
            )

        shapes = jax.eval_shape(build)
        self.shardings = meshes.parameter_shardings(self.mesh, shapes)
        abstract = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, self.shardings
        )
        restored = self.checkpoints.restore(abstract, self.position, self.stored_config)
        if restored is not None:
            log.info("resuming at step %d of %d", int(restored.step), self.total)
            self.last_saved = int(restored.step)
            return restored
        state = jax.jit(build, out_shardings=self.shardings)()
        if self.config.model.init_from:
            state = load_initial(self.system, state, self.config)
        return state

    def _step_function(self, index: int, phase: Phase, state: TrainState):
        key = (index, phase.name)
        if key not in self._steps:
            segment = self.segments[index]
            optimizer, schedule = self._optimizer(segment, phase, state.params)
            step = make_train_step(
                self.system,
                optimizer,
                schedule,
                phase=phase,
                accumulate=segment.config.optim.accumulate,
                ema=segment.config.optim.ema,
                stage_start=segment.start,
            )
            self._steps[key] = compile_step(step, self.mesh, self.shardings)
        return self._steps[key]

    def _enter_stage(self, segment: Segment, state: TrainState) -> TrainState:
        """Resets optimiser moments at the start of a stage that asks for it."""
        if segment.start == 0 or not segment.stage.reset_optimizer:
            return state
        optimizer, _ = self._optimizer(segment, segment.phase(segment.start), state.params)
        fresh = jax.jit(optimizer.init, out_shardings=self.shardings.opt_state)(state.params)
        return state.replace(opt_state=fresh)

    # ----- the run ------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Trains to the end (or to SIGTERM) and returns a summary.

        Returns:
          `step`, `loss` (last logged), `best` (scores of the best evaluation), `finished`,
          `weights` (path of the final parameters, if finished).

        Raises:
          NonFiniteError: loss or gradients stopped being finite.
        """
        with contextlib.ExitStack() as stack:
            stop = stack.enter_context(_StopOnSignal())
            stack.callback(self.checkpoints.close)
            stack.callback(self._close_inputs)
            state = self.start()
            step = int(state.step)
            if self.main:
                (self.workdir / "config.json").write_text(configs.to_json(self.config))
            self.log = RunLog(self.workdir, active=self.main, start_step=step)
            stack.callback(self.log.close)
            progress = Progress(self.total, step, active=self.show)
            stack.callback(progress.close)
            state, values = self._loop(state, step, progress, stop)
            step = int(state.step)
            finished = step >= self.total
            if finished and self.config.train.eval_every and "J" not in values:
                values |= self._evaluate(state)
            self._save(step, state, values)
            self.checkpoints.wait()
            summary = {
                "step": step,
                "loss": values.get("loss"),
                "best": self.best,
                "finished": finished,
            }
            if finished and self.main:
                summary["weights"] = str(self._export(state))
        return summary

    def _loop(self, state: TrainState, step: int, progress: Progress, stop: _StopOnSignal):
        settings = self.config.train
        pending: list[dict[str, Any]] = []
        waited, since, values = 0.0, time.monotonic(), {}
        for index, segment in enumerate(self.segments):
            if step >= segment.end:
                continue
            if step == segment.start:
                log.info("stage %r: %d steps", segment.stage.name, segment.stage.steps)
                state = self._enter_stage(segment, state)
            while step < segment.end and not stop.requested:
                phase = segment.phase(step)
                began = time.monotonic()
                try:
                    batch = next(self.inputs[phase.data])
                except StopIteration:
                    raise DataError(
                        f"the data of group {phase.data!r} ended at step {step}; training sources "
                        "must repeat"
                    ) from None
                batch = meshes.place_batch(batch, self.mesh)
                waited += time.monotonic() - began
                state, metrics = self._step_function(index, phase, state)(state, batch)
                pending.append(metrics)
                step += 1
                evaluate = settings.eval_every and step % settings.eval_every == 0
                save = step % settings.checkpoint_every == 0
                if step % settings.log_every == 0 or step == self.total or save or evaluate:
                    frames = int(np.prod(batch["frames"].shape[:2]))
                    values = self._flush(step, pending, segment, frames, waited, since)
                    pending, waited, since = [], 0.0, time.monotonic()
                    progress.update(step, values)
                if evaluate:
                    values |= self._evaluate(state)
                    self.log.write(step, {k: values[k] for k in ("J",) if k in values})
                    since = time.monotonic()
                if save:
                    self._save(step, state, values)
            if stop.requested:
                log.warning("asked to stop: saving at step %d", step)
                break
        if pending:
            values = self._flush(step, pending, segment, 0, waited, since)
        return state, values

    def _flush(
        self, step: int, pending: list, segment: Segment, frames: int, waited: float, since: float
    ) -> dict[str, Any]:
        """Fetches the metrics of the last steps, checks them, writes their means."""
        rows = jax.device_get(pending)
        elapsed = max(time.monotonic() - since, 1e-9)
        losses = [float(r["loss"]) for r in rows]
        for offset, row in enumerate(rows):
            if not row["finite"]:
                at = step - len(rows) + offset + 1
                terms = {k: float(v) for k, v in row.items() if k not in ("finite", "lr")}
                saved = "none yet" if self.last_saved is None else f"step {self.last_saved}"
                raise NonFiniteError(
                    f"loss or gradients are not finite at step {at} ({terms}); the last good "
                    f"checkpoint is {saved} in {self.checkpoints.folder}; lower optim.lr or set "
                    "optim.clip_norm"
                )
        keys = {k for row in rows for k in row} - {"finite"}
        values: dict[str, Any] = {
            k: float(np.mean([row[k] for row in rows if k in row])) for k in sorted(keys)
        }
        values |= {
            "frames_per_second": frames * len(rows) / elapsed,
            "steps_per_second": len(rows) / elapsed,
            "input_share": min(waited / elapsed, 1.0),
        }
        self.log.write(step, {**values, "stage": segment.stage.name, "losses": losses})
        return values

    def _evaluate(self, state: TrainState) -> dict[str, float]:
        """Mean J on the evaluation sources; remembers the best."""
        from uvos_jax.data.pipeline import make_eval_examples
        from uvos_jax.train.validate import mean_j

        clips = make_eval_examples(self.config.data)
        variables = state.variables(averaged=True)
        j = mean_j(self.system, variables, clips, threshold=self.config.predict.threshold)
        if j > self.best.get("J", float("-inf")):
            self.best = {"J": j, "step": int(state.step)}
        if self.show:
            log.info("step %d: J %.4f on the evaluation clips", int(state.step), j)
        return {"J": j}

    def _save(self, step: int, state: TrainState, values: dict[str, Any]) -> None:
        scores = {"J": values["J"]} if "J" in values else None
        self.checkpoints.save(step, state, self.position, self.stored_config, scores)
        self.last_saved = step

    def _export(self, state: TrainState) -> Path:
        """Writes the final parameters (averaged ones if there are any) with the configuration."""
        from uvos_jax.convert.variables import save_variables

        variables = Variables(jax.device_get(state.variables(averaged=True)))
        return save_variables(
            variables,
            self.workdir / "weights.npz",
            config=self.config,
            spec=self.system.spec,
            extra={"step": int(state.step)},
        )

    def _close_inputs(self) -> None:
        for iterator in self.inputs.values():
            close = getattr(iterator, "close", None)
            if close is not None:
                close()


def train(config: Any, workdir: str | Path, *, progress: bool = True) -> dict[str, Any]:
    """Trains or resumes a configuration in `workdir`; see `Trainer.run` for the summary."""
    configs.validate(config)
    return Trainer(config, workdir, progress=progress).run()

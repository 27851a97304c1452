"""Runs a training recipe: stages, phases, logging, evaluation, checkpoints, resume.

The loop knows nothing of any model. Per step it hands a batch to a compiled function and takes the
new state; numbers stay on the device until they are logged.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from uvos_jax import config as configs
from uvos_jax.errors import ConfigError, DataError, UvosError
from uvos_jax.train import mesh as meshes
from uvos_jax.train import stages
from uvos_jax.train.checkpoint import Checkpoints, InputPosition
from uvos_jax.train.initial import check_initial, load_initial
from uvos_jax.train.logging import Progress, RunLog, log
from uvos_jax.train.meter import StepClock, flops_of, memory, utilization
from uvos_jax.train.optimizer import make_schedule
from uvos_jax.train.preempt import StopRequest
from uvos_jax.train.profile import StepTrace
from uvos_jax.train.stages import Segment
from uvos_jax.train.state import TrainState
from uvos_jax.train.step import compile_step, init_state, make_train_step
from uvos_jax.types import Phase, Variables

#: Clips drawn at an evaluation.
PICTURES = 4
#: Steps the host may be ahead of the devices.
AHEAD = 2


class NonFiniteError(UvosError, ArithmeticError):
    """Loss or gradients became NaN or infinite."""


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


class Trainer:
    """One run in one working directory.

    Args:
      config: the full configuration.
      workdir: where logs, checkpoints and the final weights go; an earlier run there is resumed.
      inputs: iterators per group, instead of those the configuration describes.
      system: a built system, instead of the configuration's.
      eval_clips: called for the clips of an evaluation, instead of the configuration's.
      progress: show a progress line.
      profile: trace this many steps, once the first ones have been compiled and run.
    """

    def __init__(
        self,
        config: Any,
        workdir: str | Path,
        *,
        inputs: dict[str, Any] | None = None,
        system: Any = None,
        eval_clips: Any = None,
        progress: bool = True,
        profile: int = 0,
    ):
        self.config = config
        self.workdir = Path(workdir).resolve()
        self.main = jax.process_index() == 0
        self.show = progress and self.main
        self.segments = stages.plan(config, system)
        self.system = self.segments[0].system
        self.total = self.segments[-1].end
        self.eval_clips = eval_clips or self._configured_clips
        if config.train.eval_every and eval_clips is None and not config.data.eval:
            raise ConfigError(
                f"train.eval_every={config.train.eval_every}, but data.eval names no source; add "
                "one, or set train.eval_every=0"
            )
        if config.train.early_stop and not config.train.eval_every:
            raise ConfigError("train.early_stop needs evaluations: set train.eval_every")
        check_initial(config)
        self.mesh = meshes.make_mesh(config.mesh.data, config.mesh.fsdp)
        local = meshes.local_batch_size(config.data.batch_size, self.mesh)
        for segment in self.segments:
            accumulate = segment.config.optim.accumulate
            if config.data.batch_size % (accumulate * self.mesh.devices.size):
                raise ConfigError(
                    f"data.batch_size={config.data.batch_size} must be a multiple of devices x "
                    f"optim.accumulate = {self.mesh.devices.size} x {accumulate}"
                )
        self.inputs = inputs or make_inputs(config, self.segments, local)
        self.position = InputPosition(self.inputs)
        try:
            self.workdir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot make the working directory {workdir}: {error}") from error
        best = config.train.keep_best
        self.checkpoints = Checkpoints(
            self.workdir / "checkpoints",
            keep_latest=config.train.keep_latest,
            keep_best=(best["metric"], best["n"]) if config.train.eval_every else ("J", 0),
        )
        self.stored_config = json.loads(configs.to_json(config))
        self.clock = StepClock()
        self.trace = StepTrace(self.workdir / "profile", profile if self.main else 0)
        self._compiled: dict[tuple, Any] = {}
        self._seen: set[str] = set()
        self._flops: float | None = None
        self.last_saved: int | None = None
        self.best: dict[str, float] = {}

    # ----- state --------------------------------------------------------------------------

    def _abstract(self, segment: Segment) -> TrainState:
        """Shapes, dtypes and shardings of the state while `segment` runs."""
        shapes = jax.eval_shape(lambda: self._fresh(segment))
        shardings = meshes.parameter_shardings(self.mesh, shapes)
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
        )

    def _fresh(self, segment: Segment) -> TrainState:
        phase = segment.stage.phases[0]
        return init_state(
            segment.system,
            self.config.seed,
            lambda params: stages.optimizer_of(segment, phase, params),
            ema=any(s.config.optim.ema > 0 for s in self.segments),
        )

    def start(self) -> TrainState:
        """A fresh or restored state, placed on the mesh."""
        first = self._abstract(self.segments[0])
        stages.check_carried_optimizers(self.segments, first.params)
        restored = self.checkpoints.restore(
            lambda step: self._abstract(stages.segment_that_saved(self.segments, step)),
            self.position,
            self.stored_config,
        )
        if restored is not None:
            self.last_saved = int(restored.step)
            self.best = self.checkpoints.best()
            if self.main:
                log.info("resuming at step %d of %d", self.last_saved, self.total)
            return restored
        shardings = jax.tree.map(lambda x: x.sharding, first)
        state = jax.jit(lambda: self._fresh(self.segments[0]), out_shardings=shardings)()
        if self.config.model.init_from:
            state = load_initial(state, self.config)
        return state

    def _enter_stage(self, segment: Segment, state: TrainState) -> TrainState:
        """Lets the system prepare its variables; resets optimiser moments if the stage asks."""
        if self.main:
            log.info("stage %r: %d steps", segment.stage.name, segment.stage.steps)
        state = self._prepared(segment, state)
        if segment.start == 0 or not segment.stage.reset_optimizer:
            return state
        optimizer = stages.optimizer_of(segment, segment.stage.phases[0], state.params)
        shardings = jax.tree.map(lambda x: x.sharding, self._abstract(segment).opt_state)
        fresh = jax.jit(optimizer.init, out_shardings=shardings)(state.params)
        return state.replace(opt_state=fresh)

    def _prepared(self, segment: Segment, state: TrainState) -> TrainState:
        """The state with the variables of `System.enter_stage`, where it was."""
        before = state.variables()
        after = segment.system.enter_stage(segment.stage.name, before)
        if after is before:
            return state
        placed = jax.tree.map(
            lambda old, new: jax.device_put(new, old.sharding), before, dict(after)
        )
        state = state.replace(params=placed["params"], batch_stats=placed.get("batch_stats", {}))
        if state.ema is not None:
            state = state.replace(ema=jax.tree.map(jax.numpy.copy, state.params))
        return state

    def _step_function(self, segment: Segment, phase: Phase, state: TrainState, batch: Any):
        """The compiled step for a phase and the shapes of a batch, and its FLOPs per device."""
        shapes = tuple((k, v.shape, str(v.dtype)) for k, v in sorted(batch.items()))
        key = (segment.start, phase.name, shapes)
        if key not in self._compiled:
            settings = segment.config.optim
            step = make_train_step(
                segment.system,
                stages.optimizer_of(segment, phase, state.params),
                make_schedule(settings, segment.end - segment.start),
                phase=phase,
                accumulate=settings.accumulate,
                ema=settings.ema,
                stage_start=segment.start,
            )
            shardings = jax.tree.map(lambda x: x.sharding, state)
            with self.clock.measure("compile"):
                compiled = compile_step(step, self.mesh, shardings).lower(state, batch).compile()
            self._compiled[key] = compiled, flops_of(compiled, settings.accumulate)
        return self._compiled[key]

    # ----- the run ------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Trains to the end (or to SIGTERM, or to the early stop) and returns a summary.

        Returns:
          `step`, `loss` (mean of the last logging interval), `best` (score and step of the best
          evaluation), `finished`, `stopped_early`, `weights` (path of the final parameters, if
          finished).

        Raises:
          NonFiniteError: loss or gradients stopped being finite.
        """
        with contextlib.ExitStack() as stack:
            stop = stack.enter_context(StopRequest())
            stack.callback(self.checkpoints.close)
            stack.callback(self._close_inputs)
            stack.callback(self.trace.stop)
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
            early = self._without_progress(step)
            finished = step >= self.total or early
            if step > (-1 if self.last_saved is None else self.last_saved):
                self._save(step, state, values)
            self.checkpoints.wait()
            summary = {
                "step": step,
                "loss": values.get("loss"),
                "best": self.best,
                "finished": finished,
                "stopped_early": early and step < self.total,
            }
            if finished:
                weights = self._export(state)
                if self.main:
                    summary["weights"] = str(weights)
        return summary

    def _loop(self, state: TrainState, step: int, progress: Progress, stop: StopRequest):
        """Steps until the end; returns the state and the values last logged."""
        settings = self.config.train
        pending: list[dict[str, Any]] = []
        values: dict[str, Any] = {}
        frames = 0
        self.clock.lap(0)
        for segment in self.segments:
            if step == segment.start:
                state = self._enter_stage(segment, state)
            while step < segment.end:
                if stop.at(step):
                    log.warning("asked to stop: saving at step %d", step)
                    if pending:
                        values = self._flush(step, pending, segment, frames)
                    return state, values
                if self._without_progress(step):
                    return state, values
                phase = segment.phase(step)
                batch = self._next_batch(phase, step)
                run, self._flops = self._step_function(segment, phase, state, batch)
                self.trace.before(step)
                with self.clock.measure("compute"):
                    state, metrics = run(state, batch)
                    pending.append(metrics)
                    if len(pending) > AHEAD:
                        jax.block_until_ready(pending[-1 - AHEAD]["loss"])
                frames += int(np.prod(batch["frames"].shape[:2]))
                step += 1
                self.trace.after(step, metrics)
                last = step == self.total
                evaluate = settings.eval_every and (step % settings.eval_every == 0 or last)
                save = step % settings.checkpoint_every == 0
                if step % settings.log_every == 0 or last or save or evaluate:
                    values = self._flush(step, pending, segment, frames)
                    pending, frames = [], 0
                    progress.update(step, values, self.clock.seconds_per_step)
                if evaluate:
                    values |= self._evaluate(segment, step, state)
                if save or (evaluate and self.best.get("step") == step):
                    self._save(step, state, values)
        return state, values

    def _next_batch(self, phase: Phase, step: int) -> dict[str, jax.Array]:
        # The first batch of a group starts workers or compiles a renderer: not a step's time.
        part = "input" if phase.data in self._seen else "compile"
        self._seen.add(phase.data)
        with self.clock.measure(part):
            try:
                batch = next(self.inputs[phase.data])
            except StopIteration:
                raise DataError(
                    f"the data of group {phase.data!r} ended at step {step}; training sources "
                    "must repeat"
                ) from None
            return meshes.place_batch(batch, self.mesh)

    def _flush(self, step: int, pending: list, segment: Segment, frames: int) -> dict[str, Any]:
        """Fetches the metrics of the last steps, checks them, writes their means."""
        with self.clock.measure("compute"):
            rows = jax.device_get(pending)
        for offset, row in enumerate(rows):
            if not row["finite"]:
                self._refuse(step - len(rows) + offset + 1, row)
        keys = {k for row in rows for k in row} - {"finite"}
        values: dict[str, Any] = {
            k: float(np.mean([row[k] for row in rows if k in row])) for k in sorted(keys)
        }
        values |= self.clock.lap(len(rows))
        rate = frames / (values["step_seconds"] * len(rows))
        values["frames_per_second"] = rate
        values["frames_per_second_per_chip"] = rate / self.mesh.devices.size
        mfu = utilization(self._flops, values["step_seconds"], self.config.compute_dtype)
        if mfu is not None:
            values["mfu"] = mfu
        values |= memory()
        losses = [float(row["loss"]) for row in rows]
        self.log.write(step, {**values, "stage": segment.stage.name, "losses": losses})
        return values

    def _refuse(self, step: int, row: dict[str, Any]) -> None:
        terms = {k: float(v) for k, v in row.items() if k not in ("finite", "lr")}
        saved = "none yet" if self.last_saved is None else f"step {self.last_saved}"
        raise NonFiniteError(
            f"loss or gradients are not finite at step {step} ({terms}); the last good checkpoint "
            f"is {saved} in {self.checkpoints.folder}; lower optim.lr or set optim.clip_norm"
        )

    # ----- evaluation ---------------------------------------------------------------------

    def _configured_clips(self) -> Any:
        from uvos_jax.data.pipeline import make_eval_examples

        return make_eval_examples(self.config.data)

    def _evaluate(self, segment: Segment, step: int, state: TrainState) -> dict[str, float]:
        """Scores on the evaluation clips; remembers the best and keeps a picture."""
        from uvos_jax.train.validate import evaluate, sheet

        with self.clock.measure("evaluate"):
            variables = meshes.to_host(state.variables(averaged=True), self.mesh)
            scores, drawn = evaluate(
                segment.system,
                variables,
                self.eval_clips(),
                threshold=self.config.predict.threshold,
                pictures=PICTURES if self.main else 0,
            )
        metric = self.checkpoints.metric
        if scores[metric] > self.best.get(metric, float("-inf")):
            self.best = {metric: scores[metric], "step": step}
        self.log.write(step, scores)
        if self.main and drawn:
            from uvos_jax.train.pictures import write_png

            picture = sheet(drawn)
            write_png(self.workdir / "samples" / f"step_{step:07d}.png", picture)
            self.log.image(step, "samples", picture)
        if self.show:
            shown = "  ".join(f"{k} {v:.4f}" for k, v in scores.items())
            log.info("step %d: %s on the evaluation clips", step, shown)
        return scores

    def _without_progress(self, step: int) -> bool:
        """Whether the early stop applies: too many evaluations since the best one."""
        settings = self.config.train
        if not settings.early_stop or not self.best:
            return False
        return step - self.best["step"] >= settings.early_stop * settings.eval_every

    # ----- output -------------------------------------------------------------------------

    def _save(self, step: int, state: TrainState, values: dict[str, Any]) -> None:
        metric = self.checkpoints.metric
        scores = {metric: values[metric]} if metric in values else None
        with self.clock.measure("save"):
            self.checkpoints.save(step, state, self.position, self.stored_config, scores)
        self.last_saved = step

    def _export(self, state: TrainState) -> Path:
        """Writes the final parameters (averaged ones if there are any) and the curves."""
        from uvos_jax.convert.variables import save_variables
        from uvos_jax.train.pictures import write_curves

        path = self.workdir / "weights.npz"
        variables = Variables(meshes.to_host(state.variables(averaged=True), self.mesh))
        if self.main:
            extra = {"step": int(state.step)}
            save_variables(variables, path, config=self.config, spec=self.system.spec, extra=extra)
            write_curves(self.log.path, self.workdir / "curves.png")
        return path

    def _close_inputs(self) -> None:
        for iterator in self.inputs.values():
            close = getattr(iterator, "close", None)
            if close is not None:
                close()


def train(
    config: Any, workdir: str | Path, *, progress: bool = True, profile: int = 0
) -> dict[str, Any]:
    """Trains or resumes a configuration in `workdir`; see `Trainer.run` for the summary.

    A configuration whose section `rl` names an algorithm trains an agent as well (`agent`).
    """
    configs.validate(config)
    if config.get("rl", {}).get("algorithm"):
        from uvos_jax.train.agent import train_with_agent

        return train_with_agent(config, workdir, progress=progress, profile=profile)
    return Trainer(config, workdir, progress=progress, profile=profile).run()

"""The recipe of a run: which stage, phase, configuration and system belong to which step."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax

from uvos_jax import config as configs
from uvos_jax import registry
from uvos_jax.errors import ConfigError
from uvos_jax.train.optimizer import make_optimizer
from uvos_jax.types import Phase, Stage


@dataclasses.dataclass(frozen=True)
class Segment:
    """A stage with its place in the run: global steps [start, end).

    Attributes:
      config: the run's configuration with the stage's overrides of `optim`.
      system: built from that configuration.
    """

    stage: Stage
    start: int
    end: int
    config: Any
    system: Any

    def phase(self, step: int) -> Phase:
        """The phase of global step `step`."""
        return self.stage.phases[(step - self.start) % len(self.stage.phases)]


def build_system(config: Any, stage: Stage | None = None) -> Any:
    """The system of a configuration; a stage's loss weights reach it as `config.loss_weights`."""
    section = configs.model_section(config)
    if stage is not None and stage.loss_weights:
        section.loss_weights = {name: float(weight) for name, weight in stage.loss_weights}
    return registry.get(config.model.name)(section)


def _chosen_stages(system: Any, config: Any) -> list[Stage]:
    """The system's stages, or those that `train.stages` names, in its order and lengths."""
    known = {stage.name: stage for stage in system.stages(config)}
    if not config.train.stages:
        return list(known.values())
    chosen = []
    for entry in config.train.stages:
        unknown = sorted(set(entry) - {"name", "steps"})
        name = entry.get("name")
        if unknown or name not in known:
            raise ConfigError(
                f"train.stages has the entry {dict(entry)}: expected {{'name': ..., 'steps': ...}} "
                f"with one of {config.model.name}'s stages {list(known)}"
            )
        steps = int(entry.get("steps", known[name].steps))
        chosen.append(dataclasses.replace(known[name], steps=steps))
    return chosen


def plan(config: Any, system: Any = None) -> list[Segment]:
    """The stages of a run one after another.

    Args:
      system: used for every stage as it is; None builds one per stage, so that overrides such as
        `freeze_bn` reach it.

    Raises:
      ConfigError: `train.stages` names a stage the system does not have, a stage needs data of a
        group no source belongs to, overrides an unknown field, or there is nothing to do.
    """
    given = system
    system = given or build_system(config)
    groups = {source.get("group", "default") for source in config.data.train}
    segments: list[Segment] = []
    start = 0
    for stage in _chosen_stages(system, config):
        for phase in stage.phases:
            if phase.data not in groups:
                raise ConfigError(
                    f"stage {stage.name!r} needs data of group {phase.data!r}, but data.train has "
                    f"{sorted(groups)}; add a source with group={phase.data!r}"
                )
        if stage.steps <= 0:
            continue
        own = configs.from_dict(config.to_dict())
        configs.override(own, {f"optim.{key}": value for key, value in stage.optim})
        configs.validate(own)
        built = given
        if built is None:
            same = not stage.loss_weights and own.optim.freeze_bn == config.optim.freeze_bn
            built = system if same else build_system(own, stage)
        segments.append(Segment(stage, start, start + stage.steps, own, built))
        start += stage.steps
    if not segments:
        raise ConfigError("nothing to train: every stage has 0 steps; set train.total_steps")
    return segments


def segment_that_saved(segments: list[Segment], step: int) -> Segment:
    """The segment whose optimiser state a checkpoint of `step` holds.

    At the border of two stages that is the earlier one: the later has not begun.
    """
    return next((s for s in segments if s.start < step <= s.end), segments[0 if step <= 0 else -1])


def optimizer_of(segment: Segment, phase: Phase, params: Any) -> Any:
    """The optimiser of a segment in a phase, for parameters of these paths and shapes."""
    return make_optimizer(segment.config.optim, params, phase)


def check_carried_optimizers(segments: list[Segment], params: Any) -> None:
    """Refuses stages that want to carry over an optimiser state that cannot fit.

    Raises:
      ConfigError: naming the stage.
    """

    def structure(segment: Segment) -> Any:
        optimizer = optimizer_of(segment, segment.stage.phases[0], params)
        return jax.tree.structure(jax.eval_shape(optimizer.init, params))

    for before, after in itertools.pairwise(segments):
        if not after.stage.reset_optimizer and structure(before) != structure(after):
            raise ConfigError(
                f"stage {after.stage.name!r} carries the optimiser state of "
                f"{before.stage.name!r} over, but uses another kind of optimiser; set "
                "reset_optimizer=True"
            )

"""Adapting a system to a video while it is segmented: optimiser steps between frames.

A system with an `adaptation` (see `uvos_jax.types.Adaptation`) makes its own targets from frames of
the video (`System.teach`) and lowers `System.adaptation_loss` on them. Labelling and one Adam step
are compiled once per frame size; the steps are taken one by one, because on CPUs the gradient of a
convolution inside a compiled loop is many times slower than outside. Every video starts from the
trained weights.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Mapping
from typing import Any

import jax
import optax

from uvos_jax.types import Batch

log = logging.getLogger("uvos_jax")


@dataclasses.dataclass(frozen=True)
class Lesson:
    """What one teaching did.

    Attributes:
      frame: index of the first frame that taught.
      usable: whether the frames held anything to learn from; if not, no step was taken.
      losses: before every step.
      label_seconds, step_seconds: for making the targets, and for all steps together.
    """

    frame: int
    usable: bool
    losses: tuple[float, ...]
    label_seconds: float
    step_seconds: float


class Adapter:
    """Compiled labelling and optimiser step of one system; holds no state of any video."""

    def __init__(self, system: Any):
        plan = system.adaptation
        self.system, self.plan = system, plan
        self.optimizer = optax.adam(plan.lr, b1=0.9, b2=0.999, eps=1e-8)
        self._teach = jax.jit(system.teach)
        self._step = jax.jit(self._one_step)

    def _one_step(self, params, moments, variables, batch, targets):
        part = self.plan.part

        def loss(params):
            of_part = {**variables["params"], part: params}
            return self.system.adaptation_loss({**variables, "params": of_part}, batch, targets)

        value, gradient = jax.value_and_grad(loss)(params)
        updates, moments = self.optimizer.update(gradient, moments, params)
        return optax.apply_updates(params, updates), moments, value

    def start(self, variables: Mapping[str, Any]) -> Session:
        """A session that begins with the trained `variables` and fresh moments."""
        return Session(self, variables)


class Session:
    """The parameters of one video.

    Attributes:
      variables: adapted so far; the given ones are never changed.
      lessons: what every teaching did.
    """

    def __init__(self, adapter: Adapter, variables: Mapping[str, Any]):
        self.adapter, self.variables = adapter, dict(variables)
        self.moments = adapter.optimizer.init(variables["params"][adapter.plan.part])
        self.lessons: list[Lesson] = []

    def due(self, index: int) -> bool:
        """Whether the frame of this index teaches."""
        interval = self.adapter.plan.interval
        return index == 0 or (interval > 0 and index % interval == 0)

    def learn(self, index: int, batch: Batch) -> Lesson:
        """Labels the frames of `batch [1,n,...]` and takes the steps of the plan on them."""
        adapter, plan = self.adapter, self.adapter.plan
        began = time.monotonic()
        targets = adapter._teach(self.variables, batch)
        usable = bool(targets["usable"])
        labelled = time.monotonic()
        losses = []
        if usable:
            params, moments = self.variables["params"][plan.part], self.moments
            for _ in range(plan.steps):
                params, moments, value = adapter._step(
                    params, moments, self.variables, batch, targets
                )
                losses.append(value)
            losses = jax.device_get(jax.block_until_ready(losses))
            self.moments = moments
            self.variables["params"] = {**self.variables["params"], plan.part: params}
        else:
            log.warning("frame %d teaches nothing: no confident object; weights stay", index)
        lesson = Lesson(
            index, usable, tuple(float(x) for x in losses), labelled - began,
            time.monotonic() - labelled,
        )  # fmt: skip
        self.lessons.append(lesson)
        return lesson

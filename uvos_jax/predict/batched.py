"""Windows of several videos in one call of the network.

Each video is predicted in a thread of its own; where two or more wait for the network with windows
of one size, these go through it together, spread over the devices of this machine. Decoding, flow,
CRF and writing of one video run while another one's window is computed.
"""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uvos_jax.errors import ConfigError, UnsupportedError

__all__ = ["Together"]


class Together:
    """Lets several videos share the calls of one predictor's network.

        together = Together(predictor, 8)
        def work(video):                    # in a thread for each video
            with together.joined() as predictor:
                return predictor.predict(video)

    The network is compiled for `size` windows of each frame size; what is missing to `size` when
    all who joined wait is filled up with copies, whose results are thrown away.

    Args:
      predictor: whose system, weights and settings all videos share.
      size: windows per call. Where the number of devices divides it, windows are spread over them.

    Raises:
      ConfigError: a size below 1. UnsupportedError: a predictor that adapts to each video.
    """

    def __init__(self, predictor: Any, size: int):
        if size < 1:
            raise ConfigError(f"the number of videos in one call must be at least 1, got {size}")
        if predictor.adapter is not None:
            raise UnsupportedError(
                f"{predictor.system.spec.name} has weights of its own for each video, so several "
                "cannot share a call: leave --batch out, or pass adapt=False (uvos predict "
                "--no-adapt)"
            )
        self.size = size
        self._predictor = copy.copy(predictor)
        self._predictor._predict = self._ask
        devices = jax.local_devices()
        shared = where = None
        if len(devices) > 1 and size % len(devices) == 0:
            mesh = jax.sharding.Mesh(np.asarray(devices), ("data",))
            shared = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
            where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
        self._where, self._home = where, devices[0]
        self._variables = jax.device_put(predictor.variables, shared or devices[0])
        self._run: Callable[..., Any] = jax.jit(
            jax.vmap(predictor._predict_window, in_axes=(None, 0, 0))
        )
        self._lock = threading.Lock()
        self._members = self._waiting = 0
        self._queues: dict[Any, list[tuple[Any, Future]]] = {}

    @contextlib.contextmanager
    def joined(self) -> Iterator[Any]:
        """The predictor whose windows are shared; for one thread, which must not wait for others
        of them in here."""
        with self._lock:
            self._members += 1
        try:
            yield self._predictor
        finally:
            with self._lock:
                self._members -= 1
                due = self._due()
            self._answer(due)

    def _ask(self, variables: Any, states: tuple, batch: dict) -> tuple[tuple, Any]:
        """Stands in for the compiled network of `Predictor`: same arguments, same results."""
        del variables  # those of all
        request = (states, batch)
        leaves, structure = jax.tree.flatten(request)
        kind = (structure, tuple((jnp.shape(x), jnp.result_type(x)) for x in leaves))
        answer: Future = Future()
        with self._lock:
            self._queues.setdefault(kind, []).append((request, answer))
            self._waiting += 1
            due = self._due()
        self._answer(due)
        return answer.result()

    def _due(self) -> list[tuple[Any, Future]]:
        """Takes the requests that go now, if any: a full call, or all there can be (lock held)."""
        kind = max(self._queues, key=lambda k: len(self._queues[k]), default=None)
        if kind is None:
            return []
        if len(self._queues[kind]) < self.size and self._waiting < self._members:
            return []
        queue = self._queues.pop(kind)
        due, rest = queue[: self.size], queue[self.size :]
        if rest:
            self._queues[kind] = rest
        self._waiting -= len(due)
        return due

    def _answer(self, due: list[tuple[Any, Future]]) -> None:
        if not due:
            return
        try:
            for (_, answer), result in zip(due, self._call([r for r, _ in due]), strict=True):
                answer.set_result(result)
        except BaseException as error:  # every video that waits must hear of it
            for _, answer in due:
                if not answer.done():
                    answer.set_exception(error)

    def _call(self, requests: list[Any]) -> list[tuple[tuple, Any]]:
        filled = requests + requests[-1:] * (self.size - len(requests))
        states, batch = jax.tree.map(lambda *x: jnp.stack(x), *filled)
        if self._where is not None:
            states, batch = jax.device_put((states, batch), self._where)
        outputs = self._run(self._variables, states, batch)
        if self._where is not None:
            outputs = jax.device_put(outputs, self._home)
        return [jax.tree.map(lambda x, i=i: x[i], outputs) for i in range(len(requests))]

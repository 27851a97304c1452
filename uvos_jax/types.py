"""Shared vocabulary: array contracts, the description of a model, training stages, variables.

Axis letters are fixed throughout the library: B batch, T time, H W image size, h w feature-map
size, C channels, K classes or groups, N references, nodes or points. Arrays are NHWC with time
right after batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import jax

Batch = Mapping[str, Any]
"""Arrays of one batch, keyed as in `uvos_jax.data.schema` (`frames`, `masks`, `flow`, ...)."""

Outputs = dict[str, Any]
"""What a network returns: `logits [B,T,h,w,K]` and named extras. Never probabilities."""

State = Any
"""What a system remembers between chunks of a video: any pytree."""

VOID = 255
"""Mask value of pixels that neither count for nor against a prediction."""


@jax.tree_util.register_pytree_with_keys_class
class Variables(dict):
    """Parameters and other collections of a system: `{"params": ..., "batch_stats": ...}`.

    A dict that also carries what it needs to be used later: `meta`, a JSON-able mapping with the
    keys `config` (the model's configuration), `spec`, `system` and anything its writer added.
    It is a pytree; `meta` does not take part in comparisons of tree structure.
    """

    def __init__(self, *args: Any, meta: Mapping[str, Any] | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.meta: dict[str, Any] = dict(meta or {})

    def tree_flatten_with_keys(self):
        keys = tuple(sorted(self))
        return [(jax.tree_util.DictKey(k), self[k]) for k in keys], (keys, _Meta(self.meta))

    def tree_flatten(self):
        keys = tuple(sorted(self))
        return [self[k] for k in keys], (keys, _Meta(self.meta))

    @classmethod
    def tree_unflatten(cls, aux, children: Iterable[Any]) -> Variables:
        keys, meta = aux
        return cls(zip(keys, children, strict=True), meta=meta.value)


class _Meta:
    """Carries `Variables.meta` through tree operations without ever causing a mismatch."""

    def __init__(self, value: Mapping[str, Any]):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Meta)

    def __hash__(self) -> int:
        return 0


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """What the engines must know of a system to feed it.

    Attributes:
      name: the system's id.
      paper: authors, title, venue.
      temporal: what one decision looks at: a `frame`, a `pair`, a fixed `clip`, the past
        (`recurrent`), or samples of the whole video (`global`).
      clip_len: frames per chunk of `apply` and `predict`.
      input_size: (H, W) the frames are resized to before the network, or None for native size.
      stride: input pixels per logit pixel.
      num_classes: channels of `logits`; 1 means a sigmoid, more a softmax with class 0 background.
      normalization: `imagenet` (RGB, /255, mean/std), `caffe_bgr` (BGR, 0..255 minus mean),
        `unit` (RGB, /255).
      requires: batch keys beyond `frames` that `apply` reads at inference (for example `flow`).
      outputs: names of what `apply` returns.
      causal: whether a frame's prediction depends on past frames only.
      num_references: frames of the video that `prepare` wants (0: none).
      window_overlap: frames shared by neighbouring windows of a system that is not causal; None
        leaves that to the predictor.
      lookahead: frames after its own that a prediction depends on, where that is all of the future
        it needs; the last ones of a window then serve as context only. 0: no such limit is known.
      flow_direction: which flow `apply` reads under the key `flow`: `forward`, to the next frame,
        or `backward`, to the previous one (then a stream needs no look-ahead). `both`: at inference
        `[B,T,H,W,4]`, to the previous and to the next frame; training may take one of them.
      flow_at_end: what the frame without that neighbour gets at inference: `negated` flow to its
        only neighbour, that flow as it is (`neighbor`), the flow of the neighbour (`repeat`), or
        `zero`, with which a single frame is a video, too.
      channel_mean / channel_std: override the constants of `normalization`, in its channel order.
    """

    name: str
    paper: str
    temporal: Literal["frame", "pair", "clip", "recurrent", "global"]
    clip_len: int
    input_size: tuple[int, int] | None
    stride: int
    num_classes: int = 1
    normalization: Literal["imagenet", "caffe_bgr", "unit"] = "imagenet"
    requires: frozenset[str] = frozenset()
    outputs: tuple[str, ...] = ("logits",)
    causal: bool = True
    num_references: int = 0
    window_overlap: int | None = None
    lookahead: int = 0
    flow_direction: Literal["forward", "backward", "both"] = "forward"
    flow_at_end: Literal["negated", "neighbor", "repeat", "zero"] = "negated"
    channel_mean: tuple[float, float, float] | None = None
    channel_std: tuple[float, float, float] | None = None


@dataclasses.dataclass(frozen=True)
class Phase:
    """One kind of step inside a stage; the phases of a stage take turns, one step each.

    Attributes:
      name: passed to `System.apply` and `System.loss_fn` as `phase`.
      data: which group of `config.data.train` feeds it.
      lr_multipliers: (regex on the parameter path, factor); the first match counts, else 1.
      frozen: regexes of parameter paths that do not move in this phase.
    """

    name: str = "default"
    data: str = "default"
    lr_multipliers: tuple[tuple[str, float], ...] = ()
    frozen: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Stage:
    """A part of a training recipe with its own length, data, frozen parts and optimiser.

    Attributes:
      name: shown in logs and stored in checkpoints.
      steps: optimiser steps of this stage.
      phases: kinds of step that take turns (`phases[step % len(phases)]`).
      optim: overrides of `config.optim` as dotted keys, as pairs (`("lr", 1e-4)`).
      reset_optimizer: whether moments start anew; otherwise they are carried over.
      loss_weights: (loss term, weight) pairs handed to `System.loss_fn` through the config.
    """

    name: str
    steps: int
    phases: tuple[Phase, ...] = (Phase(),)
    optim: tuple[tuple[str, Any], ...] = ()
    reset_optimizer: bool = True
    loss_weights: tuple[tuple[str, float], ...] = ()


@dataclasses.dataclass(frozen=True)
class Adaptation:
    """How a system adapts to a video while it predicts (see `uvos_jax.predict.adapt`).

    Attributes:
      part: top-level name of the parameters that move; the rest stays as trained.
      steps: optimiser steps each time the video teaches.
      lr: of Adam, whose moments start anew with every video.
      frames: how many first frames teach.
      interval: teach again at every frame whose index is a multiple of it; 0: at the start only.
      requires: batch keys beyond `frames` that teaching reads (for example `flow`).
    """

    part: str
    steps: int
    lr: float
    frames: int = 1
    interval: int = 0
    requires: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True)
class ModelCard:
    """Facts for the table of systems; numbers are those of the publication.

    Attributes:
      title: what the paper calls the system.
      year: of publication.
      venue: conference or journal.
      official_weights: where the authors published weights, or why there are none.
      parity: what the implementation was compared with, and how closely they agree.
      davis16_j / davis16_f: published mean J and F on DAVIS-16 val in percent, or None.
      learned: what the tiny configuration reaches on held-out synthetic clips, and in how many
        steps.
    """

    title: str
    year: int
    venue: str
    official_weights: str = ""
    parity: str = ""
    davis16_j: float | None = None
    davis16_f: float | None = None
    learned: str = ""


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (path, leaf) of nested mappings, paths joined by `/`, in sorted order."""
    for key in sorted(tree):
        path = f"{prefix}{key}"
        if isinstance(tree[key], Mapping):
            yield from flatten(tree[key], f"{path}/")
        else:
            yield path, tree[key]


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries from paths joined by `/`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[leaf] = value
    return tree

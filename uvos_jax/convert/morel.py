"""Official MOREL names: TensorFlow 1 checkpoints of vik-goel/MOREL.

A checkpoint of stage 1 is the segmenter (`table`). One of stage 2 is an agent: the segmenter's
encoder, the static path, and the actor and critic (`policy_table`, `convert_policy`); its decoder,
restored from stage 1, lies under `teacher/`. Part `encoder` takes the segmenter's encoder out of
either. Arrays are laid out as ours are. No weights are published; the names under `teacher/` are
inferred from those of stage 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from uvos_jax.convert.readers import Source, read_official
from uvos_jax.convert.table import Entry, NameTable, joined
from uvos_jax.convert.variables import flatten, unflatten
from uvos_jax.errors import CheckpointError
from uvos_jax.systems.morel.policy import init_policy, make_policy

#: What TensorFlow's optimisers and counters leave in a checkpoint.
IGNORED = (
    (r"/(Adam|RMSProp)(_1)?$|^beta[12]_power(_\d+)?$|(^|/)global_step$", "state of the optimiser"),
)
ENCODER = {"c1_2_frame_input": "c1", "c2": "c2", "c3": "c3", "fc1": "fc1"}
DECODER = {
    "fc2": "decoder/fc2",
    "conv5": "decoder/conv5",
    "conv6": "decoder/conv6",
    "masks": "decoder/masks",
    "object_translation/obj_t": "motion/obj_t",
}
CAMERA = {"flow/camera_translation": "motion/camera_translation"}
OTHER_PARTS = (
    (r"^model/model_extrapath/|^model/(pi|v)/", "the agent"),
    (r"^teacher/", "the agent's copy of the segmenter"),
    (r"^model/(fc2|conv[56]|masks|object_translation|flow)(/|$)", "the decoder"),
)


def _layers(names: Mapping[str, str], scope: str, path: str = "") -> NameTable:
    """`scope/name/{w,b}` to `params/path/ours/{kernel,bias}`."""
    return NameTable(
        tuple(
            Entry((f"{scope}/{official}/{a}",), (f"params/{path}{ours}/{b}",))
            for official, ours in names.items()
            for a, b in (("w", "kernel"), ("b", "bias"))
        )
    )


def _seen(config: Any, scope: str) -> NameTable:
    return _layers(DECODER | (CAMERA if config.camera else {}), scope)


def encoder_table(config: Any) -> NameTable:
    """The segmenter's encoder, in a checkpoint of either stage."""
    return joined([_layers(ENCODER, "model", "encoder/"), NameTable((), (*IGNORED, *OTHER_PARTS))])


def table(config: Any) -> NameTable:
    """Names of stage 1 and our paths."""
    return joined(
        [_layers(ENCODER, "model", "encoder/"), _seen(config, "model"), NameTable((), IGNORED)]
    )


PARTS = {"encoder": encoder_table}


def policy_table(config: Any, *, extra_path: bool = True, segments: bool = True) -> NameTable:
    """Names of stage 2 and our paths; the unused encoder of `teacher/` is ignored.

    Args:
      segments: whether the file holds the decoder and the heads of motion, under `teacher/`.
    """
    tables = [_layers(ENCODER, "model", "encoder/"), _layers({"pi": "pi", "v": "v"}, "model")]
    if extra_path:
        tables.append(_layers(ENCODER, "model/model_extrapath", "static_encoder/"))
        tables.append(_layers({"extra_path_fc": "extra_path_fc"}, "model/model_extrapath"))
    if segments:
        tables.append(_seen(config, "teacher"))
    unused = (r"^teacher/(c1_2_frame_input|c[23]|fc1)/", "encoder the release does not run")
    return joined([*tables, NameTable((), (*IGNORED, unused))])


def convert_policy(
    source: Source, config: Any, actions: int, *, extra_path: bool = True, segments: bool = True
) -> dict[str, Any]:
    """An official agent as parameters of `uvos_jax.systems.morel.policy.ActorCritic`.

    Args:
      source: as for `uvos_jax.convert.convert`.
      config: the `model` section of a configuration. actions: of the game.

    Raises:
      CheckpointError: the file cannot be read, or a name is missing, unknown or misshapen.
    """
    policy = make_policy(config, actions, extra_path=extra_path, segments=segments)
    shapes = jax.eval_shape(lambda key: init_policy(policy, key), jax.random.key(0))
    targets = dict(flatten({"params": shapes}))
    names = policy_table(config, extra_path=extra_path, segments=segments)
    ours, report = names.to_ours(read_official(source), targets)
    if not report.complete:
        raise CheckpointError(
            f"cannot convert an agent of morel: {'; '.join(report.problems())}; "
            f"{len(report.used)} names fitted; give the game's number of actions and say whether "
            "the file has the extra path and the decoder"
        )
    return unflatten(ours)["params"]


def policy_to_official(
    params: Mapping[str, Any], config: Any, *, extra_path: bool = True, segments: bool = True
) -> dict[str, np.ndarray]:
    """The inverse of `convert_policy`."""
    names = policy_table(config, extra_path=extra_path, segments=segments)
    return names.to_official(dict(flatten({"params": params})))

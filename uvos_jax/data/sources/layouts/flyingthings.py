"""FlyingThings3D: rendered frames, exact flow, and motion labels.

frames_{clean,final}pass/TRAIN/A/0000/left/0006.png
optical_flow/TRAIN/A/0000/into_future/left/OpticalFlowIntoFuture_0006_L.pfm
motion_labels/TRAIN/A/0000/left/0006.png         distributed by the authors of MP-Net; the tree of
                                                 `form_batch_angle.lua` of their release
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from uvos_jax.data.sources.layouts.base import Dataset, SequenceFiles, folders, image_table, pngs
from uvos_jax.errors import ConfigError, DataError

FT3D_FOLDERS = {"train": "TRAIN", "test": "TEST"}


def flyingthings3d(
    root: Path,
    split: str | None,
    resolution: str = "",
    dataset: str = "",
    *,
    render: Literal["", "cleanpass", "finalpass"] = "",
    side: Literal["left", "right"] = "left",
    labels: Literal["motion", "none"] = "motion",
) -> Dataset | None:
    """Scenes of a split; `render` "" takes the final pass if it is there (as MP-Net), else clean.

    Raises:
      ConfigError: an option that does not exist.
      DataError: flow or labels are missing as a whole; the folder is named.
    """
    _choose("split", split, (None, *FT3D_FOLDERS))
    _choose("render", render, ("", "cleanpass", "finalpass"))
    _choose("side", side, ("left", "right"))
    _choose("labels", labels, ("motion", "none"))
    part = FT3D_FOLDERS[split or "train"]
    passes = (render,) if render else ("finalpass", "cleanpass")
    frames = next(
        (f for p in passes if (f := root / f"frames_{p}" / part).is_dir()), None
    )  # fmt: skip
    if frames is None:
        return None
    flow, motion = root / "optical_flow" / part, root / "motion_labels" / part
    if not flow.is_dir():
        raise DataError(f"FlyingThings3D in {root} has no flow: {flow} is missing; unpack it there")
    if labels == "motion" and not motion.is_dir():
        raise DataError(
            f"FlyingThings3D in {root} has no motion labels: {motion} is missing; unpack those of "
            "the MP-Net authors there, or use labels='none' for flow alone"
        )
    scenes = [(group, scene) for group in folders(frames) for scene in folders(group)]
    letter = side[0].upper()
    sequences = []
    for group, scene in scenes:
        place = Path(group.name) / scene.name
        marks = pngs(motion / place / side) if labels == "motion" else []
        files = (flow / place / "into_future" / side).glob(f"OpticalFlowIntoFuture_*_{letter}.pfm")
        sequences.append(
            SequenceFiles(
                f"{group.name}/{scene.name}",
                tuple(p.stem for p in marks),
                tuple((p,) for p in marks),
                images=image_table(scene / side),
                frames_folder=scene / side,
                flow={p.stem.split("_")[1]: p for p in sorted(files)},
            )
        )
    return Dataset(
        tuple(sequences),
        f"FlyingThings3D layout, {frames.relative_to(root)}/<group>/<scene>/{side}",
    )


def _choose(name: str, value: str | None, allowed: tuple) -> None:
    if value not in allowed:
        known = ", ".join(repr(a) for a in allowed if a)
        raise ConfigError(f"FlyingThings3D: {name} {value!r} is unknown; use one of {known}")

"""Videos in plain folders: one folder per sequence with `frames` and `masks` inside."""

from __future__ import annotations

from collections.abc import Sequence as Names
from pathlib import Path

from uvos_jax.data.sources.video import (
    FlowDirection,
    Sequence,
    VideoSource,
    match_by_stem,
    with_edge_folder,
    with_flow_folder,
)
from uvos_jax.data.video_io import list_images
from uvos_jax.errors import DataError


class FolderSource(VideoSource):
    """Clips of every sequence under a root.

    Args:
      root: holds one folder per sequence with `frames` and `masks` inside.
      sequences: names to use; all by default.
      frames, masks: names of the folders inside; `frames=""` if the frames lie directly in the
        sequence's folder, `masks=""` for videos without any masks.
      sparse: allow frames without mask (flagged by `has_mask`).
      flow: folder of flow files, `<flow>/<sequence>/<frame>.*` (see `data.flow_files`), absolute or
        relative to `root`; made by tools/compute_flow.py.
      flow_direction: `forward`, `backward`, or `both`, for which `flow` names two folders.
      edges: folder of 8-bit edge maps, `<edges>/<sequence>/<frame>.*`, absolute or relative to
        `root`, for systems that look for hard examples near edges (MATNet: HED).

    Raises:
      DataError: no sequences, or frames without masks.
    """

    def __init__(
        self,
        root: str,
        split: str = "",
        *,
        sequences: Names[str] = (),
        frames: str = "frames",
        masks: str = "masks",
        sparse: bool = False,
        flow: str | tuple[str, str] = "",
        flow_direction: FlowDirection = "forward",
        edges: str = "",
        **clips,
    ):
        base = Path(root) / split if split else Path(root)
        if not base.is_dir():
            raise DataError(f"folder {base} does not exist")
        names = list(sequences) or sorted(p.name for p in base.iterdir() if (p / frames).is_dir())
        if not names:
            raise DataError(
                f"no sequences in {base}: expected <sequence>/{frames} and <sequence>/{masks} there"
            )
        found = []
        for name in names:
            for folder in (base / name / frames, base / name / (masks or frames)):
                if not folder.is_dir():
                    raise DataError(f"sequence {name!r} is incomplete: {folder} is missing")
            images = list_images(base / name / frames)
            labels: tuple[Path | None, ...] = (None,) * len(images)
            if masks:
                files = list_images(base / name / masks)
                labels = match_by_stem(images, files, name, sparse=sparse)
            sequence = Sequence(name, tuple(images), labels)
            if flow:
                sequence = with_flow_folder(sequence, root, flow, flow_direction)
            if edges:
                sequence = with_edge_folder(sequence, root, edges)
            found.append(sequence)
        super().__init__(found, **clips)

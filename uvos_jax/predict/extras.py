"""What a system sees beside masks (depth, flow, camera path), written frame by frame.

A pass of its own over the video, for systems that name `extras` and have `predict_with_extras`.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw

from uvos_jax.data.video_io import open_video
from uvos_jax.errors import DataError, UnsupportedError
from uvos_jax.ops.flow import flow_to_color
from uvos_jax.ops.geometry import camera_path
from uvos_jax.ops.resize import resize_bilinear
from uvos_jax.predict.windows import windows


def write_extras(
    predictor: Any, video: Any, folder: str | Path, *, overwrite: bool = False
) -> Path:
    """Writes `<frame>.npz` (the extras at the network's size), `depth/` and `flow/` pictures, and
    `camera.npz` (`camera [T,3,4]`, `path [T,3]`) with `camera.png`, the path seen from above.

    Raises:
      UnsupportedError: the system has no extras.
      DataError: the folder exists already.
    """
    system, folder = predictor.system, Path(folder)
    check_extras(system, folder, overwrite=overwrite)
    work = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(work, ignore_errors=True)
    for name in ("depth", "flow"):
        (work / name).mkdir(parents=True)
    reader = open_video(video)
    size = predictor.input_size(reader.size)
    run = jax.jit(system.predict_with_extras)
    state = system.init_state(predictor.variables, 1, size)
    cameras: list[np.ndarray] = []
    causal = system.spec.causal
    for window in windows(reader, 2, 0 if causal else 1):
        frames = resize_bilinear(jnp.asarray(window.frames, jnp.float32), size)
        chunk = {"frames": jnp.round(frames).astype(jnp.uint8)[None]}
        new, _, extras = run(predictor.variables, state, chunk)
        state = new if causal else state
        extras = {k: np.asarray(v)[0] for k, v in extras.items()}
        for t in range(window.count):
            index = window.start + t
            one = {k: v[t] for k, v in extras.items()}  # a later window knows the next frame
            name = reader.frame_name(index)
            np.savez_compressed(work / f"{name}.npz", **one)
            Image.fromarray(depth_picture(one["depth"])).save(work / "depth" / f"{name}.png")
            color = np.asarray(flow_to_color(jnp.asarray(one["flow"]))).astype(np.uint8)
            Image.fromarray(color).save(work / "flow" / f"{name}.png")
            cameras[index:] = [one["camera"]]
    camera = np.stack(cameras)
    path = np.asarray(camera_path(jnp.asarray(camera)))
    np.savez(work / "camera.npz", camera=camera, path=path)
    Image.fromarray(path_picture(path)).save(work / "camera.png")
    shutil.rmtree(folder, ignore_errors=True)
    work.replace(folder)
    return folder


def check_extras(system: Any, folder: str | Path, *, overwrite: bool = False) -> None:
    """What `write_extras` would refuse, before the slow part."""
    if not getattr(system, "extras", ()):
        raise UnsupportedError(
            f"{system.spec.name} gives masks only: leave --save geometry out (sfmnet has it)"
        )
    if Path(folder).exists() and not overwrite:
        raise DataError(f"{folder} exists already: use --overwrite to replace it")


def depth_picture(depth: np.ndarray) -> np.ndarray:
    """Near white, far black, by inverse depth over the frame's range; uint8 `[H,W]`."""
    near = 1.0 / np.maximum(depth, 1e-3)
    span = near.max() - near.min()
    return np.round(255 * (near - near.min()) / (span if span > 0 else 1.0)).astype(np.uint8)


def path_picture(path: np.ndarray, size: int = 256) -> np.ndarray:
    """Camera positions `[T,3]` from above, X to the right, Z up, start in red; uint8 RGB."""
    xz = path[:, [0, 2]] - path[:, [0, 2]].mean(0)
    scale = 0.4 * size / max(float(np.abs(xz).max()), 1e-6)
    points = [(size / 2 + scale * x, size / 2 - scale * z) for x, z in xz]
    picture = Image.new("RGB", (size, size), "white")
    draw = ImageDraw.Draw(picture)
    if len(points) > 1:
        draw.line(points, fill=(0, 90, 200), width=2)
    x, y = points[0]
    draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=(220, 40, 40))
    return np.asarray(picture)

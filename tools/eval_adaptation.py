"""What adapting the student to a video is worth: J and time per frame, with and without.

    python tools/eval_adaptation.py runs/teacher_student/weights.npz CLIP ... [--flow tvl1_fast]

Every CLIP is a folder with `frames/` and `masks/` of equal names. Per clip: mean J over all frames
but the first and the last for the student as trained, adapted as configured, and adapted with the
CRF of the release; the teacher's J on the first frame; seconds for making the labels, for the
steps and per frame. The first run of each kind, which compiles, is not timed.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from uvos_jax.data.video_io import list_images, open_video, read_mask
from uvos_jax.metrics.davis import region_similarity
from uvos_jax.ops.crf import dense_crf
from uvos_jax.ops.resize import resize_bilinear
from uvos_jax.predict.predictor import Predictor


def mean_j(labels: np.ndarray, truth: np.ndarray) -> float:
    """Mean J of labels `[T,H,W]`, first and last frame left out."""
    found = region_similarity(jnp.asarray(labels[1:-1] > 0), jnp.asarray(truth[1:-1] > 0))
    return float(np.mean(np.asarray(found)))


def timed(predictor: Predictor, clip: Path) -> tuple[np.ndarray, np.ndarray, float]:
    """Probabilities, labels, and seconds of a second run over a clip."""
    predictor.predict(clip)
    began = time.monotonic()
    masks = predictor.predict(clip)
    return masks.probs, masks.labels, time.monotonic() - began


def teacher_j(predictor: Predictor, frames: np.ndarray, truth: np.ndarray) -> float:
    """J of what the teacher holds for the moving object on the first frame."""
    size = predictor.input_size(frames.shape[1:3])
    small = jnp.round(resize_bilinear(jnp.asarray(frames[:1], jnp.float32), size))
    flow = jnp.asarray(predictor.flow(frames[:2]))
    scale = jnp.asarray([size[1] / frames.shape[2], size[0] / frames.shape[1]])
    batch = {
        "frames": small.astype(jnp.uint8)[None],
        "flow": (resize_bilinear(flow, size) * scale)[None],
    }
    prob = predictor.system.teacher_probability(predictor.variables, batch)[0]
    full = resize_bilinear(prob[..., None], truth.shape[1:])[0, ..., 0]
    found = region_similarity(full > 0.5, jnp.asarray(truth[0] > 0))
    return float(np.asarray(found))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("weights")
    parser.add_argument("clips", nargs="+", type=Path, metavar="CLIP")
    parser.add_argument("--flow", default=None)
    parser.add_argument("--crf", default="teacher_student")
    args = parser.parse_args(argv)

    plain = Predictor.load(args.weights, "teacher_student", adapt=False)
    adapting = Predictor.load(args.weights, "teacher_student", flow=args.flow)
    print("| clip | J as trained | J adapted | with CRF | teacher, frame 0 | labels s | steps s "
          "| s/frame |\n|---|---|---|---|---|---|---|---|")  # fmt: skip
    for clip in args.clips:
        frames = np.stack(list(open_video(clip / "frames")))
        truth = np.stack([np.array(read_mask(p)) for p in list_images(clip / "masks")])
        _, labels, seconds = timed(plain, clip / "frames")
        probs, adapted, _ = timed(adapting, clip / "frames")
        refined = np.stack(
            [np.asarray(dense_crf(f, p, preset=args.crf)) > 0.5
             for f, p in zip(frames, probs, strict=True)]
        )  # fmt: skip
        (lesson, *_) = adapting.lessons
        print(
            f"| {clip.name} | {mean_j(labels, truth):.3f} | {mean_j(adapted, truth):.3f} "
            f"| {mean_j(refined, truth):.3f} | {teacher_j(adapting, frames, truth):.3f} "
            f"| {lesson.label_seconds:.2f} | {lesson.step_seconds:.2f} "
            f"| {seconds / len(frames):.3f} |", flush=True,
        )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())

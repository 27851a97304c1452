"""Small data sets in the layouts of the real ones.

Frame t of sequence s is grey with level 10 s + t (a PNG keeps it exactly, a JPEG within one);
the object of frame t covers the columns up to `t + 1`.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image

H, W = 12, 16


def frame(s, t, size=(H, W)):
    return np.full((*size, 3), 10 * s + t, np.uint8)


def mask(t, value=255, size=(H, W), start=0):
    found = np.zeros(size, np.uint8)
    found[:, start : start + t + 1] = value
    return found


def save(path, array):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"quality": 95, "subsampling": 0} if path.suffix == ".jpg" else {}
    Image.fromarray(array).save(path, **options)


def write_pfm(path, values):
    """float32 `[H,W,3]`, first row on top."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    h, w, _ = values.shape
    path.write_bytes(b"PF\n%d %d\n-1.0\n" % (w, h) + values[::-1].astype("<f4").tobytes())


def davis(root, *, year=2016, names=("alpha", "beta"), count=3, split="train"):
    """DAVIS with made-up names; 2017 has ids 1 and 2 and a void row."""
    root = Path(root)
    kind = "Annotations" if year == 2016 else "Annotations_unsupervised"
    for s, name in enumerate(names):
        for t in range(count):
            save(root / f"JPEGImages/480p/{name}/{t:05d}.jpg", frame(s, t))
            if year == 2016:
                marks = mask(t)
            else:
                marks = mask(t, 1) + mask(0, 2, start=8)
                marks[0] = 255
            save(root / f"{kind}/480p/{name}/{t:05d}.png", marks)
    listing = root / f"ImageSets/{year}/{split}.txt"
    listing.parent.mkdir(parents=True, exist_ok=True)
    listing.write_text("\n".join(names) + "\n")
    return root


def youtube_objects(root, *, count=5, annotated=(0, 2)):
    for s, name in enumerate(("cat/0001", "dog/0001")):
        for t in range(count):
            save(Path(root) / f"JPEGImages/{name}/{t:05d}.jpg", frame(s, t))
        for t in annotated:
            save(Path(root) / f"Annotations/{name}/{t:05d}.png", mask(t))
    return Path(root)


def fbms(root, *, count=5, annotated=(0, 4)):
    """Both subsets; annotations numbered from 1 as the frames are, two grey levels."""
    for subset, name in (("Trainingset", "bear01"), ("Testset", "cars1")):
        for t in range(count):
            save(Path(root) / subset / name / f"{name}_{t + 1:04d}.jpg", frame(1, t))
        for t in annotated:
            marks = mask(t, 100) + mask(0, 200, start=8) + 20  # 20: below a tenth of the scale
            save(Path(root) / subset / name / "GroundTruth" / f"{name}_{t + 1:04d}.pgm", marks)
    return Path(root)


def segtrack(root, *, count=3):
    """One sequence with a single object, one with two."""
    root = Path(root)
    for t in range(count):
        for s, name in enumerate(("birdfall", "bmx")):
            save(root / f"JPEGImages/{name}/{name}_{t:05d}.png", frame(s, t))
        save(root / f"GroundTruth/birdfall/birdfall_{t:05d}.png", mask(t))
        save(root / f"GroundTruth/bmx/1/bmx_{t:05d}.png", mask(t))
        save(root / f"GroundTruth/bmx/2/bmx_{t:05d}.png", mask(0, start=8))
    (root / "ImageSets").mkdir(exist_ok=True)
    (root / "ImageSets/all.txt").write_text("*birdfall\n*bmx\n")
    return root


def saliency(root, *, names=("car", "lion"), count=5, annotated=(0,), marks="ground-truth",
             suffix=".jpg"):  # fmt: skip
    """`<sequence>/{Imgs,ground-truth}`; masks have soft borders: 100 does not count."""
    for s, name in enumerate(names):
        for t in range(count):
            save(Path(root) / name / "Imgs" / f"{name}_{t:05d}{suffix}", frame(s, t))
        for t in annotated:
            soft = mask(t) + mask(0, 100, start=8)
            save(Path(root) / name / marks / f"{name}_{t:05d}.png", soft)
    return Path(root)


def davsod(root):
    packages = ("DAVSOD-TrainingSet", "DAVSOD-ValidationSet", "Easy-35", "Normal-25",
                "Difficult-20")  # fmt: skip
    for k, package in enumerate(packages):
        base = Path(root) / package / (package if k == 2 else "")
        saliency(base, names=(f"select_{k:04d}",), count=2, annotated=(0, 1), suffix=".png",
                 marks="GT_object_level")  # fmt: skip
    return Path(root)


def youtube_vos(root, *, split="train", count=3):
    """Two videos, the first half annotated: its object appears in the second frame."""
    base = Path(root) / split
    for s, name in enumerate(("0a1b", "ffee")):
        for t in range(count):
            save(base / f"JPEGImages/{name}/{5 * t:05d}.jpg", frame(s, t))
            if s or t:
                save(base / f"Annotations/{name}/{5 * t:05d}.png", mask(t, 2))
    objects = {"objects": {"2": {"category": "cat", "frames": []}}}
    (base / "meta.json").write_text(json.dumps({"videos": {"0a1b": objects, "ffee": objects}}))
    return Path(root)


def flow_field(t, size=(H, W)):
    rows = np.arange(size[0], dtype=np.float32)[:, None] * np.ones(size[1], np.float32)
    return np.stack([rows + t, -rows, np.zeros(size, np.float32)], -1)


def flyingthings3d(root, *, scenes=("A/0000", "B/0003"), count=3, last_flow=True, labels=True):
    root = Path(root)
    for s, scene in enumerate(scenes):
        for t in range(count):
            number = f"{6 + t:04d}"
            save(root / f"frames_cleanpass/TRAIN/{scene}/left/{number}.png", frame(s, t))
            if labels:
                save(root / f"motion_labels/TRAIN/{scene}/left/{number}.png", mask(t))
            if t + 1 < count or last_flow:
                name = f"into_future/left/OpticalFlowIntoFuture_{number}_L.pfm"
                write_pfm(root / "optical_flow/TRAIN" / scene / name, flow_field(t))
    return root


def stills(images, masks, *, count=3):
    """Numbered photos and masks, in two folders or in one."""
    for t in range(count):
        save(Path(images) / f"{t}.jpg", frame(1, t))
        save(Path(masks) / f"{t}.png", mask(t) + mask(0, 100, start=8))


def msra10k(root, *, count=3):
    stills(Path(root) / "Imgs", Path(root) / "Imgs", count=count)
    return Path(root)


def duts(root, *, count=3):
    for part in ("TR", "TE"):
        base = Path(root) / f"DUTS-{part}"
        stills(base / f"DUTS-{part}-Image", base / f"DUTS-{part}-Mask", count=count)
    return Path(root)


def dut_omron(root, *, count=3):
    stills(Path(root) / "DUT-OMRON-image", Path(root) / "pixelwiseGT-new-PNG", count=count)
    return Path(root)


def ecssd(root, *, count=3):
    stills(Path(root) / "images", Path(root) / "ground_truth_mask", count=count)
    return Path(root)


#: data set -> (maker, sequences, frames, annotated frames) of its default split.
TREES = {
    "davis16": (davis, 2, 6, 6),
    "davis17": (lambda root: davis(root, year=2017), 2, 6, 6),
    "youtube_objects": (youtube_objects, 2, 10, 4),
    "fbms": (fbms, 1, 5, 2),
    "segtrack": (segtrack, 2, 6, 6),
    "visal": (saliency, 2, 10, 2),
    "davsod": (davsod, 1, 2, 2),
    "vsod": (saliency, 2, 10, 2),
    "youtube_vos": (youtube_vos, 2, 6, 5),
    "flyingthings3d": (flyingthings3d, 2, 6, 6),
    "msra10k": (msra10k, 3, 3, 3),
    "duts": (duts, 3, 3, 3),
    "dut_omron": (dut_omron, 3, 3, 3),
    "ecssd": (ecssd, 3, 3, 3),
}

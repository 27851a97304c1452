"""The data contract: keys, dtypes and shapes of an example, and a check that says what is wrong.

| key | one example | meaning |
|---|---|---|
| `frames` | uint8 `[T,H,W,3]` | RGB 0..255 |
| `masks` | uint8 `[T,H,W]` | instance ids; 0 background, 255 void |
| `valid` | bool `[T]` | false for padded frames |
| `has_mask` | bool `[T]` | false where a frame has no annotation |
| `flow` | float32 `[T,H,W,2]` | to the next frame, (u right, v down), pixels of this resolution |
| | or `[T,H,W,4]` | to the previous frame and to the next |
| `flow_valid` | bool `[T]` | false where there is no such frame |
| `edges` | uint8 `[T,H,W]` | boundary maps, if a system asks for them |
| `fixations` | float32 `[T,H,W]` | fixation density, likewise |
| `depth` | float32 `[T,H,W]` | distance along the optical axis; 0 where unknown |
| `camera` | float32 `[T,3,4]` | motion `[R|t]` of the world's points from camera t to t+1 |
| `camera_valid` | bool `[T]` | false where there is no next frame |
| `intrinsics` | float32 `[4]` | `(cx, cy, fx, fy)` over the image's width and height |
| `example_id` | int32 `[]` | joins back to names that never enter jit |

Batches have a leading axis B. A still image is a clip with T = 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from uvos_jax.errors import DataError, ShapeError

#: key -> (dtype, shape after [T] as letters)
FIELDS: dict[str, tuple[type, str]] = {
    "frames": (np.uint8, "THW3"),
    "masks": (np.uint8, "THW"),
    "valid": (np.bool_, "T"),
    "has_mask": (np.bool_, "T"),
    "flow": (np.float32, "THWF"),
    "flow_valid": (np.bool_, "T"),
    "edges": (np.uint8, "THW"),
    "fixations": (np.float32, "THW"),
    "depth": (np.float32, "THW"),
    "camera": (np.float32, "T34"),
    "camera_valid": (np.bool_, "T"),
    "intrinsics": (np.float32, "4"),
    "example_id": (np.int32, ""),
}
VOID = 255


def validate_example(
    example: Mapping[str, Any], *, require: tuple[str, ...] = ("frames",), name: str = "example"
) -> None:
    """Checks one example against the contract.

    Args:
      require: keys that must be there.
      name: what to call the example in messages.

    Raises:
      DataError: a required key is missing or a key is unknown.
      ShapeError: an array has the wrong dtype or shape.
    """
    for key in require:
        if key not in example:
            raise DataError(
                f"{name} lacks {key!r}: it has {sorted(example)}; the source must provide it"
            )
    sizes: dict[str, tuple[int, str]] = {}
    for key, value in example.items():
        if key not in FIELDS:
            raise DataError(f"{name} has the unknown key {key!r}: known are {sorted(FIELDS)}")
        dtype, letters = FIELDS[key]
        array = np.asarray(value)
        if array.dtype != dtype:
            raise ShapeError(
                f"{name}: {key} must be {np.dtype(dtype).name}, got {array.dtype} "
                f"(range {_range(array)})"
            )
        if array.ndim != len(letters):
            raise ShapeError(
                f"{name}: {key} must have shape [{','.join(letters)}], got {array.shape}"
            )
        for letter, size in zip(letters, array.shape, strict=True):
            if letter == "F":
                if size not in (2, 4):
                    raise ShapeError(
                        f"{name}: {key} must have 2 or 4 channels last, got {array.shape}"
                    )
            elif letter.isdigit():
                if size != int(letter):
                    raise ShapeError(
                        f"{name}: {key} must have {letter} channels last, got {array.shape}"
                    )
            elif sizes.setdefault(letter, (size, key))[0] != size:
                other = sizes[letter]
                raise ShapeError(
                    f"{name}: {key} has {letter}={size} (shape {array.shape}), but {other[1]} has "
                    f"{letter}={other[0]}; frames and what belongs to them must agree"
                )
    if "frames" in example and 0 in np.shape(example["frames"]):
        raise ShapeError(f"{name}: frames are empty, shape {np.shape(example['frames'])}")


def _range(array: np.ndarray) -> str:
    if not array.size or array.dtype.kind not in "fiub":
        return "-"
    return f"{array.min()}..{array.max()}"

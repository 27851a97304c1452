"""Deterministic weights of full-size networks, made from their official names and shapes alone.

Reference outputs were computed by the official code with every parameter drawn from a generator of
its own, seeded by the CRC-32 of its name; so no checkpoint is needed to compare whole networks.
"""

import re
import zlib

import jax
import numpy as np

from uvos_jax.convert.variables import flatten

#: Damps the residual branches: undamped, random weights explode through 33 blocks.
RESIDUAL_SCALE = ((r"\.bn3\.weight$", 0.2),)


def official_array(name, shape, *, in_batch_norm, scale=1.0):
    """The array of one official name, float32 (float64 until the last step)."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    leaf = name.rpartition(".")[2]
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if leaf == "running_var":
        values = 0.5 + rng.random(shape)
    elif in_batch_norm and leaf == "weight":
        values = 1 + 0.1 * rng.standard_normal(shape)
    elif not in_batch_norm and leaf == "weight" and len(shape) >= 2:
        values = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    else:
        values = 0.1 * rng.standard_normal(shape)
    return (values * scale).astype(np.float32)


def official_arrays(shapes, scales=RESIDUAL_SCALE):
    """Official name to array.

    Args:
      shapes: official name to shape; a module with a `running_mean` is a BatchNorm.
      scales: (regex searched in the name, factor), first match counts.
    """
    arrays = {}
    for name, shape in shapes.items():
        module = name.rpartition(".")[0]
        factor = next((f for regex, f in scales if re.search(regex, name)), 1.0)
        arrays[name] = official_array(
            name, tuple(shape), in_batch_norm=f"{module}.running_mean" in shapes, scale=factor
        )
    return arrays


def shapes_of(table, module, *inputs, **kwargs):
    """Official name to shape of a linen module, through its name table."""
    targets = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs, **kwargs))
    return table.official_shapes(dict(flatten(targets)))


def relative_difference(value, reference):
    """max|value - reference| / max(1, max|reference|)."""
    value, reference = np.asarray(value), np.asarray(reference)
    assert value.shape == reference.shape, (value.shape, reference.shape)
    return float(np.abs(value - reference).max() / max(1.0, np.abs(reference).max()))

"""Packed masks: the same pixels, boundaries and dilations as unpacked ones."""

import jax
import numpy as np
import pytest

from tests.metrics import oracles
from tests.metrics.shapes import blobs, special
from uvos_jax.errors import ConfigError
from uvos_jax.metrics import bitmask

WIDTHS = (1, 2, 31, 32, 33, 64, 70)


@pytest.mark.parametrize("width", WIDTHS)
def test_packing_on_host_and_device_agree_and_can_be_undone(rng, width):
    mask = rng.random((3, 5, width)) < 0.4
    words = bitmask.pack_host(mask)
    assert words.shape == (3, 5, bitmask.num_words(width))
    assert words.dtype == np.uint32
    np.testing.assert_array_equal(np.asarray(bitmask.pack(mask)), words)
    np.testing.assert_array_equal(bitmask.unpack_host(words, width), mask)
    np.testing.assert_array_equal(np.asarray(bitmask.count(words)), mask.sum((1, 2)))


def test_any_non_zero_value_is_foreground():
    values = np.array([[0, 1, 2, 255]], np.uint8)
    for words in (bitmask.pack_host(values), np.asarray(bitmask.pack(values))):
        assert words.tolist() == [[0b1110]]
    assert bitmask.pack_host(np.array([[0.0, 0.25, -1.0]])).tolist() == [[0b110]]


@pytest.mark.parametrize("width", WIDTHS)
def test_boundary_is_the_pixel_loops(rng, width):
    masks = np.stack([rng.random((6, width)) < p for p in (0.0, 0.2, 0.5, 0.9, 1.0)])
    found = bitmask.unpack_host(
        np.asarray(bitmask.boundary(bitmask.pack_host(masks), width)), width
    )
    np.testing.assert_array_equal(found, [oracles.boundary(m) for m in masks])


@pytest.fixture(scope="module")
def dilated():
    """Dilation by several radii of masks that touch words' ends and the image border."""
    width = 70
    masks = np.stack([*special(9, width).values(), *blobs(np.random.default_rng(3), (3, 9, width))])
    words = bitmask.pack_host(masks)
    run = jax.jit(bitmask.dilate_disk, static_argnums=1)
    return masks, {
        r: bitmask.unpack_host(np.asarray(run(words, r)), width) for r in (0, 1, 5, 8, 33)
    }


def test_dilation_is_by_a_disk_and_nothing_enters_from_outside(dilated):
    masks, found = dilated
    for radius, result in found.items():
        for mask, ours in zip(masks, result, strict=True):
            np.testing.assert_array_equal(ours, oracles.dilate(mask, radius), err_msg=str(radius))


def test_a_negative_radius_is_refused():
    with pytest.raises(ConfigError, match="radius -1 is negative"):
        bitmask.dilate_disk(np.zeros((2, 1), np.uint32), -1)

"""The colour map of label images, against known colours and the bit rule written as a loop."""

import numpy as np

from uvos_jax.data.palette import davis_palette


def test_the_first_colours_are_those_of_pascal_voc():
    expected = [
        (0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128),
        (0, 128, 128), (128, 128, 128), (64, 0, 0),
    ]  # fmt: skip
    assert [tuple(map(int, c)) for c in davis_palette()[:9]] == expected
    assert tuple(davis_palette()[255]) == (224, 224, 192)


def test_the_map_equals_the_rule_written_as_a_loop():
    for index in range(256):
        r = g = b = 0
        value = index
        for shift in range(7, -1, -1):
            r |= (value & 1) << shift
            g |= (value >> 1 & 1) << shift
            b |= (value >> 2 & 1) << shift
            value >>= 3
        assert tuple(map(int, davis_palette()[index])) == (r, g, b)


def test_every_id_has_a_colour_of_its_own():
    assert davis_palette().shape == (256, 3)
    assert davis_palette().dtype == np.uint8
    assert len(np.unique(davis_palette(), axis=0)) == 256

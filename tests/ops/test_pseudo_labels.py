"""Masks from boxes: which boxes pass, on made-up foregrounds and flows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvos_jax.errors import ConfigError
from uvos_jax.ops.pseudo_labels import boxes_of_ids, pseudo_mask

BOX = (4, 3, 14, 9)  # 10 wide, 6 high


def scene(fill=1.0, inside=(2.0, 0.0), around=(0.0, 0.0)):
    """Foreground that fills `fill` of the box from its left, and flow of two values."""
    x0, y0, x1, y1 = BOX
    foreground = np.zeros((16, 24), bool)
    foreground[y0:y1, x0 : x0 + round(fill * (x1 - x0))] = True
    flow = np.broadcast_to(np.float32(around), (16, 24, 2)).copy()
    flow[foreground] = inside
    return foreground, flow


def run(foreground, flow, boxes=(BOX,), **options):
    boxes = jnp.asarray(boxes)
    return pseudo_mask(
        jnp.asarray(foreground), boxes, jnp.ones(len(boxes), bool), jnp.asarray(flow), **options
    )


@pytest.mark.parametrize(
    "fill,inside,around,passes",
    [
        (1.0, (2, 0), (0, 0), True),
        (0.8, (2, 0), (0, 0), True),
        (0.7, (2, 0), (0, 0), False),  # fills too little
        (1.0, (2, 0), (1.5, 0), False),  # differs by 25 %
        (1.0, (2, 0), (1.3, 0), True),  # by 35 %
        (1.0, (0, 2), (2, 0), True),  # same speed, other direction
        (1.0, (0, 0), (0, 0), False),  # nothing moves
        (0.0, (2, 0), (0, 0), False),
    ],
)
def test_a_box_passes_if_its_foreground_fits_and_moves_apart(fill, inside, around, passes):
    foreground, flow = scene(fill, inside, around)
    labels, keep, passed = run(foreground, flow)
    assert bool(keep) is passes
    assert passed.tolist() == [passes]
    expected = np.zeros((16, 24), np.uint8)
    x0, y0, x1, y1 = BOX
    expected[y0:y1, x0:x1] = 0 if passes else 255
    if passes:
        expected[foreground] = 1
    np.testing.assert_array_equal(labels, expected)


def test_foreground_outside_boxes_is_dropped():
    foreground, flow = scene()
    foreground[12:, 18:] = True
    labels, keep, _ = run(foreground, flow)
    assert keep
    assert not np.any(labels[12:, 18:])


def test_the_tight_box_measures_extent_instead_of_area():
    foreground, flow = scene()
    foreground[4:8, 5:13] = False  # a frame: 28 of 60 pixels, the same bounding box
    assert not run(foreground, flow)[1]
    assert run(foreground, flow, box_test="tight_box")[1]
    with pytest.raises(ConfigError, match=r"box_test is 'iou'.*tight_box"):
        run(foreground, flow, box_test="iou")


def test_a_box_without_surroundings_fails():
    foreground, flow = np.ones((8, 8), bool), np.ones((8, 8, 2), np.float32)
    assert not run(foreground, flow, boxes=[(0, 0, 8, 8)])[1]


def test_one_box_may_pass_and_another_fail():
    foreground, flow = scene()
    labels, keep, passed = run(foreground, flow, boxes=[BOX, (16, 10, 20, 14)])
    assert keep
    assert passed.tolist() == [True, False]
    assert np.all(np.asarray(labels)[10:14, 16:20] == 255)


def test_thresholds_are_arguments():
    foreground, flow = scene(0.5, (2, 0), (1.8, 0))
    assert not run(foreground, flow)[1]
    assert run(foreground, flow, box_overlap=0.4, flow_difference=0.05)[1]


def test_boxes_of_ids_equal_a_slow_search():
    rng = np.random.default_rng(0)
    masks = np.where(rng.random((3, 9, 11)) < 0.1, rng.integers(1, 4, (3, 9, 11)), 0)
    masks[0][masks[0] == 2] = 0
    boxes, present = jax.jit(boxes_of_ids, static_argnums=1)(jnp.asarray(masks, jnp.uint8), 3)
    for b, k in np.ndindex(3, 3):
        y, x = np.nonzero(masks[b] == k + 1)
        assert present[b, k] == bool(len(y))
        expected = [x.min(), y.min(), x.max() + 1, y.max() + 1] if len(y) else [0, 0, 0, 0]
        assert boxes[b, k].tolist() == expected

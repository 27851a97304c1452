"""Teacher and student against outputs of the released networks (MSiam/motion_adaptation@4f31dbe).

The weights follow a deterministic rule, pass through the converter under their official names, and
the networks run at full width on noise of 48x57. Stored are every C/16-th channel of the maps.
"""

import json
import re
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uvos_jax as uvos
from uvos_jax.convert import convert
from uvos_jax.convert import teacher_student as names
from uvos_jax.convert.variables import flatten
from uvos_jax.errors import CheckpointError, ConfigError
from uvos_jax.losses.bootstrapped import bootstrapped_cross_entropy
from uvos_jax.ops.resize import resize_nearest

#: Full size: minutes in all.
pytestmark = pytest.mark.slow

DATA = Path(__file__).resolve().parents[1] / "data"
NAMES = json.loads((DATA / "teacher_student_names.json").read_text())
SIZE = (48, 57)


def official_array(name, shape):
    """The weight the reference run used; each array has its own generator."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    leaf = name.rpartition("/")[2]
    if leaf == "var_ema":
        values = 0.5 + rng.random(shape)
    elif leaf.startswith("W"):
        values = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[:-1]))
    else:
        values = 0.1 * rng.standard_normal(shape) + (leaf == "gamma")
    # the last convolution of a unit is damped, or activations explode
    if re.search(r"^res(\d|1[0-4])(_1)?/W2$|^res1[56]/W3$", name):
        values = values * 0.2
    return values.astype(np.float32)


def small_arrays(part):
    """Official names and zeros of the tiny network."""
    system = uvos.build("teacher_student:tiny")
    targets = dict(flatten(jax.eval_shape(system.init, jax.random.key(0))))
    shapes = names.PARTS[part](system.config).official_shapes(targets)
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


# ----- names ----------------------------------------------------------------------------------


@pytest.mark.parametrize("part,count", [("teacher", 319), ("student", 195)])
def test_tables_list_every_official_name_and_shape(part, count):
    system = uvos.build("teacher_student")
    targets = dict(flatten(jax.eval_shape(system.init, jax.random.key(0))))
    shapes = names.PARTS[part](system.config).official_shapes(targets)
    assert len(NAMES[part]) == count
    assert {k: list(v) for k, v in shapes.items()} == NAMES[part]


def test_both_checkpoints_together_fill_every_variable():
    both = names.join(small_arrays("student"), small_arrays("teacher"))
    variables = convert("teacher_student", both, "teacher_student:tiny")
    assert set(variables["params"]) == {"student", "teacher"}
    back = uvos.convert.official.to_official("teacher_student", variables)
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in both.items()}


def test_state_of_optimisers_is_ignored_and_strangers_are_not():
    arrays = small_arrays("student")
    arrays["conv0/W/Adam"] = arrays["conv0/W/Adam_1"] = arrays["conv0/W"]
    arrays["beta1_power"] = arrays["global_step"] = np.zeros(())
    variables = convert("teacher_student", arrays, "teacher_student:tiny", part="student")
    assert set(variables["params"]) == {"student"}
    arrays["res9/W1"] = arrays["conv0/W"]
    with pytest.raises(CheckpointError, match=r"1 unknown \(such as res9/W1\)"):
        convert("teacher_student", arrays, "teacher_student:tiny", part="student")


def test_a_student_is_no_teacher():
    with pytest.raises(CheckpointError, match=r"as teacher of .*missing \(such as .*_1/"):
        convert("teacher_student", small_arrays("student"), "teacher_student:tiny", part="teacher")
    with pytest.raises(ConfigError, match=r"no part 'pupil'.*student, teacher"):
        convert("teacher_student", {}, "teacher_student:tiny", part="pupil")


# ----- numbers --------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["student", "teacher"])
def run(request):
    """(part, maps by official name, logits, targets) of a full-size network."""
    part = request.param
    arrays = {k: official_array(k, tuple(shape)) for k, shape in NAMES[part].items()}
    variables = convert("teacher_student", arrays, part=part)
    del arrays
    rng = np.random.default_rng(7)
    image, flow = (rng.standard_normal((1, *SIZE, 3)).astype(np.float32) for _ in range(2))
    targets = rng.integers(0, 2, (1, *SIZE, 1))
    module = uvos.build("teacher_student").module

    @jax.jit
    def apply(variables, *inputs):
        return module.apply(
            variables, *inputs, part=part, capture_intermediates=True, mutable=["intermediates"]
        )

    inputs = (image, flow) if part == "teacher" else (image,)
    with jax.default_matmul_precision("highest"):
        logits, kept = apply(variables, *inputs)
    found = {}
    for trunk, suffix in (("trunk", ""), ("appearance", ""), ("motion", "_1"), ("head", "")):
        for name, value in kept["intermediates"][part].get(trunk, {}).items():
            if name.startswith(("res", "conv")):
                found[name + suffix] = np.asarray(value["__call__"][0])
    if part == "teacher":
        found["concat1"] = np.maximum(found["res11"], 0) * np.maximum(found["res11_1"], 0)
    return part, found, np.asarray(logits), targets


@pytest.fixture(scope="module")
def released():
    return dict(np.load(DATA / "teacher_student_parity.npz"))


@pytest.mark.slow
def test_masks_equal_the_release(run, released):
    part, _, logits, _ = run
    probs = np.asarray(jax.nn.softmax(logits, axis=-1))
    print(part, "max |d|", np.abs(probs - released[f"{part}_softmax"]).max())
    np.testing.assert_allclose(probs, released[f"{part}_softmax"], atol=1e-4)
    np.testing.assert_allclose(logits, released[f"{part}_logits"], atol=1e-4)


@pytest.mark.slow
def test_intermediate_maps_equal_the_release(run, released):
    part, found, _, _ = run
    compared = 0
    for key, reference in released.items():
        name = key.removeprefix(f"{part}_")
        if key == name or name not in found:
            continue
        value = found[name][..., :: found[name].shape[-1] // 16]
        if name in ("res0", "res2"):
            value = value[:, ::3, ::3]
        tolerance = 1e-4 * max(1.0, np.abs(reference).max())
        np.testing.assert_allclose(value, reference, atol=tolerance, err_msg=name)
        compared += 1
    assert compared == (11 if part == "teacher" else 9)


@pytest.mark.slow
def test_loss_equals_the_release(run, released):
    part, _, logits, targets = run
    small = resize_nearest(jnp.asarray(targets, jnp.float32), logits.shape[1:3])[..., 0]
    loss = bootstrapped_cross_entropy(jnp.asarray(logits), small, jnp.ones_like(small))
    np.testing.assert_allclose(loss.sum(), released[f"{part}_loss"], rtol=1e-5)

"""One compiled renderer for all tests: scenes are edited instead of compiling other settings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvos_jax import synthetic

CONFIG = synthetic.config("test")
CLIPS = 6


@pytest.fixture(scope="session")
def draw():
    """Scene of an integer seed."""
    sample = jax.jit(lambda seed: synthetic.sample_scene(jax.random.key(seed), CONFIG))
    return lambda seed: sample(np.uint32(seed))


@pytest.fixture(scope="session")
def render_all():
    """Every output of a scene, as numpy arrays."""

    @jax.jit
    def run(scene):
        return synthetic.render(scene, None, CONFIG, synthetic.OUTPUTS)

    return lambda scene: jax.device_get(run(scene))


@pytest.fixture(scope="session")
def records(draw, render_all):
    """Scenes and their renderings."""
    return [(scene, render_all(scene)) for scene in map(draw, range(CLIPS))]


def edited(scene, *, camera=None, objects_still=False, photometric=None):
    """A scene with parts of it switched off."""
    scene = jax.tree.map(jnp.asarray, scene)
    if camera is not None:
        new = {name: 0 * value for name, value in scene["camera"].items() if name != "target"}
        keep = ("shake_start", "wave_frequency")
        new |= {name: scene["camera"][name] for name in keep} | {
            "target": scene["camera"]["target"]
        }
        scene = {**scene, "camera": {**new, **{k: jnp.asarray(v) for k, v in camera.items()}}}
    if objects_still:
        still = (
            "velocity", "acceleration", "sway_amplitude", "swing_amplitude", "spin", "growth",
            "shear_rate",
        )  # fmt: skip
        layers = dict(scene["layers"])
        layers["parent"] = {
            k: 0 * v if k in still else v for k, v in scene["layers"]["parent"].items()
        }
        layers.update({k: 0 * layers[k] for k in still})
        scene = {**scene, "layers": layers, "is_moving": 0 * scene["is_moving"]}
    if photometric is not None:
        scene = {**scene, "photometric": {**scene["photometric"], **photometric}}
    return scene

"""Synthetic video in pure JAX: endless layered scenes with exact masks, ids, flow and occlusion.

    cfg = synthetic.config("default")
    clip = synthetic.render(synthetic.sample_scene(key, cfg), None, cfg, ("video", "mask"))

Everything is a function of a key, so clip i of a set is the same on every machine.
"""

from uvos_jax.synthetic.config import OUTPUTS, SceneConfig, config, curriculum
from uvos_jax.synthetic.degrade import degrade_flow
from uvos_jax.synthetic.demo import demo_clip, demo_clips
from uvos_jax.synthetic.fixations import fixation_maps
from uvos_jax.synthetic.pairs import saliency_pair
from uvos_jax.synthetic.pseudo_video import pseudo_video
from uvos_jax.synthetic.render import batch, clip, clip_key, render
from uvos_jax.synthetic.scene import sample_scene
from uvos_jax.synthetic.source import GrainSource, to_example

__all__ = [
    "OUTPUTS",
    "GrainSource",
    "SceneConfig",
    "batch",
    "clip",
    "clip_key",
    "config",
    "curriculum",
    "degrade_flow",
    "demo_clip",
    "demo_clips",
    "fixation_maps",
    "pseudo_video",
    "render",
    "saliency_pair",
    "sample_scene",
    "to_example",
]

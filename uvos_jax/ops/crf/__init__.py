"""Dense CRF post-processing: see `dense_crf`."""

from uvos_jax.ops.crf.crf import dense_crf
from uvos_jax.ops.crf.presets import PRESETS, Preset, get_preset, list_presets
from uvos_jax.ops.crf.terms import Bilateral, Gaussian

__all__ = ["PRESETS", "Bilateral", "Gaussian", "Preset", "dense_crf", "get_preset", "list_presets"]

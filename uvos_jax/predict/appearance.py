"""What the object of one video looks like, learned from where the network is sure.

A network that sees motion loses an object that stops, and finds its shape only as exactly as flow
does. Colours tell it apart in all frames: as in Papazoglou and Ferrari (ICCV 2013), whose mixtures
of colours are a small perceptron on colour and texture here, fitted to each video. It learns from
the network's own answers, so it cannot repair a video in which those are wrong throughout.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, UInt8

from uvos_jax.ops.blur import gaussian_mean
from uvos_jax.ops.color import rgb_to_lab
from uvos_jax.ops.odds import log_odds
from uvos_jax.ops.resize import resize_area, resize_bilinear

__all__ = ["Appearance"]

#: Deviations of the two Gaussian windows of the features, in frame widths.
WINDOWS = (0.009, 0.022)
FEATURES = 12
HIDDEN = 32
STEPS, BATCH, RATE, DECAY = 300, 2048, 3e-3, 1e-2
#: Frames that teach, and pixels of either kind in each, at most.
FRAMES, PIXELS = 64, 1000
#: Pixels whose odds are computed at once on a CPU.
PIXELS_AT_ONCE = 2048
#: Appearance is looked at this many times smaller than the network sees: colour in windows of
#: several pixels hardly changes from one pixel to the next, and it takes a quarter of the time.
SHRINK = 2
#: Below this many pixels of either kind there is nothing to learn.
LEAST = 100
#: Probabilities below and above which a pixel teaches, with this power of its distance from one
#: half: what is merely likely, such as an object's reflection and its wave, hardly does.
UNSURE, POWER = (0.4, 0.6), 8


def _smaller(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns at which frames `[T,h,w,...]` are looked at."""
    return tuple(max(n // SHRINK, 1) for n in shape[1:3])


@jax.jit
def features(frames: UInt8[Array, "T H W 3"]) -> Float[Array, "T h w 12"]:
    """CIE L*a*b*, its mean in two windows and its deviation in the smaller one.

    `h` and `w` are `SHRINK` times smaller than `H` and `W`.
    """
    rgb = resize_area(frames.astype(jnp.float32), _smaller(frames.shape))
    lab = rgb_to_lab(rgb / 255) / 50
    small, large = (window * rgb.shape[2] for window in WINDOWS)
    fine, coarse = gaussian_mean(lab, small), gaussian_mean(lab, large)
    spread = jnp.sqrt(jnp.maximum(gaussian_mean(lab**2, small) - fine**2, 0.0) + 1e-4)
    return jnp.concatenate([lab, fine, coarse, 2 * spread], axis=-1)


@jax.jit
def _looked_at(frames: jax.Array, probs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Features `[n,12]` of all pixels that are looked at, and their probabilities `[n]`."""
    small = resize_area(probs[..., None], _smaller(frames.shape))
    return features(frames).reshape(-1, FEATURES), small.reshape(-1)


def _network(params: list, x: jax.Array) -> jax.Array:
    for i, (kernel, bias) in enumerate(params):
        x = x @ kernel + bias
        if i + 1 < len(params):
            x = jax.nn.relu(x)
    return x[..., 0]


def _initial(key: jax.Array) -> list:
    widths = (FEATURES, HIDDEN, HIDDEN, 1)
    keys = jax.random.split(key, len(widths) - 1)
    gains = (2.0, 2.0, 0.02)
    return [
        (jax.random.normal(k, (a, b)) * jnp.sqrt(gain / a), jnp.zeros(b))
        for k, a, b, gain in zip(keys, widths[:-1], widths[1:], gains, strict=True)
    ]


@jax.jit
def _fit(x: jax.Array, sure: jax.Array, counts: jax.Array) -> list:
    """Parameters after `STEPS` of AdamW; half of each batch is foreground.

    Args:
      x: `[2,N,12]`, of the background and of the foreground. sure: `[2,N]`, weight of each pixel.
      counts: `[2]`, pixels there are.
    """
    optimizer = optax.adamw(RATE, weight_decay=DECAY)
    params = _initial(jax.random.key(0))
    target = jnp.repeat(jnp.arange(2.0), BATCH // 2)

    def step(carry, key):
        params, state = carry
        pick = jax.random.randint(key, (2, BATCH // 2), 0, counts[:, None])
        seen = jnp.take_along_axis(x, pick[..., None], axis=1).reshape(BATCH, FEATURES)
        weight = jnp.take_along_axis(sure, pick, axis=1).reshape(BATCH)

        def loss(params):
            entropy = optax.sigmoid_binary_cross_entropy(_network(params, seen), target)
            return jnp.mean(weight * entropy)

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(jax.random.key(1), STEPS)
    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), keys)
    return params


@jax.jit
def _odds(params: list, scale: tuple, frames: jax.Array) -> jax.Array:
    mean, deviation = scale
    pixels = ((features(frames) - mean) / deviation).reshape(-1, FEATURES)
    network = partial(_network, params)
    if jax.default_backend() == "cpu":
        # a few thousand pixels at a time stay in the cache, which takes a quarter of the time
        odds = jax.lax.map(network, pixels, batch_size=PIXELS_AT_ONCE)
    else:
        odds = network(pixels)
    odds = odds.reshape(len(frames), *_smaller(frames.shape), 1)
    odds = resize_bilinear(odds, frames.shape[1:3])[..., 0]
    return jnp.clip(odds, log_odds(jnp.float32(0)), log_odds(jnp.float32(1)))


@partial(jax.jit, static_argnames="share")
def _mixed(odds: jax.Array, probs: jax.Array, *, share: float) -> jax.Array:
    return jax.nn.sigmoid(share * odds + (1 - share) * log_odds(probs))


class Appearance:
    """Colours and texture of one video's object and of everything else.

    Memory does not grow with the video: of long ones every second, fourth, ... frame teaches.
    """

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)
        self._seen, self._stride = 0, 1
        self._kept: list[tuple[int, list[np.ndarray], list[np.ndarray]]] = []
        self._model: tuple | None = None

    def see(self, frames: np.ndarray, probs: np.ndarray) -> None:
        """Takes pixels of consecutive frames uint8 `[T,h,w,3]` with their probabilities."""
        for frame, prob in zip(frames, probs, strict=True):
            if self._seen % self._stride == 0:
                values, prob = _looked_at(frame[None], prob[None])
                self._keep(np.asarray(values), np.asarray(prob))
            self._seen += 1

    def _keep(self, values: np.ndarray, prob: np.ndarray) -> None:
        pixels, weights = [], []
        for chosen in (prob < UNSURE[0], prob > UNSURE[1]):
            where = np.flatnonzero(chosen)
            if len(where) > PIXELS:
                where = self._rng.choice(where, PIXELS, replace=False)
            pixels.append(values[where])
            weights.append(np.abs(2 * prob[where] - 1) ** POWER)
        self._kept.append((self._seen, pixels, weights))
        if len(self._kept) > FRAMES:
            self._stride *= 2
            self._kept = [item for item in self._kept if item[0] % self._stride == 0]

    def fit(self) -> bool:
        """Learns from what was seen; False if that shows no object, or nothing but one."""
        x = np.zeros((2, FRAMES * PIXELS, FEATURES), np.float32)
        sure = np.zeros(x.shape[:2], np.float32)
        counts = []
        for kind in range(2):
            pixels = np.concatenate([item[1][kind] for item in self._kept])
            counts.append(len(pixels))
            x[kind, : len(pixels)] = pixels
            sure[kind, : len(pixels)] = np.concatenate([item[2][kind] for item in self._kept])
        if min(counts) < LEAST:
            return False
        both = np.concatenate([x[kind, :n] for kind, n in enumerate(counts)])
        scale = both.mean(0), both.std(0) + 1e-3
        x = (x - scale[0]) / scale[1]
        self._model = _fit(x, sure, np.asarray(counts, np.int32)), scale
        return True

    def mix(self, frames: np.ndarray, probs: np.ndarray, share: float) -> jax.Array:
        """Probabilities `[T,h,w]` with this share of the appearance in their log-odds.

        As they are where `fit` found nothing to learn.
        """
        if self._model is None:
            return jnp.asarray(probs, jnp.float32)
        params, scale = self._model
        return _mixed(_odds(params, scale, frames), jnp.asarray(probs), share=share)

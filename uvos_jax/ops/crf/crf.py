"""The public entry: a dense CRF on an image and its label probabilities."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from uvos_jax.errors import ConfigError, DataError, ShapeError
from uvos_jax.ops.crf import exact, separable, unary
from uvos_jax.ops.crf.build import build_lattice, is_traced
from uvos_jax.ops.crf.lattice import lattice_filter
from uvos_jax.ops.crf.meanfield import mean_field, mean_field_two_labels, normalized
from uvos_jax.ops.crf.presets import get_preset
from uvos_jax.ops.crf.spatial import spatial_lattice
from uvos_jax.ops.crf.terms import Number, Term, TermKey, term_key

KERNELS = ("lattice", "exact")
SMOOTH = ("lattice", "separable")
#: Frames that run together on an accelerator.
_CHUNK = 8


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What the compiled program depends on besides shapes."""

    size: tuple[int, int]
    keys: tuple[TermKey, ...]
    kernel: str
    smooth: str
    iterations: int
    kl_stop: Number | None
    form: Literal["foreground", "probabilities", "unary"]
    unary: str
    stretch: bool


def dense_crf(
    image: Any,
    probs: Any = None,
    *,
    unary: Any = None,
    preset: str = "cosnet",
    terms: Sequence[Any] | None = None,
    iterations: Any = None,
    kl_stop: Number | Literal["preset"] | None = "preset",
    kernel: str = "lattice",
    smooth: str = "lattice",
    capacity: int | None = None,
) -> jax.Array:
    """Refines label probabilities so that they follow the edges of the image.

    Mean-field inference in a fully connected CRF; with `kernel="lattice"` the result agrees with
    pydensecrf to rounding. Differentiable in `probs`, `unary` and the `compat` of `terms`, not in
    the image.

    Args:
      image: uint8 RGB `[H,W,3]`, or a batch `[B,H,W,3]`.
      probs: foreground probabilities `[H,W]`, or those of L labels `[L,H,W]` (summing to one),
        in [0,1]; with a leading B for a batch.
      unary: instead of `probs`, energies `[L,H,W]` (with a leading B for a batch).
      preset: settings by name, see `list_presets()`; also says how `probs` become energies.
        A foreground map is stretched to 0..1 first where the published script does so; a constant
        map cannot be stretched and is returned as it is.
      terms: pairwise terms (`Gaussian`, `Bilateral`) instead of those of the preset.
      iterations: mean-field steps instead of the preset's; 0 returns the softmax of the energies.
      kl_stop: stop early once a step changes the KL divergence by less; None never stops.
      kernel: `lattice` (fast, as pydensecrf) or `exact` (all pairs of pixels, for small images).
      smooth: how `Gaussian` terms are filtered under `kernel="lattice"`: by the `lattice`
        (as pydensecrf) or as a true Gaussian (`separable`).
      capacity: only for a call whose image is traced (inside `jit`): lattice vertices to make
        room for. The default holds the worst case; a lattice that does not fit gives NaN.

    Returns:
      float32 of the shape of `probs` (or `unary`): the posterior foreground probability, or
      those of all labels.

    Raises:
      ShapeError: image not uint8 or not `[...,H,W,3]`; sizes of image and probabilities differ.
      DataError: NaN, probabilities outside [0,1] or not summing to one (concrete arrays only;
        traced values cannot be inspected).
      ConfigError: unknown preset, mode or term; scales too small for the image.

    Example:
      >>> mask = dense_crf(frame, probs, preset="cosnet") > 0.5
    """
    if kernel not in KERNELS:
        raise ConfigError(f"kernel is {kernel!r}: use one of {KERNELS}")
    if smooth not in SMOOTH:
        raise ConfigError(f"smooth is {smooth!r}: use one of {SMOOTH}")
    if (probs is None) == (unary is None):
        raise ConfigError("give either probs or unary, and not both")
    settings = get_preset(preset)
    terms = settings.terms if terms is None else tuple(terms)
    iterations = settings.iterations if iterations is None else iterations
    if not isinstance(iterations, int | np.integer) or iterations < 0:
        raise ConfigError(f"iterations is {iterations!r}: expected an integer of at least 0")
    image = _check_image(image)
    values = probs if unary is None else unary
    values = values if is_traced(values) else np.asarray(values)
    form = _check_values(image, values, "probs" if unary is None else "unary")
    labels = 2 if form == "foreground" else values.shape[-3]
    plan = _Plan(
        size=tuple(image.shape[-3:-1]),
        keys=tuple(term_key(term) for term in terms),
        kernel=kernel,
        smooth=smooth,
        iterations=int(iterations),
        kl_stop=settings.kl_stop if kl_stop == "preset" else kl_stop,
        form=form,
        unary=settings.unary,
        stretch=settings.stretch,
    )
    compats = tuple(_check_compat(term, labels) for term in terms)
    one = partial(_single, compats=compats, plan=plan, capacity=capacity)
    if image.ndim == 3:
        return one(image, values)
    if is_traced(image):
        return lax.map(lambda pair: one(*pair), (jnp.asarray(image), jnp.asarray(values)))
    # On CPU one frame at a time is faster: its lattice stays in the cache.
    chunk = 1 if jax.default_backend() == "cpu" or kernel == "exact" else _CHUNK
    if chunk == 1:
        return jnp.stack([one(image[i], values[i]) for i in range(len(image))])
    return _in_chunks(one, image, values, chunk)


def _in_chunks(run, image: np.ndarray, values, chunk: int) -> jax.Array:
    """Runs `chunk` frames at once; the last ones are filled up, so that one size is compiled."""
    results = []
    for start in range(0, len(image), chunk):
        some, these = image[start : start + chunk], values[start : start + chunk]
        missing = chunk - len(some)
        some = np.concatenate([some, some[-1:].repeat(missing, axis=0)])
        these = jnp.concatenate([jnp.asarray(these), jnp.repeat(these[-1:], missing, axis=0)])
        results.append(run(some, these)[: chunk - missing])
    return jnp.concatenate(results)


def _single(image, values, *, compats, plan: _Plan, capacity: int | None) -> jax.Array:
    """One frame (or, on an accelerator, several): lattices first, then everything else."""
    data = []
    for key in plan.keys:
        if plan.kernel == "exact":
            data.append((exact.features(image, plan.size, key),))
        elif key.is_bilateral:
            data.append((build_lattice(image, key, capacity=capacity),))
        elif plan.smooth == "separable":
            data.append(())
        else:
            data.append(spatial_lattice(plan.size, key))
    solve = _solve_one if image.ndim == 3 else _solve_several
    return solve(jnp.asarray(values, jnp.float32), tuple(data), compats, plan)


def _solve(values: jax.Array, data: tuple, compats: tuple, plan: _Plan) -> jax.Array:
    """Everything after the lattices: energies, normalisations, mean field."""
    flat = values.reshape(*values.shape[:-2], -1)
    pixels = flat.shape[-1]
    kernels, fits = [], jnp.bool_(True)
    for key, built in zip(plan.keys, data, strict=True):
        if plan.kernel == "exact":
            apply = partial(exact.gaussian_filter, built[0])
        elif key.is_bilateral or plan.smooth == "lattice":
            apply = partial(lattice_filter, built[0])
            fits = fits & (built[0].count <= built[0].minus.shape[1])
        else:
            apply = partial(separable.gaussian_smooth, size=plan.size, sdims=key.scales)
        ones = built[1] if len(built) > 1 else apply(jnp.ones(pixels, jnp.float32))
        kernels.append(normalized(apply, ones, key.normalization))

    if plan.form == "foreground":
        foreground = unary.stretch(flat) if plan.stretch else flat
        if plan.unary == "rescored":
            energy = unary.rescored(foreground)
        else:
            energy = unary.from_probabilities(jnp.stack([1.0 - foreground, foreground]))
    elif plan.form == "probabilities":
        energy = unary.from_probabilities(flat)
    else:
        energy = flat

    options = {"iterations": plan.iterations, "kl_stop": plan.kl_stop}
    if energy.shape[0] == 2 and all(c.ndim == 0 for c in compats):
        q = mean_field_two_labels(energy[0] - energy[1], kernels, compats, **options)
        result = q if plan.form == "foreground" else jnp.stack([1.0 - q, q])
    else:
        result = mean_field(energy, kernels, compats, **options)
        result = result[1] if plan.form == "foreground" else result
    if plan.form == "foreground" and plan.stretch:
        result = jnp.where(jnp.min(flat) == jnp.max(flat), flat, result)
    return jnp.where(fits, result, jnp.nan).reshape(values.shape)


_solve_one = jax.jit(_solve, static_argnums=3)


@partial(jax.jit, static_argnums=3)
def _solve_several(values: jax.Array, data: tuple, compats: tuple, plan: _Plan) -> jax.Array:
    """`_solve` for a batch; what belongs to an image is mapped, spatial lattices are shared."""
    axes = tuple(0 if key.is_bilateral else None for key in plan.keys)
    return jax.vmap(partial(_solve, plan=plan), (0, axes, None))(values, data, compats)


def _check_image(image: Any) -> Any:
    image = image if is_traced(image) else np.asarray(image)
    if image.dtype != np.uint8:
        raise ShapeError(
            f"image has dtype {image.dtype}: the CRF's colour scale is that of uint8 RGB 0..255; "
            "pass the frame as it was decoded, not normalised"
        )
    if image.ndim not in (3, 4) or image.shape[-1] != 3 or 0 in image.shape:
        raise ShapeError(f"image has shape {image.shape}: expected [H,W,3] or [B,H,W,3], RGB")
    return image


def _check_values(image: Any, values: Any, name: str) -> str:
    batch, size = tuple(image.shape[:-3]), tuple(image.shape[-3:-1])
    shape = tuple(values.shape)
    lead = shape[len(batch) : -2]
    fits = len(shape) >= 2 + len(batch) and shape[-2:] == size and shape[: len(batch)] == batch
    allowed = 1 if name == "unary" else 0
    if not fits or not allowed <= len(lead) <= 1:
        form = f"{[*batch, 'L', *size]}"
        if name == "probs":
            form = f"{[*batch, *size]} (foreground) or {form}"
        raise ShapeError(
            f"{name} has shape {shape} and the image {tuple(image.shape)}: expected {name} of "
            f"shape {form.replace(chr(39), '')}; resize one to the other first"
        )
    if lead and lead[0] < 2:
        raise ShapeError(
            f"{name} has {lead[0]} label: expected at least 2, or a foreground map without "
            "the label axis"
        )
    if not (np.issubdtype(values.dtype, np.floating) or values.dtype == jnp.bfloat16):
        raise DataError(
            f"{name} has dtype {values.dtype}: expected floating point"
            + (", in [0,1]; divide an 8-bit map by 255" if name == "probs" else "")
        )
    if name == "unary":
        if not is_traced(values) and np.isnan(values).any():
            raise DataError("unary contains NaN: check the network's outputs")
        return "unary"
    if not is_traced(values):
        low, high = float(values.min()), float(values.max())
        if np.isnan(low) or np.isnan(high):
            raise DataError("probs contains NaN: check the network's outputs")
        if low < -1e-6 or high > 1 + 1e-6:
            raise DataError(
                f"probs spans {low:g}..{high:g}: expected probabilities in [0,1]; pass energies "
                "as unary, or apply a sigmoid or softmax to logits"
            )
        if lead:
            worst = float(np.abs(values.sum(axis=-3) - 1.0).max())
            if worst > 1e-3:
                raise DataError(
                    f"probs of the {lead[0]} labels sum to one within {worst:g} only: expected "
                    "1e-3; normalise over the label axis"
                )
    return "probabilities" if lead else "foreground"


def _check_compat(term: Term, labels: int) -> jax.Array:
    compat = term.compat if is_traced(term.compat) else np.asarray(term.compat, np.float32)
    if compat.shape not in ((), (labels,), (labels, labels)):
        raise ShapeError(
            f"{type(term).__name__}.compat has shape {compat.shape}: expected a number, "
            f"[{labels}] or [{labels},{labels}] for {labels} labels"
        )
    if not is_traced(compat) and not np.all(np.isfinite(compat)):
        raise DataError(f"{type(term).__name__}.compat is {term.compat!r}: expected finite numbers")
    return jnp.asarray(compat, jnp.float32)

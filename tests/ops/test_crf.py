"""The dense CRF: its filter against a dictionary of lattice points, its gradients, its manners."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvos_jax.errors import ConfigError, DataError, ShapeError
from uvos_jax.ops import crf as api
from uvos_jax.ops.crf import (
    Bilateral,
    Gaussian,
    build,
    dense_crf,
    exact,
    list_presets,
    separable,
    spatial,
    unary,
)
from uvos_jax.ops.crf import crf as entry
from uvos_jax.ops.crf.lattice import lattice_filter
from uvos_jax.ops.crf.terms import term_key

H, W = 13, 15  # 195 pixels: not a multiple of four
TERMS = (Gaussian(2, 0.6), Bilateral(12, 8, 0.9))


def scene(seed=0):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:H, :W]
    image = np.stack([10 * y, 12 * x, 90 + 3 * (x - y)], axis=-1) + rng.normal(0, 9, (H, W, 3))
    image[4:9, 5:11] = (220, 40, 90)
    probs = 1 / (1 + np.exp(0.7 * (np.hypot(y - 6, x - 8) - 3))) + rng.normal(0, 0.05, (H, W))
    return np.clip(image, 0, 255).astype(np.uint8), np.clip(probs, 0.02, 0.98).astype(np.float32)


IMAGE, PROBS = scene()


def lattice_points(feature):
    """Vertices (full coordinates) and weights of one point: Adams et al. 2010, by sorting."""
    d = len(feature)
    # float32, because a point on the face of two simplices must choose the same one
    e, total = np.zeros(d + 1), np.float32(0)
    for i in range(d, 0, -1):  # column i-1 of the basis: i ones, then -i
        scale = 1 / np.sqrt((i + 1) * i) * np.float32(np.sqrt(2 / 3) * (d + 1))
        c = np.float32(feature[i - 1]) * np.float32(scale)
        e[i] = total - np.float32(i) * c
        total = total + c
    e[0] = total
    near = np.round(e / (d + 1)) * (d + 1)
    excess = round(near.sum() / (d + 1))
    order = np.argsort(-(e - near), kind="stable")  # largest residual first
    if excess > 0:  # too high: lower those that were rounded up most
        for i in order[::-1][:excess]:
            near[i] -= d + 1
    for i in order[:-excess] if excess < 0 else ():
        near[i] += d + 1
    order = np.argsort(-(e - near), kind="stable")
    residual = (e - near)[order] / (d + 1)
    weights = [1 - (residual[0] - residual[-1])]
    weights += [residual[d - k] - residual[d - k + 1] for k in range(1, d + 1)]
    points = []
    for k in range(d + 1):
        point = near + k
        for i in order[d + 1 - k :]:
            point[i] -= d + 1
        points.append(tuple(point.astype(int)))
    return points, weights


def slow_filter(features, x, extra_zero, axes):
    """Splat, blur, slice with a dictionary, as the article describes it."""
    d = features.shape[1]
    located = [lattice_points(f) for f in features]
    z = {}
    for (points, weights), value in zip(located, x, strict=True):
        for point, weight in zip(points, weights, strict=True):
            z[point] = z.get(point, 0.0) + weight * value
    if extra_zero:
        for point in lattice_points(np.zeros(d))[0]:
            z.setdefault(point, 0.0)
    for j in axes:
        step = np.full(d + 1, -1)
        step[j] = d
        z = {
            p: v
            + 0.5 * (z.get(tuple(np.add(p, step)), 0.0) + z.get(tuple(np.subtract(p, step)), 0.0))
            for p, v in z.items()
        }
    alpha = 1 / (1 + 2.0**-d)
    return np.array(
        [alpha * sum(w * z[p] for p, w in zip(*located_, strict=True)) for located_ in located]
    )


def lattice_of(term, image=IMAGE):
    key = term_key(term)
    if key.is_bilateral:
        return build.build_lattice(image, key)
    return spatial.spatial_lattice(image.shape[:2], key)[0]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    "term",
    [
        Gaussian(1.3),
        Gaussian((2, 0.7), order="xy"),
        Bilateral(2, 1.1),
        Bilateral((3, 7), 20, order="xy"),
    ],
)
def test_filter_equals_a_dictionary_of_lattice_points(term, reverse, rng):
    y, x = np.mgrid[:H, :W]
    first = [y, x] if term.order == "yx" else [x, y]
    key = term_key(term)
    scales = np.array(key.scales)
    if term.order == "xy":
        scales[:2] = scales[1::-1]
    planes = first + ([*np.moveaxis(IMAGE, -1, 0)] if key.is_bilateral else [])
    features = np.stack([p.reshape(-1) for p in planes], axis=-1).astype(np.float32)
    features = features / scales.astype(np.float32)
    values = rng.random(H * W).astype(np.float32)
    d = len(scales)
    expected = slow_filter(
        features, values, extra_zero=True, axes=range(d, -1, -1) if reverse else range(d + 1)
    )
    np.testing.assert_allclose(
        lattice_filter(lattice_of(term), jnp.asarray(values), reverse), expected, rtol=2e-5
    )


def test_spatial_filter_of_ones_is_that_of_the_lattice():
    lattice, ones = spatial.spatial_lattice((H, W), term_key(Gaussian((2, 3))))
    np.testing.assert_allclose(
        ones, lattice_filter(lattice, jnp.ones(H * W, jnp.float32)), rtol=1e-6
    )


def test_reversed_filter_is_the_transpose_and_the_forward_one_is_not(rng):
    lattice = lattice_of(Bilateral(6, 9))
    a, b = (jnp.asarray(rng.random(H * W), jnp.float32) for _ in range(2))
    forward, backward = a @ lattice_filter(lattice, b, False), b @ lattice_filter(lattice, a, True)
    assert abs(forward / backward - 1) < 1e-6
    wrong = lattice_filter(lattice, a, False)
    assert np.abs(wrong / lattice_filter(lattice, a, True) - 1).max() > 1e-3


@pytest.mark.parametrize("what", ["probs", "unary", "compat"])
def test_gradient_equals_finite_differences(what, rng):
    weight = rng.normal(size=(H, W)).astype(np.float32)
    energy = -np.log(np.stack([1 - PROBS, PROBS]))
    start = {"probs": PROBS, "unary": energy, "compat": np.float32([0.6, 0.9])}[what]

    def loss(value):
        # terms without stretching (whose minimum and maximum have kinks), as in preset "iet"
        if what == "compat":
            terms = (Gaussian(2, value[0]), Bilateral(12, 8, value[1]))
            q = dense_crf(IMAGE, PROBS, terms=terms, preset="iet")
        elif what == "unary":
            q = dense_crf(IMAGE, unary=value, terms=TERMS)[1]
        else:
            q = dense_crf(IMAGE, value, terms=TERMS, preset="iet")
        return jnp.sum(weight * q)

    gradient = jax.grad(loss)(jnp.asarray(start))
    direction = rng.normal(size=start.shape).astype(np.float32)
    step = 1e-3
    numeric = (loss(start + step * direction) - loss(start - step * direction)) / (2 * step)
    analytic = float(jnp.sum(gradient * direction))
    assert abs(numeric - analytic) <= 0.01 * abs(analytic) + 1e-3


def test_gradient_flows_through_the_early_stop():
    gradient = jax.grad(
        lambda p: dense_crf(IMAGE, p, terms=TERMS, preset="matnet", kl_stop=0.05).sum()
    )(jnp.asarray(PROBS))
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0


def test_traced_call_equals_the_eager_one_and_so_does_its_gradient():
    def loss(image, probs):
        return dense_crf(image, probs, terms=TERMS, preset="iet").sum()

    traced, gradient = jax.jit(jax.value_and_grad(loss, argnums=1))(IMAGE, jnp.asarray(PROBS))
    expected = jax.grad(loss, argnums=1)(IMAGE, jnp.asarray(PROBS))
    assert abs(traced / loss(IMAGE, PROBS) - 1) < 1e-5
    np.testing.assert_allclose(gradient, expected, atol=1e-4)


def test_traced_lattice_that_does_not_fit_gives_nan_and_never_a_wrong_answer():
    small = jax.jit(lambda i, p: dense_crf(i, p, terms=TERMS, capacity=64))(IMAGE, PROBS)
    assert np.isnan(small).all()


def test_hash_tables_that_are_too_small_are_enlarged_and_remembered(monkeypatch):
    expected = dense_crf(IMAGE, PROBS, terms=TERMS)
    monkeypatch.setattr(build, "_BITS", {})
    monkeypatch.setattr(build, "_ROOM", {})
    monkeypatch.setattr(build, "_bits_for", lambda points: 7)
    np.testing.assert_allclose(dense_crf(IMAGE, PROBS, terms=TERMS), expected, atol=1e-6)
    assert max(build._BITS.values()) > 7


def test_table_lengths_are_kept_while_they_fit():
    length = build.room(1000)
    assert 1000 < length < 1200
    assert build.room(900, length) == length
    assert build.room(length + 1, length) > length
    assert build.room(100, length) < length


def test_second_frame_compiles_nothing():
    dense_crf(IMAGE, PROBS, terms=TERMS)
    programs = [*build._ONE.values(), entry._solve_one]
    before = [p._cache_size() for p in programs]
    noisy = np.clip(
        IMAGE.astype(int) + np.random.default_rng(1).integers(-1, 2, IMAGE.shape), 0, 255
    )
    dense_crf(noisy.astype(np.uint8), PROBS[::-1], terms=TERMS)
    assert [p._cache_size() for p in programs] == before


def test_batch_equals_single_frames_also_when_vectorised(monkeypatch):
    frames, maps = (np.stack(v) for v in zip(*(scene(s) for s in range(3)), strict=True))
    single = np.stack([dense_crf(f, m, terms=TERMS) for f, m in zip(frames, maps, strict=True)])
    np.testing.assert_array_equal(dense_crf(frames, maps, terms=TERMS), single)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(entry, "_CHUNK", 2)
    np.testing.assert_allclose(dense_crf(frames, maps, terms=TERMS), single, atol=1e-5)


@pytest.mark.parametrize("kl_stop", [None, 1.5])
def test_two_label_shortcut_equals_the_general_path(kl_stop):
    # -w on the diagonal is the same reward as a Potts weight w, but takes the general path
    general = tuple(type(t)(**{**vars(t), "compat": (-t.compat, -t.compat)}) for t in TERMS)
    out = dense_crf(IMAGE, PROBS, terms=TERMS, kl_stop=kl_stop)
    np.testing.assert_allclose(
        dense_crf(IMAGE, PROBS, terms=general, kl_stop=kl_stop), out, atol=2e-6
    )
    steps = [dense_crf(IMAGE, PROBS, terms=TERMS, iterations=n) for n in range(1, 6)]
    taken = [n for n, q in enumerate(steps, 1) if np.abs(q - out).max() < 1e-6]
    assert taken == [5] if kl_stop is None else 1 <= taken[0] < 5


def test_labels_can_be_permuted():
    third = 0.3 * PROBS
    probs = np.stack([1 - PROBS, PROBS - third, third])
    probs /= probs.sum(0)
    out = dense_crf(IMAGE, probs, terms=TERMS)
    swapped = dense_crf(IMAGE, probs[[2, 0, 1]], terms=TERMS)
    np.testing.assert_allclose(swapped, out[np.array([2, 0, 1])], atol=1e-6)
    np.testing.assert_allclose(out.sum(0), 1, atol=1e-5)


def test_no_steps_return_the_softmax_of_the_energies():
    out = dense_crf(IMAGE, PROBS, iterations=0, preset="iet")
    np.testing.assert_allclose(out, PROBS, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_constant_foreground_is_returned_where_the_script_would_divide_by_zero(value):
    constant = np.full((H, W), value, np.float32)
    np.testing.assert_array_equal(dense_crf(IMAGE, constant, preset="cosnet"), constant)


def test_empty_foreground_stays_empty_under_the_rescored_presets():
    assert dense_crf(IMAGE, np.zeros((H, W), np.float32), preset="matnet").max() < 0.5


def test_separable_smoothing_is_the_gaussian_and_close_to_the_lattice(rng):
    x = rng.random(H * W).astype(np.float32)
    y, z = np.mgrid[:H, :W].reshape(2, -1)
    kernel = np.exp(-0.5 * ((y[:, None] - y) / 1.5) ** 2 - 0.5 * ((z[:, None] - z) / 2.0) ** 2)
    ours = separable.gaussian_smooth(jnp.asarray(x), (H, W), (1.5, 2.0))
    np.testing.assert_allclose(ours, kernel @ x, rtol=2e-3)  # cut off at four sigma
    out = dense_crf(IMAGE, PROBS, terms=TERMS, smooth="separable")
    assert np.abs(out - dense_crf(IMAGE, PROBS, terms=TERMS)).mean() < 0.02


def test_exact_kernel_sums_over_all_pairs_and_the_lattice_approximates_it(rng):
    x = rng.random(H * W).astype(np.float32)
    f = exact.features(IMAGE, (H, W), term_key(Bilateral(6, 20)))
    kernel = np.exp(-0.5 * np.sum((np.asarray(f)[:, None] - np.asarray(f)[None]) ** 2, axis=-1))
    np.testing.assert_allclose(exact.gaussian_filter(f, jnp.asarray(x)), kernel @ x, rtol=1e-5)
    out = dense_crf(IMAGE, PROBS, terms=TERMS, kernel="exact")
    assert np.abs(out - dense_crf(IMAGE, PROBS, terms=TERMS)).mean() < 0.05


def test_unary_of_labels_and_of_mixed_probabilities():
    labels = np.array([[0, 1, 2]])
    energy = unary.from_labels(jnp.asarray(labels), 2, confidence=0.8)
    np.testing.assert_allclose(np.exp(-energy), [[[0.5, 0.8, 0.2]], [[0.5, 0.2, 0.8]]], rtol=1e-6)
    sure = unary.from_labels(jnp.asarray(labels), 3, confidence=0.8, zero_unsure=False)
    np.testing.assert_allclose(np.exp(-sure)[:, 0, 1], [0.1, 0.8, 0.1], rtol=1e-6)
    mixed = unary.from_probabilities(jnp.float32([[1.0], [0.0]]), scale=0.5)
    np.testing.assert_allclose(np.exp(-mixed), [[0.75], [0.25]], rtol=1e-6)


def test_presets_are_listed_and_a_misspelt_one_is_answered_with_the_nearest():
    assert {"agnn", "ags", "cosnet", "matnet", "pdb_convlstm"} <= set(list_presets())
    with pytest.raises(ConfigError, match="unknown CRF preset 'cosnett': did you mean 'cosnet'"):
        dense_crf(IMAGE, PROBS, preset="cosnett")
    assert all(api.get_preset(name).source for name in list_presets())


BAD = [
    ({"probs": PROBS[:-1]}, ShapeError, "resize one to the other"),
    ({"probs": PROBS[None, None]}, ShapeError, "probs has shape"),
    ({"probs": PROBS[None]}, ShapeError, "probs has 1 label"),
    ({"image": IMAGE.astype(np.float32)}, ShapeError, "image has dtype float32"),
    ({"image": IMAGE[..., :1]}, ShapeError, "expected .H,W,3."),
    ({"image": IMAGE[None]}, ShapeError, "expected probs of shape"),
    ({"probs": PROBS * 2}, DataError, "expected probabilities in .0,1."),
    ({"probs": (PROBS * 255).astype(np.uint8)}, DataError, "divide an 8-bit map by 255"),
    ({"probs": np.where(PROBS > 0.5, np.nan, PROBS)}, DataError, "probs contains NaN"),
    ({"probs": np.stack([PROBS, PROBS])}, DataError, "sum to one"),
    ({"probs": None, "unary": PROBS}, ShapeError, "unary has shape"),
    ({"probs": None, "unary": np.full((2, H, W), np.nan)}, DataError, "unary contains NaN"),
    ({"probs": None}, ConfigError, "either probs or unary"),
    ({"iterations": -1}, ConfigError, "iterations is -1"),
    ({"iterations": 2.5}, ConfigError, "iterations is 2.5"),
    ({"kernel": "fast"}, ConfigError, "kernel is 'fast'"),
    ({"smooth": "fast"}, ConfigError, "smooth is 'fast'"),
    ({"terms": (Bilateral(0.0005, 5),)}, ConfigError, "too small for a 13x15 image"),
    ({"terms": (Bilateral(0, 5),)}, ConfigError, "Bilateral.sdims is 0"),
    ({"terms": (Gaussian(float("nan")),)}, ConfigError, "one positive number"),
    ({"terms": (Gaussian(3, compat=(1, 2, 3)),)}, ShapeError, "compat has shape"),
    ({"terms": (Gaussian(3, compat=float("inf")),)}, DataError, "finite"),
    ({"terms": ("gaussian",)}, ConfigError, "expected uvos_jax.ops.crf.Gaussian"),
]


@pytest.mark.parametrize("arguments, error, message", BAD, ids=[m for _, _, m in BAD])
def test_bad_input_is_refused_with_what_was_expected(arguments, error, message):
    arguments = {"image": IMAGE, "probs": PROBS, **arguments}
    with pytest.raises(error, match=message):
        dense_crf(**arguments)


@pytest.mark.parametrize(
    "size", [(1, 1), *(pytest.param(s, marks=pytest.mark.slow) for s in ((1, 5), (3, 2), (40, 1)))]
)
def test_tiny_images_of_any_size_stay_finite(size):
    image = np.zeros((*size, 3), np.uint8)
    out = dense_crf(image, np.full(size, 0.7, np.float32), preset="iet")
    assert out.shape == size
    assert np.isfinite(out).all()

"""The teacher's labels, the student's loss, and adaptation, on the tiny network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

import uvos_jax as uvos
from tests.cli.conftest import refused, uvos_command, write_frames, write_mp4  # noqa: F401
from uvos_jax.convert.variables import save_variables
from uvos_jax.data.video_io import list_images, read_mask
from uvos_jax.errors import ConfigError, DataError, UnsupportedError
from uvos_jax.losses.bootstrapped import bootstrapped_cross_entropy
from uvos_jax.ops.distance import distance_to, erode
from uvos_jax.predict.predictor import Predictor
from uvos_jax.systems import teacher_student as ts

SIZE = (48, 64)


@pytest.fixture(scope="module")
def system():
    return uvos.build("teacher_student:tiny", adapt_steps=3)


@pytest.fixture(scope="module")
def variables(system):
    """Drawn on the host; compiling `init` takes longer."""
    rng = np.random.default_rng(2)

    def draw(path, leaf):
        if path[-1].key == "kernel":
            scale = np.sqrt(2 / np.prod(leaf.shape[:-1]))
            return jnp.asarray(scale * rng.standard_normal(leaf.shape), jnp.float32)
        if path[-1].key in ("scale", "var"):
            return jnp.ones(leaf.shape)
        return jnp.zeros(leaf.shape)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(system.init, jax.random.key(0)))


def video(count, size=SIZE):
    frames = np.random.default_rng(0).integers(0, 90, (count, *size, 3)).astype(np.uint8)
    for t, frame in enumerate(frames):
        frame[10:26, 5 + 2 * t : 21 + 2 * t] = (220, 60, 40)
    return frames


def shift_flow(frames):
    """The flow of `video`: the square moves two pixels to the right."""
    flow = np.zeros((len(frames) - 1, *frames.shape[1:3], 2), np.float32)
    for t in range(len(flow)):
        flow[t][frames[t][..., 0] > 200] = (2.0, 0.0)
    return flow


# ----- ops ------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 2, 3, 6, 15])
def test_erosion_equals_grey_erosion(rng, window):
    mask = rng.random((2, 20, 31)) < 0.9
    expected = [ndimage.grey_erosion(m.astype(np.uint8), size=(window, window)) for m in mask]
    np.testing.assert_array_equal(erode(jnp.asarray(mask), window), np.stack(expected) > 0)


def test_distance_equals_the_exact_transform(rng):
    mask = rng.random((2, 3, 20, 31)) < 0.02
    mask[1, 2] = False
    got = np.asarray(distance_to(jnp.asarray(mask)))
    for i in np.ndindex(2, 3):
        if mask[i].any():
            np.testing.assert_allclose(got[i], ndimage.distance_transform_edt(~mask[i]), rtol=1e-6)
        else:
            assert np.all(np.isinf(got[i]))


# ----- labels ---------------------------------------------------------------------------------


def test_labels_of_a_disc_are_ones_a_void_band_and_zeros():
    y, x = np.mgrid[:60, :80]
    radius = np.hypot(y - 30, x - 40)
    q = jnp.asarray(np.where(radius <= 12, 0.9, 0.1), jnp.float32)
    label, usable = ts.confident_labels(q, threshold=0.8, erosion=5, negative_distance=10.0)
    label = np.asarray(label)
    assert usable
    np.testing.assert_array_equal(label == 1, radius <= 12)  # not eroded
    core = ndimage.grey_erosion((radius <= 12).astype(int), size=(5, 5)) > 0
    far = ndimage.distance_transform_edt(~core) > 10
    np.testing.assert_array_equal(label == 0, far & (radius > 12))
    assert np.all(label[(radius > 12) & ~far] == 255)
    assert set(np.unique(label)) == {0, 1, 255}


def test_a_mask_that_erodes_to_nothing_does_not_teach():
    q = jnp.zeros((20, 30)).at[5:7, 5:7].set(1.0)
    _, usable = ts.confident_labels(q, threshold=0.8, erosion=3, negative_distance=5.0)
    assert not usable


def test_probabilities_are_stretched_frame_by_frame():
    q = jnp.asarray([[[0.2, 0.3], [0.25, 0.4]], [[0.5, 0.5], [0.5, 0.5]]])
    stretched = ts.stretch(q)
    np.testing.assert_allclose(stretched[0], [[0, 0.5], [0.25, 1]], atol=1e-6)
    np.testing.assert_array_equal(stretched[1], 0.0)


# ----- loss -----------------------------------------------------------------------------------


def test_bootstrapped_loss_equals_numpy(rng):
    logits = rng.standard_normal((3, 6, 7, 2)).astype(np.float32)
    target = rng.random((3, 6, 7)).astype(np.float32)
    weights = (rng.random((3, 6, 7)) < 0.8).astype(np.float32)
    got = bootstrapped_cross_entropy(*map(jnp.asarray, (logits, target, weights)))
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    loss = -(target * np.log(probs[..., 1]) + (1 - target) * np.log(probs[..., 0])) * weights
    kept = np.sort(loss.reshape(3, -1), axis=1)[:, -10:]  # a quarter of 42
    np.testing.assert_allclose(got, kept.mean(1), rtol=1e-5)


def test_fusion_is_the_product_of_rectified_features(system, variables):
    """With one stream silenced the teacher sees nothing, whatever the other says."""
    teacher = variables["params"]["teacher"]
    zeros = jax.tree.map(jnp.zeros_like, teacher["motion"])
    silent = {**variables["params"], "teacher": {**teacher, "motion": zeros}}
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.standard_normal((1, *SIZE, 3)), jnp.float32) for _ in range(2))
    flow = jnp.ones((1, *SIZE, 3))
    run = jax.jit(lambda p, x: system.module.apply({**variables, "params": p}, x, flow,
                                                   part="teacher"))  # fmt: skip
    np.testing.assert_array_equal(run(silent, a), run(silent, b))
    assert np.any(run(variables["params"], a) != run(variables["params"], b))


def test_gamma_is_one_in_the_middle_and_keeps_black_and_white():
    frames = jnp.asarray([0, 64, 255], jnp.uint8).reshape(1, 1, 1, 1, 3)
    still = ts.random_gamma(jax.random.key(0), frames, 0.0)
    np.testing.assert_allclose(still.ravel(), [0, 64, 255], atol=1e-3)
    moved = ts.random_gamma(jax.random.key(0), frames, 0.1).ravel()
    np.testing.assert_allclose(moved[jnp.asarray([0, 2])], [0, 255], atol=1e-2)
    assert abs(float(moved[1]) - 64) > 0.5


def test_the_teacher_starts_as_the_student(system, variables):
    assert system.enter_stage("teacher", variables) is variables  # not in the tiny recipe
    full = uvos.build("teacher_student:tiny", teacher_from_student=True)
    assert full.enter_stage("student", variables) is variables
    started = full.enter_stage("teacher", variables)
    student = started["params"]["student"]
    for stream in ("appearance", "motion"):
        jax.tree.map(
            np.testing.assert_array_equal, started["params"]["teacher"][stream], student["trunk"]
        )
    jax.tree.map(
        np.testing.assert_array_equal, started["batch_stats"]["teacher"]["head"],
        variables["batch_stats"]["student"]["head"],
    )  # fmt: skip


def test_stages_train_one_network_each():
    config = uvos.load_config("teacher_student")
    student, teacher = uvos.build(config).stages(config)
    assert (student.name, teacher.name) == ("student", "teacher")
    assert student.phases[0].frozen == (r"^teacher/",)
    assert teacher.phases[0].frozen == (r"^student/",)
    assert dict(teacher.optim) == {"lr": 3e-6}


@pytest.mark.parametrize(
    "variant,expected",
    [
        ("full", (15, 0.05, 15, 220.0, "teach")),
        ("teachcont", (15, 0.05, 15, 220.0, "teachcont")),
        ("ivos", (15, 0.05, 3, 20.0, "teach")),
        ("ivos_cont", (15, 0.05, 3, 20.0, "teachcont")),
        ("ivos_tasks", (15, 0.1, 3, 20.0, "teach")),
        ("fbms", (3, 0.01, 15, 220.0, "teach")),
        ("baseline", (15, 0.05, 15, 220.0, "baseline")),
        ("self", (15, 0.05, 15, 220.0, "self")),
    ],
)
def test_variants_have_the_released_settings(variant, expected):
    model = uvos.load_config(f"teacher_student:{variant}").model
    fields = ("adapt_steps", "adapt_loss_scale", "erosion", "negative_distance", "mode")
    assert tuple(model[f] for f in fields) == expected
    assert model.adapt_lr == 1e-5


# ----- adaptation -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def predictor(system, variables):
    return Predictor(system, variables, flow=shift_flow)


def test_adapting_lowers_the_loss_and_changes_the_student_only(predictor, variables):
    before = jax.tree.map(np.array, predictor.variables)
    masks = predictor.predict(video(3))
    (lesson,) = predictor.lessons
    assert lesson.frame == 0
    assert lesson.usable
    assert len(lesson.losses) == 3
    assert lesson.losses[-1] < lesson.losses[0]
    jax.tree.map(np.testing.assert_array_equal, before, predictor.variables)
    taught = predictor.taught(video(3))
    jax.tree.map(
        np.testing.assert_array_equal, taught.variables["params"]["teacher"],
        before["params"]["teacher"],
    )  # fmt: skip
    jax.tree.map(
        np.testing.assert_array_equal, taught.variables["batch_stats"], before["batch_stats"]
    )
    moved = jax.tree.map(
        lambda a, b: bool(np.any(a != b)),
        taught.variables["params"]["student"],
        before["params"]["student"],
    )
    assert any(jax.tree.leaves(moved))
    # taught on the same video, the student segments as it does while adapting
    np.testing.assert_allclose(taught.predict(video(3)).probs, masks.probs, atol=1e-5)


def test_every_video_starts_from_the_trained_weights(predictor):
    first = predictor.predict(video(2)).probs
    predictor.predict(255 - video(2))
    np.testing.assert_array_equal(predictor.predict(video(2)).probs, first)


def test_without_adaptation_the_student_runs_as_trained(system, variables, predictor):
    plain = Predictor(system, variables, adapt=False)
    adapted = predictor.predict(video(2)).probs
    probs = plain.predict(video(2)).probs
    assert np.abs(probs - adapted).max() > 1e-3
    streamed = np.stack(list(plain.stream(video(2), probabilities=True)))
    np.testing.assert_allclose(streamed, probs, atol=2e-5)
    assert plain.predict(video(1)).labels.shape == (1, *SIZE)


def test_what_cannot_be_adapted_to_is_refused(system, variables, predictor):
    with pytest.raises(DataError, match=r"one frame only.*--no-adapt"):
        predictor.predict(video(1))
    with pytest.raises(UnsupportedError, match=r"stream.*Predictor\.taught"):
        predictor.stream(video(2))
    with pytest.raises(ConfigError, match=r"windows of 4 frames: leave chunk=3 out"):
        Predictor(system, variables, flow=shift_flow, chunk=3)
    with pytest.raises(UnsupportedError, match="does not adapt"):
        Predictor(system, variables, adapt=False).taught(video(2))


def test_a_video_that_shows_nothing_confident_changes_nothing(system, variables, caplog):
    silent = {**variables["params"]}
    silent["teacher"] = jax.tree.map(jnp.zeros_like, silent["teacher"])
    predictor = Predictor(system, {**variables, "params": silent}, flow=shift_flow)
    predictor.predict(video(2))
    assert not predictor.lessons[0].usable
    assert predictor.lessons[0].losses == ()
    assert "teaches nothing" in caplog.text


def test_the_teacher_refuses_batches_without_flow(system, variables):
    batch = {"frames": jnp.zeros((1, 1, *SIZE, 3), jnp.uint8)}
    with pytest.raises(DataError, match=r"teacher .* needs optical flow.*'flow': True"):
        system.apply(variables, batch, train=False, phase="teacher")


@pytest.mark.parametrize(
    "field,value,message",
    [
        ("mode", "teech", r"model\.mode is 'teech'.*teachcont"),
        ("camera_motion", "gone", r"model\.camera_motion is 'gone'.*subtracted"),
        ("adapt_steps", 0, r"model\.adapt_steps must be at least 1, got 0"),
        ("interval", 1, r"model\.interval is 1: use 0 .* or at least 2"),
        ("hard_fraction", 0.0, r"model\.hard_fraction must lie in \(0, 1\], got 0\.0"),
    ],
)
def test_wrong_options_are_refused_by_name(field, value, message):
    with pytest.raises(ConfigError, match=message):
        uvos.build("teacher_student:tiny", **{field: value})


# ----- command line ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(variables, tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher_student") / "tiny.npz"
    config = uvos.load_config("teacher_student:tiny")
    config.model.adapt_steps = 3
    save_variables(variables, path, config=config)
    return path


def masks_in(folder):
    return np.stack([np.array(read_mask(p)) for p in list_images(folder)])


def test_a_video_of_odd_size_is_taught_by_itself_by_another_or_not(
    tmp_path, weights, uvos_command  # noqa: F811
):  # fmt: skip
    """Flow from `lk`; a video of one frame cannot teach itself, but can be segmented."""
    shown = write_mp4(tmp_path / "shown.mp4", video(3, (50, 66)))
    folder = write_frames(tmp_path / "walk", video(5, (49, 67)))
    single = write_frames(tmp_path / "single", video(1, (49, 67)))
    common = ("--system", "teacher_student", "--weights", weights)
    for name, given, videos in (
        ("own", ("--flow", "lk"), (folder, shown)),
        ("taught", ("--flow", "lk", "--teach", shown), (folder, single)),
        ("plain", ("--no-adapt",), (folder, single)),
    ):
        code, _, err = uvos_command(
            "predict", *videos, *common, *given, "--out", tmp_path / name, "--save", "probs"
        )
        assert code == 0, err
        assert masks_in(tmp_path / name / "walk").shape == (5, 49, 67)
    assert masks_in(tmp_path / "plain/single").shape == (1, 49, 67)
    assert masks_in(tmp_path / "own/shown").shape == (3, 50, 66)
    shades = {n: masks_in(tmp_path / n / "probs/walk").astype(int) for n in ("taught", "plain")}
    assert np.abs(shades["taught"] - shades["plain"]).max() > 2


def test_what_the_command_cannot_adapt_to_is_refused(tmp_path, weights, refused):  # noqa: F811
    single = write_frames(tmp_path / "single", video(1))
    common = ("predict", single, "--weights", weights, "--out", tmp_path / "o", "--flow", "lk")
    assert "one frame only" in refused(*common)
    assert "one frame only" in refused(*common, "--teach", single)
    assert "give one of the two" in refused(*common[:-2], "--teach", single, "--no-adapt")
    assert "frames" in refused(*common, "--stream")
    assert not (tmp_path / "o/single").exists()


def test_pictures_without_the_cameras_motion_show_what_moves_by_itself():
    flow = np.zeros((1, 1, 48, 64, 2), np.float32) + np.float32([3.0, -1.0])
    flow[:, :, 16:32, 20:40] += np.float32([2.0, 2.0])
    object_, ground = (0, 0, 24, 30), (0, 0, 5, 5)
    kept, subtracted = (
        np.asarray(
            uvos.build("teacher_student:tiny", camera_motion=m).flow_pictures(jnp.asarray(flow))
        )
        for m in ("kept", "subtracted")
    )
    assert np.all(subtracted[ground] > 0.95)  # white: no motion
    assert subtracted[object_].min() < 0.4
    assert kept[ground].min() < 0.6

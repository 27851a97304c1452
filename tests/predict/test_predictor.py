"""The predictor against systems whose answers are known."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uvos_jax as uvos
from tests.predict.toys import (
    GAIN,
    Distance,
    FlowRight,
    RunningMean,
    Toy,
    WindowCentre,
    video,
)
from uvos_jax.data.transforms import resize_image
from uvos_jax.data.video_io import ArrayVideo
from uvos_jax.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    ShapeError,
    UnsupportedError,
)
from uvos_jax.ops.resize import resize_bilinear
from uvos_jax.predict.predictor import Predictor


def red(frames):
    return frames[..., 0].astype(np.float32) / 255


def small_cosnet():
    system = uvos.build("cosnet:tiny")
    return system, system.init(jax.random.key(0))


# ----- plain prediction ---------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 4, 5, 9])
def test_a_frame_model_gives_every_frame_its_own_probability(count):
    frames = video(count)
    masks = Predictor(Toy(), GAIN).predict(frames)
    np.testing.assert_allclose(masks.probs, red(frames), atol=1e-6)
    assert masks.probs.dtype == np.float32
    assert masks.labels.dtype == np.uint8
    np.testing.assert_array_equal(masks.labels, red(frames) > 0.5)
    assert masks.names == tuple(f"{i:05d}" for i in range(count))
    assert len(masks) == count


def test_the_threshold_decides_the_labels():
    frames = video(2)
    masks = Predictor(Toy(), GAIN, threshold=0.9).predict(frames)
    np.testing.assert_array_equal(masks.labels, red(frames) > 0.9)
    assert Predictor(Toy(), GAIN, threshold=1.0).predict(frames).labels.max() == 0


@pytest.mark.parametrize("size", [(16, 24), (17, 31), (33, 9), (1, 1), (40, 48)])
def test_frames_go_through_the_input_size_and_come_back_at_their_own(size):
    frames = video(2, *size)
    masks = Predictor(Toy(input_size=(16, 24)), GAIN).predict(frames)
    assert masks.probs.shape == (2, *size)
    for frame, prob in zip(frames, masks.probs, strict=True):
        small = red(resize_image(frame, (16, 24)))
        expected = resize_image(small[..., None], size)[..., 0]
        np.testing.assert_allclose(prob, expected, atol=1.01 / 255)  # one step of rounding


@pytest.mark.parametrize("size", [(17, 31), (16, 24)])
def test_native_sizes_are_rounded_up_to_multiples_of_eight(size):
    seen = []

    class Spy(Toy):
        def predict(self, variables, state, chunk):
            seen.append(chunk["frames"].shape[2:4])
            return super().predict(variables, state, chunk)

    masks = Predictor(Spy(), GAIN).predict(video(1, *size))
    assert masks.probs.shape == (1, *size)
    assert all(h % 8 == 0 and w % 8 == 0 and h >= size[0] for h, w in seen)


def test_state_is_carried_from_chunk_to_chunk():
    frames = video(9)
    expected = np.cumsum(red(frames), 0) / np.arange(1, 10)[:, None, None]
    for chunk in (1, 2, 4, 9, 16):
        masks = Predictor(RunningMean(), GAIN, chunk=chunk).predict(frames)
        np.testing.assert_allclose(masks.probs, expected, atol=1e-5)


def test_two_videos_do_not_share_a_state():
    predictor = Predictor(RunningMean(), GAIN)
    first = predictor.predict(video(5)).probs
    predictor.predict(video(5, seed=1))
    np.testing.assert_array_equal(predictor.predict(video(5)).probs, first)


def test_videos_of_several_sizes_compile_the_network_once():
    system = Toy(input_size=(16, 24))
    traces = []

    class Counting(Toy):
        def predict(self, variables, state, chunk):
            traces.append(1)
            return super().predict(variables, state, chunk)

    system = Counting(input_size=(16, 24))
    predictor = Predictor(system, GAIN)
    for size in ((16, 24), (20, 30), (31, 17)):
        predictor.predict(video(5, *size))
    assert len(traces) == 1


# ----- references ---------------------------------------------------------------------------


def test_references_are_spread_evenly_over_the_video():
    predictor = Predictor(Distance(), GAIN, references=5)
    assert predictor.reference_indices(100) == [10, 30, 50, 70, 90]
    assert predictor.reference_indices(5) == [0, 1, 2, 3, 4]
    assert predictor.reference_indices(3) == [0, 0, 1, 2, 2]
    assert predictor.reference_indices(1) == [0] * 5


def test_a_global_system_sees_its_references():
    frames = video(10)
    masks = Predictor(Distance(), GAIN).predict(frames)
    mean = red(frames[[1, 5, 8]]).mean(0)
    np.testing.assert_allclose(masks.probs, abs(red(frames) - mean), atol=1e-6)


def test_a_header_that_promises_too_many_frames_does_no_harm():
    frames = video(10)
    reader = ArrayVideo(frames)
    reader.num_frames = 12  # references 2, 6, 10: the last one does not exist
    reader.sample = super(ArrayVideo, reader).sample
    masks = Predictor(Distance(), GAIN).predict(reader)
    np.testing.assert_allclose(masks.probs, Predictor(Distance(), GAIN).predict(frames).probs)


def test_references_of_a_system_without_any_are_refused():
    with pytest.raises(ConfigError, match=r"toy compares with no reference frames \(3 asked for\)"):
        Predictor(Toy(), GAIN, references=3)
    with pytest.raises(ConfigError, match="references must be at least 1, got 0"):
        Predictor(Distance(), GAIN, references=0)


# ----- windows that look at the future ------------------------------------------------------


def test_windows_of_a_system_that_looks_ahead_are_blended_where_they_overlap():
    frames = video(11)
    total, weights = np.zeros((11, 16, 24)), np.zeros(11)
    for start in (0, 2, 4, 6, 7):
        window = red(frames[start : start + 4])
        probs = 0.5 + 0.5 * (window - window.mean(0))
        for t, weight in enumerate((1, 2, 2, 1)):
            total[start + t] += weight * probs[t]
            weights[start + t] += weight
    masks = Predictor(WindowCentre(), GAIN).predict(frames)
    np.testing.assert_allclose(masks.probs, total / weights[:, None, None], atol=1e-5)


def test_windows_without_overlap_stand_alone():
    frames = video(8)
    masks = Predictor(WindowCentre(), GAIN, overlap=0).predict(frames)
    for start in (0, 4):
        window = red(frames[start : start + 4])
        expected = 0.5 + 0.5 * (window - window.mean(0))
        np.testing.assert_allclose(masks.probs[start : start + 4], expected, atol=1e-6)


def test_a_video_shorter_than_a_window_still_gets_masks():
    assert Predictor(WindowCentre(), GAIN).predict(video(1)).probs.shape == (1, 16, 24)


def test_an_overlap_as_long_as_the_window_is_refused():
    with pytest.raises(ConfigError, match=r"overlap must lie in \[0, 3\] for windows of 4"):
        Predictor(WindowCentre(), GAIN, overlap=4)


# ----- mirroring ----------------------------------------------------------------------------


@pytest.mark.parametrize("system", [Toy(), RunningMean(), Distance(), WindowCentre()])
def test_a_system_that_treats_left_and_right_alike_is_unchanged_by_mirroring(system):
    frames = video(6)
    plain = Predictor(system, GAIN).predict(frames).probs
    np.testing.assert_allclose(
        Predictor(system, GAIN, flip=True).predict(frames).probs, plain, atol=1e-6
    )


def test_mirroring_averages_what_a_one_sided_system_says():
    class Ramp(Toy):
        def predict(self, variables, state, chunk):
            ramp = np.linspace(0, 1, chunk["frames"].shape[3], dtype=np.float32)
            return state, np.broadcast_to(ramp, chunk["frames"].shape[:4])

    probs = Predictor(Ramp(), GAIN, flip=True).predict(video(2)).probs
    np.testing.assert_allclose(probs, 0.5, atol=1e-6)


# ----- flow ---------------------------------------------------------------------------------


def constant_flow(frames):
    flow = np.zeros((len(frames) - 1, *frames.shape[1:3], 2), np.float32)
    flow[..., 0] = 0.5
    return flow


def test_flow_reaches_the_system_in_pixels_of_its_input():
    frames = video(3, 16, 24)
    masks = Predictor(FlowRight(input_size=(16, 12)), GAIN, flow=constant_flow).predict(frames)
    # half the width: half the vector; the last frame gets the negated flow, cut off at 0
    np.testing.assert_allclose(masks.probs[:2], 0.25, atol=1e-6)
    assert masks.probs[2].max() == 0


def test_a_system_that_needs_what_a_video_lacks_says_what():
    system = Toy(requires=frozenset({"fixations"}))
    with pytest.raises(DataError, match="toy needs fixations beside the frames"):
        Predictor(system, GAIN).predict(video(3))


# ----- streams ------------------------------------------------------------------------------


@pytest.mark.parametrize("system", [Toy(), RunningMean()])
def test_a_causal_system_streams_what_it_predicts(system):
    frames = video(7)
    predictor = Predictor(system, GAIN)
    whole = predictor.predict(frames)
    streamed = np.stack(list(predictor.stream(iter(frames), probabilities=True)))
    np.testing.assert_allclose(streamed, whole.probs, atol=1e-6)
    np.testing.assert_array_equal(np.stack(list(predictor.stream(frames))), whole.labels)


def test_a_stream_may_be_endless_and_answers_at_once():
    frames = (np.full((8, 8, 3), i, np.uint8) for i in itertools.count())
    masks = Predictor(Toy(), GAIN).stream(frames, probabilities=True)
    values = [float(m[0, 0]) for m in itertools.islice(masks, 3)]
    np.testing.assert_allclose(values, [0, 1 / 255, 2 / 255], atol=1e-6)
    assert int(next(frames)[0, 0, 0]) == 3  # nothing was read ahead


def test_cosnet_streams_the_same_frame_by_frame_and_with_names():
    predictor = Predictor(*small_cosnet())
    frames = video(4, 40, 56)
    streamed = list(predictor.iter_predict(frames, stream=True))
    masks = list(predictor.stream(frames, probabilities=True))
    assert [r.name for r in streamed] == ["00000", "00001", "00002", "00003"]
    np.testing.assert_array_equal(np.stack([r.prob for r in streamed]), np.stack(masks))


def test_a_stream_refuses_what_is_no_frame():
    predictor = Predictor(Toy(), GAIN)
    with pytest.raises(ShapeError, match=r"frame 0 must be uint8 \[H,W,3\] RGB, got float64"):
        list(predictor.stream([np.zeros((4, 4, 3))]))
    frames = [np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)]
    with pytest.raises(ShapeError, match=r"frame 1 is \(8, 9\), the stream began with \(8, 8\)"):
        list(predictor.stream(frames))


def test_a_system_that_looks_ahead_refuses_to_stream_at_once():
    with pytest.raises(UnsupportedError, match="toy looks at future frames and cannot stream"):
        Predictor(WindowCentre(), GAIN).stream([])


def test_the_memory_of_a_stream_cannot_be_changed_afterwards():
    with pytest.raises(ConfigError, match="build it with num_references=5"):
        Predictor(Distance(), GAIN, references=5).stream([])


# ----- laziness -----------------------------------------------------------------------------


def test_results_arrive_before_the_video_has_been_read():
    read = []

    class Lazy(ArrayVideo):
        def __iter__(self):
            for i, frame in enumerate(self.frames):
                read.append(i)
                yield frame

    results = Predictor(Toy(), GAIN, chunk=2).iter_predict(Lazy(video(100)))
    next(results)
    assert len(read) <= 2 * 8
    results.close()


def test_a_missing_video_is_refused_when_asked_not_when_first_used():
    with pytest.raises(DataError, match="does not exist"):
        Predictor(Toy(), GAIN).iter_predict("no/such/video.mp4")


def test_a_damaged_frame_is_an_error_and_is_not_skipped():
    class Damaged(ArrayVideo):
        def __iter__(self):
            yield from self.frames[:5]
            raise DataError("video x is damaged after frame 5")

    with pytest.raises(DataError, match="damaged after frame 5"):
        list(Predictor(Toy(), GAIN).iter_predict(Damaged(video(9))))


def test_many_videos_come_with_their_names():
    videos = [ArrayVideo(video(3), name="a"), ArrayVideo(video(5, 8, 8), name="b")]
    got = dict(Predictor(Toy(), GAIN).predict_many(videos))
    assert {name: masks.probs.shape for name, masks in got.items()} == {
        "a": (3, 16, 24),
        "b": (5, 8, 8),
    }


# ----- CRF ----------------------------------------------------------------------------------


def test_the_crf_refines_probabilities_before_the_threshold():
    from uvos_jax.ops.crf import dense_crf

    frames = np.zeros((1, 16, 24, 3), np.uint8)
    frames[:, 4:12, 6:18] = 220
    frames[:, 7, 10] = 90  # a hole in the square
    masks = Predictor(Toy(), GAIN, crf="cosnet").predict(frames)
    expected = np.asarray(dense_crf(frames[0], red(frames)[0], preset="cosnet"))
    np.testing.assert_allclose(masks.probs[0], expected, atol=1e-6)
    np.testing.assert_array_equal(masks.labels[0], expected > 0.5)


def test_refinement_happens_at_the_networks_resolution():
    from uvos_jax.ops.crf import dense_crf

    frames = np.zeros((3, 32, 48, 3), np.uint8)
    frames[:, 8:24, 12:36] = 220
    frames[1, 14:16, 20:22] = 90
    masks = Predictor(Toy(input_size=(16, 24)), GAIN, refine="cosnet", chunk=2).predict(frames)
    small = frames.reshape(3, 16, 2, 24, 2, 3).mean(axis=(2, 4)).round().astype(np.uint8)
    fine = [np.asarray(dense_crf(f, red(f[None])[0], preset="cosnet")) for f in small]
    np.testing.assert_allclose(masks.probs[:, 8:24:8, 12:36:8], [
        np.asarray(resize_bilinear(jnp.asarray(p)[..., None], (32, 48)))[8:24:8, 12:36:8, 0]
        for p in fine
    ], atol=1e-5)  # fmt: skip
    with pytest.raises(ConfigError, match="unknown CRF preset 'cosnt'"):
        Predictor(Toy(), GAIN, refine="cosnt")


def test_an_unknown_crf_preset_is_refused_before_any_work():
    with pytest.raises(ConfigError, match="unknown CRF preset 'cosnt': did you mean 'cosnet'"):
        Predictor(Toy(), GAIN, crf="cosnt")


# ----- weights ------------------------------------------------------------------------------


def saved(tmp_path, **extra):
    from uvos_jax.convert.variables import save_variables

    system, variables = small_cosnet()
    path = tmp_path / "cosnet.npz"
    config = uvos.load_config("cosnet:tiny")
    for key, value in extra.items():
        config.predict[key] = value
    return save_variables(variables, path, config=config, spec=system.spec)


def test_weights_bring_their_system_with_them(tmp_path):
    path = saved(tmp_path, threshold=0.25)
    predictor = Predictor.load(path)
    assert predictor.system.spec.name == "cosnet"
    assert predictor.system.spec.input_size == (65, 65)
    assert predictor.threshold == 0.25
    frames = video(3, 40, 56)
    direct = Predictor(*small_cosnet(), threshold=0.25).predict(frames)
    np.testing.assert_array_equal(predictor.predict(frames).probs, direct.probs)


def test_references_given_while_loading_also_set_the_memory_of_streams(tmp_path):
    predictor = Predictor.load(saved(tmp_path), references=4)
    assert predictor.system.spec.num_references == 4
    assert len(list(predictor.stream(video(2, 20, 20)))) == 2


def test_weights_of_another_system_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"belong to 'cosnet', not to 'matnet'"):
        Predictor.load(saved(tmp_path), "matnet")


def test_weights_without_configuration_are_refused(tmp_path):
    from uvos_jax.convert.variables import save_variables

    path = save_variables({"params": {"a": np.zeros(2)}}, tmp_path / "bare.npz")
    with pytest.raises(CheckpointError, match=r"bare\.npz hold no configuration"):
        Predictor.load(path)


def test_a_configuration_of_another_age_is_explained(tmp_path):
    from uvos_jax.convert.variables import save_variables

    config = uvos.load_config("cosnet:tiny").to_dict()
    config["model"]["widths"] = 3  # once a number, say
    path = save_variables({"params": {"a": np.zeros(2)}}, tmp_path / "old.npz", config=config)
    with pytest.raises(CheckpointError, match="configuration that this version cannot use"):
        Predictor.load(path)


def test_variables_that_do_not_fit_are_refused():
    system, variables = small_cosnet()
    del variables["params"]["query_head"]
    with pytest.raises(CheckpointError, match=r"weights do not fit the system: .* missing"):
        Predictor(system, variables)


def test_absent_packaged_weights_are_not_replaced_by_anything(monkeypatch):
    from uvos_jax.predict import predictor

    monkeypatch.setattr(predictor, "DEFAULT_WEIGHTS", "assets/none.npz")
    with pytest.raises(CheckpointError, match=r"no packaged weights \(assets/none.npz\)"):
        Predictor.default()


@pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan")])
def test_a_threshold_that_is_no_probability_is_refused(threshold):
    with pytest.raises(ConfigError, match=r"threshold must lie in \[0, 1\]"):
        Predictor(Toy(), GAIN, threshold=threshold)

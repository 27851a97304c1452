"""Flow beside the frames: directions, the end of a video, files, streams and providers by name."""

import itertools

import numpy as np
import pytest

from tests.predict.toys import GAIN, FlowRight, Toy, video
from uvos_jax.data.flow_files import write_flo, write_meta
from uvos_jax.errors import ConfigError, DataError, ShapeError
from uvos_jax.predict.flow import with_both_flows, with_flow, with_track
from uvos_jax.predict.predictor import Predictor

SQUARES = [i * i for i in range(9)]


def numbered(count):
    return [np.full((2, 2, 3), i * i, np.uint8) for i in range(count)]


def difference(frames):
    """A made-up flow: the difference of the frames' numbers, in both components."""
    values = frames[:, 0, 0, 0].astype(np.float32)
    steps = values[1:] - values[:-1]
    return np.tile(steps[:, None, None, None], (1, 2, 2, 2))


def first_value(pairs):
    return [float(flow[0, 0, 0]) for _, flow in pairs]


AT_END = {"negated": 1, "neighbor": -1, "repeat": 1, "zero": 0}


@pytest.mark.parametrize("count", [2, 3, 4, 5, 7])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("at_end", AT_END)
def test_both_directions_and_all_ends(count, batch, at_end):
    squares = SQUARES[:count]
    steps = [b - a for a, b in itertools.pairwise(squares)]
    got = list(with_flow(numbered(count), difference, batch, at_end=at_end))
    assert [int(f[0, 0, 0]) for f, _ in got] == squares
    assert first_value(got) == [*steps, AT_END[at_end] * steps[-1]]
    got = list(with_flow(numbered(count), difference, batch, direction="backward", at_end=at_end))
    assert [int(f[0, 0, 0]) for f, _ in got] == squares
    assert first_value(got) == [-AT_END[at_end] * steps[0], *(-s for s in steps)]


@pytest.mark.parametrize("count", [2, 3, 4, 5, 7])
@pytest.mark.parametrize("batch", [1, 3])
def test_flow_to_both_neighbours(count, batch):
    squares = SQUARES[:count]
    steps = [b - a for a, b in itertools.pairwise(squares)]
    got = list(with_both_flows(numbered(count), difference, batch))
    assert [int(f[0, 0, 0]) for f, _ in got] == squares
    assert all(flow.shape == (2, 2, 4) for _, flow in got)
    before, after = [-steps[0], *(-s for s in steps)], [*steps, steps[-1]]
    assert [flow[1, 1].tolist() for _, flow in got] == [
        [a, a, b, b] for a, b in zip(before, after, strict=True)
    ]


def test_a_single_frame_has_no_flow_in_either_direction(caplog):
    ((_, flow),) = with_both_flows(numbered(1), difference, 2)
    assert flow.shape == (2, 2, 4)
    assert not flow.any()
    assert "one frame only" in caplog.text
    assert list(with_both_flows([], difference, 2)) == []


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_single_frame_does_not_move_and_that_is_logged(direction, caplog):
    got = list(with_flow(numbered(1), difference, 2, direction=direction, at_end="zero"))
    assert first_value(got) == [0]
    assert not caplog.records
    assert first_value(with_flow(numbered(1), difference, 2, direction=direction)) == [0]
    assert first_value(with_track(numbered(1), lambda i: None)) == [0]
    assert caplog.text.count("one frame only") == 2
    assert list(with_flow([], difference, 2, direction=direction)) == []


@pytest.mark.parametrize("direction,delay", [("forward", 1), ("backward", 0)])
def test_how_far_a_stream_is_behind(direction, delay):
    taken = 0

    def frames():
        nonlocal taken
        for frame in numbered(6):
            taken += 1
            yield frame

    pairs = with_flow(frames(), difference, 1, direction=direction, at_end="zero")
    for index, _ in enumerate(itertools.islice(pairs, 5)):
        assert taken == index + 1 + delay


def test_files_fill_in_for_the_frame_at_the_end(caplog):
    flows = {i: np.full((2, 2, 2), i, np.float32) for i in range(3)}
    track = flows.get
    assert first_value(with_track(numbered(4), track)) == [0, 1, 2, 2]
    assert "frame 3 has no flow file" in caplog.text
    assert first_value(with_track(numbered(4), track, at_end="zero")) == [0, 1, 2, 0]
    with pytest.raises(ShapeError, match="flow of frame 0 is 2x2, the frame 3x2"):
        list(with_track([np.zeros((2, 3, 3), np.uint8)], track))


# ----- Predictor ------------------------------------------------------------------------------


def rightward(frames):
    flow = np.zeros((len(frames) - 1, *frames.shape[1:3], 2), np.float32)
    flow[..., 0] = 0.5
    return flow


@pytest.mark.parametrize(
    "changes,probs",
    [
        ({}, [0.5, 0.5, 0.0]),
        ({"flow_at_end": "neighbor"}, [0.5, 0.5, 0.5]),
        ({"flow_direction": "backward", "flow_at_end": "repeat"}, [0.5, 0.5, 0.5]),
        ({"flow_direction": "backward", "flow_at_end": "zero"}, [0.0, 0.5, 0.5]),
        ({"flow_direction": "both"}, [0.0, 0.5, 0.5]),
    ],
)
def test_a_stream_equals_the_whole_video(changes, probs):
    frames = video(3, 16, 24)
    predictor = Predictor(FlowRight(**changes), GAIN, flow=rightward)
    whole = predictor.predict(frames).probs
    np.testing.assert_allclose(whole[:, 0, 0], probs)
    streamed = np.stack(list(predictor.stream(frames, probabilities=True)))
    np.testing.assert_allclose(streamed, whole, atol=1e-6)
    results = list(predictor.iter_predict(frames, stream=True))
    np.testing.assert_array_equal([r.frame for r in results], frames)


def test_flow_is_computed_when_none_is_given():
    frames = np.roll(np.repeat(video(1, 32, 40), 2, 0), 0, axis=2)
    predictor = Predictor(FlowRight(), GAIN)
    assert predictor.flow.name == "tvl1"
    assert predictor.predict(frames).probs.max() < 1e-3  # equal frames do not move
    assert Predictor(FlowRight(), GAIN, flow="lk:levels=1").flow.name == "lk:levels=1"


def test_unknown_providers_and_needless_flow_are_refused():
    with pytest.raises(ConfigError, match="'horn' is unknown and no folder of that name exists"):
        Predictor(FlowRight(), GAIN, flow="horn")
    with pytest.raises(ConfigError, match="toy reads no optical flow: leave flow='tvl1' out"):
        Predictor(Toy(), GAIN, flow="tvl1")


def test_a_folder_of_flow_is_not_enough_for_both_directions(tmp_path):
    write_flo(tmp_path / "array" / "00000.flo", np.zeros((16, 24, 2), np.float32))
    write_meta(tmp_path, {"direction": "backward"})
    predictor = Predictor(FlowRight(flow_direction="both"), GAIN, flow=str(tmp_path))
    with pytest.raises(ConfigError, match="a folder of flow files holds one of them: name an"):
        predictor.predict(video(2, 16, 24))


def test_flow_is_read_from_files_under_the_names_of_the_frames(tmp_path):
    from PIL import Image

    (tmp_path / "cat").mkdir()
    for k, frame in enumerate(video(3, 16, 24)):
        Image.fromarray(frame).save(tmp_path / "cat" / f"f{k}.png")
        if k:
            flow = np.full((16, 24, 2), 0.25 * k, np.float32)
            write_flo(tmp_path / "flow" / "cat" / f"f{k}.flo", flow)
    write_meta(tmp_path / "flow", {"direction": "backward"})
    system = FlowRight(flow_direction="backward", flow_at_end="zero")
    predictor = Predictor(system, GAIN, flow=str(tmp_path / "flow"))
    probs = predictor.predict(tmp_path / "cat").probs
    np.testing.assert_allclose(probs[:, 0, 0], [0, 0.25, 0.5])
    with pytest.raises(DataError, match="holds backward flow, but forward flow is needed"):
        Predictor(FlowRight(), GAIN, flow=str(tmp_path / "flow")).predict(tmp_path / "cat")

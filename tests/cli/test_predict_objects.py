"""`uvos predict --first-mask` and `--instances`: numbered objects on the command line."""

import jax
import numpy as np
import pytest
from PIL import Image

import uvos_jax as uvos
from tests.cli.conftest import scene, write_frames, write_mp4
from uvos_jax.convert.variables import save_variables
from uvos_jax.data.palette import davis_palette
from uvos_jax.data.video_io import write_label_png

SIZE = (36, 50)


def saved(path, name, change):
    """A weight file of a configuration; `change` edits the parameters."""
    config = uvos.load_config(name)
    variables = uvos.build(config).init(jax.random.key(0))
    change(variables["params"])
    save_variables(variables, path, config=config)
    return path


@pytest.fixture(scope="module")
def mug(tmp_path_factory):
    """The tiny MuG, not trained, to which everything is foreground."""

    def everything_is_foreground(params):
        params["rho"]["bias"] = params["rho"]["bias"] + 4.0

    return saved(tmp_path_factory.mktemp("w") / "mug.npz", "mug:tiny", everything_is_foreground)


@pytest.fixture(scope="module")
def agnn(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("w") / "agnn.npz", "agnn:tiny", lambda params: None)


def first_mask(path):
    """Objects 3 and 7 on the frames of `scene`, as a palette PNG."""
    ids = np.zeros(SIZE, np.uint8)
    ids[9:21, 3:11], ids[24:34, 30:44] = 3, 7
    write_label_png(path, ids)
    return path, ids


def write_proposals(folder, count, *places):
    """For every frame the boxes (y0, y1, x0, x1), scores falling from 0.95."""
    masks = np.zeros((len(places), *SIZE), bool)
    for mask, (y0, y1, x0, x1) in zip(masks, places, strict=True):
        mask[y0:y1, x0:x1] = True
    folder.mkdir(parents=True)
    scores = 0.95 - 0.01 * np.arange(len(places))
    for t in range(count):
        np.savez(folder / f"{t:05d}.npz", masks=masks, scores=scores)


def labels(folder):
    return np.stack([np.asarray(Image.open(p)) for p in sorted(folder.glob("*.png"))])


@pytest.mark.parametrize("count", [1, 6])
def test_the_ids_of_a_first_mask_travel_through_a_video(tmp_path, mug, uvos_command, count):
    video = write_mp4(tmp_path / "clip.mp4", scene(count, SIZE))
    path, ids = first_mask(tmp_path / "first.png")
    code, text, _ = uvos_command(
        "predict", video, "--system", "mug", "--weights", mug, "--first-mask", path,
        "--out", tmp_path / "o", "--overlay", "--save", "probs",
    )  # fmt: skip
    assert code == 0
    assert f"clip: {count} masks" in text
    found = labels(tmp_path / "o/clip")
    assert found.shape == (count, *SIZE)
    np.testing.assert_array_equal(found[0], ids)
    assert set(np.unique(found)) <= {0, 3, 7}
    picture = Image.open(tmp_path / f"o/clip/{count - 1:05d}.png")
    assert picture.mode == "P"
    np.testing.assert_array_equal(
        np.reshape(picture.getpalette(), (-1, 3))[[3, 7]], davis_palette()[[3, 7]]
    )
    shares = labels(tmp_path / "o/probs/clip")
    np.testing.assert_array_equal(shares[0], 255 * (ids > 0))


def test_pieces_of_a_video_give_what_the_whole_gives(mug):
    from uvos_jax.convert.variables import load_variables

    system, variables = uvos.build("mug:tiny"), load_variables(mug)
    frames = scene(5, SIZE)
    mask = np.zeros(SIZE, np.uint8)
    mask[9:21, 3:11] = 5
    whole = system.propagate_masks(variables, frames, mask)
    follower = system.follow(variables, mask)
    pieces = np.concatenate([follower.step(frames[:2])[0], follower.step(frames[2:])[0]])
    np.testing.assert_array_equal(pieces, whole)


def test_a_folder_of_first_masks_serves_several_videos(tmp_path, mug, uvos_command):
    for name in ("a", "b"):
        write_frames(tmp_path / "videos" / name, scene(2, SIZE))
        Image.fromarray(np.uint8(255) * (np.indices(SIZE)[1] < 20)).convert("1").save(
            _made(tmp_path / "masks" / name) / "00000.png"
        )
    code, _, _ = uvos_command(
        "predict", tmp_path / "videos", "--weights", mug, "--first-mask", tmp_path / "masks",
        "--out", tmp_path / "o",
    )  # fmt: skip
    assert code == 0
    for name in ("a", "b"):  # black and white means one object
        np.testing.assert_array_equal(labels(tmp_path / "o" / name)[0], np.indices(SIZE)[1] < 20)


def _made(folder):
    folder.mkdir(parents=True)
    return folder


def test_mug_numbers_objects_with_and_without_proposals(tmp_path, mug, uvos_command):
    folder = write_frames(tmp_path / "v", scene(3, SIZE))
    common = ("predict", folder, "--weights", mug, "--instances")
    assert uvos_command(*common, "--out", tmp_path / "whole")[0] == 0
    np.testing.assert_array_equal(labels(tmp_path / "whole/v"), np.ones((3, *SIZE)))
    write_proposals(tmp_path / "p/v", 3, (2, 12, 2, 14), (20, 34, 26, 46))
    code, _, _ = uvos_command(*common, "--proposals", tmp_path / "p", "--out", tmp_path / "two")
    assert code == 0
    found = labels(tmp_path / "two/v")
    assert set(np.unique(found[0])) == {0, 1, 2}
    assert len(np.unique(found[0, 2:12, 2:14])) == 1


def test_agnn_numbers_the_first_frames_objects_and_follows_them(tmp_path, agnn, uvos_command):
    folder = write_frames(tmp_path / "v", np.repeat(scene(1, SIZE), 3, axis=0))
    write_proposals(tmp_path / "p/v", 3, (2, 20, 2, 16), (18, 34, 26, 46))
    code, _, _ = uvos_command(
        "predict", folder, "--system", "agnn", "--weights", agnn, "--instances",
        "--proposals", tmp_path / "p", "--flow", "lk", "--out", tmp_path / "o",
    )  # fmt: skip
    assert code == 0
    expected = np.zeros(SIZE, np.uint8)
    expected[2:20, 2:16], expected[18:34, 26:46] = 1, 2
    np.testing.assert_array_equal(labels(tmp_path / "o/v"), np.stack([expected] * 3))
    assert Image.open(tmp_path / "o/v/00000.png").mode == "P"


@pytest.mark.slow
def test_agnn_takes_the_parts_of_the_foreground_without_proposals(tmp_path, agnn, uvos_command):
    folder = write_frames(tmp_path / "v", scene(1, SIZE))  # one frame: no flow is needed
    code, _, _ = uvos_command(
        "predict", folder, "--weights", agnn, "--instances", "--out", tmp_path / "o"
    )
    assert code == 0
    assert labels(tmp_path / "o/v").shape == (1, *SIZE)


@pytest.mark.parametrize(
    ("option", "reason"),
    [("--first-mask", "carries no first mask along"), ("--instances", "tells no objects apart")],
)
def test_systems_without_the_mode_are_refused(tmp_path, weights, refused, option, reason):
    folder = write_frames(tmp_path / "v", scene(1, SIZE))
    given = (option, first_mask(tmp_path / "m.png")[0]) if option == "--first-mask" else (option,)
    line = refused("predict", folder, "--weights", weights, *given)
    assert f"cosnet {reason}" in line
    assert f"leave {option} out" in line


def test_agnn_has_no_one_shot_mode(tmp_path, agnn, refused):
    folder = write_frames(tmp_path / "v", scene(1, SIZE))
    path, _ = first_mask(tmp_path / "m.png")
    assert "agnn carries no first mask" in refused(
        "predict", folder, "--weights", agnn, "--first-mask", path
    )


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "m.png does not exist"),
        ("empty", "marks no object"),
        ("void", "holds 255 (void) beside the ids [1]"),
        ("small", "is 25x36, the frames of v are 50x36"),
    ],
)
def test_unusable_first_masks_are_refused_and_leave_nothing(tmp_path, mug, refused, kind, reason):
    folder = write_frames(tmp_path / "v", scene(2, SIZE))
    ids = np.zeros(SIZE, np.uint8)
    if kind == "void":
        ids[:5], ids[5:9] = 255, 1
    if kind == "small":
        ids = np.ones((36, 25), np.uint8)
    if kind != "missing":
        write_label_png(tmp_path / "m.png", ids)
    line = refused(
        "predict", folder, "--weights", mug, "--first-mask", tmp_path / "m.png",
        "--out", tmp_path / "o",
    )  # fmt: skip
    assert reason in line
    assert not list((tmp_path / "o").rglob("*")) if (tmp_path / "o").exists() else True


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--first-mask", "m.png", "--crf", "cosnet"), "leave --crf out"),
        (("--first-mask", "m.png", "--instances"), "leave --instances out"),
        (("--first-mask", "m.png", "--threshold", "0.4"), "leave --threshold out"),
        (("--proposals", "p"), "--instances: give it, too"),
        (("--instances", "--flow", "lk"), "joins objects by their features"),
        (("--instances", "--proposals", "p"), "do not exist: give VIDEO/FRAME.npz"),
    ],
)
def test_contradicting_options_are_refused(tmp_path, mug, refused, options, reason):
    folder = write_frames(tmp_path / "v", scene(2, SIZE))
    common = ("predict", folder, "--weights", mug, "--out", tmp_path / "o")
    assert reason in refused(*common, *options)


def test_one_mask_for_two_videos_is_refused(tmp_path, mug, refused):
    for name in ("a", "b"):
        write_frames(tmp_path / "videos" / name, scene(1, SIZE))
    path, _ = first_mask(tmp_path / "m.png")
    line = refused("predict", tmp_path / "videos", "--weights", mug, "--first-mask", path)
    assert "one mask for 2 videos" in line


def test_damaged_proposals_are_refused(tmp_path, mug, refused):
    folder = write_frames(tmp_path / "v", scene(1, SIZE))
    path = _made(tmp_path / "p/v") / "00000.npz"
    common = ("predict", folder, "--weights", mug, "--instances", "--proposals", tmp_path / "p",
              "--out", tmp_path / "o")  # fmt: skip
    path.write_bytes(b"PK broken")
    assert "00000.npz cannot be read" in refused(*common)
    np.savez(path, masks=np.zeros((1, *SIZE), bool))
    assert "lack" in refused(*common)
    np.savez(path, masks=np.zeros((1, 9, 9), bool), scores=np.ones(1))
    assert "expected [N,36,50] and [N]" in refused(*common)

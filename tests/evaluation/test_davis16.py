"""DAVIS-2016 from masks on disk to a report, and what is said about results that do not fit."""

import re
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.evaluation import trees
from tests.evaluation.trees import H, T, W
from tests.metrics import oracles
from uvos_jax.errors import ConfigError, DataError
from uvos_jax.evaluation.evaluator import evaluate
from uvos_jax.metrics.temporal import temporal_stability


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Root, results folder, annotations and results of two sequences, of which one is stable."""
    folder = tmp_path_factory.mktemp("davis16")
    gt = trees.davis16(folder / "davis")
    pred = trees.results_of(folder / "results", gt)
    return folder / "davis", folder / "results", gt, pred


@pytest.fixture(scope="module")
def report(scene):
    root, results, _, _ = scene
    return evaluate(results, dataset="davis16", root=root)


@pytest.fixture
def spoiled(scene, tmp_path):
    """A copy of the results, to be damaged."""
    shutil.copytree(scene[1], tmp_path / "results")
    return tmp_path / "results"


def scored(scene, results, **options):
    return evaluate(results, root=scene[0], measures=("J", "F"), **options)


def message(error, scene, results, **options):
    """The text of the error that an evaluation ends with: one line, not a traceback of ours."""
    options = {"root": scene[0], **options}
    with pytest.raises(error) as caught:
        evaluate(results, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 400
    return text


# ----- numbers -----------------------------------------------------------------------------------


def test_per_frame_values_are_those_of_pixel_loops_without_first_and_last(scene, report):
    _, _, gt, pred = scene
    for row in report.rows:
        assert row.frames == tuple(f"{t:05d}" for t in range(1, T - 1))
        for k, t in enumerate(range(1, T - 1)):
            a, b = pred[row.name][t], gt[row.name][t]
            assert row.values["J"][k] == oracles.region_similarity(a, b)
            assert row.values["F"][k] == pytest.approx(oracles.contour_accuracy(a, b), abs=1e-15)


def test_sequences_weigh_the_same_in_the_summary(report):
    assert list(report.per_sequence) == ["blackswan", "dog"]
    for measure in "JF":
        rows = [oracles.statistics(r.values[measure].tolist()) for r in report.rows]
        for k, name in enumerate(("mean", "recall", "decay")):
            expected = np.mean([r[k] for r in rows])
            assert report.summary[f"{measure}_{name}"] == pytest.approx(expected, abs=1e-12)


def test_t_is_that_of_consecutive_results_of_stable_sequences(scene, report):
    _, _, _, pred = scene
    swan, dog = report.rows
    expected = temporal_stability(pred["blackswan"][1:-1])
    np.testing.assert_allclose(swan.values["T"][:-1], expected)
    assert np.isnan(swan.values["T"][-1])  # the last frame begins no pair
    assert report.summary["T_mean"] == pytest.approx(expected.mean())
    assert "T" not in dog.values  # not flagged as stable by DAVIS
    assert "T_mean" not in dog.stats


def test_the_report_states_protocol_layout_and_list(report):
    for words in ("DAVIS-2016", "frames 1..N-2", "0.008 of the diagonal", "T over consecutive"):
        assert words in report.protocol
    assert "split val (ImageSets/2016/val.txt)" in report.layout


def test_perfect_results_score_one(scene, tmp_path):
    _, _, gt, _ = scene
    for name, masks in gt.items():
        trees.save_frames(tmp_path / name, masks)
    summary = scored(scene, tmp_path).summary
    assert summary["J_mean"] == summary["F_mean"] == summary["J_recall"] == 1.0
    assert summary["J_decay"] == 0.0


def test_results_may_lack_first_and_last_frame_and_have_other_files(scene, spoiled, report):
    for name in ("blackswan", "dog"):
        (spoiled / name / "00000.png").unlink()
        (spoiled / name / f"{T - 1:05d}.png").unlink()
        (spoiled / name / "00900.png").write_bytes(b"not looked at")
        (spoiled / name / "notes.txt").write_text("mine")
    (spoiled / "another-sequence").mkdir()
    found = scored(scene, spoiled)
    assert found.summary["J_mean"] == report.summary["J_mean"]
    assert len(found.rows) == 2


def test_more_workers_change_nothing_and_progress_is_told(scene, report):
    told = []
    found = evaluate(scene[1], root=scene[0], workers=3, progress=lambda *args: told.append(args))
    assert found.per_sequence == report.per_sequence
    assert [args[1:] for args in told] == [(1, 2), (2, 2)]
    assert {args[0] for args in told} == {"blackswan", "dog"}


def test_other_layouts_of_the_same_annotations_give_the_same_numbers(scene, report, tmp_path):
    root, results, gt, _ = scene
    bare = evaluate(results, root=root / "Annotations" / "480p", measures=("J",))
    assert "annotation folders" in bare.layout
    for name, masks in gt.items():
        trees.save_frames(tmp_path / name / "masks", masks)
    clips = evaluate(results, root=tmp_path, measures=("J",))
    assert "clip folders" in clips.layout
    for found in (bare, clips):
        assert found.summary["J_mean"] == report.summary["J_mean"]
        assert set(found.summary) == {"J_mean", "J_recall", "J_decay"}


def test_a_long_sequence_is_scored_in_runs(tmp_path):
    gt = trees.davis16(tmp_path / "davis", ("dog",), frames=37)
    pred = trees.results_of(tmp_path / "results", gt)["dog"]
    row = evaluate(tmp_path / "results", root=tmp_path / "davis", measures=("J",)).rows[0]
    expected = [oracles.region_similarity(a, b) for a, b in zip(pred, gt["dog"], strict=True)]
    np.testing.assert_array_equal(row.values["J"], expected[1:-1])


# ----- selections --------------------------------------------------------------------------------


def test_a_part_of_the_set_is_scored_only_when_asked_for(scene, spoiled):
    shutil.rmtree(spoiled / "dog")
    text = message(DataError, scene, spoiled)
    assert "lacks 1 sequence (dog) of 2 sequences" in text
    assert "--sequences present" in text
    for choice in ("present", ["blackswan"], "blackswan"):
        found = scored(scene, spoiled, sequences=choice)
        assert list(found.per_sequence) == ["blackswan"]
        assert found.layout.endswith("; 1 of its sequences selected")


def test_a_data_set_that_lacks_sequences_of_its_list_is_not_scored_silently(scene, tmp_path):
    shutil.copytree(scene[0], tmp_path / "davis")
    shutil.rmtree(tmp_path / "davis" / "ImageSets")
    text = message(DataError, scene, scene[1], root=tmp_path / "davis")
    assert "lacks 18 sequences (bmx-trees, breakdance, camel, car-roundabout, car-shadow" in text
    assert "built-in list of DAVIS-2016" in text
    found = scored(scene, scene[1], sequences="present")
    assert len(found.rows) == 2


def test_unknown_or_missing_selections_are_named(scene, spoiled):
    assert "sequences cat are not in the data set" in message(
        DataError, scene, spoiled, sequences=["dog", "cat"]
    )
    shutil.rmtree(spoiled / "dog")
    assert "lacks 1 sequence (dog)" in message(DataError, scene, spoiled, sequences=["dog"])


# ----- what goes wrong ---------------------------------------------------------------------------


def test_a_missing_frame_is_named(scene, spoiled):
    (spoiled / "dog" / "00002.png").unlink()
    text = message(DataError, scene, spoiled)
    assert "lacks 1 of 4 frames, first 00002.png" in text
    assert str(spoiled / "dog") in text


def test_all_frames_are_looked_for_before_any_is_scored(scene, spoiled):
    (spoiled / "blackswan" / "00001.png").write_bytes(b"damaged")
    (spoiled / "dog" / "00002.png").unlink()
    assert "lacks 1 of 4 frames" in message(DataError, scene, spoiled)


def test_frames_with_other_names_are_shown(scene, spoiled):
    for path in (spoiled / "dog").iterdir():
        path.rename(path.with_name(f"frame_{path.name}"))
    text = message(DataError, scene, spoiled)
    assert "lacks 4 of 4 frames, first 00001.png" in text
    assert "named like frame_00000.png; name them as the annotations" in text


def test_a_folder_without_png_shows_what_it_has(scene, spoiled):
    for path in (spoiled / "dog").iterdir():
        path.rename(path.with_suffix(".npy"))
    assert "holds no PNG (it has 00000.npy, 00001.npy" in message(DataError, scene, spoiled)
    for path in (spoiled / "dog").iterdir():
        path.unlink()
    assert "holds no PNG (it has nothing)" in message(DataError, scene, spoiled)


def test_empty_and_absent_results_are_told_apart(scene, tmp_path):
    assert "lacks 2 sequences (blackswan, dog)" in message(DataError, scene, tmp_path)
    text = message(DataError, scene, tmp_path, sequences="present")
    assert "has a folder for none of the 2 sequences" in text
    assert "it holds nothing" in text
    assert "does not exist" in message(DataError, scene, tmp_path / "nowhere")


def test_another_size_is_refused_not_resized(scene, spoiled):
    trees.save(spoiled / "dog" / "00003.png", np.zeros((H // 2, W // 2), bool))
    text = message(DataError, scene, spoiled)
    assert f"00003.png: the result is {W // 2}x{H // 2} but its annotation" in text
    assert f"is {W}x{H}; save results at the annotation's size" in text


def test_colour_and_damaged_files_are_named(scene, spoiled):
    trees.save(spoiled / "dog" / "00003.png", np.zeros((H, W, 3), np.uint8))
    text = message(DataError, scene, spoiled)
    assert "00003.png: a mask has one channel" in text
    assert "mode RGB (3 channels)" in text
    (spoiled / "dog" / "00003.png").write_bytes(b"\x89PNG\r\n\x1a\n cut off")
    assert "00003.png: cannot be read as an image" in message(DataError, scene, spoiled)


def test_several_objects_are_refused_unless_merged(scene, spoiled):
    ids = np.zeros((H, W), np.uint8)
    ids[4:9, 5:30], ids[12:20, 5:30] = 1, 2
    trees.save(spoiled / "dog" / "00003.png", ids, palette=True)
    text = message(DataError, scene, spoiled)
    assert "holds 2 object ids (1, 2)" in text
    assert "--merge-objects" in text
    row = scored(scene, spoiled, merge_objects=True).rows[1]
    assert row.values["J"][2] == oracles.region_similarity(ids > 0, scene[2]["dog"][3])


def test_too_short_a_sequence_is_named(tmp_path):
    gt = trees.davis16(tmp_path / "davis", ("dog",), frames=2)
    trees.results_of(tmp_path / "results", gt)
    text = message(DataError, (tmp_path / "davis",), tmp_path / "results")
    assert "'dog' has 2 annotated frames" in text
    assert "needs at least 3" in text


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"dataset": "davis2016"}, "data set 'davis2016' is unknown: use one of davis16, davis17"),
        ({"split": "test"}, "split 'test' has no list"),
        ({"measures": ("J", "G")}, "measures G are not defined for davis16: use J, F, T"),
        ({"measures": ()}, r"measures \(none\) are not defined"),
        ({"workers": 0}, "workers is 0"),
    ],
)
def test_wrong_options_name_what_there_is(scene, options, expected):
    assert re.search(expected, message(ConfigError, scene, scene[1], **options))


def test_wrong_roots_say_what_was_looked_for(scene, tmp_path):
    assert "does not exist" in message(DataError, scene, scene[1], root=tmp_path / "nowhere")
    (tmp_path / "videos").mkdir()
    text = message(DataError, scene, scene[1], root=tmp_path)
    assert "is not a davis16 folder: looked for" in text
    assert "<root>/Annotations/480p/<sequence>/*.png" in text
    assert "it contains videos" in text
    text = message(DataError, scene, scene[1], resolution="1080p")
    assert "holds 480p; choose with resolution=" in text


def test_one_bit_results_are_read_as_masks(scene, spoiled, report):
    for path in (spoiled / "dog").iterdir():
        Image.fromarray(np.asarray(Image.open(path)) > 0).save(path)
    found = scored(scene, spoiled)
    assert found.per_sequence["dog"]["J_mean"] == report.per_sequence["dog"]["J_mean"]

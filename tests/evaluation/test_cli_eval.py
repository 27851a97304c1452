"""`uvos eval`: exit codes, files, and one sentence for every mistake."""

import json

import pytest

from tests.evaluation import trees
from uvos_jax.cli.main import main
from uvos_jax.evaluation.evaluator import evaluate


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    gt = trees.davis16(folder / "davis")
    trees.results_of(folder / "results", gt)
    return folder


def run(scene, *arguments, results="results", root="davis"):
    return main(
        ["eval", "--results", str(scene / results), "--root", str(scene / root), *arguments]
    )


def refused(capsys, scene, *arguments, **options):
    assert run(scene, *arguments, **options) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    return captured.err


def test_success_prints_the_table_and_exits_with_zero(scene, capsys):
    assert run(scene) == 0
    out = capsys.readouterr().out
    summary = evaluate(scene / "results", root=scene / "davis").summary
    last = next(line for line in out.splitlines() if "average of 2" in line)
    for value in summary.values():
        assert f"{value:.3f}" in last
    assert "Protocol: DAVIS-2016" in out


def test_files_are_written_where_asked(scene, tmp_path, capsys):
    files = {kind: tmp_path / "out" / f"r.{kind}" for kind in ("json", "csv", "html")}
    options = [part for kind, path in files.items() for part in (f"--{kind}", str(path))]
    assert run(scene, "--measures", "J, F", *options) == 0
    out = capsys.readouterr().out
    for path in files.values():
        assert f"wrote {path}" in out
    assert list(json.loads(files["json"].read_text())["summary"]) == [
        f"{m}_{s}" for m in "JF" for s in ("mean", "recall", "decay")
    ]
    assert files["csv"].read_text().startswith("Sequence,J_mean,")
    assert files["html"].read_text().startswith("<!doctype html>")


def test_a_part_can_be_scored(scene, capsys):
    assert run(scene, "--sequences", "dog", "--measures", "J", "--workers", "1") == 0
    out = capsys.readouterr().out
    assert "blackswan" not in out
    assert "1 of its sequences selected" in out


def test_results_with_brackets_in_their_path_are_printed(scene, tmp_path, capsys):
    folder = tmp_path / "run [bold]"
    folder.mkdir()
    (folder / "dog").symlink_to(scene / "results" / "dog")
    assert run(scene, "--sequences", "dog", "--measures", "J", results=folder) == 0
    assert "run [bold]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--measures", "J,X"), "measures X are not defined for davis16: use J, F, T"),
        (("--split", "holiday"), "split 'holiday' has no list"),
        (("--sequences", "cat"), "sequences cat are not in the data set"),
        (("--workers", "0"), "workers is 0: at least one thread is needed"),
        (("--resolution", "4k"), "choose with resolution="),
        (("--dataset", "fbms"), "is not a fbms folder: looked for"),
        (("--json", "."), "cannot write .: it is a folder; give a file name"),
    ],
)
def test_mistakes_are_one_line_and_exit_with_two(scene, capsys, arguments, expected):
    assert expected in refused(capsys, scene, *arguments)


def test_missing_folders_are_one_line_and_exit_with_two(scene, capsys):
    assert "results folder" in refused(capsys, scene, results="nowhere")
    assert "data set folder" in refused(capsys, scene, root="nowhere")
    assert "lacks 2 sequences" in refused(capsys, scene, results="davis")


@pytest.mark.parametrize("arguments", [("--dataset", "davis2018"), ("--workers", "many")])
def test_values_that_do_not_exist_are_refused_by_the_parser(scene, capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        run(scene, *arguments)
    assert caught.value.code == 2
    assert f"argument {arguments[0]}: invalid" in capsys.readouterr().err


def test_help_shows_the_data_sets(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["eval", "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    for name in ("davis16", "davis17", "youtube_objects", "fbms", "segtrack", "vsod", "flow"):
        assert name in out

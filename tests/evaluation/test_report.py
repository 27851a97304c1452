"""What a report writes: JSON, CSV, a table and a page that needs nothing else."""

import csv
import io
import json
import os
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from tests.evaluation import trees
from uvos_jax.errors import DataError
from uvos_jax.evaluation.evaluator import evaluate
from uvos_jax.evaluation.html import worst_frames
from uvos_jax.evaluation.protocols import Row
from uvos_jax.evaluation.report import Report, check_writable


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """DAVIS-2016 with an empty result somewhere, so that T is undefined for a pair."""
    folder = tmp_path_factory.mktemp("report")
    gt = trees.davis16(folder / "davis")
    trees.results_of(folder / "results", gt)
    trees.save(folder / "results" / "blackswan" / "00003.png", np.zeros((trees.H, trees.W), bool))
    return evaluate(folder / "results", root=folder / "davis")


def made_up(**fields):
    """A report of two rows without files."""
    rows = [
        Row("[a]", ("1", "2", "3"), {"J": np.array([0.5, 0.1, np.nan])}, {"J_mean": 0.3}, "[/x]"),
        Row("b<i>&'\"", ("1", "2"), {"J": np.array([0.2, 0.9])}, {"J_mean": float("nan")}, "y"),
    ]
    options = {
        "dataset": "segtrack",
        "protocol": "J of [bold]everything[/bold].",
        "layout": "GroundTruth/<sequence>[/<object>]",
        "results": "results [1]",
        "root": "/data/[set]",
        "summary": {"J_mean": 0.3, "J_mean_over_frames": 0.425},
        "rows": rows,
        "groups": {"[/x]": {"J_mean": 0.3}, "y": {}},
    }
    return Report(**(options | fields))


def printed(report, width=160):
    out = io.StringIO()
    report.print(Console(file=out, width=width))
    return out.getvalue()


# ----- JSON and CSV ------------------------------------------------------------------------------


def test_json_holds_everything_and_null_for_what_is_undefined(report, tmp_path):
    report.to_json(tmp_path / "deep" / "r.json")
    text = (tmp_path / "deep" / "r.json").read_text()
    assert "NaN" not in text
    found = json.loads(text)
    for key in ("dataset", "protocol", "layout", "results", "root", "uvos_jax"):
        assert isinstance(found[key], str)
        assert found[key]
    assert found["summary"] == report.summary
    assert found["per_sequence"] == report.per_sequence
    swan = found["per_frame"]["blackswan"]
    assert swan["frames"] == ["00001", "00002", "00003", "00004"]
    assert swan["J"] == report.rows[0].values["J"].tolist()
    assert swan["T"][1:] == [None, None, None]  # two pairs with the empty result, and the end
    assert swan["T"][0] > 0


def test_csv_has_a_line_per_row_in_full_precision_and_the_average(report, tmp_path):
    report.to_csv(tmp_path / "r.csv")
    with (tmp_path / "r.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["Sequence"] for row in rows] == ["blackswan", "dog", "Average"]
    assert list(rows[0])[1:] == report.columns
    for row in rows[:2]:
        for name, value in report.per_sequence[row["Sequence"]].items():
            assert float(row[name]) == value
    assert float(rows[2]["J_mean"]) == report.summary["J_mean"]
    assert rows[1]["T_mean"] == ""  # not a stable sequence


def test_an_interrupted_write_leaves_the_old_file(report, tmp_path, monkeypatch):
    path = tmp_path / "r.json"
    path.write_text("old")

    def fail(*_):
        raise OSError("no")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(DataError, match=r"cannot write"):
        report.to_json(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_places_that_cannot_be_written_are_refused_before_scoring(tmp_path):
    with pytest.raises(DataError, match=r"it is a folder; give a file name"):
        check_writable(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file is not a folder one can write to"):
        check_writable(tmp_path / "file" / "r.json")
    check_writable(tmp_path / "new" / "folder" / "r.json")
    assert not (tmp_path / "new").exists()


# ----- the table ---------------------------------------------------------------------------------


def test_the_table_states_numbers_protocol_and_place(report):
    text = printed(report)
    for name, row in report.per_sequence.items():
        line = next(line for line in text.splitlines() if name in line)
        for value in row.values():
            assert f"{value:.3f}" in line
    assert "average of 2" in text
    assert "Protocol: DAVIS-2016" in text
    assert "ImageSets/2016/val.txt" in text.replace("\n", "")


def test_brackets_in_names_and_paths_are_printed_as_they_are():
    text = printed(made_up())
    for words in (
        "segtrack: results [1]",
        "[a]",
        "[[/x]]",
        "[y]",
        "J of [bold]everything[/bold].",
        "/data/[set] (GroundTruth/<sequence>[/<object>])",
        "J mean over frames: 0.425",
    ):
        assert words in text


def test_a_narrow_screen_cuts_no_number(report):
    text = printed(report, width=60)
    assert "…" not in text
    cells = [[cell.strip() for cell in line.split("│")] for line in text.splitlines()]
    cells = [row for row in cells if len(row) > len(report.columns)]
    start = next(k for k, row in enumerate(cells) if row[1].startswith("dog"))
    stop = next(k for k, row in enumerate(cells) if row[1].startswith("aver"))
    joined = ["".join(row[c] for row in cells[start:stop]) for c in range(len(cells[0]))]
    for value in report.per_sequence["dog"].values():
        assert f"{value:.3f}" in joined


# ----- the page ----------------------------------------------------------------------------------


class Page(HTMLParser):
    """Collects tags, what they refer to, and text; open tags must be closed in order."""

    VOID = ("meta", "img", "link", "br", "line", "circle", "polyline")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.references, self.text = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [v for k, v in attrs if k in ("src", "href", "xlink:href", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def page(report, tmp_path, **options):
    report.to_html(tmp_path / "r.html", **options)
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    return text, Page(text)


def test_the_page_is_well_formed_and_refers_to_nothing_outside(report, tmp_path):
    text, found = page(report, tmp_path)
    assert all(ref.startswith("data:image/jpeg;base64,") for ref in found.references)
    for outside in ("http://", "https://", "@import", "url(", "<script", "<link"):
        assert outside not in text
    assert found.tags.count("svg") == 2  # a curve per sequence
    words = " ".join(found.text)
    assert f"{report.summary['J_mean']:.3f}" in words
    assert report.protocol in words
    assert not re.search(r"\bnan\b", words.lower())
    assert not re.search(r"(points|cx|cy|y1)=[^>]*nan", text)


def test_the_page_pictures_the_worst_frames(report, tmp_path):
    _, found = page(report, tmp_path, worst=3)
    assert len(found.references) == 3
    assert any("blackswan 00003: J 0.000" in words for words in found.text)  # the empty one
    _, found = page(report, tmp_path, worst=0)
    assert not found.references


def test_names_are_escaped(tmp_path):
    text, found = page(made_up(), tmp_path)
    assert "<i>" not in text
    assert "i" not in found.tags
    words = "".join(found.text)
    assert "b<i>&'\"" in words
    assert "GroundTruth/<sequence>[/<object>]" in words


def test_the_worst_come_first_and_no_sequence_fills_the_list():
    low = Row("low", tuple("abcd"), {"J": np.array([0.0, 0.1, 0.2, 0.3])}, {})
    high = Row("high", tuple("ab"), {"J": np.array([0.9, np.nan])}, {})
    chosen = worst_frames(made_up(rows=[low, high]), 3)
    assert [(row.name, k) for row, k, _, _ in chosen] == [("low", 0), ("low", 1), ("high", 0)]
    errors = Row("errors", tuple("abc"), {"EPE": np.array([1.0, 7.0, 3.0])}, {})
    chosen = worst_frames(made_up(rows=[errors]), 2)
    assert [(k, name, value) for _, k, name, value in chosen] == [(1, "EPE", 7.0), (2, "EPE", 3.0)]

import numpy as np
import pytest
from PIL import Image

from uvos_jax.cli.main import main


@pytest.mark.slow
def test_the_demo_shows_masks_numbers_and_a_report(tmp_path, capsys):
    assert main(["demo", "--clips", "articulated-runner", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "articulated-runner" in out
    assert f"report: {tmp_path / 'report.html'}" in out
    assert "next: uvos predict" in out
    assert "articulated-runner" in (tmp_path / "report.html").read_text()
    masks = sorted((tmp_path / "masks" / "articulated-runner").glob("*.png"))
    assert len(masks) == 16
    share = np.mean([np.asarray(Image.open(path)) > 0 for path in masks])
    assert 0.001 < share < 0.5
    j = float(out.split("articulated-runner: J ")[1].split()[0])
    assert j > 0.8


def test_an_unknown_clip_is_refused_before_any_work(tmp_path, capsys):
    assert main(["demo", "--clips", "nothing", "--out", str(tmp_path)]) != 0
    error = capsys.readouterr().err
    assert "nothing" in error
    assert "articulated-runner" in error
    assert not (tmp_path / "masks").exists()

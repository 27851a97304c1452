"""tools/render_clips.py: files hold the generator's clips, and a second call adds nothing."""

import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

from uvos_jax import synthetic
from uvos_jax.data import sources

TOOL = Path(__file__).parents[2] / "tools" / "render_clips.py"


@pytest.mark.slow
def test_clips_in_files_are_the_generators_and_are_rendered_once(tmp_path, capsys):
    main = runpy.run_path(str(TOOL))["main"]
    call = ["--out", str(tmp_path), "--preset", "test", "--size", "48x64", "--frames", "3",
            "--count", "3", "--processes", "1", "--seed", "4"]  # fmt: skip
    assert main(call) == 0
    assert "3 clips rendered, 0 were there" in capsys.readouterr().out
    made = sources.make_source(
        "folder", root=str(tmp_path / "videos"), flow="../flow", flow_direction="backward",
        clips="sequences",
    )  # fmt: skip
    cfg = synthetic.config("test", height=48, width=64, frames=3, label="moving")
    key = jax.random.fold_in(jax.random.key(4), 2)
    record = jax.device_get(
        jax.jit(lambda k: synthetic.clip(k, cfg, ("video", "mask", "flow_bw")))(key)
    )
    example = made[2]
    np.testing.assert_array_equal(example["frames"], np.round(record["video"] * 255))
    np.testing.assert_array_equal(example["masks"], record["mask"])
    np.testing.assert_allclose(example["flow"][1:], record["flow_bw"][1:], atol=1 / 64)
    assert example["flow_valid"].tolist() == [False, True, True]
    assert main(call) == 0
    assert "0 clips rendered, 3 were there" in capsys.readouterr().out
    assert main([*call[:-1], "5"]) == 2
    assert "holds other clips" in capsys.readouterr().err

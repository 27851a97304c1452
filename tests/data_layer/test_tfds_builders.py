"""Prepared data sets: same examples as their sources, no TensorFlow, all or nothing."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from tests.data_layer import dataset_trees as trees
from tests.data_layer.dataset_trees import TREES
from uvos_jax.cli.main import main
from uvos_jax.data import sources
from uvos_jax.data.pipeline import make_train_iter
from uvos_jax.data.schema import validate_example
from uvos_jax.data.sources.check import checkable
from uvos_jax.data.tfds_builders.builder import builder_class, splits_of
from uvos_jax.data.tfds_builders.prepare import prepare
from uvos_jax.errors import ConfigError, DataError

SMALL = 2000  # bytes of source files: a few frames of the test trees per shard


def default_split(name):
    return next(iter(checkable()[name].SPLITS), None)


def packed(name, root, out, **options):
    return prepare(name, root, out, split=default_split(name), partial=True, **options)


def davis(tmp_path, **options):
    """A prepared DAVIS tree of several shards: (tree, folder)."""
    root = trees.davis(tmp_path / "tree")
    return root, packed("davis16", root, tmp_path / "out", shard_bytes=SMALL, **options)


@pytest.mark.parametrize("name", list(TREES))
def test_records_give_the_examples_of_their_source(name, tmp_path):
    make, *_ = TREES[name]
    root = make(tmp_path / "tree")
    folder = packed(name, root, tmp_path / "out", shard_bytes=SMALL)
    original = sources.make_source(name, root=str(root))
    records = sources.make_source("records", root=str(folder))
    assert len(records) == len(original)
    assert [s.name for s in records.sequences] == [s.name for s in original.sequences]
    for i in range(len(original)):
        expected, found = original[i], records[i]
        validate_example(found)
        assert found.keys() == expected.keys()
        for key in expected:
            np.testing.assert_array_equal(found[key], expected[key], err_msg=key)
    assert "tensorflow" not in sys.modules


def test_whole_sequences_names_and_partners_agree(tmp_path):
    root = trees.youtube_objects(tmp_path / "tree")
    folder = packed("youtube_objects", root, tmp_path / "out")
    for fields in ({"clips": "sequences"}, {"clips": "frames", "clip_len": 3, "sampling": "pair"}):
        original = sources.make_source("youtube_objects", root=str(root), **fields)
        records = sources.make_source("records", root=str(folder), **fields)
        for i in range(len(original)):
            for key, value in original[i].items():
                np.testing.assert_array_equal(records[i][key], value, err_msg=key)
        assert records.names(1) == original.names(1)


def test_flow_follows_the_clip(tmp_path):
    root = trees.flyingthings3d(tmp_path / "tree", last_flow=False)
    folder = packed("flyingthings3d", root, tmp_path / "out")
    fields = {"clip_len": 3}
    original = sources.make_source("flyingthings3d", root=str(root), **fields)
    records = sources.make_source("records", root=str(folder), **fields)
    for i in range(len(original)):
        for key, value in original[i].items():
            np.testing.assert_array_equal(records[i][key], value, err_msg=key)


def test_jpeg_bytes_are_kept_and_other_images_become_png(tmp_path):
    root = trees.davis(tmp_path / "tree", names=("alpha",))
    grey = root / "JPEGImages/480p/alpha/00001.jpg"
    Image.open(grey).convert("L").save(grey)
    folder = packed("davis16", root, tmp_path / "out")
    import tensorflow_datasets as tfds

    data = tfds.builder_from_directory(folder).as_data_source(
        "train", decoders={"frame": tfds.decode.SkipDecoding()}
    )
    jpeg = (root / "JPEGImages/480p/alpha/00000.jpg").read_bytes()
    assert data[0]["frame"] == jpeg
    assert data[1]["frame"].startswith(b"\x89PNG")
    records = sources.make_source("records", root=str(folder))
    assert records[1]["frames"].shape[-1] == 3


def test_several_splits_are_read_alone_and_joined(tmp_path):
    root = trees.davsod(tmp_path / "tree")
    folder = prepare("davsod", root, tmp_path / "out", partial=True)
    assert splits_of("davsod") == ("train", "val", "easy", "normal", "difficult")
    joined = sources.make_source("records", root=str(folder), split="easy+normal+difficult")
    test = sources.make_source("davsod", root=str(root), split="test")
    assert [s.name for s in joined.sequences] == [s.name for s in test.sequences]
    np.testing.assert_array_equal(joined[5]["frames"], test[5]["frames"])
    with pytest.raises(ConfigError, match=r"has the splits train, val, easy.*: choose with split"):
        sources.make_source("records", root=str(folder))
    with pytest.raises(ConfigError, match="has no split 'test': it has train"):
        sources.make_source("records", root=str(folder), split="test")


def test_statistics_are_those_of_a_plain_loop(tmp_path):
    root = trees.davis(tmp_path / "tree", year=2017)
    folder = packed("davis17", root, tmp_path / "out", shard_bytes=SMALL)
    found = json.loads((folder / "stats.json").read_text())["train"]
    original = sources.make_source("davis17", root=str(root))
    frames = np.concatenate([original[i]["frames"] for i in range(6)]) / 255.0
    masks = np.concatenate([original[i]["masks"] for i in range(6)])
    assert (found["sequences"], found["frames"], found["annotated"]) == (2, 6, 6)
    np.testing.assert_allclose(found["rgb_mean"], frames.mean((0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(found["rgb_std"], frames.std((0, 1, 2)), atol=1e-4)
    foreground = ((masks > 0) & (masks < 255)).mean()
    assert found["foreground_fraction"] == pytest.approx(foreground, abs=1e-5)
    assert found["void_fraction"] == pytest.approx((masks == 255).mean(), abs=1e-5)
    assert found["max_objects_in_a_frame"] == 2
    assert found["sizes_height_x_width"] == {"12x16": 6}


# ----- in the pipeline ----------------------------------------------------------------------------


def data_config(root, **changes):
    entry = {"name": "records", "root": str(root), "group": "video", "weight": 1.0}
    augment = {"flip": 0.5, "scale": (1.0, 1.0), "crop": (1.0, 1.0), "independent": False}
    return ConfigDict(
        {
            "train": (entry,), "eval": (), "clip_len": 2, "stride": 1, "batch_size": 2,
            "size": (8, 8), "augment": augment, "workers": 0, "prefetch": 2, "shuffle_seed": 0,
            "skip_corrupt": False, **changes,
        }
    )  # fmt: skip


def test_records_feed_the_same_pipeline_as_folders(tmp_path):
    root, folder = davis(tmp_path)
    plain = data_config(root)
    plain.train = ({"name": "davis16", "root": str(root), "group": "video", "weight": 1.0},)
    expected = make_train_iter(plain, "video", batch_size=2)
    found = make_train_iter(data_config(folder), "video", batch_size=2)
    for _ in range(4):
        one, other = next(expected), next(found)
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key], err_msg=key)


def test_record_sources_travel_to_worker_processes_after_use(tmp_path):
    _, folder = davis(tmp_path)
    records = sources.make_source("records", root=str(folder.parent))
    first = records[0]
    copy = pickle.loads(pickle.dumps(records))
    np.testing.assert_array_equal(copy[0]["frames"], first["frames"])


def test_stills_stay_single_frames_whatever_the_configuration_says(tmp_path):
    folder = packed("ecssd", trees.ecssd(tmp_path / "tree"), tmp_path / "out")
    made = sources.from_entry({"name": "records", "root": str(folder)}, {"clip_len": 4})
    assert made[0]["frames"].shape[0] == 1


# ----- all or nothing -----------------------------------------------------------------------------


def shard_files(folder):
    return sorted(p.name for p in Path(folder).glob("*.array_record*"))


def test_several_shards_hold_all_frames_in_order(tmp_path):
    _, folder = davis(tmp_path)
    names = shard_files(folder)
    assert len(names) > 1
    assert names[0] == f"davis16-train.array_record-00000-of-{len(names):05d}"
    records = sources.make_source("records", root=str(folder), clips="sequences")
    assert records.names(1) == ("beta", ["00000", "00001", "00002"])


def test_a_damaged_file_stops_the_preparation_and_mending_it_resumes(tmp_path):
    root = trees.davis(tmp_path / "tree")
    broken = root / "JPEGImages/480p/beta/00002.jpg"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:60])
    said = []
    with pytest.raises(DataError, match=r"beta/00002.jpg cannot be decoded"):
        packed("davis16", root, tmp_path / "out", shard_bytes=SMALL, progress=said.append)
    home = tmp_path / "out/davis16"
    assert sorted(p.name for p in home.iterdir()) == [".lock", "incomplete.shards_1.0.0"]
    with pytest.raises(DataError, match="holds no prepared data set"):
        sources.make_source("records", root=str(home))
    finished = len(said)
    assert finished
    broken.write_bytes(whole)
    again = []
    folder = packed("davis16", root, tmp_path / "out", shard_bytes=SMALL, progress=again.append)
    assert len(again) + finished == len(shard_files(folder))  # finished shards were kept
    assert sorted(p.name for p in home.iterdir()) == [".lock", "1.0.0"]
    original = sources.make_source("davis16", root=str(root))
    records = sources.make_source("records", root=str(folder))
    for i in range(6):
        np.testing.assert_array_equal(records[i]["frames"], original[i]["frames"])


def test_a_killed_preparation_leaves_nothing_under_the_name_and_is_continued(tmp_path):
    root = trees.davis(tmp_path / "tree", count=40)
    script = (
        "import sys, time\n"
        "from uvos_jax.data.tfds_builders.prepare import prepare\n"
        "def said(text):\n"
        "    print(text, flush=True)\n"
        "    time.sleep(0.2)\n"
        "prepare('davis16', sys.argv[1], sys.argv[2], split='train', partial=True,\n"
        f"        shard_bytes={SMALL}, progress=said)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(root), str(tmp_path / "out")],
        stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    try:
        for _ in range(2):
            assert "shard" in process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    home = tmp_path / "out/davis16"
    assert not (home / "1.0.0").exists()
    said = []
    folder = packed("davis16", root, tmp_path / "out", shard_bytes=SMALL, progress=said.append)
    assert len(said) <= len(shard_files(folder)) - 2
    assert sorted(p.name for p in home.iterdir()) == [".lock", "1.0.0"]
    assert len(sources.make_source("records", root=str(folder))) == 80


def test_a_set_that_is_up_to_date_is_left_alone(tmp_path):
    root, folder = davis(tmp_path)
    before = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    said = []
    packed("davis16", root, tmp_path / "out", shard_bytes=SMALL, progress=said.append)
    assert said == [f"{folder} is up to date"]
    assert {p.name: p.stat().st_mtime_ns for p in folder.iterdir()} == before


def test_changed_sources_are_noticed_and_replaced_only_on_request(tmp_path):
    root, folder = davis(tmp_path)
    changed = root / "Annotations/480p/alpha/00000.png"
    trees.save(changed, trees.mask(5))
    os.utime(changed, ns=(time.time_ns(), time.time_ns()))
    with pytest.raises(DataError, match=r"was prepared from other files.*--overwrite"):
        packed("davis16", root, tmp_path / "out", shard_bytes=SMALL)
    packed("davis16", root, tmp_path / "out", shard_bytes=SMALL, overwrite=True)
    records = sources.make_source("records", root=str(folder))
    np.testing.assert_array_equal(records[0]["masks"][0], trees.mask(5, 1))


def test_two_preparations_at_a_time_are_refused(tmp_path):
    import fcntl

    root = trees.davis(tmp_path / "tree")
    home = tmp_path / "out/davis16"
    home.mkdir(parents=True)
    with (home / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another process is preparing"):
            packed("davis16", root, tmp_path / "out")
    assert packed("davis16", root, tmp_path / "out").is_dir()


def test_an_incomplete_copy_is_refused_before_anything_is_written(tmp_path):
    root = trees.davis(tmp_path / "tree")
    (root / "Annotations/480p/alpha/00001.png").unlink()
    with pytest.raises(DataError, match=r"alpha/00001.jpg has no annotation"):
        packed("davis16", root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_foreign_folders_are_refused(tmp_path):
    with pytest.raises(DataError, match="holds no prepared data set: expected"):
        sources.make_source("records", root=str(tmp_path))
    root, folder = davis(tmp_path)
    (folder / "metadata.json").write_text("{}")
    with pytest.raises(DataError, match="is no prepared data set of ours"):
        packed("davis16", root, tmp_path / "out", shard_bytes=SMALL)


# ----- the builder by itself, the command ---------------------------------------------------------


def test_the_builder_works_through_the_interface_of_tfds(tmp_path):
    import tensorflow_datasets as tfds

    root = trees.segtrack(tmp_path / "tree")
    builder = builder_class("segtrack")(data_dir=str(tmp_path / "out"))
    assert isinstance(builder, tfds.core.GeneratorBasedBuilder)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=str(root)))
    data = builder.as_data_source("full")
    assert len(data) == 6
    assert data[3]["sequence"] == b"bmx"
    assert builder.info.splits["full"].num_examples == 6
    assert set(np.unique(data[4]["mask"])) == {0, 1, 2}
    with pytest.raises(ConfigError, match="data set 'kitti' is unknown"):
        builder_class("kitti")


def test_the_command_checks_packs_and_says_where(tmp_path, capsys):
    root = trees.davis(tmp_path / "tree")
    arguments = ["data", "prepare", "--dataset", "davis16", "--root", str(root), "--split", "train",
                 "--out", str(tmp_path / "out")]  # fmt: skip
    assert main(arguments) == 2
    assert "it has 2 sequences, the official set 30" in capsys.readouterr().err
    assert main([*arguments, "--partial"]) == 0
    assert f"{tmp_path}/out/davis16/1.0.0" in capsys.readouterr().out

"""`check` and `uvos data check`: complete copies are counted, gaps are named in one sentence."""

import pytest

from tests.data_layer import dataset_trees as trees
from tests.data_layer.dataset_trees import TREES
from uvos_jax.cli.main import main
from uvos_jax.data.sources.check import check, checkable
from uvos_jax.data.splits import davis as lists
from uvos_jax.errors import ConfigError, DataError


def default_split(name):
    return next(iter(checkable()[name].SPLITS), None)


def test_every_annotated_set_can_be_checked():
    assert set(checkable()) == set(TREES)


def test_built_in_lists_have_the_official_numbers():
    assert {k: len(v) for k, v in lists.DAVIS16.items()} == {"train": 30, "val": 20}
    assert {k: len(v) for k, v in lists.DAVIS17.items()} == {"train": 60, "val": 30}
    for (dataset, split), total in lists.TOTAL_FRAMES.items():
        names = (lists.DAVIS16 if dataset == "davis16" else lists.DAVIS17)[split]
        if (dataset, split) != ("davis17", "train"):  # lengths of its new sequences are not listed
            assert sum(lists.FRAMES[n] for n in names) == total


@pytest.mark.parametrize("name", list(TREES))
def test_a_complete_copy_is_counted(name, tmp_path):
    make, sequences, frames, annotated = TREES[name]
    (found,) = check(name, make(tmp_path), split=default_split(name), partial=True, decode=True)
    assert (found.sequences, found.frames, found.annotated) == (sequences, frames, annotated)


def test_official_numbers_are_compared_unless_a_part_is_wanted(tmp_path):
    root = trees.msra10k(tmp_path)
    with pytest.raises(DataError, match=r"it has 3 images, the official set 10000 \(--partial"):
        check("msra10k", root)
    davis = trees.davis(tmp_path / "davis", names=("bear", "boat"))
    with pytest.raises(DataError, match=r"'bear' has 3 frames, officially 82 .*'boat' has 3"):
        check("davis16", davis, split="train")
    assert check("davis16", davis, split="train", partial=True)[0].frames == 6


def test_thirteen_sequences_of_segtrack_are_a_complete_copy(tmp_path):
    root = trees.segtrack(tmp_path)
    (root / "ImageSets/all.txt").unlink()
    for k in range(11):
        trees.save(root / f"JPEGImages/v{k}/0.png", trees.frame(0, 0))
        trees.save(root / f"GroundTruth/v{k}/0.png", trees.mask(0))
    assert check("segtrack", root)[0].sequences == 13


def test_several_gaps_are_listed_and_the_rest_counted(tmp_path):
    root = trees.davis(tmp_path, count=8)
    for t in range(1, 8):
        (root / f"Annotations/480p/alpha/{t:05d}.png").unlink()
    with pytest.raises(DataError) as caught:
        check("davis16", root, split="train", partial=True)
    message = str(caught.value)
    assert "frame JPEGImages/480p/alpha/00001.jpg has no annotation" in message
    assert message.endswith("; and 3 more")


def test_all_splits_are_checked_and_the_missing_one_is_named(tmp_path):
    root = trees.fbms(tmp_path)
    assert [c.split for c in check("fbms", root, partial=True)] == ["train", "test"]
    (root / "Trainingset").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"lacks the folder Trainingset.*split train; check"):
        check("fbms", root, partial=True)
    assert len(check("fbms", root, split="test", partial=True)) == 1


def test_missing_frames_and_subsets_are_named_by_folder(tmp_path):
    root = trees.davis(tmp_path / "davis")
    (root / "JPEGImages/480p").rename(root / "elsewhere")
    with pytest.raises(DataError, match=r"'alpha' has no frames in .*JPEGImages/480p/alpha"):
        check("davis16", root, split="train")
    root = trees.duts(tmp_path / "duts")
    (root / "DUTS-TE").rename(root / "elsewhere")
    with pytest.raises(DataError, match="lacks the folder DUTS-TE/DUTS-TE-Image"):
        check("duts", root, partial=True)


def test_damaged_files_are_found_by_decoding(tmp_path):
    root = trees.davis(tmp_path)
    (root / "Annotations/480p/beta/00002.png").write_bytes(b"no image")
    assert check("davis16", root, split="train", partial=True)
    with pytest.raises(DataError, match=r"beta/00002.png cannot be decoded"):
        check("davis16", root, split="train", partial=True, decode=True)


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="data set 'davis' is unknown: use one of davis16"):
        check("davis", tmp_path)
    with pytest.raises(ConfigError, match="'ecssd' has no split 'test': it has no splits"):
        check("ecssd", tmp_path, split="test")
    with pytest.raises(ConfigError, match="'ecssd' has no option 'side': it has none"):
        check("ecssd", tmp_path, side="left")


# ----- the command --------------------------------------------------------------------------------


def run(capsys, *arguments):
    code = main(["data", *map(str, arguments)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_command_counts(tmp_path, capsys):
    root = trees.davis(tmp_path)
    code, out, _ = run(
        capsys, "check", "--dataset", "davis16", "--root", root, "--split", "train", "--partial"
    )
    assert code == 0
    assert out.startswith("davis16 train: 2 sequences, 6 frames, 6 annotated (DAVIS layout, Anno")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dataset", "davis16"), "is not a davis16 folder: looked for <root>/Annotations/480p/"),
        (("--dataset", "nothing"), "data set 'nothing' is unknown"),
        (("--dataset", "davis16", "--option", "x"), "--option 'x' is not of the form KEY=VALUE"),
        (("--dataset", "davis16", "--split", "holiday"), "has no split 'holiday'"),
    ],
)
def test_the_command_gives_one_sentence_and_exits_with_two(arguments, message, tmp_path, capsys):
    code, out, err = run(capsys, "check", "--root", tmp_path, *arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err


def test_the_list_names_every_set_with_its_layout(capsys):
    code, out, _ = run(capsys, "list")
    assert code == 0
    for name in TREES:
        assert f"{name}: " in out
    assert "<root>/Testset/<sequence>/GroundTruth/*.pgm" in out

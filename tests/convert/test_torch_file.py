"""PyTorch files without PyTorch: both layouts, damage, and pickles that want to run code."""

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from uvos_jax.convert.torch_file import read_object, read_torch, state_dict
from uvos_jax.errors import CheckpointError

#: Written by torch: a state dict as zip, and one wrapped as {epoch, state_dict} with `module.`
#: names in the stream layout. They include a 0-d int64, a float16 and a non-contiguous array.
FILES = Path(__file__).resolve().parents[1] / "data" / "formats"
NAMES = ("state_zip.pth", "wrapped_legacy.pth")


@pytest.mark.parametrize("name", NAMES)
def test_files_written_by_torch_are_read_exactly(name):
    expected = dict(np.load(FILES / "torch_expected.npz"))
    arrays = read_torch(FILES / name)
    assert set(arrays) == set(expected)
    for key, array in expected.items():
        assert arrays[key].dtype == array.dtype
        assert arrays[key].shape == array.shape
        np.testing.assert_array_equal(arrays[key], array)


@pytest.mark.parametrize("name", NAMES)
def test_a_truncated_file_is_refused_wherever_it_ends(name, tmp_path):
    raw = (FILES / name).read_bytes()
    cut = tmp_path / name
    for length in range(0, len(raw), 37):
        cut.write_bytes(raw[:length])
        with pytest.raises(CheckpointError, match=r"damaged or truncated|is no PyTorch file"):
            read_torch(cut)


def test_a_flipped_byte_in_a_zip_is_noticed(tmp_path):
    raw = bytearray((FILES / NAMES[0]).read_bytes())
    with zipfile.ZipFile(FILES / NAMES[0]) as archive:
        start = archive.getinfo("state_zip/data/0").header_offset
    raw[start + 200] ^= 0xFF
    (tmp_path / "bad.pth").write_bytes(raw)
    with pytest.raises(CheckpointError, match="damaged or truncated"):
        read_torch(tmp_path / "bad.pth")


@pytest.mark.parametrize(
    "content", [b"", b"not weights at all", b"\x04\x00\x00\x00\x01\x00", b"\x89HDF\r\n\x1a\n" * 9]
)
def test_foreign_files_are_named_as_such(content, tmp_path):
    (tmp_path / "file.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match="is no PyTorch file: it begins with"):
        read_torch(tmp_path / "file.pth")


def test_other_zip_archives_are_named_as_such(tmp_path):
    with zipfile.ZipFile(tmp_path / "code.pt", "w") as archive:
        archive.writestr("code/data.pkl", b"")
        archive.writestr("code/constants.pkl", b"")
    with pytest.raises(CheckpointError, match="compiled TorchScript program"):
        read_torch(tmp_path / "code.pt")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot read weights .*none\.pth: No such file"):
        read_torch(tmp_path / "none.pth")


class Writes:
    """A pickle of this would write a file when loaded by an ordinary unpickler."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "executed")


class Evaluates:
    def __init__(self, code):
        self.code = code

    def __reduce__(self):
        return eval, (self.code,)


def as_zip(path, payload):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("root/data.pkl", payload)
        archive.writestr("root/byteorder", "little")
        archive.writestr("root/version", "3\n")
    return path


def as_stream(path, payload):
    header = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True, "type_sizes": {}}]
    parts = [pickle.dumps(x, protocol=2) for x in header]
    path.write_bytes(b"".join([*parts, payload, pickle.dumps([], protocol=2)]))
    return path


@pytest.mark.parametrize("layout", [as_zip, as_stream])
def test_code_in_a_file_is_never_executed(layout, tmp_path):
    victim = tmp_path / "victim"
    for bomb in (
        Writes(victim),
        Evaluates(f"open({str(victim)!r}, 'w').write('executed')"),
        {"state_dict": {"weight": Writes(victim)}},
    ):
        file = layout(tmp_path / "bomb.pth", pickle.dumps(bomb, protocol=2))
        with pytest.raises(CheckpointError, match="does not resolve because a weight file has no"):
            read_torch(file)
        assert not victim.exists()


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_the_refusal_names_what_was_asked_for(protocol, tmp_path):
    import os

    payload = pickle.dumps({"a": os.system}, protocol=protocol)
    with pytest.raises(CheckpointError, match=r"refers to (posix|nt)\.system"):
        read_torch(as_zip(tmp_path / "bomb.pth", payload))


def test_allowed_names_cannot_be_walked_through(tmp_path):
    # protocol 4 can ask for dotted names: collections.OrderedDict.fromkeys.__globals__ and the like
    for module, name in (("collections", "OrderedDict.fromkeys"), ("torch", "Size.__class__")):
        payload = (
            b"\x80\x04"
            + b"".join(b"\x8c" + bytes([len(s)]) + s.encode() for s in (module, name))
            + b"\x93."
        )
        with pytest.raises(CheckpointError, match="does not resolve"):
            read_torch(as_zip(tmp_path / "bomb.pth", payload))


def tensor_pickle(offset, size, stride):
    """A state dict of one float tensor over storage '0', as opcodes of protocol 2."""

    def integer(n):
        return b"J" + int(n).to_bytes(4, "little", signed=True)

    def tuple_of(values):
        return b"(" + b"".join(map(integer, values)) + b"t"

    def text(s):
        return b"X" + len(s).to_bytes(4, "little") + s.encode()

    storage = (
        b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + integer(4)
    )
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"tQ" + integer(offset)
    tensor += tuple_of(size) + tuple_of(stride) + b"\x89}tR"
    return b"\x80\x02}" + text("w") + tensor + b"s."


def tensor_file(path, offset, size, stride):
    as_zip(path, tensor_pickle(offset, size, stride))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("root/data/0", np.arange(4, dtype="<f4").tobytes())
    return path


def test_offsets_and_strides_are_honoured(tmp_path):
    arrays = read_torch(tensor_file(tmp_path / "view.pth", 1, (2, 2), (0, 2)))
    np.testing.assert_array_equal(arrays["w"], [[1, 3], [1, 3]])
    assert read_torch(tensor_file(tmp_path / "none.pth", 0, (0, 3), (3, 1)))["w"].shape == (0, 3)


@pytest.mark.parametrize(
    "offset, size, stride", [(3, (2,), (1,)), (0, (5,), (1,)), (-1, (1,), (1,)), (3, (2,), (-1,))]
)
def test_views_outside_their_storage_are_refused(offset, size, stride, tmp_path):
    with pytest.raises(CheckpointError, match="reaches outside its storage"):
        read_torch(tensor_file(tmp_path / "view.pth", offset, size, stride))


def test_numbers_and_arrays_of_numpy_beside_the_weights_are_allowed(tmp_path):
    extra = {"best": np.float64(0.75), "mean": np.arange(3.0), "name": "run", "epoch": 7}
    file = as_stream(tmp_path / "run.pth", pickle.dumps(extra, protocol=2))
    loaded = read_object(file)
    assert loaded["best"] == 0.75
    np.testing.assert_array_equal(loaded["mean"], [0, 1, 2])
    assert (loaded["name"], loaded["epoch"]) == ("run", 7)


def test_a_file_without_state_dict_says_what_it_holds():
    with pytest.raises(CheckpointError, match=r"holds no state dict \(found a dict with the keys"):
        state_dict({"epoch": 3, "args": "none"}, "run.pth")
    with pytest.raises(CheckpointError, match="found no dict"):
        state_dict([1, 2], "run.pth")


@pytest.mark.parametrize("wrapper", ["model", "state_dict", "net"])
def test_wrappers_and_common_prefixes_are_removed(wrapper):
    inner = {"module.conv.weight": np.zeros(2), "module.bn.bias": np.ones(1)}
    assert set(state_dict({"epoch": 1, wrapper: inner}, "f")) == {"conv.weight", "bn.bias"}
    mixed = {"module.conv.weight": np.zeros(2), "head.bias": np.ones(1)}
    assert set(state_dict(mixed, "f")) == set(mixed)


def test_every_storage_type_is_read_as_torch_reads_it(tmp_path):
    torch = pytest.importorskip("torch")
    integers = ("uint8", "int8", "int16", "int32", "int64", "bool")
    kinds = ("float16", "bfloat16", "float32", "float64", *integers)
    tensors = {k: (torch.arange(6) % 2).reshape(2, 3).to(getattr(torch, k)) for k in kinds}
    tensors["parameter"] = torch.nn.Parameter(torch.ones(2, 2).t())
    for legacy in (False, True):
        file = tmp_path / f"{legacy}.pth"
        torch.save(tensors, file, _use_new_zipfile_serialization=not legacy)
        arrays = read_torch(file)
        for kind in kinds:
            assert str(arrays[kind].dtype) == kind
            np.testing.assert_array_equal(arrays[kind].astype(float), [[0, 1, 0], [1, 0, 1]])
        np.testing.assert_array_equal(arrays["parameter"], 1)


def test_a_whole_network_object_is_refused_with_advice(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "net.pth")
    with pytest.raises(
        CheckpointError, match=r"torch\.nn\.modules\.linear\.Linear.*state_dict\(\)"
    ):
        read_torch(tmp_path / "net.pth")

"""Caffe, Torch7 and TensorFlow 1 files without those programs: values, damage, foreign files."""

from pathlib import Path

import numpy as np
import pytest

from uvos_jax.convert import wire
from uvos_jax.convert.caffe_file import read_caffe
from uvos_jax.convert.readers import read_official
from uvos_jax.convert.tf_file import crc32c, is_tensorflow, read_tensorflow
from uvos_jax.convert.torch7_file import modules, read_torch7, read_torch7_object
from uvos_jax.errors import CheckpointError

#: Small files written in each format, and what they hold.
FILES = Path(__file__).resolve().parents[1] / "data" / "formats"
CAFFE = ("layer100", "v1layers")


def expected(name):
    return dict(np.load(FILES / f"{name}_expected.npz"))


def same(got, wanted):
    assert set(got) == set(wanted)
    for name, array in wanted.items():
        assert got[name].dtype == array.dtype, name
        assert got[name].shape == array.shape, name
        np.testing.assert_array_equal(got[name], array)


# ----- values ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CAFFE)
def test_both_layouts_of_caffe_are_read_exactly(name):
    wanted = {}
    for key, array in expected("caffe").items():
        file, layer, index = key.split("/")
        if file == name:
            wanted[f"{layer}:{index}"] = array
    same(read_caffe(FILES / f"{name}.caffemodel"), wanted)


def test_torch7_modules_are_read_exactly():
    same(read_torch7(FILES / "net.t7"), expected("t7"))


def test_torch7_modules_come_in_running_order_with_their_class():
    found = modules(read_torch7_object(FILES / "net.t7"))
    assert [m.name for m in found] == ["nn.SpatialConvolution", "nn.SpatialBatchNormalization"]
    assert found[0].fields["kW"] == 3


@pytest.mark.parametrize("name", ["tf1_v1.ckpt", "tf1_v2.ckpt", "tf1_v2.ckpt.index",
                                  "tf1_v2.ckpt.data-00000-of-00001"])  # fmt: skip
def test_both_layouts_of_tensorflow_are_read_exactly(name):
    assert is_tensorflow(FILES / name)
    same(read_tensorflow(FILES / name), expected("tf1"))


@pytest.mark.parametrize(
    "name", ["layer100.caffemodel", "net.t7", "tf1_v1.ckpt", "tf1_v2.ckpt", "state_zip.pth"]
)
def test_the_format_is_recognised(name):
    assert len(read_official(FILES / name)) >= 3


def test_checksum_of_known_inputs():
    # the check value of the CRC-32C catalogue, and 32 zero bytes of RFC 3720
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"") == 0


@pytest.mark.parametrize("size", [63, 64, 1000, 4096 * 64 + 77, 300_000])
def test_checksum_in_columns_equals_byte_by_byte(size):
    data = np.random.default_rng(size).bytes(size)
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    assert crc32c(data) == crc ^ 0xFFFFFFFF


def test_wrong_values_fail_the_checksum(tmp_path):
    for name in ("index", "data-00000-of-00001"):
        (tmp_path / f"net.{name}").write_bytes((FILES / f"tf1_v2.ckpt.{name}").read_bytes())
    data = tmp_path / "net.data-00000-of-00001"
    raw = bytearray(data.read_bytes())
    raw[10] ^= 1
    data.write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"fail their checksum"):
        read_tensorflow(tmp_path / "net")


# ----- damage ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("layer100.caffemodel", read_caffe),
        ("v1layers.caffemodel", read_caffe),
        ("net.t7", read_torch7),
        ("tf1_v1.ckpt", read_tensorflow),
    ],
)
def test_a_truncated_file_is_refused_or_lacks_whole_layers(name, read, tmp_path):
    raw, cut = (FILES / name).read_bytes(), tmp_path / name
    whole = read(FILES / name)
    for length in range(0, len(raw), 7):
        cut.write_bytes(raw[:length])
        try:
            arrays = read(cut)
        except CheckpointError as error:
            assert "is no complete" in str(error)  # noqa: PT017
        else:  # a caffemodel that ends between two layers is one with fewer layers
            assert name.endswith(".caffemodel")
            assert set(arrays) < set(whole)


def test_a_missing_or_short_data_file_is_named(tmp_path):
    index = (FILES / "tf1_v2.ckpt.index").read_bytes()
    (tmp_path / "net.index").write_bytes(index)
    with pytest.raises(CheckpointError, match=r"cannot read weights .*net\.data-00000-of-00001"):
        read_tensorflow(tmp_path / "net")
    (tmp_path / "net.data-00000-of-00001").write_bytes(bytes(4))
    with pytest.raises(CheckpointError, match="reaches beyond its data file"):
        read_tensorflow(tmp_path / "net")


@pytest.mark.parametrize(
    ("read", "what"),
    [(read_caffe, "Caffe network"), (read_torch7, "Torch7 file"),
     (read_tensorflow, "TensorFlow checkpoint")],
)  # fmt: skip
@pytest.mark.parametrize("content", [b"", b"not weights at all", bytes(100), b"\xff" * 64])
def test_foreign_files_are_named_as_such(read, what, content, tmp_path):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"is no complete {what}|holds no tensors"):
        read(tmp_path / "file")


@pytest.mark.parametrize("read", [read_caffe, read_torch7, read_tensorflow])
def test_a_missing_file_is_named(read, tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot read weights .*none: No such file"):
        read(tmp_path / "none")


# ----- made by hand ---------------------------------------------------------------------------


def message(*parts):
    """Bytes of a message from (field, bytes) and (field, int)."""
    out = b""
    for number, value in parts:
        if isinstance(value, int):
            out += number_bytes(number << 3) + number_bytes(value)
        else:
            out += number_bytes(number << 3 | 2) + number_bytes(len(value)) + value
    return out


def number_bytes(value):
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def test_wire_fields_round_trip():
    data = message((1, 300), (15, b"abc"), (2000, 2**40))
    found = [(n, k, v if isinstance(v, int) else bytes(v)) for n, k, v in wire.fields(data)]
    assert found == [(1, 0, 300), (15, 2, b"abc"), (2000, 0, 2**40)]


def layer(name, values):
    raw = np.asarray(values, "<f4").tobytes()
    return (100, message((1, name), (7, message((7, message((1, len(values)))), (5, raw)))))


def test_double_data_and_repeated_equal_layers_are_read(tmp_path):
    blob = message((7, message((1, 2))), (8, np.asarray([1.5, -2.0]).tobytes()))
    net = message((1, b"net"), (100, message((1, b"a"), (7, blob))), layer(b"b", [1, 2]),
                  layer(b"b", [1, 2]))  # fmt: skip
    (tmp_path / "a.caffemodel").write_bytes(net)
    arrays = read_caffe(tmp_path / "a.caffemodel")
    np.testing.assert_array_equal(arrays["a:0"], np.float32([1.5, -2.0]))
    assert set(arrays) == {"a:0", "b:0"}


@pytest.mark.parametrize(
    ("net", "says"),
    [
        (message(layer(b"b", [1, 2]), layer(b"b", [1, 3])), "two layers are called 'b'"),
        (message((100, message((1, b"a"), (7, message((7, message((1, 2**50))))))),),
         "has 0 values"),
        (message((1, b"net")), "it has no layers"),
        (message((100, message((1, b"data")))), "none of its 1 layers has blobs"),
    ],
)  # fmt: skip
def test_impossible_networks_are_explained(net, says, tmp_path):
    (tmp_path / "a.caffemodel").write_bytes(net)
    with pytest.raises(CheckpointError, match=says):
        read_caffe(tmp_path / "a.caffemodel")


# ----- other readers, where they are installed ------------------------------------------------


def test_torch7_files_are_read_as_torchfile_reads_them():
    torchfile = pytest.importorskip("torchfile")
    theirs = torchfile.load(str(FILES / "net.t7")).modules
    for ours, other in zip(modules(read_torch7_object(FILES / "net.t7")), theirs, strict=False):
        assert ours.name == other.torch_typename().decode()
        for field in ("weight", "bias"):
            np.testing.assert_array_equal(ours.fields[field], other[field.encode()])


@pytest.mark.parametrize("name", ["tf1_v1.ckpt", "tf1_v2.ckpt"])
def test_checkpoints_are_read_as_tensorflow_reads_them(name):
    tensorflow = pytest.importorskip("tensorflow")
    reader = tensorflow.train.load_checkpoint(str(FILES / name))
    ours = read_tensorflow(FILES / name)
    assert set(ours) == set(reader.get_variable_to_shape_map())
    for variable, array in ours.items():
        np.testing.assert_array_equal(array, reader.get_tensor(variable))

"""Writes weight files in the formats of the originals, without their programs."""

import struct
import zipfile
import zlib

import numpy as np

from uvos_jax.convert.tf_file import crc32c


def varint(n):
    """A number in the wire format of protocol buffers."""
    out = b""
    while n >= 128:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def field(number, content):
    """A number, or a length-delimited field."""
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


# ----- Caffe ----------------------------------------------------------------------------------


def write_caffe(path, arrays):
    """`layer:index` to array; blobs between those given hold one zero."""
    layers = {}
    for name, x in arrays.items():
        layer, _, index = name.rpartition(":")
        layers.setdefault(layer, {})[int(index)] = x

    def blob(x):
        dims = b"".join(varint(n) for n in x.shape)
        return field(7, field(1, dims)) + field(5, np.ascontiguousarray(x, "<f4").tobytes())

    with open(path, "wb") as file:
        file.write(field(1, b"net"))
        for layer, found in layers.items():
            whole = [found.get(i, np.zeros(1)) for i in range(max(found) + 1)]
            blobs = b"".join(field(7, blob(x)) for x in whole)
            file.write(field(100, field(1, layer.encode()) + field(2, b"Layer") + blobs))


# ----- PyTorch --------------------------------------------------------------------------------


def write_torch(path, arrays, prefix=""):
    """A state dict of float32 arrays in the zip layout."""

    def text(s):
        return b"X" + struct.pack("<I", len(s.encode())) + s.encode()

    def integers(values):
        return b"(" + b"".join(b"J" + struct.pack("<i", v) for v in values) + b"t"

    def tensor(key, x):
        strides = [int(np.prod(x.shape[i + 1 :])) for i in range(x.ndim)]
        storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu")
        storage += b"J" + struct.pack("<i", x.size) + b"tQ"
        tail = integers(x.shape) + integers(strides) + b"\x89ccollections\nOrderedDict\n)RtR"
        return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + tail

    pairs = b"".join(
        text(prefix + n) + tensor(str(i), x) for i, (n, x) in enumerate(arrays.items())
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/data.pkl", b"\x80\x02ccollections\nOrderedDict\n)R(" + pairs + b"u.")
        archive.writestr("net/byteorder", "little")
        for i, x in enumerate(arrays.values()):
            archive.writestr(f"net/data/{i}", np.ascontiguousarray(x, "<f4").tobytes())


# ----- Torch7 ---------------------------------------------------------------------------------


def write_torch7(path, layers):
    """An `nn.Sequential` of (class name, {field: array}) layers."""
    index = iter(range(1, 10**6))

    def text(s):
        return struct.pack("<i", len(s)) + s.encode()

    def string(s):
        return struct.pack("<i", 2) + text(s)

    def torch(name, content):
        return struct.pack("<ii", 4, next(index)) + text("V 1") + text(name) + content

    def table(pairs):
        head = struct.pack("<iii", 3, next(index), len(pairs))
        return head + b"".join(k + v for k, v in pairs)

    def tensor(x):
        strides = [int(np.prod(x.shape[i + 1 :])) for i in range(x.ndim)]
        storage = struct.pack("<q", x.size) + np.ascontiguousarray(x, "<f4").tobytes()
        numbers = struct.pack(f"<{2 * x.ndim + 1}q", *x.shape, *strides, 1)
        inner = torch("torch.FloatStorage", storage)
        return torch("torch.FloatTensor", struct.pack("<i", x.ndim) + numbers + inner)

    made = []
    for i, (name, fields) in enumerate(layers, start=1):
        entries = [(string(key), tensor(x)) for key, x in fields.items()]
        made.append((struct.pack("<id", 1, i), torch(f"nn.{name}", table(entries))))
    content = torch("nn.Sequential", table([(string("modules"), table(made))]))
    path.write_bytes(content)


# ----- TensorFlow 1 ---------------------------------------------------------------------------


def block(entries):
    """Body of a table's block, and the block as stored."""
    body = b"".join(b"\x00" + varint(len(k)) + varint(len(v)) + k + v for k, v in sorted(entries))
    body += struct.pack("<II", 0, 1)
    return body, body + b"\x00" + struct.pack("<I", zlib.crc32(body))  # not looked at


def write_tensorflow(prefix, arrays):
    """A V2 checkpoint: `prefix.index` and one data file."""
    entries, data = [(b"", field(1, 1))], b""
    for name, x in arrays.items():
        raw = np.ascontiguousarray(x, "<f4").tobytes()
        crc = crc32c(raw)
        masked = (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
        shape = b"".join(field(2, field(1, n)) for n in x.shape)
        value = field(1, 1) + field(2, shape) + field(4, len(data)) + field(5, len(raw))
        entries.append((name.encode(), value + b"\x35" + struct.pack("<I", masked)))
        data += raw
    body, whole = block(entries)
    index_body, index = block([(b"\xff", varint(0) + varint(len(body)))])
    footer = varint(0) * 2 + varint(len(whole)) + varint(len(index_body))
    footer = footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)
    prefix.with_name(prefix.name + ".data-00000-of-00001").write_bytes(data)
    prefix.with_name(prefix.name + ".index").write_bytes(whole + index + footer)

"""Random and mutated weight files: read or refused, quickly, within the stated memory, no code."""

import contextlib
import io
import os
import pickle
import random
import struct
import sys
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.convert.test_torch_file import FILES, as_stream, as_zip, tensor_pickle
from tests.convert.writers import block, field, varint
from uvos_jax.convert.bounds import COMPRESSED, CONSTANT, FACTOR
from uvos_jax.convert.caffe_file import read_caffe
from uvos_jax.convert.tf_file import read_tensorflow
from uvos_jax.convert.torch7_file import read_torch7
from uvos_jax.convert.torch_file import read_torch
from uvos_jax.convert.variables import load_variables, save_variables
from uvos_jax.errors import CheckpointError

#: Seconds one file of a few kilobytes may take, on a busy machine.
PATIENCE = 20
READERS = {
    "state_zip.pth": read_torch,
    "wrapped_legacy.pth": read_torch,
    "layer100.caffemodel": read_caffe,
    "v1layers.caffemodel": read_caffe,
    "net.t7": read_torch7,
    "tf1_v1.ckpt": read_tensorflow,
    "tf1_v2.ckpt.index": read_tensorflow,
    "weights.npz": load_variables,
    "weights.safetensors": load_variables,
}
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.remove", "os.rename", "subprocess.Popen",
             "socket.connect", "shutil.rmtree", "exec")  # fmt: skip
_watched: list[str] = []
_watching = [False]


def _hook(event, arguments):
    if _watching[0] and (event in FORBIDDEN or (event == "open" and "w" in str(arguments[1]))):
        _watched.append(event)


sys.addaudithook(_hook)


@contextlib.contextmanager
def no_code_runs():
    _watched.clear()
    _watching[0] = True
    try:
        yield
    finally:
        _watching[0] = False
    assert not _watched


def read_or_refuse(read, path):
    """Reads a file under watch: whether it was read."""
    size = sum(p.stat().st_size for p in path.parent.iterdir())
    factor = COMPRESSED if path.suffix == ".npz" else FACTOR
    tracemalloc.start()
    started = time.monotonic()
    try:
        sentence = ""
        with no_code_runs():
            read(path)
    except CheckpointError as error:
        sentence = str(error)
        return False
    else:
        return True
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(sentence) < 2000
        assert peak <= factor * size + CONSTANT
        assert time.monotonic() - started < PATIENCE


class Originals(dict):
    """A dict that a failing example does not print."""

    def __repr__(self):
        return f"{len(self)} files"


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Content of a good file of each format; each was read once, so that nothing is imported."""
    folder = tmp_path_factory.mktemp("originals")
    arrays = {"params": {"conv": {"kernel": np.arange(24.0, dtype=np.float32).reshape(2, 3, 4)}}}
    for name in ("weights.npz", "weights.safetensors"):
        save_variables(arrays, folder / name, config={"model": {"name": "cosnet"}})
    found = Originals()
    for name, read in READERS.items():
        path = folder / name if (folder / name).exists() else FILES / name
        found[name] = path.read_bytes()
        read(path)
    return found


def mutate(raw, seed):
    """The bytes with a few of them changed, cut out, repeated or put in."""
    random_ = random.Random(seed)
    out = bytearray(raw)
    for _ in range(random_.choice((1, 1, 2, 4, 16))):
        at = random_.randrange(len(out) + 1)
        length = random_.choice((1, 2, 4, 8, 64))
        kind = random_.randrange(5)
        if kind == 0:
            out[at : at + length] = bytes(
                random_.choice((0, 1, 127, 128, 255)) for _ in range(length)
            )
        elif kind == 1:
            del out[at : at + length]
        elif kind == 2:
            out[at:at] = out[at : at + length] * random_.choice((1, 2, 50))
        elif kind == 3:
            other = random_.randrange(len(out) + 1)
            out[at : at + length] = out[other : other + length]
        else:
            big = random_.choice((2**31 - 1, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1, 2**16))
            out[at : at + 8] = struct.pack("<Q", big)[: random_.choice((4, 8))]
    return bytes(out)


def write(folder, name, content):
    if name == "tf1_v2.ckpt.index":
        data = "tf1_v2.ckpt.data-00000-of-00001"
        (folder / data).write_bytes((FILES / data).read_bytes())
    (folder / name).write_bytes(content)
    return folder / name


COMMON = settings(
    max_examples=int(os.environ.get("UVOS_FUZZ_EXAMPLES", "150")),
    deadline=None, database=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip


@pytest.mark.parametrize("name", READERS)
@COMMON
@given(seed=st.integers(0, 2**32))
def test_mutated_files_are_read_or_refused(name, originals, tmp_path, seed):
    read_or_refuse(READERS[name], write(tmp_path, name, mutate(originals[name], seed)))


@pytest.mark.parametrize("name", READERS)
@COMMON
@given(content=st.binary(max_size=400), keep=st.integers(0, 16))
def test_random_files_are_read_or_refused(name, originals, tmp_path, content, keep):
    start = originals[name][:keep]  # as much of a signature as makes a reader go on
    read_or_refuse(READERS[name], write(tmp_path, name, start + content))


@pytest.mark.parametrize("layout", [as_zip, as_stream])
@COMMON
@given(seed=st.integers(0, 2**32))
def test_mutated_pickles_are_read_or_refused(layout, tmp_path, seed):
    """Inside a sound archive, so that no checksum keeps the mutation from the pickle machine."""
    good = tensor_pickle(0, (2, 2), (2, 1))
    read_or_refuse(read_torch, layout(tmp_path / "net.pth", mutate(good, seed)))


# ----- files made to hurt ---------------------------------------------------------------------


def refused(path, read=read_torch):
    assert not read_or_refuse(read, path)


def test_a_huge_memo_is_not_allocated(tmp_path):
    body = b"\x80\x02}r\xff\xff\xff\x7f."  # LONG_BINPUT 2^31 - 1
    file = as_zip(tmp_path / "memo.pth", body)
    assert not read_or_refuse(read_torch, file)  # an empty dict: no state dict


def test_shared_containers_are_not_copied_for_every_use(tmp_path):
    value = [np.zeros(3)]
    for _ in range(60):
        value = [value, value]
    refused(as_zip(tmp_path / "laughs.pth", pickle.dumps({"a": value}, protocol=2)))


def test_a_container_that_holds_itself_is_refused(tmp_path):
    value = []
    value.append(value)
    refused(as_zip(tmp_path / "loop.pth", pickle.dumps({"a": value}, protocol=2)))


@pytest.mark.parametrize("through", ["dict", "pairs"])
def test_keys_that_take_years_to_hash_are_refused(through, tmp_path):
    body = b"\x80\x02)q\x00"
    for depth in range(100):
        body += b"h" + bytes([depth]) + b"h" + bytes([depth]) + b"\x86q" + bytes([depth + 1])
    if through == "dict":
        body = b"\x80\x02}" + body[2:] + b"K\x01s."
    else:
        body += b"0ccollections\nOrderedDict\n](h\x64K\x01\x86t\x85R."
        body = body.replace(b"](h\x64K\x01\x86t", b"]h\x64K\x01\x86a")
    refused(as_zip(tmp_path / "hash.pth", body))


def test_text_that_is_encoded_again_and_again_is_bounded(tmp_path):
    text = b"X" + struct.pack("<I", 10**6) + b"a" * 10**6
    name = b"X\x06\x00\x00\x00latin1"
    body = b"\x80\x02](" + text + b"q\x000" + name + b"q\x010c_codecs\nencode\nq\x020"
    body += b"h\x02h\x00h\x01\x86R" * 100_000 + b"e."
    refused(as_zip(tmp_path / "text.pth", body))


def test_a_zip_that_unpacks_to_far_more_is_refused(tmp_path):
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("root/data.pkl", tensor_pickle(0, (4,), (1,)))
        archive.writestr("root/data/0", bytes(200 * 2**20))
    refused(path)


def test_views_that_repeat_their_storage_without_end_are_refused(tmp_path):
    path = as_zip(tmp_path / "wide.pth", tensor_pickle(0, (2**30, 2), (0, 1)))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("root/data/0", np.arange(4, dtype="<f4").tobytes())
    refused(path)


def test_arrays_larger_than_their_file_are_refused(tmp_path):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "<f4", "fortran_order": False, "shape": (2**40,)}
    )
    with zipfile.ZipFile(tmp_path / "net.npz", "w") as archive:
        archive.writestr("params/w.npy", buffer.getvalue() + bytes(64))
    refused(tmp_path / "net.npz", load_variables)


def test_a_table_whose_blocks_overlap_is_refused(tmp_path):
    body, data = block([(b"%06d" % i, b"") for i in range(20_000)])
    handle = varint(0) + varint(len(body))
    body, index = block([(b"%06d" % i, handle) for i in range(20_000)])
    footer = bytes(2) + varint(len(data)) + varint(len(body))
    footer = footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)
    (tmp_path / "net.ckpt").write_bytes(data + index + footer)
    refused(tmp_path / "net.ckpt", read_tensorflow)


def test_long_names_are_not_joined_without_end(tmp_path):
    name = b"n" * 100_000

    layer = field(1, name) + field(7, field(5, b"")) * 20_000
    (tmp_path / "net.caffemodel").write_bytes(field(100, layer))
    refused(tmp_path / "net.caffemodel", read_caffe)


def test_the_watch_sees_code_that_runs(tmp_path):
    """The test's own instruments: an ordinary unpickler does what ours must not."""
    body = pickle.dumps({"a": 1}, protocol=2)[:-1] + b"cbuiltins\nexec\nX\x01\x00\x00\x001\x85R."
    with pytest.raises(AssertionError), no_code_runs():
        pickle.loads(body)
    refused(as_zip(Path(tmp_path) / "exec.pth", body))

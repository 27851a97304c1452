"""`uvos convert` on a file of the authors' format for every system: back to the same variables."""

import jax
import numpy as np
import pytest

from tests.convert.writers import write_caffe, write_tensorflow, write_torch, write_torch7
from uvos_jax import config as configs
from uvos_jax.cli.main import main
from uvos_jax.convert import load_variables
from uvos_jax.convert.official import to_official
from uvos_jax.convert.variables import flatten, unflatten
from uvos_jax.types import Variables


def caffe(folder, arrays):
    write_caffe(folder / "net.caffemodel", arrays)
    return [folder / "net.caffemodel"]


def torch(folder, arrays):
    write_torch(folder / "net.pth", arrays, prefix="module.")
    return [folder / "net.pth"]


def tensorflow(folder, arrays):
    write_tensorflow(folder / "my-model-1000", arrays | {"beta1_power": np.ones(1)})
    return [folder / "my-model-1000"]


def torch7(folder, arrays):
    layers = {}
    for name, x in arrays.items():
        kind, number, field = name.split(".")
        layers.setdefault((kind, int(number)), {})[field] = x
    kinds = ("SpatialConvolution", "SpatialBatchNormalization")
    order = sorted(layers, key=lambda key: (key[1], kinds.index(key[0])))
    write_torch7(folder / "model.dat", [(kind, layers[kind, n]) for kind, n in order])
    return [folder / "model.dat"]


def by_part(write, separator):
    """Several files, one for each first part of the names."""

    def write_all(folder, arrays):
        files = []
        for part in dict.fromkeys(name.partition(separator)[0] for name in arrays):
            (folder / part).mkdir()
            start = part + separator
            own = {n.removeprefix(start): x for n, x in arrays.items() if n.startswith(start)}
            files += write(folder / part, own)
        return files

    return write_all


#: System and configuration -> how its authors stored weights.
FORMATS = {
    "pdb_convlstm:tiny": caffe,
    "ags:tiny": caffe,
    "segflow:tiny": caffe,
    "fusionseg:tiny": by_part(caffe, "/"),
    "cosnet:tiny": torch,
    "agnn:tiny": torch,
    "f2net:tiny": torch,
    "matnet:tiny": by_part(torch, "."),
    "mpnet:tiny": torch7,
    "teacher_student:tiny": by_part(tensorflow, "/"),
}

#: A head of ours for training the spatial part alone, which the official network lacks.
ABSENT = {"pdb_convlstm:tiny": ("params/spatial_head/kernel", "params/spatial_head/bias")}


def numbered(config):
    """Variables of a system whose every value is another."""
    shapes = dict(flatten(jax.eval_shape(configs.build(config).init, jax.random.key(0))))
    rng = np.random.default_rng(3)
    return {name: rng.uniform(0.5, 1.5, x.shape).astype(np.float32) for name, x in shapes.items()}


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_of_the_official_format_gives_the_variables_back(name, tmp_path, capsys):
    config = configs.load_config(name)
    wanted = numbered(config)
    for path in ABSENT.get(name, ()):
        wanted[path][:] = 0
    arrays = to_official(config.model.name, Variables(unflatten(wanted)), config)
    files = FORMATS[name](tmp_path, arrays)
    out = tmp_path / "ours.npz"
    command = ["convert", config.model.name, *map(str, files), "--config", name, "--out", str(out)]
    assert main(command) == 0
    assert f"{config.model.name}: " in capsys.readouterr().out
    loaded = dict(flatten(load_variables(out)))
    assert set(loaded) == set(wanted)
    for path, x in wanted.items():
        np.testing.assert_allclose(loaded[path], x, rtol=1e-6, atol=1e-6, err_msg=path)

"""Official DLVS weights: `static_vgg.h5` and `dynamic_vgg.h5`, and VGG-16 as Keras publishes it.

Keras files hold a group per layer with a `kernel` (kh, kw, in, out), the layout of ours, and a
`bias`. Both files use the same layer names, except that the first layer of the dynamic network is
`block1_conv1_new`; by it the files are told apart, and names become `static/block1_conv1/kernel`,
`dynamic/block1_conv1_new/kernel`, .... The dynamic network's input channels are B, G, R of frame t,
B, G, R of frame t+1 and the static map, as ours.

    uvos convert dlvs static_vgg.h5 dynamic_vgg.h5 --out dlvs.npz
    uvos convert dlvs static_vgg.h5 --part static --out static.npz
    uvos convert dlvs vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5 --part vgg --out vgg.npz
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from uvos_jax.convert.readers import Source, read_official
from uvos_jax.convert.table import Entry, Layout, NameTable, joined
from uvos_jax.errors import CheckpointError, UnsupportedError

#: What tells the file of the dynamic network.
DYNAMIC_LAYER = "block1_conv1_new"
#: First bytes of an HDF5 file.
SIGNATURE = b"\x89HDF\r\n\x1a\n"


def load(source: Source) -> dict[str, np.ndarray]:
    """Arrays by network, layer and kind: `static/block1_conv1/kernel`.

    Raises:
      CheckpointError: a file is missing or not what it should be, or two are of the same network.
    """
    if isinstance(source, Mapping):
        return read_official(source)
    paths = [source] if isinstance(source, (str, os.PathLike)) else list(source)
    merged: dict[str, np.ndarray] = {}
    for path in map(Path, paths):
        layers = read_keras(path) if is_hdf5(path) else read_official(path)
        if not any(name.startswith(("static/", "dynamic/")) for name in layers):
            network = "dynamic" if f"{DYNAMIC_LAYER}/kernel" in layers else "static"
            layers = {f"{network}/{name}": array for name, array in layers.items()}
        shared = merged.keys() & layers.keys()
        if shared:
            raise CheckpointError(
                f"{path} holds {min(shared)}, and so does another of the given files; pass one "
                "file of the static and one of the dynamic network"
            )
        merged.update(layers)
    return merged


def is_hdf5(path: Path) -> bool:
    """Whether a file exists and begins as HDF5 does."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(SIGNATURE)) == SIGNATURE


def read_keras(path: Path) -> dict[str, np.ndarray]:
    """`layer/kernel` and `layer/bias` of a Keras 1 or 2 weight file.

    Keras names the arrays of a layer `layer/kernel:0` or `layer_W_1:0`, by version; here those of
    rank 4 are kernels and those of rank 1 biases.

    Raises:
      UnsupportedError: h5py is not installed.
      CheckpointError: the file is damaged, or a layer holds other arrays.
    """
    try:
        import h5py
    except ImportError:
        raise UnsupportedError(
            f"{path} is a Keras file, which needs h5py to be read: install it with "
            "`pip install h5py`"
        ) from None
    arrays: dict[str, np.ndarray] = {}
    try:
        with h5py.File(path, "r") as file:
            for layer, group in file.get("model_weights", file).items():
                found: list[np.ndarray] = []
                visit = getattr(group, "visititems", None)
                if visit is None:
                    continue
                visit(lambda _, x, f=found: f.append(x[()]) if hasattr(x, "shape") else None)
                for array in found:
                    kind = {4: "kernel", 1: "bias"}.get(array.ndim, f"rank{array.ndim}")
                    name = f"{layer}/{kind}"
                    if name in arrays:
                        raise CheckpointError(
                            f"{path}: layer {layer} holds two arrays of shapes "
                            f"{arrays[name].shape} and {array.shape}; expected one kernel and one "
                            "bias"
                        )
                    arrays[name] = np.asarray(array)
    except (OSError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"{path} cannot be read as a Keras file: {error}") from error
    return arrays


# ----- tables ---------------------------------------------------------------------------------


def _layer(name: str, path: str) -> NameTable:
    return NameTable(
        tuple(Entry((f"{name}/{kind}",), (f"params/{path}/{kind}",)) for kind in ("kernel", "bias"))
    )


def backbone(counts: Sequence[int], first: str = "block1_conv1") -> NameTable:
    """`block1_conv1` ... `block5_conv3` of Keras' VGG-16."""
    tables = []
    for block, count in enumerate(counts, start=1):
        for i in range(1, count + 1):
            name = first if (block, i) == (1, 1) else f"block{block}_conv{i}"
            tables.append(_layer(name, f"conv{block}_{i}"))
    return joined(tables)


def network_table(config: Any, network: str) -> NameTable:
    """Names of the `static` or the `dynamic` file, behind the network's name.

    Raises:
      UnsupportedError: the configuration has parts that the release lacks.
    """
    if config.head != "side":
        raise UnsupportedError(
            f"official DLVS weights do not fit model.head={config.head!r}: the release has 'side'; "
            "convert with the configuration dlvs:full"
        )
    dynamic = network == "dynamic"
    tables = [
        backbone(config.counts, DYNAMIC_LAYER if dynamic else "block1_conv1").renamed(ours="vgg")
    ]
    # the underscore is the release's: sal_conv_5, but sal_conv4 and sal_conv3
    names = ("sal_conv_5", "conv_4_out", "sal_conv4", "conv_3_out", "sal_conv3")
    tables += [_layer(name, f"head/{name}") for name in names]
    return joined(tables).renamed(f"{network}/", "motion" if dynamic else "static")


def static_table(config: Any) -> NameTable:
    """Names of `static_vgg.h5`."""
    return network_table(config, "static")


def dynamic_table(config: Any) -> NameTable:
    """Names of `dynamic_vgg.h5`.

    Raises:
      UnsupportedError: the configuration's dynamic network sees other channels.
    """
    if config.static_only or not config.use_static_prior:
        raise UnsupportedError(
            "official weights of the dynamic network need the static map as an input: set "
            "model.static_only=False and model.use_static_prior=True (configuration dlvs:full)"
        )
    return network_table(config, "dynamic")


def table(config: Any) -> NameTable:
    """Names of both files and our paths for a DLVS with the given `model` section."""
    if config.static_only:
        return static_table(config)
    return static_table(config) + dynamic_table(config)


def vgg_table(config: Any) -> NameTable:
    """ImageNet's VGG-16 for both networks, from which training starts.

    Both frames get half of the first kernel, so that two equal frames look like one; the static
    map gets zeros.
    """
    if config.static_only:
        return backbone(config.counts).renamed("static/", "static/vgg")
    extra = 1 if config.use_static_prior else 0

    def doubled(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        zeros = np.zeros((*kernel.shape[:2], extra, kernel.shape[3]), kernel.dtype)
        return kernel, np.concatenate([kernel / 2, kernel / 2, zeros], axis=2)

    twice = Layout("for both networks", lambda x: (x, x), lambda static, _: static)
    pairs = Layout("for one frame and for two", doubled, lambda static, _: static)
    entries = []
    for entry in backbone(config.counts).entries:
        (name,), (path,) = entry.names, entry.paths
        path = path.removeprefix("params/")
        first = path == "conv1_1/kernel"
        paths = (f"params/static/vgg/{path}", f"params/motion/vgg/{path}")
        entries.append(Entry((f"static/{name}",), paths, pairs if first else twice))
    return NameTable(tuple(entries))


PARTS = {"static": static_table, "dynamic": dynamic_table, "vgg": vgg_table}

"""Official SegFlow weights: `SegFlow.caffemodel`.

Blobs of the segmentation trunk, of FlowNetS, of both decoders with their fixed enlarging layers, of
the final scaling of flow, and of the two layers that subtract the flow branch's mean colours. Files
saved from nets without those last three layers are complete, too: they then hold the constants the
release starts from.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from uvos_jax.convert.caffe_names import conv, resnet
from uvos_jax.convert.flownets import flownets_caffe
from uvos_jax.convert.readers import Source, read_official
from uvos_jax.convert.table import TRANSPOSED_CONV, Entry, Layout, NameTable, joined

#: Official layers of a decoder, coarse to fine, and our names.
SCORES = {"score_res5_con": "score5", "score_res4_con": "score4", "score_res3_con": "score3"}
ENLARGERS = {"upscore2": "up5", "upscore_res4": "up4", "upscore8": "up3"}
MEANS = {"img0s_aug": "first_mean", "img1s_aug": "second_mean"}
COLOR = Layout("1311 to 3", lambda x: x.reshape(3), lambda x: x.reshape(1, 3, 1, 1))
COUNT = Layout("1111 to scalar", lambda x: x.reshape(()), lambda x: x.reshape(1, 1, 1, 1))
IGNORED = ((r"^img[01]s_aug:1$", "mean per pixel, which the layer does not use"),)


def load(source: Source) -> dict[str, np.ndarray]:
    """Official arrays by name; layers of constants that a file lacks as a whole are filled in."""
    arrays = read_official(source)
    for name in MEANS:
        if not any(key.startswith(f"{name}:") for key in arrays):
            arrays[f"{name}:0"] = np.zeros((1, 1, 1, 1), np.float32)
            arrays[f"{name}:2"] = np.zeros((1, 3, 1, 1), np.float32)
    if not any(key.startswith("Convolution6:") for key in arrays):
        diagonal = np.diag([854 / 896, 480 / 512]).astype(np.float32)
        arrays["Convolution6:0"] = diagonal.reshape(2, 2, 1, 1)
        arrays["Convolution6:1"] = np.zeros(2, np.float32)
    return arrays


def table(config: Any) -> NameTable:
    """Names of the release and our paths."""
    tables = [
        resnet(config.block_counts).renamed(ours="trunk"),
        flownets_caffe("conv1_flowS").renamed(ours="flow_net"),
        conv("Convolution6", "flow_scale", bias=True),
        NameTable(
            tuple(Entry((f"scale_res{n}:0",), (f"params/gain{n}",)) for n in (4, 3)), IGNORED
        ),
    ]
    for decoder, suffix in (("segmentation", ""), ("refinement", "_flow")):
        for name, ours in SCORES.items():
            tables.append(conv(f"{name}{suffix}", f"{decoder}/{ours}", bias=True))
        tables.append(
            NameTable(
                tuple(
                    Entry(
                        (f"{name}{suffix}:0",),
                        (f"params/{decoder}/{ours}/kernel",),
                        TRANSPOSED_CONV,
                    )
                    for name, ours in ENLARGERS.items()
                )
            )
        )
    for name, ours in MEANS.items():
        count = Entry((f"{name}:0",), (f"batch_stats/{ours}/count",), COUNT)
        mean = Entry((f"{name}:2",), (f"batch_stats/{ours}/mean",), COLOR)
        tables.append(NameTable((count, mean)))
    return joined(tables)

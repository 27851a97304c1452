"""Parts of FGRNE that have public weights; there are none of the whole system.

- `dss`: `dss_model_released.caffemodel`, the host. Its bilinear deconvolutions are constants.
- `flow`: FlowNet2-S of flownet2-pytorch.

Both parts are for `model.init_from` with `model.init_strict=False`. Of the six inputs of DSS's
fusion the order is assumed to be that of the sides 1 to 6.
"""

from __future__ import annotations

from typing import Any

from uvos_jax.convert import flownets
from uvos_jax.convert.caffe_names import conv
from uvos_jax.convert.table import NameTable, joined
from uvos_jax.errors import UnsupportedError

#: DSS's fixed upsampling layers.
FIXED = ((r"^upsample[^:]*:\d+$", "bilinear deconvolution, computed here"),)
FLOWNETS_WIDTHS = (64, 128, 256, 512, 512, 1024)


def table(config: Any) -> NameTable:
    """Refuses: nothing of the whole system was published."""
    raise UnsupportedError(
        "no official weights of FGRNE are published; convert its parts with --part dss or "
        "--part flow, and start training from them (model.init_from)"
    )


def dss(config: Any) -> NameTable:
    """`conv1_1:0` ... `conv3-dsn6:1`, `conv4-dsn1:0` ..., `new-score-weighting:0` of DSS.

    Raises:
      UnsupportedError: the configuration's host is not DSS with all six sides.
    """
    if config.host != "dss" or tuple(config.sides) != (1, 2, 3, 4, 5, 6):
        raise UnsupportedError(
            f"DSS weights do not fit model.host={config.host!r} with model.sides="
            f"{tuple(config.sides)}: convert with the configuration fgrne:full"
        )
    tables = []
    for block, count in enumerate(config.counts, start=1):
        for i in range(1, count + 1):
            tables.append(conv(f"conv{block}_{i}", f"vgg/conv{block}_{i}", bias=True))
    for side in config.sides:
        for i in (1, 2, 3):
            path = f"regression/dsn{side}/conv{i}"
            tables.append(conv(f"conv{i}-dsn{side}", path, bias=True))
        if side <= 4:
            tables.append(conv(f"conv4-dsn{side}", f"regression/join{side}", bias=True))
    tables.append(conv("new-score-weighting", "regression/fuse", bias=True))
    return joined([*tables, NameTable((), FIXED)])


def _check_flow(config: Any) -> None:
    if tuple(config.flow_widths) != FLOWNETS_WIDTHS or config.flow_source != "network":
        raise UnsupportedError(
            f"FlowNetS weights do not fit model.flow_widths={tuple(config.flow_widths)} with "
            f"model.flow_source={config.flow_source!r}: convert with the configuration fgrne:full"
        )


def flow(config: Any) -> NameTable:
    """FlowNet2-S as flownet2-pytorch publishes it."""
    _check_flow(config)
    return flownets.flownets(decoder_bias=True).renamed(ours="flow")


PARTS = {"dss": dss, "flow": flow}

"""Official weights to ours, and weights on disk.

    variables = convert("cosnet", "co_attention_davis_43.pth")
    save_variables(variables, "cosnet.npz")

A system brings a module `uvos_jax.convert.<id>` with `table(config) -> NameTable`, where `config`
is the `model` section its system was built from. Optional there: `load(source) -> dict` for files
that the general readers do not cover, `CONFIG`, the configuration official weights belong to if it
is not the `full` one, and `PARTS`, a mapping from a name to a `table` function, for
official files that hold only a part of the network.
"""

from uvos_jax.convert.official import convert, convert_with_report
from uvos_jax.convert.table import Entry, Layout, NameTable, Report
from uvos_jax.convert.variables import load_variables, merge_strict, save_variables

__all__ = [
    "Entry",
    "Layout",
    "NameTable",
    "Report",
    "convert",
    "convert_with_report",
    "load_variables",
    "merge_strict",
    "save_variables",
]

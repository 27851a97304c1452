"""Weights and whole predictors in forms that do without this library.

    to_numpy(variables, "cosnet.npz")                      # plain arrays, metadata inside
    to_safetensors(variables, "cosnet.safetensors")
    to_stablehlo(system, variables, "cosnet.stablehlo")    # weights and compiled-anywhere program

numpy alone reads the first:

    import json, numpy as np
    with np.load("cosnet.npz") as file:
        about = json.loads(str(file["metadata"]))          # system, config, spec (preprocessing)
        params = {name: file[name] for name in file.files if name != "metadata"}
    if about.get("stored_as"):                             # written with storage_dtype="float16"
        params = {name: x.astype("float32") for name, x in params.items()}
    params["params/encoder/resnet/conv1/kernel"].shape     # (7, 7, 3, 64): height, width, in, out
"""

from uvos_jax.export.arrays import to_numpy, to_safetensors
from uvos_jax.export.stablehlo import Exported, load_stablehlo, to_stablehlo

__all__ = ["Exported", "load_stablehlo", "to_numpy", "to_safetensors", "to_stablehlo"]

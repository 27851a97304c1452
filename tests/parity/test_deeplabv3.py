"""torchvision's DeepLabv3 against its own outputs (torchvision 0.29.2, float32, eval mode).

Weights by `rule.py` through the converter's name table; the input is standard normal. Stored are
some channels of each stage (`CHANNELS`: every n-th) and of the upsampled logits.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity.rule import official_arrays, relative_difference, shapes_of
from uvos_jax.convert.backbones import torchvision_deeplabv3
from uvos_jax.convert.variables import flatten, unflatten
from uvos_jax.modules.backbones.deeplab import DeepLabV3
from uvos_jax.ops.resize import resize_bilinear

DATA = Path(__file__).resolve().parents[1] / "data"
SIZE = (65, 97)
CHANNELS = {
    "backbone_maxpool": 16,
    "backbone_layer1": 64,
    "backbone_layer2": 64,
    "backbone_layer3": 128,
    "backbone_layer4": 256,
    "classifier_0_convs_1": 32,
    "classifier_0_convs_4": 32,
    "classifier_0": 32,
    "classifier_3": 32,
    "classifier_4": 1,
    "out": 4,
    "aux": 3,
}


@pytest.fixture(scope="module", params=[50, pytest.param(101, marks=pytest.mark.slow)])
def computed_and_reference(request):
    depth = request.param
    net, table = DeepLabV3(depth=depth), torchvision_deeplabv3(depth)
    x = np.random.default_rng(7).standard_normal((2, 3, *SIZE)).astype(np.float32)
    x = jnp.asarray(x.transpose(0, 2, 3, 1))
    arrays = official_arrays(shapes_of(table, net, x))
    variables, report = table.to_ours(arrays)
    assert not report.missing
    assert not report.unknown

    def kept(module, _):
        return module.name in ("convs_1", "convs_4")

    @jax.jit
    def run(variables, x):
        outputs, extra = net.apply(
            variables, x, capture_intermediates=kept, mutable=["intermediates"]
        )
        branches = extra["intermediates"]["classifier_0"]
        return outputs, {k: branches[k]["__call__"][0] for k in ("convs_1", "convs_4")}

    with jax.default_matmul_precision("highest"):
        outputs, branches = run(unflatten(variables), x)
        full = resize_bilinear(outputs["logits"], SIZE)[:, ::2, ::2]
        aux = resize_bilinear(outputs["aux_logits"], SIZE)[:, ::4, ::4]
    # the pooled branch is 1x1 here; the reference stores it broadcast
    pooled = jnp.broadcast_to(branches["convs_4"], branches["convs_1"].shape)
    names = ("maxpool", "layer1", "layer2", "layer3", "layer4")
    computed = {f"backbone_{n}": x for n, x in zip(names, outputs["stages"], strict=True)}
    computed |= {
        "classifier_0_convs_1": branches["convs_1"],
        "classifier_0_convs_4": pooled,
        "classifier_0": outputs["aspp"],
        "classifier_3": outputs["head"],
        "classifier_4": outputs["logits"],
        "out": full,
        "aux": aux,
    }
    return computed, dict(np.load(DATA / f"deeplabv3_resnet{depth}.npz")), table, arrays, variables


def test_every_stage_equals_the_reference(computed_and_reference):
    computed, reference = computed_and_reference[:2]
    assert set(computed) == set(reference)
    for name, expected in reference.items():
        ours = np.asarray(computed[name]).transpose(0, 3, 1, 2)[:, :: CHANNELS[name]]
        difference = relative_difference(ours, expected)
        assert difference <= 1e-4, f"{name}: {difference:.1e}"


def test_names_go_to_ours_and_back_without_loss(computed_and_reference):
    _, _, table, arrays, variables = computed_and_reference
    official = table.to_official(dict(flatten(unflatten(variables))))
    assert set(official) == set(arrays)
    assert all(np.array_equal(official[name], arrays[name]) for name in arrays)

"""Name tables of the shared backbones, under their PyTorch names."""

from __future__ import annotations

from collections.abc import Sequence

from uvos_jax.convert.table import NameTable, array, batch_norm, conv, joined
from uvos_jax.modules.backbones.resnet import BLOCKS


def resnet(block_counts: Sequence[int] = BLOCKS[101]) -> NameTable:
    """`conv1`, `bn1`, `layer1.0.conv1`, ..., `layer1.0.downsample.0` of a bottleneck ResNet."""
    tables = [conv("conv1", "conv1"), batch_norm("bn1", "bn1")]
    for stage, count in enumerate(block_counts, start=1):
        for block in range(count):
            official, ours = f"layer{stage}.{block}", f"layer{stage}_{block}"
            for i in (1, 2, 3):
                tables.append(conv(f"{official}.conv{i}", f"{ours}/conv{i}"))
                tables.append(batch_norm(f"{official}.bn{i}", f"{ours}/bn{i}"))
            if block == 0:
                tables.append(conv(f"{official}.downsample.0", f"{ours}/downsample_0"))
                tables.append(batch_norm(f"{official}.downsample.1", f"{ours}/downsample_1"))
    return joined(tables)


def deeplab_embedding(block_counts: Sequence[int] = BLOCKS[101], rates: int = 3) -> NameTable:
    """The encoder of the COSNet family (`siamese_model_conf.py@carrierlxk/COSNet`).

    Args:
      rates: number of dilated branches of the ASPP.
    """
    tables = [resnet(block_counts).renamed(ours="resnet")]
    tables += [
        conv("layer5.conv", "layer5/conv", bias=True),
        batch_norm("layer5.bn_x", "layer5/bn_x"),
    ]
    for i in range(rates + 1):
        tables.append(conv(f"layer5.conv2d_{i}", f"layer5/conv2d_{i}", bias=True))
        tables.append(batch_norm(f"layer5.bn_{i}", f"layer5/bn_{i}"))
    tables += [
        conv("layer5.bottleneck", "layer5/bottleneck", bias=True),
        batch_norm("layer5.bn", "layer5/bn"),
        array("layer5.prelu.weight", "layer5/prelu/weight"),
        conv("main_classifier", "main_classifier", bias=True),
    ]
    return joined(tables)


def torchvision_deeplabv3(depth: int = 101, rates: int = 3) -> NameTable:
    """`deeplabv3_resnet50|101` of torchvision with its auxiliary head."""

    def conv_bn(conv_name: str, bn_name: str, path: str) -> NameTable:
        return conv(conv_name, f"{path}/conv") + batch_norm(bn_name, f"{path}/bn")

    tables = [resnet(BLOCKS[depth]).renamed("backbone.", "backbone")]
    aspp = "classifier.0"
    for i in range(rates + 1):
        tables.append(
            conv_bn(f"{aspp}.convs.{i}.0", f"{aspp}.convs.{i}.1", f"classifier_0/convs_{i}")
        )
    # the image-pooling branch starts with the pooling, which has no parameters
    i = rates + 1
    tables += [
        conv_bn(f"{aspp}.convs.{i}.1", f"{aspp}.convs.{i}.2", f"classifier_0/convs_{i}"),
        conv_bn(f"{aspp}.project.0", f"{aspp}.project.1", "classifier_0/project"),
        conv_bn("classifier.1", "classifier.2", "classifier_1"),
        conv("classifier.4", "classifier_4", bias=True),
        conv_bn("aux_classifier.0", "aux_classifier.1", "aux_classifier_0"),
        conv("aux_classifier.4", "aux_classifier_4", bias=True),
    ]
    return joined(tables)

"""The ResNet of half of the systems against PyTorch: the same weights, shapes and cores.

    python tools/bench_backbone.py                                   # ResNet-101, 473x473, forward
    python tools/bench_backbone.py --depth 50 --size 161 --batch 2 --train
    python tools/bench_backbone.py --dtype bfloat16                  # on an accelerator

DeepLabv3 at output stride 8 as torchvision builds it. Both run in this process in turns (ours,
PyTorch, ours, ...); the ratio is that of the fastest runs. PyTorch takes channels last, eagerly,
and with `--compile` compiled, too. `--train` times a forward and backward pass with batch
statistics, of the mean square of the trunk's last features: the heads have dropout, by which they
would differ. Logits or the gradient of the first layer are compared before anything is timed.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uvos_jax.cli.common import print_error
from uvos_jax.convert.backbones import torchvision_deeplabv3
from uvos_jax.convert.variables import unflatten
from uvos_jax.errors import UnsupportedError, UvosError
from uvos_jax.modules.backbones.deeplab import DeepLabV3
from uvos_jax.modules.backbones.resnet import BLOCKS


def torch_network(depth: int) -> Any:
    """DeepLabv3 in PyTorch under torchvision's names."""
    import torch
    from torch import nn

    def conv_bn(inside: int, outside: int, kernel: int, dilation: int = 1) -> list[nn.Module]:
        pad = dilation * (kernel // 2)
        conv = nn.Conv2d(inside, outside, kernel, padding=pad, dilation=dilation, bias=False)
        return [conv, nn.BatchNorm2d(outside)]

    class Bottleneck(nn.Module):
        def __init__(self, inside: int, width: int, stride: int, dilation: int):
            super().__init__()
            self.conv1, self.bn1 = conv_bn(inside, width, 1)
            self.conv2 = nn.Conv2d(
                width, width, 3, stride, padding=dilation, dilation=dilation, bias=False
            )
            self.bn2 = nn.BatchNorm2d(width)
            self.conv3, self.bn3 = conv_bn(width, 4 * width, 1)
            self.downsample = None
            if stride != 1 or inside != 4 * width:
                shortcut = nn.Conv2d(inside, 4 * width, 1, stride, bias=False)
                self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(4 * width))

        def forward(self, x):
            y = torch.relu(self.bn1(self.conv1(x)))
            y = torch.relu(self.bn2(self.conv2(y)))
            y = self.bn3(self.conv3(y))
            return torch.relu(y + (x if self.downsample is None else self.downsample(x)))

    class ASPP(nn.Module):
        def __init__(self):
            super().__init__()
            branches = [nn.Sequential(*conv_bn(2048, 256, 1), nn.ReLU())]
            for rate in (12, 24, 36):
                branches.append(nn.Sequential(*conv_bn(2048, 256, 3, rate), nn.ReLU()))
            pooled = [nn.AdaptiveAvgPool2d(1), *conv_bn(2048, 256, 1), nn.ReLU()]
            branches.append(nn.Sequential(*pooled))
            self.convs = nn.ModuleList(branches)
            self.project = nn.Sequential(*conv_bn(1280, 256, 1), nn.ReLU())

        def forward(self, x):
            found = [branch(x).expand(-1, -1, *x.shape[2:]) for branch in self.convs]
            return self.project(torch.cat(found, 1))

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            backbone, inside = nn.Module(), 64
            backbone.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
            backbone.bn1 = nn.BatchNorm2d(64)
            for i, count in enumerate(BLOCKS[depth]):
                stride, dilation, before = (1, 2, 1, 1)[i], (1, 1, 2, 4)[i], (1, 1, 1, 2)[i]
                blocks = []
                for j in range(count):
                    first = (stride, before) if j == 0 else (1, dilation)
                    blocks.append(Bottleneck(inside, 64 * 2**i, *first))
                    inside = 256 * 2**i
                setattr(backbone, f"layer{i + 1}", nn.Sequential(*blocks))
            self.backbone = backbone
            tail = [*conv_bn(256, 256, 3), nn.ReLU(), nn.Conv2d(256, 21, 1)]
            self.classifier = nn.Sequential(ASPP(), *tail)
            tail = [*conv_bn(1024, 256, 3), nn.ReLU(), nn.Identity(), nn.Conv2d(256, 21, 1)]
            self.aux_classifier = nn.Sequential(*tail)

        def forward(self, x):
            b = self.backbone
            x = nn.functional.max_pool2d(torch.relu(b.bn1(b.conv1(x))), 3, 2, 1)
            x = b.layer3(b.layer2(b.layer1(x)))
            last = b.layer4(x)
            if self.training:
                return (last,)
            return self.classifier(last), self.aux_classifier(x)

    torch.manual_seed(0)
    return Network()


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=101, choices=(50, 101))
    parser.add_argument("--size", type=int, default=473)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--train", action="store_true", help="forward and backward")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--compile", action="store_true", help="torch.compile, too")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    try:
        compare(args)
    except UvosError as error:
        return print_error(error)
    return 0


def compare(args: argparse.Namespace) -> None:
    try:
        import torch
    except ImportError:
        raise UnsupportedError("PyTorch is not installed: pip install torch") from None
    device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
    dtype = getattr(torch, args.dtype)
    theirs = torch_network(args.depth).train(args.train).to(device)
    theirs = theirs.to(memory_format=torch.channels_last)
    arrays = {k: v.cpu().numpy() for k, v in theirs.state_dict().items()}
    arrays = {k: v for k, v in arrays.items() if not k.endswith("num_batches_tracked")}
    variables, report = torchvision_deeplabv3(args.depth).to_ours(arrays)
    if report.missing or report.unknown:
        raise UnsupportedError(f"the two networks differ: {report.missing} {report.unknown}")
    variables = jax.device_put(unflatten(variables))
    x = np.random.default_rng(0).normal(size=(args.batch, args.size, args.size, 3))
    x = x.astype(np.float32)
    image = torch.from_numpy(x.transpose(0, 3, 1, 2)).to(device)
    image = image.to(memory_format=torch.channels_last)
    run_ours = ours_of(DeepLabV3(args.depth, dtype=jnp.dtype(args.dtype)), variables, x, args.train)
    runs = {"ours": run_ours, "PyTorch": theirs_of(theirs, image, dtype, args.train)}
    if args.compile:
        runs["PyTorch, compiled"] = theirs_of(torch.compile(theirs), image, dtype, args.train)
    first, second = (runs[k]() for k in ("ours", "PyTorch"))
    for a, b in zip(first, second, strict=True):
        b = b.float().cpu().numpy()
        print(f"relative difference {np.abs(np.asarray(a) - b).max() / np.abs(b).max():.1e}")
    for name, seconds in alternating(runs, args.repeats).items():
        if name == "ours":
            mine = seconds
        ratio = f", ours takes {mine / seconds:.2f} of it" if name != "ours" else ""
        print(f"{name}: {1e3 * seconds:.0f} ms{ratio}")


def ours_of(network: DeepLabV3, variables: Any, x: np.ndarray, train: bool) -> Any:
    @jax.jit
    def forward(variables: Any, x: jax.Array) -> tuple:
        outputs = network.apply(variables, x)
        return tuple(jnp.moveaxis(outputs[k], -1, 1) for k in ("logits", "aux_logits"))

    def loss(params: Any, rest: Any, x: jax.Array) -> tuple:
        keys = {"dropout": jax.random.key(0)}
        outputs, updates = network.apply(
            {"params": params, **rest}, x, True, mutable=["batch_stats"], rngs=keys
        )
        return jnp.mean(outputs["stages"][-1].astype(jnp.float32) ** 2), updates

    @jax.jit
    def backward(variables: Any, x: jax.Array) -> tuple:
        rest = dict(variables)
        gradients, updates = jax.grad(loss, has_aux=True)(rest.pop("params"), rest, x)
        return gradients, updates

    if not train:
        return lambda: jax.block_until_ready(forward(variables, x))

    def run() -> tuple:
        gradients, _ = jax.block_until_ready(backward(variables, x))
        return (jnp.transpose(gradients["backbone"]["conv1"]["kernel"], (3, 2, 0, 1)),)

    return run


def theirs_of(network: Any, image: Any, dtype: Any, train: bool) -> Any:
    import torch

    wait = torch.cuda.synchronize if image.is_cuda else lambda: None
    cast = torch.autocast(image.device.type, dtype, enabled=dtype != torch.float32)
    parameters = list(network.parameters())

    def run() -> tuple:
        with cast, torch.set_grad_enabled(train):
            found = network(image)
        if train:
            for parameter in parameters:
                parameter.grad = None
            found[0].float().square().mean().backward()
            found = (parameters[0].grad,)
        wait()
        return found

    return run


def alternating(runs: dict[str, Any], repeats: int) -> dict[str, float]:
    """Seconds of the fastest of several runs, taken in turns after a first one of each."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: min(seconds[1:]) for name, seconds in times.items()}


if __name__ == "__main__":
    sys.exit(main())

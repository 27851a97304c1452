"""Times a ConvLSTM over T frames: our scan, an unrolled loop, flax's scan, and PyTorch.

    python tools/bench_recurrent.py                          # T = 8, 32, 128
    python tools/bench_recurrent.py --frames 8 32 --repeats 9
    python tools/bench_recurrent.py --cell gru --kernel 5 --features 64

All compute the same equations (no peepholes, zero initial state) on the same arrays, batch 1, and
gradients of sum(h^2) at weights and input. `scan` is `uvos_jax.modules.recurrent`; `unrolled` the
same cell with plain convolutions in a Python loop; `nn.scan` a cell made of `nn.Conv` under
`flax.linen.scan`; PyTorch the cell of two `conv2d` in a loop, if it is installed. Runs alternate;
a time is the best of `--repeats`, by the clock and of all cores together (`cpu`), which other work
on the machine disturbs less. Compile time is that of one cold compilation (the persistent
cache is off). Memory is what the compiled program allocates beside its arguments and results
(`temp`); for PyTorch it is not measured. A loop of 128 frames is unrolled on request only
(`--unroll 128`): it takes minutes to compile.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from uvos_jax.modules.recurrent import ConvGRU, ConvLSTM


def arrays(args: argparse.Namespace, frames: int):
    """Input `[1,T,h,w,C]` and the parameters of our layer."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, frames, *args.size, args.channels)).astype(np.float32)
    layer = make_layer(args)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x)["params"]
    scale = 1.0 / np.sqrt(args.kernel**2 * args.features)
    params = jax.tree.map(lambda s: scale * rng.standard_normal(s.shape).astype(np.float32), shapes)
    return jnp.asarray(x), jax.tree.map(jnp.asarray, params)


def make_layer(args: argparse.Namespace, **options) -> nn.Module:
    """Our recurrent layer."""
    cls = ConvLSTM if args.cell == "lstm" else ConvGRU
    return cls(args.features, args.kernel, **options)


def plain_conv(x, kernel):
    pad = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        x, kernel, (1, 1), [(pad, pad)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def unrolled(args: argparse.Namespace) -> Callable:
    """The cell in a Python loop."""

    def lstm(params, x):
        h = c = jnp.zeros((*x.shape[:1], *x.shape[2:4], args.features))
        out = []
        for t in range(x.shape[1]):
            gates = plain_conv(x[:, t], params["input"]["kernel"]) + params["input"]["bias"]
            gates = gates + plain_conv(h, params["recurrent_kernel"])
            i, f, o, g = jnp.split(gates, 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            out.append(h)
        return jnp.stack(out, 1)

    def gru(params, x):
        h = jnp.zeros((*x.shape[:1], *x.shape[2:4], args.features))
        out = []
        for t in range(x.shape[1]):
            gates = plain_conv(x[:, t], params["input"]["kernel"]) + params["input"]["bias"]
            rz, q = jnp.split(gates, [2 * args.features], axis=-1)
            r, z = jnp.split(jax.nn.sigmoid(rz + plain_conv(h, params["gate_kernel"])), 2, axis=-1)
            q = jnp.tanh(q + plain_conv(r * h, params["candidate_kernel"]))
            h = (1.0 - z) * h + z * q
            out.append(h)
        return jnp.stack(out, 1)

    return lstm if args.cell == "lstm" else gru


def scan(args: argparse.Namespace, **options) -> Callable:
    """Our layer as a function of parameters and input."""
    layer = make_layer(args, **options)
    return lambda params, x: layer.apply({"params": params}, x)[1]


class _FlaxCell(nn.Module):
    features: int
    kernel: int

    @nn.compact
    def __call__(self, carry, x):
        h, c = carry
        size = (self.kernel,) * 2
        gates = nn.Conv(4 * self.features, size, name="input")(x)
        gates = gates + nn.Conv(4 * self.features, size, use_bias=False, name="recurrent")(h)
        i, f, o, g = jnp.split(gates, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h


def flax_scan(args: argparse.Namespace) -> Callable:
    """`nn.scan` over a cell made of `nn.Conv`."""
    cell = nn.scan(
        _FlaxCell, variable_broadcast="params", split_rngs={"params": False}, in_axes=1, out_axes=1
    )(args.features, args.kernel)

    def run(params, x):
        zeros = jnp.zeros((*x.shape[:1], *x.shape[2:4], args.features))
        tree = {"input": params["input"], "recurrent": {"kernel": params["recurrent_kernel"]}}
        return cell.apply({"params": tree}, (zeros, zeros), x)[1]

    return run


class Program:
    """A function and its gradient, compiled apart so that compilation can be timed."""

    def __init__(self, function: Callable, params, x, *, forward: bool = True):
        def loss(params, x):
            return jnp.sum(function(params, x) ** 2)

        self.arguments = (params, x)
        self.forward = self.compile_forward = None
        if forward:
            self.forward, self.compile_forward = self._compile(function)
        self.backward, self.compile_backward = self._compile(jax.grad(loss, (0, 1)))

    def _compile(self, function: Callable):
        start = time.perf_counter()
        compiled = jax.jit(function).lower(*self.arguments).compile()
        return compiled, time.perf_counter() - start

    def temp(self, compiled) -> float:
        """Megabytes beside arguments and results."""
        return compiled.memory_analysis().temp_size_in_bytes / 2**20

    def run(self, which: str) -> tuple[float, float]:
        """Seconds of one run, by the clock and of all cores together."""
        start, cores = time.perf_counter(), time.process_time()
        jax.block_until_ready(getattr(self, which)(*self.arguments))
        return time.perf_counter() - start, time.process_time() - cores


class Torch:
    """The LSTM cell in PyTorch; `run` as `Program.run`."""

    compile_forward = compile_backward = None

    def __init__(self, args: argparse.Namespace, params, x, *, channels_last: bool):
        import torch

        self.torch, self.features = torch, args.features
        layout = torch.channels_last if channels_last else torch.contiguous_format

        def tensor(a, axes):
            array = torch.from_numpy(np.ascontiguousarray(np.asarray(a).transpose(axes)))
            return array.contiguous(memory_format=layout) if array.ndim == 4 else array

        self.wx = tensor(params["input"]["kernel"], (3, 2, 0, 1)).requires_grad_()
        self.wh = tensor(params["recurrent_kernel"], (3, 2, 0, 1)).requires_grad_()
        self.b = tensor(params["input"]["bias"], (0,)).requires_grad_()
        self.x = [
            tensor(frame, (0, 3, 1, 2)).requires_grad_() for frame in np.asarray(x)[0][:, None]
        ]

    def hidden(self):
        F, pad = self.torch.nn.functional, self.wx.shape[-1] // 2
        h = c = self.torch.zeros((1, self.features, *self.x[0].shape[2:]))
        out = []
        for frame in self.x:
            gates = F.conv2d(frame, self.wx, self.b, padding=pad)
            gates = gates + F.conv2d(h, self.wh, padding=pad)
            i, f, o, g = gates.chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            out.append(h)
        return self.torch.stack(out, 1)

    def run(self, which: str) -> tuple[float, float]:
        start, cores = time.perf_counter(), time.process_time()
        if which == "forward":
            with self.torch.no_grad():
                self.hidden()
        else:
            for leaf in (self.wx, self.wh, self.b, *self.x):
                leaf.grad = None
            (self.hidden() ** 2).sum().backward()
        return time.perf_counter() - start, time.process_time() - cores


def torch_programs(args: argparse.Namespace, params, x) -> dict[str, Torch]:
    """PyTorch in both memory layouts, or nothing and the reason."""
    if args.cell != "lstm":
        print("PyTorch: left out, only its LSTM is written here")
        return {}
    try:
        import torch
    except ImportError as error:
        print(f"PyTorch: left out, it is not installed ({error})")
        return {}
    name = f"torch {torch.__version__}"
    return {
        name: Torch(args, params, x, channels_last=False),
        f"{name} channels_last": Torch(args, params, x, channels_last=True),
    }


def measure(args: argparse.Namespace, frames: int) -> dict[str, dict[str, float]]:
    """One table for a number of frames."""
    x, params = arrays(args, frames)
    programs: dict[str, Program | Torch] = {
        "scan": Program(scan(args), params, x),
        "scan, remat": Program(scan(args, remat=True), params, x, forward=False),
    }
    if frames <= args.unroll:
        programs["unrolled"] = Program(unrolled(args), params, x)
    if args.cell == "lstm" and frames <= args.flax:
        programs["nn.scan(nn.Conv)"] = Program(flax_scan(args), params, x)
    programs |= torch_programs(args, params, x)
    rows: dict[str, dict[str, float]] = {}
    for name, program in programs.items():
        rows[name] = {"compile_f": program.compile_forward, "compile_fb": program.compile_backward}
        if isinstance(program, Program):
            rows[name]["temp_fb"] = program.temp(program.backward)
            if program.forward is not None:
                rows[name]["temp_f"] = program.temp(program.forward)
    best: dict[tuple[str, str], np.ndarray] = {}
    for number in range(args.repeats + 1):
        for name, program in programs.items():
            slow = name.startswith("nn.scan") and number > 1
            for which in () if slow else ("forward", "backward"):
                if which == "forward" and getattr(program, "forward", True) is None:
                    continue
                seconds = np.asarray(program.run(which))
                if number:  # the first run warms up
                    best[name, which] = np.minimum(seconds, best.get((name, which), np.inf))
    for (name, which), (seconds, cores) in best.items():
        key = "f" if which == "forward" else "fb"
        rows[name] |= {key: 1000 * seconds, f"cpu_{key}": 1000 * cores}
    return rows


def show(rows: dict[str, dict[str, float]], frames: int) -> None:
    """Prints a table; ratios are forward + backward against `unrolled`."""
    reference = rows.get("unrolled", {})
    print(f"\nT = {frames}")
    print(f"{'':28s}{'fwd ms':>9s}{'f+b ms':>9s}{'ratio':>7s}{'cpu f+b ms':>12s}{'ratio':>7s}"
          f"{'compile f / f+b s':>20s}{'temp f / f+b MiB':>20s}")  # fmt: skip

    def text(value, form):
        return "-" if value is None else format(value, form)

    for name, row in rows.items():
        ratio, of_cores = (
            row[key] / reference[key] if key in row and key in reference else None
            for key in ("fb", "cpu_fb")
        )
        compile_ = f"{text(row.get('compile_f'), '.1f')} / {text(row.get('compile_fb'), '.1f')}"
        temp = f"{text(row.get('temp_f'), '.0f')} / {text(row.get('temp_fb'), '.0f')}"
        print(f"{name:28s}{text(row.get('f'), '.0f'):>9s}{text(row.get('fb'), '.0f'):>9s}"
              f"{text(ratio, '.2f'):>7s}{text(row.get('cpu_fb'), '.0f'):>12s}"
              f"{text(of_cores, '.2f'):>7s}{compile_:>20s}{temp:>20s}")  # fmt: skip


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cell", choices=["lstm", "gru"], default="lstm")
    parser.add_argument("--frames", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--size", type=int, nargs=2, default=[60, 60], metavar=("H", "W"))
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--features", type=int, default=32)
    parser.add_argument("--kernel", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--unroll", type=int, default=32, help="longest unrolled loop")
    parser.add_argument("--flax", type=int, default=8, help="longest nn.scan(nn.Conv)")
    args = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    device = jax.devices()[0]
    print(f"{args.cell}, {args.features} features from {args.channels} channels, kernel "
          f"{args.kernel}, maps {args.size[0]}x{args.size[1]}, float32, {device.device_kind}, jax "
          f"{jax.__version__}")  # fmt: skip
    for frames in args.frames:
        show(measure(args, frames), frames)


if __name__ == "__main__":
    main()

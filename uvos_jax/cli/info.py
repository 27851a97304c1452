"""`uvos info ID`: one system's specification, size, cost, configurations and weights."""

from __future__ import annotations

import argparse

EPILOG = """examples:
  uvos info cosnet
  uvos info cosnet:light
  uvos info --weights cosnet.npz"""


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "info",
        help="one system: specification, parameters, FLOPs, weights",
        description="Show a system's specification, parameters, FLOPs, configurations, and what "
        "its weights need; or what a weight file holds.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("system", nargs="?", help="system id, with :variant if you like")
    parser.add_argument("--weights", help="describe this weight file instead")
    return parser


def run(args: argparse.Namespace) -> int:
    """Prints a table."""
    from rich.table import Table

    from uvos_jax.cli.common import table_console
    from uvos_jax.errors import ConfigError

    if bool(args.system) == bool(args.weights):
        raise ConfigError("uvos info needs a system id or --weights FILE (one of the two)")
    rows = describe_weights(args.weights) if args.weights else describe(args.system)
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for key, value in rows:
        table.add_row(key, str(value))
    table_console().print(table)
    return 0


def describe(name: str) -> list[tuple[str, str]]:
    """Facts of a system; nothing is run, sizes and costs are counted."""
    import jax

    from uvos_jax import config as configs
    from uvos_jax import registry
    from uvos_jax.evaluation.cost import gflop_per_frame, parameter_count

    registry.check_name(name.partition(":")[0])
    config = configs.load_config(name)
    system = configs.build(config)
    spec, card = system.spec, system.card
    shapes = jax.eval_shape(system.init, jax.random.key(0))
    rows = [
        ("system", f"{spec.name}: {spec.paper}"),
        ("looks at", f"{spec.temporal}, {spec.clip_len} frame(s) at once"
         + (f", {spec.num_references} reference frames" if spec.num_references else "")),
        ("causal", "yes" if spec.causal else "no"),
        ("input", f"{spec.input_size or 'native size'}, {spec.normalization}"),
        ("needs", ", ".join(sorted(spec.requires)) or "frames only"),
        ("outputs", ", ".join(spec.outputs)),
        ("parameters", f"{parameter_count(shapes):,}"),
        ("GFLOP/frame", f"{gflop_per_frame(system, shapes):.1f}"),
        ("config", f"configs/{config.model.name}.py ({name})"),
        ("variants", ", ".join(configs.list_variants(config.model.name)) or "none"),
        ("dense CRF", config.predict.crf or "none by default"),
    ]  # fmt: skip
    if card is not None:
        if card.davis16_j is not None:
            rows.append(("published", f"DAVIS-16 val J {card.davis16_j}, F {card.davis16_f}"))
        rows.append(("official weights", card.official_weights or "none published"))
        rows.append(("to use them", how_to_convert(config.model.name)))
        rows.append(("parity", card.parity or "-"))
        rows.append(("tiny config learns", card.learned or "-"))
    stages = system.stages(config)
    recipe = "; ".join(
        f"{s.name}: {s.steps} steps ({', '.join(dict.fromkeys(p.name for p in s.phases))})"
        for s in stages
    )
    return [*rows, ("training", recipe)]


def how_to_convert(system_id: str) -> str:
    """The command that reads a system's official weights, or what to do without any."""
    from uvos_jax.convert.official import table_of

    module = table_of(system_id)
    if module is None:
        return f"train it: uvos train --config configs/{system_id}.py:full --workdir W"
    parts = "".join(f", --part {name}" for name in getattr(module, "PARTS", ()))
    which = getattr(module, "CONFIG", "")
    config = f" --config {which}" if which else ""
    return f"uvos convert {system_id} FILE...{config} --out W.npz{parts} (docs/weights.md)"


def describe_weights(path: str) -> list[tuple[str, str]]:
    """What a weight file holds."""
    import math

    from uvos_jax.convert.variables import flatten, load_variables

    variables = load_variables(path)
    leaves = list(flatten(variables))
    meta = variables.meta
    size = sum(math.prod(x.shape) for k, x in leaves if k.startswith("params/"))
    rows = [
        ("file", path),
        ("system", meta.get("system", "unknown")),
        ("parameters", f"{size:,} in {len(leaves)} arrays"),
    ]
    if meta.get("system"):
        rows.append(
            ("to use them", f"uvos predict VIDEO --system {meta['system']} --weights {path}")
        )
    for key in sorted(meta):
        if key not in ("config", "spec", "system"):
            rows.append((key, str(meta[key])))
    spec = meta.get("spec", {})
    if spec:
        rows.append(("input", f"{spec.get('input_size')}, {spec.get('normalization')}"))
    return rows

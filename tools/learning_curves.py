"""Does a segmenter's encoder help an agent? Learning curves of MOREL and its baselines.

    python tools/learning_curves.py --envs catch dodge --seeds 3 --steps 60000 --out runs/curves

Per environment and seed three agents learn from the same number of steps: `pretrained` (encoder and
decoder from a segmenter trained on random play, joint loss), `random` (the same network and losses
from fresh parameters), `plain` (one path, no decoder, no joint loss). Written are `curves.json`
(every curve, means, 95 % bootstrap intervals over seeds, returns over whole episodes at the end)
and `curves.png`. The pairs that the segmenter saw are added to the `pretrained` agent's steps.
Every finished agent is kept under `runs/` there, so a call that was cut short goes on, and several
calls add up.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image, ImageDraw

from uvos_jax import config as configs
from uvos_jax.data.pipeline import make_train_iter
from uvos_jax.synthetic.environments import make_environment
from uvos_jax.train import rl, stages
from uvos_jax.train.optimizer import make_optimizer, make_schedule
from uvos_jax.train.pictures import write_png
from uvos_jax.train.step import init_state, make_train_step

KINDS = {"pretrained": "", "random": "", "plain": ",joint_weight=0,extra_path=false"}
COLORS = {"pretrained": (0, 90, 200), "random": (220, 120, 0), "plain": (60, 60, 60)}
POINTS = 20


class Segmenters:
    """Segmenters trained on random play of one environment; one compiled step for all seeds."""

    def __init__(self, config: Any):
        self.config = config
        system = stages.build_system(config)
        (self.stage,) = system.stages(config)
        params = jax.eval_shape(system.init, jax.random.key(0))["params"]
        optimizer = make_optimizer(config.optim, params)
        schedule = make_schedule(config.optim, self.stage.steps)
        self.step = jax.jit(
            make_train_step(system, optimizer, schedule, phase=self.stage.phases[0])
        )
        self.init = jax.jit(lambda seed: init_state(system, seed, lambda _: optimizer))

    def train(self, seed: int) -> tuple[Any, int]:
        """Parameters, and the number of pairs they have seen."""
        state, data = self.init(seed), self.config.data
        batches = make_train_iter(data, "default", batch_size=data.batch_size, seed=seed)
        last = []
        for i in range(self.stage.steps):
            state, metrics = self.step(state, next(batches))
            if i >= self.stage.steps - 20:
                last.append(metrics["reconstruction"] / metrics["no_transform_loss"])
        print(f"  segmenter: reconstruction {np.mean(last):.2f} of standing still", flush=True)
        return state.params, self.stage.steps * data.batch_size


class Learner:
    """Agents of one environment and form, compiled once for all seeds."""

    def __init__(self, config: Any):
        self.system = stages.build_system(config)
        env = make_environment(
            config.rl.env, size=config.model.input_size[0], **dict(config.rl.env_fields)
        )
        self.agent = rl.make_agent(self.system, env, config.rl)
        self.init = jax.jit(self.agent.init)
        self.run = jax.jit(self.agent.run, static_argnums=1, donate_argnums=0)
        episodes = config.rl.eval_episodes
        self.score = jax.jit(lambda p, key: rl.agent_returns(self.agent, p, key, episodes))

    def learn(self, seed: int, segmenter: Any) -> dict[str, Any]:
        """One agent's curve: `steps`, `returns` (means of the episodes that ended), `final`."""
        state = self.init(jax.random.key(seed), segmenter)
        updates = max(1, self.agent.total_updates // POINTS)
        steps, returns = [], []
        for i in range(POINTS):
            state, metrics = self.run(state, updates)
            ended = float(metrics["episodes"].sum())
            steps.append((i + 1) * updates * self.agent.steps_per_update)
            mean = float(metrics["return_sum"].sum()) / ended if ended else None
            returns.append(mean)
        final = float(self.score(state.params, jax.random.key(10_000 + seed)).mean())
        return {"steps": steps, "returns": returns, "final": final}


def interval(values: np.ndarray, rng: np.random.Generator, count: int = 2000) -> np.ndarray:
    """95 % percentile-bootstrap interval `[2,...]` of the mean over axis 0."""
    chosen = rng.integers(0, len(values), (count, len(values)))
    return np.percentile(values[chosen].mean(1), [2.5, 97.5], axis=0)


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean curve and interval of the runs of one kind, where an episode ended in every run."""
    rng = np.random.default_rng(0)
    rows = np.asarray([[np.nan if v is None else v for v in r["returns"]] for r in runs])
    full = np.all(np.isfinite(rows), axis=0)
    curves, steps = rows[:, full], np.mean([r["steps"] for r in runs], axis=0)[full]
    final = np.asarray([r["final"] for r in runs])
    low, high = interval(curves, rng)
    return {
        "steps": steps.tolist(),
        "mean": curves.mean(0).tolist(),
        "low": low.tolist(),
        "high": high.tolist(),
        "final_mean": float(final.mean()),
        "final_interval": interval(final, rng).tolist(),
        "runs": runs,
    }


def draw(name: str, kinds: dict[str, Any], random: float) -> np.ndarray:
    """One environment's mean curves with their intervals; uint8 `[320,640,3]`."""
    width, height, left, top, bottom = 640, 320, 56, 28, 28
    values = [v for k in kinds.values() for key in ("low", "high") for v in k[key]] + [random]
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    last = max(s for k in kinds.values() for s in k["steps"])

    def at(step: float, value: float) -> tuple[float, float]:
        x = left + step / last * (width - left - 12)
        return x, top + (high - value) / span * (height - top - bottom)

    picture = Image.new("RGB", (width, height), "white")
    for kind, k in kinds.items():
        layer = Image.new("RGBA", (width, height), (0, 0, 0, 0))
        there, back = (list(zip(k["steps"], k[key], strict=True)) for key in ("low", "high"))
        points = [at(*point) for point in (*there, *reversed(back))]
        if len(points) > 2:
            ImageDraw.Draw(layer).polygon(points, fill=(*COLORS[kind], 50))
        picture.paste(layer, mask=layer)
    pen = ImageDraw.Draw(picture)
    ink = (40, 40, 40)
    for share in np.linspace(0, 1, 5):
        value, step = low + share * span, share * last
        pen.line((at(0, value), at(last, value)), fill=(225, 225, 225))
        pen.text((4, at(0, value)[1] - 6), f"{value:.3g}", fill=ink)
        pen.text((at(step, low)[0] - 12, height - bottom + 8), f"{step:.0f}", fill=ink)
    pen.line((at(0, random), at(last, random)), fill=(200, 60, 60))
    for i, (kind, k) in enumerate(kinds.items()):
        pen.line([at(*p) for p in zip(k["steps"], k["mean"], strict=True)], COLORS[kind], 2)
        pen.text((left + 90 * i + 90, 8), kind, fill=COLORS[kind])
    pen.text((left, 8), name, fill=(0, 0, 0))
    pen.text((left + 370, 8), "random play", fill=(200, 60, 60))
    return np.asarray(picture)


class Bench:
    """All agents of one environment; programs are compiled once and when they are needed."""

    def __init__(self, name: str, args: argparse.Namespace):
        self.name, self.args, self.folder = name, args, Path(args.out) / "runs"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.learners: dict[str, Learner] = {}
        self.segmenters: Segmenters | None = None

    def config(self, kind: str) -> Any:
        extra = "".join(f",{item}" for item in self.args.set)
        config = configs.load_config(f"morel:{self.args.size}{self.name}{KINDS[kind]}{extra}")
        config.rl.total_steps, config.rl.eval_episodes = self.args.steps, 64
        if self.args.segmenter_steps:
            config.train.total_steps = self.args.segmenter_steps
        return config

    def run(self, kind: str, seed: int) -> dict[str, Any]:
        """One agent's curve, from the file of an earlier call if there is one."""
        path = self.folder / f"{self.name}_{kind}_{seed}.json"
        if path.exists():
            return json.loads(path.read_text())
        begin, params, seen = time.perf_counter(), None, 0
        if kind == "pretrained":
            self.segmenters = self.segmenters or Segmenters(self.config(kind))
            params, seen = self.segmenters.train(seed)
        key = "plain" if kind == "plain" else "two paths"
        if key not in self.learners:
            self.learners[key] = Learner(self.config(kind))
        run = self.learners[key].learn(seed, params)
        run["steps"] = [s + seen for s in run["steps"]]
        run["seconds"] = time.perf_counter() - begin
        path.write_text(json.dumps(run))
        print(f"  seed {seed} {kind}: {run['final']:.2f} ({run['seconds']:.0f} s)", flush=True)
        return run

    def report(self) -> dict[str, Any]:
        """Runs what is missing and sums up."""
        runs = {kind: [] for kind in KINDS}
        for seed in range(self.args.seeds):
            for kind in KINDS:
                runs[kind].append(self.run(kind, seed))
        config = self.config("plain")
        env = make_environment(
            config.rl.env, size=config.model.input_size[0], **dict(config.rl.env_fields)
        )
        random = np.asarray(rl.episode_returns(env, jax.random.key(10_000), 256)).mean()
        return {
            "arguments": vars(self.args),
            "random": float(random),
            "agents": {kind: summarise(rows) for kind, rows in runs.items()},
        }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--envs", nargs="+", default=["catch", "breakout"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60_000, help="of an agent")
    parser.add_argument("--size", default="tiny_", help="prefix of the variants; '' for 84 pixels")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help="fields of rl or model, as after a comma in a variant")  # fmt: skip
    parser.add_argument("--segmenter-steps", type=int, default=0, help="0: as the configuration")
    parser.add_argument("--out", default="runs/learning_curves")
    args = parser.parse_args()
    out = Path(args.out)
    report: dict[str, Any] = {}
    for name in args.envs:
        print(name, flush=True)
        report[name] = Bench(name, args).report()
        print(f"  random play: {report[name]['random']:.2f}")
        for kind, s in report[name]["agents"].items():
            low, high = s["final_interval"]
            print(f"  {kind}: final {s['final_mean']:.2f} [{low:.2f}, {high:.2f}]")
    (out / "curves.json").write_text(json.dumps(report, indent=1))
    pictures = [draw(name, e["agents"], e["random"]) for name, e in report.items()]
    write_png(out / "curves.png", np.concatenate(pictures))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

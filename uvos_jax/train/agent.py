"""Trains MOREL's agent: the segmenter first, then the actor-critic; logs, checkpoints, resume.

The working directory gets `segmenter/` (a run of its own, see `loop`), `agent/` (log, checkpoints,
videos, curves), `agent.npz` (the policy) and `weights.npz` (the segmenter as the agent left it, for
`uvos predict`).
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uvos_jax import config as configs
from uvos_jax.errors import CheckpointError, ConfigError, UvosError
from uvos_jax.synthetic.environments import ENVIRONMENTS, Environment, make_environment
from uvos_jax.systems.morel.policy import segmenter_of
from uvos_jax.train import mesh as meshes
from uvos_jax.train import rl, stages
from uvos_jax.train.checkpoint import Checkpoints, InputPosition
from uvos_jax.train.logging import RunLog, log, read_log
from uvos_jax.train.preempt import StopRequest
from uvos_jax.types import Variables

#: Fields of `rl` that may differ between the run that saved and the one that resumes.
FREE_FIELDS = ("log_every", "checkpoint_every", "eval_episodes", "video_steps")
#: What is drawn of a run.
CURVES = ("episode_return", "episode_length", "entropy", "reconstruction", "loss")
#: Pixels of a video per pixel of a frame.
ZOOM = 4


def train_with_agent(
    config: Any, workdir: str | Path, *, progress: bool = True, profile: int = 0
) -> dict[str, Any]:
    """Trains or resumes the segmenter, then the agent that starts from it.

    Returns:
      a summary as `Trainer.run` does; `step` counts steps of the environments, and there are
      `returns`, `random_returns` (means of whole episodes) of an agent that finished.

    Raises:
      ConfigError: impossible settings. CheckpointError: `rl.pretrain="weights"` without weights.
    """
    rl.check_settings(config.rl)
    workdir = Path(workdir).resolve()
    trainer = AgentTrainer(config, workdir, progress=progress)  # refuses before stage 1 runs
    segmenter = None
    if config.rl.pretrain == "stage1":
        from uvos_jax.train.loop import Trainer

        own = configs.from_dict(config.to_dict())
        folder = workdir / "segmenter"
        summary = Trainer(own, folder, progress=progress, profile=profile).run()
        if not summary["finished"]:
            return summary
        segmenter = folder / "weights.npz"
    elif config.rl.pretrain == "weights":
        if not config.model.init_from:
            raise CheckpointError(
                "rl.pretrain='weights' needs weights of a segmenter: give --init-from FILE, or use "
                "rl.pretrain='stage1' or 'random'"
            )
        segmenter = config.model.init_from
    return trainer.run(segmenter)


class AgentTrainer:
    """Stage 2 in one working directory.

    Args:
      config: the full configuration. progress: say how it goes.
    """

    def __init__(self, config: Any, workdir: str | Path, *, progress: bool = True):
        self.config, self.rl = config, config.rl
        self.workdir = Path(workdir).resolve()
        self.folder = self.workdir / "agent"
        self.main = jax.process_index() == 0
        self.show = progress and self.main
        self.system = stages.build_system(config)
        self.mesh = meshes.make_mesh(config.mesh.data, config.mesh.fsdp)
        if config.rl.envs % self.mesh.devices.size:
            raise ConfigError(
                f"rl.envs={config.rl.envs} must be a multiple of the {self.mesh.devices.size} "
                "devices, over which the environments are spread"
            )
        self.env = self._environment()
        self.host = None
        if self.env is None:
            from uvos_jax.train.atari import HostEnvironments

            self.host = HostEnvironments(
                config.rl.env, config.rl.envs, size=config.model.input_size[0],
                seed=config.seed, **dict(config.rl.env_fields),
            )  # fmt: skip
        actions = 0 if self.host is None else self.host.actions
        self.agent = rl.make_agent(self.system, self.env, config.rl, actions)

    def _environment(self) -> Environment | None:
        name = self.rl.env
        if name not in ENVIRONMENTS and "/" in name:
            return None
        size = self.config.model.input_size[0]
        return make_environment(name, size=size, **dict(self.rl.env_fields))

    # ----- state --------------------------------------------------------------------------

    def _fresh(self, segmenter: Any) -> rl.AgentState:
        return self.agent.init(jax.random.key(self.config.seed + 1), segmenter)

    def _shardings(self, state: rl.AgentState) -> rl.AgentState:
        """Environments are spread over the devices, all else is everywhere."""
        everywhere, spread = meshes.replicated(self.mesh), meshes.batch_sharding(self.mesh)
        tree = jax.tree.map(lambda _: everywhere, state)
        return tree.replace(envs=jax.tree.map(lambda _: spread, state.envs))

    def _tree(self, state: Any) -> dict[str, Any]:
        """State as a plain dictionary, the form that is stored."""
        key = jax.random.key_data
        rng = jax.eval_shape(key, state.rng) if _abstract(state.rng) else key(state.rng)
        if _abstract(state.rng):
            rng = jax.ShapeDtypeStruct(rng.shape, rng.dtype, sharding=state.rng.sharding)
        tree = {
            "update": state.update,
            "params": state.params,
            "opt_state": state.opt_state,
            "rng": rng,
        }
        leaves = jax.tree.leaves(state.envs)
        if leaves:
            tree["envs"] = {f"{i:03d}": leaf for i, leaf in enumerate(leaves)}
        return tree

    def _from_tree(self, tree: dict[str, Any], like: rl.AgentState) -> rl.AgentState:
        envs = tree.get("envs", {})
        structure = jax.tree.structure(like.envs)
        return like.replace(
            update=tree["update"],
            params=tree["params"],
            opt_state=tree["opt_state"],
            rng=jax.random.wrap_key_data(tree["rng"]),
            envs=jax.tree.unflatten(structure, [envs[name] for name in sorted(envs)]),
        )

    def start(self, segmenter: str | Path | None) -> tuple[rl.AgentState, bool]:
        """A fresh or restored state on the mesh, and whether it was restored."""
        params = None
        shapes = jax.eval_shape(lambda: self._fresh(None))
        shardings = self._shardings(shapes)
        abstract = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
        )
        restored = self.checkpoints.restore(
            lambda step: self._tree(abstract), InputPosition({}), self.stored
        )
        if restored is not None:
            return self._from_tree(restored, abstract), True
        if segmenter is not None:
            from uvos_jax.convert.variables import load_variables, merge_strict

            fresh = jax.eval_shape(self.system.init, jax.random.key(0))
            params = merge_strict(fresh, load_variables(segmenter))[0]["params"]
        return jax.jit(lambda p: self._fresh(p), out_shardings=shardings)(params), False

    # ----- the run ------------------------------------------------------------------------

    def run(self, segmenter: str | Path | None = None) -> dict[str, Any]:
        """Trains to the end, or to SIGTERM; see `train_with_agent`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.checkpoints = Checkpoints(
            self.folder / "checkpoints",
            keep_latest=self.config.train.keep_latest,
            keep_best=("J", 0),
        )
        self.stored = {"agent": stored_fields(self.config)}
        with StopRequest() as stop:
            try:
                return self._run(segmenter, stop)
            finally:
                self.checkpoints.close()
                if self.host is not None:
                    self.host.close()

    def _run(self, segmenter: Any, stop: StopRequest) -> dict[str, Any]:
        state, restored = self.start(segmenter)
        agent, unit = self.agent, self.agent.steps_per_update
        done, total = int(state.update), agent.total_updates
        if self.main:
            (self.folder / "config.json").write_text(configs.to_json(self.config))
            where = f"resuming at {done * unit}" if restored else "starting"
            log.info("agent: %s, %s of %d steps", self.rl.env, where, total * unit)
        shardings = self._shardings(state)
        everywhere = meshes.replicated(self.mesh)
        run = self._host_run if self.host is not None else jax.jit(
            agent.run, static_argnums=1, donate_argnums=0, in_shardings=(shardings,),
            out_shardings=(shardings, everywhere),
        )  # fmt: skip
        writer = RunLog(self.folder, active=self.main, start_step=done * unit)
        saved = done if restored else 0
        try:
            while done < total and not stop.at(done):
                count = min(self.rl.log_every - done % self.rl.log_every, total - done)
                begin = time.perf_counter()
                state, metrics = run(state, count)
                metrics = jax.device_get(metrics)
                seconds = time.perf_counter() - begin
                done += count
                values = self._values(metrics, done)
                values["steps_per_second"] = count * unit / seconds
                writer.write(done * unit, values)
                if self.show:
                    log.info("%s", line_of(done * unit, total * unit, values))
                if done // self.rl.checkpoint_every > saved // self.rl.checkpoint_every:
                    self._save(done, state)
                    saved = done
            if done > saved:
                self._save(done, state)
            self.checkpoints.wait()
            summary: dict[str, Any] = {
                "step": done * unit, "loss": None, "best": {}, "finished": done >= total,
                "stopped_early": False,
            }  # fmt: skip
            if summary["finished"]:
                summary |= self._finish(state, done * unit, writer)
        finally:
            writer.close()
        return summary

    def _values(self, metrics: dict[str, np.ndarray], done: int) -> dict[str, Any]:
        """Means over the updates since the last line."""
        if not np.all(metrics.pop("finite")):
            from uvos_jax.train.loop import NonFiniteError

            raise NonFiniteError(
                f"loss or gradients of the agent are not finite before update {done}: lower rl.lr"
            )
        sums = {k: float(metrics.pop(k).sum()) for k in ("episodes", "return_sum", "length_sum")}
        values = {k: float(np.mean(v)) for k, v in sorted(metrics.items())}
        values |= {"update": done, "episodes": sums["episodes"]}
        if sums["episodes"]:
            values["episode_return"] = sums["return_sum"] / sums["episodes"]
            values["episode_length"] = sums["length_sum"] / sums["episodes"]
        return values

    def _host_run(self, state: rl.AgentState, count: int) -> tuple[rl.AgentState, dict]:
        """`Agent.run` with environments on the host."""
        rows = []
        for _ in range(count):
            rollout, ended = self.host.play(self.agent, state)
            state, metrics = self.host.learn(self.agent, state, rollout)
            rows.append(metrics | ended)
        return state, {k: np.stack([jax.device_get(row[k]) for row in rows]) for k in rows[0]}

    def _save(self, done: int, state: rl.AgentState) -> None:
        self.checkpoints.save(done, self._tree(state), InputPosition({}), self.stored)

    def _finish(self, state: rl.AgentState, steps: int, writer: RunLog) -> dict[str, Any]:
        """Weights, scores over whole episodes, a video, curves."""
        params = meshes.to_host(state.params, self.mesh)
        summary: dict[str, Any] = {}
        if not self.main:
            return summary
        summary["weights"] = str(self._export(params, steps))
        if self.rl.eval_episodes:
            scores = self.scores(params)
            writer.write(steps, scores)
            summary |= scores
            if self.show:
                log.info(
                    "return over whole episodes: %.2f, of random play %.2f",
                    scores["returns"], scores["random_returns"],
                )  # fmt: skip
        if self.rl.video_steps:
            self.film(params, self.folder / "agent.mp4")
        draw_curves(self.folder / "metrics.jsonl", self.folder / "curves.png")
        return summary

    def scores(self, params: Any) -> dict[str, float]:
        """Mean returns of whole episodes: of the agent (`returns`), and of random play.

        On the host one episode of each environment, whatever `eval_episodes` says.
        """
        episodes, key = self.rl.eval_episodes, jax.random.key(self.config.seed + 2)
        if self.host is not None:
            own, random = (self.host.episode_scores(self.agent, p, key) for p in (params, None))
            return {"returns": float(own.mean()), "random_returns": float(random.mean())}
        own = jax.jit(lambda p: rl.agent_returns(self.agent, p, key, episodes))(params)
        random = jax.jit(lambda k: rl.episode_returns(self.env, k, episodes))(key)
        return {"returns": float(jnp.mean(own)), "random_returns": float(jnp.mean(random))}

    def film(self, params: Any, path: Path) -> Path:
        """An mp4 of the agent at play: the frame, and what it takes for moving, side by side."""
        key = jax.random.key(self.config.seed + 3)
        watch = jax.jit(rl.watch, static_argnums=(0, 1, 4))
        if self.host is not None:
            watch = self.host.watch
        seen = jax.device_get(watch(self.agent, self.system, params, key, self.rl.video_steps))
        return write_film(seen, path, threshold=self.config.predict.threshold)

    def _export(self, params: Any, steps: int) -> Path:
        from uvos_jax.convert.variables import save_variables

        facts = {
            "config": self.config,
            "spec": self.system.spec,
            "extra": {"step": steps, "actions": self.agent.policy.actions},
        }
        policy = self.workdir / "agent.npz"
        save_variables(Variables({"params": params}), policy, **facts)
        if not self.agent.policy.segments:
            return policy
        path = self.workdir / "weights.npz"
        save_variables(Variables({"params": segmenter_of(params)}), path, **facts)
        return path


def stored_fields(config: Any) -> dict[str, Any]:
    """What must be alike for an agent to be resumed."""
    values = json.loads(configs.to_json(config))
    kept = {k: v for k, v in values["rl"].items() if k not in FREE_FIELDS}
    model = {k: v for k, v in values["model"].items() if not k.startswith("init_")}
    return {"rl": kept, "model": model, "seed": values["seed"]}


def _abstract(x: Any) -> bool:
    return isinstance(x, jax.ShapeDtypeStruct)


def load_agent(path: str | Path) -> tuple[rl.Agent, Any, dict[str, Any]]:
    """A trained agent of a pixel environment, its segmenter and its parameters, from `agent.npz`.

    Raises:
      CheckpointError: the file holds no agent.
    """
    from uvos_jax.convert.variables import load_variables

    variables = load_variables(path)
    try:
        config = configs.from_weights(variables.meta["config"])
        system = stages.build_system(config)
        size = config.model.input_size[0]
        env = make_environment(config.rl.env, size=size, **dict(config.rl.env_fields))
        agent = rl.make_agent(system, env, config.rl)
    except UvosError:
        raise
    except (KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{path} holds no agent ({error}): give the agent.npz of a run"
        ) from error
    params = variables["params"]
    if "pi" not in params:
        raise CheckpointError(f"{path} holds a segmenter only: give the agent.npz of a run")
    return agent, system, params


def write_film(seen: dict[str, np.ndarray], path: Path, *, threshold: float = 0.5) -> Path:
    """Writes what `rl.watch` returns as mp4."""
    from uvos_jax.data.video_io import VideoWriter
    from uvos_jax.viz.overlay import annotate, overlay, side_by_side

    total = 0.0
    with VideoWriter(path, fps=15.0) as video:
        for t, grey in enumerate(seen["frames"]):
            large = np.repeat(np.repeat(grey, ZOOM, 0), ZOOM, 1)
            frame = np.repeat(large[..., None], 3, -1)
            panels = [annotate(frame, f"return {total:.1f}")]
            if "moving" in seen:
                mask = (seen["moving"][t] > threshold).astype(np.uint8)
                panels.append(overlay(frame, np.repeat(np.repeat(mask, ZOOM, 0), ZOOM, 1)))
            video.write(side_by_side(*panels))
            total = 0.0 if seen["dones"][t] else total + float(seen["rewards"][t])
    return path


def draw_curves(log_path: Path, path: Path) -> Path:
    """Draws what an agent's `metrics.jsonl` holds."""
    from uvos_jax.train.pictures import curve, write_png

    rows = read_log(log_path)
    drawn = [
        curve(key, [r["step"] for r in rows if key in r], [r[key] for r in rows if key in r])
        for key in CURVES
        if any(key in row for row in rows)
    ]
    return write_png(path, np.concatenate(drawn)) if drawn else path


def line_of(steps: int, total: int, values: dict[str, Any]) -> str:
    """One line on how training goes."""
    parts = [f"step {steps}/{total}"]
    if "episode_return" in values:
        parts.append(f"return {values['episode_return']:.2f}")
    for key in ("entropy", "reconstruction"):
        if key in values:
            parts.append(f"{key} {values[key]:.4f}")
    return "  ".join([*parts, f"{values['steps_per_second']:.0f} steps/s"])

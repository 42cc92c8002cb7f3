"""Return by episode of a trial while agents of a study learn, and a film of one of them.

sb3-laplace study run zoo_configs/studies/continuous.yml --workers 2
python examples/continuous.py curves studies/continuous [--docs docs]    # evaluates the checkpoints, a few minutes
python examples/continuous.py film studies/continuous laplace [--seed 0] [--docs docs]
python examples/continuous.py throughput sb3_laplace/HalfCheetahVel-v0   # needs mujoco
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_laplace import LaplaceRecurrentPPO, make_vec_env, posterior_trace
from sb3_laplace.cli.agents import make_env
from sb3_laplace.posthoc.convert import load_recurrent_ppo
from sb3_laplace.studies.runs import RunFolder, Study
from sb3_laplace.studies.training import monitor_folders

#: Seed of the trials that are played
TRIALS_SEED = 20_000
#: Steps of an episode between two images of the film, and pixels of its sides
FILM_EVERY, FILM_PIXELS = 2, 144
#: Colours of agents
COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink")


def checkpoints(run: RunFolder) -> dict[int, Path]:
    """The checkpoints that led to the agent of a run, by number of steps, and the agent itself."""
    found = {}
    for folder, first, last in monitor_folders(run):
        for path in folder.glob("rl_model_*_steps.zip"):
            steps = int(path.stem.split("_")[2])
            if first < steps <= last:
                found[steps] = path
    agent = run.agent
    assert agent is not None
    found[run.run.steps] = run.path / agent["model"]
    return dict(sorted(found.items()))


def load(run: RunFolder, path: Path) -> LaplaceRecurrentPPO:
    """An agent of a run; RecurrentPPO's as the point that it is."""
    if run.run.configuration["algorithm"] == "ppo_lstm":
        recurrent = load_recurrent_ppo(path, "cpu")
        return LaplaceRecurrentPPO.from_recurrent_ppo(recurrent, posterior="point", device="cpu")
    return LaplaceRecurrentPPO.load(path, device="cpu")


def env_of(run: RunFolder, checkpoint: Path, n_trials: int) -> VecEnv:
    """Environments as the agent was trained in, observations normalized as they were at the checkpoint."""
    env_kwargs = run.run.configuration["hyperparams"].get("env_kwargs", {})
    if checkpoint.stem.startswith("rl_model"):
        name = checkpoint.name.replace("rl_model", "rl_model_vecnormalize")
        statistics = checkpoint.with_name(name).with_suffix(".pkl")
    else:
        statistics = checkpoint.parent / checkpoint.stem / "vecnormalize.pkl"
    return make_env(
        run.run.env_id, n_trials, TRIALS_SEED, env_kwargs, str(statistics) if statistics.is_file() else None
    )


def returns_by_episode(run: RunFolder, path: Path, n_trials: int) -> list[float]:
    """Mean return of each episode of a trial, with sampled actions, on the same trials for all agents."""
    model, env = load(run, path), env_of(run, path, n_trials)
    set_random_seed(TRIALS_SEED)
    returns = posterior_trace(model, env, n_trials, progress_bar=False).returns_by_episode
    env.close()
    return [round(float(value), 4) for value in np.nanmean(returns, axis=0)]


def curves(study: Study, n_trials: int, docs: Path) -> None:
    """Evaluate the checkpoints of a study, write the numbers and draw them."""
    found = []
    for run in study.folders.values():
        if run.agent is None or run.run.source is not None:
            continue
        # The agent and every second checkpoint before it
        chosen = list(checkpoints(run).items())[::-2][::-1]
        evaluated = {steps: returns_by_episode(run, path, n_trials) for steps, path in chosen}
        key = {"agent": run.run.agent, "environment": run.run.env_id, "seed": run.run.seed}
        found.append({**key, "steps": list(evaluated), "returns": list(evaluated.values())})
        print(run.run.title, evaluated[run.run.steps], flush=True)
    name = study.spec.name
    document = {"study": name, "n_trials": n_trials, "trials_seed": TRIALS_SEED, "actions": "sampled", "runs": found}
    (docs / "results").mkdir(parents=True, exist_ok=True)
    (docs / "results" / f"{name}-episodes.json").write_text(json.dumps(document) + "\n")
    draw_curves(found).savefig(docs / f"{name}-episodes.png", dpi=100)


def draw_curves(runs: list[dict[str, Any]]) -> Figure:
    """A panel for each episode of a trial: the return against steps, a thin line for each seed, a thick one for means.

    Seeds whose checkpoints differ (a run that was killed goes on from its last) have thin lines alone.
    """
    n_episodes = max(len(run["returns"][0]) for run in runs)
    figure = Figure(figsize=(3.3 * n_episodes, 3.2), layout="constrained")
    axes = figure.subplots(1, n_episodes, sharey=True, squeeze=False)[0]
    agents = list(dict.fromkeys(run["agent"] for run in runs))
    for episode, panel in enumerate(axes):
        for agent, color in zip(agents, COLORS, strict=False):
            own = [run for run in runs if run["agent"] == agent]
            lines = [(run["steps"], [returns[episode] for returns in run["returns"]]) for run in own]
            for steps, returns in lines:
                panel.plot(steps, returns, color=color, linewidth=0.6, alpha=0.6)
            if all(steps == lines[0][0] for steps, _ in lines):
                label = f"{agent} ({len(own)})" if episode == 0 else None
                panel.plot(lines[0][0], np.mean([y for _, y in lines], axis=0), color=color, linewidth=1.8, label=label)
        panel.set_title(f"episode {episode + 1}", fontsize="medium")
        panel.set_xlabel("steps")
        panel.grid(alpha=0.3)
    axes[0].set_ylabel("return of the episode")
    figure.legend(loc="outside lower center", ncols=len(agents), fontsize="small", title="agents (seeds)")
    return figure


def film(study: Study, run: RunFolder, docs: Path, n_trials: int = 4) -> Path:
    """Draw the beginnings of episodes one and two of some trials, side by side, with sampled actions."""
    assert run.agent is not None
    path = run.path / run.agent["model"]
    model, env = load(run, path), env_of(run, path, n_trials)
    length = env.unwrapped.env.unwrapped.episode_length  # type: ignore[attr-defined]
    set_random_seed(TRIALS_SEED)
    observations, state, starts = env.reset(), None, np.ones(n_trials, dtype=bool)
    images = []
    for step in range(2 * length):
        if step % length < 40 and step % FILM_EVERY == 0:
            row = np.hstack([np.asarray(frame) for frame in env.get_images()])
            image = Image.fromarray(row).resize((n_trials * FILM_PIXELS, FILM_PIXELS))
            ImageDraw.Draw(image).text((4, 2), f"episode {step // length + 1}, step {step % length}", fill=(0, 0, 0))
            images.append(image.quantize(16))
        actions, state = model.predict(observations, state, starts)  # type: ignore[arg-type]
        observations, _, starts, _ = env.step(actions)
    file = docs / f"{study.spec.name}-{run.run.agent}.gif"
    images[0].save(file, save_all=True, append_images=images[1:], duration=100, loop=0)
    return file


class Clock(BaseCallback):
    """CPU seconds of this process at the end of each rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.seconds.append(time.process_time())


def throughput(env_id: str, n_envs: int, n_steps: int, posterior: str) -> None:
    """Steps of ``learn`` in a CPU second of one thread, simulation included: the median of three iterations."""
    th.set_num_threads(1)
    env = VecNormalize(make_vec_env(env_id, n_envs, seed=0, env_kwargs={"num_threads": 1}))
    policy_kwargs = {"lstm_hidden_size": 128, "shared_lstm": True, "enable_critic_lstm": False, "latent_dim": 64}
    model = LaplaceRecurrentPPO(
        "LaplaceLstmPolicy",
        env,
        n_steps=n_steps,
        batch_size=n_steps * n_envs // 8,
        n_epochs=6,
        policy_kwargs={**policy_kwargs, "posterior": posterior},
        device="cpu",
        seed=0,
    )
    clock = Clock()
    model.learn(4 * n_steps * n_envs, callback=clock)
    seconds = float(np.median(np.diff(clock.seconds)))
    print(f"{env_id}, {n_envs} x {n_steps}, {posterior}: {n_envs * n_steps / seconds:.0f} steps in a CPU second")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("curves", "film"):
        command = commands.add_parser(name)
        command.add_argument("study", type=Path)
        command.add_argument("--docs", type=Path, default=Path("docs"))
        if name == "curves":
            command.add_argument("--trials", type=int, default=64)
        else:
            command.add_argument("agent")
            command.add_argument("--seed", type=int, default=0)
    command = commands.add_parser("throughput")
    command.add_argument("env")
    command.add_argument("--n-envs", type=int, default=128)
    command.add_argument("--n-steps", type=int, default=400)
    command.add_argument("--posterior", default="laplace")
    options = parser.parse_args()
    if options.command == "throughput":
        throughput(options.env, options.n_envs, options.n_steps, options.posterior)
        return
    study = Study.load(options.study)
    if options.command == "curves":
        curves(study, options.trials, options.docs)
        return
    chosen = [
        run
        for run in study.folders.values()
        if run.agent is not None and (run.run.agent, run.run.seed) == (options.agent, options.seed)
    ]
    if not chosen:
        raise SystemExit(f"no agent {options.agent!r} with seed {options.seed} has been trained in {options.study}")
    print(film(study, chosen[0], options.docs))


if __name__ == "__main__":
    main()

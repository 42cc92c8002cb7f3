"""What one of two processes does in tests/test_parallel.py: started by torchrun, or as members of a group of ours.

``python -m torch.distributed.run ... parallel_worker.py FOLDER NAME...`` runs scenarios of this module, one by one,
and writes what each returns to FOLDER/NAME-RANK.pkl.
"""

import os
import pickle
import signal
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
import torch.distributed as dist
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    ConvertCallback,
    EvalCallback,
    EveryNTimesteps,
)
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from sb3_laplace import LaplaceRecurrentPPO, PosteriorCallback, make_vec_env
from sb3_laplace.algorithm import distributed
from sb3_laplace.algorithm.buffers import SequenceRolloutBuffer
from sb3_laplace.algorithm.losses.consistency import Balance, LatentBalance, TaskBalance
from sb3_laplace.algorithm.parallel import loss_of_all_ranks
from sb3_laplace.algorithm.rank_callbacks import GlobalProgressBarCallback
from sb3_laplace.posteriors import PosteriorStep
from tests.helpers import RandomEnv
from tests.test_balance import conjugate
from tests.test_not_finite import BrokenEnv

N_STEPS, SEQUENCE_LENGTH = 13, 5
#: Environments of each of two ranks whose gradient is that of one process with all of them
N_ENVS = 64


def random_envs(n_envs: int, **kwargs: Any) -> VecEnv:
    return DummyVecEnv([lambda: RandomEnv(**kwargs) for _ in range(n_envs)])


def small_model(env: VecEnv, **kwargs: Any) -> LaplaceRecurrentPPO:
    arguments = {"n_steps": 12, "batch_size": 12, "n_epochs": 2, "seed": 0, "device": "cpu", **kwargs}
    policy_kwargs = {"lstm_hidden_size": 8, "latent_dim": 4, "net_arch": [8]}
    return LaplaceRecurrentPPO("LaplaceLstmPolicy", env, policy_kwargs=policy_kwargs, **arguments)


# -- the gradient on given data -----------------------------------------------------------------------------


def gradient_model(n_envs: int) -> LaplaceRecurrentPPO:
    """All terms but targets; sequences of 5, 4 and 4 steps: minibatches of as many sequences may differ in steps."""
    kwargs = {"n_steps": N_STEPS, "sequence_length": SEQUENCE_LENGTH, "batch_size": None, "reward_coef": 0.3}
    return small_model(random_envs(n_envs), kl_coef=0.1, ent_coef=0.01, **kwargs)


def part_of(whole: SequenceRolloutBuffer, part: SequenceRolloutBuffer, envs: slice) -> None:
    """Fill a buffer with some of the environments of another."""
    part._stored = {name: tensor[envs].clone() for name, tensor in whole._stored.items()}
    part._states = {name: tensor[:, envs].clone() for name, tensor in whole._states.items()}
    for name in ("rewards", "returns", "episode_starts", "advantages", "values", "log_probs"):
        setattr(part, name, getattr(whole, name)[:, envs].copy())
    part.pos, part.full = whole.pos, True


def gradient(model: LaplaceRecurrentPPO, sequences: np.ndarray) -> dict[str, Any]:
    """Gradient and numbers of the minibatch of these sequences, with the other ranks' of theirs."""
    for term in model.loss_terms:
        term.begin_update()
    next(model.rollout_buffer.get(None))
    samples = model.rollout_buffer._get_sequences(sequences)
    terms = [term for term in model.loss_terms if term.is_stored]
    parameters = list(model.policy.parameters())
    for parameter in parameters:
        parameter.grad = None
    loss, numbers = loss_of_all_ranks(partial(model._loss, samples, terms), samples.mask)
    loss.backward()
    distributed.average_gradients(parameters)
    grads = [None if parameter.grad is None else parameter.grad.numpy().copy() for parameter in parameters]
    return {"grads": grads, "approx_kl": numbers["approx_kl"]}


#: Which of each rank's sequences are in a minibatch: three of each environment, the first of which is longer
MINIBATCHES = {
    "all": (np.arange(3 * N_ENVS), np.arange(3 * N_ENVS)),
    # As many sequences, 20 steps and 16
    "unequal": (np.array([0, 3, 6, 9]), np.array([1, 2, 4, 5])),
}


def same_data(folder: Path) -> Any:
    given = pickle.loads((folder / "whole.pkl").read_bytes())
    model = gradient_model(N_ENVS)
    distributed.join(model.device)
    model.set_parameters(given["parameters"])
    for term in model.loss_terms:
        term.begin_rollout(model.env)
    rank = distributed.rank()
    part_of(given["buffer"], model.rollout_buffer, slice(N_ENVS * rank, N_ENVS * (rank + 1)))
    return {name: gradient(model, ranks[rank]) for name, ranks in MINIBATCHES.items()}


# -- the ratio that kl_coef="auto" follows ------------------------------------------------------------------


def ratios(envs: slice) -> dict[str, list[float]]:
    """Moves over claims in two rollouts of these of 60 environments, with the other ranks' of theirs.

    Of whole trials, and of their parts.
    """
    steps, numbers = conjugate(60, 6, overconfidence=3.0)
    choices = (numbers > 0).astype(np.int64)
    cases = {"latent": (LatentBalance, None), "numbers": (TaskBalance, numbers), "choices": (TaskBalance, choices)}
    found: dict[str, list[float]] = {}

    def add(name: str, balance: Balance) -> None:
        log_ratios = balance.log_ratios()
        assert log_ratios is not None
        found.setdefault(name, []).append(log_ratios.whole)
        for i, part in enumerate(log_ratios.parts.tolist()):
            found.setdefault(f"{name}, part {i}", []).append(part)

    for name, (kind, tasks) in cases.items():
        n_envs = len(numbers[envs])
        balance = kind(n_envs, 6, seed=0)
        for _ in range(2):
            balance.begin()
            for t, step in enumerate(steps):
                index = th.arange(60)[envs]
                part = PosteriorStep(step.posterior[index], step.previous[index], ())
                balance.add(part, np.full(n_envs, t), None if tasks is None else tasks[envs])
            add(name, balance)
        # On a rollout of one rank alone, too
        balance.begin()
        if distributed.rank() == 0 and n_envs:
            balance.add(part, np.full(n_envs, 5), None if tasks is None else tasks[envs])
        add(name, balance)
    return found


def balances(folder: Path) -> Any:
    distributed.join(th.device("cpu"))
    return ratios(slice(0, 20) if distributed.rank() == 0 else slice(20, 60))


# -- whole runs ---------------------------------------------------------------------------------------------


class Recorder(BaseCallback):
    """Observations as they are and global steps; ends the training at the n-th call on one rank, if asked to."""

    def __init__(self, stop_at: int | None = None, stop_rank: int = 1) -> None:
        super().__init__()
        self.stop_at, self.stop_rank = stop_at, stop_rank
        self.observations: list[np.ndarray] = []
        self.progress: list[float] = []
        self.episodes: list[dict[str, float]] = []

    def _on_training_start(self) -> None:
        self.tasks = self.training_env.get_attr("task") if self.training_env.has_attr("task") else []
        normalizer = self.model.get_vec_normalize_env()
        if normalizer is not None:
            self.observations.append(normalizer.get_original_obs())

    def _on_step(self) -> bool:
        normalizer = self.model.get_vec_normalize_env()
        if normalizer is not None:
            self.observations.append(normalizer.get_original_obs())
        self.episodes += [info["episode"] for info in self.locals["infos"] if "episode" in info]
        return not (self.n_calls == self.stop_at and distributed.rank() == self.stop_rank)

    def _on_rollout_end(self) -> None:
        self.progress.append(self.model._current_progress_remaining)


def summary(model: LaplaceRecurrentPPO) -> dict[str, Any]:
    return {
        "weights": th.nn.utils.parameters_to_vector(model.policy.parameters()).detach().numpy(),
        "num_timesteps": model.num_timesteps,
        "n_updates": model._n_updates,
        "kl_multiplier": model.kl_multiplier,
        "episodes": list(model.ep_info_buffer or ()),
    }


def whole_run(folder: Path) -> Any:
    """VecNormalize, kl_coef="auto" in the read-out of the task, a schedule, and what writes."""
    env = VecNormalize(make_vec_env("sb3_laplace/GridNavigation-v0", n_envs=4, seed=0, env_kwargs={"trial_length": 20}))
    model = small_model(
        env, n_steps=20, batch_size=40, kl_coef="auto", learning_rate=lambda progress: 1e-2 * progress, verbose=1
    )
    logger = configure(str(folder / f"log-{distributed.rank()}"), ["json"])
    model.set_logger(logger)
    recorder = Recorder()
    checkpoints = CheckpointCallback(20, str(folder / "checkpoints"))
    triggered = EveryNTimesteps(100, CheckpointCallback(1, str(folder / "triggered")))
    evaluation = EvalCallback(
        VecNormalize(make_vec_env("sb3_laplace/GridNavigation-v0", n_envs=1, env_kwargs={"trial_length": 20})),
        eval_freq=30,
        n_eval_episodes=1,
        best_model_save_path=str(folder / "best"),
        verbose=0,
    )
    given = [recorder, checkpoints, CallbackList([triggered, evaluation]), PosteriorCallback()]
    model.learn(640, callback=given, progress_bar=True)
    model.logger.dump(model.num_timesteps)
    model.save(folder / "agent")
    model.logger.close()
    return summary(model) | {
        "tasks": np.stack(recorder.tasks),
        "observations": np.concatenate(recorder.observations),
        "own_episodes": recorder.episodes,
        "progress": recorder.progress,
        "statistics": (env.obs_rms.mean, env.obs_rms.var, env.obs_rms.count, env.ret_rms.var, env.ret_rms.count),
        "learning_rate": model.policy.optimizer.param_groups[0]["lr"],
        "n_calls": [one.n_calls for one in (recorder, checkpoints, evaluation)],
        "bar": [type(one) is GlobalProgressBarCallback for one in progress_bars(model)],
    }


def progress_bars(model: LaplaceRecurrentPPO) -> list[BaseCallback]:
    """The progress bars that the model would start with."""
    callback = model._init_callback(None, progress_bar=True)
    assert isinstance(callback, CallbackList)
    return [one for one in callback.callbacks if not isinstance(one, ConvertCallback)]


def unseeded(folder: Path) -> Any:
    """Without a seed of the model, environments that the script has seeded alike on all ranks."""
    env = make_vec_env("sb3_laplace/DirichletBandit-v0", n_envs=2, seed=0)
    model = small_model(env, seed=None).learn(48)
    return {"tasks": np.stack(env.get_attr("task")), **summary(model)}


def latent_balance(folder: Path) -> Any:
    """kl_coef="auto" where no task is reported."""
    model = small_model(random_envs(4), kl_coef="auto").learn(288)
    return summary(model)


def stopped(folder: Path) -> Any:
    """Rank 1 has enough after 5 steps of the second rollout."""
    return summary(small_model(random_envs(4)).learn(10_000, callback=Recorder(stop_at=17)))


def early(folder: Path) -> Any:
    """A learning rate and a target that no epoch survives; all ranks end it together."""
    model = small_model(random_envs(4), learning_rate=0.1, target_kl=0.01, n_epochs=20)
    return summary(model.learn(288))


def reward_kinds(folder: Path) -> Any:
    """Rewards that look like Bernoulli's on rank 0 alone."""
    model = small_model(random_envs(2), reward_coef=1.0)
    if distributed.rank() == 0:
        model.env.step_wait = with_binary_rewards(model.env.step_wait)  # type: ignore[method-assign]
    model.learn(48)
    return bool(model.policy.reward_decoder.gaussian)


def with_binary_rewards(step_wait: Any) -> Any:
    def binary() -> Any:
        obs, rewards, dones, infos = step_wait()
        return obs, (rewards > 0).astype(np.float32), dones, infos

    return binary


def failing(folder: Path) -> Any:
    """NaN on rank 1, then a loss that is not finite there."""
    messages = []
    envs = [lambda: BrokenEnv(int(distributed.rank() == 1), reward=np.nan)]
    models = [small_model(DummyVecEnv(envs)), small_model(random_envs(2))]

    class Spoiler(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            if distributed.rank() == 1:
                self.model.rollout_buffer.returns[:] = np.inf

    for model, callback in zip(models, (None, Spoiler()), strict=True):
        try:
            model.learn(1000, callback=callback)
        except ValueError as error:
            messages.append(str(error))
    return messages


def differing(folder: Path) -> Any:
    """What ranks may not differ in, and what a callback may not do on one of them alone."""
    messages = []

    class Meddler(BaseCallback):
        def _on_step(self) -> bool:
            with th.no_grad():
                next(self.model.policy.parameters()).add_(float(distributed.rank()))
            return True

    for n_envs, batch_size, callback in (
        (2 + distributed.rank(), 12, None),
        (2, 12 * (1 + distributed.rank()), None),
        (2, 12, Meddler()),
    ):
        try:
            small_model(random_envs(n_envs), batch_size=batch_size).learn(1000, callback=callback)
        except ValueError as error:
            messages.append(str(error))
    return messages


def resumed(folder: Path) -> Any:
    """An agent of a single process goes on."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = LaplaceRecurrentPPO.load(folder / "single", env=random_envs(4), device="cpu")
        model.learn(96, reset_num_timesteps=False)
        model.save(folder / "resumed")
    return summary(model) | {"warnings": [str(one.message) for one in caught], "n_ranks": model.n_ranks}


def own_group(folder: Path) -> Any:
    """In a group that was there before, which stays."""
    group = dist.group.WORLD
    result = summary(small_model(random_envs(2)).learn(48))
    return result | {"kept": dist.is_initialized() and dist.group.WORLD is group, "backend": dist.get_backend()}


def killed(folder: Path) -> Any:
    """Rank 1 is killed as soon as rank 0 has a checkpoint."""

    class Victim(BaseCallback):
        def _on_step(self) -> bool:
            if distributed.rank() == 1 and list((folder / "killed").glob("*.zip")):
                os.kill(os.getpid(), signal.SIGKILL)
            return True

    model = small_model(random_envs(4))
    model.learn(10**9, callback=[CheckpointCallback(5, str(folder / "killed")), Victim()])


def main(folder: Path, names: list[str]) -> None:
    th.set_num_threads(1)
    for name in names:
        result = globals()[name](folder)
        (folder / f"{name}-{distributed.rank()}.pkl").write_bytes(pickle.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

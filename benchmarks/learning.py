"""Environment steps per second of whole learn() calls: ours beside sb3-contrib's RecurrentPPO."""

import gc
import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import torch as th
from sb3_contrib import RecurrentPPO
from stable_baselines3.common import env_util
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecEnv

from benchmarks.common import Record, Selection, Sizes, against_target, clock, interleave, print_table, verdict
from sb3_laplace import LaplaceRecurrentPPO, make_vec_env

BASELINE = "recurrent-ppo"

#: Policy keywords of our candidates, beside those of the workload
CANDIDATES: dict[str, dict[str, Any]] = {
    "point": {"posterior": "point"},
    "diagonal": {"posterior_kwargs": {"covariance": "diagonal"}},
    "full": {"posterior_kwargs": {"covariance": "full"}},
    "identity-diagonal": {"posterior_kwargs": {"covariance": "diagonal"}},
    "full-kl": {"posterior_kwargs": {"covariance": "full"}},
}
#: Coefficients of the KL penalty, where it is not 0
KL_COEFS = {"full-kl": 0.01}
_WITHOUT_PROJECTION = (BASELINE, "identity-diagonal")

#: Ratio to RecurrentPPO on 2 cores that (workload, candidate, env, n_envs) should reach
TARGETS: dict[tuple[str, str, str, int], float] = {
    ("bandit", "point", "batched", 16): 5.0,
    ("bandit", "point", "batched", 64): 4.0,
    ("bandit", "point", "batched", 256): 6.0,
    ("bandit", "diagonal", "batched", 16): 3.5,
    ("bandit", "diagonal", "batched", 64): 2.5,
    ("bandit", "diagonal", "batched", 256): 3.5,
    ("bandit", "full", "batched", 16): 3.0,
    ("bandit", "full", "batched", 64): 2.0,
    ("bandit", "full", "batched", 256): 2.3,
    ("bandit", "identity-diagonal", "batched", 16): 4.0,
    ("bandit", "identity-diagonal", "batched", 64): 3.0,
    ("bandit", "identity-diagonal", "batched", 256): 4.0,
    ("bandit", "full-kl", "batched", 16): 2.5,
    ("bandit", "full-kl", "batched", 64): 1.6,
    ("bandit", "full-kl", "batched", 256): 1.6,
    ("bandit", "point", "dummy", 16): 4.0,
    ("cartpole", "point", "dummy", 8): 3.0,
    ("cartpole", "full", "dummy", 8): 2.0,
}


@dataclass(frozen=True)
class LearnCase:
    """A model to time.

    :param workload: "bandit" (every episode as long as a rollout) or "cartpole" (episodes end at random steps)
    :param candidate: BASELINE or a name of CANDIDATES
    :param env: "batched", or "dummy" for single environments in a DummyVecEnv
    :param n_envs: number of environments N
    :param n_steps: steps T of a rollout
    :param hidden_size: LSTM units H
    :param latent_dim: latent units D, None for the identity latent
    :param learn_steps: environment steps of a learn() call, rounded down to whole rollouts, one at least
    """

    workload: str
    candidate: str
    env: str
    n_envs: int
    n_steps: int
    hidden_size: int
    latent_dim: int | None
    learn_steps: int

    @property
    def path(self) -> tuple[str, str, str, int]:
        """Its words for a Selection, and the key of its target."""
        return self.workload, self.candidate, self.env, self.n_envs

    @property
    def steps_per_learn(self) -> int:
        """Environment steps of a learn() call."""
        rollout = self.n_envs * self.n_steps
        return rollout * max(1, self.learn_steps // rollout)

    def build_env(self) -> VecEnv:
        """Its training environment."""
        if self.workload == "cartpole":
            return env_util.make_vec_env("CartPole-v1", self.n_envs, seed=0)
        make = make_vec_env if self.env == "batched" else env_util.make_vec_env
        return make("sb3_laplace/DirichletBandit-v0", self.n_envs, seed=0, env_kwargs={"trial_length": self.n_steps})

    def build(self, env: VecEnv, device: th.device) -> RecurrentPPO:
        """Its model, not trained yet."""
        policy_kwargs: dict[str, Any] = {"lstm_hidden_size": self.hidden_size}
        arguments: dict[str, Any] = {"n_steps": self.n_steps}
        if self.workload == "bandit":
            policy_kwargs |= {"shared_lstm": True, "enable_critic_lstm": False, "net_arch": [64]}
            arguments |= {"batch_size": max(1, self.n_steps * self.n_envs // 4), "n_epochs": 4}
        else:
            # An update costs the same, and the policy stays the random one. Agents that learn make CartPole's
            # episodes longer, each at its own pace: no two would be timed at the same work.
            arguments |= {"learning_rate": 0.0}
        arguments |= {"seed": 0, "device": device}
        if self.candidate == BASELINE:
            return RecurrentPPO("MlpLstmPolicy", env, policy_kwargs=policy_kwargs, **arguments)
        policy_kwargs |= {"latent_dim": self.latent_dim, **CANDIDATES[self.candidate]}
        kl_coef = KL_COEFS.get(self.candidate, 0.0)
        return LaplaceRecurrentPPO("LaplaceLstmPolicy", env, kl_coef=kl_coef, policy_kwargs=policy_kwargs, **arguments)


class LearnTimer:
    """Times learn() calls of one model that trains on from call to call, its rollouts and updates apart.

    :param case: the model
    :param device: where it runs
    :param folder: for its TensorBoard log, which is part of the work; None for no log
    """

    def __init__(self, case: LearnCase, device: th.device, folder: str | None) -> None:
        self.case = case
        self.device = device
        self.env = case.build_env()
        self.model = case.build(self.env, device)
        self.model.set_logger(configure(folder, [] if folder is None else ["tensorboard"]))
        for part, method in (("rollout", "collect_rollouts"), ("update", "train")):
            setattr(self.model, method, self._timed(part, getattr(self.model, method)))
        self._seconds: dict[str, float] = {}

    def _timed(self, part: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = clock(self.device)
            result = method(*args, **kwargs)
            self._seconds[part] += clock(self.device) - start
            return result

        return timed

    def __call__(self) -> dict[str, float]:
        """Seconds of a learn() call: "learn" of all of it, "rollout" and "update" of these parts."""
        self._seconds = {"rollout": 0.0, "update": 0.0}
        start = clock(self.device)
        self.model.learn(self.case.steps_per_learn, reset_num_timesteps=False)
        return {"learn": clock(self.device) - start, **self._seconds}

    def close(self) -> None:
        """Close the environment and the log."""
        self.model.logger.close()
        self.env.close()


def time_learning(title: str, cases: Sequence[LearnCase], device: th.device, repeats: int) -> list[Record]:
    """Time learn() calls of several models in turn.

    :param title: says on stderr what is measured
    :param cases: the models
    :param device: where they run
    :param repeats: calls of each model that count, after one that warms up
    :return: for each case its parameters, the medians of its steps per second, and all seconds
    """
    with ExitStack() as stack:
        timers = []
        for case in cases:
            timer = LearnTimer(case, device, stack.enter_context(tempfile.TemporaryDirectory()))
            stack.callback(timer.close)
            timers.append(timer)
        # Else every garbage collection in one model's call would walk through the objects of all the others
        gc.collect()
        gc.freeze()
        stack.callback(gc.unfreeze)
        results = interleave(title, timers, repeats)
    return [_record(case, calls) for case, calls in zip(cases, results, strict=True)]


def _record(case: LearnCase, calls: list[dict[str, float]]) -> Record:
    seconds = {part: [call[part] for call in calls] for part in calls[0]}
    medians = {part: statistics.median(values) for part, values in seconds.items()}
    steps = case.steps_per_learn
    return {
        **asdict(case),
        "steps_per_learn": steps,
        "steps_per_second": steps / medians["learn"],
        "rollout_steps_per_second": steps / medians["rollout"],
        "update_steps_per_second": steps / medians["update"],
        # How much the machine's other work blurs the numbers
        "spread": (max(seconds["learn"]) - min(seconds["learn"])) / medians["learn"],
        "seconds": seconds,
    }


def bandit_cases(sizes: Sizes) -> list[LearnCase]:
    """The first workload: whole trials."""
    runs = [(BASELINE, "dummy", n_envs) for n_envs in sizes.baseline_n_envs]
    for env, all_n_envs in (("batched", sizes.n_envs), ("dummy", sizes.dummy_n_envs)):
        runs += [(name, env, n_envs) for name in CANDIDATES for n_envs in all_n_envs]
    return [
        LearnCase(
            workload="bandit",
            candidate=name,
            env=env,
            n_envs=n_envs,
            n_steps=sizes.n_steps,
            hidden_size=sizes.hidden_size,
            latent_dim=None if name in _WITHOUT_PROJECTION else sizes.latent_dim,
            learn_steps=sizes.learn_steps,
        )
        for name, env, n_envs in runs
    ]


def cartpole_cases(sizes: Sizes) -> list[LearnCase]:
    """The second workload: resets inside sequences. K = 0 has RecurrentPPO's very network."""
    return [
        LearnCase(
            workload="cartpole",
            candidate=name,
            env="dummy",
            n_envs=sizes.cartpole_n_envs,
            n_steps=sizes.cartpole_n_steps,
            hidden_size=sizes.cartpole_hidden_size,
            latent_dim=sizes.latent_dim if name == "full" else None,
            learn_steps=0,
        )
        for name in (BASELINE, "point", "full")
    ]


def compare_learning(sizes: Sizes, device: th.device, selection: Selection) -> list[Record]:
    """Both workloads, with the ratio to RecurrentPPO.

    A ratio is to RecurrentPPO at the same number of environments, or at the largest at which that ran.

    :param sizes: how large and how often
    :param device: where to run
    :param selection: which of the candidates; RecurrentPPO always comes along
    """
    records: list[Record] = []
    for workload, cases in (("bandit", bandit_cases(sizes)), ("cartpole", cartpole_cases(sizes))):
        if not any(selection.keeps(*case.path) for case in cases):
            continue
        kept = [case for case in cases if case.candidate == BASELINE or selection.keeps(*case.path)]
        measured = time_learning(workload, kept, device, sizes.repeats)
        baselines = {
            record["n_envs"]: record["steps_per_second"] for record in measured if record["candidate"] == BASELINE
        }
        for case, record in zip(kept, measured, strict=True):
            n_envs = case.n_envs if case.n_envs in baselines else max(baselines)
            record["ratio"] = record["steps_per_second"] / baselines[n_envs]
            record["ratio_to_n_envs"] = n_envs
            # The targets are for CPUs
            target = TARGETS.get(case.path) if device.type == "cpu" else None
            record |= against_target(record["ratio"], target)
        records += measured
    return records


def print_learning(records: list[Record]) -> None:
    """Print the table of each workload."""
    for workload in dict.fromkeys(record["workload"] for record in records):
        print_table(
            f"{workload}: environment steps per second of learn() (spread: largest less smallest, by the median)",
            ("candidate", "env", "N", "learn", "spread", "rollout", "update", "ratio", "target"),
            [
                (
                    record["candidate"],
                    record["env"],
                    str(record["n_envs"]),
                    f"{record['steps_per_second']:,.0f}",
                    f"{record['spread']:.0%}",
                    f"{record['rollout_steps_per_second']:,.0f}",
                    f"{record['update_steps_per_second']:,.0f}",
                    f"{record['ratio']:.2f} x",
                    verdict(record, " x"),
                )
                for record in records
                if record["workload"] == workload
            ],
        )

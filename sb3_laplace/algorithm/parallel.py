"""Training by several processes, each with environments of its own: what they agree on, and when."""

import io
import itertools
import warnings
import zlib
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback, ProgressBarCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_laplace.algorithm import distributed
from sb3_laplace.algorithm.rank_callbacks import callbacks_of_rank
from sb3_laplace.algorithm.rollout import PosteriorRollouts
from sb3_laplace.algorithm.shared_normalizer import Moments, SharedNormalizer

# Ranks' seeds are drawn below this
_MAX_SEED = 2**31


class _Report(NamedTuple):
    """What a rank tells the others after a rollout.

    :param goes_on: whether no callback has ended the training
    :param n_steps: environment steps of the rank in the rollout
    :param episodes: the last episodes that ended in it, as SB3's ``ep_info_buffer`` has them
    :param successes: the same of ``ep_success_buffer``
    :param added: what it adds to the statistics of VecNormalize
    :param checksum: of the weights
    """

    goes_on: bool
    n_steps: int
    episodes: list[dict[str, Any]]
    successes: list[bool]
    added: list[Moments]
    checksum: int


class ParallelRollouts(PosteriorRollouts):
    """Rollouts by all ranks: one count of steps, one set of statistics, one decision to go on.

    With one process everything is the parent's.
    """

    #: Number of ranks that have trained the agent last. An attribute of the class while it is 1: files stay the same.
    n_ranks = 1

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        distributed.place(kwargs.get("device", "auto"))
        verbose = kwargs.get("verbose", 0)
        if distributed.rank() > 0:
            # SB3 says which device and wrappers it takes: once is enough
            kwargs["verbose"] = 0
        super().__init__(*args, **kwargs)
        self.verbose = verbose

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_own_episodes", "_normalizer"]

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        distributed.join(self.device)
        self._count_ranks()
        if distributed.size() > 1:
            self._check_ranks(total_timesteps, reset_num_timesteps)
            self._take_weights_of_first()
            if reset_num_timesteps or self._last_obs is None:
                self._seed_rank()
            self._normalizer = SharedNormalizer(self.get_vec_normalize_env())
            if distributed.rank() > 0:
                self.set_logger(Logger(None, []))
        return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)

    def _count_ranks(self) -> None:
        before, now = self.n_ranks, distributed.size()
        if before == now:
            return
        if self.num_timesteps > 0 and distributed.rank() == 0:
            rollout = self.n_envs * self.n_steps
            warnings.warn(
                f"This agent was trained by {before} rank{'s' * (before > 1)} and goes on with {now}: each update now "
                f"takes {now} x {rollout} = {now * rollout} steps, and each step of the optimizer {now} minibatches of "
                f"at most {self.batch_size or rollout} steps. Weights, the optimizer's state and statistics are "
                "kept, steps and schedules go on where they were (unless they are reset), environments start anew. For "
                "updates as before change n_envs and batch_size to match."
            )
        self.n_ranks = now

    def _check_ranks(self, total_timesteps: int, reset_num_timesteps: bool) -> None:
        """Refuse ranks that would not take the same number of steps and minibatches.

        :raises ValueError: naming what differs, with the value of each rank
        """
        own = {
            "n_envs": self.n_envs,
            "n_steps": self.n_steps,
            "batch_size": self.batch_size,
            "n_epochs": self.n_epochs,
            "sequence_length": self.rollout_buffer.max_length,
            "normalize_advantage": self.normalize_advantage,
            "target_kl": self.target_kl,
            "total_timesteps": total_timesteps,
            "reset_num_timesteps": reset_num_timesteps,
            "num_timesteps": self.num_timesteps,
            "the number of weights": sum(parameter.numel() for parameter in self.policy.parameters()),
            "device": self.device.type,
            "VecNormalize": self.get_vec_normalize_env() is not None,
        }
        everyone = distributed.gather(own)
        for name in own:
            values = [of_rank[name] for of_rank in everyone]
            if any(value != values[0] for value in values):
                raise ValueError(
                    f"All ranks must train with the same settings: {name} must be equal on all {len(values)} of them, "
                    f"got {', '.join(f'{value!r} on rank {rank}' for rank, value in enumerate(values))}."
                )

    def _take_weights_of_first(self) -> None:
        """Weights and the state of the optimizer of rank 0."""
        buffer = io.BytesIO()
        if distributed.rank() == 0:
            th.save(self.get_parameters(), buffer)
        content = distributed.from_first(buffer.getvalue())
        if distributed.rank() > 0:
            self.set_parameters(th.load(io.BytesIO(content), map_location=self.device))

    def _seed_rank(self) -> None:
        """Other tasks and other noise on every rank, whatever the script has seeded; rank 0 keeps its own."""
        # Rank 0's generator is the one that SB3 seeds: runs with a seed can be repeated
        seed = distributed.from_first(int(np.random.randint(_MAX_SEED)))  # noqa: NPY002
        if distributed.rank() > 0:
            self.set_random_seed((seed + distributed.rank() * self.n_envs) % _MAX_SEED)

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        if distributed.size() == 1:
            return super()._init_callback(callback, progress_bar)
        if not isinstance(callback, list):
            callback = [callback if isinstance(callback, BaseCallback) else ConvertCallback(callback)]
        bars = [ProgressBarCallback()] if progress_bar else []
        return super()._init_callback(callbacks_of_rank([*callback, *bars]))

    # -- rollouts ---------------------------------------------------------------------------------------

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """The parent's; then ranks merge their statistics and agree on whether to go on.

        :param env: the training environment of this rank
        :param callback: called at each step, and at the beginning and end of the rollout
        :param rollout_buffer: the buffer to fill
        :param n_rollout_steps: number of steps to collect per environment
        :return: False if a callback of any rank has ended the training
        :raises ValueError: as the parent; also if another rank has failed, or the weights of the ranks differ
        :raises ConnectionError: if another rank has ended
        """
        if distributed.size() == 1:
            return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        before, goes_on, failure = self.num_timesteps, False, None
        self._own_episodes: tuple[deque, deque] = tuple(deque(maxlen=self._stats_window_size) for _ in range(2))  # type: ignore[assignment]
        try:
            goes_on = super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        except Exception as error:
            failure = error
        distributed.raise_together(failure)
        n_steps = (self.num_timesteps - before) // distributed.size()
        episodes, successes = map(list, self._own_episodes)
        reports = distributed.gather(
            _Report(goes_on, n_steps, episodes, successes, self._normalizer.added(), self._checksum())
        )
        if any(report.checksum != reports[0].checksum for report in reports):
            raise ValueError(
                "The ranks no longer have the same weights: a callback must change them on all ranks, or on none. "
                f"Checksums by rank: {[report.checksum for report in reports]}."
            )
        # A callback may have ended some ranks' rollouts before others'
        self.num_timesteps = before + sum(report.n_steps for report in reports)
        assert self.ep_info_buffer is not None
        assert self.ep_success_buffer is not None
        self.ep_info_buffer.extend(_interleaved([report.episodes for report in reports]))
        self.ep_success_buffer.extend(_interleaved([report.successes for report in reports]))
        self._normalizer.merge([report.added for report in reports])
        return all(report.goes_on for report in reports)

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: np.ndarray | None = None) -> None:
        if distributed.size() == 1:
            super()._update_info_buffer(infos, dones)
            return
        # Those of all ranks are added after the rollout
        of_all = self.ep_info_buffer, self.ep_success_buffer
        self.ep_info_buffer, self.ep_success_buffer = self._own_episodes
        super()._update_info_buffer(infos, dones)
        self.ep_info_buffer, self.ep_success_buffer = of_all

    def _checksum(self) -> int:
        weights = th.nn.utils.parameters_to_vector(self.policy.parameters())
        return zlib.crc32(weights.detach().cpu().numpy().tobytes())


def loss_of_all_ranks(
    compute: Callable[[], tuple[th.Tensor, dict[str, float]]], mask: th.Tensor | None
) -> tuple[th.Tensor, dict[str, float]]:
    """The loss of this rank's minibatch, such that the mean over ranks is that of all their minibatches together.

    The approximate KL among the numbers, by which updates end early, is that of all ranks.

    :param compute: returns the loss of the minibatch, a mean over steps, and what to log of it
    :param mask: False at padding, shape (B,); None if there is none, on all ranks
    :raises ValueError: if it fails on any rank
    :raises ConnectionError: if another rank has ended
    """
    if distributed.size() == 1:
        return compute()
    failure, numbers = None, {"approx_kl": 0.0}
    try:
        loss, numbers = compute()
    except Exception as error:
        failure = error
    n_valid = 1.0 if mask is None else float(mask.sum())
    n_failed, total, kl = distributed.summed([failure is not None, n_valid, n_valid * numbers["approx_kl"]])
    if n_failed:
        distributed.raise_together(failure)
    return loss * (n_valid * distributed.size() / total), {**numbers, "approx_kl": kl / total}


def _interleaved(lists: list[list[Any]]) -> list[Any]:
    """One list in whose end all are represented alike: buffers keep only the last."""
    missing = object()
    backwards = itertools.zip_longest(*(reversed(one) for one in lists), fillvalue=missing)
    return [value for values in backwards for value in values if value is not missing][::-1]

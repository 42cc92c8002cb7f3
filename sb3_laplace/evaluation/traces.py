"""Traces: what an agent's posterior did, step by step, in many trials."""

import csv
import json
import os
import warnings
import zipfile
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, NamedTuple

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from sb3_laplace.algorithm.laplace_recurrent_ppo import LaplaceRecurrentPPO
from sb3_laplace.checks import check_integer
from sb3_laplace.evaluation.trace_recorder import (
    COLUMNS,
    TraceRecorder,
    frozen_statistics,
    known_trial_length,
    player_env,
    progress,
    settings_of,
)

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped]

_FORMAT = 1
_FIGURE = "figure/"


class ExampleTrials(NamedTuple):
    """Posteriors of a few trials, which take too much memory to be kept of all.

    :param trials: which rows of the trace they are, shape (E,)
    :param means: posterior means m_t of their first steps, NaN after a trial's end, shape (E, T', D)
    :param steps: steps of which covariances are kept (0-based, ever further apart), shape (S,)
    :param covariances: posterior covariances at these steps, NaN after a trial's end, shape (E, S, D, D)
    """

    trials: np.ndarray
    means: np.ndarray
    steps: np.ndarray
    covariances: np.ndarray


@dataclass
class PosteriorTrace:
    """What an agent's posterior did in n_trials trials of up to T steps.

    Every array of steps has shape (n_trials, T), float32, and is NaN after a trial's end and where a
    quantity does not exist (a point posterior has no entropy). q_t is the posterior after the observation
    that step t acts on, m_t its mean, Sigma_t its covariance, Lambda_t its precision; q_{t-1} is the prior
    at a trial's first step.

    :param lengths: number of steps of each trial, shape (n_trials,)
    :param complete: False for a trial cut short by an interrupt, shape (n_trials,)
    :param entropy: H(q_t), in nats
    :param kl_mean: mean part of KL(q_t || q_{t-1}), half the squared Mahalanobis distance of the means, in nats
    :param kl_covariance: covariance part of KL(q_t || q_{t-1}), in nats
    :param mean_step: Euclidean length of m_t - m_{t-1}
    :param expected_move: ``e_t = 1 - tr(Lambda_{t-1} Sigma_t) / D``, the expectation of :attr:`move` if the
        posterior is right
    :param jacobian_norm: Frobenius norm of J_t, the Jacobian of the latent mean
    :param action_entropy: entropy of the distribution that the action came from, in nats (minus its
        log-probability where the entropy has no closed form)
    :param value: the critic's value
    :param confidence: of discrete actions, the probability of the action taken under the policy averaged
        over draws from q_t
    :param target_quantile: where the environment reports a ``target`` of the (one-dimensional) action, its
        quantile among actions for draws from q_t: uniform on (0, 1) if these predict it well
    :param reward: the environment's own, not normalized
    :param figures: the environment's other figures (``regret``, ``target``, ...) by name
    :param latent_dim: number of latent units D
    :param examples: posteriors of a few trials; None if none were asked for
    :param settings: what was played, by whom; what JSON can hold
    """

    lengths: np.ndarray
    complete: np.ndarray
    entropy: np.ndarray
    kl_mean: np.ndarray
    kl_covariance: np.ndarray
    mean_step: np.ndarray
    expected_move: np.ndarray
    jacobian_norm: np.ndarray
    action_entropy: np.ndarray
    value: np.ndarray
    confidence: np.ndarray
    target_quantile: np.ndarray
    reward: np.ndarray
    latent_dim: int
    figures: dict[str, np.ndarray] = field(default_factory=dict)
    examples: ExampleTrials | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def n_trials(self) -> int:
        """Number of trials."""
        return self.reward.shape[0]

    @property
    def n_steps(self) -> int:
        """Length T of the longest trial."""
        return self.reward.shape[1]

    @property
    def interrupted(self) -> bool:
        """Whether an interrupt (Ctrl-C) ended the recording."""
        return bool(self.settings.get("interrupted", False))

    @property
    def returns(self) -> np.ndarray:
        """Undiscounted return of each trial, shape (n_trials,)."""
        return np.nansum(self.reward, axis=1)

    @property
    def regret(self) -> np.ndarray | None:
        """Regret of each step where the environment reports one, shape (n_trials, T)."""
        return self.figures.get("regret")

    @property
    def move(self) -> np.ndarray:
        """``d_t = (m_t - m_{t-1})^T Lambda_{t-1} (m_t - m_{t-1}) / D``, shape (n_trials, T)."""
        return 2.0 * self.kl_mean / self.latent_dim

    def columns(self) -> dict[str, np.ndarray]:
        """All arrays of steps by name: those of ``COLUMNS``, then the environment's figures."""
        return {**{name: getattr(self, name) for name in COLUMNS}, **self.figures}

    def flatten(self) -> dict[str, np.ndarray]:
        """One row for each step played: ``trial`` and ``step`` (both from 0), then :meth:`columns`, each (rows,)."""
        trial, step = np.nonzero(np.arange(self.n_steps) < self.lengths[:, None])
        return {"trial": trial, "step": step, **{name: array[trial, step] for name, array in self.columns().items()}}

    def to_csv(self, path: str | os.PathLike) -> None:
        """Write one line for each step played, see :meth:`flatten`; what does not exist is left empty.

        :param path: the file
        """
        table = self.flatten()
        texts = []
        for array in table.values():
            text = np.char.mod("%d" if array.dtype.kind in "iu" else "%.7g", array)
            texts.append(np.where(np.isfinite(array), text, "").tolist())
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(table)
            writer.writerows(zip(*texts, strict=True))

    def to_dataframe(self) -> "pandas.DataFrame":
        """One row for each step played, see :meth:`flatten`.

        :raises ImportError: if pandas is not installed
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_dataframe() needs pandas: pip install pandas, or use to_csv().") from error
        return pandas.DataFrame(self.flatten())

    def save(self, path: str | os.PathLike) -> None:
        """Write everything into one compressed npz file, which :meth:`load` and ``numpy.load`` read.

        :param path: the file
        """
        arrays = {name: getattr(self, name) for name in ("lengths", "complete", *COLUMNS)}
        arrays.update({_FIGURE + name: array for name, array in self.figures.items()})
        if self.examples is not None:
            arrays.update({f"examples/{name}": array for name, array in self.examples._asdict().items()})
        header = {"format": _FORMAT, "latent_dim": self.latent_dim, "settings": self.settings}
        # Through a file object: numpy would add a suffix to a name
        with open(path, "wb") as file:
            np.savez_compressed(file, header=np.array(json.dumps(header)), **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "PosteriorTrace":
        """Read what :meth:`save` wrote. No code in the file is run.

        :param path: the file
        :raises ValueError: if it is not such a file
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                header = json.loads(str(file["header"]))
                arrays = {name: file[name] for name in file.files if name != "header"}
        except (KeyError, EOFError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(f"{os.fspath(path)!r} is no trace written by PosteriorTrace.save(): {error}") from error
        if header.get("format") != _FORMAT:
            raise ValueError(f"{os.fspath(path)!r} has format {header.get('format')!r}, this version reads {_FORMAT}.")
        own = {f.name for f in fields(cls)} & set(arrays)
        examples = {name: arrays.get(f"examples/{name}") for name in ExampleTrials._fields}
        return cls(
            **{name: arrays[name] for name in own},
            figures={name.removeprefix(_FIGURE): array for name, array in arrays.items() if name.startswith(_FIGURE)},
            examples=None if examples["trials"] is None else ExampleTrials(**examples),  # type: ignore[arg-type]
            latent_dim=header["latent_dim"],
            settings=header["settings"],
        )


def posterior_trace(
    model: LaplaceRecurrentPPO,
    env: VecEnv | gym.Env,
    n_trials: int = 100,
    deterministic: bool = False,
    n_examples: int = 6,
    progress_bar: bool = True,
) -> PosteriorTrace:
    """Let an agent play trials and record its posterior at each step.

    Every environment of the batch plays a number of trials fixed in advance, as in SB3's
    ``evaluate_policy``, so that short trials are not counted more often than long ones. An interrupt
    (Ctrl-C) ends the recording and keeps what there is, also the trials then under way.

    The environment is reset first. Do not pass the one that the agent trains on if training is to go on.
    With ``VecNormalize`` observations are normalized as in training, its statistics are not updated, and
    rewards are the environment's own.

    :param model: the agent
    :param env: the environment, best a batched one (:func:`~sb3_laplace.make_vec_env`)
    :param n_trials: number of trials
    :param deterministic: act on the posterior's mean and take the mode. By default the agent acts as it
        does in training, on its draws from the posterior.
    :param n_examples: number of trials of which the posteriors themselves are kept, at most one per environment
    :param progress_bar: show progress on a terminal if it takes longer than a few seconds and tqdm is installed
    :return: the trace
    :raises ValueError: if an argument is out of range, the environment does not fit the agent (both spaces
        are shown), an observation holds NaN, or a trial is too long to be recorded
    """
    check_integer("n_trials", n_trials, minimum=1)
    check_integer("n_examples", n_examples, minimum=0)
    env = player_env(model, env)
    recorder = TraceRecorder(model.policy, env, n_trials, deterministic, n_examples)
    recorder.check_length(known_trial_length(env))
    interrupted = False
    with progress(n_trials, progress_bar) as bar, frozen_statistics(env):
        try:
            recorder.start()
            while not recorder.finished:
                bar.update(recorder.step())
        except KeyboardInterrupt:
            if recorder.n_recorded == 0:
                raise
            interrupted = True
    columns, examples = recorder.result()
    lengths, complete = columns.pop("lengths"), columns.pop("complete")
    if interrupted:
        warnings.warn(f"Interrupted: kept {complete.sum()} of {n_trials} trials, and {(~complete).sum()} in part.")
    own = {name: columns.pop(name) for name in COLUMNS}
    return PosteriorTrace(
        lengths=lengths,
        complete=complete,
        **own,
        figures=columns,
        examples=None if examples is None else ExampleTrials(*examples),
        latent_dim=model.policy.latent_layer.latent_dim,
        settings={**settings_of(model, env), "deterministic": deterministic, "interrupted": interrupted},
    )

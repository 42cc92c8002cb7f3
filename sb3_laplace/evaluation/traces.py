"""Traces: what an agent's posterior did, step by step, in many trials."""

import contextlib
import csv
import json
import os
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from sb3_laplace.algorithm.laplace_recurrent_ppo import LaplaceRecurrentPPO
from sb3_laplace.checks import check_integer
from sb3_laplace.evaluation.player import Player, player_env
from sb3_laplace.evaluation.trace_recorder import COLUMNS, METRICS, TASK_COLUMNS, TraceRecorder, settings_of

try:
    from tqdm import tqdm  # type: ignore[import-untyped]
except ImportError:
    tqdm = None

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped]

_FORMAT = 2
# Formats that can be read, with what the names of the environment's metrics begin with in each
_METRICS_IN = {1: "figure/", 2: METRICS}
# What format 1 does not have is derived from the other arrays
_DERIVED = ("returns", "episode_lengths", "episode_start")


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

    Every array of steps has shape (n_trials, T), rewards and metrics in float64 and all others in float32. Beyond
    ``lengths``, which say where a trial ends, arrays hold NaN; so do those within it whose quantity does not exist
    (a point posterior has no entropy). q_t is the posterior after the observation that step t acts on, m_t its mean,
    Sigma_t its covariance, Lambda_t its precision; q_{t-1} is the prior at an episode's first step.

    Trials are Monitor's episodes where there is one, see :class:`~sb3_laplace.evaluation.player.Player`. Returns and
    episode lengths are those that it reports, as in SB3's ``evaluate_policy``; rewards are what the agent's
    environment gave at each step, which wrappers above Monitor may have changed.

    :param lengths: number of steps that the agent took in each trial, shape (n_trials,)
    :param complete: False for a trial cut short by an interrupt, shape (n_trials,)
    :param entropy: H(q_t), in nats
    :param kl_mean: mean part of KL(q_t || q_{t-1}), half the squared Mahalanobis distance of the means, in nats
    :param kl_covariance: covariance part of KL(q_t || q_{t-1}), in nats
    :param mean_step: Euclidean length of m_t - m_{t-1}
    :param expected_move: ``e_t = 1 - tr(Lambda_{t-1} Sigma_t) / D``, the expectation of ``move`` if the
        posterior is right
    :param jacobian_norm: Frobenius norm of J_t, the Jacobian of the latent mean
    :param action_entropy: entropy of the distribution that the action came from, in nats (minus its
        log-probability where the entropy has no closed form)
    :param value: the critic's value
    :param confidence: of discrete actions, the probability of the action taken under the policy averaged
        over draws from q_t
    :param target_quantile: where the environment reports a ``target`` of the (one-dimensional) action, its
        quantile among actions for draws from q_t, times ``settings["action_scale"]``: uniform on (0, 1) if these
        predict it well
    :param reward: the environment's own, not normalized
    :param latent_dim: number of latent units D
    :param metrics: numbers that the environment reported of each step (``regret``, ``target``, ...) by the names
        that it gave them, NaN where it did not report one
    :param examples: posteriors of a few trials; None if none were asked for
    :param settings: what was played, by whom; what JSON can hold. ``action_scale`` is the environment's attribute of
        that name, if it reported targets: a positive number, or 1 where it has none.
    :param returns: undiscounted return of each trial (of one cut short, so far), shape (n_trials,), float64; by
        default the sums of the rewards
    :param episode_lengths: number of steps of each trial as Monitor counts them, which wrappers above it may not
        show to the agent, shape (n_trials,); by default ``lengths``
    :param episode_start: 1 where the agent's memory started afresh: at each trial's first step, and after an end that
        a wrapper above Monitor made up (a life lost); by default at the first steps only
    :param returns_by_episode: return of each episode within a trial where the environment plays several
        (:class:`~sb3_laplace_envs.Trial`), shape (n_trials, n_episodes), float64; NaN where there was none, and for one
        that the trial's end cut short. By default trials are episodes: ``returns``, (n_trials, 1).
    :param task_move: where the environment reports its task, ``|B (m_t - m_{t-1})|^2`` over the total variance of the
        tasks, with the linear read-out ``B m + b`` of :mod:`sb3_laplace.readout`: how far the expected task moves. NaN
        where memory starts afresh; everywhere without a read-out, or (by default) in a trace of before there were any;
        and in trials that were forgotten (:class:`~sb3_laplace.evaluation.task_moves.TaskMoves`)
    :param task_expected_move: ``tr B (Sigma_{t-1} - Sigma_t) B^T`` over the same, the expectation of ``task_move``
        if the posterior is right
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
    metrics: dict[str, np.ndarray] = field(default_factory=dict)
    examples: ExampleTrials | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    returns: np.ndarray = None  # type: ignore[assignment]
    episode_lengths: np.ndarray = None  # type: ignore[assignment]
    episode_start: np.ndarray = None  # type: ignore[assignment]
    returns_by_episode: np.ndarray = None  # type: ignore[assignment]
    task_move: np.ndarray = None  # type: ignore[assignment]
    task_expected_move: np.ndarray = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.returns is None:
            self.returns = self.totals(self.reward)
        if self.returns_by_episode is None:
            self.returns_by_episode = self.returns[:, np.newaxis]
        if self.episode_lengths is None:
            self.episode_lengths = self.lengths
        if self.episode_start is None:
            is_first = np.arange(self.n_steps) == 0
            self.episode_start = np.where(self.inside, is_first, np.nan).astype(np.float32)
        for name in TASK_COLUMNS:
            if getattr(self, name) is None:
                setattr(self, name, np.full(self.reward.shape, np.nan, dtype=np.float32))

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
    def inside(self) -> np.ndarray:
        """Which entries of the arrays are steps of a trial, shape (n_trials, T), bool."""
        return np.arange(self.n_steps) < self.lengths[:, None]

    @property
    def regret(self) -> np.ndarray | None:
        """Regret of each step where the environment reports one, shape (n_trials, T)."""
        return self.metrics.get("regret")

    def totals(self, values: np.ndarray) -> np.ndarray:
        """Sums over the steps of each trial; not finite where a value is not.

        :param values: shape (n_trials, T)
        :return: shape (n_trials,), float64
        """
        return np.where(self.inside, values, 0.0).sum(axis=1, dtype=np.float64)

    @property
    def move(self) -> np.ndarray:
        """``d_t = (m_t - m_{t-1})^T Lambda_{t-1} (m_t - m_{t-1}) / D``, shape (n_trials, T)."""
        return 2.0 * self.kl_mean / self.latent_dim

    def columns(self) -> dict[str, np.ndarray]:
        """All arrays of steps by name: the trace's own, then the environment's metrics as ``metrics/NAME``."""
        metrics = {METRICS + name: array for name, array in self.metrics.items()}
        return {**{name: getattr(self, name) for name in (*COLUMNS, *TASK_COLUMNS)}, **metrics}

    def flatten(self) -> dict[str, np.ndarray]:
        """One row for each step played: ``trial`` and ``step`` (both from 0), then :meth:`columns`, each (rows,)."""
        trial, step = np.nonzero(self.inside)
        return {"trial": trial, "step": step, **{name: array[trial, step] for name, array in self.columns().items()}}

    def to_csv(self, path: str | os.PathLike) -> None:
        """Write one line for each step played, see :meth:`flatten`; what does not exist (NaN) is left empty.

        :param path: the file
        """
        table = self.flatten()
        texts = []
        for array in table.values():
            text = np.char.mod("%d" if array.dtype.kind in "iu" else "%.7g", array)
            texts.append(np.where(np.isnan(array), "", text).tolist())
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
        names = ("lengths", "complete", "returns", "episode_lengths", "returns_by_episode")
        arrays = {name: getattr(self, name) for name in names}
        arrays.update(self.columns())
        if self.examples is not None:
            arrays.update({f"examples/{name}": array for name, array in self.examples._asdict().items()})
        header = {"format": _FORMAT, "latent_dim": self.latent_dim, "settings": self.settings}
        # Through a file object: numpy would add a suffix to a name
        with open(path, "wb") as file:
            np.savez_compressed(file, header=np.array(json.dumps(header)), **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "PosteriorTrace":
        """Read what :meth:`save` wrote, this version's or one before. No code in the file is run.

        :param path: the file
        :raises ValueError: if it is not such a file, or lacks a part of one
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                header = json.loads(str(file["header"]))
                arrays = {name: file[name] for name in file.files if name != "header"}
            if header["format"] not in _METRICS_IN:
                readable = " and ".join(map(str, _METRICS_IN))
                raise ValueError(f"it has format {header['format']!r}, this version reads {readable}")
            names = ["lengths", "complete", *COLUMNS, *_DERIVED[:2]]
            own = {name: arrays[name] for name in names if header["format"] > 1 or name not in _DERIVED}
            # Written since there are trials of several episodes, and read-outs
            own.update({name: arrays.get(name) for name in ("returns_by_episode", *TASK_COLUMNS)})
            examples = None
            if "examples/trials" in arrays:
                examples = ExampleTrials(*(arrays[f"examples/{name}"] for name in ExampleTrials._fields))
            latent_dim, settings = header["latent_dim"], header["settings"]
        except (KeyError, TypeError, EOFError, ValueError, zipfile.BadZipFile) as error:
            problem = f"{error} is missing" if isinstance(error, KeyError) else error
            raise ValueError(f"{os.fspath(path)!r} is no trace written by PosteriorTrace.save(): {problem}") from error
        prefix = _METRICS_IN[header["format"]]
        metrics = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        return cls(**own, metrics=metrics, examples=examples, latent_dim=latent_dim, settings=settings)


def posterior_trace(
    model: LaplaceRecurrentPPO,
    env: VecEnv | gym.Env,
    n_trials: int = 100,
    deterministic: bool = False,
    n_examples: int = 6,
    progress_bar: bool = True,
) -> PosteriorTrace:
    """Let an agent play trials and record its posterior at each step.

    What a trial is, and what its return, is said at :class:`~sb3_laplace.evaluation.player.Player`: both are Monitor's
    where there is one, as in SB3's ``evaluate_policy``, and every environment of the batch plays a number of trials
    fixed in advance. An interrupt (Ctrl-C) ends the recording and keeps what there is, also the trials then under
    way.

    Where the environment reports its task (an attribute ``task``, as the built-in tasks and trials have it), the moves
    of the belief about the task are recorded too: :class:`~sb3_laplace.evaluation.task_moves.TaskMoves` says how, and
    what is kept in memory for it. ``settings["task_readout"]`` says how well the task is read out, or why it is not.

    The environment is reset first. With ``VecNormalize`` observations are normalized as in training, its statistics
    are not updated, and rewards are the environment's own. If it is the environment that the agent trains on, training
    goes on with a reset.

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
    settings = settings_of(model, env)
    act = partial(model.policy.act, deterministic=deterministic)
    player = Player(model, env, n_trials, act, asks_tasks=not model.policy.latent_layer.is_point)
    recorder = TraceRecorder(player, n_trials, n_examples)
    interrupted = False
    with _progress(n_trials, progress_bar) as bar, contextlib.closing(player.play()) as steps:
        try:
            for played in steps:
                recorder.record(played)
                bar.update(int(played.ended.sum()))
        except KeyboardInterrupt:
            if recorder.n_recorded == 0:
                raise
            interrupted = True
    own, metrics, examples = recorder.result()
    if interrupted:
        complete = own["complete"]
        warnings.warn(f"Interrupted: kept {complete.sum()} of {n_trials} trials, and {(~complete).sum()} in part.")
    settings.update(deterministic=deterministic, interrupted=interrupted, task_readout=recorder.task_readout)
    if recorder.action_scale is not None:
        settings["action_scale"] = recorder.action_scale
    return PosteriorTrace(
        **own,
        metrics=metrics,
        examples=None if examples is None else ExampleTrials(*examples),
        latent_dim=model.policy.latent_layer.latent_dim,
        settings=settings,
    )


@contextlib.contextmanager
def _progress(n_trials: int, shown: bool) -> Iterator[Any]:
    """A tqdm progress bar on a terminal, after a few seconds; something with its ``update`` otherwise."""
    if tqdm is None:
        yield _NoBar()
        return
    # disable=None: shown on a terminal only
    with tqdm(total=n_trials, unit="trial", delay=3.0, leave=False, disable=None if shown else True) as bar:
        yield bar


class _NoBar:
    def update(self, n: int) -> None:
        pass

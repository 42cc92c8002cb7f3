"""The cost of one posterior step by itself, beside the same step by forward-mode autodiff."""

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch as th
from gymnasium import spaces

from benchmarks.common import Record, Selection, Sizes, against_target, clock, interleave, print_table, verdict
from sb3_laplace import LaplaceLstmPolicy
from sb3_laplace.posteriors import PosteriorStep, StepInputs

#: Features of an observation, about what the meta-tasks have
_N_FEATURES = 8
#: The targets are for this N and H: so many times faster than jacfwd at this D, and milliseconds with the identity
_TARGET_BATCH = (256, 128)
_TARGET_LATENT_DIM = 64
_TARGET_SPEEDUP = 15.0
_TARGET_IDENTITY_MS = 1.0


@dataclass(frozen=True)
class StepCase:
    """A posterior step to time.

    :param candidate: "full", "diagonal", or "identity-diagonal"
    :param n_envs: number of environments N
    :param latent_dim: latent units D, H for the identity latent
    :param hidden_size: LSTM units H
    """

    candidate: str
    n_envs: int
    latent_dim: int
    hidden_size: int

    @property
    def covariance(self) -> str:
        """Covariance structure of the posterior."""
        return self.candidate.removeprefix("identity-")


class StepCaseInputs:
    """What the step of a case reads: a policy's LSTM and latent layer, and a batch of random states.

    :param case: the sizes
    :param device: where to compute
    """

    def __init__(self, case: StepCase, device: th.device) -> None:
        policy = LaplaceLstmPolicy(
            spaces.Box(-1.0, 1.0, (_N_FEATURES,), np.float32),
            spaces.Discrete(5),
            lambda _: 3e-4,
            latent_dim=None if case.candidate.startswith("identity") else case.latent_dim,
            posterior_kwargs={"covariance": case.covariance},
            lstm_hidden_size=case.hidden_size,
        ).to(device)
        self.core, self.layer = policy.lstm_actor, policy.latent_layer
        self.is_diagonal = case.covariance == "diagonal"
        generator = th.Generator().manual_seed(0)

        def random(n_units: int) -> th.Tensor:
            return (th.rand(case.n_envs, n_units, generator=generator) * 2 - 1).to(device)

        self.inputs = random(_N_FEATURES)
        self.previous_hidden, self.hidden, self.cell = (random(case.hidden_size) for _ in range(3))
        self.core_state = (self.hidden.unsqueeze(0), self.cell.unsqueeze(0))
        self.starts = th.zeros(case.n_envs, device=device)
        self.state = self.layer.initial_state(case.n_envs)
        self.precision = self.layer.from_state(self.previous_hidden, self.state).precision

    @th.inference_mode()
    def step(self) -> PosteriorStep:
        """Ours: from the updated recurrent state to q_t, as in a rollout."""
        return self.layer.step(
            StepInputs(
                self.core, self.inputs, self.previous_hidden, self.hidden, self.core_state, self.state, self.starts
            )
        )

    @th.inference_mode()
    def draw(self) -> th.Tensor:
        """One sample of each posterior, which for a full one takes a Cholesky factorization."""
        # A new Gaussian at each call: they keep their factor
        latents, _ = self.layer.draw(self.layer.from_state(self.hidden, self.state), 1)
        return latents

    @th.no_grad()
    def autodiff_precision(self) -> th.Tensor:
        """The precision of q_t with J by forward-mode autodiff, vectorised over the batch."""
        weights = self.core.all_weights[0]

        def latent(hidden: th.Tensor, inputs: th.Tensor, cell: th.Tensor) -> th.Tensor:
            state = (hidden.unsqueeze(0), cell.unsqueeze(0))
            updated, _ = th.lstm_cell(inputs.unsqueeze(0), state, *weights)
            return self.layer.latent_mean(updated.squeeze(0))

        # In chunks, as 4096 environments at once would take tens of GB
        jacobian = th.func.vmap(th.func.jacfwd(latent), chunk_size=256)(self.hidden, self.inputs, self.cell)
        if self.is_diagonal:
            return self.precision + jacobian.square().sum(-1)
        return th.baddbmm(self.precision, jacobian, jacobian.mT)


class CallTimer:
    """Times calls of a function, averaged over as many as take some time together.

    :param function: what to call
    :param device: where it computes
    :param seconds: how long at least
    """

    def __init__(self, function: Callable[[], object], device: th.device, seconds: float) -> None:
        self.function = function
        self.device = device
        self.seconds = seconds
        self._n_calls = 1

    def __call__(self) -> float:
        """Milliseconds per call."""
        while True:
            start = clock(self.device)
            for _ in range(self._n_calls):
                self.function()
            elapsed = clock(self.device) - start
            if elapsed >= self.seconds:
                return 1000 * elapsed / self._n_calls
            self._n_calls *= 2


class StepTimer:
    """Times a case's step, a draw from its posterior, and the step by autodiff.

    :param case: the sizes
    :param device: where to compute
    :param seconds: how long each is repeated at least
    """

    def __init__(self, case: StepCase, device: th.device, seconds: float) -> None:
        inputs = StepCaseInputs(case, device)
        functions = {"step": inputs.step, "draw": inputs.draw, "jacfwd": inputs.autodiff_precision}
        self._timers = {name: CallTimer(function, device, seconds) for name, function in functions.items()}

    def __call__(self) -> dict[str, float]:
        """Milliseconds of each."""
        return {name: timer() for name, timer in self._timers.items()}


def step_cases(sizes: Sizes) -> list[StepCase]:
    """Every structure and size."""
    cases = []
    for n_envs in sizes.step_batches:
        for hidden_size in sizes.step_hidden_sizes:
            for candidate in ("full", "diagonal"):
                cases += [StepCase(candidate, n_envs, dim, hidden_size) for dim in sizes.step_latent_dims]
            cases.append(StepCase("identity-diagonal", n_envs, hidden_size, hidden_size))
    return cases


def compare_posterior_steps(sizes: Sizes, device: th.device, selection: Selection) -> list[Record]:
    """Time posterior steps, with the ratio to autodiff.

    :param sizes: how large and how often
    :param device: where to compute
    :param selection: which of them
    """
    cases = [case for case in step_cases(sizes) if selection.keeps("posterior-step", case.candidate, case.n_envs)]
    if not cases:
        return []
    timers = [StepTimer(case, device, sizes.step_seconds) for case in cases]
    results = interleave("posterior-step", timers, sizes.repeats)
    return [_record(case, calls, device) for case, calls in zip(cases, results, strict=True)]


def _record(case: StepCase, calls: list[dict[str, float]], device: th.device) -> Record:
    medians = {name: statistics.median(call[name] for call in calls) for name in calls[0]}
    record: Record = {**asdict(case), **{f"{name}_ms": value for name, value in medians.items()}}
    record["speedup"] = medians["jacfwd"] / medians["step"]
    # The targets are for CPUs
    on_target_size = device.type == "cpu" and (case.n_envs, case.hidden_size) == _TARGET_BATCH
    if case.candidate == "identity-diagonal":
        target = _TARGET_IDENTITY_MS if on_target_size else None
        return record | against_target(medians["step"], target, at_most=True)
    target = _TARGET_SPEEDUP if on_target_size and case.latent_dim == _TARGET_LATENT_DIM else None
    return record | against_target(record["speedup"], target)


def print_posterior_steps(records: list[Record]) -> None:
    """Print the table."""
    print_table(
        "posterior step: milliseconds (step: J, Lambda_t and the mean; draw: one sample; jacfwd: the step by autodiff)",
        ("posterior", "N", "D", "H", "step", "draw", "jacfwd", "jacfwd / step", "target"),
        [
            (
                record["candidate"],
                *(str(record[name]) for name in ("n_envs", "latent_dim", "hidden_size")),
                *(f"{record[name]:.3f}" for name in ("step_ms", "draw_ms", "jacfwd_ms")),
                f"{record['speedup']:.1f} x",
                verdict(record, " ms" if record["candidate"] == "identity-diagonal" else " x"),
            )
            for record in records
        ],
    )

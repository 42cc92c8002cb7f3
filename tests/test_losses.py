"""Every term of the loss against numbers worked out by hand."""

import math
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import CategoricalDistribution, DiagGaussianDistribution

from sb3_laplace.algorithm.losses import KLTerm, LossTerm, PPOTerm, RewardTerm, TargetTerm, total_loss
from sb3_laplace.policies.reward_decoder import RewardDecoder
from sb3_laplace.policies.types import Evaluation, RecurrentState, RecurrentStates, SequenceRolloutBufferSamples
from sb3_laplace.posteriors import Replay

#: What a loss must not read. Whatever it enters is NaN.
PADDING = math.nan


def numbers(*values: float) -> th.Tensor:
    return th.tensor(values, dtype=th.float32)


def minibatch(n_steps: int = 1, **given: Any) -> SequenceRolloutBufferSamples:
    """One sequence; what is not given is 0."""
    zeros = th.zeros(n_steps)
    named = dict.fromkeys(
        ("observations", "actions", "old_values", "old_log_prob", "advantages", "returns", "episode_starts"), zeros
    )
    states = RecurrentStates(RecurrentState(()), RecurrentState(()))
    rest = {"lstm_states": states, "mask": None, "noise": None, "columns": {}, "memory": {}}
    return SequenceRolloutBufferSamples(**{**named, **rest, **given})


def evaluated(n_steps: int = 1, **given: Any) -> Evaluation:
    """What the policy makes of it; what is not given is 0."""
    zeros = th.zeros(n_steps)
    replay = Replay(th.zeros(1, 1, n_steps, 1), lambda: zeros.view(1, -1))
    named = {"values": zeros.view(-1, 1), "log_prob": zeros, "entropy": zeros, "posterior": replay}
    return Evaluation(**{**named, "distribution": None, **given})


def begun(term_class: type[LossTerm], **attributes: Any) -> Any:
    """A term at the beginning of an update, of an algorithm with these attributes."""
    defaults: dict[str, Any] = {"_current_progress_remaining": 1.0, term_class.coefficient: 1.0}
    term = term_class(SimpleNamespace(**{**defaults, **attributes}))  # type: ignore[arg-type]
    term.is_stored = True
    term.begin_update()
    return term


def ppo(**attributes: Any) -> PPOTerm:
    defaults = {"ent_coef": 0.0, "vf_coef": 0.0, "clip_range": lambda _: 0.2, "clip_range_vf": None}
    defaults["policy"] = SimpleNamespace(state_dependent_std=False)
    term = begun(PPOTerm, **{**defaults, "normalize_advantage": False, **attributes})
    # Without normalization it reads nothing of a minibatch
    term.begin_minibatch(minibatch())
    return term


# -- PPO ----------------------------------------------------------------------------------------------------

#: ratio, advantage, loss, and the loss's derivative by the log-probability: 0 where the clip holds
CLIP_CASES = [
    (1.1, 3.0, -3.3, -3.3),
    (0.9, -3.0, 2.7, 2.7),
    (1.5, 1.0, -1.2, 0.0),
    (1.5, -1.0, 1.5, 1.5),
    (0.5, 2.0, -1.0, -1.0),
    (0.5, -2.0, 1.6, 0.0),
    (1.0, 4.0, -4.0, -4.0),
]


@pytest.mark.parametrize(("ratio", "advantage", "loss", "derivative"), CLIP_CASES)
def test_clip_loss(ratio: float, advantage: float, loss: float, derivative: float) -> None:
    log_prob = numbers(math.log(0.4 * ratio)).requires_grad_()
    samples = minibatch(advantages=numbers(advantage), old_log_prob=numbers(math.log(0.4)))
    found, logged = ppo().loss(samples, evaluated(log_prob=log_prob))
    assert found.item() == pytest.approx(loss, rel=1e-5)
    assert logged["policy_gradient_loss"].item() == pytest.approx(loss, rel=1e-5)
    assert logged["clip_fraction"].item() == float(ratio in (1.5, 0.5))
    assert th.autograd.grad(found, log_prob)[0].item() == pytest.approx(derivative, rel=1e-5, abs=1e-7)


def test_clip_loss_is_the_mean() -> None:
    ratios, advantages, losses, _ = zip(*CLIP_CASES, strict=True)
    samples = minibatch(7, advantages=numbers(*advantages))
    found, logged = ppo().loss(samples, evaluated(7, log_prob=numbers(*ratios).log()))
    assert found.item() == pytest.approx(sum(losses) / 7, rel=1e-5)
    assert logged["clip_fraction"].item() == pytest.approx(4 / 7)


def test_a_ratio_at_the_clip_is_inside() -> None:
    _, logged = ppo(clip_range=lambda _: 0.0).loss(minibatch(), evaluated(log_prob=numbers(0.0)))
    assert logged["clip_fraction"].item() == 0.0


def test_clip_range_follows_the_progress() -> None:
    samples = minibatch(advantages=numbers(1.0))
    halfway = ppo(clip_range=lambda progress: 0.2 * progress, _current_progress_remaining=0.5)
    found, _ = halfway.loss(samples, evaluated(log_prob=numbers(2.0).log()))
    assert found.item() == pytest.approx(-1.1)


def test_approximate_kl() -> None:
    """The mean of ratio - 1 - log(ratio)."""
    _, logged = ppo().loss(minibatch(2), evaluated(2, log_prob=numbers(2.0, 0.5).log()))
    assert logged["approx_kl"].item() == pytest.approx((1 - math.log(2) + (-0.5 + math.log(2))) / 2, rel=1e-5)


def normalized(samples: SequenceRolloutBufferSamples, evaluation: Evaluation) -> Any:
    term = ppo(normalize_advantage=True)
    term.begin_minibatch(samples)
    return term.loss(samples, evaluation)


def test_advantages_are_normalized_over_what_is_no_padding() -> None:
    # Mean 3, standard deviation (with n - 1) 2: -1, 0, 1
    samples = minibatch(4, advantages=numbers(1.0, 3.0, 5.0, PADDING), mask=th.tensor([True, True, True, False]))
    log_prob = numbers(1.1, 1.1, 1.3, PADDING).log()
    found, _ = normalized(samples, evaluated(4, log_prob=log_prob))
    assert found.item() == pytest.approx(-(-1.1 + 0 + 1.2) / 3, rel=1e-5)
    two = samples._replace(mask=th.tensor([True, False, True, False]))
    found, _ = normalized(two, evaluated(4, log_prob=log_prob))
    assert found.item() == pytest.approx(-(-1.1 + 1.2) / 2 / math.sqrt(2), rel=1e-5)
    # One step has no standard deviation
    alone = samples._replace(mask=th.tensor([False, True, False, False]))
    found, _ = normalized(alone, evaluated(4, log_prob=log_prob))
    assert found.item() == pytest.approx(-3.3, rel=1e-5)


@pytest.mark.parametrize(
    ("clip_range_vf", "losses", "derivatives"),
    [
        (None, (0.25, 1.0, 0.0), (-1.0, 2.0, 0.0)),
        # Old values 0, 2, 2.9: the values become 0.2, 2 and 3
        (lambda _: 0.2, (1.69, 1.0, 0.0), (0.0, 2.0, 0.0)),
        # ... and 0.5, 2 and 2.95
        (lambda progress: 0.5 * progress, (1.0, 1.0, 0.0), (0.0, 2.0, 0.0)),
    ],
)
def test_value_loss(clip_range_vf: Any, losses: tuple[float, ...], derivatives: tuple[float, ...]) -> None:
    values = numbers(1.0, 2.0, 3.0).view(3, 1).requires_grad_()
    samples = minibatch(3, returns=numbers(1.5, 1.0, 3.0), old_values=numbers(0.0, 2.0, 2.9))
    found, logged = ppo(clip_range_vf=clip_range_vf, vf_coef=0.5).loss(samples, evaluated(3, values=values))
    assert logged["value_loss"].item() == pytest.approx(sum(losses) / 3, rel=1e-5)
    assert found.item() == pytest.approx(0.5 * sum(losses) / 3, rel=1e-5)
    expected = numbers(*derivatives) * 0.5 / 3
    th.testing.assert_close(th.autograd.grad(found, values)[0].flatten(), expected)


def test_values_are_clipped_from_below_too() -> None:
    samples = minibatch(returns=numbers(-1.0), old_values=numbers(0.0))
    _, logged = ppo(clip_range_vf=lambda _: 0.2).loss(samples, evaluated(values=numbers(-3.0).view(1, 1)))
    assert logged["value_loss"].item() == pytest.approx(0.8**2, rel=1e-5)


@pytest.mark.parametrize(
    ("entropy", "expected", "derivative"),
    [((1.0, 2.0, 6.0), -3.0, -1 / 3), (None, math.log(0.5 * 0.25 * 0.125) / 3, 1 / 3)],
)
def test_entropy_loss(entropy: tuple[float, ...] | None, expected: float, derivative: float) -> None:
    """Minus the entropy, or the log-probability of what was done where it has no closed form."""
    log_prob = numbers(0.5, 0.25, 0.125).log().requires_grad_()
    closed_form = None if entropy is None else numbers(*entropy).requires_grad_()
    evaluation = evaluated(3, log_prob=log_prob, entropy=closed_form)
    found, logged = ppo(ent_coef=0.1).loss(minibatch(3), evaluation)
    assert logged["entropy_loss"].item() == pytest.approx(expected, rel=1e-5)
    assert found.item() == pytest.approx(0.1 * expected, rel=1e-5)
    source = log_prob if closed_form is None else closed_form
    th.testing.assert_close(th.autograd.grad(found, source)[0], th.full((3,), 0.1 * derivative))


def test_no_gradient_of_the_entropy_without_its_coefficient() -> None:
    log_prob, entropy = th.zeros(2, requires_grad=True), th.ones(2, requires_grad=True)
    found, logged = ppo().loss(minibatch(2), evaluated(2, log_prob=log_prob, entropy=entropy))
    assert th.autograd.grad(found, entropy, allow_unused=True) == (None,)
    assert logged["entropy_loss"].item() == -1.0


@pytest.mark.parametrize("closed_form", [True, False])
@pytest.mark.parametrize("clip_range_vf", [None, lambda _: 10.0])
def test_ppo_reads_no_padding(closed_form: bool, clip_range_vf: Any) -> None:
    mask = th.tensor([True, False, True])
    samples = minibatch(
        3,
        advantages=numbers(2.0, PADDING, -1.0),
        returns=numbers(1.0, PADDING, 2.0),
        old_values=numbers(0.0, PADDING, 0.0),
        old_log_prob=numbers(0.0, PADDING, 0.0),
        mask=mask,
    )
    evaluation = evaluated(
        3,
        values=numbers(2.0, PADDING, 0.0).view(3, 1),
        log_prob=numbers(1.1, PADDING, 1.5).log(),
        entropy=numbers(0.5, PADDING, 1.5) if closed_form else None,
    )
    term = ppo(vf_coef=0.5, ent_coef=0.1, clip_range_vf=clip_range_vf)
    found, logged = term.loss(samples, evaluation)
    entropy_loss = -1.0 if closed_form else math.log(1.1 * 1.5) / 2
    expected = {
        "policy_gradient_loss": -(2 * 1.1 - 1.5) / 2,
        "value_loss": (1 + 4) / 2,
        "entropy_loss": entropy_loss,
        "approx_kl": (0.1 + 0.5 - math.log(1.1 * 1.5)) / 2,
        "clip_fraction": 0.5,
    }
    assert {name: part.item() for name, part in logged.items()} == pytest.approx(expected, rel=1e-5)
    assert found.item() == pytest.approx(-0.35 + 0.5 * 2.5 + 0.1 * entropy_loss, rel=1e-5)


# -- the other terms ----------------------------------------------------------------------------------------


def test_kl_loss_is_the_mean_of_what_is_no_padding() -> None:
    kl = th.tensor([[1.0, 2.0, 4.5], [0.5, PADDING, PADDING]])
    evaluation = evaluated(6, posterior=Replay(th.zeros(1, 2, 3, 1), lambda: kl))
    mask = th.tensor([True, True, True, True, False, False])
    found, logged = begun(KLTerm, kl_coef=0.1).loss(minibatch(6, mask=mask), evaluation)
    # Without its coefficient, which total_loss applies
    assert found.item() == logged["kl_loss"].item() == 2.0


def test_kl_is_not_computed_until_it_is_asked_for() -> None:
    def kl() -> th.Tensor:
        raise AssertionError

    ppo().loss(minibatch(), evaluated(posterior=Replay(th.zeros(1, 1, 1, 1), kl)))


def test_target_loss_of_choices() -> None:
    probabilities = th.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8], [PADDING] * 3])
    distribution = CategoricalDistribution(3)
    distribution.distribution = th.distributions.Categorical(logits=probabilities.log(), validate_args=False)
    samples = minibatch(3, columns={"targets": th.tensor([1, 2, 0])}, mask=th.tensor([True, True, False]))
    found, logged = begun(TargetTerm).loss(samples, evaluated(3, distribution=distribution))
    assert found.item() == logged["target_loss"].item() == pytest.approx(-(math.log(0.25) + math.log(0.8)) / 2)


def test_target_loss_of_numbers() -> None:
    """Of a Gaussian with standard deviation 2: log 2 + log(2 pi) / 2 + (distance / 2)^2 / 2."""
    distribution = DiagGaussianDistribution(1)
    distribution.proba_distribution(th.tensor([[1.0], [0.0], [0.0]]), numbers(math.log(2.0)))
    samples = minibatch(
        3, columns={"targets": numbers(3.0, 1.0, PADDING).view(3, 1)}, mask=th.tensor([True, True, False])
    )
    distribution.distribution._validate_args = False
    found, _ = begun(TargetTerm).loss(samples, evaluated(3, distribution=distribution))
    expected = math.log(2) + 0.5 * math.log(2 * math.pi) + (0.5 * 1 + 0.5 * 0.25) / 2
    assert found.item() == pytest.approx(expected, rel=1e-5)


def reward_term(window: int | str, gaussian: bool) -> RewardTerm:
    """The reward that is decoded from z after the action a is 2 max(z + a, 0) - 1, or of that logit."""
    decoder = RewardDecoder(1, spaces.Discrete(2), 1, (1,), likelihood="gaussian" if gaussian else "bernoulli")
    parts = (decoder.from_latent.weight, decoder.from_latent.bias, decoder.from_step.weight, *decoder.head.parameters())
    with th.no_grad():
        for part, values in zip(parts, (1.0, 0.0, [0.0, 1.0], 2.0, -1.0), strict=True):
            part.copy_(th.as_tensor(values).view_as(part))

    def encode_steps(actions: th.Tensor, next_obs: th.Tensor | None) -> th.Tensor:
        return decoder.encode(actions, next_obs)

    policy = SimpleNamespace(reward_decoder=decoder, encode_steps=encode_steps)
    return begun(RewardTerm, policy=policy, decode_window=window)


# The decoded rewards, row by row the latents 0.5, 1, 0 (an episode starts there) and -9 (padding), column by column
# the actions 1, 0, 1, 1: ((2, 0, .), (3, 1, .), (., ., 1)). The rewards are 1, 0, 0.
@pytest.mark.parametrize(
    ("window", "gaussian", "expected"),
    [
        (0, True, (0.5 * 1 + 0.5 * 1 + 0.5 * 1) / 3),
        (1, True, (0.5 * (1 + 0) + 0.5 * (4 + 1) + 0.5 * 1) / 5),
        ("trial", True, (0.5 * (1 + 0) + 0.5 * (4 + 1) + 0.5 * 1) / 5),
        (0, False, (math.log1p(math.exp(-2)) + math.log1p(math.e) + math.log1p(math.e)) / 3),
        (
            5,
            False,
            (math.log1p(math.exp(-2)) + math.log(2) + math.log1p(math.exp(-3)) + 2 * math.log1p(math.e)) / 5,
        ),
    ],
)
def test_reward_loss(window: int | str, gaussian: bool, expected: float) -> None:
    samples = minibatch(
        4,
        actions=th.tensor([1, 0, 1, 1]),
        episode_starts=numbers(1.0, 0.0, 1.0, 0.0),
        columns={"decoder_rewards": numbers(1.0, 0.0, 0.0, 1.0)},
        mask=th.tensor([True, True, True, False]),
    )
    latents = numbers(0.5, 1.0, 0.0, -9.0).view(1, 1, 4, 1)
    evaluation = evaluated(4, posterior=Replay(latents, lambda: th.zeros(1, 4)))
    found, logged = reward_term(window, gaussian).loss(samples, evaluation)
    expected += 0.5 * math.log(2 * math.pi) if gaussian else 0.0
    assert found.item() == logged["reward_loss"].item() == pytest.approx(expected, rel=1e-5)


def test_reward_loss_is_the_mean_over_samples() -> None:
    samples = minibatch(1, actions=th.tensor([0]), columns={"decoder_rewards": numbers(0.0)})
    evaluation = evaluated(posterior=Replay(numbers(0.5, 1.0).view(2, 1, 1, 1), lambda: th.zeros(1, 1)))
    found, _ = reward_term(0, True).loss(samples, evaluation)
    assert found.item() == pytest.approx((0.0 + 0.5) / 2 + 0.5 * math.log(2 * math.pi), rel=1e-5)


# -- their sum ----------------------------------------------------------------------------------------------


class Square(LossTerm):
    """The square of one log-probability."""

    coefficient: ClassVar[str] = "first_coef"
    index: ClassVar[int] = 0

    def loss(
        self, samples: SequenceRolloutBufferSamples, evaluation: Evaluation
    ) -> tuple[th.Tensor, dict[str, th.Tensor]]:
        loss = evaluation.log_prob[self.index].square()
        return loss, {self.coefficient: loss}


class OtherSquare(Square):
    coefficient: ClassVar[str] = "second_coef"
    index: ClassVar[int] = 1


def two_terms(first: Any, second: Any, progress: float = 1.0) -> list[Any]:
    attributes = {"first_coef": first, "second_coef": second, "_current_progress_remaining": progress}
    return [begun(term, **attributes) for term in (Square, OtherSquare)]


def test_total_loss_is_the_weighted_sum() -> None:
    log_prob = numbers(3.0, 2.0).requires_grad_()
    loss, logged = total_loss(
        two_terms(0.5, lambda progress: progress, 0.25), minibatch(), evaluated(log_prob=log_prob)
    )
    assert logged == {"first_coef": 9.0, "second_coef": 4.0, "loss": 5.5}
    assert loss.item() == 5.5
    assert th.autograd.grad(loss, log_prob)[0].tolist() == [3.0, 1.0]


def test_a_term_of_weight_0_is_logged_and_nothing_flows_back() -> None:
    log_prob = numbers(math.inf, 2.0).requires_grad_()
    loss, logged = total_loss(two_terms(0.0, 2.0), minibatch(), evaluated(log_prob=log_prob))
    # inf times 0 would be NaN
    assert logged == {"first_coef": math.inf, "second_coef": 4.0, "loss": 8.0}
    assert th.autograd.grad(loss, log_prob)[0].tolist() == [0.0, 8.0]
    loss, logged = total_loss(two_terms(0.0, 0.0), minibatch(), evaluated(log_prob=log_prob))
    assert (loss.item(), loss.requires_grad, logged["second_coef"]) == (0.0, False, 4.0)


def test_a_loss_that_is_not_finite_is_refused() -> None:
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="The loss is not finite"):
            total_loss(two_terms(1.0, 0.0), minibatch(), evaluated(log_prob=numbers(value, 0.0)))


@pytest.mark.parametrize(
    ("value", "progress", "is_on", "weight"),
    [
        (0.0, 1.0, False, 0.0),
        (0.3, 0.1, True, 0.3),
        (lambda progress: 2 * progress, 0.25, True, 0.5),
        (lambda progress: 2 * progress, 0.0, True, 0.0),
        # SB3's progress falls below zero at the end
        (lambda progress: 1 + progress, -0.5, True, 1.0),
    ],
)
def test_coefficients(value: Any, progress: float, is_on: bool, weight: float) -> None:
    term = begun(Square, first_coef=value, _current_progress_remaining=progress)
    assert term.is_on == is_on
    assert term.weight == pytest.approx(weight)
    fresh = Square(term.algorithm)
    assert (fresh.weight, fresh.is_stored) == (0.0, False)
    fresh.begin_rollout(None)  # type: ignore[arg-type]
    assert fresh.is_stored == is_on

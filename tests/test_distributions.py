"""The categorical distribution against torch's own, and the entropy of mixtures."""

import math

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import BernoulliDistribution
from torch.distributions import Categorical

from sb3_laplace.policies.distributions import LogSoftmaxCategorical, mix
from tests.helpers import make_policy
from tests.test_laplace_recurrent_ppo import collect, random_vec_env, small_model


@pytest.mark.parametrize("scale", [0.1, 3.0, 100.0])
@pytest.mark.parametrize("masked", [False, True])
def test_categorical_is_torchs(scale: float, masked: bool) -> None:
    generator = th.Generator().manual_seed(0)
    logits = scale * th.randn(400, 5, generator=generator)
    if masked:
        logits[::2, 1] = -th.inf
    actions = th.randint(0, 5, (400,), generator=generator)
    results = []
    for make in (LogSoftmaxCategorical, lambda given: Categorical(logits=given)):
        given = logits.clone().requires_grad_()
        distribution = make(given)
        entropy, log_prob = distribution.entropy(), distribution.log_prob(actions)
        possible = log_prob[log_prob.isfinite()]
        gradient = None if masked else th.autograd.grad(entropy.sum() + possible.sum(), given)[0]
        results.append((distribution.probs, distribution.logits, entropy, log_prob, distribution.mode, gradient))
    for ours, theirs in zip(*results, strict=True):
        th.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("shape", [(), (7,), (2, 3)])
def test_categorical_draws_what_torch_draws(shape: tuple[int, ...]) -> None:
    logits = 2 * th.randn(4000, 5, generator=th.Generator().manual_seed(0))
    draws = []
    for distribution in (LogSoftmaxCategorical(logits), Categorical(logits=logits)):
        th.manual_seed(1)
        draws.append(distribution.sample(th.Size(shape)))
    assert draws[0].shape == (*shape, 4000)
    # The probabilities may differ in the last bit, by which a draw in a million falls otherwise
    assert (draws[0] != draws[1]).float().mean() < 1e-3


def test_categorical_draws_by_its_probabilities() -> None:
    probabilities = th.tensor([0.0, 0.1, 0.2, 0.7])
    th.manual_seed(0)
    draws = LogSoftmaxCategorical(probabilities.log().expand(100_000, 4)).sample()
    # Standard errors are below 0.0015
    th.testing.assert_close(draws.bincount(minlength=4) / 100_000, probabilities, atol=0.006, rtol=0.0)
    assert (draws != 0).all()


@pytest.mark.parametrize("n_samples", [1, 4])
def test_entropy_bonus_raises_the_entropy(n_samples: int) -> None:
    """d(entropy loss) / d(log_std) is -1 for each of two Gaussian actions, with any number of samples."""
    env = random_vec_env(action_space=spaces.Box(-1.0, 1.0, (2,), np.float32))
    model = small_model(env, policy_kwargs={"n_posterior_samples": n_samples})
    collect(model)
    samples = next(model.rollout_buffer.get(None))
    evaluation = model.policy.evaluate_sequences(
        samples.observations, samples.actions, samples.lstm_states, samples.episode_starts, samples.noise
    )
    (gradient,) = th.autograd.grad(-evaluation.entropy.mean(), model.policy.log_std)
    th.testing.assert_close(gradient, th.full((2,), -1.0))


@pytest.mark.parametrize("space", [spaces.Box(-1, 1, (2,)), spaces.MultiDiscrete([3, 2]), spaces.MultiBinary(3)])
def test_entropy_of_a_mixture_is_a_lower_bound(space: spaces.Space) -> None:
    """Between the mixture's entropy, by sampling, and that less log K."""
    kwargs = {"n_posterior_samples": 3, "posterior_kwargs": {"prior_std": 1.0}}
    policy = make_policy(action_space=space, **kwargs)
    obs, states = th.rand(1, 4).expand(4000, 4), policy.initial_states(4000)
    hidden = policy.act(obs, states, th.zeros(4000)).hidden
    latents = th.randn(3, 1, 8).expand(3, 4000, 8)
    with th.no_grad():
        distribution = policy.distribution_at(obs, latents, hidden)
        sampled = -distribution.log_prob(distribution.sample()).mean()
        bound = distribution.entropy()
    assert bound.std() < 1e-4
    assert sampled - np.log(3) - 0.05 < bound.mean() < sampled + 0.05


@pytest.mark.parametrize("n_components", [1, 2])
def test_masked_bits_count_nothing(n_components: int) -> None:
    """A bit that can only be 0, and one that can only be 1, beside a free one of logit log 3: p = 3/4."""
    logits = th.tensor([[-th.inf, math.log(3.0), th.inf]]).repeat(n_components, 1).requires_grad_()
    distribution = mix(BernoulliDistribution(3).proba_distribution, logits, n_components)
    for free, probability in ((1.0, 0.75), (0.0, 0.25)):
        log_prob = distribution.log_prob(th.tensor([[0.0, free, 1.0]]))
        th.testing.assert_close(log_prob, th.tensor([probability]).log())
    entropy = distribution.entropy()
    th.testing.assert_close(entropy, th.tensor([-0.75 * math.log(0.75) - 0.25 * math.log(0.25)]))
    gradient = th.autograd.grad((entropy + log_prob).sum(), logits)[0].sum(0)
    # d entropy / d logit = -logit p (1 - p), d log(1 - p) / d logit = -p
    th.testing.assert_close(gradient, th.tensor([0.0, -math.log(3.0) * 3 / 16 - 0.75, 0.0]))
    assert distribution.log_prob(th.tensor([[1.0, 0.0, 1.0]])).exp() == 0.0
    assert distribution.log_prob(th.tensor([[0.0, 0.0, 0.0]])).exp() == 0.0

"""The categorical distribution against torch's own."""

import pytest
import torch as th
from torch.distributions import Categorical

from sb3_laplace.policies.distributions import LogSoftmaxCategorical


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

"""The KL and the moves of an update against the rollout's own, before the first gradient step."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_laplace import LaplaceRecurrentPPO
from sb3_laplace.posteriors import LaplacePosterior, PosteriorStep
from tests.helpers import randomize
from tests.test_laplace_recurrent_ppo import POSTERIORS, random_vec_env, small_model

WITH_KL = [name for name in POSTERIORS if name != "point"]


def kl_of(model: LaplaceRecurrentPPO, step: PosteriorStep) -> th.Tensor:
    """KL(q_t || sg(q_{t-1})) as an update has it: of Laplace's the mean part, as the rest has no gradient."""
    previous = type(step.previous)(*(part.detach() for part in step.previous.tensors))
    parts = step.posterior.kl_parts(previous)
    return parts.mean if isinstance(model.policy.latent_layer, LaplacePosterior) else parts.mean + parts.covariance


def moved(_: LaplaceRecurrentPPO, step: PosteriorStep) -> th.Tensor:
    """How far the mean moved."""
    return step.posterior.mean - step.previous.mean


def model_of(posterior: str) -> LaplaceRecurrentPPO:
    """13 steps in sequences of 5, 4 and 4, with a prior that is neither far from the posterior nor on it."""
    kwargs = POSTERIORS[posterior]
    kwargs = {**kwargs, "posterior_kwargs": {"prior_std": 0.7, **kwargs.get("posterior_kwargs", {})}}
    model = small_model(
        random_vec_env(end_rate=0.25), policy_kwargs=kwargs, n_steps=13, sequence_length=5, batch_size=10, kl_coef=0.1
    )
    randomize(model.policy)
    return model


def rollout(
    model: LaplaceRecurrentPPO, what: Callable[[LaplaceRecurrentPPO, PosteriorStep], th.Tensor] = kl_of
) -> th.Tensor:
    """One rollout without an update, and the KL (or what is asked for) at each of its steps, (n_steps, n_envs, ...)."""
    found: list[th.Tensor] = []

    class Record(BaseCallback):
        def _on_step(self) -> bool:
            found.append(what(model, self.locals["step"].posterior))
            return True

    _, callback = model._setup_learn(1, Record(), reset_num_timesteps=False)
    callback.on_training_start({}, {})
    assert model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    return th.stack(found)


def replayed(model: LaplaceRecurrentPPO, name: str = "kl") -> th.Tensor:
    """The KL, or what has moved, at the same steps as an update has it, shape (n_steps, n_envs, ...)."""
    samples = next(iter(model.rollout_buffer.get(None)))
    assert samples.mask is not None
    evaluation = model.policy.evaluate_sequences(
        samples.observations,
        samples.actions,
        samples.lstm_states,
        samples.episode_starts,
        samples.noise,
        samples.memory,
    )
    values = getattr(evaluation.posterior, name)().flatten(0, 1)
    # All sequences at once come one environment after the other
    return values[samples.mask].unflatten(0, (model.n_envs, model.n_steps)).transpose(0, 1)


def assert_resets_everywhere(model: LaplaceRecurrentPPO) -> None:
    """Episodes start at the beginning of sequences, in the middle, and not at all."""
    buffer = model.rollout_buffer
    starts = buffer.episode_starts != 0
    at_sequences = np.zeros(model.n_steps, dtype=bool)
    at_sequences[buffer.chunk_starts] = True
    assert starts[~at_sequences].any()
    assert not starts[at_sequences].all()
    assert not starts[~at_sequences].all()


@pytest.mark.parametrize("posterior", WITH_KL)
def test_replayed_kl_is_the_rollouts(posterior: str) -> None:
    model = model_of(posterior)
    # A second rollout starts in the middle of episodes
    for _ in range(2):
        expected = rollout(model)
        assert_resets_everywhere(model)
        assert expected.min() > 0
        th.testing.assert_close(replayed(model).detach(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("posterior", WITH_KL)
def test_replayed_moves_are_the_rollouts(posterior: str) -> None:
    model = model_of(posterior)
    for _ in range(2):
        expected = rollout(model, moved)
        assert_resets_everywhere(model)
        assert expected.abs().max() > 0.01
        th.testing.assert_close(replayed(model, "moved").detach(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("posterior", WITH_KL)
def test_gradient_of_the_replayed_kl(posterior: str) -> None:
    """Against one step after the other: nothing flows back through q_{t-1}, nor past a sequence's start."""
    model = model_of(posterior)
    rollout(model)
    policy, buffer = model.policy, model.rollout_buffer
    state, weights = model._last_lstm_states.pi, dict(policy.lstm_actor.named_parameters())
    weights |= {f"latent.{name}": weight for name, weight in policy.latent_layer.named_parameters()}
    rollout(model)
    observations = th.as_tensor(buffer.observations)
    starts = th.as_tensor(buffer.episode_starts)
    total = th.zeros(())
    for t in range(model.n_steps):
        state = state.with_posterior(part.detach() for part in state.posterior)
        if t in buffer.chunk_starts:
            state = state._replace(core=tuple(part.detach() for part in state.core))
        features = policy.extract_features(observations[t], policy.pi_features_extractor)
        _, step, state = policy._advance(features, state, starts[t])
        total = total + kl_of(model, step).square().sum()

    def gradients(loss: th.Tensor) -> list[Any]:
        return list(th.autograd.grad(loss, list(weights.values()), allow_unused=True))

    expected, found = gradients(total), gradients(replayed(model).square().sum())
    for name, oracle, gradient in zip(weights, expected, found, strict=True):
        assert (oracle is None) == (gradient is None), name
        if oracle is not None:
            th.testing.assert_close(gradient, oracle, rtol=1e-3, atol=1e-4 * float(oracle.abs().max()), msg=name)

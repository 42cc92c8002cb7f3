"""RecurrentPPO agents made Bayesian after the fact."""

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecNormalize

from sb3_laplace import LaplaceRecurrentPPO, calibrate_prior_std, make_vec_env
from sb3_laplace.posthoc import convert as posthoc
from tests.helpers import ACTION_SPACES, CRITICS
from tests.test_laplace_recurrent_ppo import collect, largest_log_ratio, random_vec_env, small_model

IMAGE = spaces.Box(0, 255, (36, 36, 1), np.uint8)


def recurrent_ppo(env: Any = None, policy: str = "MlpLstmPolicy", **policy_kwargs: Any) -> RecurrentPPO:
    """A RecurrentPPO agent after a little training."""
    policy_kwargs = {"lstm_hidden_size": 8, "net_arch": [8], **policy_kwargs}
    model = RecurrentPPO(
        policy, env or random_vec_env(), n_steps=16, batch_size=16, seed=0, device="cpu", policy_kwargs=policy_kwargs
    )
    return model.learn(96)


def assert_same_agent(ours: LaplaceRecurrentPPO, theirs: RecurrentPPO, env: Any, n_steps: int = 40) -> None:
    """Actions, values and log-probabilities over whole episodes."""
    env.seed(7)
    obs, n_envs = env.reset(), env.num_envs
    our_states = ours.policy.initial_states(n_envs)
    their_states = RNNStates(our_states.pi.core, our_states.vf.core)
    starts = th.ones(n_envs)
    n_episodes = 0
    for _ in range(n_steps):
        tensor, _ = theirs.policy.obs_to_tensor(obs)
        with th.no_grad():
            actions, values, log_prob, their_states = theirs.policy(tensor, their_states, starts, deterministic=True)
            step = ours.policy.act(tensor, our_states, starts, deterministic=True)
        our_states = step.states
        for found, expected in ((step.actions, actions), (step.values, values), (step.log_prob, log_prob)):
            th.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
        assert step.posterior.posterior.entropy().isfinite().all()
        obs, _, dones, _ = env.step(ours.policy.to_env_actions(actions.numpy()))
        starts = th.as_tensor(dones, dtype=th.float32)
        n_episodes += dones.sum()
    assert n_episodes >= n_envs


@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("space", ["discrete", "box"])
@pytest.mark.parametrize("through_zip", [True, False])
def test_same_agent(critic: str, layers: int, space: str, through_zip: bool, tmp_path: Path) -> None:
    env = random_vec_env(action_space=ACTION_SPACES[space])
    theirs = recurrent_ppo(env, n_lstm_layers=layers, **CRITICS[critic])
    source: Any = theirs
    if through_zip:
        theirs.save(tmp_path / "model")
        source = tmp_path / "model"
    ours = LaplaceRecurrentPPO.from_recurrent_ppo(source, posterior_kwargs={"covariance": "full"}, device="cpu")
    assert ours.policy.latent_layer.covariance == "full"
    assert ours.num_timesteps == theirs.num_timesteps
    assert_same_agent(ours, theirs, env)


@pytest.mark.parametrize("policy", ["CnnLstmPolicy", "MultiInputLstmPolicy"])
def test_same_agent_with_other_policies(policy: str) -> None:
    space = IMAGE if policy == "CnnLstmPolicy" else spaces.Dict({"image": IMAGE, "vector": spaces.Box(-1, 1, (3,))})
    theirs = recurrent_ppo(random_vec_env(2, observation_space=space), policy)
    ours = LaplaceRecurrentPPO.from_recurrent_ppo(theirs, device="cpu")
    assert_same_agent(ours, theirs, theirs.get_env())


def test_same_agent_under_vec_normalize(tmp_path: Path) -> None:
    env = VecNormalize(random_vec_env())
    theirs = recurrent_ppo(env)
    theirs.save(tmp_path / "model")
    env.save(tmp_path / "normalize.pkl")
    again = VecNormalize.load(tmp_path / "normalize.pkl", random_vec_env())
    again.training = False
    ours = LaplaceRecurrentPPO.from_recurrent_ppo(tmp_path / "model.zip", env=again, device="cpu")
    assert ours.get_vec_normalize_env() is again
    assert_same_agent(ours, theirs, again)


def test_from_a_file_object() -> None:
    theirs, file = recurrent_ppo(), io.BytesIO()
    theirs.save(file)
    file.seek(0)
    assert_same_agent(LaplaceRecurrentPPO.from_recurrent_ppo(file, device="cpu"), theirs, theirs.get_env())


def test_the_same_update_goes_on() -> None:
    """K = 0: the gradient of the first update after conversion is RecurrentPPO's own."""
    theirs = recurrent_ppo(**CRITICS["shared"])
    ours = LaplaceRecurrentPPO.from_recurrent_ppo(theirs, device="cpu")
    collect(ours)
    assert largest_log_ratio(ours) < 1e-5
    samples = next(ours.rollout_buffer.get(None))
    states = RNNStates(samples.lstm_states.pi.core, samples.lstm_states.vf.core)
    gradients = []
    for policy in (ours.policy, theirs.policy):
        policy.zero_grad()
        values, log_prob, entropy = policy.evaluate_actions(
            samples.observations, samples.actions, states, samples.episode_starts
        )
        (values.sum() + log_prob.sum() + entropy.sum()).backward()
        gradients.append({name: weight.grad.clone() for name, weight in policy.named_parameters()})
    for name, gradient in gradients[1].items():
        th.testing.assert_close(gradients[0][name], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"n_posterior_samples": 2},
        {"kl_coef": 0.01},
        {"posterior": "variational", "n_posterior_samples": 1},
        {"posterior": "point"},
        {"posterior_kwargs": {"factorization": "stationary", "window": 3}, "n_posterior_samples": 1},
        {"latent_dim": 3, "n_posterior_samples": 1},
    ],
)
def test_training_goes_on(changes: dict[str, Any], tmp_path: Path) -> None:
    theirs = recurrent_ppo()
    ours = LaplaceRecurrentPPO.from_recurrent_ppo(theirs, device="cpu", **changes)
    ours.learn(96, reset_num_timesteps=False)
    assert ours.num_timesteps == 192
    assert np.isfinite(ours.policy.parameters_to_vector()).all()
    ours.save(tmp_path / "ours")
    LaplaceRecurrentPPO.load(tmp_path / "ours", device="cpu").predict(ours.env.reset())


def test_the_log_says_which_weights_are_kept(caplog: pytest.LogCaptureFixture) -> None:
    theirs = recurrent_ppo()
    with caplog.at_level(logging.INFO, logger="sb3_laplace"):
        same = LaplaceRecurrentPPO.from_recurrent_ppo(theirs, device="cpu")
    assert "All weights were kept" in caplog.text
    # The optimizer's state too
    assert same.policy.optimizer.state_dict()["state"].keys() == theirs.policy.optimizer.state_dict()["state"].keys()
    caplog.clear()
    LaplaceRecurrentPPO.from_recurrent_ppo(theirs, posterior="variational", device="cpu")
    assert "New: latent_layer.scale_net.weight, latent_layer.scale_net.bias. Left behind: none" in caplog.text
    caplog.clear()
    LaplaceRecurrentPPO.from_recurrent_ppo(theirs, latent_dim=3, device="cpu")
    assert "Left behind: mlp_extractor.policy_net.0.weight" in caplog.text


def test_one_of_ours_gets_another_posterior() -> None:
    model = small_model(policy_kwargs={"latent_dim": 3}).learn(72)
    other = LaplaceRecurrentPPO.from_recurrent_ppo(model, posterior="variational", latent_dim=3, device="cpu")
    weights = model.policy.state_dict()
    for name, weight in other.policy.state_dict().items():
        if name in weights:
            assert th.equal(weight, weights[name]), name


def test_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ppo = PPO("MlpPolicy", "CartPole-v1", device="cpu")
    ppo.save(tmp_path / "ppo")
    with pytest.raises(ValueError, match=r"must be a RecurrentPPO model \(it must be recurrent\).*got a PPO"):
        LaplaceRecurrentPPO.from_recurrent_ppo(ppo)
    with pytest.raises(ValueError, match="is no RecurrentPPO model: its policy is ActorCriticPolicy"):
        LaplaceRecurrentPPO.from_recurrent_ppo(tmp_path / "ppo.zip")

    class Custom(RecurrentActorCriticPolicy):
        def predict_values(self, *args: Any) -> th.Tensor:
            return super().predict_values(*args) + 1

    custom = RecurrentPPO(Custom, random_vec_env(), device="cpu")
    with pytest.raises(ValueError, match=r"policy Custom is a custom class; what it changes \(predict_values\) cannot"):
        LaplaceRecurrentPPO.from_recurrent_ppo(custom)
    with pytest.raises(ValueError, match="prior_std must be a positive"):
        LaplaceRecurrentPPO.from_recurrent_ppo(recurrent_ppo(), posterior_kwargs={"prior_std": 0})
    monkeypatch.setattr(posthoc.sb3_contrib, "__version__", "3.1.0")
    with pytest.warns(UserWarning, match=r"tested with models of sb3-contrib 2.9; this one is of 3.1.0"):
        LaplaceRecurrentPPO.from_recurrent_ppo(recurrent_ppo())


@pytest.mark.parametrize("criterion", ["return", "likelihood"])
def test_calibration(criterion: str, tmp_path: Path) -> None:
    env = make_vec_env("sb3_laplace/DirichletBandit-v0", 8, seed=0, env_kwargs={"trial_length": 10})
    arguments: dict[str, Any] = {"n_steps": 20, "batch_size": 80, "n_epochs": 5, "learning_rate": 3e-3}
    model = small_model(env, policy_kwargs={"latent_dim": None}, **arguments).learn(1600)
    prior_stds = [1e-4, 30.0, 0.1]
    before = th.get_rng_state()
    result = calibrate_prior_std(model, env, prior_stds, n_trials=64, criterion=criterion, seed=3)
    assert th.equal(before, th.get_rng_state())
    assert result.prior_stds.tolist() == [1e-4, 0.1, 30.0]
    assert model.policy.latent_layer.prior_std == result.prior_std
    # Almost no noise is almost the unsampled agent
    if criterion == "likelihood":
        assert abs(result.scores[0] - result.unsampled) < 1e-3
        assert result.scores[2] < result.scores[0]
        assert result.prior_std < 30.0
    again = calibrate_prior_std(model, env, prior_stds, n_trials=64, criterion=criterion, seed=3)
    np.testing.assert_array_equal(again.scores, result.scores)
    model.save(tmp_path / "model")
    loaded = LaplaceRecurrentPPO.load(tmp_path / "model", device="cpu")
    assert loaded.policy.latent_layer.prior_std == result.prior_std


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"prior_stds": []}, "prior_stds must hold at least one value"),
        ({"prior_stds": [0.1, -1.0]}, "prior_stds must be a positive finite number, got -1.0"),
        ({"n_trials": 1}, "n_trials must be an integer >= 2, got 1"),
        ({"n_posterior_samples": 0}, "n_posterior_samples must be an integer >= 1, got 0"),
        ({"criterion": "regret"}, "criterion must be 'return' or 'likelihood', got 'regret'"),
    ],
)
def test_calibration_errors(kwargs: dict[str, Any], message: str) -> None:
    model = small_model()
    with pytest.raises(ValueError, match=message):
        calibrate_prior_std(model, model.env, **kwargs)
    point = small_model(policy_kwargs={"posterior": "point"})
    with pytest.raises(ValueError, match="model must have a Laplace posterior, got PointPosterior"):
        calibrate_prior_std(point, point.env)

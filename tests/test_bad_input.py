"""Each mistake gives one clear error that names the argument."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from stable_baselines3 import DQN, PPO

from sb3_laplace import LaplaceRecurrentPPO, PosteriorCallback, make_vec_env
from tests.helpers import RandomEnv, make_policy
from tests.test_laplace_recurrent_ppo import random_vec_env, small_model

BOX_ACTIONS = spaces.Box(-1.0, 1.0, (2,), np.float32)


@pytest.mark.parametrize(
    ("policy_kwargs", "error", "message"),
    [
        ({"latent_dim": 0}, ValueError, "latent_dim must be an integer >= 1, got 0"),
        ({"latent_dim": -3}, ValueError, "latent_dim must be an integer >= 1, got -3"),
        ({"latent_dim": 2.5}, ValueError, "latent_dim must be an integer >= 1, got 2.5"),
        (
            {"posterior": "gaussian"},
            ValueError,
            r"posterior must be one of \['laplace', .*\] or a LatentPosterior class, got 'gaussian'",
        ),
        ({"posterior": RandomEnv}, ValueError, r"posterior must be one of .* or a LatentPosterior class, got <class"),
        ({"posterior_kwargs": {"covariance": "banded"}}, ValueError, "covariance must be .*, got 'banded'"),
        ({"posterior_kwargs": {"prior_std": 0}}, ValueError, "prior_std must be a positive finite number, got 0"),
        ({"posterior_kwargs": {"prior_std": -1.0}}, ValueError, "prior_std must be a positive finite number, got -1.0"),
        ({"posterior_kwargs": {"prior_std": float("nan")}}, ValueError, "prior_std must be .* got nan"),
        ({"posterior_kwargs": {"sigma": 1.0}}, TypeError, "posterior_kwargs=.*do not fit LaplacePosterior.*sigma"),
        ({"posterior_kwargs": {"factorization": "none"}}, ValueError, "factorization must be .*, got 'none'"),
        ({"posterior_kwargs": {"window": 0}}, ValueError, "window must be an integer >= 1, got 0"),
        ({"posterior_kwargs": {"damping": 1.0}}, ValueError, "damping is for factorization='stationary' only, got 1.0"),
        (
            {"posterior_kwargs": {"damping": 0.0, "factorization": "stationary"}},
            ValueError,
            "damping must be a positive finite number, got 0.0",
        ),
        (
            {"posterior": "variational", "posterior_kwargs": {"covariance": "cayley"}},
            ValueError,
            "covariance must be 'diagonal' or 'full', got 'cayley'",
        ),
        ({"posterior_kwargs": {"jacobian_dtype": "int8"}}, ValueError, "jacobian_dtype must be .*, got 'int8'"),
        (
            {"posterior_kwargs": {"jacobian_dtype": "bfloat16", "window": 3}},
            ValueError,
            "jacobian_dtype='bfloat16' needs window=1, got window=3",
        ),
        ({"rnn_type": "transformer"}, ValueError, "rnn_type must be one of .*, got 'transformer'"),
        ({"n_posterior_samples": -1}, ValueError, "n_posterior_samples must be an integer >= 0, got -1"),
        ({"n_posterior_samples": 1.5}, ValueError, "n_posterior_samples must be an integer >= 0, got 1.5"),
        ({"head_inputs": "hidden"}, ValueError, "head_inputs must be a sequence of any of"),
        ({"head_inputs": ("action",)}, ValueError, "head_inputs must be a sequence of any of"),
        ({"lstm_kwargs": {"proj_size": 4}}, ValueError, r"lstm_kwargs\['proj_size'\] = 4 is not supported"),
        (
            {"rnn_type": "rnn", "lstm_kwargs": {"nonlinearity": "relu"}},
            ValueError,
            r"lstm_kwargs\['nonlinearity'\] must be 'tanh', got 'relu'",
        ),
        ({"lstm_kwargs": {"bidirectional": True}}, ValueError, r"lstm_kwargs\['bidirectional'\] = True is not"),
        ({"lstm_kwargs": {"batch_first": True}}, ValueError, r"lstm_kwargs\['batch_first'\] = True is not"),
    ],
)
def test_policy_arguments(policy_kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        small_model(policy_kwargs=policy_kwargs)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"kl_coef": -0.1}, "kl_coef must be a finite number >= 0, got -0.1"),
        ({"kl_coef": float("inf")}, "kl_coef must be a finite number >= 0, got inf"),
        ({"kl_coef": lambda progress: progress - 2.0}, "kl_coef must be a finite number >= 0, got -1.0"),
        ({"ent_coef": -0.1}, "ent_coef must be a finite number >= 0, got -0.1"),
        (
            {"kl_coef": 0.1, "policy_kwargs": {"posterior": "point"}},
            "kl_coef must be 0 with posterior='point', which has no KL; got 0.1",
        ),
        ({"n_steps": 16.0}, "n_steps must be an integer >= 1, got 16.0"),
        ({"n_steps": 0}, "n_steps must be an integer >= 1, got 0"),
        ({"batch_size": 12.0}, "batch_size must be an integer >= 1, got 12.0"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
        ({"n_epochs": 2.0}, "n_epochs must be an integer >= 1, got 2.0"),
        ({"sequence_length": 0}, "sequence_length must be an integer >= 1, got 0"),
        ({"sequence_length": 6.0}, "sequence_length must be an integer >= 1, got 6.0"),
        ({"sequence_length": 13}, "sequence_length must be <= n_steps = 12, got 13"),
        ({"sequence_length": 10, "batch_size": 9}, "batch_size must hold one sequence at least: got 9"),
        ({"clip_range_vf": -1.0}, "clip_range_vf must be positive or None, got -1.0"),
        ({"policy": "MlpPolicy"}, r"policy must be one of .*LaplaceLstmPolicy.*, got 'MlpPolicy'"),
        ({"policy": PPO.policy_aliases["MlpPolicy"]}, "policy must be one of .* got ActorCriticPolicy"),
    ],
)
def test_algorithm_arguments(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_model(**kwargs)


def test_integers_of_numpy_are_integers() -> None:
    model = small_model(n_steps=np.int64(8), batch_size=np.int32(8), n_epochs=np.uint8(1), sequence_length=np.int64(4))
    model.learn(16)


def test_recurrent_policy_that_is_not_ours() -> None:
    with pytest.raises(ValueError, match="got RecurrentActorCriticPolicy"):
        LaplaceRecurrentPPO(RecurrentPPO.policy_aliases["MlpLstmPolicy"], "CartPole-v1")


def test_gsde_takes_at_most_one_sample() -> None:
    with pytest.raises(ValueError, match=r"use_sde=True \(gSDE\) takes n_posterior_samples <= 1, got 2"):
        small_model(random_vec_env(action_space=BOX_ACTIONS), use_sde=True, policy_kwargs={"n_posterior_samples": 2})


def test_predict_states_of_another_shape_or_policy() -> None:
    policy, other = make_policy(), make_policy(lstm_hidden_size=4)
    obs = np.zeros((3, 4), dtype=np.float32)
    _, state = policy.predict(obs)
    _, other_state = other.predict(obs)
    with pytest.raises(ValueError, match=r"tuple of 4 arrays that predict\(\) of this policy returns, got 2 arrays"):
        policy.predict(obs, state[:2])
    with pytest.raises(ValueError, match="got str"):
        policy.predict(obs, "state")
    with pytest.raises(ValueError, match=r"state\[0\] must have shape \(1, 3, 8\), got \(1, 3, 4\): is it of another"):
        policy.predict(obs, other_state)
    with pytest.raises(ValueError, match=r"state\[0\] must have shape \(1, 2, 8\), got \(1, 3, 8\)"):
        policy.predict(obs[:2], state)
    _, full_state = make_policy(posterior_kwargs={"covariance": "full"}).predict(obs)
    with pytest.raises(ValueError, match=r"state\[3\] must have shape \(1, 3, 8\), got \(1, 3, 8, 8\)"):
        policy.posterior(full_state)
    # The policy still works
    policy.predict(obs, state)


def test_episode_starts_of_the_wrong_number() -> None:
    with pytest.raises(ValueError, match=r"episode_start must have shape \(3,\), got \(2,\)"):
        make_policy().predict(np.zeros((3, 4), dtype=np.float32), episode_start=np.zeros(2))


def test_nan_observations() -> None:
    policy = make_policy()
    obs = np.zeros((3, 4), dtype=np.float32)
    obs[1, 2] = np.nan
    with pytest.raises(ValueError, match=r"observation holds NaN, first at index \(1, 2\)"):
        policy.predict(obs)

    class Broken(RandomEnv):
        def step(self, action: Any) -> tuple:
            obs, *rest = super().step(action)
            return (obs * np.nan, *rest)

    model = small_model(make_vec_env(Broken, n_envs=2))
    with pytest.raises(ValueError, match=r"observation after step 0 of the rollout holds NaN, first at index \(0, 0\)"):
        model.learn(100)
    # The model is not lost
    assert np.isfinite(model.policy.parameters_to_vector()).all()


def test_diverged_weights_are_named() -> None:
    model = small_model()
    with th.no_grad():
        model.policy.value_net.weight.fill_(float("inf"))
    with pytest.raises(ValueError, match="values are not finite any more"):
        model.learn(100)


def test_a_loss_that_is_not_finite_leaves_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    evaluate = model.policy.evaluate_sequences

    def broken(*args: Any, **kwargs: Any) -> Any:
        evaluation = evaluate(*args, **kwargs)
        return evaluation._replace(values=evaluation.values * float("nan"))

    monkeypatch.setattr(model.policy, "evaluate_sequences", broken)
    with pytest.raises(ValueError, match="The loss is not finite"):
        model.learn(100)
    assert np.isfinite(model.policy.parameters_to_vector()).all()


@pytest.mark.parametrize("algorithm", [RecurrentPPO, PPO, DQN])
def test_loading_a_zip_of_another_algorithm(algorithm: Any, tmp_path: Path) -> None:
    policy = "MlpLstmPolicy" if algorithm is RecurrentPPO else "MlpPolicy"
    algorithm(policy, "CartPole-v1", device="cpu").save(tmp_path / "other")
    with pytest.raises(ValueError, match="this is no LaplaceRecurrentPPO model"):
        LaplaceRecurrentPPO.load(tmp_path / "other")


def test_loading_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "text.zip").write_text("no model")
    with pytest.raises(ValueError, match="zip"):
        LaplaceRecurrentPPO.load(tmp_path / "text.zip")


def test_callback_arguments() -> None:
    with pytest.raises(ValueError, match="n_watched"):
        PosteriorCallback(n_watched=0)
    with pytest.raises(ValueError, match="PosteriorCallback watches a LaplaceRecurrentPPO, got a PPO"):
        PPO("MlpPolicy", "CartPole-v1", n_steps=8, device="cpu").learn(8, callback=PosteriorCallback())


@pytest.mark.parametrize(
    ("env_id", "env_kwargs", "name"),
    [
        ("DirichletBandit", {"n_arms": 1}, "n_arms"),
        ("DirichletBandit", {"concentration": 0.0}, "concentration"),
        ("GridNavigation", {"size": 1}, "size"),
        ("FourierRegression", {"trial_length": 0}, "trial_length"),
    ],
)
def test_environment_arguments(env_id: str, env_kwargs: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        make_vec_env(f"sb3_laplace/{env_id}-v0", n_envs=2, env_kwargs=env_kwargs)

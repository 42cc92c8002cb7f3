"""The algorithm: ratio one (invariant 2), save and load (invariant 6), everything RecurrentPPO takes."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_laplace import LaplacePosterior, LaplaceRecurrentPPO, PosteriorCallback, make_vec_env
from tests.helpers import ACTION_SPACES, CRITICS, RandomEnv, randomize

POSTERIORS: dict[str, dict[str, Any]] = {
    "identity-diagonal": {},
    "identity-full": {"posterior_kwargs": {"covariance": "full"}},
    "projected-diagonal": {"latent_dim": 3},
    "projected-full": {"latent_dim": 3, "posterior_kwargs": {"covariance": "full"}},
    "stationary": {"latent_dim": 3, "posterior_kwargs": {"factorization": "stationary", "covariance": "full"}},
    "window": {"posterior_kwargs": {"window": 3, "normalize": True}},
    "summed-means": {"latent_dim": 3, "posterior_kwargs": {"sum_means": True}},
    "summed-means-stationary": {"posterior_kwargs": {"sum_means": True, "factorization": "stationary", "window": 2}},
    "point": {"posterior": "point", "latent_dim": 3},
    "constant-variance": {"posterior": "constant_variance"},
    "variational-diagonal": {"posterior": "variational"},
    "variational-full": {"posterior": "variational", "latent_dim": 3, "posterior_kwargs": {"covariance": "full"}},
    "gru": {"rnn_type": "gru", "latent_dim": 3, "posterior_kwargs": {"covariance": "full"}},
    "rnn": {"rnn_type": "rnn"},
    "gtrxl": {"rnn_type": "gtrxl", "latent_dim": 3, "lstm_kwargs": {"memory_length": 2}},
    "gtrxl-window": {"rnn_type": "gtrxl", "posterior_kwargs": {"covariance": "full", "window": 3}},
    "mingru": {"rnn_type": "mingru", "latent_dim": 3},
    "mingru-two-layers": {"rnn_type": "mingru", "n_lstm_layers": 2, "posterior_kwargs": {"covariance": "full"}},
}


def random_vec_env(n_envs: int = 3, seed: int = 0, **kwargs: Any) -> DummyVecEnv:
    env = DummyVecEnv([lambda: Monitor(RandomEnv(**kwargs)) for _ in range(n_envs)])
    env.seed(seed)
    return env


def small_model(env: Any = None, policy: str = "LaplaceLstmPolicy", **kwargs: Any) -> LaplaceRecurrentPPO:
    policy_kwargs = {"lstm_hidden_size": 8, "net_arch": [8], **kwargs.pop("policy_kwargs", {})}
    arguments = {"n_steps": 12, "batch_size": 12, "n_epochs": 2, "seed": 0, "device": "cpu", **kwargs}
    return LaplaceRecurrentPPO(policy, env or random_vec_env(), policy_kwargs=policy_kwargs, **arguments)


def collect(model: LaplaceRecurrentPPO) -> None:
    """One rollout without an update; a later one goes on from where the last one ended."""
    _, callback = model._setup_learn(1, reset_num_timesteps=False)
    callback.on_training_start({}, {})
    assert model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)


def largest_log_ratio(model: LaplaceRecurrentPPO) -> float:
    largest = 0.0
    for samples in model.rollout_buffer.get(model.batch_size):
        with th.no_grad():
            evaluation = model.policy.evaluate_sequences(
                samples.observations, samples.actions, samples.lstm_states, samples.episode_starts, samples.noise
            )
        difference = (evaluation.log_prob - samples.old_log_prob).abs()
        largest = max(largest, float(difference.max() if samples.mask is None else difference[samples.mask].max()))
    return largest


@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize("n_samples", [0, 1, 4])
@pytest.mark.parametrize("space", ["discrete", "box", "multi_discrete", "multi_binary"])
@pytest.mark.parametrize("end_rate", [0.0, 0.1, 0.6])
def test_ratio_is_one_before_the_first_step(posterior: str, n_samples: int, space: str, end_rate: float) -> None:
    env = random_vec_env(action_space=ACTION_SPACES[space], end_rate=end_rate)
    policy_kwargs = {**POSTERIORS[posterior], "n_posterior_samples": n_samples}
    # 13 steps in sequences of 5: lengths 5, 4, 4
    model = small_model(env, policy_kwargs=policy_kwargs, n_steps=13, sequence_length=5, batch_size=10)
    randomize(model.policy)
    # A second rollout starts from states in the middle of episodes
    for _ in range(2):
        collect(model)
        assert largest_log_ratio(model) < 1e-5


@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("layers", [1, 2])
def test_ratio_and_values_with_every_lstm(critic: str, layers: int) -> None:
    model = small_model(policy_kwargs={**CRITICS[critic], "n_lstm_layers": layers, "latent_dim": 3})
    randomize(model.policy)
    collect(model)
    assert largest_log_ratio(model) < 1e-5
    for samples in model.rollout_buffer.get(None):
        values = model.policy.evaluate_sequences(
            samples.observations, samples.actions, samples.lstm_states, samples.episode_starts, samples.noise
        ).values
        th.testing.assert_close(values.flatten(), samples.old_values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize("critic", CRITICS)
def test_bootstrap_values_are_those_of_acting_on_the_mean(posterior: str, critic: str) -> None:
    model = small_model(policy_kwargs={**POSTERIORS[posterior], **CRITICS[critic]})
    randomize(model.policy)
    policy, states = model.policy, model.policy.initial_states(3)
    for _ in range(5):
        observations, starts = th.rand(3, 4), (th.rand(3) < 0.3).float()
        values = policy.predict_values(observations, states.vf, starts)
        step = policy.act(observations, states, starts, deterministic=True)
        th.testing.assert_close(values, step.values)
        states = step.states


def test_ratio_with_gsde() -> None:
    for n_samples in (0, 1):
        model = small_model(
            random_vec_env(action_space=ACTION_SPACES["box"]),
            use_sde=True,
            sde_sample_freq=4,
            policy_kwargs={"n_posterior_samples": n_samples},
        )
        collect(model)
        assert largest_log_ratio(model) < 1e-5
        model.learn(100)


def test_same_returns_as_recurrent_ppo() -> None:
    """K = 0 with the same weights and actions: the same advantages, terminal-value bootstrap included."""
    ours = small_model(
        random_vec_env(end_rate=0.4), policy_kwargs={"n_posterior_samples": 0, "latent_dim": None}, n_steps=30
    )
    theirs = RecurrentPPO(
        "MlpLstmPolicy",
        random_vec_env(end_rate=0.4),
        n_steps=30,
        policy_kwargs={"lstm_hidden_size": 8, "net_arch": [8]},
        device="cpu",
        seed=0,
    )
    randomize(ours.policy, std=0.3)
    theirs.policy.load_state_dict(ours.policy.state_dict())
    for model in (ours, theirs):
        # The same actions by the same random numbers
        _, callback = model._setup_learn(1)
        callback.on_training_start({}, {})
        th.manual_seed(5)
        model.collect_rollouts(model.env, callback, model.rollout_buffer, 30)
    assert any(flag for flag in ours.rollout_buffer.episode_starts[1:].flatten())
    np.testing.assert_allclose(ours.rollout_buffer.values, theirs.rollout_buffer.values, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours.rollout_buffer.returns, theirs.rollout_buffer.returns, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("policy", "space"),
    [
        ("LaplaceLstmPolicy", spaces.Discrete(5)),
        ("LaplaceLstmPolicy", spaces.MultiDiscrete([3, 4])),
        ("LaplaceLstmPolicy", spaces.MultiBinary(4)),
        ("LaplaceLstmPolicy", spaces.Box(-1.0, 1.0, (2, 3), np.float64)),
        ("LaplaceCnnLstmPolicy", spaces.Box(0, 255, (36, 36, 1), np.uint8)),
        (
            "LaplaceMultiInputLstmPolicy",
            spaces.Dict({"image": spaces.Box(0, 255, (36, 36, 1), np.uint8), "vector": spaces.Box(-1.0, 1.0, (3,))}),
        ),
    ],
)
def test_every_observation_space(policy: str, space: spaces.Space, tmp_path: Path) -> None:
    env = random_vec_env(2, observation_space=space)
    model = small_model(env, policy, policy_kwargs={"n_posterior_samples": 2})
    model.learn(48)
    collect(model)
    assert largest_log_ratio(model) < 1e-5
    model.save(tmp_path / "model")
    loaded = LaplaceRecurrentPPO.load(tmp_path / "model", env=env, device="cpu")
    obs = loaded.env.reset()
    action, state = model.predict(obs, deterministic=True)
    loaded_action, loaded_state = loaded.predict(obs, deterministic=True)
    np.testing.assert_array_equal(action, loaded_action)
    for part, other in zip(state, loaded_state, strict=True):
        np.testing.assert_array_equal(part, other)


@pytest.mark.parametrize("space", ACTION_SPACES)
@pytest.mark.parametrize("n_samples", [0, 1, 4])
def test_learning_with_every_action_space(space: str, n_samples: int) -> None:
    model = small_model(
        random_vec_env(action_space=ACTION_SPACES[space]),
        kl_coef=0.01,
        clip_range_vf=0.2,
        policy_kwargs={"n_posterior_samples": n_samples},
    )
    before = model.policy.parameters_to_vector()
    model.learn(100)
    assert np.isfinite(model.policy.parameters_to_vector()).all()
    assert not np.array_equal(before, model.policy.parameters_to_vector())
    # The seed fixes the training
    again = small_model(
        random_vec_env(action_space=ACTION_SPACES[space]),
        kl_coef=0.01,
        clip_range_vf=0.2,
        policy_kwargs={"n_posterior_samples": n_samples},
    )
    again.learn(100)
    np.testing.assert_array_equal(again.policy.parameters_to_vector(), model.policy.parameters_to_vector())


@pytest.mark.parametrize(
    ("n_steps", "n_envs", "batch_size"), [(1, 2, 2), (7, 3, 4), (20, 1, 7), (8, 2, None), (5, 2, 99)]
)
def test_every_rollout_and_batch_size(
    n_steps: int, n_envs: int, batch_size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each epoch is over every step of the last rollout, once."""
    model = small_model(random_vec_env(n_envs), n_steps=n_steps, batch_size=batch_size)
    buffer, added, epochs = model.rollout_buffer, [], []
    add, get = buffer.add, buffer.get

    def watched_add(obs: th.Tensor, *args: Any, **kwargs: Any) -> None:
        added.append(obs)
        add(obs, *args, **kwargs)

    def watched_get(size: int | None = None) -> Any:
        epochs.append([])
        for samples in get(size):
            epochs[-1].append(samples.observations if samples.mask is None else samples.observations[samples.mask])
            yield samples

    monkeypatch.setattr(buffer, "add", watched_add)
    monkeypatch.setattr(buffer, "get", watched_get)
    before = model.policy.parameters_to_vector()
    model.learn(3 * n_steps * n_envs)

    def rows(observations: list[th.Tensor]) -> list[list[float]]:
        return sorted(th.cat(observations).tolist())

    assert len(epochs) == model._n_updates == 3 * model.n_epochs
    for index, epoch in enumerate(epochs):
        rollout = index // model.n_epochs
        assert rows(epoch) == rows(added[rollout * n_steps : (rollout + 1) * n_steps])
    after = model.policy.parameters_to_vector()
    assert np.isfinite(after).all()
    assert not np.array_equal(before, after)


def test_squashed_actions_reach_the_environment_unscaled() -> None:
    wide = spaces.Box(-3.0, 5.0, (1,), np.float32)
    model = small_model(
        random_vec_env(action_space=wide),
        use_sde=True,
        policy_kwargs={"squash_output": True},
    )
    seen: list[np.ndarray] = []

    class Watch(BaseCallback):
        def _on_step(self) -> bool:
            seen.append(self.locals["clipped_actions"])
            return True

    model.learn(200, callback=Watch())
    assert np.abs(np.concatenate(seen)).max() > 1.0


def test_coefficients_may_be_schedules() -> None:
    seen: list[float] = []

    def schedule(progress: float) -> float:
        seen.append(progress)
        return 0.01 * progress

    # The last rollout passes the total: progress must not fall below zero
    small_model(kl_coef=schedule, ent_coef=schedule).learn(100)
    assert min(seen) == 0.0
    assert max(seen) == 1.0


def test_the_last_update_does_not_climb_the_loss() -> None:
    """The last rollout ends beyond the number of steps asked for: schedules that fall to 0 are 0 there."""
    rates: list[float] = []
    weights: list[th.Tensor] = []

    class Watch(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            weights.append(th.nn.utils.parameters_to_vector(self.model.policy.parameters()).detach().clone())
            rates.append(self.model.policy.optimizer.param_groups[0]["lr"])

    env = random_vec_env(2)
    model = small_model(env, n_steps=8, batch_size=16, n_epochs=2, learning_rate=lambda progress: 0.1 * progress)
    # Two rollouts of 16 steps and a half
    model.learn(40, callback=Watch())
    watch = Watch()
    watch.init_callback(model)
    watch._on_rollout_start()
    assert rates == pytest.approx([0.1, 0.1 * (1 - 16 / 40), 0.1 * (1 - 32 / 40), 0.0])
    assert not th.equal(weights[1], weights[2])
    assert th.equal(weights[2], weights[3])


def test_target_kl_stops_early() -> None:
    model = small_model(target_kl=1e-12, learning_rate=1e-2, n_epochs=10)
    model.learn(36)
    assert model._n_updates == 1


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_saved_is_the_same_and_trains_on(posterior: str, tmp_path: Path) -> None:
    kl_coef = 0.0 if posterior == "point" else 0.01
    model = small_model(policy_kwargs={**POSTERIORS[posterior], "n_posterior_samples": 2}, kl_coef=kl_coef)
    model.learn(72)
    model.save(tmp_path / "model.zip")
    loaded = LaplaceRecurrentPPO.load(tmp_path / "model.zip", device="cpu")
    obs, state, loaded_state = model.env.reset(), None, None
    for _ in range(4):
        action, state = model.predict(obs, state, deterministic=True)
        loaded_action, loaded_state = loaded.predict(obs, loaded_state, deterministic=True)
        np.testing.assert_array_equal(action, loaded_action)
        q, loaded_q = model.policy.posterior(state), loaded.policy.posterior(loaded_state)
        assert th.equal(q.mean, loaded_q.mean)
        assert th.equal(q.precision, loaded_q.precision)
    assert (loaded.kl_coef, loaded.sequence_length) == (kl_coef, None)
    loaded.set_env(random_vec_env())
    before = loaded.policy.parameters_to_vector()
    loaded.learn(36, reset_num_timesteps=False)
    assert loaded.num_timesteps == 108
    assert not np.array_equal(before, loaded.policy.parameters_to_vector())


def test_the_default_prior_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    model.save(tmp_path / "model")
    assert model.posterior_settings == {"prior_std": model.policy.latent_layer.prior_std}
    monkeypatch.setattr(
        LaplacePosterior.__init__, "__defaults__", (None, 7.0, *LaplacePosterior.__init__.__defaults__[2:])
    )
    assert small_model().policy.latent_layer.prior_std == 7.0
    loaded = LaplaceRecurrentPPO.load(tmp_path / "model", device="cpu")
    assert loaded.policy.latent_layer.prior_std == model.policy.latent_layer.prior_std != 7.0


def test_set_env_with_another_number_of_environments(tmp_path: Path) -> None:
    model = small_model()
    model.save(tmp_path / "model")
    loaded = LaplaceRecurrentPPO.load(tmp_path / "model", env=random_vec_env(5), device="cpu")
    loaded.learn(60)
    assert loaded.n_envs == 5


def test_sb3_tools(tmp_path: Path) -> None:
    env = VecNormalize(random_vec_env())
    model = small_model(env, tensorboard_log=str(tmp_path / "tb"))
    callbacks = [
        CheckpointCallback(20, str(tmp_path)),
        EvalCallback(VecNormalize(random_vec_env(1), training=False), eval_freq=10, n_eval_episodes=2, verbose=0),
        PosteriorCallback(),
    ]
    model.learn(150, callback=callbacks)
    mean, std = evaluate_policy(model, model.get_env(), n_eval_episodes=4)
    assert np.isfinite([mean, std]).all()
    assert list((tmp_path / "tb").glob("LaplaceRecurrentPPO_1/events*"))


def test_learns_on_a_string_environment() -> None:
    model = LaplaceRecurrentPPO("LaplaceLstmPolicy", "CartPole-v1", n_steps=64, n_epochs=1, seed=0, device="cpu")
    model.learn(64)
    assert isinstance(model.policy.posterior(model.predict(model.env.reset())[1]).entropy().item(), float)


def test_callback_can_stop_the_rollout() -> None:
    class Stop(BaseCallback):
        def _on_step(self) -> bool:
            return self.n_calls < 5

    model = small_model()
    model.learn(1000, callback=Stop())
    assert model.num_timesteps == 15


class MemoryEnv(gym.Env):
    """A cue in the first observation is the action to take at the last of four steps."""

    observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.cue, self.t = int(self.np_random.integers(2)), 0
        return np.array([2 * self.cue - 1, 1], dtype=np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.t += 1
        done = self.t == 4
        reward = float(done and action == self.cue)
        return np.zeros(2, dtype=np.float32), reward, done, False, {}


@pytest.mark.parametrize("n_samples", [0, 1, 2])
def test_learns_to_remember(n_samples: int) -> None:
    env = DummyVecEnv([lambda: Monitor(MemoryEnv())] * 16)
    model = LaplaceRecurrentPPO(
        "LaplaceLstmPolicy",
        env,
        n_steps=16,
        batch_size=128,
        n_epochs=8,
        learning_rate=3e-3,
        seed=1,
        device="cpu",
        policy_kwargs={"lstm_hidden_size": 32, "net_arch": [32], "n_posterior_samples": n_samples},
    )
    model.learn(16 * 16 * 30)
    mean, _ = evaluate_policy(model, env, n_eval_episodes=64, deterministic=True)
    assert mean > 0.95


def test_batched_environment_end_to_end() -> None:
    env = make_vec_env("sb3_laplace/DirichletBandit-v0", n_envs=8, seed=0, env_kwargs={"trial_length": 10})
    model = small_model(env, n_steps=10, batch_size=40)
    model.learn(160)
    assert all(set(info) >= {"r", "l", "t", "regret"} for info in model.ep_info_buffer)

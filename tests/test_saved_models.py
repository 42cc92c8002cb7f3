"""Agents saved by earlier versions still load, and are the same agents (invariant 6)."""

import os
from pathlib import Path

import numpy as np
import pytest

from sb3_laplace import LaplaceRecurrentPPO, make_vec_env

SAVED = Path(__file__).parent / "saved"


@pytest.mark.parametrize("name", ["before_layout"])
def test_saved_agent_predicts_the_same(name: str) -> None:
    """``NAME.zip`` is a model, ``NAME.npz`` what it predicted when it was saved: six steps of two environments."""
    model = LaplaceRecurrentPPO.load(SAVED / f"{name}.zip", device="cpu")
    expected = dict(np.load(SAVED / f"{name}.npz"))
    state = None
    for t, (obs, starts) in enumerate(zip(expected["observations"], expected["episode_starts"], strict=True)):
        actions, state = model.predict(obs, state, starts, deterministic=True)
        posterior = model.policy.posterior(state)
        np.testing.assert_array_equal(actions, expected["actions"][t])
        found = {
            "mean": posterior.mean,
            "precision": posterior.precision,
            "entropy": posterior.entropy(),
            "reward": model.policy.predict_reward(state),
        }
        for key, value in found.items():
            np.testing.assert_allclose(value, expected[key][t], rtol=1e-5, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("weights_only", [False, True])
def test_the_default_latent_is_that_of_when_the_agent_was_made(
    weights_only: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = make_vec_env("sb3_laplace/DirichletBandit-v0", n_envs=2, seed=0)
    model = LaplaceRecurrentPPO("LaplaceLstmPolicy", env, n_steps=10, policy_kwargs={"lstm_hidden_size": 8})
    model.save(tmp_path / "model")
    # A later version
    monkeypatch.setattr("sb3_laplace.posteriors._MAX_LATENT_DIM", 4)
    loaded = LaplaceRecurrentPPO.load(tmp_path / "model", device="cpu", weights_only=weights_only)
    assert loaded.policy.latent_layer.latent_dim == 8
    assert loaded.policy.latent_layer.prior_std == 1.0


def test_agents_from_before_there_was_a_projection_by_default_have_none(tmp_path: Path) -> None:
    env = make_vec_env("sb3_laplace/DirichletBandit-v0", n_envs=2, seed=0)
    policy_kwargs = {"lstm_hidden_size": 8, "latent_dim": None}
    model = LaplaceRecurrentPPO("LaplaceLstmPolicy", env, n_steps=10, policy_kwargs=policy_kwargs)
    # Their files say nothing of it
    del model.policy_kwargs["latent_dim"]
    model.save(tmp_path / "model", exclude=["settled_latent_dim"])
    loaded = LaplaceRecurrentPPO.load(tmp_path / "model", device="cpu")
    assert loaded.policy.latent_layer.mean_net is None
    assert loaded.policy.latent_layer.prior_std == 0.02


def test_training_of_a_saved_agent_goes_on() -> None:
    env = make_vec_env("sb3_laplace/DirichletBandit-v0", n_envs=2, seed=0)
    model = LaplaceRecurrentPPO.load(SAVED / "before_layout.zip", env=env, device="cpu")
    assert model.num_timesteps == 40
    model.learn(20, reset_num_timesteps=False)
    assert model.num_timesteps == 60


def test_a_zip_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = LaplaceRecurrentPPO("LaplaceLstmPolicy", "CartPole-v1", n_steps=8, device="cpu")
    model.save(tmp_path / "model")
    before = (tmp_path / "model.zip").read_bytes()
    present = []

    def end(part: Path, target: Path) -> None:
        # As if the process were killed here
        present.append(target.read_bytes())
        raise OSError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", end)
        model.num_timesteps = 5
        with pytest.raises(OSError, match="killed"):
            model.save(tmp_path / "model")
    assert present == [before]
    assert os.listdir(tmp_path) == ["model.zip"]
    assert LaplaceRecurrentPPO.load(tmp_path / "model", device="cpu").num_timesteps == 0
    model.save(tmp_path / "model")
    assert LaplaceRecurrentPPO.load(tmp_path / "model", device="cpu").num_timesteps == 5


def test_a_link_and_a_folder_of_the_same_name_are_kept(tmp_path: Path) -> None:
    model = LaplaceRecurrentPPO("LaplaceLstmPolicy", "CartPole-v1", n_steps=8, device="cpu")
    (tmp_path / "latest.zip").symlink_to(tmp_path / "model.zip")
    model.save(tmp_path / "latest.zip")
    assert (tmp_path / "latest.zip").is_symlink()
    assert (tmp_path / "model.zip").is_file()
    (tmp_path / "folder.zip").mkdir()
    with pytest.warns(UserWarning, match=r"Will save instead to .*folder\.zip_2"):
        model.save(tmp_path / "folder")
    assert (tmp_path / "folder.zip_2").is_file()

"""What is saved of a model, and how it is loaded again."""

import io
import os
import uuid
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch as th
from stable_baselines3.common.save_util import load_from_zip_file, open_path
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import check_for_correct_spaces

from sb3_laplace.algorithm import settings
from sb3_laplace.algorithm.losses import RewardTerm
from sb3_laplace.algorithm.parallel import ParallelRollouts

SelfSavedPPO = TypeVar("SelfSavedPPO", bound="SavedPPO")


class SavedPPO(ParallelRollouts):
    """RecurrentPPO with a posterior, whose zips hold what a later version needs, and can be loaded without pickle."""

    #: Keywords of the posterior that are settled when the model is built, or calibrated
    posterior_settings: dict[str, Any]
    #: Whether the policy has a decoder of rewards, also when it is no longer trained
    has_reward_decoder: bool
    #: The policy's ``latent_dim`` where policy_kwargs have none
    settled_latent_dim: int | str | None
    #: Whether it was last trained under VecNormalize; None if that is not known
    was_normalized: bool | None

    def _complete_policy_kwargs(self) -> dict[str, Any]:
        """The policy's keywords, with what training and calibration have settled since they were given."""
        kwargs = dict(self.policy_kwargs)
        needs_decoder = any(isinstance(term, RewardTerm) and term.is_on for term in self.loss_terms)
        if kwargs.get("reward_decoder_kwargs") is None and (needs_decoder or self.has_reward_decoder):
            kwargs["reward_decoder_kwargs"] = {}
        self.has_reward_decoder = kwargs.get("reward_decoder_kwargs") is not None
        kwargs.setdefault("latent_dim", self.settled_latent_dim)
        if self.posterior_settings:
            kwargs["posterior_kwargs"] = {**(kwargs.get("posterior_kwargs") or {}), **self.posterior_settings}
        return kwargs

    def _settle_latent(self) -> None:
        """Record the size and prior of the latent layer, which :meth:`LatentPosterior.set_prior` may have changed."""
        layer = self.policy.latent_layer
        self.settled_latent_dim = self.policy._own_parameters["latent_dim"]
        if isinstance(self.policy._own_parameters["posterior"], str):
            settings = {"prior_std": layer.prior_std}
            if bool((layer.prior_mean != 0).any()):
                settings["prior_mean"] = layer.prior_mean.tolist()
            self.set_posterior_settings(**settings)

    def set_posterior_settings(self, **settings: Any) -> None:
        """Record what calibration has found, to be saved with the model. The latent layer itself is not changed.

        :param settings: keywords of the posterior, which take precedence over those that the model was made with
        """
        self.posterior_settings = {**self.posterior_settings, **settings}
        own = self.policy._own_parameters
        own["posterior_kwargs"] = {**own["posterior_kwargs"], **settings}

    def _excluded_save_params(self) -> list[str]:
        # Both are made anew by _setup_model
        return [*super()._excluded_save_params(), "loss_terms", "_last_lstm_states", "_masked_state"]

    def set_parameters(
        self,
        load_path_or_dict: Any,
        exact_match: bool = True,
        device: th.device | str = "auto",
    ) -> None:
        """As SB3's; an agent saved without a reward decoder keeps the one that it has been given since.

        :param load_path_or_dict: path of a zip, or parameters by name as ``get_parameters`` returns them
        :param exact_match: whether the parameters must be all of the model's
        :param device: device on which the code should run
        """
        given = load_path_or_dict
        if not isinstance(given, dict):
            _, given, _ = load_from_zip_file(given, device=device, load_data=False)
        own = {name: part for name, part in self.policy.state_dict().items() if name.startswith("reward_decoder.")}
        if own and "policy" in given and not own.keys() & given["policy"].keys():
            warnings.warn("The saved agent has no reward decoder: this one, and the optimizer, start afresh.")
            given = {"policy": {**given["policy"], **own}, "policy.optimizer": self.policy.optimizer.state_dict()}
        super().set_parameters(given, exact_match, device)

    def save(
        self,
        path: str | Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """Save the model as SB3 does, with the settings also in a form that ``load(weights_only=True)`` reads.

        A zip appears whole or not at all, also where several processes write the same one.

        :param path: path of the zip, or a file object
        :param exclude: names of attributes that are left out beside SB3's own
        :param include: names of attributes that are kept nevertheless
        """
        if self.env is not None and self._last_obs is not None:
            self.was_normalized = self.get_vec_normalize_env() is not None
        self._settle_latent()
        buffer = io.BytesIO()
        super().save(buffer, exclude, include)
        settings.add_to_zip(buffer, self)
        if isinstance(path, (str, Path)):
            _write_whole(Path(path), buffer.getvalue())
        else:
            open_path(path, "w").write(buffer.getvalue())

    @classmethod
    def load(
        cls: type[SelfSavedPPO],
        path: str | Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        weights_only: bool = False,
        **kwargs: Any,
    ) -> SelfSavedPPO:
        """Load a model from a zip. SB3's way of it runs the pickled code in the file; ``weights_only=True`` runs none.

        :param path: path of the zip, or a file object
        :param env: environment to go on with; None if the agent is only to predict
        :param device: device on which the code should run
        :param custom_objects: objects that take the place of attributes in the file. Not with ``weights_only``.
        :param print_system_info: print the saved and the present system's information
        :param force_reset: reset the environment before training goes on
        :param weights_only: build the model of the plain settings and the tensors in the file alone. Anything else in
            it is refused or not looked at, so that a file of unknown origin can be opened. A schedule that is a
            function of one's own is the value it had when the model was saved; ``verbose`` and ``tensorboard_log`` are
            the reader's to give.
        :param kwargs: arguments of the constructor that take the place of those in the file
        :raises ValueError: with ``weights_only``, if the file does not hold plain settings
        """
        if not weights_only:
            return super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)
        if custom_objects is not None:
            raise ValueError("custom_objects cannot be given with weights_only=True, which unpickles no objects.")
        values, approximated = settings.read_settings(path, cls)
        if approximated:
            warnings.warn(f"{', '.join(approximated)} were functions; they are now the values they had.")
        policy_kwargs = kwargs.get("policy_kwargs", values["policy_kwargs"])
        if policy_kwargs != values["policy_kwargs"]:
            raise ValueError(f"policy_kwargs are {values['policy_kwargs']} in the file, got {policy_kwargs}.")
        model = cls(values.pop("policy"), None, device=device, _init_setup_model=False)
        for name, value in {**values, **kwargs}.items():
            setattr(model, settings.ATTRIBUTES.get(name, name), value)
        if env is not None:
            env = cls._wrap_env(env, model.verbose)
            check_for_correct_spaces(env, model.observation_space, model.action_space)
            model.n_envs = env.num_envs
        model._setup_model()
        _, parameters, _ = load_from_zip_file(path, device=device, load_data=False)
        model.set_parameters(parameters, exact_match=True, device=device)
        if env is not None:
            model.set_env(env, force_reset=force_reset)
        if model.use_sde:
            model.policy.reset_noise()
        return model


def _write_whole(path: Path, content: bytes) -> None:
    """Write a zip under a name of its own, which is changed when it is complete."""
    target = Path(os.path.realpath(path if path.suffix else f"{path}.zip"))
    if target.exists() and not target.is_file():
        # SB3 takes another name in the place of a folder's
        with open_path(path, "w", verbose=0, suffix="zip") as file:
            file.write(content)
        return
    part = target.with_name(f".{uuid.uuid4().hex}.part")
    try:
        with open_path(part, "w", verbose=0) as file:
            file.write(content)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)

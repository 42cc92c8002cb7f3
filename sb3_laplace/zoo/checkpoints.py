"""Checkpoints that a killed run can be resumed from: written whole or not at all, with all that the run needs."""

import os
import re
import tempfile
from pathlib import Path
from typing import Any

import yaml
from stable_baselines3.common.callbacks import CheckpointCallback

from sb3_laplace.errors import InputError

_NAME = re.compile(r"rl_model_(\d+)_steps\.zip")


class WholeCheckpointCallback(CheckpointCallback):
    """SB3's ``CheckpointCallback`` whose files appear complete, the model last.

    A process that is killed while it writes leaves no half of a checkpoint behind, and no model without the
    ``VecNormalize`` statistics that belong to it.
    """

    def _on_step(self) -> bool:
        if self.n_calls % self.save_freq != 0:
            return True
        folder = self.save_path
        with tempfile.TemporaryDirectory(prefix=".checkpoint-", dir=folder) as self.save_path:
            try:
                result = super()._on_step()
                for file in sorted(Path(self.save_path).iterdir(), key=lambda file: file.suffix == ".zip"):
                    os.replace(file, Path(folder) / file.name)
            finally:
                self.save_path = folder
        return result


class Checkpoint:
    """A checkpoint that ``--save-freq`` wrote into the folder of a run, ``rl_model_<steps>_steps.zip``.

    :param path: path of the zip
    :param env_name: name of the environment in file names, with "-" for "/"
    :raises InputError: if the folder has no configuration of a run on this environment
    """

    def __init__(self, path: str, env_name: str) -> None:
        self.path = Path(path)
        self._settings = self.path.parent / env_name
        if not (self._settings / "config.yml").is_file():
            raise InputError(
                f"{path!r} is no checkpoint of a run on {env_name}: there is no {str(self._settings / 'config.yml')!r}"
            )

    @staticmethod
    def is_one(path: str) -> bool:
        """Whether a file has the name of a checkpoint."""
        return _NAME.fullmatch(Path(path).name) is not None

    @property
    def n_steps(self) -> int:
        """Number of steps that the run had done."""
        match = _NAME.fullmatch(self.path.name)
        assert match is not None
        return int(match.group(1))

    @property
    def hyperparams(self) -> dict[str, Any]:
        """Hyperparameters of the run, as its configuration had them."""
        return dict(self._load("config.yml"))

    @property
    def env_kwargs(self) -> dict[str, Any]:
        """Keyword arguments of the environment that the run was given on the command line."""
        return self._load("args.yml")["env_kwargs"] or {}

    @property
    def vecnormalize(self) -> Path:
        """Path of the ``VecNormalize`` statistics.

        :raises InputError: if there are none
        """
        path = self.path.with_name(f"rl_model_vecnormalize_{self.n_steps}_steps.pkl")
        if not path.is_file():
            raise InputError(f"{str(self.path)!r} has no VecNormalize statistics: there is no {path.name!r} beside it")
        return path

    def _load(self, name: str) -> Any:
        # RL Zoo writes Python objects into them. The zip is no safer: both are files that the user trusts.
        return yaml.load((self._settings / name).read_text("utf-8"), Loader=yaml.UnsafeLoader)

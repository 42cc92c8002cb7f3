"""What is to blame where an experiment of RL Zoo's cannot be set up: an option, or the file of hyperparameters."""

import copy
import io
import os
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path

import yaml
from gymnasium.error import Error as GymnasiumError
from rl_zoo3.exp_manager import ExperimentManager

from sb3_laplace.errors import InputError, describe

#: What a configuration can make go wrong before training starts
CONFIGURATION_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    GymnasiumError,
    ImportError,
    LookupError,
    MemoryError,
    NameError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    yaml.YAMLError,
)
# Options that can be what is wrong with a configuration, by the attribute that holds them
_OPTIONS = {
    "custom_hyperparams": "-params",
    "env_kwargs": "--env-kwargs",
    "eval_env_kwargs": "--eval-env-kwargs",
    "show_progress": "--progress",
}


class BlamingExperimentManager(ExperimentManager):
    """RL Zoo's experiment manager, which can say what of its settings is wrong.

    A subclass calls :meth:`_remember_settings` when it has all of them.
    """

    def _remember_settings(self) -> None:
        self._before = copy.copy(self)

    def _source(self, hyperparam: str) -> str:
        return "-params" if hyperparam in (self.custom_hyperparams or {}) else self.config

    def _configuration_error(self, error: Exception) -> InputError:
        """What the user is told: the option without which the error is another one or none, or the file."""
        message = describe(error)
        sources = (option for name, option in _OPTIONS.items() if self._is_to_blame(name, message))
        source = next(sources, self.config)
        return InputError(message if source in message else f"{source}: {message}")

    def _is_to_blame(self, name: str, message: str) -> bool:
        if not getattr(self._before, name):
            return False
        other = copy.copy(self._before)
        setattr(other, name, {})
        if not other._eval_env_kwargs_args:
            other.eval_env_kwargs = other.env_kwargs
        return other._complaint() != message

    def _complaint(self) -> str | None:
        """What is wrong with the settings, found by setting up in a folder that is thrown away; None if nothing."""
        self.optimize_hyperparameters = False
        # RL Zoo writes into the hyperparameters of a Python package
        sys.modules.pop(self.config, None)
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            self.save_path, self.params_path = folder, os.path.join(folder, self.env_name)
            try:
                super().setup_experiment()
            except Exception as error:
                return describe(error)
        return None

    def _remove_empty_folder(self) -> None:
        """Leave no folder of a run that was not started, which ``enjoy`` would take for the latest."""
        if (Path(self.params_path) / "config.yml").is_file():
            return
        for file in Path(self.save_path).glob("*.monitor.csv"):
            file.unlink()
        for folder in (self.params_path, self.save_path):
            with suppress(OSError):
                os.rmdir(folder)

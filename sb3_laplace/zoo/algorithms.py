"""The algorithms that RL Zoo's programs are given, and where their hyperparameters are."""

from pathlib import Path

import yaml
from rl_zoo3.utils import ALGOS

from sb3_laplace.algorithm.laplace_recurrent_ppo import LaplaceRecurrentPPO
from sb3_laplace.policies.laplace_lstm_policy import LaplaceLstmPolicy
from sb3_laplace.posteriors import PointPosterior, VariationalPosterior

#: Names for ``--algo``. One class: the configuration (or the search space) chooses the posterior.
OUR_ALGORITHMS = ("laplace_ppo_lstm", "point_ppo_lstm", "vrnn_ppo_lstm")

# Where the files are when installed, and in a checkout
_FOLDERS = (Path(__file__).parent / "configs", Path(__file__).parents[2] / "zoo_configs")


def register_algorithms() -> None:
    """Add :data:`OUR_ALGORITHMS` to those that RL Zoo's programs know."""
    ALGOS.update(dict.fromkeys(OUR_ALGORITHMS, LaplaceRecurrentPPO))


def algorithm_of(policy: LaplaceLstmPolicy) -> str:
    """Under which of :data:`OUR_ALGORITHMS` an agent is filed: by its posterior, Laplace's for all without their own.

    :param policy: the agent's
    """
    if isinstance(policy.latent_layer, PointPosterior):
        return "point_ppo_lstm"
    return "vrnn_ppo_lstm" if isinstance(policy.latent_layer, VariationalPosterior) else "laplace_ppo_lstm"


def default_config(algo: str, env_id: str) -> str | None:
    """The hyperparameter file that is read without ``-conf``.

    :param algo: name of the algorithm
    :param env_id: id of the environment
    :return: path of our file; None to leave it to RL Zoo, which has its own for other algorithms, and for
        environments that ours does not have
    """
    path = next((folder / f"{algo}.yml" for folder in _FOLDERS if (folder / f"{algo}.yml").is_file()), None)
    if path is None or (algo not in OUR_ALGORITHMS and env_id not in yaml.safe_load(path.read_text("utf-8"))):
        return None
    return str(path)

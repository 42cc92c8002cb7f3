"""The file of a study: what it says, checked key by key before anything is run."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym

# Registers RL Zoo's environments
import rl_zoo3.import_envs  # noqa: F401
import yaml

from sb3_laplace.errors import InputError
from sb3_laplace.options import MAX_SEED
from sb3_laplace.studies.evaluations import EVALUATIONS
from sb3_laplace.zoo.algorithms import OUR_ALGORITHMS
from sb3_laplace.zoo.options import closest, import_packages

#: Algorithms whose agents can be evaluated: the recurrent ones
ALGORITHMS = (*OUR_ALGORITHMS, "ppo_lstm")
#: What ``convert`` takes: the arguments of ``LaplaceRecurrentPPO.from_recurrent_ppo``, and their defaults
CONVERSION = {"posterior_kwargs": None, "n_posterior_samples": 0}
#: What ``calibrate`` takes: the arguments of ``calibrate_posterior``, and their defaults
CALIBRATION = {"n_trials": 256, "seed": 40_000}

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
_KEYS = ("agents", "environments", "seeds", "steps", "evaluations", "baseline", "gym_packages")
_TRAINED = ("algorithm", "config", "arguments", "policy", "steps", "env_kwargs")
_DERIVED = ("from", "convert", "calibrate")
_ENVIRONMENT = ("steps", "env_kwargs", "reference")
# Keys of hyperparameters that a study has elsewhere
_ELSEWHERE = {
    "policy_kwargs": "`policy` of the agent",
    "n_timesteps": "`steps`",
    "env_kwargs": "`env_kwargs` of the environment or of the agent",
}


@dataclass(frozen=True)
class Agent:
    """A row of the study: an algorithm with overrides, or what another row's agents become after the fact.

    :param algorithm: name of the algorithm; None if the agent is made from another
    :param config: path of a file of hyperparameters instead of the one that ``train`` reads
    :param arguments: hyperparameters that replace those of the file
    :param policy: keywords of the policy that replace those of the file
    :param steps: number of steps that replaces the environment's and the study's
    :param env_kwargs: keyword arguments of the environments that this agent is trained and evaluated in, beside the
        environment's own: what it can see, say
    :param source: name of the row whose agents this one is made from
    :param convert: arguments of the conversion; None for none
    :param calibrate: arguments of the calibration; None for none
    """

    algorithm: str | None = None
    config: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    policy: dict[str, Any] = field(default_factory=dict)
    steps: int | None = None
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    source: str | None = None
    convert: dict[str, Any] | None = None
    calibrate: dict[str, Any] | None = None


@dataclass(frozen=True)
class Environment:
    """A task of the study.

    :param steps: number of steps that replaces the study's
    :param env_kwargs: keyword arguments of the environment
    :param reference: values of the task's metric that count as 0 and 1 in the average over environments
    """

    steps: int | None = None
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    reference: tuple[float, float] | None = None


@dataclass(frozen=True)
class Spec:
    """A study: every agent on every environment with every seed.

    :param name: name of the study
    :param agents: rows by name, in the order of the tables
    :param environments: environments by id
    :param seeds: seeds
    :param evaluations: complete settings of each evaluation by its name
    :param baseline: name of the row that the others are held against; None for none
    :param steps: number of steps; None for that of the hyperparameters
    :param gym_packages: modules that register environments
    """

    name: str
    agents: dict[str, Agent]
    environments: dict[str, Environment]
    seeds: tuple[int, ...]
    evaluations: dict[str, dict[str, Any]]
    baseline: str | None = None
    steps: int | None = None
    gym_packages: tuple[str, ...] = ()

    def evaluations_on(self, env_id: str) -> dict[str, dict[str, Any]]:
        """Those that an environment has: there is an exact belief, say, of some tasks only."""
        return {name: settings for name, settings in self.evaluations.items() if EVALUATIONS[name].is_for(env_id)}


class _Loader(yaml.SafeLoader):
    """YAML whose numbers are those of YAML 1.2 (1e6 is one), and whose keys are not repeated."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        # Before another mapping is merged into it (<<), whose keys it may replace
        keys = [(key.tag, key.value) for key, _ in node.value]
        for i, key in enumerate(keys):
            if key in keys[:i]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key[1]!r} is there twice", node.start_mark
                )
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"), list("-+0123456789.")
)


def read_spec(path: str | Path) -> Spec:
    """Read and check the file of a study.

    :param path: the file; the study has the name of its stem
    :raises InputError: if there is no such file, or something in it is wrong
    """
    path = Path(path)
    try:
        data = yaml.load(path.read_text("utf-8"), Loader=_Loader)
    except OSError as error:
        raise InputError(f"the study's file {str(path)!r} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{str(path)!r} is no YAML: {error}") from error
    try:
        return parse_spec(data, path.stem, path.parent)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def parse_spec(data: Any, name: str, folder: Path = Path()) -> Spec:
    """Check what the file of a study says.

    :param data: the file as plain data
    :param name: name of the study
    :param folder: folder that paths in it are relative to
    :raises InputError: if something in it is wrong, with the key, what was given and what is allowed
    """
    check_name("the name of the file", name)
    data = _mapping("the study", data, _KEYS)
    packages = _texts("gym_packages", data.get("gym_packages", []), may_be_empty=True)
    import_packages(packages, "gym_packages")
    environments = {
        env_id: _environment(f"environments.{env_id}", settings)
        for env_id, settings in _named("environments", data).items()
    }
    for env_id in environments:
        if env_id not in gym.registry:
            raise InputError(f"environments: there is no environment {env_id!r}{closest(env_id, gym.registry)}")
    agents = {row: _agent(f"agents.{row}", row, settings, folder) for row, settings in _named("agents", data).items()}
    _check_sources(agents)
    return Spec(
        name=name,
        agents=agents,
        environments=environments,
        seeds=_seeds(data.get("seeds")),
        evaluations=_evaluations(data.get("evaluations", ["return"]), environments),
        baseline=_baseline(data.get("baseline"), agents),
        steps=_steps("steps", data.get("steps")),
        gym_packages=tuple(packages),
    )


def check_name(what: str, name: Any) -> None:
    """Check that a name can be a part of a file's name.

    :param what: what has it, for the message
    :param name: the name
    :raises InputError: if it cannot
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InputError(f"{what} must consist of letters, digits and any of _.+- (not first), got {name!r}")


# -- parts ---------------------------------------------------------------------------------------------------


def _agent(path: str, row: str, settings: Any, folder: Path) -> Agent:
    check_name("agents: a name", row)
    settings = {"algorithm": row} if settings is None else _mapping(path, settings, (*_TRAINED, *_DERIVED))
    if "from" in settings:
        return _derived(path, settings)
    for key in ("convert", "calibrate"):
        if key in settings:
            raise InputError(f"{path}.{key} does nothing without `from`, the row whose agents are taken")
    algorithm = settings.get("algorithm", row)
    if algorithm not in ALGORITHMS:
        hint = closest(str(algorithm), ALGORITHMS)
        raise InputError(
            f"{path}.algorithm: there is no recurrent algorithm {algorithm!r}{hint}; known are {', '.join(ALGORITHMS)}"
        )
    arguments = _mapping(f"{path}.arguments", settings.get("arguments", {}))
    for key, place in _ELSEWHERE.items():
        if key in arguments:
            raise InputError(f"{path}.arguments: {key} is what {place} sets")
    config = settings.get("config")
    if config is not None:
        if not isinstance(config, str) or not (folder / config).is_file():
            raise InputError(f"{path}.config: there is no file {config!r} (relative to the study's file)")
        config = str((folder / config).resolve())
    return Agent(
        algorithm=algorithm,
        config=config,
        arguments=arguments,
        policy=_mapping(f"{path}.policy", settings.get("policy", {})),
        steps=_steps(f"{path}.steps", settings.get("steps")),
        env_kwargs=_mapping(f"{path}.env_kwargs", settings.get("env_kwargs", {})),
    )


def _derived(path: str, settings: dict[str, Any]) -> Agent:
    for key in _TRAINED:
        if key in settings:
            raise InputError(f"{path}.{key} does nothing beside `from`: the agent is not trained again")
    if not ({"convert", "calibrate"} & settings.keys()):
        raise InputError(
            f"{path}: say what becomes of the agents of {settings['from']!r}, `convert`, `calibrate` or both"
        )
    convert, calibrate = None, None
    if "convert" in settings:
        given = settings["convert"]
        convert = {**CONVERSION, **_mapping(f"{path}.convert", {} if given is None else given, CONVERSION)}
        if convert["posterior_kwargs"] is not None:
            _mapping(f"{path}.convert.posterior_kwargs", convert["posterior_kwargs"])
        _integer(f"{path}.convert.n_posterior_samples", convert["n_posterior_samples"], 0)
    if "calibrate" in settings:
        calibrate = _settings(f"{path}.calibrate", settings["calibrate"], CALIBRATION)
    return Agent(source=settings["from"], convert=convert, calibrate=calibrate)


def _check_sources(agents: Mapping[str, Agent]) -> None:
    trained = [row for row, agent in agents.items() if agent.source is None]
    for row, agent in agents.items():
        if agent.source is not None and agent.source not in trained:
            raise InputError(
                f"agents.{row}.from: there is no row {agent.source!r} that is trained"
                f"{closest(str(agent.source), trained)}; known are {', '.join(trained) or 'none'}"
            )
        if agent.source is not None and agent.convert is None:
            algorithm = agents[agent.source].algorithm
            if algorithm != "laplace_ppo_lstm":
                raise InputError(
                    f"agents.{row}.calibrate needs a Laplace posterior, and {agent.source!r} is trained with "
                    f"{algorithm}: `convert` it too (convert: {{}})"
                )


def _environment(path: str, settings: Any) -> Environment:
    settings = {} if settings is None else _mapping(path, settings, _ENVIRONMENT)
    reference = settings.get("reference")
    if reference is not None:
        is_pair = isinstance(reference, list) and len(reference) == 2 and all(_is_number(one) for one in reference)
        if not is_pair or reference[0] == reference[1]:
            raise InputError(f"{path}.reference must be two different numbers [of 0, of 1], got {reference!r}")
        reference = (float(reference[0]), float(reference[1]))
    return Environment(
        steps=_steps(f"{path}.steps", settings.get("steps")),
        env_kwargs=_mapping(f"{path}.env_kwargs", settings.get("env_kwargs", {})),
        reference=reference,
    )


def _evaluations(given: Any, environments: Iterable[str]) -> dict[str, dict[str, Any]]:
    named = _named("evaluations", {"evaluations": given})
    result = {}
    for name, settings in named.items():
        if name not in EVALUATIONS:
            hint = closest(str(name), EVALUATIONS)
            raise InputError(f"evaluations: there is no evaluation {name!r}{hint}; known are {', '.join(EVALUATIONS)}")
        if not any(EVALUATIONS[name].is_for(env_id) for env_id in environments):
            raise InputError(f"evaluations.{name} is for none of the study's environments")
        result[name] = _settings(f"evaluations.{name}", settings, EVALUATIONS[name].defaults)
    return result


def _settings(path: str, given: Any, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Complete settings whose values have the types of the defaults: integers, or lists of positive numbers."""
    settings = {**defaults, **_mapping(path, {} if given is None else given, defaults)}
    for key, value in settings.items():
        if isinstance(defaults[key], list):
            if not isinstance(value, list) or not value or not all(_is_number(one) and one > 0 for one in value):
                raise InputError(f"{path}.{key} must be a list of positive numbers, got {value!r}")
        else:
            _integer(f"{path}.{key}", value, 0 if key in ("seed", "n_posterior_samples") else 1)
    return settings


def _seeds(given: Any) -> tuple[int, ...]:
    if not isinstance(given, list) or not given:
        raise InputError(f"seeds must be a list of integers with one at least, got {given!r}")
    for seed in given:
        _integer("seeds: a seed", seed, 0)
        if seed > MAX_SEED:
            raise InputError(f"seeds: a seed must be at most {MAX_SEED}, got {seed}")
    if len(set(given)) < len(given):
        raise InputError(f"seeds: each must be there once, got {given}")
    return tuple(given)


def _baseline(given: Any, agents: Mapping[str, Agent]) -> str | None:
    if given is not None and given not in list(agents):
        raise InputError(
            f"baseline: there is no row {given!r} among the agents{closest(str(given), agents)}; "
            f"known are {', '.join(agents)}"
        )
    return given


# -- values --------------------------------------------------------------------------------------------------


def _mapping(path: str, value: Any, known: Iterable[str] | None = None) -> dict[str, Any]:
    """A mapping from text, with known keys only (None: any)."""
    if not isinstance(value, dict):
        raise InputError(f"{path} must be keys with values, got {value!r}")
    for key in value:
        if not isinstance(key, str):
            raise InputError(f"{path}: keys must be text, got {key!r}")
        if known is not None and key not in known:
            raise InputError(f"{path}: there is no key {key!r}{closest(key, known)}; known are {', '.join(known)}")
    return value


def _named(key: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """Names with settings, or a list of names, which have none."""
    given = data.get(key)
    if isinstance(given, list):
        names = _texts(key, given)
        if len(set(names)) < len(names):
            raise InputError(f"{key}: each must be there once, got {given}")
        given = dict.fromkeys(names)
    if not given:
        raise InputError(f"{key} must have one entry at least, got {given!r}")
    return _mapping(key, given)


def _texts(path: str, value: Any, may_be_empty: bool = False) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value) or not (value or may_be_empty):
        raise InputError(f"{path} must be a list of names{'' if may_be_empty else ', one at least'}, got {value!r}")
    return value


def _steps(path: str, value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    _integer(path, value, 1)
    return value


def _integer(path: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{path} must be an integer of at least {least}, got {value!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")

"""The file of a study: what is read, and what is refused before anything is run."""

import contextlib
import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sb3_laplace.errors import InputError
from sb3_laplace.studies.evaluations import EVALUATIONS
from sb3_laplace.studies.runs import resolve
from sb3_laplace.studies.spec import ALGORITHMS, Agent, parse_spec, read_spec

BANDIT = "sb3_laplace/DirichletBandit-v0"
ROOT = Path(__file__).parent.parent
GOOD: dict[str, Any] = {
    "agents": {
        "laplace": {"algorithm": "laplace_ppo_lstm", "policy": {"latent_dim": 8}},
        "point": {"algorithm": "point_ppo_lstm", "arguments": {"gamma": 0.9}},
        "after": {"from": "point", "convert": {"posterior_kwargs": {"prior_std": 0.1}}, "calibrate": None},
    },
    "environments": {BANDIT: {"steps": 1000.0, "reference": [25.23, 3.21]}, "CartPoleNoVel-v1": None},
    "seeds": [0, 7],
    "evaluations": {"return": {"n_trials": 20}, "belief": None},
    "baseline": "point",
}


def test_what_a_file_says() -> None:
    spec = parse_spec(GOOD, "name")
    assert list(spec.agents) == ["laplace", "point", "after"]
    assert spec.agents["laplace"] == Agent("laplace_ppo_lstm", policy={"latent_dim": 8})
    assert spec.agents["after"].source == "point"
    assert spec.agents["after"].convert == {"posterior_kwargs": {"prior_std": 0.1}, "n_posterior_samples": 0}
    assert spec.agents["after"].calibrate == {"n_trials": 256, "seed": 40_000}
    assert spec.environments[BANDIT].steps == 1000
    assert isinstance(spec.environments[BANDIT].steps, int)
    assert spec.environments[BANDIT].reference == (25.23, 3.21)
    assert spec.seeds == (0, 7)
    # Complete settings, and only where the evaluation is possible
    assert spec.evaluations["return"] == {"n_trials": 20, "seed": EVALUATIONS["return"].defaults["seed"]}
    assert set(spec.evaluations_on(BANDIT)) == {"return", "belief"}
    assert set(spec.evaluations_on("CartPoleNoVel-v1")) == {"return"}


def test_agents_may_see_more_or_less_than_others_in_the_same_environment() -> None:
    agents = {
        "point": {"algorithm": "point_ppo_lstm"},
        "other": {"algorithm": "point_ppo_lstm", "env_kwargs": {"concentration": 0.5}},
    }
    environments = {BANDIT: {"env_kwargs": {"concentration": 0.3, "trial_length": 20}}}
    spec = parse_spec({"agents": agents, "environments": environments, "seeds": [0]}, "name")
    point, other = (run.configuration["hyperparams"]["env_kwargs"] for run in resolve(spec))
    assert point == {"concentration": 0.3, "trial_length": 20}
    assert other == {"concentration": 0.5, "trial_length": 20}


def test_lists_are_names_without_settings() -> None:
    spec = parse_spec({"agents": ["ppo_lstm"], "environments": [BANDIT], "seeds": [0]}, "name")
    assert spec.agents == {"ppo_lstm": Agent("ppo_lstm")}
    assert set(spec.evaluations) == {"return"}
    assert spec.baseline is None


def change(**changes: Any) -> dict[str, Any]:
    return {**deepcopy(GOOD), **changes}


def one_agent(**settings: Any) -> dict[str, Any]:
    return change(agents={"point": {"algorithm": "point_ppo_lstm"}, "one": settings})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "the study must be keys with values, got None"),
        (change(seed=[0]), "there is no key 'seed', you maybe meant seeds?; known are agents, environments, seeds"),
        (change(seeds=None), "seeds must be a list of integers with one at least, got None"),
        (change(seeds=[]), "seeds must be a list of integers with one at least, got []"),
        (change(seeds=[0, 1.5]), "seeds: a seed must be an integer of at least 0, got 1.5"),
        (change(seeds=[True]), "seeds: a seed must be an integer of at least 0, got True"),
        (change(seeds=[2**32]), "seeds: a seed must be at most 4294967295"),
        (change(seeds=[1, 1]), "seeds: each must be there once"),
        (change(steps=0), "steps must be an integer of at least 1, got 0"),
        (change(steps="many"), "steps must be an integer of at least 1, got 'many'"),
        (change(agents={}), "agents must have one entry at least"),
        (change(agents=["point_ppo_lstm", "point_ppo_lstm"]), "agents: each must be there once"),
        (change(agents={"a/b": None}), "agents: a name must consist of letters"),
        (change(agents=["ppo"]), "there is no recurrent algorithm 'ppo'; known are laplace_ppo_lstm"),
        (one_agent(algorithm="sac"), "agents.one.algorithm: there is no recurrent algorithm 'sac'; known are laplace_"),
        (one_agent(algorithm="ppo_lstm", polcy={}), "agents.one: there is no key 'polcy', you maybe meant policy?"),
        (one_agent(algorithm="ppo_lstm", convert={}), "agents.one.convert does nothing without `from`"),
        (one_agent(algorithm="ppo_lstm", config="no.yml"), "agents.one.config: there is no file 'no.yml'"),
        (one_agent(algorithm="ppo_lstm", policy=3), "agents.one.policy must be keys with values, got 3"),
        (
            one_agent(algorithm="ppo_lstm", arguments={"policy_kwargs": {}}),
            "agents.one.arguments: policy_kwargs is what `policy` of the agent sets",
        ),
        (
            one_agent(**{"from": "pont", "convert": None}),
            "there is no row 'pont' that is trained, you maybe meant point",
        ),
        (one_agent(algorithm="ppo_lstm", env_kwargs=[1]), "agents.one.env_kwargs must be keys with values, got [1]"),
        (one_agent(**{"from": "point"}), "say what becomes of the agents of 'point', `convert`, `calibrate` or both"),
        (
            one_agent(**{"from": "point", "calibrate": None}),
            "calibrate needs a Laplace posterior, and 'point' is trained",
        ),
        (one_agent(**{"from": "point", "convert": None, "steps": 5}), "agents.one.steps does nothing beside `from`"),
        (
            one_agent(**{"from": "point", "convert": {"n_posterior_samples": -1}}),
            "convert.n_posterior_samples must be an integer of at least 0, got -1",
        ),
        (change(environments=["Bandit-v0"]), "environments: there is no environment 'Bandit-v0'"),
        (change(environments={BANDIT: {"step": 5}}), f"environments.{BANDIT}: there is no key 'step', you maybe meant"),
        (change(environments={BANDIT: {"reference": [1, 1]}}), "reference must be two different numbers"),
        (change(evaluations=["retrun"]), "there is no evaluation 'retrun', you maybe meant return"),
        (change(evaluations=["regression"]), "evaluations.regression is for none of the study's environments"),
        (change(evaluations={"return": {"n_trial": 5}}), "evaluations.return: there is no key 'n_trial'"),
        (
            change(evaluations={"return": {"n_trials": 0}}),
            "evaluations.return.n_trials must be an integer of at least 1",
        ),
        (change(evaluations={"posthoc": {"prior_stds": []}}), "prior_stds must be a list of positive numbers"),
        (change(baseline="base"), "there is no row 'base' among the agents; known are laplace, point, after"),
        (change(gym_packages=["no_such_package"]), "gym_packages no_such_package: No module named"),
    ],
)
def test_what_is_refused(data: Any, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        parse_spec(data, "name")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seeds: [0", "is no YAML"),
        ("seeds: [0]\nseeds: [1]", "the key 'seeds' is there twice"),
        ("agents: {a: &a {steps: 1}, b: {<<: *a, steps: 1, steps: 2}}", "the key 'steps' is there twice"),
        (None, "cannot be read: No such file"),
    ],
)
def test_files_that_cannot_be_read(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "study.yml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        read_spec(path)
    assert str(path) in str(error.value)


def test_numbers_are_those_of_yaml_1_2(tmp_path: Path) -> None:
    text = "agents: {laplace_ppo_lstm: {arguments: {kl_coef: 1e-4, learning_rate: lin_1e-3}}}\nsteps: 2e3\n"
    path = tmp_path / "study.yml"
    path.write_text(f"{text}environments: [{BANDIT}]\nseeds: [0]")
    spec = read_spec(path)
    assert spec.steps == 2000
    arguments = {"kl_coef": 1e-4, "learning_rate": "lin_1e-3"}
    assert spec.agents["laplace_ppo_lstm"] == Agent("laplace_ppo_lstm", arguments=arguments)


def test_mappings_are_merged_as_yaml_has_it(tmp_path: Path) -> None:
    path = tmp_path / "study.yml"
    path.write_text(
        f"""agents:
  a: &a {{algorithm: laplace_ppo_lstm, steps: 100}}
  b: &b {{<<: *a, steps: 200}}
  c: {{<<: *b, algorithm: point_ppo_lstm}}
environments: [{BANDIT}]
seeds: [0]
"""
    )
    agents = read_spec(path).agents
    assert {name: (agent.algorithm, agent.steps) for name, agent in agents.items()} == {
        "a": ("laplace_ppo_lstm", 100),
        "b": ("laplace_ppo_lstm", 200),
        "c": ("point_ppo_lstm", 200),
    }


def test_the_example_in_the_documentation(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "studies.md").read_text("utf-8")
    (example,) = re.findall(r"^```yaml\n(.*?)^```", text, re.M | re.S)
    path = tmp_path / "study.yml"
    path.write_text(example)
    spec = read_spec(path)
    assert len(resolve(spec)) == 3 * 2 * 3
    # "the settings below are the defaults"
    assert all(settings == EVALUATIONS[name].defaults for name, settings in spec.evaluations.items())
    assert f"regression: {json.dumps(EVALUATIONS['regression'].defaults)}".replace('"', "") in example
    assert spec.agents["after"].calibrate is not None
    assert spec.environments[BANDIT].env_kwargs == {"concentration": 0.3}


@pytest.mark.parametrize("path", sorted((ROOT / "zoo_configs" / "studies").glob("*.yml")), ids=lambda path: path.name)
def test_the_studies_that_come_with_it(path: Path) -> None:
    spec = read_spec(path)
    assert len({run.name for run in resolve(spec)}) == len(spec.agents) * len(spec.environments) * len(spec.seeds)


NAMES = st.from_regex(re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,8}"), fullmatch=True)


@given(
    agents=st.dictionaries(NAMES, st.sampled_from(ALGORITHMS), min_size=1, max_size=4),
    seeds=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=5, unique=True),
    steps=st.none() | st.integers(1, 10**9),
    evaluations=st.lists(st.sampled_from(["return", "diagnosis", "belief", "posthoc"]), min_size=1, unique=True),
)
def test_what_is_written_as_yaml_is_read(agents: Any, seeds: Any, steps: Any, evaluations: Any) -> None:
    data = {
        "agents": {name: {"algorithm": algorithm} for name, algorithm in agents.items()},
        "environments": [BANDIT],
        "seeds": seeds,
        "evaluations": evaluations,
        "baseline": next(iter(agents)),
    }
    if steps is not None:
        data["steps"] = steps
    spec = parse_spec(yaml.safe_load(yaml.safe_dump(data)), "name")
    assert {name: agent.algorithm for name, agent in spec.agents.items()} == agents
    assert spec.seeds == tuple(seeds)
    assert spec.steps == steps
    assert list(spec.evaluations) == evaluations


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3) | st.integers(0, 1), inner, max_size=2)
    ),
    max_leaves=4,
)


AGENT_KEYS = ("algorithm", "config", "arguments", "policy", "steps", "from", "convert", "calibrate")


@given(st.sampled_from(sorted({*GOOD, "steps", "gym_packages"})), st.sampled_from(AGENT_KEYS), ANYTHING)
def test_whatever_a_key_holds_is_read_or_refused(key: str, agent_key: str, value: Any) -> None:
    """Any other exception is a bug."""
    one_of = {
        "environments": {BANDIT: {key: value}},
        "evaluations": {"return": {"n_trials": value}, "posthoc": {"prior_stds": value}},
    }
    settings = {"from": "point", agent_key: value}
    for data in (change(**{key: value}), one_agent(**settings), one_agent(**{agent_key: value}), change(**one_of)):
        with contextlib.suppress(InputError):
            parse_spec(data, "name")

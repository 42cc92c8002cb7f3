"""make_vec_env: SB3's, with a batched environment where the id has one."""

import csv
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from stable_baselines3.common import env_util
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_laplace.vec_env import GymnasiumVecEnv, make_vec_env
from sb3_laplace_envs import Trial, VectorTrial
from tests.scripted_env import TASKS, ScriptedEnv, ScriptedVectorEnv, assert_equal

# What SB3's make_vec_env says of environments without images
pytestmark = pytest.mark.filterwarnings("ignore:.*not in the possible render_modes")


@pytest.fixture
def registered() -> Any:
    """Ids of a batched environment, once as it is and once with what only single environments do."""

    def vector(num_envs: int, mode: AutoresetMode = AutoresetMode.SAME_STEP, max_length: int = 4) -> ScriptedVectorEnv:
        return ScriptedVectorEnv(num_envs, mode, max_length=max_length)

    def limited(num_envs: int, max_episode_steps: int, render_mode: str | None = None) -> ScriptedVectorEnv:
        return ScriptedVectorEnv(num_envs, max_length=max_episode_steps, render_mode=render_mode)

    ids = {
        "Batched-v0": {"vector_entry_point": vector},
        "Limited-v0": {"vector_entry_point": limited, "max_episode_steps": 2},
        "LimitLost-v0": {"vector_entry_point": vector, "max_episode_steps": 2},
        "Wrapped-v0": {
            "vector_entry_point": vector,
            "additional_wrappers": (gym.wrappers.TimeLimit.wrapper_spec(max_episode_steps=2),),
        },
        "NextStep-v0": {"vector_entry_point": lambda num_envs: ScriptedVectorEnv(num_envs, AutoresetMode.NEXT_STEP)},
    }
    for name, kwargs in ids.items():
        gym.register(name, entry_point=ScriptedEnv, **kwargs)  # type: ignore[arg-type]
    yield
    for name in ids:
        del gym.registry[name]


def test_make_vec_env_takes_the_batched_form(registered: None) -> None:
    for env_id, n_envs in ((TASKS[0], 1), (TASKS[1], 3), ("sb3_laplace_envs:" + TASKS[2], 2), ("Batched-v0", 2)):
        venv = make_vec_env(env_id, n_envs)
        assert isinstance(venv, GymnasiumVecEnv)
        assert venv.num_envs == n_envs
    venv = make_vec_env("Batched-v0", 2, env_kwargs={"max_length": 9, "mode": AutoresetMode.DISABLED})
    assert venv.get_attr("envs_inside")[0].max_length == 9
    venv = make_vec_env("Limited-v0", 2)
    assert isinstance(venv, GymnasiumVecEnv)
    assert venv.get_attr("envs_inside")[0].max_length == 2
    assert venv.render_mode == "rgb_array"  # as in SB3


@pytest.mark.parametrize("seed", [0, 12])
@pytest.mark.parametrize("start_index", [0, 2])
def test_make_vec_env_seeds_as_sb3(seed: int, start_index: int) -> None:
    actual, expected = (
        make(TASKS[0], 3, seed=seed, start_index=start_index) for make in (make_vec_env, env_util.make_vec_env)
    )
    assert isinstance(actual, GymnasiumVecEnv)
    assert [actual.action_space.sample() for _ in range(9)] == [expected.action_space.sample() for _ in range(9)]
    for venv in (actual, expected):
        venv.reset()
    assert_equal(np.stack(actual.get_attr("task")), np.stack(expected.env_method("get_wrapper_attr", "task")))


@pytest.mark.parametrize(
    "kwargs",
    [
        {"wrapper_class": gym.wrappers.RecordEpisodeStatistics},
        {"vec_env_cls": SubprocVecEnv},
        {"vec_env_cls": DummyVecEnv},
        {"vec_env_cls": SubprocVecEnv, "vec_env_kwargs": {"start_method": "fork"}},
        {"monitor_kwargs": {"info_keywords": ("regret",)}},
        {"env_kwargs": {"disable_env_checker": True}},
    ],
)
def test_make_vec_env_falls_back_for_what_only_single_environments_have(kwargs: dict[str, Any]) -> None:
    # With the module, as a worker process does not know what was imported here
    venv = make_vec_env(f"sb3_laplace_envs:{TASKS[0]}", 1, seed=0, **kwargs)
    assert type(venv) is kwargs.get("vec_env_cls", DummyVecEnv)
    venv.reset()
    venv.step(np.zeros(1, dtype=np.int64))
    if "wrapper_class" in kwargs:
        assert venv.env_is_wrapped(kwargs["wrapper_class"]) == [True]
    venv.close()


@pytest.mark.parametrize("task", TASKS)
def test_make_vec_env_makes_trials_of_the_batched_form(task: str) -> None:
    """Equal to SB3's, of single environments."""
    actual, expected = (
        make(task, 3, seed=4, env_kwargs={"trial_length": 6}, wrapper_class=Trial, wrapper_kwargs={"n_episodes": 2})
        for make in (make_vec_env, env_util.make_vec_env)
    )
    assert isinstance(actual, GymnasiumVecEnv)
    assert isinstance(actual.env, VectorTrial)
    assert_equal(actual.reset(), expected.reset())
    for _ in range(30):
        actions = np.stack([actual.action_space.sample() for _ in range(3)])
        ours, theirs = actual.step(actions), expected.step(actions)
        for one, other in zip(ours[:3], theirs[:3], strict=True):
            assert_equal(one, other)
        for done, info, other in zip(ours[2], ours[3], theirs[3], strict=True):
            if done:
                assert info["episode"]["r"] == other["episode"]["r"]
                assert info["episode"]["l"] == other["episode"]["l"] == 12
                assert_equal(info["episode_returns"], other["episode_returns"])
                assert_equal(info["terminal_observation"], other["terminal_observation"])


@pytest.mark.parametrize(
    "wrapper_kwargs", [{"task_kwargs": {"concentration": [0.2, 0.3]}}, {"tasks": [np.ones(5)], "set_task": print}]
)
def test_make_vec_env_tells_single_environments_what_a_batch_cannot_be_told(wrapper_kwargs: dict[str, Any]) -> None:
    venv = make_vec_env(TASKS[0], 2, wrapper_class=Trial, wrapper_kwargs={"n_episodes": 2, **wrapper_kwargs})
    assert type(venv) is DummyVecEnv
    with pytest.raises(ValueError, match="n_episodes or trial_steps must be given"):
        make_vec_env(TASKS[0], 2, wrapper_class=Trial)


@pytest.mark.parametrize(
    "env_id", ["CartPole-v1", "Pendulum-v1", "LimitLost-v0", "Wrapped-v0", "NextStep-v0", ScriptedEnv]
)
def test_make_vec_env_falls_back_for_ids_without_a_lossless_batched_form(registered: None, env_id: Any) -> None:
    venv = make_vec_env(env_id, 2, seed=0)
    assert type(venv) is DummyVecEnv
    if env_id in ("LimitLost-v0", "Wrapped-v0"):
        assert venv.env_is_wrapped(gym.wrappers.TimeLimit) == [True] * 2


def test_make_vec_env_writes_a_monitor_file(tmp_path: Any) -> None:
    folder = tmp_path / "new"
    venv = make_vec_env(TASKS[0], 3, seed=0, start_index=4, monitor_dir=str(folder), env_kwargs={"trial_length": 5})
    assert isinstance(venv, GymnasiumVecEnv)
    venv.reset()
    returns = [info["episode"]["r"] for _ in range(10) for info in venv.step(np.zeros(3))[3] if "episode" in info]
    venv.close()
    assert venv._results_writer is not None
    assert venv._results_writer.file_handler.closed
    assert [path.name for path in folder.iterdir()] == ["4.monitor.csv"]
    header, *lines = (folder / "4.monitor.csv").read_text().splitlines()
    assert header.startswith("#{")
    assert TASKS[0] in header
    rows = list(csv.DictReader(lines))
    assert len(rows) == 6
    assert [float(row["r"]) for row in rows] == returns
    assert {row["l"] for row in rows} == {"5"}


def test_make_vec_env_imports_the_module_of_an_id(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_tasks.py").write_text(
        "import gymnasium as gym\n"
        "class Bandit(gym.vector.VectorEnv):\n"
        "    metadata = {'autoreset_mode': gym.vector.AutoresetMode.SAME_STEP}\n"
        "    single_observation_space = single_action_space = gym.spaces.Discrete(2)\n"
        "    def __init__(self, num_envs):\n"
        "        self.num_envs = num_envs\n"
        "gym.register('SomeTask-v0', vector_entry_point=Bandit)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert isinstance(make_vec_env("some_tasks:SomeTask-v0"), GymnasiumVecEnv)
    del gym.registry["SomeTask-v0"]


def test_make_vec_env_errors() -> None:
    with pytest.raises(ValueError, match="n_envs must be at least 1, got 0"):
        make_vec_env(TASKS[0], 0)
    with pytest.raises(gym.error.NameNotFound):
        make_vec_env("NoSuchEnvironment-v0")
    with pytest.raises(ModuleNotFoundError):
        make_vec_env("no_such_module:CartPole-v1")
    with pytest.raises(TypeError, match="start_method"):  # SB3's: DummyVecEnv takes none
        make_vec_env(TASKS[0], vec_env_kwargs={"start_method": "fork"})
    with pytest.raises(TypeError, match="no_such_argument"):
        make_vec_env(TASKS[0], env_kwargs={"no_such_argument": 1})
    with pytest.raises(ValueError, match="trial_length"):
        make_vec_env(TASKS[0], env_kwargs={"trial_length": 0})


class TalkingEnv(gym.Env):
    """Tells its mission in words, beside what it sees."""

    observation_space = gym.spaces.Dict({"seen": gym.spaces.Box(-1.0, 1.0, (2,)), "mission": gym.spaces.Text(9)})
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return {"seen": np.zeros(2, np.float32), "mission": "go"}, {}

    def step(self, action: Any) -> Any:
        return {"seen": np.zeros(2, np.float32), "mission": "go"}, 0.0, False, False, {}


@pytest.mark.parametrize("vec_env_cls", [DummyVecEnv, SubprocVecEnv])
def test_words_are_no_observation(vec_env_cls: Any) -> None:
    message = (
        r"observations under 'mission' are of Text\(.*\), which is no array of numbers: leave them out \(gymnasium"
    )
    # Of a worker process one sees that it has ended
    expected: Any = (ValueError, message) if vec_env_cls is DummyVecEnv else ((EOFError, ConnectionResetError), "")
    with pytest.raises(expected[0], match=expected[1]):
        make_vec_env(lambda: Trial(TalkingEnv(), 2), vec_env_cls=vec_env_cls)
    without = lambda: Trial(gym.wrappers.FilterObservation(TalkingEnv(), ["seen"]), 2)  # noqa: E731
    env = make_vec_env(without, vec_env_cls=vec_env_cls)
    assert set(env.reset()) == {"seen", "episode_start", "previous_action", "previous_reward"}
    env.close()

"""GymnasiumVecEnv: seeds, options, attributes and methods of what is inside."""

from typing import Any

import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, VectorWrapper

from sb3_laplace.vec_env import GymnasiumVecEnv, make_vec_env
from tests.scripted_env import TASKS, ScriptedEnv, ScriptedVectorEnv, assert_equal, assert_same_run, oracle, sync

# What SB3's make_vec_env says of environments without images
pytestmark = pytest.mark.filterwarnings("ignore:.*not in the possible render_modes")


def test_seeds_and_options_are_used_once() -> None:
    venv, twin = (GymnasiumVecEnv(sync(2)) for _ in range(2))
    venv.seed(3)
    first = venv.reset()
    assert not np.array_equal(first, venv.reset())
    venv.seed(3)
    venv.set_options({"offset": 1000.0})
    shifted = venv.reset()
    np.testing.assert_allclose(shifted[:, 1:], first[:, 1:] + 1000, rtol=1e-5)
    twin.seed(np.int64(3))  # type: ignore[arg-type]
    twin.set_options([{"offset": 1000.0}] * 2)
    np.testing.assert_array_equal(twin.reset(), shifted)
    assert venv._options == [{}, {}]
    with pytest.raises(ValueError, match="options of all have to be equal"):
        twin.set_options([{"offset": np.ones(2)}, {"offset": np.ones(2) + 1e-9}])


def test_without_a_seed_runs_differ() -> None:
    venvs = [GymnasiumVecEnv(sync(2)) for _ in range(2)]
    assert not np.array_equal(*(venv.reset() for venv in venvs))


@pytest.mark.parametrize("attr", ["max_length", "render_mode", "observation_space", "action_space"])
@pytest.mark.parametrize("indices", [None, 1, [2, 0]])
def test_get_attr_of_single_environments(attr: str, indices: Any) -> None:
    assert GymnasiumVecEnv(sync(3)).get_attr(attr, indices) == oracle(3).get_attr(attr, indices)


def test_attributes_and_methods_of_single_environments() -> None:
    venv = GymnasiumVecEnv(sync(3))
    assert venv.env_method("scale", 2, indices=[0, 1]) == [8, 8]
    venv.set_attr("max_length", 7, indices=1)
    assert venv.get_attr("max_length") == [4, 7, 4]
    venv.set_attr("max_length", [1, 2, 3])
    assert venv.get_attr("max_length") == [[1, 2, 3]] * 3  # like SB3, the value for each
    assert venv.has_attr("scale")
    assert not venv.has_attr("missing")
    with pytest.raises(AttributeError):
        venv.get_attr("missing")


class Passing(VectorWrapper):
    """A vector wrapper with an attribute of its own."""

    passing = True


def test_attributes_and_methods_of_a_batch() -> None:
    venv = GymnasiumVecEnv(Passing(ScriptedVectorEnv(3)))
    assert venv.get_attr("difficulty") == [0, 1, 2]
    assert venv.get_attr("difficulty", [2, 1]) == [2, 1]
    assert venv.get_attr("label", 0) == ["hard"]
    assert venv.get_attr("passing") == [True] * 3
    assert venv.get_attr("observation_space") == [venv.observation_space] * 3
    assert_equal(venv.env_method("weights", factor=2.0), [[0, 0], [2, 2], [4, 4.0]])
    assert venv.env_method("version") == ["v1"] * 3
    with pytest.raises(NotImplementedError, match=r"'weights' cannot be applied to \[0\] only"):
        venv.env_method("weights", 2.0, indices=0)

    venv.set_attr("difficulty", 9.0, indices=[1])
    assert venv.get_attr("difficulty") == [0, 9, 2]
    venv.set_attr("shares", 5, indices=2)
    assert venv.get_attr("shares") == [0, 0, 5]
    venv.set_attr("label", "easy")
    assert venv.get_attr("label") == ["easy"] * 3
    venv.set_attr("brand_new", 1)
    assert venv.env.unwrapped.brand_new == 1
    with pytest.raises(NotImplementedError, match="'label' cannot be applied"):
        venv.set_attr("label", "easy", indices=[0, 1])

    assert venv.has_attr("version")
    assert not venv.has_attr("missing")
    with pytest.raises(AttributeError):
        venv.env_method("missing")


def test_a_task_can_be_read_and_not_set() -> None:
    venv = make_vec_env(TASKS[0], 3, seed=0)
    venv.reset()
    assert_equal(np.stack(venv.get_attr("task")), venv.env.task)  # type: ignore[attr-defined]
    with pytest.raises(AttributeError):
        venv.set_attr("task", 0.0)


def test_async_vector_env() -> None:
    venv = GymnasiumVecEnv(AsyncVectorEnv([ScriptedEnv] * 2, autoreset_mode=AutoresetMode.SAME_STEP))
    expected = oracle(2)
    for each in (venv, expected):
        each.seed(0)
    assert not venv.has_attr("missing")
    assert venv.has_attr("max_length")
    assert venv.env_method("scale", 2) == [8, 8]
    venv.set_attr("max_length", 2, indices=0)
    expected.env_method("set_wrapper_attr", "max_length", 2, indices=0)
    assert venv.get_attr("max_length") == [2, 4]
    with pytest.raises(NotImplementedError, match="cannot be applied"):
        venv.env_method("scale", 2, indices=0)
    assert assert_same_run(expected, venv, 10) > 4
    venv.close()


def test_render() -> None:
    venv, expected = GymnasiumVecEnv(ScriptedVectorEnv(4, render_mode="rgb_array")), oracle(4, render_mode="rgb_array")
    for each in (venv, expected):
        each.reset()
    assert venv.render_mode == "rgb_array"
    assert_equal(venv.render(), expected.render())
    assert GymnasiumVecEnv(ScriptedVectorEnv(2)).get_images() == [None, None]


def test_close() -> None:
    inner = ScriptedVectorEnv(2)
    GymnasiumVecEnv(inner).close()
    assert inner.closed

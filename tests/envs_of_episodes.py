"""The tasks with episodes of their own, by name, for the tests of what they do alike."""

import pytest

import sb3_laplace_envs as envs

try:
    import mujoco
except ImportError:
    mujoco = None
needs_mujoco = pytest.mark.skipif(mujoco is None, reason="needs mujoco: pip install 'sb3-laplace[mujoco]'")

MUJOCO_METRICS = {"velocity", "control_cost", "physics_blow_up"}
# Single and batched class, arguments, what the task shows, actions, shape of a task, metrics
TASKS = {
    "point": (envs.PointRobotEnv, envs.PointRobotVectorEnv, {}, 2, 2, (2,), {"distance"}),
    "sparse": (envs.PointRobotEnv, envs.PointRobotVectorEnv, {"sparse": True}, 2, 2, (2,), {"distance"}),
    "vel": (envs.HalfCheetahVelEnv, envs.HalfCheetahVelVectorEnv, {}, 17, 6, (1,), MUJOCO_METRICS),
    "dir": (envs.HalfCheetahDirEnv, envs.HalfCheetahDirVectorEnv, {}, 17, 6, (1,), MUJOCO_METRICS),
    "ant": (envs.AntDirEnv, envs.AntDirVectorEnv, {}, 27, 8, (1,), MUJOCO_METRICS | {"contact_cost"}),
    "circle": (
        envs.AntDirEnv,
        envs.AntDirVectorEnv,
        {"directions": "circle"},
        27,
        8,
        (2,),
        MUJOCO_METRICS | {"contact_cost"},
    ),
}


def single(name, **kwargs):
    return TASKS[name][0](**TASKS[name][2], **kwargs)


def batch(name, num_envs, **kwargs):
    return TASKS[name][1](num_envs=num_envs, **TASKS[name][2], **kwargs)

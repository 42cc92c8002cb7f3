"""A MuJoCo model that steps many states at once, on threads, and draws them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.error import DependencyNotInstalled
from numpy.typing import NDArray

ASSETS = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"
# MuJoCo steps of 0.01 s in a control step, as in Gymnasium's HalfCheetah and Ant
FRAME_SKIP = 5
IMAGE_PIXELS = 480


def import_mujoco() -> Any:
    """Return the module ``mujoco``, its ``rollout`` loaded.

    :raises gymnasium.error.DependencyNotInstalled: It is not installed, or too old
    :raises RuntimeError: It is, but the OpenGL that the environment variable MUJOCO_GL asks for is not there
    """
    install = "the robots need mujoco 3.3 or newer: pip install 'sb3-laplace[mujoco]'"
    try:
        import mujoco
    except ModuleNotFoundError as error:
        raise DependencyNotInstalled(f"{install} ({error})") from error
    # What MuJoCo loads for OpenGL fails in many ways: an ImportError, an AttributeError, errors of its own
    except Exception as error:
        raise RuntimeError(no_opengl(error)) from error
    try:
        from mujoco.rollout import Rollout  # noqa: F401
    except ImportError as error:
        raise DependencyNotInstalled(f"{install} ({error})") from error
    return mujoco


def no_opengl(error: Exception) -> str:
    """Return what to say where MuJoCo cannot use OpenGL."""
    return (
        "render_mode 'rgb_array' needs OpenGL, which MuJoCo cannot use here: without a screen, set the environment "
        "variable MUJOCO_GL to 'egl' or to 'osmesa', whichever is installed, before Python starts; without images, "
        f"leave it unset. It is {os.environ.get('MUJOCO_GL')!r}; what failed: {error}"
    )


def default_threads(num_envs: int) -> int:
    """Return as many threads as this process may use cores, at most one for each environment."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(num_envs, cores)


class Simulation:
    """A model of Gymnasium's and the means to step a batch of its states.

    A state is MuJoCo's ``mjSTATE_FULLPHYSICS``: time, positions, velocities, (1 + nq + nv,). Every call starts the
    constraint solver cold, so that what comes out depends on states and controls alone: not on earlier calls, nor on
    the number of threads. (Gymnasium starts it from the last accelerations. That changes a state by less than
    1e-8 in a step.)

    Pickling, and copying, keeps the arguments: states belong to the caller.

    :param asset: The file among Gymnasium's MuJoCo assets
    :param num_threads: Threads that step the states
    :raises gymnasium.error.DependencyNotInstalled: mujoco is not installed
    """

    def __init__(self, asset: str, num_threads: int) -> None:
        self._arguments = (asset, num_threads)
        self._mujoco = mujoco = import_mujoco()
        self.model = mujoco.MjModel.from_xml_path(str(ASSETS / asset))
        self.dt = self.model.opt.timestep * FRAME_SKIP
        self._data = [mujoco.MjData(self.model) for _ in range(num_threads)]
        self.initial_state = np.empty(1 + self.model.nq + self.model.nv)
        mujoco.mj_getState(self.model, self._data[0], self.initial_state, mujoco.mjtState.mjSTATE_FULLPHYSICS)
        # Without threads the calling one does the work
        self._rollout = mujoco.rollout.Rollout(nthread=num_threads if num_threads > 1 else 0)
        self._pool = ThreadPoolExecutor(num_threads) if num_threads > 1 else None
        # Made where the first image is drawn: most environments with a render mode are never drawn
        self._renderer: Any = None

    def __reduce__(self) -> tuple[type[Simulation], tuple[str, int]]:
        return type(self), self._arguments

    def close(self) -> None:
        """Let go of the threads and of the renderer. Safe to call again."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        if self._pool is not None:
            self._pool.shutdown()
        self._rollout.close()

    def advance(
        self, states: NDArray[np.float64], controls: NDArray[np.float64], n_frames: int = FRAME_SKIP
    ) -> NDArray[np.float64]:
        """Hold the controls for some MuJoCo steps, of all states in one call.

        :param states: (n, n_state)
        :param controls: (n, n_controls)
        :param n_frames: The number of MuJoCo steps
        :return: The states after them, (n, n_state)
        """
        path = np.empty((len(states), n_frames, states.shape[1]))
        # The checks, which also find the shapes, would take longer than the steps of one state
        self._rollout.rollout(
            [self.model] * len(states),
            self._data,
            initial_state=states,
            control=np.repeat(controls[:, np.newaxis], n_frames, axis=1),
            skip_checks=True,
            nstep=n_frames,
            state=path,
        )
        return path[:, -1].copy()

    def advance_with_forces(
        self, states: NDArray[np.float64], controls: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Hold the controls for a control step, and look at the bodies as Gymnasium does after one.

        Gymnasium reads positions and forces where MuJoCo last computed them: with a Runge-Kutta integrator, in the
        last stage of the last MuJoCo step, just before the final state. ``mujoco.rollout`` returns neither, so the
        last MuJoCo step is made state by state.

        :param states: (n, n_state)
        :param controls: (n, n_controls)
        :return: The states after it (n, n_state), the bodies' positions (n, n_bodies, 3) and the external forces
            and torques on them (n, n_bodies, 6)
        """
        states = self.advance(states, controls, FRAME_SKIP - 1)
        positions = np.empty((len(states), self.model.nbody, 3))
        forces = np.empty((len(states), self.model.nbody, 6))

        def finish(data: Any, rows: Sequence[int]) -> None:
            model, mujoco = self.model, self._mujoco
            physics = mujoco.mjtState.mjSTATE_FULLPHYSICS
            for row in rows:
                mujoco.mj_setState(model, data, states[row], physics)
                data.ctrl[:] = controls[row]
                data.qacc_warmstart[:] = 0.0
                mujoco.mj_step(model, data)
                mujoco.mj_rnePostConstraint(model, data)
                mujoco.mj_getState(model, data, states[row], physics)
                positions[row] = data.xpos
                forces[row] = data.cfrc_ext

        if self._pool is None:
            finish(self._data[0], range(len(states)))
        else:
            shares = [range(i, len(states), len(self._data)) for i in range(len(self._data))]
            list(self._pool.map(finish, self._data, shares))
        return states, positions, forces

    def blew_up(self, before: NDArray[np.float64], after: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return where a control step failed, (n,).

        Where MuJoCo meets a state that is not finite or huge it warns and starts again from the model's initial
        state; and a rollout stops at any of its warnings. Both leave a time that is too early.

        :param before: States before the control step, (n, n_state)
        :param after: States after it, (n, n_state)
        """
        early = after[:, 0] < before[:, 0] + (FRAME_SKIP - 0.5) * self.model.opt.timestep
        fine = np.abs(after) <= self._mujoco.mjMAXVAL  # False for NaN
        return early | ~fine.all(axis=1)

    def draw(self, state: NDArray[np.float64]) -> NDArray[np.uint8]:
        """Return the image that the camera sees which moves along with the robot, (pixels, pixels, 3).

        :raises RuntimeError: MuJoCo cannot render here
        """
        if self._renderer is None:
            self._renderer = self._make_renderer()
        data, mujoco = self._data[0], self._mujoco
        mujoco.mj_setState(self.model, data, state, mujoco.mjtState.mjSTATE_FULLPHYSICS)
        mujoco.mj_forward(self.model, data)
        self._renderer.update_scene(data, camera="track")
        return self._renderer.render().copy()

    def _make_renderer(self) -> Any:
        try:
            return self._mujoco.Renderer(self.model, IMAGE_PIXELS, IMAGE_PIXELS)
        except Exception as error:
            raise RuntimeError(no_opengl(error)) from error

"""Agents for where there is no torch: the deterministic actor as an ONNX model, or as a program of torch.export."""

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_laplace.algorithm.laplace_recurrent_ppo import LaplaceRecurrentPPO
from sb3_laplace.policies import LaplaceLstmPolicy
from sb3_laplace.posthoc.exported_actor import ActorInputs, ExportedActor, unchecked_distributions

SUFFIXES = (".onnx", ".pt2")
# What is exported is played for a few steps, with another number of environments than it was traced with
_N_TRACED, _N_CHECKED, _CHECKED_STEPS = 2, 3, 5
_TOLERANCE = 1e-4

#: From observation, state and episode start to actions, the new state's tensors and, if asked for, entropies
Run = Callable[[Any, tuple[np.ndarray, ...], np.ndarray], list[np.ndarray]]


def export_policy(
    model: LaplaceRecurrentPPO | LaplaceLstmPolicy, path: str | os.PathLike, entropy: bool = False
) -> None:
    """Write the deterministic actor, (observation, state, episode_start) -> (action, state), into a file.

    It does what ``predict(deterministic=True)`` does: acts on the posterior's mean and takes the mode. The state begins
    with zeros and ``episode_start`` True. Observations are those that the policy takes: after VecNormalize if the agent
    was trained with it, images channel-first, no masks of actions. The number of environments N is free.

    The suffix says which file it is:

    - ``.onnx``: inputs ``observation`` (of Dict spaces ``observation_KEY``), ``state_0``, ``state_1``, ...,
      ``episode_start`` (N,), bool; outputs ``action``, ``next_state_0``, ``next_state_1``, ..., and ``entropy``
    - ``.pt2``: ``torch.export.load(path).module()`` is called with the observation (or a dict), the tuple of the state
      and ``episode_start``, and returns a tuple of the same outputs

    Without ``entropy`` the state is the core's, (h, c) of an LSTM, each (layers, N, H), and the sum of means of a
    posterior with ``sum_means``. With it the state is that of ``predict``, which :meth:`policy.posterior()
    <sb3_laplace.LaplaceLstmPolicy.posterior>` takes, and every step costs a Jacobian.

    What was written is read again and played beside ``predict`` for a few steps.

    :param model: the agent, or its policy
    :param path: the file, ending in .onnx or .pt2
    :param entropy: return the posterior's entropy in nats too, shape (N,)
    :raises ImportError: if a package that .onnx needs is not installed
    :raises ValueError: naming what cannot be exported
    """
    target = Path(path)
    if target.suffix not in SUFFIXES:
        raise ValueError(f"path must end in {' or '.join(SUFFIXES)}, got {os.fspath(path)!r}.")
    policy = model.policy if isinstance(model, LaplaceRecurrentPPO) else model
    if not isinstance(policy, LaplaceLstmPolicy):
        raise ValueError(
            f"model must be a LaplaceRecurrentPPO or its policy, got a {type(model).__name__}: "
            "LaplaceRecurrentPPO.from_recurrent_ppo converts a RecurrentPPO."
        )
    if not isinstance(entropy, bool):
        raise ValueError(f"entropy must be True or False, got {entropy!r}.")
    if target.suffix == ".onnx":
        _require_onnx()
    # SB3's distribution keeps what the last gradient step made of it, which cannot be copied
    memo = {id(policy.action_dist): copy.copy(policy.action_dist)}
    policy = copy.deepcopy(policy, memo).cpu().requires_grad_(False)
    policy.set_training_mode(False)
    actor = ExportedActor(policy, entropy).eval()
    program = _trace(actor)
    if target.suffix == ".pt2":
        th.export.save(program, target)
    else:
        _save_onnx(program, actor, target)
    with th.no_grad():
        _check(policy, actor, _reader(actor, target))


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"export to .onnx needs {error.name}: pip install 'sb3-laplace[export]' (.pt2 needs nothing)."
        ) from error


def _observations(space: spaces.Space, n: int) -> Any:
    """Random observations as the policy takes them, shape (n, ...), or a dict of these."""
    if isinstance(space, spaces.Dict):
        return {key: _observations(part, n) for key, part in space.spaces.items()}
    batch = np.stack([space.sample() for _ in range(n)])
    return batch.astype(np.float32) if batch.dtype == np.float64 else batch


def _example(actor: ExportedActor, n: int) -> ActorInputs:
    # Not the policy's own, whose generator is the user's
    space = copy.deepcopy(actor.policy.observation_space)
    space.seed(0)
    observations = _observations(space, n)
    if isinstance(observations, dict):
        tensors: Any = {key: th.as_tensor(part) for key, part in observations.items()}
    else:
        tensors = th.as_tensor(observations)
    return tensors, actor.initial_state(n), th.zeros(n, dtype=th.bool)


def _trace(actor: ExportedActor) -> th.export.ExportedProgram:
    observation, state, starts = _example(actor, _N_TRACED)
    n = th.export.Dim("n")
    batched = {key: {0: n} for key in observation} if isinstance(observation, dict) else {0: n}
    shapes = (batched, tuple({1: n} for _ in state), {0: n})
    try:
        with th.no_grad(), unchecked_distributions():
            return th.export.export(actor, (observation, state, starts), dynamic_shapes=shapes)
    except Exception as error:
        # What the tracer raises where it meets something that it cannot trace can be anything
        core, extractor = type(actor.policy.lstm_actor).__name__, type(actor.policy.features_extractor).__name__
        raise ValueError(
            f"torch.export cannot trace this policy ({type(actor.policy).__name__}, core {core}, features {extractor}, "
            f"posterior {type(actor.policy.latent_layer).__name__}, entropy={actor.with_entropy}): {error}"
        ) from error


def _names(actor: ExportedActor) -> tuple[list[str], list[str]]:
    """Names of inputs and outputs."""
    space, n_state = actor.policy.observation_space, len(actor.initial_state(1))
    observations = [f"observation_{key}" for key in space.spaces] if isinstance(space, spaces.Dict) else ["observation"]
    inputs = [*observations, *(f"state_{i}" for i in range(n_state)), "episode_start"]
    outputs = ["action", *(f"next_state_{i}" for i in range(n_state))]
    return inputs, [*outputs, "entropy"] if actor.with_entropy else outputs


def _save_onnx(program: th.export.ExportedProgram, actor: ExportedActor, target: Path) -> None:
    import onnx

    inputs, outputs = _names(actor)
    try:
        exported = th.onnx.export(program, dynamo=True, verbose=False, input_names=inputs, output_names=outputs)
    except th.onnx.errors.OnnxExporterError as error:
        raise ValueError(f"this policy cannot be written as ONNX, .pt2 can: {error}") from error
    assert exported is not None
    exported.save(target)
    onnx.checker.check_model(onnx.load(target))


def _reader(actor: ExportedActor, target: Path) -> Run:
    """What was written, as a function of arrays."""
    if target.suffix == ".pt2":
        module = th.export.load(target).module()

        def run_program(observation: Any, state: tuple[np.ndarray, ...], starts: np.ndarray) -> list[np.ndarray]:
            is_dict = isinstance(observation, dict)
            given = {k: th.as_tensor(v) for k, v in observation.items()} if is_dict else th.as_tensor(observation)
            return [part.numpy() for part in module(given, tuple(map(th.as_tensor, state)), th.as_tensor(starts))]

        return run_program

    import onnxruntime

    session = onnxruntime.InferenceSession(os.fspath(target), providers=["CPUExecutionProvider"])
    names, known = _names(actor)[0], {one.name for one in session.get_inputs()}

    def run_session(observation: Any, state: tuple[np.ndarray, ...], starts: np.ndarray) -> list[np.ndarray]:
        observations = list(observation.values()) if isinstance(observation, dict) else [observation]
        given = dict(zip(names, [*observations, *state, starts], strict=True))
        # An input that nothing depends on is not in the graph
        return session.run(None, {name: value for name, value in given.items() if name in known})

    return run_session


def _check(policy: LaplaceLstmPolicy, actor: ExportedActor, run: Run) -> None:
    """Play what was written beside ``predict``.

    :raises ValueError: if they differ, as where the policy's class overrides what is not called here
    """
    space = copy.deepcopy(policy.observation_space)
    space.seed(1)
    state, expected_state = tuple(part.numpy() for part in actor.initial_state(_N_CHECKED)), None
    starts = np.ones(_N_CHECKED, dtype=bool)
    n_state = len(state)
    for step in range(_CHECKED_STEPS):
        observation = _observations(space, _N_CHECKED)
        actions, *rest = run(observation, state, starts)
        state = tuple(rest[:n_state])
        expected, expected_state = policy.predict(observation, expected_state, starts, deterministic=True)
        assert expected_state is not None
        pairs = [("actions", actions, expected), ("states", state[0], expected_state[0])]
        if actor.with_entropy:
            pairs.append(("entropies", rest[-1], policy.posterior(expected_state).entropy().numpy()))
        for name, found, wanted in pairs:
            if not np.allclose(found, wanted, rtol=_TOLERANCE, atol=_TOLERANCE):
                raise ValueError(
                    f"what was exported differs from predict(): after {step + 1} steps {name} are {found.tolist()} "
                    f"instead of {np.asarray(wanted).tolist()}. Does {type(policy).__name__} override how it acts?"
                )
        starts = np.arange(_N_CHECKED) == step

"""Action masks in what RL Zoo plays itself, which asks no environment for them: evaluations, and ``enjoy``."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from rl_zoo3.callbacks import TrialEvalCallback
from sb3_contrib.common.maskable.callbacks import MaskableEvalCallback
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_laplace.algorithm.masking import ActionMasks, MaskedPPO


class MaskedEvalCallback(MaskableEvalCallback):
    """sb3-contrib's where an agent of ours is evaluated in environments with masks, SB3's anywhere else."""

    def _init_callback(self) -> None:
        super()._init_callback()
        self.use_masking = isinstance(self.model, MaskedPPO) and ActionMasks(self.eval_env, None).is_on

    def _on_step(self) -> bool:
        return super()._on_step() if self.use_masking else EvalCallback._on_step(self)


class MaskedTrialEvalCallback(TrialEvalCallback, MaskedEvalCallback):
    """RL Zoo's, which reports a trial, around the evaluation of the class above."""


@contextmanager
def masked_agents(program: Callable[[], None]) -> Iterator[None]:
    """Let agents of ours that ``enjoy`` loads be asked with the masks of the environment that it makes.

    :param program: RL Zoo's ``enjoy``, whose module is put back afterwards
    """
    module: dict[str, Any] = program.__globals__
    algorithms, create_test_env = module["ALGOS"], module["create_test_env"]
    played: list[VecEnv] = []

    def create(*args: Any, **kwargs: Any) -> VecEnv:
        played[:] = [create_test_env(*args, **kwargs)]
        return played[0]

    def load(algorithm: type[MaskedPPO], *args: Any, **kwargs: Any) -> BaseAlgorithm:
        model = algorithm.load(*args, **kwargs)
        predict: Any = model.predict
        env = played[0]
        masks: list[ActionMasks] = []

        def predict_masked(*given: Any, **options: Any) -> Any:
            if not masks:
                # The environment has been reset by now
                masks.append(ActionMasks(env, False if model.use_masking is False else None))
            return predict(*given, **options, action_masks=masks[0].read(" while enjoying"))

        model.predict = predict_masked  # type: ignore[method-assign]
        return model

    def loader(algorithm: type[BaseAlgorithm]) -> Any:
        if not issubclass(algorithm, MaskedPPO):
            return algorithm
        return SimpleNamespace(load=lambda *args, **kwargs: load(algorithm, *args, **kwargs))

    module["create_test_env"] = create
    module["ALGOS"] = {name: loader(algorithm) for name, algorithm in algorithms.items()}
    try:
        yield
    finally:
        module["ALGOS"], module["create_test_env"] = algorithms, create_test_env

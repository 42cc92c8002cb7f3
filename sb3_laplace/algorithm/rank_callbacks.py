"""Which callbacks a rank runs: those that write, print or evaluate are rank 0's, all others run on every rank."""

import copy
from collections.abc import Sequence

from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EventCallback,
    ProgressBarCallback,
)

from sb3_laplace.algorithm import distributed

_OF_RANK_0 = (CheckpointCallback, EvalCallback, ProgressBarCallback)


class GlobalProgressBarCallback(ProgressBarCallback):
    """SB3's progress bar, which counts the steps of all ranks."""

    def _on_step(self) -> bool:
        self.pbar.update(self.training_env.num_envs * distributed.size())
        return True


def callbacks_of_rank(callbacks: Sequence[BaseCallback]) -> list[BaseCallback]:
    """Those of some callbacks that this rank runs, also inside lists and event callbacks.

    SB3's ``CheckpointCallback``, ``EvalCallback`` (with what it triggers) and ``ProgressBarCallback``, their
    subclasses, and callbacks with a true attribute ``rank_zero_only`` run on rank 0 only. An event callback that has
    nothing left to trigger is left out.

    :param callbacks: callbacks, none of which is changed
    """
    kept = [_of_rank(callback) for callback in callbacks]
    return [callback for callback in kept if callback is not None]


def _of_rank(callback: BaseCallback) -> BaseCallback | None:
    is_of_rank_0 = isinstance(callback, _OF_RANK_0) or getattr(callback, "rank_zero_only", False)
    if is_of_rank_0 and distributed.rank() > 0:
        return None
    if type(callback) is ProgressBarCallback:
        return GlobalProgressBarCallback()
    if isinstance(callback, CallbackList):
        callback = copy.copy(callback)
        callback.callbacks = callbacks_of_rank(callback.callbacks)
        return callback
    if isinstance(callback, EventCallback) and callback.callback is not None:
        triggered = _of_rank(callback.callback)
        if triggered is None:
            return None
        if triggered is not callback.callback:
            callback = copy.copy(callback)
            callback.callback = triggered
            triggered.parent = callback
    return callback

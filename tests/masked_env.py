"""Environments whose states allow only some actions, and that refuse all others."""

from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from sb3_laplace.checks import is_masked_out
from tests.helpers import RandomEnv

SPACES = {
    "discrete": spaces.Discrete(5),
    "multi_discrete": spaces.MultiDiscrete([3, 2]),
    "multi_binary": spaces.MultiBinary(3),
}
#: Numbers of values of their choices
SIZES = {"discrete": [5], "multi_discrete": [3, 2], "multi_binary": [2, 2, 2]}


def random_masks(rng: np.random.Generator, sizes: list[int], n: int) -> np.ndarray:
    """Masks that leave one action at least, and often no more, shape (n, sum of sizes)."""
    parts = []
    for size in sizes:
        part = rng.random((n, size)) < 0.4
        part[np.arange(n), rng.integers(size, size=n)] = True
        parts.append(part)
    return np.concatenate(parts, axis=1)


class MaskedEnv(RandomEnv):
    """RandomEnv whose masks are drawn anew at every state."""

    def __init__(self, kind: str = "discrete", **kwargs: Any) -> None:
        super().__init__(action_space=SPACES[kind], **kwargs)
        self.kind = kind

    def _draw(self) -> None:
        self.mask = random_masks(self.np_random, SIZES[self.kind], 1)[0]

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        result = super().reset(seed=seed, options=options)
        self._draw()
        return result

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        taken = np.asarray(action)[np.newaxis]
        assert not is_masked_out(taken, self.mask[np.newaxis], self.action_space).any(), (action, self.mask)
        result = super().step(action)
        self._draw()
        return result

    def action_masks(self) -> np.ndarray:
        return self.mask


class MaskedVectorEnv(VectorEnv):
    """A batch of episodes of random length, whose infos, method or attribute have the masks.

    :param source: "infos", "method" or "attribute"
    """

    def __init__(self, num_envs: int, source: str, mode: AutoresetMode = AutoresetMode.SAME_STEP) -> None:
        self.num_envs = num_envs
        self.metadata = {"autoreset_mode": mode}
        self.single_observation_space = spaces.Box(-1.0, 1.0, (4,), np.float32)
        self.single_action_space = spaces.Discrete(5)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.source, self.ended = source, np.zeros(num_envs, dtype=bool)
        if source == "method":
            self.action_masks: Any = lambda: self.masks
        self.masks = np.ones((num_envs, 5), dtype=np.int8)

    def _report(self) -> dict[str, Any]:
        if self.source == "attribute":
            self.action_masks = self.masks
        return {"action_mask": self.masks} if self.source == "infos" else {}

    def _observe(self) -> np.ndarray:
        return self.np_random.uniform(-1, 1, (self.num_envs, 4)).astype(np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        which = (options or {}).get("reset_mask", np.ones(self.num_envs, dtype=bool))
        # In place, as a fast environment may do
        self.masks[which] = random_masks(self.np_random, [5], self.num_envs)[which]
        self.ended = self.ended & ~which
        return self._observe(), self._report()

    def step(self, actions: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict]:
        allowed = self.masks[np.arange(self.num_envs), actions].astype(bool)
        assert (allowed | self.ended).all()
        self.masks[:] = random_masks(self.np_random, [5], self.num_envs)
        # With NEXT_STEP this step only resets those whose episode has ended
        ended = (self.np_random.random(self.num_envs) < 0.3) & ~self.ended
        if self.metadata["autoreset_mode"] != AutoresetMode.SAME_STEP:
            # At an episode's end there is nothing left to do
            self.masks[ended] = 0
            self.ended = ended
        infos = self._report()
        if ended.any() and self.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP:
            final = np.zeros((self.num_envs, 4), np.float32)
            last = {"action_mask": np.zeros((self.num_envs, 5), np.int8), "_action_mask": ended}
            infos |= {"final_obs": final, "_final_obs": ended, "final_info": last, "_final_info": ended}
        return self._observe(), np.ones(self.num_envs), ended, np.zeros(self.num_envs, dtype=bool), infos

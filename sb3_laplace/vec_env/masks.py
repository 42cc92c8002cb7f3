"""Masks of actions that batched environments report in their infos."""

from typing import Any

import numpy as np

#: Name of the method by which environments have masks, sb3-contrib's convention
ATTRIBUTE = "action_masks"
#: Name of the masks in infos, as Gymnasium's own environments have it
_KEY = "action_mask"


class ReportedMasks:
    """
    What the last infos say of the next actions of all environments.

    :param num_envs: Number of environments
    """

    def __init__(self, num_envs: int):
        self._masks: np.ndarray | None = None
        self._reported = np.zeros(num_envs, dtype=bool)

    @property
    def is_known(self) -> bool:
        """Whether the last infos held masks."""
        return self._masks is not None

    def update(self, infos: dict[str, Any], which: np.ndarray | None = None) -> None:
        """
        Take in the infos of a reset or step.

        :param infos: Batched infos
        :param which: The environments that they are of, (num_envs,), bool; None for all
        """
        masks = infos.get(_KEY)
        if masks is None and which is None:
            self._masks = None
        if masks is None:
            return
        reported = infos.get(f"_{_KEY}", np.ones_like(self._reported))
        if which is None or self._masks is None:
            # Copied: an environment may write over what it returned
            self._masks, self._reported = np.array(masks), np.array(reported)
        else:
            self._masks[which] = np.asarray(masks)[which]
            self._reported[which] = reported[which]

    def of_all(self) -> np.ndarray:
        """
        The masks, (num_envs, n).

        :raises AttributeError: If there are none
        :raises ValueError: If an environment reported none
        """
        if self._masks is None:
            raise AttributeError(f"The environments have no {ATTRIBUTE}(), and no infos[{_KEY!r}] in their last step.")
        if not self._reported.all():
            missing = int(np.argmin(self._reported))
            raise ValueError(f"infos[{_KEY!r}] must be there for every environment, environment {missing} has none.")
        return self._masks

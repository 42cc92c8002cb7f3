"""PPO on sequences: the rollout, its buffer, the terms of the loss and the update."""

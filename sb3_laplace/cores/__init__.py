"""Recurrent memories: a step, whole sequences and Jacobians with respect to the hidden state."""

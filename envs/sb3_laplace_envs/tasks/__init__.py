"""The meta-tasks, one module each, and what they share."""

"""Playing trials with an agent, what its posterior does in them, and what to make of it."""

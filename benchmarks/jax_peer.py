"""A recurrent PPO in JAX, environment, rollouts and updates compiled as one, beside our agent without a posterior.

Run ``python -m benchmarks.jax_peer`` where jax is installed (pip install jax). The peer is as bare as PPO gets: a GRU
of 128 units, a linear latent, heads with a hidden layer, Adam, the bandit in a few lines; no logging, no callbacks,
nothing that a user could change without writing it anew. It has the rollouts, epochs and minibatches of the benchmark
of ``learn()``, and both are timed in turn in one process, on all cores.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import torch as th

from benchmarks.common import Record, Sizes, against_target, interleave, machine_info, print_table, verdict
from benchmarks.learning import LearnCase, LearnTimer

Params = dict[str, Any]
N_ARMS, N_HIDDEN, N_LATENT, N_HEAD = 5, 128, 64, 64
CONCENTRATION = 0.2
# The last action, the last reward, and whether the trial begins
N_OBS = N_ARMS + 2
GAMMA, GAE_LAMBDA, CLIP, VF_COEF, MAX_GRAD_NORM, LEARNING_RATE = 0.99, 0.95, 0.2, 0.5, 0.5, 3e-4
N_EPOCHS, N_MINIBATCHES = 4, 4
#: Steps a second of our point agent, times the peer's
TARGET = 1.5
#: Calls that are long enough for a compiled program
SIZES = Sizes(repeats=7, learn_steps=25_600)


# -- the agent ----------------------------------------------------------------------------------------------


def init(key: jax.Array) -> Params:
    """Weights of the network."""
    shapes = {
        "input": (N_OBS, 3 * N_HIDDEN),
        "hidden": (N_HIDDEN, 3 * N_HIDDEN),
        "latent": (N_HIDDEN, N_LATENT),
        "actor": (N_LATENT, N_HEAD),
        "logits": (N_HEAD, N_ARMS),
        "critic": (N_LATENT, N_HEAD),
        "value": (N_HEAD, 1),
    }
    keys = jax.random.split(key, len(shapes))
    weights = {
        name: jax.random.normal(one, shape) / shape[0] ** 0.5
        for one, (name, shape) in zip(keys, shapes.items(), strict=True)
    }
    biases = {f"{name}_bias": jnp.zeros(shape[1]) for name, shape in shapes.items()}
    return weights | biases


def linear(params: Params, name: str, inputs: jax.Array) -> jax.Array:
    return inputs @ params[name] + params[f"{name}_bias"]


def gru(params: Params, gates: jax.Array, hidden: jax.Array) -> jax.Array:
    """A step of torch's GRU; ``gates`` are the inputs' part."""
    reset, update, new = jnp.split(gates, 3, axis=-1)
    own_reset, own_update, own_new = jnp.split(linear(params, "hidden", hidden), 3, axis=-1)
    reset, update = jax.nn.sigmoid(reset + own_reset), jax.nn.sigmoid(update + own_update)
    return (1 - update) * jnp.tanh(new + reset * own_new) + update * hidden


def heads(params: Params, hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Logits of the actions and the value."""
    latent = linear(params, "latent", hidden)
    logits = linear(params, "logits", jnp.tanh(linear(params, "actor", latent)))
    return logits, linear(params, "value", jnp.tanh(linear(params, "critic", latent)))[..., 0]


def log_prob_of(logits: jax.Array, actions: jax.Array) -> jax.Array:
    return jnp.take_along_axis(jax.nn.log_softmax(logits), actions[..., None], axis=-1)[..., 0]


# -- a rollout and an update --------------------------------------------------------------------------------


def rollout(params: Params, key: jax.Array, n_envs: int, n_steps: int) -> dict[str, jax.Array]:
    """A trial of each environment, on a task of its own: arrays of shape (n_steps, n_envs, ...)."""
    key, task_key = jax.random.split(key)
    arms = jax.random.dirichlet(task_key, jnp.full(N_ARMS, CONCENTRATION), (n_envs,))

    def step(carry: Any, key: jax.Array) -> Any:
        obs, hidden = carry
        hidden = gru(params, linear(params, "input", obs), hidden)
        logits, value = heads(params, hidden)
        action_key, reward_key = jax.random.split(key)
        action = jax.random.categorical(action_key, logits)
        chance = jnp.take_along_axis(arms, action[:, None], axis=1)[:, 0]
        reward = (jax.random.uniform(reward_key, (n_envs,)) < chance).astype(jnp.float32)
        after = jnp.concatenate([jax.nn.one_hot(action, N_ARMS), reward[:, None], jnp.zeros((n_envs, 1))], axis=1)
        kept = {"obs": obs, "action": action, "log_prob": log_prob_of(logits, action), "value": value, "reward": reward}
        return (after, hidden), kept

    first = jnp.zeros((n_envs, N_OBS)).at[:, -1].set(1.0)
    _, kept = jax.lax.scan(step, (first, jnp.zeros((n_envs, N_HIDDEN))), jax.random.split(key, n_steps))

    def backward(carry: Any, now: Any) -> Any:
        advantage, next_value = carry
        delta = now["reward"] + GAMMA * next_value - now["value"]
        advantage = delta + GAMMA * GAE_LAMBDA * advantage
        return (advantage, now["value"]), advantage

    end = jnp.zeros(n_envs)
    _, advantages = jax.lax.scan(backward, (end, end), kept, reverse=True)
    return kept | {"advantage": advantages, "return": advantages + kept["value"]}


def loss(params: Params, batch: dict[str, jax.Array]) -> jax.Array:
    """PPO's, of whole sequences."""
    gates = linear(params, "input", batch["obs"])

    def step(hidden: jax.Array, gates: jax.Array) -> Any:
        hidden = gru(params, gates, hidden)
        return hidden, hidden

    _, hidden = jax.lax.scan(step, jnp.zeros((gates.shape[1], N_HIDDEN)), gates)
    logits, values = heads(params, hidden)
    ratio = jnp.exp(log_prob_of(logits, batch["action"]) - batch["log_prob"])
    advantage = (batch["advantage"] - batch["advantage"].mean()) / (batch["advantage"].std() + 1e-8)
    surrogate = jnp.minimum(advantage * ratio, advantage * jnp.clip(ratio, 1 - CLIP, 1 + CLIP))
    return -surrogate.mean() + VF_COEF * jnp.square(values - batch["return"]).mean()


def adam(params: Params, grads: Params, moments: Any) -> tuple[Params, Any]:
    """A step on gradients whose norm is at most MAX_GRAD_NORM."""
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(grad)) for grad in jax.tree.leaves(grads)))
    grads = jax.tree.map(lambda grad: grad * jnp.minimum(1.0, MAX_GRAD_NORM / (norm + 1e-6)), grads)
    first, second, count = moments
    count = count + 1
    first = jax.tree.map(lambda old, grad: 0.9 * old + 0.1 * grad, first, grads)
    second = jax.tree.map(lambda old, grad: 0.999 * old + 0.001 * grad * grad, second, grads)
    rate = LEARNING_RATE * jnp.sqrt(1 - 0.999**count) / (1 - 0.9**count)
    params = jax.tree.map(lambda one, up, down: one - rate * up / (jnp.sqrt(down) + 1e-5), params, first, second)
    return params, (first, second, count)


@partial(jax.jit, static_argnums=(1, 2, 3), donate_argnums=0)
def learn(state: Any, n_envs: int, n_steps: int, n_rollouts: int) -> tuple[Any, jax.Array]:
    """Rollouts and updates, compiled as one: the new state, and the mean reward of each rollout."""

    def iteration(state: Any, _: None) -> Any:
        params, moments, key = state
        key, rollout_key, *epoch_keys = jax.random.split(key, 2 + N_EPOCHS)
        kept = rollout(params, rollout_key, n_envs, n_steps)

        def minibatch(carry: Any, envs: jax.Array) -> Any:
            params, moments = carry
            grads = jax.grad(loss)(params, jax.tree.map(lambda array: array[:, envs], kept))
            return adam(params, grads, moments), None

        orders = jnp.stack([jax.random.permutation(one, n_envs) for one in epoch_keys])
        minibatches = orders.reshape(N_EPOCHS * N_MINIBATCHES, -1)
        (params, moments), _ = jax.lax.scan(minibatch, (params, moments), minibatches)
        return (params, moments, key), kept["reward"].mean()

    return jax.lax.scan(iteration, state, None, length=n_rollouts)


class Peer:
    """Times calls of the peer that trains on from call to call.

    :param case: our agent, whose rollouts and calls it has
    """

    def __init__(self, case: LearnCase) -> None:
        params = init(jax.random.key(0))
        zeros = jax.tree.map(jnp.zeros_like, params)
        self._state = (params, (zeros, jax.tree.map(jnp.zeros_like, params), jnp.zeros(())), jax.random.key(1))
        self._case = case
        #: Mean reward of a step in each of the last call's rollouts
        self.rewards = jnp.zeros(0)

    def __call__(self) -> float:
        """Steps a second of a call."""
        n_envs, n_steps, total = self._case.n_envs, self._case.n_steps, self._case.steps_per_learn
        start = time.perf_counter()
        self._state, rewards = learn(self._state, n_envs, n_steps, total // (n_envs * n_steps))
        self.rewards = rewards.block_until_ready()
        return total / (time.perf_counter() - start)


# -- side by side -------------------------------------------------------------------------------------------


def point_case(n_envs: int, sizes: Sizes) -> LearnCase:
    """Our agent that is timed beside the peer.

    :param n_envs: number of environments
    :param sizes: of the rollouts and the calls
    """
    return LearnCase("bandit", "point", "batched", n_envs, sizes.n_steps, N_HIDDEN, N_LATENT, sizes.learn_steps)


def compare(sizes: Sizes) -> list[Record]:
    """The peer and our agent at each number of environments, in turn.

    :param sizes: how large and how often
    """
    records = []
    for n_envs in sizes.n_envs:
        case = point_case(n_envs, sizes)
        timer = LearnTimer(case, th.device("cpu"), None)

        def ours(timer: LearnTimer = timer) -> float:
            return timer.case.steps_per_learn / timer()["learn"]

        peer, own = (
            statistics.median(calls) for calls in interleave(f"N = {n_envs}", [Peer(case), ours], sizes.repeats)
        )
        timer.close()
        ratio = own / peer
        records.append({"n_envs": n_envs, "peer": peer, "ours": own, "ratio": ratio, **against_target(ratio, TARGET)})
    return records


def main(arguments: Sequence[str] | None = None) -> list[Record]:
    """Run the command line.

    :param arguments: of the command line
    """
    parser = argparse.ArgumentParser("benchmarks.jax_peer", description=__doc__.partition("\n")[0])
    parser.add_argument("--n-envs", type=int, nargs="+", default=list(SIZES.n_envs), help="numbers of environments")
    parser.add_argument("--learn-steps", type=int, default=SIZES.learn_steps, help="environment steps of a call")
    parser.add_argument("--repeats", type=int, default=SIZES.repeats, help="calls that count")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--out", type=Path, default=Path("runs/jax_peer.json"), help="JSON file to write")
    given = parser.parse_args(arguments)
    th.set_num_threads(given.threads)
    sizes = replace(SIZES, n_envs=tuple(given.n_envs), learn_steps=given.learn_steps, repeats=given.repeats)
    records = compare(sizes)
    print_table(
        "environment steps per second, medians",
        ("N", "JAX, GRU 128", "ours, LSTM 128", "ratio", "target"),
        [
            (
                str(one["n_envs"]),
                *(f"{one[name]:,.0f}" for name in ("peer", "ours")),
                f"{one['ratio']:.2f} x",
                verdict(one, " x"),
            )
            for one in records
        ],
    )
    given.out.parent.mkdir(parents=True, exist_ok=True)
    machine = {**machine_info(th.device("cpu")), "jax": jax.__version__}
    document = {"machine": machine, "repeats": sizes.repeats, "learn_steps": sizes.learn_steps, "records": records}
    given.out.write_text(json.dumps(document, indent=2))
    return records


if __name__ == "__main__":
    main()

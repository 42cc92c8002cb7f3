"""On a GPU: the same numbers as on a CPU, and no waiting for it inside a step. Skipped where there is none."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_laplace.cores import jacobians
from sb3_laplace.posteriors.laplace import _products
from tests.helpers import make_policy
from tests.test_laplace_recurrent_ppo import POSTERIORS, collect, largest_log_ratio, small_model

needs_cuda = pytest.mark.skipif(not th.cuda.is_available(), reason="needs CUDA")


@needs_cuda
@pytest.mark.parametrize("posterior", POSTERIORS)
def test_ratio_is_one_on_cuda(posterior: str) -> None:
    model = small_model(
        device="cuda", policy_kwargs=POSTERIORS[posterior], n_steps=13, sequence_length=5, batch_size=10
    )
    for _ in range(2):
        collect(model)
        assert largest_log_ratio(model) < 1e-4
    model.learn(39)
    assert np.isfinite(model.rollout_buffer.values).all()


@needs_cuda
@pytest.mark.parametrize("posterior", POSTERIORS)
def test_cuda_computes_what_a_cpu_does(posterior: str) -> None:
    kwargs = POSTERIORS[posterior]
    on_cpu, on_gpu = make_policy(**kwargs), make_policy(**kwargs).to("cuda")
    on_gpu.load_state_dict(on_cpu.state_dict())
    states = [None, None]
    for obs in np.random.default_rng(0).random((5, 3, 4), dtype=np.float32):
        for i, policy in enumerate((on_cpu, on_gpu)):
            _, states[i] = policy.predict(obs, states[i], deterministic=True)
        for mine, other in zip(states[0] or (), states[1] or (), strict=True):
            np.testing.assert_allclose(mine, other, rtol=1e-3, atol=1e-4)


@needs_cuda
@pytest.mark.parametrize("kwargs", [{"posterior": "point"}, {}, {"latent_dim": 3}])
def test_a_step_does_not_wait_for_the_gpu(kwargs: dict[str, Any]) -> None:
    policy = make_policy(action_space=spaces.Discrete(3), **kwargs).to("cuda")
    obs, starts, states = th.rand(8, 4, device="cuda"), th.zeros(8, device="cuda"), policy.initial_states(8)
    with th.no_grad():
        policy.act(obs, states, starts)
        th.cuda.set_sync_debug_mode("error")
        try:
            policy.act(obs, states, starts)
        finally:
            th.cuda.set_sync_debug_mode("default")


# -- what a GPU does differently, on a CPU --------------------------------------------------------------------


@pytest.mark.parametrize("is_full", [True, False])
@pytest.mark.parametrize("lengths", [(4, 4, 4), (4, 3, 4)])
def test_products_gathered_and_in_place(is_full: bool, lengths: tuple[int, ...]) -> None:
    """Both ways give Lambda d, and nothing where a sequence is padded."""
    vectors = th.randn(3, 4, 2, dtype=th.float64)
    precisions = [th.randn(length, *((2, 2) if is_full else (2,)), dtype=th.float64) for length in lengths]
    expected = th.zeros_like(vectors)
    for s, precision in enumerate(precisions):
        for t, matrix in enumerate(precision):
            expected[s, t] = matrix @ vectors[s, t] if is_full else matrix * vectors[s, t]
    for in_place in (True, False):
        th.testing.assert_close(_products(precisions, vectors, in_place), expected)


def test_blocks_of_a_gpu_are_bounded() -> None:
    """256 MB of Jacobians at once, whatever the number of environments."""
    length = jacobians._block_length(4096, 256, th.device("cuda"))
    assert length * 256**2 * 4 <= 2**28
    assert jacobians._block_length(16, 256, th.device("cuda")) == 16
    assert jacobians._block_length(4096, 256, th.device("cpu")) * 256**2 * 4 <= 2**21

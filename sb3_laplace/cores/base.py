"""The interface of a recurrent memory: what it remembers, how it moves on by a step, and its Jacobian."""

import inspect
import itertools
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch as th
from torch import nn

from sb3_laplace.cores.jacobians import DenseJacobian, JacobianOperator
from sb3_laplace.cores.sequences import run_sequences

#: State of a core for N environments (or sequences): tensors of shape (layers, N, ...)
CoreState = tuple[th.Tensor, ...]

# Environments whose Jacobians are differentiated at once: forward-mode autodiff keeps H copies of every step
_AUTODIFF_CHUNK = 256


class Core(nn.Module, ABC):
    """What an actor remembers with: from features e_t and a state to the hidden state h_t and a new state.

    A core of your own is built as ``core(input_size, hidden_size, num_layers=..., **lstm_kwargs)`` and has to
    implement :attr:`state_shapes` and :meth:`step`. The first tensor of its state ends with h_t: ``state[0][-1]``
    has the shape (N, hidden_size). Before an episode's first step all of the state is zero. Whole sequences
    and the Jacobian come from :meth:`step` then, the one by a loop over time and the other by autodiff;
    :meth:`unroll` and :meth:`jacobian` are overridden where there is a faster way.

    Shapes: N environments or sequences, T steps, F features, H hidden units.
    """

    #: Whether it has the parameters of ``torch.nn.LSTM``, drawn as torch draws them
    is_torch_lstm: ClassVar[bool] = False

    @property
    @abstractmethod
    def state_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the state's tensors for one environment, (layers, ...); in a batch N comes second."""

    @abstractmethod
    def step(self, inputs: th.Tensor, state: CoreState) -> CoreState:
        """One time step of all layers.

        :param inputs: features e_t, shape (N, F)
        :param state: state before the step
        :return: the updated state
        """

    def hidden(self, state: CoreState) -> th.Tensor:
        """h_t, which the latent layer reads, shape (N, H).

        :param state: a state of the core
        """
        return state[0][-1]

    def initial_state(self, n: int) -> CoreState:
        """State before an episode's first step: zeros, each (layers, n, ...).

        :param n: number of environments
        """
        # Of a core without either, the default device's
        like = next(itertools.chain(self.parameters(), self.buffers()), th.empty(0))
        return tuple(like.new_zeros(shape[0], n, *shape[1:]) for shape in self.state_shapes)

    def reset(self, state: CoreState, episode_starts: th.Tensor) -> CoreState:
        """Set the state back where an episode starts.

        :param state: state of N environments
        :param episode_starts: 1 where an episode starts, shape (N,)
        """
        starts = episode_starts != 0
        return tuple(part.masked_fill(starts.view(1, -1, *[1] * (part.dim() - 2)), 0.0) for part in state)

    def unroll(self, inputs: th.Tensor, state: CoreState) -> th.Tensor:
        """Hidden states over sequences in which no episode starts.

        :param inputs: features, shape (T, N, F)
        :param state: state before the first step
        :return: shape (T, N, H)
        """
        hidden = []
        for features in inputs:
            state = self.step(features, state)
            hidden.append(self.hidden(state))
        return th.stack(hidden)

    def sequence(self, inputs: th.Tensor, state: CoreState, episode_starts: th.Tensor) -> th.Tensor:
        """Hidden states over sequences, the state set back wherever an episode starts.

        :param inputs: features, shape (N, T, F)
        :param state: state before the first step
        :param episode_starts: 1 where an episode starts, shape (N, T)
        :return: shape (N, T, H)
        """
        return run_sequences(self.unroll, inputs, state, episode_starts)

    # -- Jacobians --------------------------------------------------------------------------------------

    @classmethod
    def jacobian_input_size(cls, input_size: int, hidden_size: int, num_layers: int) -> int:
        """Size of what :meth:`jacobian_inputs` returns for each environment.

        :param input_size: number of features F
        :param hidden_size: number of hidden units H
        :param num_layers: number of layers
        """
        return input_size

    def jacobian_inputs(self, features: th.Tensor, state: CoreState) -> th.Tensor:
        """What :meth:`jacobian` needs of a step beside the state, and a windowed posterior keeps of past ones.

        :param features: features of the step, shape (N, F)
        :param state: state after the step
        :return: shape (N, F'), the features themselves unless a core says otherwise
        """
        return features

    @th.no_grad()
    def jacobian(self, inputs: th.Tensor, state: CoreState) -> JacobianOperator:
        """``S = dh'/dh``: how the next hidden state would depend on the present one, all else held fixed.

        It is evaluated at the state that is passed in, for a posterior the *updated* one (paper, section 4). No
        gradient flows through the result: a precision must not be optimised by shaping the network's curvature.
        This implementation differentiates :meth:`step` with ``torch.func``, which takes as long as H steps. A core of
        several layers has to override it and :meth:`jacobian_inputs`, so that the input of the top layer is held fixed.

        :param inputs: what :meth:`jacobian_inputs` returned, shape (N, F') for a batch of N Jacobians, or of L steps
            for each environment, shape (N, L, F'), for a batch of (N, L)
        :param state: state at which to differentiate, of N environments
        :raises NotImplementedError: if the core has several layers
        """
        if len(state[0]) > 1:
            raise NotImplementedError(
                f"{type(self).__name__} has {len(state[0])} layers: it has to override jacobian() and "
                "jacobian_inputs(), so that the input of the top layer is held fixed."
            )
        batch = inputs.shape[:-1]
        if len(batch) == 2:
            inputs = inputs.flatten(0, 1)
            state = tuple(part.repeat_interleave(batch[1], dim=1) for part in state)

        def updated(hidden: th.Tensor, features: th.Tensor, *one: th.Tensor) -> th.Tensor:
            first, *others = (part.unsqueeze(1) for part in one)
            first = th.cat((first[:-1], hidden.view(1, 1, -1)))
            return self.hidden(self.step(features.unsqueeze(0), (first, *others))).squeeze(0)

        differentiate = th.func.vmap(
            th.func.jacfwd(updated), in_dims=(0, 0, *[1] * len(state)), chunk_size=_AUTODIFF_CHUNK
        )
        # Tensors made under inference_mode, in which users may call this, cannot be differentiated. Leaving it turns
        # gradients on again.
        with th.inference_mode(False), th.no_grad():
            matrix = differentiate(self.hidden(state).clone(), inputs.clone(), *(part.clone() for part in state))
        return DenseJacobian(matrix.unflatten(0, batch))

    # -- arguments --------------------------------------------------------------------------------------

    @classmethod
    def check_keywords(cls, keywords: dict[str, Any]) -> None:
        """Check the keywords beside sizes and layers.

        :param keywords: ``lstm_kwargs`` of the policy
        :raises ValueError: naming a keyword that the core does not take
        """
        parameters = inspect.signature(cls).parameters
        if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
            return
        known = [name for name in parameters if name not in ("input_size", "hidden_size", "num_layers")]
        for name, value in keywords.items():
            if name not in known:
                raise ValueError(f"lstm_kwargs[{name!r}] = {value!r}: {cls.__name__} takes {known or 'no keywords'}.")

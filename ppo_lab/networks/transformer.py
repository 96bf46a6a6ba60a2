"""A causal transformer for sequences of tokens, with a cache for generation.

Pre-norm blocks as in GPT-2 (Radford et al. 2019, "Language Models are Unsupervised Multitask
Learners", section 2.3): x + attention(norm(x)), then x + MLP(norm(x)). The norms have no weights
of their own (arXiv:2402.00838, section 2.1): each is followed by an affine layer that can express
the same functions, and a norm without weights is the same operation for all lanes.

Shapes: L = lanes, B = sequences per lane, T = steps read, R = B * T rows per lane, V = tokens,
F = width, H = heads, D = F / H, S = steps in the cache.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ppo_lab.envs.base import EnvSpec
from ppo_lab.networks.base import NORMAL_STD, Initialization, NetworkConfig
from ppo_lab.networks.layers import Initializer, LaneEmbedding, LaneLinear
from ppo_lab.networks.sequences import Memory, SequenceTrunk
from ppo_lab.utils.errors import ConfigError

__all__ = ["KeysAndValues", "Positions", "Transformer", "TransformerConfig"]

_ROTARY_BASE = 10_000.0  # of the slowest rotation's wavelength, arXiv:2104.09864, section 3.2.2


class Positions(Enum):
    """How a step's place in its sequence enters the network."""

    rotary = "rotary"
    learned = "learned"


class KeysAndValues(NamedTuple):
    """The memory of a transformer. A step is added in place, so gradients do not pass through."""

    cache: Tensor  # (blocks, 2, L * B, H, S, D), of which ``num_steps`` are filled
    num_steps: int  # known to the host: no operation waits for the device


class _Block(nn.Module):
    """Causal self-attention and an MLP, each added to its input."""

    def __init__(
        self, attend: LaneLinear, mix: LaneLinear, expand: LaneLinear, reduce: LaneLinear
    ) -> None:
        """Use layers from F to queries, keys and values, F to F, F to the MLP's width and back."""
        super().__init__()
        self.attend, self.mix, self.expand, self.reduce = attend, mix, expand, reduce

    def forward(
        self, x: Tensor, shape: tuple[int, int, int], rotation: Tensor | None, past: _Past | None
    ) -> Tensor:
        """Return the output (L, R, F) for ``x`` (L, R, F); ``shape`` is (T, H, D)."""
        # Not layer(x): the overhead of Module.__call__ equals a small matrix product.
        heads = self.attend.forward(_norm(x)).view(-1, shape[0], 3, *shape[1:])  # (L*B, T, 3, H, D)
        queries, keys, values = (part.transpose(1, 2) for part in heads.unbind(2))  # (L*B, H, T, D)
        if rotation is not None:
            queries, keys = _rotate(queries, rotation), _rotate(keys, rotation)
        mixed = _attention(queries, keys, values, past)
        x = x + self.mix.forward(mixed.transpose(1, 2).reshape(x.shape))
        # The exact GELU (arXiv:1606.08415, eq. 2): on a CPU twice as fast as GPT-2's tanh form.
        hidden = functional.gelu(self.expand.forward(_norm(x)))
        return x + self.reduce.forward(hidden)


class _Past(NamedTuple):
    """One block's part of the memory."""

    keys: Tensor  # (L * B, H, S, D)
    values: Tensor
    num_steps: int


def _norm(x: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:])


def _attention(queries: Tensor, keys: Tensor, values: Tensor, past: _Past | None) -> Tensor:
    """Return (L*B, H, T, D): each step attends to itself and all before it, and to the past."""
    attend = functional.scaled_dot_product_attention
    if past is None:
        return attend(queries, keys, values, is_causal=True)
    begin, num_new = past.num_steps, queries.shape[2]
    end = begin + num_new
    past.keys[:, :, begin:end] = keys
    past.values[:, :, begin:end] = values
    # The cast is none, unless the cache was made outside of autocast.
    keys, values = (cache[:, :, :end].to(queries.dtype) for cache in (past.keys, past.values))
    if num_new == 1:
        return attend(queries, keys, values)
    visible = torch.ones(num_new, end, dtype=torch.bool, device=queries.device).tril_(begin)
    return attend(queries, keys, values, attn_mask=visible)


def _rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn each pair of numbers of ``x`` (L*B, H, T, D) by its step's angle.

    ``rotation`` (2, T, D/2) holds cosines and sines (arXiv:2104.09864, eq. 34, with the pairs
    (i, i + D/2)), so that a query and a key multiply to a function of their distance.
    """
    cosine, sine = rotation
    first, second = x.chunk(2, -1)
    turned = (first * cosine - second * sine, second * cosine + first * sine)
    return torch.cat(turned, -1).to(x.dtype)


class Transformer(SequenceTrunk):
    """Token embedding, blocks and a last norm; a stage is a block."""

    outlives_rollout: ClassVar[bool] = False

    def __init__(
        self,
        embedding: LaneEmbedding,
        positions: LaneEmbedding | None,
        blocks: list[_Block],
        num_heads: int,
    ) -> None:
        """Apply ``blocks`` in order; without ``positions`` (L, longest sequence, F) use rotary."""
        super().__init__()
        self.embedding, self.positions = embedding, positions
        self.blocks = nn.ModuleList(blocks)
        self._stages = list(blocks)  # faster to iterate than a ModuleList
        self.num_stages = len(blocks)
        self.num_lanes, _, self.num_features = embedding.weight.shape
        self.num_heads, self.head_size = num_heads, self.num_features // num_heads

    def segment_borders(self) -> list[int]:
        """Return a border after each block, which stores over ten times the size of its output."""
        return list(range(self.num_stages + 1))

    def run_stages(self, x: Tensor, begin: int, end: int) -> Tensor:
        """Apply blocks ``begin`` to ``end`` to (L, B, T, F), or to tokens (L, B, T, 1) at first."""
        if begin == 0:
            x = self._embed(x, 0)
        x = self._run(x, begin, end, None)
        return _norm(x) if end == self.num_stages else x

    def empty_memory(self, num_sequences: int, num_steps: int) -> KeysAndValues:
        """Allocate keys and values for ``num_steps``, in autocast's type where it is enabled."""
        weight, dtype = self.embedding.weight, self.embedding.weight.dtype
        if torch.is_autocast_enabled(weight.device.type):
            dtype = torch.get_autocast_dtype(weight.device.type)
        sizes = (self.num_lanes * num_sequences, self.num_heads, num_steps, self.head_size)
        return KeysAndValues(weight.new_empty(self.num_stages, 2, *sizes, dtype=dtype), 0)

    def read(
        self,
        observations: Tensor,
        starts: Tensor | None,  # noqa: ARG002 - a sequence is one episode
        memory: Memory | None,
    ) -> tuple[Tensor, Memory | None]:
        """Read tokens (L, B, T, 1); a memory is filled in place, and returned with its new end."""
        if memory is None:
            return self(observations), None
        cache, num_steps = KeysAndValues(*memory)
        x = self._run(self._embed(observations, num_steps), 0, self.num_stages, memory)
        return _norm(x), KeysAndValues(cache, num_steps + observations.shape[2])

    def _embed(self, tokens: Tensor, begin: int) -> Tensor:
        x = self.embedding.forward(tokens.squeeze(-1))
        if self.positions is None:
            return x
        end = begin + tokens.shape[2]
        assert end <= self.positions.weight.shape[1], "more steps than learned positions"
        return x + self.positions.weight[:, None, begin:end]

    def _run(self, x: Tensor, begin: int, end: int, memory: Memory | None) -> Tensor:
        cache, num_steps = KeysAndValues(*memory) if memory is not None else (None, 0)
        shape = (x.shape[2], self.num_heads, self.head_size)
        rotation = self._rotation(num_steps, x.shape[2]) if self.positions is None else None
        rows = x.flatten(1, 2)  # (L, R, F)
        for i in range(begin, end):
            past = None if cache is None else _Past(cache[i, 0], cache[i, 1], num_steps)
            rows = self._stages[i].forward(rows, shape, rotation, past)
        return rows.view(x.shape)

    def _rotation(self, begin: int, num_steps: int) -> Tensor:
        """Return cosines and sines (2, T, D/2) of step * base^(-2 i / D)."""
        weight = self.embedding.weight
        arange = partial(torch.arange, device=weight.device, dtype=weight.dtype)
        exponents = arange(0, self.head_size, 2) / self.head_size
        steps = arange(begin, begin + num_steps).view(-1, 1)
        angles = steps * torch.exp(exponents * -math.log(_ROTARY_BASE))
        return torch.stack((angles.cos(), angles.sin()))


@dataclass(kw_only=True)
class TransformerConfig(NetworkConfig):
    """Options of a causal transformer.

    Example:
        >>> from ppo_lab.envs.base import DiscreteActions
        >>> spec = EnvSpec(1, DiscreteActions(41), num_tokens=41)
        >>> config = TransformerConfig(depth=2, width=64, num_heads=4)
        >>> config.num_trunk_parameters(spec)  # 41 * 64 + 2 * (12 * 64 * 64 + 9 * 64)
        102080
    """

    reads_sequences: ClassVar[bool] = True

    init: Initialization = Initialization.normal
    """normal: GPT-2's; see the other kinds at network=small."""
    depth: int = 2
    """Number of blocks."""
    width: int = 64
    """Numbers per token between the blocks; a multiple of ``num_heads``."""
    num_heads: int = 4
    """Attention heads, of width / num_heads numbers each: 16 in small models, 64 to 128 in large
    ones."""
    mlp_ratio: int = 4
    """Width of the hidden layer of each block's MLP, as a multiple of ``width``; 4 is usual."""
    max_length: int = 1024
    """Most steps of a sequence; with learned positions, each is ``width`` parameters."""
    positions: Positions = Positions.rotary
    """rotary: no parameters, and depends on distances only; learned: a vector per position, added
    to the token's, somewhat faster in small models."""

    def check(self) -> None:
        """Raise ``ConfigError`` unless sizes are positive and the heads divide the width."""
        for name in ("depth", "width", "num_heads", "mlp_ratio", "max_length"):
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"network.{name}", value, "must be >= 1")
        if self.width % self.num_heads:
            allowed = f"must divide network.width={self.width}"
            raise ConfigError("network.num_heads", self.num_heads, allowed)
        if self.positions is Positions.rotary and self.width // self.num_heads % 2:
            allowed = f"must divide network.width={self.width} into even parts (rotary positions)"
            raise ConfigError("network.num_heads", self.num_heads, allowed)

    def check_env(self, spec: EnvSpec) -> None:
        """Raise ``ConfigError`` unless observations are tokens, and episodes short enough."""
        if spec.num_tokens is None:
            allowed = "reads tokens, not numbers: choose a perceptron, such as network=small"
            raise ConfigError("network", type(self).__name__, allowed)
        if spec.max_episode_steps is not None:
            self.check_num_steps(spec.max_episode_steps)

    def check_num_steps(self, num_steps: int) -> None:
        """Raise ``ConfigError`` if a sequence of ``num_steps`` is too long."""
        if num_steps > self.max_length:
            allowed = f"must be >= {num_steps}, the steps of a sequence"
            raise ConfigError("network.max_length", self.max_length, allowed)

    def build_trunk(self, spec: EnvSpec, initializer: Initializer) -> Transformer:
        """Return the trunk with new weights."""
        assert spec.num_tokens is not None
        embedding = LaneEmbedding(initializer.normal(spec.num_tokens, self.width, NORMAL_STD))
        positions = None
        if self.positions is Positions.learned:
            positions = LaneEmbedding(initializer.normal(self.max_length, self.width, NORMAL_STD))
        blocks = [self._block(initializer) for _ in range(self.depth)]
        return Transformer(embedding, positions, blocks, self.num_heads)

    def num_trunk_parameters(self, spec: EnvSpec) -> int:
        """Return the number of weights and biases."""
        assert spec.num_tokens is not None
        rows = spec.num_tokens + (self.max_length if self.positions is Positions.learned else 0)
        weights = (4 + 2 * self.mlp_ratio) * self.width**2
        biases = (5 + self.mlp_ratio) * self.width
        return rows * self.width + self.depth * (weights + biases)

    def _block(self, initializer: Initializer) -> _Block:
        width, hidden = self.width, self.mlp_ratio * self.width
        residual = 1.0 / math.sqrt(2.0 * self.depth)  # outputs of 2 * depth layers are added up
        return _Block(
            self.linear(initializer, width, 3 * width, gain=1.0),
            self.linear(initializer, width, width, gain=residual),
            self.linear(initializer, width, hidden, gain=1.0),
            self.linear(initializer, hidden, width, gain=residual),
        )

"""What one forward and backward pass through multilayer perceptrons holds, layer by layer.

Counted in units (numbers per row) and parameters, so that it is plain arithmetic. What is kept
follows from the derivatives: a nonlinearity needs its output, a product its input and its weights.

Layers count from 1 to n; a head follows the last. H_i is the width of layer i, H_0 the observation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

__all__ = [
    "Layer",
    "NetworkShape",
    "PassMoment",
    "largest_copy",
    "network_shapes",
    "pass_moments",
    "tensor_sizes",
]

_BUCKET = 1 << 22  # optimizer.py, _BUCKET_SIZE


class Layer(NamedTuple):
    """A linear layer."""

    num_inputs: int
    num_outputs: int

    @property
    def num_weights(self) -> int:
        """Without biases."""
        return self.num_inputs * self.num_outputs

    @property
    def num_parameters(self) -> int:
        """With biases."""
        return self.num_weights + self.num_outputs


@dataclass(frozen=True)
class NetworkShape:
    """A trunk with the heads on it, of one network that a loss trains."""

    name: str
    trunk: tuple[Layer, ...]
    heads: tuple[Layer, ...]
    num_free: int
    """Parameters that are no layer's: a policy's deviations."""
    is_checkpointed: bool

    @property
    def num_parameters(self) -> int:
        """All of them."""
        return sum(layer.num_parameters for layer in (*self.trunk, *self.heads)) + self.num_free

    @property
    def num_weights(self) -> int:
        """Those of the layers, without biases."""
        return sum(layer.num_weights for layer in (*self.trunk, *self.heads))

    def kept(self, layer: int) -> int:
        """Return the units kept when the backward pass stands before ``layer``.

        Checkpointed, those of its own segment, and of the segments before it the last outputs.
        """
        begin = self._segment_begin(layer)
        borders = [i for i in range(1, begin + 1) if i % self._segment_size == 0]
        return sum(self.width(i) for i in (*borders, *range(begin + 1, layer + 1)))

    def cast_weights(self, layer: int) -> int:
        """Return the weights whose autocast copies products up to ``layer`` still need.

        The first layer's are not needed: nobody asks for the observation's gradient.
        """
        first = max(self._segment_begin(layer), 1)
        return sum(self.trunk[i].num_weights for i in range(first, layer))

    @property
    def head_weights(self) -> int:
        """Those of the heads."""
        return sum(head.num_weights for head in self.heads)

    def width(self, layer: int) -> int:
        """Return H_i, 0 for an observation: it has no gradient, and is counted by itself."""
        return self.trunk[layer - 1].num_outputs if layer else 0

    @property
    def _segment_size(self) -> int:
        """As Trunk.segment_borders: about the root of the layers."""
        num_layers = len(self.trunk)
        return math.ceil(math.sqrt(num_layers)) if self.is_checkpointed else num_layers

    def _segment_begin(self, layer: int) -> int:
        return max(layer - 1, 0) // self._segment_size * self._segment_size


class PassMoment(NamedTuple):
    """What a moment of the pass holds."""

    name: str
    num_kept: int
    """Units that the backward pass waits for."""
    num_in_use: int
    """Units that an operation reads or writes beside them."""
    num_gradients: int
    """Parameters whose gradients exist."""
    num_cast: int
    """Weights, or gradients of weights, that exist in autocast's type."""
    has_begun: bool
    """Whether the backward pass has: then nobody holds the observations but who needs them."""


def pass_moments(
    networks: Sequence[NetworkShape], *, is_mixed: bool, has_gradients: bool
) -> Iterator[PassMoment]:
    """Yield every moment that can be the largest, of ``networks`` in the forward pass's order.

    The backward pass takes the last network first. ``has_gradients``: those of an earlier
    micro-batch are there from the beginning. ``is_mixed``: computed under autocast.
    """
    num_trained = sum(network.num_parameters for network in networks)
    for index, network in enumerate(networks):
        last = len(network.trunk)
        waiting = networks[:index]
        kept = sum(other.kept(len(other.trunk)) for other in waiting)
        cast = sum(other.cast_weights(len(other.trunk)) + other.head_weights for other in waiting)
        # The last layer's sum beside its output; autocast keeps every copy until the network ends.
        yield PassMoment(
            f"forward, {network.name}",
            kept + network.kept(last),
            network.width(last),
            num_trained if has_gradients else 0,
            (cast + network.num_weights) * is_mixed,
            has_begun=False,
        )
        gradients = sum(other.num_parameters for other in networks[index + 1 :]) + network.num_free
        gradients += sum(head.num_parameters for head in network.heads)
        # Two gradients of the features, and their sum: a place of its own where a dispatch mode
        # watches, as a ledger is; else autograd adds in place, and a third less is in use.
        if len(network.heads) > 1:
            yield PassMoment(
                f"backward, the {network.name}'s heads",
                kept + network.kept(last),
                3 * network.width(last),
                num_trained if has_gradients else gradients,
                (cast + network.cast_weights(last)) * is_mixed,
                has_begun=True,
            )
        for layer in range(last, 0, -1):
            there = num_trained if has_gradients else gradients
            for moment in _backward(network, layer, is_mixed=is_mixed):
                yield moment._replace(
                    num_kept=kept + moment.num_kept,
                    num_gradients=there + moment.num_gradients,
                    num_cast=(cast + moment.num_cast) * is_mixed,
                )
            gradients += network.trunk[layer - 1].num_parameters


def _backward(network: NetworkShape, layer: int, *, is_mixed: bool) -> Iterator[PassMoment]:
    """Yield what ``layer`` holds of its own network in its part of the backward pass."""
    width, width_before = network.width(layer), network.width(layer - 1)
    trained = network.trunk[layer - 1]
    name = f"backward, {network.name}'s layer {layer}"
    # The nonlinearity reads its output's gradient and writes its input's.
    cast = network.cast_weights(layer)
    yield PassMoment(name, network.kept(layer), 2 * width, 0, cast, has_begun=True)
    # The product reads that, and writes gradients of its weights and of its own input.
    kept = network.kept(layer) - width  # the segment before is not computed again yet
    in_use = width + width_before
    new = 0 if is_mixed else trained.num_parameters
    new_cast = trained.num_parameters if is_mixed else 0
    yield PassMoment(name, kept, in_use, new, cast + new_cast, has_begun=True)
    if is_mixed:  # the weights' gradient is cast back, when the product's operands are gone
        before = cast - trained.num_weights * (cast > 0)
        yield PassMoment(
            name,
            kept,
            width_before,
            trained.num_parameters,
            before + new_cast,
            has_begun=True,
        )


def network_shapes(
    sizes: Sequence[int],
    num_actions: int,
    *,
    has_free_std: bool,
    shares_trunk: bool,
    is_checkpointed: bool,
) -> list[NetworkShape]:
    """Return actor and critic, or the trunk with both heads; ``sizes`` are H_0 to H_n."""
    trunk = tuple(Layer(before, after) for before, after in pairwise(sizes))
    policy, value = (Layer(sizes[-1], width) for width in (num_actions, 1))
    num_free = num_actions if has_free_std else 0
    if shares_trunk:
        return [NetworkShape("trunk", trunk, (policy, value), num_free, is_checkpointed)]
    return [
        NetworkShape("actor", trunk, (policy,), num_free, is_checkpointed),
        NetworkShape("critic", trunk, (value,), 0, is_checkpointed),
    ]


def tensor_sizes(layers: Sequence[Layer]) -> list[int]:
    """Return the sizes of each layer's weights and biases."""
    return [size for layer in layers for size in (layer.num_weights, layer.num_outputs)]


def largest_copy(sizes: Sequence[int]) -> int:
    """Return the most elements that optimizer.py's buckets copy side by side at a time.

    A bucket is a run of tensors; one of a single tensor copies nothing.
    """
    runs: list[list[int]] = []
    room = 0
    for size in sizes:
        if not runs or size > room:
            runs.append([])
            room = _BUCKET
        runs[-1].append(size)
        room -= size
    return max((sum(run) for run in runs if len(run) > 1), default=0)

"""Modules of another library as a network of one lane: what is trained gets a lane axis.

Optimizers, checkpoints and records expect parameters (L, …); a module of transformers has none. So
what is trained is kept in parameters (1, …), and before each pass the module's own attributes are
set to views of them, through which gradients flow. What is not trained becomes a buffer.

``torch.nn.utils.parametrize`` would do that at each access, with a class for each tensor;
``torch.func.functional_call`` takes the views away after the pass, before a backward pass that
recomputes activations needs them. Low-rank adapters are our own for the same reason: those of peft
are 2-d parameters too, drawn from torch's global generator, and one adapter at a time is trainable.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from ppo_lab.networks.layers import LaneLinear

__all__ = ["Bound", "BoundHead", "LowRank", "Slot", "freeze", "replaying", "take_parameters"]


class Slot(NamedTuple):
    """An attribute of a module that is set to a view of a parameter."""

    module: nn.Module
    attribute: str
    key: str  # of the parameter


class Bound(nn.Module):
    """A module, and the parameters (1, …) that it is given views of in each pass.

    A deep copy has parameters of its own; it shares the module if that is frozen.
    """

    def __init__(
        self,
        module: nn.Module,
        slots: Iterable[Slot],
        parameters: Mapping[str, nn.Parameter],
        *,
        frozen: nn.Module | None = None,
        lender: Bound | None = None,
    ) -> None:
        """Set ``slots`` before each pass of ``module``; those without a parameter to None.

        A key that ``parameters`` lack may be one of ``lender``: tied weights belong to one module.
        ``frozen`` is the whole model if it may be shared, as it keeps nothing between passes.
        """
        super().__init__()
        self.module, self._slots = module, list(slots)
        self._frozen, self._lender = (frozen,), (lender,)  # in tuples: no parts of this module
        for key, parameter in parameters.items():
            self.register_parameter(key, parameter)

    def forward(self, *inputs: object, **options: object) -> Any:  # noqa: ANN401 - the module's
        """Return what the module does."""
        return self.bind()(*inputs, **options)

    def bind(self) -> nn.Module:
        """Return the module, with attributes set to views of the parameters as they are now."""
        for module, attribute, key in self._slots:
            parameter = self._find(key)
            setattr(module, attribute, None if parameter is None else parameter[0])
        return self.module

    def _find(self, key: str) -> nn.Parameter | None:
        (lender,) = self._lender
        own = self._parameters.get(key)
        return own if own is not None or lender is None else lender._find(key)

    def __deepcopy__(self, memo: dict[int, Any]) -> Bound:
        (frozen,) = self._frozen
        if frozen is not None:
            memo |= {id(part): part for part in frozen.modules()}
        for module, attribute, _ in self._slots:  # torch copies no results of operations
            setattr(module, attribute, None)
        new = memo[id(self)] = type(self).__new__(type(self))
        new.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return new


class BoundHead(LaneLinear):
    """The layer of a language model that maps features to logits, as the head of a policy."""

    def __init__(self, bound: Bound, num_actions: int) -> None:
        """Use a linear layer, and of its outputs the first ``num_actions``."""
        nn.Module.__init__(self)
        self.bound, self._num_actions = bound, num_actions

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weights (1, F, V), with one column for each action."""
        weight: Tensor = self.bound.bind().weight  # type: ignore[assignment]
        return weight[: self._num_actions].mT.unsqueeze(0)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (1, R, V) for features ``x`` (1, R, F)."""
        layer = self.bound.bind()
        weight: Tensor = layer.weight  # type: ignore[assignment]
        bias: Tensor | None = getattr(layer, "bias", None)
        if bias is not None:
            bias = bias[: self._num_actions]
        return functional.linear(x.to(weight.dtype), weight[: self._num_actions], bias)


def take_parameters(
    module: nn.Module, taken: dict[int, str], prefix: str = ""
) -> tuple[list[Slot], dict[str, nn.Parameter]]:
    """Remove all parameters of ``module``; return its slots, and parameters (1, …) of their data.

    ``taken`` maps the id of every tensor met so far to its key, so tied ones are taken once.
    """
    slots: list[Slot] = []
    parameters: dict[str, nn.Parameter] = {}
    for name, parameter in list(module.named_parameters(prefix, remove_duplicate=False)):
        if id(parameter) not in taken:
            key = taken[id(parameter)] = name.replace(".", "/")
            parameters[key] = nn.Parameter(parameter.detach().unsqueeze(0))
        owner, attribute = _owner(module, name, prefix)
        delattr(owner, attribute)
        slots.append(Slot(owner, attribute, taken[id(parameter)]))
    _forget_buffers(module)
    return slots, parameters


def freeze(module: nn.Module) -> None:
    """Make buffers of all parameters of ``module``."""
    for name, parameter in list(module.named_parameters(remove_duplicate=False)):
        owner, attribute = _owner(module, name)
        delattr(owner, attribute)
        owner.register_buffer(attribute, parameter.detach())
    _forget_buffers(module)


def _owner(module: nn.Module, name: str, prefix: str = "") -> tuple[nn.Module, str]:
    path, _, attribute = name.removeprefix(f"{prefix}.").rpartition(".")
    return module.get_submodule(path), attribute


def _forget_buffers(module: nn.Module) -> None:
    """Leave all buffers out of checkpoints: they are in the folder that was read."""
    for part in module.modules():
        for name, buffer in list(part.named_buffers(recurse=False)):
            part.register_buffer(name, buffer, persistent=False)


class LowRank(nn.Module):
    """A frozen linear layer plus a product of two small matrices (arXiv:2106.09685, eq. 3).

    I = inputs, O = outputs, r = rank.
    """

    down: Tensor | None  # (I, r): a slot
    up: Tensor | None  # (r, O): a slot

    def __init__(self, base: nn.Module, scale: float) -> None:
        """Add to ``base``; its weight is (O, I) as torch's, else (I, O) as that of GPT-2."""
        super().__init__()
        self.base, self._scale = base, scale
        self.down = self.up = None
        self._is_transposed = isinstance(base, nn.Linear)

    @property
    def size(self) -> tuple[int, int]:
        """I and O."""
        weight: Tensor = self.base.weight  # type: ignore[assignment]
        shape = weight.shape
        return (shape[1], shape[0]) if self._is_transposed else (shape[0], shape[1])

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output; without adapters, that of the frozen one."""
        y: Tensor = self.base(x)
        if self.down is None or self.up is None:
            return y
        low = x.to(self.down.dtype) @ self.down
        return y + (low @ self.up * self._scale).to(y.dtype)

    def merged(self) -> Tensor:
        """Return the one weight that has the same effect."""
        weight: Tensor = self.base.weight  # type: ignore[assignment]
        if self.down is None or self.up is None:
            return weight
        update = self.down @ self.up * self._scale
        update = update.mT if self._is_transposed else update
        return (weight.to(update.dtype) + update).to(weight.dtype)


def replaying(
    adapted: Sequence[LowRank],
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return contexts for a pass and for its repetition, which sees the same adapters.

    Between the two, another network may have set its own.
    """
    return nullcontext(), _matrices_set(adapted, [(layer.down, layer.up) for layer in adapted])


@contextmanager
def _matrices_set(
    adapted: Sequence[LowRank], matrices: Sequence[tuple[Tensor | None, Tensor | None]]
) -> Iterator[None]:
    before = [(layer.down, layer.up) for layer in adapted]
    try:
        for layer, pair in zip(adapted, matrices):
            layer.down, layer.up = pair
        yield
    finally:
        for layer, pair in zip(adapted, before):
            layer.down, layer.up = pair

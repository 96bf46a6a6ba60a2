"""A pretrained language model of Hugging Face's transformers, read from a folder.

Fully trained, actor and critic are two copies of it. With low-rank adapters (LoRA,
arXiv:2106.09685) they are two sets of adapters on one frozen model, as is the reference.

Shapes: B = sequences, T = steps read, F = features, V = tokens. There is one lane.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ppo_lab.envs.base import DiscreteActions, EnvSpec
from ppo_lab.networks.base import NetworkConfig, Trunk
from ppo_lab.networks.bound import (
    Bound,
    BoundHead,
    LowRank,
    Slot,
    freeze,
    replaying,
    take_parameters,
)
from ppo_lab.networks.hf_files import check_folder, dry_mode, load, read_config, save
from ppo_lab.networks.layers import Initializer, LaneLinear
from ppo_lab.networks.sequences import Memory, SequenceTrunk
from ppo_lab.utils.errors import ConfigError, check_number

__all__ = ["BaseDtype", "HfConfig", "HfTrunk"]

_FROZEN: WeakValueDictionary[Hashable, Any] = WeakValueDictionary()  # models that exist
_LINEAR = ("Linear", "Conv1D")  # torch's, and transformers' for GPT-2


class BaseDtype(Enum):
    """Type of the frozen weights below adapters."""

    auto = "auto"  # that of all other weights
    float32 = "float32"
    bfloat16 = "bfloat16"


class HfTrunk(SequenceTrunk):
    """The part of a language model below its last layer; a stage is one of its blocks."""

    outlives_rollout: ClassVar[bool] = False

    def __init__(self, bound: Bound, config: Any, dtype: torch.dtype) -> None:  # noqa: ANN401
        """Run ``bound``, a module with this ``config``; features are ``dtype``."""
        super().__init__()
        self.bound, self._config, self._dtype = bound, config, dtype
        self.num_features, self.num_stages = config.hidden_size, config.num_hidden_layers
        self._adapted = [part for part in bound.module.modules() if isinstance(part, LowRank)]
        self._is_checkpointing = False
        self.head: list[BoundHead] = []  # in a list: it is a part of the model above, not of this

    def take_head(self) -> BoundHead:
        """Hand over the layer that follows; once."""
        return self.head.pop()

    def run_stages(self, x: Tensor, begin: int, end: int) -> Tensor:
        """Return the features (1, B, T, F) of tokens (1, B, T, 1); the blocks run together."""
        assert (begin, end) == (0, self.num_stages)
        return self._run(x, use_cache=False)

    def segment_borders(self) -> list[int]:
        """Return a border after each block: that is what transformers recomputes."""
        return list(range(self.num_stages + 1))

    def forward(self, observations: Tensor) -> Tensor:
        """Return the features (1, B, T, F) of whole sequences of tokens (1, B, T, 1)."""
        if self.checkpoints_activations is not self._is_checkpointing:
            self._checkpoint_blocks()
        return self.run_stages(observations, 0, self.num_stages)

    def empty_memory(self, num_sequences: int, num_steps: int) -> Memory:  # noqa: ARG002
        """Return a cache of keys and values, which grows with each step."""
        from transformers import DynamicCache

        return (DynamicCache(config=self._config),)

    def read(
        self,
        observations: Tensor,
        starts: Tensor | None,  # noqa: ARG002 - a sequence is one episode
        memory: Memory | None,
    ) -> tuple[Tensor, Memory | None]:
        """Read tokens (1, B, T, 1); a memory is filled in place."""
        if memory is None:
            return self(observations), None
        return self._run(observations, cache=memory[0], use_cache=True), memory

    def _run(self, tokens: Tensor, **options: object) -> Tensor:
        output = self.bound(input_ids=tokens[0, ..., 0], **options)
        hidden: Tensor = output.last_hidden_state
        return hidden.to(self._dtype).unsqueeze(0)

    def _checkpoint_blocks(self) -> None:
        """Let the backward pass recompute each block."""
        again = partial(replaying, self._adapted)
        run = partial(checkpoint, use_reentrant=False, preserve_rng_state=False, context_fn=again)
        for part in self.bound.module.modules():
            if hasattr(part, "gradient_checkpointing"):
                part.gradient_checkpointing = True  # type: ignore[assignment]
                part._gradient_checkpointing_func = run  # type: ignore[assignment]
        self.bound.module.train()  # transformers recomputes only then; there is no dropout
        self._is_checkpointing = True


@dataclass(kw_only=True)
class HfConfig(NetworkConfig):
    """Options of a pretrained language model."""

    max_lanes: ClassVar[int | None] = 1
    reads_sequences: ClassVar[bool] = True
    is_pretrained: ClassVar[bool] = True

    path: str = ""
    """Folder of a causal language model, as transformers' save_pretrained writes it: config.json
    and weights as safetensors. Nothing is downloaded, and none of its code runs."""
    lora_rank: int = 0
    """Rank of the adapters; 0 trains all weights. 8 to 64 is usual: more trains more parameters,
    and a smaller model of the difference is all that a reward needs."""
    lora_alpha: float = 32.0
    """Adapters are multiplied by lora_alpha / lora_rank; larger is like a larger learning rate."""
    lora_targets: list[str] = field(default_factory=list)
    """Last part of the names of the layers that get adapters, such as [q_proj, v_proj]; empty for
    all linear layers (arXiv:2305.14314, section 4: these are needed to match full training)."""
    base_dtype: BaseDtype = BaseDtype.auto
    """Type of the frozen weights below adapters: bfloat16 takes half of float32's memory."""

    def check(self) -> None:
        """Raise ``ConfigError`` unless the folder holds a checkpoint and options are usable."""
        if importlib.util.find_spec("transformers") is None:
            raise ConfigError("network", "hf", "needs pip install 'ppo_lab[text]'")
        check_folder(self.path)
        if self.lora_rank < 0:
            raise ConfigError("network.lora_rank", self.lora_rank, "must be >= 0; 0 for none")
        check_number("network.lora_alpha", self.lora_alpha, above=0.0)
        if self.lora_rank == 0 and self.base_dtype is not BaseDtype.auto:
            allowed = "needs adapters: set network.lora_rank, or dtype for all weights"
            raise ConfigError("network.base_dtype", self.base_dtype.value, allowed)

    def check_env(self, spec: EnvSpec) -> None:
        """Raise ``ConfigError`` unless the model can read all tokens of an episode."""
        if spec.num_tokens is None:
            raise ConfigError("network", "hf", "reads tokens, not numbers: choose network=small")
        config = read_config(self.path)
        if spec.num_tokens > config.vocab_size:
            allowed = f"knows {config.vocab_size:,} tokens, the environment has {spec.num_tokens:,}"
            raise ConfigError("network.path", self.path, allowed)
        if spec.max_episode_steps is not None:
            self.check_num_steps(spec.max_episode_steps)

    def check_num_steps(self, num_steps: int) -> None:
        """Raise ``ConfigError`` if a sequence of ``num_steps`` is too long."""
        longest = getattr(read_config(self.path), "max_position_embeddings", None)
        if longest is not None and num_steps > longest:
            allowed = f"reads up to {longest:,} tokens, episodes have up to {num_steps:,}"
            raise ConfigError("network.path", self.path, allowed)

    def build_trunk(self, spec: EnvSpec, initializer: Initializer) -> HfTrunk:
        """Return one trunk."""
        return self.build_trunks(spec, initializer, 1)[0]

    def build_trunks(self, spec: EnvSpec, initializer: Initializer, number: int) -> list[HfTrunk]:
        """Return trunks with the folder's weights; adapters start without effect."""
        assert initializer.num_lanes == 1, "network=hf has one lane"
        build = self._trained if self.lora_rank == 0 else self._adapted
        return build(spec, initializer, number)

    def build_policy_head(
        self,
        trunk: Trunk,
        initializer: Initializer,  # noqa: ARG002 - its weights are in the folder
        num_parameters: int,  # noqa: ARG002 - one for each of the environment's tokens
    ) -> LaneLinear:
        """Return the model's own last layer, whose weights may be those of its embedding."""
        assert isinstance(trunk, HfTrunk)
        return trunk.take_head()

    def num_trunk_parameters(self, spec: EnvSpec) -> int:
        """Return the number of trained parameters; those of a frozen model are not among them."""
        changed = (Path(self.path) / "config.json").stat().st_mtime_ns
        return _count(self.path, self.lora_rank, tuple(self.lora_targets), spec, changed)

    def export(self, actor: Trunk, policy_head: LaneLinear, folder: Path) -> None:
        """Save the policy as a folder that transformers loads, with the tokenizer's files.

        Adapters are merged into the weights.
        """
        assert isinstance(actor, HfTrunk)
        assert isinstance(policy_head, BoundHead)
        body, head = actor.bound.bind(), policy_head.bound.bind()
        save(self.path, lambda name: _weight(body, name), lambda name: _weight(head, name), folder)

    def _trained(self, spec: EnvSpec, initializer: Initializer, number: int) -> list[HfTrunk]:
        trunks: list[HfTrunk] = []
        for _ in range(number):
            model = load(self.path, initializer.dtype, initializer.device)
            keys: dict[int, str] = {}
            body, head = model.base_model, model.get_output_embeddings()
            bound = Bound(body, *take_parameters(body, keys))
            trunk = HfTrunk(bound, model.config, initializer.dtype)
            if not trunks:
                taken = take_parameters(head, keys, "head")
                bound_head = Bound(head, *taken, lender=bound)
                trunk.head = [BoundHead(bound_head, _num_actions(spec))]
            trunks.append(trunk)
        return trunks

    def _adapted(self, spec: EnvSpec, initializer: Initializer, number: int) -> list[HfTrunk]:
        base_dtype = initializer.dtype
        if self.base_dtype is not BaseDtype.auto:
            base_dtype = getattr(torch, self.base_dtype.value)
        model = self._frozen(base_dtype, initializer.device)
        body, head = model.base_model, model.get_output_embeddings()
        adapted = ((n, m) for n, m in body.named_modules() if isinstance(m, LowRank))
        layers = {name.replace(".", "/"): layer for name, layer in adapted}
        slots = [
            Slot(layer, attribute, f"{name}/{attribute}")
            for name, layer in layers.items()
            for attribute in ("down", "up")
        ]
        trunks: list[HfTrunk] = []
        for _ in range(number):
            parameters: dict[str, nn.Parameter] = {}
            for name, layer in layers.items():
                num_inputs, num_outputs = layer.size
                down = initializer.uniform(num_inputs, self.lora_rank)
                parameters[f"{name}/down"] = nn.Parameter(down)
                up = down.new_zeros(1, self.lora_rank, num_outputs)
                parameters[f"{name}/up"] = nn.Parameter(up)
            bound = Bound(body, slots, parameters, frozen=model)
            trunks.append(HfTrunk(bound, model.config, initializer.dtype))
        frozen_head = Bound(head, [], {}, frozen=model)
        trunks[0].head = [BoundHead(frozen_head, _num_actions(spec))]
        return trunks

    def _frozen(self, dtype: torch.dtype, device: torch.device) -> Any:  # noqa: ANN401
        """Return the frozen model with places for adapters: one for all trunks that exist."""
        config_file = Path(self.path, "config.json").resolve()
        options = (self.lora_alpha / max(self.lora_rank, 1), *self.lora_targets)
        key = (config_file, config_file.stat().st_mtime_ns, options, dtype, device, dry_mode())
        model = _FROZEN.get(key)
        if model is None:
            model = load(self.path, dtype, device)
            freeze(model)
            self._add_adapters(model.base_model)
            _FROZEN[key] = model
        return model

    def _add_adapters(self, body: nn.Module) -> None:
        """Put adapters around the layers to train."""
        linear = {n: m for n, m in body.named_modules() if type(m).__name__ in _LINEAR}
        names = sorted({name.rpartition(".")[2] for name in linear})
        targets = self.lora_targets or names
        if unknown := [target for target in targets if target not in names]:
            allowed = f"{unknown[0]} is no linear layer; there are {', '.join(names)}"
            raise ConfigError("network.lora_targets", self.lora_targets, allowed)
        for name, module in linear.items():
            path, _, last = name.rpartition(".")
            if last in targets:
                layer = LowRank(module, self.lora_alpha / self.lora_rank)
                setattr(body.get_submodule(path), last, layer)


def _num_actions(spec: EnvSpec) -> int:
    assert isinstance(spec.actions, DiscreteActions)
    return spec.actions.num_actions


def _weight(module: nn.Module, name: str) -> Tensor:
    """Return a tensor of ``module`` by its name before adapters were added."""
    path, _, attribute = name.rpartition(".")
    owner = module.get_submodule(path)
    if not isinstance(owner, LowRank):
        return getattr(owner, attribute).detach()
    return (owner.merged() if attribute == "weight" else getattr(owner.base, attribute)).detach()


@functools.cache
def _count(path: str, rank: int, targets: tuple[str, ...], spec: EnvSpec, _changed: int) -> int:
    """Return the number of trained parameters of a trunk, from shapes alone."""
    network = HfConfig(path=path, lora_rank=rank, lora_targets=list(targets))
    shapes = Initializer(torch.zeros(1, dtype=torch.int64), torch.device("meta"), torch.float32)
    return sum(p.numel() for p in network.build_trunk(spec, shapes).parameters())

"""Folders of pretrained language models: how transformers reads and writes them.

Nothing is downloaded, no code of a folder runs, and transformers is imported when it is needed: it
takes seconds.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ppo_lab.utils.errors import ConfigError

__all__ = ["check_folder", "dry_mode", "load", "read_config", "save"]

_LOCAL = {"local_files_only": True, "trust_remote_code": False}
_COPIED = (  # with a saved model: what reads and writes its texts
    "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json",
    "chat_template*", "*.model", "generation_config.json")  # fmt: skip


def check_folder(path: str) -> None:
    """Raise ``ConfigError`` unless ``path`` holds a config and weights that can hold no code."""
    if not path:
        allowed = "name the folder of a pretrained model: network.path=FOLDER"
        raise ConfigError("network.path", path, allowed)
    folder = Path(path)
    if not folder.is_dir():
        allowed = "there is no such folder; save one with model.save_pretrained(FOLDER)"
        raise ConfigError("network.path", path, allowed)
    if (folder / "adapter_config.json").exists():
        allowed = "holds adapters, not a model: merge them first (peft's merge_and_unload)"
        raise ConfigError("network.path", path, allowed)
    if not (folder / "config.json").is_file():
        raise ConfigError("network.path", path, "is no checkpoint: has no config.json")
    if not any(folder.glob("*.safetensors")):
        allowed = "has no weights as *.safetensors, and other formats can hold code"
        raise ConfigError("network.path", path, allowed)


def read_config(path: str) -> Any:  # noqa: ANN401 - transformers is optional
    """Return the model's config, without dropout: it would change the policy's probabilities."""
    check_folder(path)
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(path, **_LOCAL)
    except Exception as error:  # whatever the kinds of models raise
        raise _unreadable(path, error) from error
    for name, value in vars(config).items():
        if "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)
    if getattr(config, "quantization_config", None) is not None:
        raise ConfigError("network.path", path, "is quantized, which cannot be trained here")
    return config


def dry_mode() -> Any:  # noqa: ANN401 - private in torch
    """Return the mode of a dry run, whose tensors have no memory; None outside of one."""
    return getattr(torch.empty(0), "fake_mode", None)


def load(path: str, dtype: torch.dtype, device: torch.device) -> Any:  # noqa: ANN401 - the same
    """Return the model; from its shapes alone on the meta device, or for a dry run."""
    from transformers import AutoModelForCausalLM

    config = read_config(path)
    try:
        if device.type == "meta" or dry_mode() is not None:
            with torch.device(device):
                return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
        _hide_progress()
        model, found = AutoModelForCausalLM.from_pretrained(
            path,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            **_LOCAL,
        )
    except Exception as error:  # whatever the kinds of models and files raise
        raise _unreadable(path, error) from error
    if found["missing_keys"]:
        missing = ", ".join(sorted(found["missing_keys"])[:3])
        raise ConfigError("network.path", path, f"is no whole checkpoint: without {missing}")
    model = model.to(device).eval()
    _check_logits(path, model)
    return model


@torch.no_grad()
def _check_logits(path: str, model: Any) -> None:  # noqa: ANN401 - the same
    """Raise ``ConfigError`` unless the model is causal, with logits linear in its features."""
    tokens = torch.tensor([[0, 1]], device=model.device)
    features = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
    alone = model.base_model(input_ids=tokens[:, :1], use_cache=False).last_hidden_state
    logits = model(input_ids=tokens, use_cache=False).logits
    linear = model.get_output_embeddings()(features)
    if not torch.allclose(features[:, :1], alone, rtol=0.05, atol=0.05):
        raise ConfigError("network.path", path, "is no causal model: it sees later tokens")
    if not torch.allclose(logits, linear, rtol=1e-4, atol=1e-5):
        allowed = "has logits that are not linear in its last features, such as capped ones"
        raise ConfigError("network.path", path, allowed)


def _hide_progress() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()


def _unreadable(path: str, error: Exception) -> ConfigError:
    told = " ".join(str(error).split())[:300]
    return ConfigError("network.path", path, f"is no causal language model to read here: {told}")


def save(
    path: str,
    body: Callable[[str], Tensor],
    head: Callable[[str], Tensor],
    folder: Path,
) -> None:
    """Save a model of the kind in ``path`` to ``folder``, and copy the tokenizer's files.

    ``body`` and ``head`` return weights by their names in the model below its last layer, and in
    that layer.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path, **_LOCAL))
    prefix = f"{model.base_model_prefix}."
    state = {
        name: body(name.removeprefix(prefix))
        if name.startswith(prefix)
        else head(name.rpartition(".")[2])
        for name in model.state_dict()
    }
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    _hide_progress()
    model.save_pretrained(folder)
    for pattern in _COPIED:
        for file in Path(path).glob(pattern):
            shutil.copy(file, folder)

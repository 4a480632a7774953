"""LoRA adapters merged into the tensors of their base, tensor by tensor as they are read.

Source: Hu et al., "LoRA", arXiv 2106.09685; rank-stabilised scaling: Kalajdzievski, arXiv 2312.03732; file layout
and option names: PEFT.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from whisperkit_tools.checkpoint.tensors import (
    StoredTensor,
    TensorTable,
    read_json,
    read_safetensors,
    table_of_pickles,
)
from whisperkit_tools.errors import CheckpointError, option

_PREFIX = re.compile(r"^base_model\.model\.(model\.)?")
_PLAIN_PATTERN = re.compile(r"\^?(?:[A-Za-z0-9_.]|\\\.|\.\*)+\$?")
# Initialisations that also change the base's weights, so the adapter alone does not hold everything that was trained.
_BASE_CHANGING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter folder: its configuration, its weight files, and its tensors under PEFT's names without prefix."""

    config: dict[str, Any]
    files: tuple[Path, ...]
    tensors: TensorTable

    @property
    def base(self) -> str:
        """The checkpoint that it was trained on."""
        return str(self.config["base_model_name_or_path"])


def read_adapter(folder: Path, allow_pickle: bool, base: str | None = None) -> Adapter:
    """Read an adapter folder without its values.

    Args:
        folder: The folder.
        allow_pickle: Whether pickled weights are read.
        base: The checkpoint that it was trained on, instead of the one that it names.

    Raises:
        CheckpointError: It is malformed, lacks its weights, or cannot be merged.
    """
    file = folder / "adapter_config.json"
    config = read_json(file)
    if base is not None:
        config = {**config, "base_model_name_or_path": base}
    _check_config(file, config)
    if (stored := folder / "adapter_model.safetensors").is_file():
        table = read_safetensors((stored,))
    elif (stored := folder / "adapter_model.bin").is_file() and allow_pickle:
        table = table_of_pickles((stored,))
    else:
        hint = (
            f"set {option('allow_pickle', True)} to load adapter_model.bin"
            if stored.is_file()
            else "copy it beside the config"
        )
        raise CheckpointError(f"{folder} lacks adapter_model.safetensors; {hint}")
    return Adapter(config, (stored,), {_PREFIX.sub("", name): tensor for name, tensor in table.items()})


def _check_alphas(file: Path, config: dict[str, Any]) -> None:
    """Check the numbers by which the low-rank products are scaled, and the names of the modules that have their own."""
    alpha, patterns = config.get("lora_alpha", 8), config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise CheckpointError(
            f"{file}: alpha_pattern is {repr(patterns)[:80]}, expected an object of names and numbers"
        )
    for name, value in {"lora_alpha": alpha, **{f"alpha_pattern {key}": one for key, one in patterns.items()}}.items():
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise CheckpointError(f"{file}: {name[:80]} is {repr(value)[:80]}, expected a number")
    foreign = [key for key in patterns if not _PLAIN_PATTERN.fullmatch(key)]
    if foreign:
        raise CheckpointError(
            f"{file}: alpha_pattern has the regular expression {foreign[0][:80]!r}; its keys must be names of "
            "modules, with .* for anything; or merge it with PEFT's merge_and_unload() and give that folder"
        )


def _check_config(file: Path, config: dict[str, Any]) -> None:
    """Refuse the kinds of adapters that are not a plain sum of a low-rank product and the base."""
    if not isinstance(config.get("base_model_name_or_path"), str) or not config["base_model_name_or_path"]:
        raise CheckpointError(
            f"{file} does not name its base ('base_model_name_or_path'); name it with {option('base', 'FOLDER_OR_ID')}"
        )
    _check_alphas(file, config)
    if config.get("peft_type") != "LORA":
        raise CheckpointError(f"{file} is a {config.get('peft_type')} adapter; only LORA can be merged here")
    unsupported = [name for name in ("use_dora", "lora_bias", "use_qalora", "layer_replication") if config.get(name)]
    unsupported += [name for name in ("alora_invocation_tokens", "trainable_token_indices") if config.get(name)]
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_BASE_CHANGING_INITS):
        unsupported.append(f"init_lora_weights={init}")
    if unsupported:
        raise CheckpointError(
            f"{file} uses {', '.join(unsupported)}, which cannot be merged here; merge it with PEFT's "
            f"merge_and_unload(), save the model, and give that folder"
        )


def _names(pattern: str, module: str) -> bool:
    """Return whether an entry of `alpha_pattern` is about a module: its name, or the end of it after a dot.

    PEFT takes the entries as regular expressions. One of them can run for ever, so here they are names, with `.*` for
    anything. `_check_config` refuses all else.
    """
    anchored = pattern.startswith("^")
    first, *others = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".").split(".*")
    if not others:
        return module == first or (not anchored and module.endswith(f".{first}"))
    places = (0,) if anchored else (0, *(found.end() for found in re.finditer(r"\.", module)))
    starts = [at for at in places if module.startswith(first, at)]
    if not starts:
        return False
    place = starts[0] + len(first)
    for part in others[:-1]:
        found = module.find(part, place)
        if found < 0:
            return False
        place = found + len(part)
    return module.endswith(others[-1]) and len(module) - len(others[-1]) >= place


def scaling(config: dict[str, Any], module: str, rank: int) -> float:
    """Return the factor of a module's low-rank product: alpha / rank, or alpha / sqrt(rank) when rank-stabilised."""
    alpha = float(config.get("lora_alpha", 8))
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if _names(pattern, module):
            alpha = float(value)
            break
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def merged(base: TensorTable, adapter: Adapter) -> dict[str, StoredTensor]:
    """Return the base's tensors with the adapter merged in.

    Tensors that the adapter holds whole (`modules_to_save`, trained biases) replace the base's.

    Args:
        base: Tensors under Hugging Face names without `model.`.
        adapter: The adapter.

    Raises:
        CheckpointError: The adapter holds tensors for which the base has no place. All of them are named.
    """
    table = dict(base)
    problems = []
    pairs: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in adapter.tensors.items():
        module, _, part = name.rpartition(".lora_")
        if module and part in ("A.weight", "B.weight"):
            pairs.setdefault(module, {})[part[0]] = tensor
        elif name in table or name == "proj_out.weight":
            table[name] = tensor
        else:
            problems.append(f"{name} (not understood, or not in the base)")
    for module, pair in pairs.items():
        problem = _mismatch(pair, table.get(f"{module}.weight"))
        if problem:
            problems.append(f"{module}: {problem}")
            continue
        factor = scaling(adapter.config, module, pair["A"].shape[0])
        table[f"{module}.weight"] = _sum(table[f"{module}.weight"], pair["A"], pair["B"], factor)
    if problems:
        shown = "; ".join(problems[:10]) + (f"; and {len(problems) - 10} more" if len(problems) > 10 else "")
        raise CheckpointError(f"the adapter does not fit its base {adapter.base}: {shown}")
    return table


def _mismatch(pair: dict[str, StoredTensor], weight: StoredTensor | None) -> str | None:
    """Return why a low-rank pair cannot be added to a weight, or None when it can."""
    if weight is None:
        return "the base has no such module"
    if set(pair) != {"A", "B"}:
        return f"lora_{'B' if 'A' in pair else 'A'} is missing"
    down, up = pair["A"].shape, pair["B"].shape
    if (up[0], *down[1:]) != weight.shape or math.prod(up[1:]) != down[0]:
        return f"lora_A {down} and lora_B {up} do not give a weight of shape {weight.shape}"
    return None


def _sum(weight: StoredTensor, down: StoredTensor, up: StoredTensor, factor: float) -> StoredTensor:
    """Return `weight + factor * up @ down`, computed in float32 when it is read (linear or convolution)."""

    def read() -> Tensor:
        product = up.read().float().flatten(1) @ down.read().float().flatten(1)
        return weight.read().float() + factor * product.reshape(weight.shape)

    return StoredTensor(weight.shape, "F32", read)

"""OpenAI's own checkpoint files: `{"dims": ..., "model_state_dict": ...}` in one `.pt`.

Source: openai/whisper, `load_model` and `ModelDimensions`; tensor names as its modules give them.
"""

import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from whisperkit_tools.checkpoint.tensors import StoredTensor, in_memory, load_pickle
from whisperkit_tools.errors import CheckpointError

_CONFIG_OF_DIMS = {
    "n_mels": ("num_mel_bins",),
    "n_vocab": ("vocab_size",),
    "n_audio_ctx": ("max_source_positions",),
    "n_audio_state": ("d_model",),
    "n_audio_head": ("encoder_attention_heads",),
    "n_audio_layer": ("encoder_layers", "num_hidden_layers"),
    "n_text_ctx": ("max_target_positions",),
    "n_text_head": ("decoder_attention_heads",),
    "n_text_layer": ("decoder_layers",),
}
_RENAMES = (
    (r"^encoder\.positional_embedding$", "encoder.embed_positions.weight"),
    (r"^decoder\.positional_embedding$", "decoder.embed_positions.weight"),
    (r"^decoder\.token_embedding\.", "decoder.embed_tokens."),
    (r"^encoder\.ln_post\.", "encoder.layer_norm."),
    (r"^decoder\.ln\.", "decoder.layer_norm."),
    (r"\.blocks\.", ".layers."),
    (r"\.cross_attn_ln\.", ".encoder_attn_layer_norm."),
    (r"\.attn_ln\.", ".self_attn_layer_norm."),
    (r"\.mlp_ln\.", ".final_layer_norm."),
    (r"\.cross_attn\.", ".encoder_attn."),
    (r"\.attn\.", ".self_attn."),
    (r"_attn\.(query|key|value)\.", lambda found: f"_attn.{found[1][0]}_proj."),
    (r"_attn\.out\.", "_attn.out_proj."),
    (r"\.mlp\.0\.", ".fc1."),
    (r"\.mlp\.2\.", ".fc2."),
)


def hugging_face_name(name: str) -> str:
    """Return the Hugging Face name (without `model.`) of a tensor in OpenAI's checkpoint."""
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def read_openai(file: Path) -> tuple[dict[str, Any], dict[str, StoredTensor]]:
    """Read an OpenAI checkpoint.

    Returns:
        A Hugging Face config made from its dimensions, and its tensors under Hugging Face names.

    Raises:
        CheckpointError: The file is damaged, or not of this form.
    """
    content = load_pickle(file)
    if not (isinstance(content, dict) and isinstance(content.get("model_state_dict"), dict)):
        found = f"keys {sorted(map(str, content))[:5]}" if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(f"{file} is not an OpenAI Whisper: found {found}, expected 'dims' and 'model_state_dict'")
    config = config_of_dims(str(file), content.get("dims"))
    state = content["model_state_dict"]
    return config, {hugging_face_name(k): in_memory(v) for k, v in state.items() if isinstance(v, Tensor)}


def config_of_dims(file: str, dims: object) -> dict[str, Any]:
    """Translate OpenAI's dimensions to a Hugging Face config.

    Args:
        file: Where they stand, for messages.
        dims: The parsed dimensions.

    Raises:
        CheckpointError: Some are missing, or encoder and decoder differ in width.
    """
    given = dims if isinstance(dims, dict) else {}
    missing = [name for name in (*_CONFIG_OF_DIMS, "n_text_state") if not isinstance(given.get(name), int)]
    if missing:
        raise CheckpointError(f"{file}: its 'dims' lack {', '.join(missing)}")
    if given["n_text_state"] != given["n_audio_state"]:
        raise CheckpointError(
            f"{file}: encoder and decoder differ in width ({given['n_audio_state']} and {given['n_text_state']})"
        )
    config = {name: given[key] for key, names in _CONFIG_OF_DIMS.items() for name in names}
    width = 4 * config["d_model"]
    return {
        "model_type": "whisper",
        "architectures": ["WhisperForConditionalGeneration"],
        "activation_function": "gelu",
        "is_encoder_decoder": True,
        "tie_word_embeddings": True,
        **config,
        "encoder_ffn_dim": width,
        "decoder_ffn_dim": width,
    }


def sinusoids(n_positions: int, width: int) -> Tensor:
    """Return the encoder's position embeddings `[n_positions, width]`, which some formats do not store.

    Source: openai/whisper, `sinusoids`: sines, then cosines, of wavelengths from 2 pi to 10000 times 2 pi.
    """
    half = width // 2
    rates = torch.exp(-math.log(10000) / (half - 1) * torch.arange(half, dtype=torch.float32))
    angles = torch.arange(n_positions, dtype=torch.float32)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def matching_hub_id(config: dict[str, Any]) -> str | None:
    """Return the published model that has these dimensions, so that its tokenizer and generation config fit."""
    by_layers = {4: "tiny", 6: "base", 12: "small", 24: "medium", 32: "large"}
    size = by_layers.get(config["encoder_layers"])
    vocab = config["vocab_size"]
    if size is None or vocab not in (51864, 51865, 51866):
        return None
    if size == "large":
        if vocab == 51864:
            return None
        if vocab == 51865:
            return "openai/whisper-large-v2"
        return "openai/whisper-large-v3-turbo" if config["decoder_layers"] == 4 else "openai/whisper-large-v3"
    return {51864: f"openai/whisper-{size}.en", 51865: f"openai/whisper-{size}"}.get(vocab)

"""An opened checkpoint: its sizes, files and provenance, and its two components as modules."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from whisperkit_tools.checkpoint.assets import Scratch
from whisperkit_tools.checkpoint.tensors import FLOAT_TYPES, StoredTensor, TensorTable
from whisperkit_tools.compile_hints.attention import AttentionImplementation
from whisperkit_tools.compile_hints.audio_encoder import AudioEncoder
from whisperkit_tools.compile_hints.text_decoder import AlignmentHeads, TextDecoder
from whisperkit_tools.dimensions import ModelDimensions
from whisperkit_tools.errors import CheckpointError
from whisperkit_tools.files import sha256

_SHOWN_PROBLEMS = 10
_FLOAT16_MAX = 65504.0
_FIELDS = {
    "n_mels": "num_mel_bins",
    "n_audio_ctx": "max_source_positions",
    "d_model": "d_model",
    "encoder_layers": "encoder_layers",
    "encoder_attention_heads": "encoder_attention_heads",
    "encoder_ffn_dim": "encoder_ffn_dim",
    "decoder_layers": "decoder_layers",
    "decoder_attention_heads": "decoder_attention_heads",
    "decoder_ffn_dim": "decoder_ffn_dim",
    "n_text_ctx": "max_target_positions",
    "vocab_size": "vocab_size",
}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete Whisper whose weights have not been read yet.

    Attributes:
        source: Its name as the user wrote it.
        revision: The Hub commit it resolved to, or None for a local one.
        org: Organisation in the bundle's name.
        model: Model in the bundle's name.
        dims: The architecture.
        config: Content of its `config.json`.
        generation_config: Content of its `generation_config.json`, completed from the tokenizer where it lacked ids.
        license: Licence that its model card names, or None.
        alignment_heads: Heads for word timestamps, or None when it names none that its decoder has.
        assets: Tokenizer and config files to ship beside the packages (some may be generated).
        weight_files: The files that hold its tensors.
        tensors: Its tensors under Hugging Face names without `model.`.
        notes: Values that were derived or omitted while opening it, for the user.
        format: Form in which it is stored, such as `Hugging Face` or `ggml (q5_0)`.
    """

    source: str
    revision: str | None
    org: str
    model: str
    dims: ModelDimensions
    config: dict[str, Any]
    generation_config: dict[str, Any]
    license: str | None
    alignment_heads: AlignmentHeads | None
    assets: tuple[Path, ...]
    weight_files: tuple[Path, ...]
    tensors: TensorTable
    notes: tuple[str, ...] = ()
    format: str = "Hugging Face"
    scratch: Scratch | None = field(default=None, repr=False)

    @property
    def content_sha256(self) -> dict[str, str]:
        """The sha256 of each weight file, by its name. Reads them whole."""
        return {path.name: sha256(path) for path in self.weight_files}

    def load_encoder(
        self, dtype: torch.dtype = torch.float32, attention: AttentionImplementation | None = None
    ) -> AudioEncoder:
        """Read the encoder's weights.

        Args:
            dtype: Type of the parameters. Tensors stored in it stay mapped to the file.
            attention: Its attention implementation, `Cat` unless given.

        Raises:
            CheckpointError: Weights are not finite or leave float16's range. All such tensors are named.
        """
        with torch.device("meta"):
            encoder = AudioEncoder(self.dims, attention)
        _assign(encoder, self.tensors, "encoder.", dtype)
        return encoder

    def load_decoder(
        self,
        kv_length: int = 448,
        alignment_heads: AlignmentHeads | None = None,
        dtype: torch.dtype = torch.float32,
        attention: AttentionImplementation | None = None,
        logits_chunk_size: int | None = None,
    ) -> TextDecoder:
        """Read the decoder's weights.

        Args:
            kv_length: Positions of its caches.
            alignment_heads: Heads whose mean cross-attention it gives out, or None for none.
            dtype: Type of the parameters. Tensors stored in it stay mapped to the file.
            attention: Its attention implementation, `Cat` unless given.
            logits_chunk_size: Maximum number of logits that one product gives, or None for all at once.

        Raises:
            CheckpointError: Weights are not finite, leave float16's range, or the output layer is not tied to the
                embedding. All such tensors are named.
            ValueError: `kv_length`, a head or `logits_chunk_size` is out of range.
        """
        with torch.device("meta"):
            decoder = TextDecoder(self.dims, kv_length, alignment_heads, attention, logits_chunk_size)
        _check_tied(self.tensors)
        _assign(decoder, self.tensors, "decoder.", dtype)
        return decoder


def dimensions(config: dict[str, Any], where: str) -> ModelDimensions:
    """Read the architecture from a Hugging Face config.

    Raises:
        CheckpointError: It is not a Whisper, lacks fields, or has impossible values. All problems are named.
    """
    kind = config.get("model_type")
    if kind != "whisper":
        raise CheckpointError(f"{where} is not a Whisper: its model_type is {kind!r}, expected 'whisper'")
    missing = [name for name in _FIELDS.values() if config.get(name) is None]
    if missing:
        raise CheckpointError(f"{where} lacks {', '.join(missing)}")
    activation = config.get("activation_function", "gelu")
    if activation != "gelu":
        raise CheckpointError(f"{where} has activation_function {activation!r}; only Whisper's own 'gelu' is supported")
    try:
        return ModelDimensions(**{name: config[key] for name, key in _FIELDS.items()})
    except ValueError as error:
        raise CheckpointError(f"{where} has impossible sizes: {error}") from error


def plain_names(table: TensorTable) -> dict[str, StoredTensor]:
    """Return the tensors without the prefix (`model.`, `module.model.`, ...) that stands before `encoder.` in all."""
    prefixes = {name.removesuffix("encoder.conv1.weight") for name in table if name.endswith("encoder.conv1.weight")}
    prefix = min(prefixes, key=len, default="model.")
    outer = prefix.removesuffix("model.")
    return {name.removeprefix(prefix if name.startswith(prefix) else outer): tensor for name, tensor in table.items()}


def check_tensors(table: TensorTable, dims: ModelDimensions, where: str) -> None:
    """Compare names, shapes and types with those of the architecture, without reading values.

    Raises:
        CheckpointError: Tensors are missing, misshapen, not floating point, or belong to no part of the model.
    """
    with torch.device("meta"):
        parts = (("encoder.", AudioEncoder(dims)), ("decoder.", TextDecoder(dims, kv_length=1)))
    expected = {
        prefix + name: stored_shape(name, tensor)
        for prefix, part in parts
        for name, tensor in part.state_dict().items()
    }
    problems = [f"{name} is missing" for name in expected if name not in table]
    if len(problems) == len(expected):
        raise CheckpointError(f"{where} holds no tensors of a Whisper (found {', '.join(list(table)[:3]) or 'none'})")
    for name, shape in expected.items():
        found = table.get(name)
        if found is not None and found.shape != shape:
            problems.append(f"{name} is {list(found.shape)}, expected {list(shape)}")
        elif found is not None and found.dtype not in FLOAT_TYPES:
            problems.append(f"{name} is stored as {found.dtype}, expected a floating-point type")
    strangers = [name for name in table if name.startswith(("encoder.", "decoder.")) and name not in expected]
    problems += [f"{name} has no place in the architecture of the config" for name in strangers]
    _raise_all(f"{where} is not complete", problems)


def stored_shape(name: str, parameter: Tensor) -> tuple[int, ...]:
    """Return the shape in which the checkpoint stores a parameter of our modules."""
    shape = tuple(parameter.shape)
    if len(shape) != 4:
        return shape
    if name == "embed_positions.weight":  # [1, D, 1, T] from [T, D]
        return (shape[3], shape[1])
    return shape[:2] if shape[3] == 1 else (shape[0], shape[1], shape[3])


def _assign(module: nn.Module, table: TensorTable, prefix: str, dtype: torch.dtype) -> None:
    """Read a component's tensors one after another into a module on the meta device."""
    problems = []
    state = {}
    for name in module.state_dict():
        tensor = table[prefix + name].read()
        problem = _value_problem(tensor)
        if problem:
            problems.append(f"{prefix}{name} {problem}")
        state[name] = tensor.to(dtype)
    _raise_all("weights cannot be used", problems)
    module.load_state_dict(state, assign=True)
    module.eval().requires_grad_(False)


def _value_problem(tensor: Tensor) -> str | None:
    """Return the fault of a tensor's values, or None. Packages hold float16, so its range is the limit."""
    low, high = (float(x) for x in torch.aminmax(tensor))
    if not (math.isfinite(low) and math.isfinite(high)):
        return "holds NaN or infinite values"
    if max(-low, high) > _FLOAT16_MAX:
        return f"holds {max(-low, high):g}, beyond float16's {_FLOAT16_MAX:g}"
    return None


def _check_tied(table: TensorTable) -> None:
    """Refuse an output layer that differs from the token embedding, because a package stores the two once."""
    output, embedding = table.get("proj_out.weight"), table["decoder.embed_tokens.weight"]
    if output is not None and not torch.equal(output.read(), embedding.read()):
        raise CheckpointError(
            "proj_out.weight differs from decoder.embed_tokens.weight: an output layer that is not tied to the "
            "embedding is not supported; fine-tune with tie_word_embeddings"
        )


def _raise_all(what: str, problems: list[str]) -> None:
    """Raise one `CheckpointError` that names the problems, if there are any."""
    if not problems:
        return
    shown = "; ".join(problems[:_SHOWN_PROBLEMS])
    rest = len(problems) - _SHOWN_PROBLEMS
    raise CheckpointError(f"{what}: {shown}" + (f"; and {rest} more" if rest > 0 else ""))

"""CTranslate2's folders, as faster-whisper uses them: `model.bin`, a `config.json` of its own, and the tokenizer.

The file lists variables one after another: name, shape, type, bytes. The weights of queries, keys and values are one
matrix. Integer weights have a scale for each row, by which they are divided.

Source: OpenNMT/CTranslate2, `python/ctranslate2/specs/model_spec.py` (binary versions 4 to 6), `whisper_spec.py` and
the Whisper loader of `converters/transformers.py`.
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from whisperkit_tools.checkpoint.tensors import StoredTensor, read_json
from whisperkit_tools.errors import CheckpointError

MODEL_FILE = "model.bin"
_SPEC = b"WhisperSpec\0"
_VERSIONS = range(4, 7)
_TYPES = ("F32", "I8", "I16", "I32", "F16", "BF16")
_NUMPY = {"F32": np.float32, "I8": np.int8, "I16": np.int16, "I32": np.int32, "F16": np.float16, "BF16": np.uint16}


@dataclass(frozen=True, slots=True)
class _Variable:
    """A variable of the file.

    Attributes:
        shape: Its shape, empty for a number.
        dtype: Its type in safetensors' spelling.
        start: Offset of its bytes in the file.
    """

    shape: tuple[int, ...]
    dtype: str
    start: int


@dataclass(frozen=True, slots=True)
class CTranslate2Model:
    """A model of this form, not read yet.

    Attributes:
        config: A Hugging Face config made from its shapes.
        generation: What its own config says about decoding, under the names of a generation config.
        tensors: Its tensors under Hugging Face names, dequantised when they are read.
        precision: Types in which its weights are stored, for example `int8`.
    """

    config: dict[str, Any]
    generation: dict[str, Any]
    tensors: dict[str, StoredTensor]
    precision: str


def is_ctranslate2(folder: Path) -> bool:
    """Return whether a folder holds a Whisper of this form, by the first bytes of its file."""
    file = folder / MODEL_FILE
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        return stream.read(6 + len(_SPEC))[6:] == _SPEC


def read_ctranslate2(folder: Path) -> CTranslate2Model:
    """Read the list of variables.

    Raises:
        CheckpointError: The file is damaged, of an unknown version, or quantised in a way that is not linear.
    """
    file = folder / MODEL_FILE
    try:
        with file.open("rb") as stream:
            variables = _variables(stream, file)
        return _model(folder, file, variables)
    except (struct.error, KeyError, IndexError, UnicodeDecodeError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"{file} is a damaged CTranslate2 model ({type(error).__name__}: {error}); copy or convert it again"
        ) from error


def _variables(stream: BinaryIO, file: Path) -> dict[str, _Variable]:
    size = file.stat().st_size
    version = _number(stream, "I")
    if version not in _VERSIONS:
        raise CheckpointError(
            f"{file} has version {version} of CTranslate2's format, known are {_VERSIONS[0]} to {_VERSIONS[-1]}; "
            "convert it again, or give the checkpoint that it was made from"
        )
    _text(stream)
    _number(stream, "I")  # revision of the specification
    found: dict[str, _Variable] = {}
    for _ in range(_number(stream, "I")):
        name = _text(stream)
        shape = tuple(_number(stream, "I") for _ in range(_number(stream, "B")))
        dtype = _TYPES[_number(stream, "B")]
        count, start = _number(stream, "I"), stream.tell()
        if count != math.prod(shape) * np.dtype(_NUMPY[dtype]).itemsize or start + count > size:
            raise ValueError(f"{name} has {count} bytes for the shape {list(shape)}, and the file {size}")
        found[name] = _Variable(shape, dtype, start)
        stream.seek(start + count)
    for _ in range(_number(stream, "I") if stream.tell() < size else 0):
        alias, name = _text(stream), _text(stream)
        found[alias] = found[name]
    return found


def _number(stream: BinaryIO, code: str) -> int:
    (value,) = struct.unpack(f"<{code}", stream.read(struct.calcsize(code)))
    return int(value)


def _text(stream: BinaryIO) -> str:
    return stream.read(_number(stream, "H")).rstrip(b"\0").decode()


def _model(folder: Path, file: Path, variables: dict[str, _Variable]) -> CTranslate2Model:
    tensors: dict[str, StoredTensor] = {}
    for target, source, part, parts in _places(variables):
        tensors[target] = _stored(file, variables, source, part, parts)
    for name in [name for name in tensors if name.endswith("k_proj.bias")]:
        if bool(tensors.pop(name).read().any()):
            raise ValueError(f"{name} is not zero, but Whisper's keys have no bias")
    given = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    renamed = {"suppress_ids": "suppress_tokens", "suppress_ids_begin": "begin_suppress_tokens"}
    renamed["alignment_heads"] = "alignment_heads"
    if given.get("quantization_type"):
        raise CheckpointError(
            f"{file} is quantised by AWQ, which is not supported; give the checkpoint it was made from"
        )
    generation = {new: given[old] for old, new in renamed.items() if given.get(old) is not None}
    kinds = sorted({_shown(variable.dtype) for name, variable in variables.items() if name.endswith("/weight")})
    return CTranslate2Model(_config(file, variables, tensors), generation, tensors, "+".join(kinds))


def _shown(dtype: str) -> str:
    return {"I8": "int8", "I16": "int16", "F16": "float16", "BF16": "bfloat16", "F32": "float32"}.get(dtype, dtype)


def _layers(variables: dict[str, _Variable], side: str) -> list[int]:
    parts = (name.split("/") for name in variables if name.startswith(f"{side}/layer_"))
    return sorted({int(part[1].removeprefix("layer_")) for part in parts if part[1] != "layer_norm"})


def _places(variables: dict[str, _Variable]) -> Iterator[tuple[str, str, int, int]]:
    """Yield for each tensor its Hugging Face name, its variable, and which part of how many it is."""
    for conv in ("conv1", "conv2"):
        for end in ("weight", "bias"):
            yield f"encoder.{conv}.{end}", f"encoder/{conv}/{end}", 0, 1
    yield "decoder.embed_tokens.weight", "decoder/embeddings/weight", 0, 1
    output, embedding = "decoder/projection/weight", "decoder/embeddings/weight"
    if output in variables and variables[output] != variables[embedding]:
        yield "proj_out.weight", output, 0, 1
    for side in ("encoder", "decoder"):
        yield f"{side}.embed_positions.weight", f"{side}/position_encodings/encodings", 0, 1
        yield from _norm(f"{side}.layer_norm", f"{side}/layer_norm")
        for number in _layers(variables, side):
            yield from _layer(f"{side}.layers.{number}", f"{side}/layer_{number}", has_cross=side == "decoder")


def _layer(target: str, source: str, *, has_cross: bool) -> Iterator[tuple[str, str, int, int]]:
    yield from _norm(f"{target}.self_attn_layer_norm", f"{source}/self_attention/layer_norm")
    yield from _linear([f"{target}.self_attn.{one}_proj" for one in "qkv"], f"{source}/self_attention/linear_0")
    yield from _linear([f"{target}.self_attn.out_proj"], f"{source}/self_attention/linear_1")
    if has_cross:
        yield from _norm(f"{target}.encoder_attn_layer_norm", f"{source}/attention/layer_norm")
        yield from _linear([f"{target}.encoder_attn.q_proj"], f"{source}/attention/linear_0")
        yield from _linear([f"{target}.encoder_attn.{one}_proj" for one in "kv"], f"{source}/attention/linear_1")
        yield from _linear([f"{target}.encoder_attn.out_proj"], f"{source}/attention/linear_2")
    yield from _norm(f"{target}.final_layer_norm", f"{source}/ffn/layer_norm")
    yield from _linear([f"{target}.fc1"], f"{source}/ffn/linear_0")
    yield from _linear([f"{target}.fc2"], f"{source}/ffn/linear_1")


def _norm(target: str, source: str) -> Iterator[tuple[str, str, int, int]]:
    yield f"{target}.weight", f"{source}/gamma", 0, 1
    yield f"{target}.bias", f"{source}/beta", 0, 1


def _linear(targets: list[str], source: str) -> Iterator[tuple[str, str, int, int]]:
    for end in ("weight", "bias"):
        for part, target in enumerate(targets):
            yield f"{target}.{end}", f"{source}/{end}", part, len(targets)


def _stored(file: Path, variables: dict[str, _Variable], name: str, part: int, parts: int) -> StoredTensor:
    """Return one part of a variable's rows, divided by its scales when it holds integers."""
    variable = variables[name]
    rows, *rest = variable.shape
    if rows % parts:
        raise ValueError(f"{name} has {rows} rows, which are not {parts} parts")
    count = rows // parts
    shape = (count, *rest)
    scale = variables.get(f"{name}_scale")
    if variable.dtype.startswith("I") and scale is None:
        raise ValueError(f"{name} is quantised, but has no scale")
    chosen = slice(part * count, (part + 1) * count)

    def read() -> Tensor:
        values = _read(file, variable)[chosen]
        if scale is None:
            return values
        factors = _read(file, scale).float()
        per_row = factors[chosen] if factors.numel() == rows else factors.reshape(1)
        return values.float() / per_row.reshape(-1, *[1] * len(rest))

    return StoredTensor(shape, variable.dtype if scale is None else "F32", read)


def _read(file: Path, variable: _Variable) -> Tensor:
    mapped = np.memmap(file, _NUMPY[variable.dtype], "c", variable.start, variable.shape or (1,))
    tensor = torch.from_numpy(mapped)
    return tensor.view(torch.bfloat16) if variable.dtype == "BF16" else tensor


def _config(file: Path, variables: dict[str, _Variable], tensors: dict[str, StoredTensor]) -> dict[str, Any]:
    width, n_mels, _ = tensors["encoder.conv1.weight"].shape
    config: dict[str, Any] = {
        "model_type": "whisper",
        "architectures": ["WhisperForConditionalGeneration"],
        "activation_function": "gelu",
        "is_encoder_decoder": True,
        "tie_word_embeddings": True,
        "d_model": width,
        "num_mel_bins": n_mels,
        "vocab_size": tensors["decoder.embed_tokens.weight"].shape[0],
        "max_source_positions": tensors["encoder.embed_positions.weight"].shape[0],
        "max_target_positions": tensors["decoder.embed_positions.weight"].shape[0],
    }
    for side in ("encoder", "decoder"):
        config[f"{side}_layers"] = len(_layers(variables, side))
        config[f"{side}_ffn_dim"] = tensors[f"{side}.layers.0.fc1.weight"].shape[0]
        heads = variables.get(f"{side}/num_heads")
        config[f"{side}_attention_heads"] = int(_read(file, heads).item()) if heads else width // 64
    return {**config, "num_hidden_layers": config["encoder_layers"]}

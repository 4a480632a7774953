"""Stored tensors: their names, shapes and types are known at once, their values are read on demand.

Every form of checkpoint becomes a `TensorTable`. Renaming, merging and completing it are operations on that mapping and
read nothing.
"""

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from whisperkit_tools.errors import CheckpointError
from whisperkit_tools.files import first_line, read_json_object
from whisperkit_tools.strict_json import parse_json

FLOAT_TYPES = frozenset({"F16", "BF16", "F32", "F64"})
_NUMPY_TYPES = {"F16": np.float16, "BF16": np.uint16, "F32": np.float32, "F64": np.float64}  # NumPy has no bfloat16
_TORCH_TYPES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64"}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor that has not been read yet.

    Attributes:
        shape: Its shape.
        dtype: Its type in safetensors' spelling, for example `F16`.
        read: Reads its values.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], Tensor]


TensorTable: TypeAlias = Mapping[str, StoredTensor]


def in_memory(tensor: Tensor) -> StoredTensor:
    """Wrap a tensor that is mapped or in memory already."""
    dtype = _TORCH_TYPES.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))
    return StoredTensor(tuple(tensor.shape), dtype, lambda: tensor)


def read_safetensors(files: tuple[Path, ...]) -> dict[str, StoredTensor]:
    """Read the headers of safetensors files.

    Raises:
        CheckpointError: A file is truncated or not a safetensors file. All such files are named.
    """
    table: dict[str, StoredTensor] = {}
    problems = []
    for file in files:
        try:
            table.update(_safetensors_header(file))
        except (SafetensorError, OSError, ValueError) as error:
            problems.append(f"{file}: {error} ({_size(file)} bytes)")
    if problems:
        raise CheckpointError(
            "weights are truncated or not safetensors; download or copy them again: " + "; ".join(problems)
        )
    return table


def _safetensors_header(file: Path) -> dict[str, StoredTensor]:
    """Return the tensors of one file, readable for as long as the file exists."""
    with safe_open(file, framework="pt") as opened:  # checks the header and that the file is whole
        names = list(opened.keys())
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = parse_json(stream.read(size))
    return {name: _in_file(file, name, header[name], 8 + size) for name in names}


def _in_file(file: Path, name: str, entry: dict[str, Any], data: int) -> StoredTensor:
    """Return one tensor of a safetensors file, with a mapping of its own.

    The library maps the whole file, so that every page that was ever read stays in memory until the last tensor is
    released.

    Args:
        file: The file.
        name: The tensor's name.
        entry: Its entry in the header.
        data: End of the header, in bytes.
    """
    shape, dtype = tuple(entry["shape"]), entry["dtype"]

    def read() -> Tensor:
        if dtype not in _NUMPY_TYPES or 0 in shape:
            with safe_open(file, framework="pt") as opened:
                tensor: Tensor = opened.get_tensor(name)
            return tensor
        # Private: writes to the tensor do not reach the file.
        mapped = np.memmap(file, _NUMPY_TYPES[dtype], "c", data + entry["data_offsets"][0], shape or (1,))
        tensor = torch.from_numpy(mapped).view(shape)
        return tensor.view(torch.bfloat16) if dtype == "BF16" else tensor

    return StoredTensor(shape, dtype, read)


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object that a file of a checkpoint holds.

    Raises:
        CheckpointError: The file cannot be read, or is not a JSON object.
    """
    try:
        return read_json_object(path, CheckpointError, "download or copy it again")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def load_pickle(file: Path) -> Any:
    """Load a pickled file of tensors with nothing but tensors and plain containers allowed, memory-mapped if it can be.

    Raises:
        CheckpointError: The file is damaged, or holds objects that would run code.
    """
    try:
        # The format before torch 1.6 is not a zip file and cannot be mapped.
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # torch lets the unpickler's errors through: KeyError, EOFError, RuntimeError, ...
        reason = first_line(error) if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{file} cannot be read as pickled weights ({_size(file)} bytes): {reason}") from error


def table_of_pickles(files: tuple[Path, ...]) -> dict[str, StoredTensor]:
    """Load pickled state dicts of a Hugging Face checkpoint, sharded or not."""
    table = {}
    for file in files:
        state = load_pickle(file)
        if not isinstance(state, dict):
            raise CheckpointError(f"{file} holds a {type(state).__name__}, expected a mapping of names to tensors")
        table.update({str(name): in_memory(value) for name, value in state.items() if isinstance(value, Tensor)})
    return table


def shards(index: Path) -> tuple[Path, ...]:
    """Return the files that a `*.index.json` names.

    Raises:
        CheckpointError: The index is malformed, or files are missing. All of them are named.
    """
    try:
        names = sorted(set(read_json(index)["weight_map"].values()))
    except (CheckpointError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is not a shard index (expected a JSON object with 'weight_map')") from error
    # A name with a folder in it could point anywhere.
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise CheckpointError(f"{index} names files outside its folder: {', '.join(outside)}")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(f"{index.parent} lacks {len(missing)} of {len(names)} shards: {', '.join(missing)}")
    return tuple(index.parent / name for name in names)


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the safetensors files of a folder, single or sharded. Empty when it has none."""
    if (single := folder / "model.safetensors").is_file():
        return (single,)
    if (index := folder / "model.safetensors.index.json").is_file():
        return shards(index)
    return ()


def pickled_files(folder: Path) -> tuple[Path, ...]:
    """Return the `pytorch_model.bin` files of a folder, single or sharded. Empty when it has none."""
    if (single := folder / "pytorch_model.bin").is_file():
        return (single,)
    if (index := folder / "pytorch_model.bin.index.json").is_file():
        return shards(index)
    return ()

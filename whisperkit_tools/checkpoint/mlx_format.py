"""MLX folders: OpenAI's sizes and names, convolutions with their channels last.

Source: ml-explore/mlx-examples, `whisper/convert.py`.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whisperkit_tools.checkpoint.openai_format import config_of_dims, hugging_face_name
from whisperkit_tools.checkpoint.tensors import StoredTensor, TensorTable, read_safetensors
from whisperkit_tools.errors import CheckpointError

WEIGHT_FILES = ("weights.safetensors", "model.safetensors", "weights.npz")
_RENAMES = ((".mlp1.", ".mlp.0."), (".mlp2.", ".mlp.2."))
_NPY_TYPES = {"float16": "F16", "float32": "F32", "float64": "F64"}


def is_mlx(config: Mapping[str, Any]) -> bool:
    """Return whether a config states its sizes in OpenAI's terms."""
    return "n_audio_state" in config and "n_text_layer" in config


def read_mlx(folder: Path, config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, StoredTensor], Path]:
    """Read an MLX folder.

    Returns:
        A Hugging Face config, the tensors under Hugging Face names, and their file.

    Raises:
        CheckpointError: There are no weights, or they are quantised or damaged.
    """
    file = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if file is None:
        raise CheckpointError(f"{folder} is an MLX folder without weights; it needs one of {', '.join(WEIGHT_FILES)}")
    table = _read_npz(file) if file.suffix == ".npz" else read_safetensors((file,))
    given = config.get("quantization")
    if given or any(name.endswith(".scales") for name in table):
        bits = f" with {given['bits']} bits" if isinstance(given, dict) and "bits" in given else ""
        base = config.get("_name_or_path")
        origin = f", {base}" if isinstance(base, str) and base else ""
        raise CheckpointError(
            f"{folder} is an MLX conversion, quantised{bits}; quantised MLX weights are not read: give the checkpoint "
            f"that it was made from{origin}"
        )
    tensors = {_name(name): _with_channels_first(_name(name), tensor) for name, tensor in table.items()}
    return config_of_dims(f"config.json of {folder}", dict(config)), tensors, file


def _name(name: str) -> str:
    for old, new in _RENAMES:
        name = name.replace(old, new)
    return hugging_face_name(name.removeprefix("model."))


def _with_channels_first(name: str, tensor: StoredTensor) -> StoredTensor:
    """Return a convolution `[out, width, in]` as `[out, in, width]`, and all else as it is."""
    if not name.endswith(("conv1.weight", "conv2.weight")) or len(tensor.shape) != 3 or tensor.shape[1] != 3:
        return tensor
    rows, width, columns = tensor.shape

    def read() -> Tensor:
        return tensor.read().transpose(1, 2).contiguous()

    return StoredTensor((rows, columns, width), tensor.dtype, read)


def _read_npz(file: Path) -> dict[str, StoredTensor]:
    """Return the arrays of an archive, each read when it is asked for."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
            headers = {name: _header(archive, f"{name}.npy") for name in names}
    except (zipfile.BadZipFile, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{file} is not an archive of arrays ({error}); download or copy it again") from error
    return {name: StoredTensor(shape, dtype, _reader(file, name)) for name, (shape, dtype) in headers.items()}


def _header(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], str]:
    with archive.open(name) as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read(stream)
    if is_fortran or dtype.hasobject:
        raise ValueError(f"{name} is not an array of numbers in row-major order")
    return tuple(shape), _NPY_TYPES.get(dtype.name, dtype.name)


def _reader(file: Path, name: str) -> Any:
    def read() -> Tensor:
        with np.load(file, allow_pickle=False) as arrays:
            return torch.from_numpy(arrays[name])

    return read


def names_are_openais(table: TensorTable) -> bool:
    """Return whether tensors have OpenAI's names, as in MLX folders, and not Hugging Face's."""
    return any(".blocks.0." in name for name in table)

"""Writing a checkpoint folder that transformers loads: config, generation config, tokenizer and weights."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors.torch import save_file
from torch import Tensor

from whisperkit_tools.checkpoint import Checkpoint
from whisperkit_tools.errors import CheckpointError, OptionsError, option
from whisperkit_tools.files import put_in_place, read_json_object, write_json

WEIGHTS = "model.safetensors"
_CONFIGS = ("config.json", "generation_config.json")
_PREFIX = "model."  # before `encoder.` and `decoder.` in the names of transformers
# Where the checkpoint has none, transformers reads the defaults of Whisper from these.
_PREPROCESSOR = {"feature_extractor_type": "WhisperFeatureExtractor", "sampling_rate": 16000, "hop_length": 160}


def write_checkpoint(
    folder: Path,
    original: Checkpoint,
    tensors: Mapping[str, Tensor],
    *,
    config: Mapping[str, Any],
    generation_config: Mapping[str, Any],
    records: Mapping[str, Any] | None = None,
    force: bool = False,
) -> None:
    """Write a checkpoint folder, whole or not at all.

    Args:
        folder: The folder to make.
        original: The checkpoint whose tokenizer and other assets it takes.
        tensors: Its tensors under the names of transformers, without `model.`.
        config: Content of its `config.json`.
        generation_config: Content of its `generation_config.json`.
        records: Content of further JSON files by name.
        force: Replace a checkpoint that is there.

    Raises:
        CheckpointError: The folder exists, holds something else, or is being written by another process.
    """
    check_target(folder, force=force)
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.parent / f".{folder.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise CheckpointError(f"another command is writing {folder}; wait for it to end") from error
    partial = folder.parent / f".{folder.name}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)  # left by a command that was killed
        partial.mkdir()
        _fill(partial, original, tensors)
        for name, value in {**dict(zip(_CONFIGS, (config, generation_config), strict=True)), **(records or {})}.items():
            write_json(partial / name, value)
        put_in_place(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)


def check_target(folder: Path, *, force: bool) -> None:
    """Check that a checkpoint may be written to a folder, before anything is computed.

    Raises:
        CheckpointError: The folder exists without `force`, or holds something that is not a checkpoint.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise CheckpointError(f"{folder} exists and is not a folder; choose another {option('output_dir')}")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} holds files but is not a checkpoint, so it is not replaced; move it away")
    if not force:
        raise CheckpointError(
            f"{folder} already exists; replace it with {option('force', True)}, or choose another "
            f"{option('output_dir')}"
        )


def _fill(folder: Path, original: Checkpoint, tensors: Mapping[str, Tensor]) -> None:
    """Copy the assets, and write the weights."""
    for path in original.assets:
        if path.name not in _CONFIGS:
            shutil.copyfile(path, folder / path.name)
    if not (folder / "preprocessor_config.json").is_file():
        write_json(folder / "preprocessor_config.json", {**_PREPROCESSOR, "feature_size": original.dims.n_mels})
    named = {_PREFIX + name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(named, folder / WEIGHTS, metadata={"format": "pt"})


def read_record(folder: Path, name: str) -> dict[str, Any]:
    """Return a JSON record beside a checkpoint. Empty where there is none.

    Raises:
        OptionsError: The file is damaged.
    """
    path = folder / name
    if not path.is_file():
        return {}
    return read_json_object(path, OptionsError, "make the student again")

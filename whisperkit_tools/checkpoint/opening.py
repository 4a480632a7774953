"""Finding and opening a checkpoint by its name."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from whisperkit_tools.checkpoint.assets import gather, has_tokenizer
from whisperkit_tools.checkpoint.hub import ASSET_PATTERNS, PICKLE_PATTERNS, SAFETENSORS_PATTERNS, download
from whisperkit_tools.checkpoint.lora import Adapter, merged, read_adapter
from whisperkit_tools.checkpoint.model import Checkpoint, check_tensors, dimensions, plain_names
from whisperkit_tools.checkpoint.naming import (
    ORG_OF_LOCAL,
    aliases,
    looks_like_hub_id,
    name_part,
    nearest,
    published_names,
)
from whisperkit_tools.checkpoint.openai_format import matching_hub_id, read_openai
from whisperkit_tools.checkpoint.tensors import (
    StoredTensor,
    pickled_files,
    read_json,
    read_safetensors,
    table_of_pickles,
    weight_files,
)
from whisperkit_tools.errors import CheckpointError, OptionsError, option

_DEMO = ("whisperkit-tools", "whisper-micro-demo")
_OPENAI_SUFFIXES = (".pt", ".pth")
_ALLOW_PICKLE = option("allow_pickle", True)


@dataclass(frozen=True, slots=True)
class _Place:
    """A source on this machine: its folder or file, its names and its Hub commit."""

    path: Path
    org: str
    model: str
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class _Content:
    """The content of a place: a config, tensors under plain names, and the folders of the other files."""

    config: dict[str, Any]
    tensors: dict[str, StoredTensor]
    files: tuple[Path, ...]
    folders: tuple[Path, ...]
    config_is_changed: bool = False


def open_checkpoint(source: str, *, revision: str | None = None, allow_pickle: bool = False) -> Checkpoint:
    """Find and check a checkpoint. Its weights are read when a component is loaded.

    Args:
        source: `demo`, an alias such as `large-v3`, a Hub id, a folder (Hugging Face checkpoint or PEFT adapter), or an
            OpenAI `.pt` file. An alias has precedence over a folder of that name. Write `./tiny` for the folder.
        revision: Branch, tag or commit of a Hub source.
        allow_pickle: Load weights stored as pickles, with nothing but tensors allowed in them.

    Raises:
        CheckpointError: It cannot be found or read, or is not a complete Whisper.
        OptionsError: The name is unknown, or a revision is given for a local source.

    Example:
        >>> import whisperkit_tools as wkt
        >>> wkt.open_checkpoint("demo").dims.n_mels
        80
    """
    place = _locate(source, revision, allow_pickle)
    content = _read(place.path, allow_pickle)
    dims = dimensions(content.config, f"config.json of {source}")
    check_tensors(content.tensors, dims, source)
    assets = gather(content.folders, dims, content.config, config_is_changed=content.config_is_changed)
    return Checkpoint(
        source=source,
        revision=place.revision,
        org=place.org,
        model=place.model,
        dims=dims,
        config=content.config,
        generation_config=assets.generation_config,
        license=_license(content.folders),
        alignment_heads=assets.alignment_heads,
        assets=assets.files,
        weight_files=content.files,
        tensors=content.tensors,
        notes=assets.notes,
        scratch=assets.scratch,
    )


def _locate(source: str, revision: str | None, allow_pickle: bool) -> _Place:
    """Return the place of a source, downloaded if it is on the Hub."""
    hub_id = aliases().get(source)
    path = Path(source).expanduser()
    if hub_id is None and source != "demo" and not path.exists() and looks_like_hub_id(source):
        hub_id = source
    if hub_id is not None:
        return _from_hub(hub_id, revision, allow_pickle)
    if revision is not None:
        raise OptionsError(
            f"{option('revision')} is {revision!r}, but {source} is local; only a Hub source has revisions"
        )
    if source == "demo":
        from whisperkit_tools.demo import demo_checkpoint_dir

        return _Place(demo_checkpoint_dir(), *_DEMO)
    if not path.exists():
        raise _unknown(source)
    stem = path.stem if path.is_file() else path.resolve().name
    return _Place(path, ORG_OF_LOCAL, name_part(stem))


def _unknown(source: str) -> CheckpointError | OptionsError:
    """Return the error for a source that does not exist: a missing path is a failure, an unknown name a wrong value."""
    if "/" in source or source.startswith((".", "~")) or source.endswith(_OPENAI_SUFFIXES):
        return CheckpointError(
            f"unknown checkpoint {source!r}: no such file or folder; give an existing one, an alias, or a Hub id "
            "(organisation/name)"
        )
    known = nearest(source, ["demo", *aliases()])
    return OptionsError(f"unknown checkpoint {source!r}: {known} Or give a folder or a Hub id (organisation/name)")


def _from_hub(hub_id: str, revision: str | None, allow_pickle: bool) -> _Place:
    """Download a checkpoint. Pickles are downloaded only if they are allowed and there is nothing else."""
    folder = download(hub_id, revision, (*ASSET_PATTERNS, *SAFETENSORS_PATTERNS))
    has_weights = bool(weight_files(folder)) or (folder / "adapter_model.safetensors").is_file()
    if not has_weights and allow_pickle:
        folder = download(hub_id, folder.name, (*ASSET_PATTERNS, *PICKLE_PATTERNS))
    return _Place(folder, *published_names(hub_id), revision=folder.name)


def _read(path: Path, allow_pickle: bool) -> _Content:
    """Read configs and tensor headers of a folder or file."""
    if path.is_file():
        return _read_file(path, allow_pickle)
    if (path / "adapter_config.json").is_file():
        return _read_adapter(path, allow_pickle)
    if not (path / "config.json").is_file():
        found = sorted(child.name for child in path.iterdir())
        listing = f"it holds {', '.join(found[:8])}" if found else "it is empty"
        raise CheckpointError(f"no checkpoint in {path}: it needs config.json and model.safetensors, but {listing}")
    config = read_json(path / "config.json")
    dimensions(config, f"{path / 'config.json'}")  # first: its weights say less clearly what is wrong
    files, tensors = _read_weights(path, allow_pickle)
    return _Content(config, plain_names(tensors), files, (path,))


def _read_weights(folder: Path, allow_pickle: bool) -> tuple[tuple[Path, ...], dict[str, StoredTensor]]:
    """Read the headers of a folder's weights, safetensors before pickles."""
    if files := weight_files(folder):
        return files, read_safetensors(files)
    if not allow_pickle:
        pickled = (folder / "pytorch_model.bin").exists() or (folder / "pytorch_model.bin.index.json").exists()
        found = "found only pickled weights" if pickled else "found none; if there are only pickled ones (*.bin)"
        raise CheckpointError(f"{folder} has no safetensors weights: {found}; set {_ALLOW_PICKLE} to load them")
    if files := pickled_files(folder):
        return files, table_of_pickles(files)
    raise CheckpointError(
        f"{folder} has no weights: neither model.safetensors nor pytorch_model.bin, single or sharded"
    )


def _read_file(path: Path, allow_pickle: bool) -> _Content:
    """Read an OpenAI checkpoint. Its tokenizer is beside it, or is that of the published model of its sizes."""
    if path.suffix not in _OPENAI_SUFFIXES:
        raise CheckpointError(f"{path} is a file; give its folder {path.parent}, or an OpenAI checkpoint (*.pt)")
    if not allow_pickle:
        raise CheckpointError(f"{path} is a pickle; set {_ALLOW_PICKLE} to load it (only tensors are allowed in it)")
    config, tensors = read_openai(path)
    folder = path.parent if has_tokenizer(path.parent) else _published_assets(path, config)
    return _Content(config, tensors, (path,), (folder,), config_is_changed=True)


def _published_assets(path: Path, config: dict[str, Any]) -> Path:
    """Download tokenizer and generation config of the published model with the same sizes."""
    hub_id = matching_hub_id(config)
    advice = f"put tokenizer.json, tokenizer_config.json and generation_config.json beside {path}"
    if hub_id is None:
        raise CheckpointError(f"no published Whisper has the sizes of {path}, so its tokenizer is not known; {advice}")
    try:
        return download(hub_id, None, ASSET_PATTERNS)
    except CheckpointError as error:
        raise CheckpointError(
            f"{path} carries no tokenizer, and that of {hub_id} is missing: {error.message}; {advice}"
        ) from error


def _read_adapter(folder: Path, allow_pickle: bool) -> _Content:
    """Read an adapter and its base, and merge them."""
    adapter = read_adapter(folder, allow_pickle)
    try:
        is_local = Path(adapter.base).expanduser().exists()
        place = _locate(adapter.base, None if is_local else adapter.config.get("revision"), allow_pickle)
        if (place.path / "adapter_config.json").is_file():
            raise CheckpointError("it is itself an adapter; merge it first")
        base = _read(place.path, allow_pickle)
    except CheckpointError as error:
        raise CheckpointError(f"base {adapter.base!r} of the adapter {folder}: {error.message}") from error
    tensors = merged(base.tensors, adapter)
    config = _config_of_merged(base.config, adapter, tensors)
    return replace(
        base,
        config=config,
        tensors=tensors,
        files=(*base.files, *adapter.files),
        folders=(folder, *base.folders),
        config_is_changed=base.config_is_changed or config != base.config,
    )


def _config_of_merged(config: dict[str, Any], adapter: Adapter, tensors: dict[str, StoredTensor]) -> dict[str, Any]:
    """Return the base's config with the vocabulary of the adapter, which may hold a resized embedding."""
    if "decoder.embed_tokens.weight" not in adapter.tensors:
        return config
    return {**config, "vocab_size": tensors["decoder.embed_tokens.weight"].shape[0]}


def _license(folders: tuple[Path, ...]) -> str | None:
    """Return the licence that the first model card names."""
    from huggingface_hub import metadata_load

    for folder in folders:
        card = folder / "README.md"
        try:
            values = metadata_load(card) if card.is_file() else None
        except Exception:  # a card is written by hand: whatever is wrong with its YAML, it names no licence
            values = None
        if values and isinstance(values.get("license"), str):
            return str(values["license"])
    return None

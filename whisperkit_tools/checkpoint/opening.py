"""Finding and opening a checkpoint by its name."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from whisperkit_tools import limits
from whisperkit_tools.checkpoint.assets import gather, has_tokenizer
from whisperkit_tools.checkpoint.ctranslate2_format import is_ctranslate2, read_ctranslate2
from whisperkit_tools.checkpoint.ggml_format import is_ggml, read_ggml
from whisperkit_tools.checkpoint.hub import ASSET_PATTERNS, PICKLE_PATTERNS, SAFETENSORS_PATTERNS, download
from whisperkit_tools.checkpoint.lite_asr import MODEL_TYPE as LITE_ASR
from whisperkit_tools.checkpoint.lite_asr import dense, is_low_rank
from whisperkit_tools.checkpoint.lora import Adapter, merged, read_adapter
from whisperkit_tools.checkpoint.mlx_format import is_mlx, read_mlx
from whisperkit_tools.checkpoint.model import Checkpoint, check_tensors, dimensions, plain_names
from whisperkit_tools.checkpoint.naming import (
    ORG_OF_LOCAL,
    aliases,
    looks_like_hub_id,
    name_part,
    nearest,
    published_names,
)
from whisperkit_tools.checkpoint.openai_format import matching_hub_id, read_openai, sinusoids
from whisperkit_tools.checkpoint.other_formats import other_format
from whisperkit_tools.checkpoint.tensors import (
    StoredTensor,
    in_memory,
    pickled_files,
    read_json,
    read_safetensors,
    table_of_pickles,
    weight_files,
)
from whisperkit_tools.errors import CheckpointError, OptionsError, option
from whisperkit_tools.files import read_limited
from whisperkit_tools.folders import recognised
from whisperkit_tools.front_matter import split_front_matter
from whisperkit_tools.paths import expanded

_DEMO = ("whisperkit-tools", "whisper-micro-demo")
_OPENAI_SUFFIXES = (".pt", ".pth")
_FULL_PRECISION = frozenset({"f16", "f32", "float16", "float32", "bfloat16"})
_LITE_ASR_KEYS = ("low_rank_config", "auto_map", "architectures")
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
    format: str = "Hugging Face"
    generation: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def open_checkpoint(
    source: str,
    *,
    revision: str | None = None,
    allow_pickle: bool = False,
    tokenizer: str | None = None,
    base: str | None = None,
) -> Checkpoint:
    """Find and check a checkpoint. Its weights are read when a component is loaded.

    The format is recognised by looking, whatever the name is.

    Args:
        source: `demo`, an alias such as `large-v3`, a Hub id, a folder (Hugging Face, CTranslate2 or MLX checkpoint,
            LiteASR, PEFT adapter), an OpenAI `.pt` file or a whisper.cpp `ggml-*.bin` file. An alias has precedence
            over a folder of that name. Write `./tiny` for the folder.
        revision: Branch, tag or commit of a Hub source.
        allow_pickle: Load weights stored as pickles, with nothing but tensors allowed in them.
        tokenizer: Folder, alias or Hub id of the model whose tokenizer the checkpoint has, where it carries none.
        base: Folder, alias or Hub id of an adapter's base, instead of the one that it names.

    Raises:
        CheckpointError: It cannot be found or read, or is not a complete Whisper.
        OptionsError: The name is unknown, or a revision is given for a local source.

    Example:
        >>> import whisperkit_tools as wkt
        >>> wkt.open_checkpoint("demo").dims.n_mels
        80
    """
    place = _locate(source, revision, allow_pickle)
    content = _read(place.path, allow_pickle, base, has_tokenizer_elsewhere=tokenizer is not None)
    dims = dimensions(content.config, f"config.json of {source}")
    check_tensors(content.tensors, dims, source)
    assets = gather(
        content.folders,
        dims,
        content.config,
        config_is_changed=content.config_is_changed,
        tokenizer_home=_tokenizer_home(content, tokenizer),
        generation=content.generation,
    )
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
        notes=(*content.notes, *assets.notes),
        format=content.format,
        scratch=assets.scratch,
    )


def _tokenizer_home(content: _Content, given: str | None) -> Path | None:
    """Return the folder of the tokenizer where it is not among the checkpoint's own folders.

    Raises:
        CheckpointError: The model that was named, or the one that the checkpoint was trained from, is not there.
    """
    if given is not None:
        return _assets_of(given, f"{option('tokenizer')} {given!r}")
    if any(has_tokenizer(folder) for folder in content.folders):
        return None
    origin = content.config.get("_name_or_path")
    if not isinstance(origin, str) or not origin:
        return None
    where = f"no tokenizer in {', '.join(map(str, content.folders))}; its config names {origin!r} as its origin"
    try:
        return _assets_of(origin, where)
    except (CheckpointError, OptionsError) as error:
        raise CheckpointError(
            f"{error.message}; name the model that it was trained from with {option('tokenizer', 'FOLDER_OR_ID')}"
        ) from error


def _assets_of(name: str, what: str) -> Path:
    """Return a folder with the tokenizer of a model, given by folder, alias or Hub id."""
    try:
        path = expanded(name)
        hub_id = aliases().get(name) or (name if not path.exists() and looks_like_hub_id(name) else None)
        folder = download(hub_id, None, ASSET_PATTERNS) if hub_id else _locate(name, None, allow_pickle=False).path
    except (CheckpointError, OptionsError) as error:
        raise CheckpointError(f"{what}: {error.message}") from error
    folder = folder.parent if folder.is_file() else folder
    if not has_tokenizer(folder):
        raise CheckpointError(f"{what}: {folder} has neither tokenizer.json nor vocab.json with merges.txt")
    return folder


def _locate(source: str, revision: str | None, allow_pickle: bool) -> _Place:
    """Return the place of a source, downloaded if it is on the Hub."""
    hub_id = aliases().get(source)
    path = expanded(source)
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


def _read(path: Path, allow_pickle: bool, base: str | None, *, has_tokenizer_elsewhere: bool) -> _Content:
    """Read configs and tensor headers of a folder or file."""
    if path.is_dir() and (path / "adapter_config.json").is_file():
        return _read_adapter(path, allow_pickle, base)
    if base is not None:
        raise OptionsError(f"{option('base')} is {base!r}, but {path} is not an adapter; omit it")
    if path.is_dir() and not (path / "config.json").is_file():
        path = _only_ggml(path) or path
    if is_ggml(path):
        return _read_ggml(path, has_tokenizer_elsewhere)
    if path.is_file():
        return _read_file(path, allow_pickle, has_tokenizer_elsewhere)
    if is_ctranslate2(path):
        return _read_ctranslate2(path, has_tokenizer_elsewhere)
    what = recognised(path)
    if not (path / "config.json").is_file() or what.startswith("a bundle"):
        raise CheckpointError(f"{path} is not a checkpoint but {what}") if what else _no_checkpoint(path)
    config = read_json(path / "config.json")
    if is_mlx(config):
        return _read_mlx(path, config, has_tokenizer_elsewhere)
    is_lite = config.get("model_type") == LITE_ASR
    config = {**config, "model_type": "whisper"} if is_lite else config
    dimensions(config, f"{path / 'config.json'}")  # first: its weights say less clearly what is wrong
    files, tensors = _read_weights(path, allow_pickle)
    tensors = plain_names(tensors)
    if is_lite or is_low_rank(tensors):
        config = {key: value for key, value in config.items() if key not in _LITE_ASR_KEYS}
        return _Content(config, dense(tensors), files, (path,), config_is_changed=True, format="LiteASR")
    return _Content(config, tensors, files, (path,))


def _no_checkpoint(path: Path) -> CheckpointError:
    """Return the error for a folder without a checkpoint, which says what it holds where that is known."""
    found = sorted(child.name for child in path.iterdir())
    if other := other_format(found):
        return CheckpointError(f"{path} {other}")
    listing = f"it holds {', '.join(found[:8])}" if found else "it is empty"
    return CheckpointError(f"no checkpoint in {path}: it needs config.json and model.safetensors, but {listing}")


def _only_ggml(folder: Path) -> Path | None:
    """Return the ggml file of a folder that holds one and no other checkpoint."""
    found = [path for path in sorted(folder.glob("*.bin")) if is_ggml(path)]
    return found[0] if len(found) == 1 else None


def _read_ggml(path: Path, has_tokenizer_elsewhere: bool) -> _Content:
    model = read_ggml(path)
    folder = _folder_of_assets(path, model.config, has_tokenizer_elsewhere)
    notes = _dequantised("ggml", model.precision)
    config, form = model.config, f"ggml ({model.precision})"
    return _Content(config, model.tensors, (path,), (folder,), config_is_changed=True, format=form, notes=notes)


def _dequantised(form: str, precision: str) -> tuple[str, ...]:
    if set(precision.split("+")) <= _FULL_PRECISION:
        return ()
    return (
        f"the weights were quantised by {form} to {precision} and are made dense again, which does not bring back what "
        "they lost; the checkpoint that they were made from gives a better bundle",
    )


def _read_ctranslate2(path: Path, has_tokenizer_elsewhere: bool) -> _Content:
    model = read_ctranslate2(path)
    folder = (
        path if has_tokenizer(path) else _folder_of_assets(path / "model.bin", model.config, has_tokenizer_elsewhere)
    )
    return _Content(
        model.config,
        model.tensors,
        (path / "model.bin",),
        (folder,) if folder == path else (path, folder),
        config_is_changed=True,
        format=f"CTranslate2 ({model.precision})",
        generation=model.generation,
        notes=_dequantised("CTranslate2", model.precision),
    )


def _read_mlx(path: Path, given: dict[str, Any], has_tokenizer_elsewhere: bool) -> _Content:
    config, tensors, file = read_mlx(path, given)
    notes: tuple[str, ...] = ()
    positions = "encoder.embed_positions.weight"
    if positions not in tensors:
        tensors[positions] = in_memory(sinusoids(config["max_source_positions"], config["d_model"]))
        notes = ("the encoder's position embeddings, which MLX does not store, are computed",)
    if isinstance(origin := given.get("_name_or_path"), str):
        config["_name_or_path"] = origin
    folder = path if has_tokenizer(path) or config.get("_name_or_path") else None
    folder = folder or _folder_of_assets(file, config, has_tokenizer_elsewhere)
    folders = (folder,) if folder == path else (path, folder)
    return _Content(config, tensors, (file,), folders, config_is_changed=True, format="MLX", notes=notes)


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


def _read_file(path: Path, allow_pickle: bool, has_tokenizer_elsewhere: bool) -> _Content:
    """Read an OpenAI checkpoint."""
    if path.suffix not in _OPENAI_SUFFIXES:
        if other := other_format([path.name], path):
            raise CheckpointError(f"{path} {other}")
        raise CheckpointError(
            f"{path} is a file; give its folder {path.parent}, an OpenAI checkpoint (*.pt), or a whisper.cpp model "
            "(ggml-*.bin)"
        )
    if not allow_pickle:
        raise CheckpointError(f"{path} is a pickle; set {_ALLOW_PICKLE} to load it (only tensors are allowed in it)")
    config, tensors = read_openai(path)
    folder = _folder_of_assets(path, config, has_tokenizer_elsewhere)
    return _Content(config, tensors, (path,), (folder,), config_is_changed=True, format="OpenAI")


def _folder_of_assets(path: Path, config: dict[str, Any], has_tokenizer_elsewhere: bool) -> Path:
    """Return the folder of a file's tokenizer: beside it, or that of the published model of its sizes."""
    if has_tokenizer_elsewhere or has_tokenizer(path.parent):
        return path.parent
    return _published_assets(path, config)


def _published_assets(path: Path, config: dict[str, Any]) -> Path:
    """Download tokenizer and generation config of the published model with the same sizes."""
    hub_id = matching_hub_id(config)
    advice = (
        f"name the model that it was trained from with {option('tokenizer', 'FOLDER_OR_ID')}, or put tokenizer.json, "
        f"tokenizer_config.json and generation_config.json beside {path}"
    )
    if hub_id is None:
        raise CheckpointError(f"no published Whisper has the sizes of {path}, so its tokenizer is not known; {advice}")
    try:
        return download(hub_id, None, ASSET_PATTERNS)
    except CheckpointError as error:
        raise CheckpointError(
            f"{path} carries no tokenizer, and that of {hub_id} is missing: {error.message}; {advice}"
        ) from error


def _read_adapter(folder: Path, allow_pickle: bool, given: str | None) -> _Content:
    """Read an adapter and its base, the one that it names unless another is given, and merge them."""
    adapter = read_adapter(folder, allow_pickle, given)
    try:
        is_local = expanded(adapter.base).exists()
        revision = None if is_local or given is not None else adapter.config.get("revision")
        place = _locate(adapter.base, revision, allow_pickle)
        if (place.path / "adapter_config.json").is_file():
            raise CheckpointError("it is itself an adapter; merge it first")
        base = _read(place.path, allow_pickle, None, has_tokenizer_elsewhere=has_tokenizer(folder))
    except (CheckpointError, OptionsError) as error:
        advice = "" if given is not None else f"; name another one with {option('base', 'FOLDER_OR_ID')}"
        raise CheckpointError(f"base {adapter.base!r} of the adapter {folder}: {error.message}{advice}") from error
    tensors = merged(base.tensors, adapter)
    config = _config_of_merged(base.config, adapter, tensors)
    return replace(
        base,
        config=config,
        tensors=tensors,
        files=(*base.files, *adapter.files),
        folders=(folder, *base.folders),
        config_is_changed=base.config_is_changed or config != base.config,
        format=f"LoRA on {base.format}",
    )


def _config_of_merged(config: dict[str, Any], adapter: Adapter, tensors: dict[str, StoredTensor]) -> dict[str, Any]:
    """Return the base's config with the vocabulary of the adapter, which may hold a resized embedding."""
    if "decoder.embed_tokens.weight" not in adapter.tensors:
        return config
    return {**config, "vocab_size": tensors["decoder.embed_tokens.weight"].shape[0]}


def _license(folders: tuple[Path, ...]) -> str | None:
    """Return the licence that the first model card names."""
    for folder in folders:
        card = folder / "README.md"
        try:
            text = read_limited(card, limits.JSON_BYTES, CheckpointError).decode("utf-8") if card.is_file() else ""
            values, _ = split_front_matter(text.replace("\r\n", "\n"))
        except (OSError, ValueError, CheckpointError):
            continue  # a card is written by hand: whatever is wrong with its YAML, it names no licence
        if isinstance(values.get("license"), str):
            return str(values["license"])
    return None

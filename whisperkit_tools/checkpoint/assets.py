"""The files that belong to the weights: tokenizer, config and generation config, completed where they are incomplete.

A decoder takes all special ids from the generation config and the tokenizer. Missing ids are derived here once, because
older fine-tunes have neither `tokenizer.json` nor `generation_config.json`.
"""

import re
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whisperkit_tools.checkpoint.tensors import read_json
from whisperkit_tools.compile_hints.text_decoder import AlignmentHeads
from whisperkit_tools.dimensions import ModelDimensions
from whisperkit_tools.errors import CheckpointError, option
from whisperkit_tools.files import write_whole
from whisperkit_tools.generation_config import check_generation_config
from whisperkit_tools.strict_json import json_text

OPTIONAL_ASSETS = ("normalizer.json",)
# The feature extractor of every Whisper. Its sizes depend on the model.
_FEATURES: dict[str, Any] = {
    "sampling_rate": 16_000,
    "n_fft": 400,
    "hop_length": 160,
    "do_normalize": False,
    "feature_extractor_type": "WhisperFeatureExtractor",
}
_ENGLISH_VOCABULARY = 51864  # OpenAI's English models; their tokenizer holds the other languages' tokens all the same
_START = "<|startoftranscript|>"
_END = "<|endoftext|>"


class Scratch:
    """A temporary folder for generated files, removed with its last user or when the program ends."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="wkt-assets-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)

    def write(self, name: str, value: object) -> Path:
        """Write a JSON file and return its path."""
        path = self.path / name
        write_whole(path, json_text(value, sort_keys=True) + "\n")
        return path


@dataclass(frozen=True, slots=True)
class Assets:
    """The files and values that `gather` found and made.

    Attributes:
        files: The files to ship beside the packages.
        generation_config: The completed generation config.
        alignment_heads: Its alignment heads, or None when it has none that the decoder has.
        notes: Derived and omitted values, for the user.
        scratch: Keeps generated files alive.
    """

    files: tuple[Path, ...]
    generation_config: dict[str, Any]
    alignment_heads: AlignmentHeads | None
    notes: tuple[str, ...]
    scratch: Scratch


def has_tokenizer(folder: Path) -> bool:
    """Return whether a folder holds a tokenizer, ready or as vocabulary and merges."""
    return (folder / "tokenizer.json").is_file() or all((folder / n).is_file() for n in ("vocab.json", "merges.txt"))


def gather(
    folders: tuple[Path, ...],
    dims: ModelDimensions,
    config: dict[str, Any],
    *,
    config_is_changed: bool,
    tokenizer_home: Path | None = None,
    generation: dict[str, Any] | None = None,
) -> Assets:
    """Collect the files to ship.

    Args:
        folders: Folders to search, the most specific first (an adapter before its base).
        dims: The architecture, which the tokenizer and the alignment heads must fit.
        config: The checkpoint's config.
        config_is_changed: Whether `config` differs from the file.
        tokenizer_home: Folder with the tokenizer, instead of one of `folders`.
        generation: What the weights' own format says about decoding, where there is no generation config.

    Raises:
        CheckpointError: There is no tokenizer, or one of another model, or the model hears other features than
            Whisper's.
    """
    scratch = Scratch()
    home = tokenizer_home or next((folder for folder in folders if has_tokenizer(folder)), None)
    if home is None:
        raise CheckpointError(
            f"no tokenizer in {', '.join(map(str, folders))}: name the model that this one was trained from with "
            f"{option('tokenizer', 'FOLDER_OR_ID')}, or copy its tokenizer.json and tokenizer_config.json beside the "
            "weights"
        )
    tokenizer, notes = _tokenizer(home, scratch)
    tokens = _tokens(tokenizer, dims)
    if tokenizer_home is not None:
        _check_start(tokenizer, tokens, config, folders)
    # A model with the same tokenizer knows what is not to be generated, and has the same tasks.
    searched = folders if tokenizer_home is None else (*folders, tokenizer_home)
    generation, changes = _generation(searched, {**config, **(generation or {})}, tokens, dims)
    heads, more = _alignment_heads(generation, dims)
    files = [tokenizer, _tokenizer_config(home, scratch)]
    config_file = _find(folders, "config.json")
    files.append(scratch.write("config.json", config) if config_is_changed or config_file is None else config_file)
    given = _find(searched, "generation_config.json")
    changed = given is None or bool(changes or more)
    files.append(scratch.write("generation_config.json", generation) if changed or given is None else given)
    files += [path for name in OPTIONAL_ASSETS if (path := _find((home, *folders), name))]
    features, corrected = _preprocessor(folders, dims, scratch)
    files += [features] if features is not None else []
    return Assets(tuple(files), generation, heads, (*notes, *changes, *more, *corrected), scratch)


def _preprocessor(
    folders: tuple[Path, ...], dims: ModelDimensions, scratch: Scratch
) -> tuple[Path | None, tuple[str, ...]]:
    """Return `preprocessor_config.json`, made to agree with the mel that is built.

    Lengths and bins follow from the weights. A wrong one in the file is corrected, because transformers would read it.

    Raises:
        CheckpointError: The features that the model was trained on are others than Whisper's.
    """
    for folder in folders:
        for name, inner in (("preprocessor_config.json", None), ("processor_config.json", "feature_extractor")):
            if not (folder / name).is_file():
                continue
            content = read_json(folder / name)
            content = content.get(inner, {}) if inner else content
            if not isinstance(content, dict) or not content:
                continue
            _check_features(folder / name, content)
            wrong = {
                key: value
                for key, value in _feature_sizes(dims).items()
                if content.get(key) is not None and content[key] != value
            }
            if not wrong:
                return (None, ()) if inner else (folder / name, ())
            told = ", ".join(f"{key} {content[key]} is {value}" for key, value in wrong.items())
            note = f"{name} contradicts the weights and is corrected: {told}"
            return scratch.write("preprocessor_config.json", {**content, **wrong}), (note,)
    return None, ()


def _feature_sizes(dims: ModelDimensions) -> dict[str, int]:
    """Return the values of a feature extractor's config that follow from the weights."""
    sizes = {"feature_size": dims.n_mels, "n_samples": dims.n_samples, "nb_max_frames": dims.n_frames}
    seconds, rest = divmod(dims.n_samples, _FEATURES["sampling_rate"])
    return sizes if rest else {**sizes, "chunk_length": seconds}


def _check_features(file: Path, content: dict[str, Any]) -> None:
    """Refuse features that the mel which is built is not.

    Raises:
        CheckpointError: Naming all that differ.
    """
    wrong = [
        f"{name} is {content[name]!r}, not {value!r}"
        for name, value in _FEATURES.items()
        if content.get(name) is not None and content[name] != value
    ]
    if wrong:
        raise CheckpointError(
            f"{file}: the model was trained on other features than Whisper's ({'; '.join(wrong)}), and the bundle's "
            "mel would not fit it; fine-tune with Whisper's own feature extractor, or correct the file if it is wrong"
        )


def _check_start(tokenizer: Path, tokens: Mapping[str, int], config: dict[str, Any], folders: tuple[Path, ...]) -> None:
    """Refuse a given tokenizer that numbers the special tokens in another way than the checkpoint does.

    Raises:
        CheckpointError: The first token of an answer differs.
    """
    path = _find(folders, "generation_config.json")
    stated = (read_json(path) if path else {}).get("decoder_start_token_id", config.get("decoder_start_token_id"))
    if isinstance(stated, int) and stated != tokens[_START]:
        raise CheckpointError(
            f"{tokenizer} belongs to another model: its {_START} is {tokens[_START]}, but the checkpoint starts "
            f"answers with {stated}; give the tokenizer of the model that it was trained from"
        )


def _find(folders: tuple[Path, ...], name: str) -> Path | None:
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def _tokenizer(home: Path, scratch: Scratch) -> tuple[Path, tuple[str, ...]]:
    """Return `tokenizer.json`, made from vocabulary and merges where there is none."""
    if (ready := home / "tokenizer.json").is_file():
        return ready, ()
    from transformers import WhisperTokenizer

    try:
        WhisperTokenizer.from_pretrained(home).save_pretrained(scratch.path)
    except Exception as error:  # the library reports a damaged vocabulary with many kinds of errors
        raise CheckpointError(f"no tokenizer can be made from vocab.json and merges.txt in {home}: {error}") from error
    return scratch.path / "tokenizer.json", ("tokenizer.json made from vocab.json and merges.txt",)


def _tokenizer_config(home: Path, scratch: Scratch) -> Path:
    """Return `tokenizer_config.json`. Without one, the runtime does not know the kind of the tokenizer."""
    for folder in (home, scratch.path):
        if (given := folder / "tokenizer_config.json").is_file():
            return given
    return scratch.write("tokenizer_config.json", {"tokenizer_class": "WhisperTokenizer"})


def _tokens(tokenizer: Path, dims: ModelDimensions) -> dict[str, int]:
    """Return the ids of all tokens.

    Raises:
        CheckpointError: It is not Whisper's kind of tokenizer, or has ids without a row in the embedding.
    """
    content = read_json(tokenizer)
    try:
        vocabulary = content["model"]["vocab"]
        tokens = {**vocabulary, **{token["content"]: token["id"] for token in content["added_tokens"]}}
        highest = max(tokens.values())
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{tokenizer} is not a tokenizer with 'model.vocab' and 'added_tokens'") from error
    missing = [name for name in (_START, _END, "<|notimestamps|>") if name not in tokens]
    if missing:
        raise CheckpointError(f"{tokenizer} is not Whisper's: it lacks {', '.join(missing)}")
    if highest >= dims.vocab_size:
        raise CheckpointError(
            f"{tokenizer} has ids up to {highest}, but the embedding has {dims.vocab_size} rows; "
            f"it belongs to another model"
        )
    return tokens


def _generation(
    folders: tuple[Path, ...], config: dict[str, Any], tokens: Mapping[str, int], dims: ModelDimensions
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the generation config with the ids that it lacks, and a note on the additions."""
    path = _find(folders, "generation_config.json")
    given = read_json(path) if path else {}
    where = str(path or "config.json")
    check_generation_config(given or config, dims.vocab_size, where=where, error=CheckpointError)
    derived = _derived(tokens, dims)
    if path is None:  # models from before generation configs carry these in their config
        blank = [tokens["Ġ"]] if "Ġ" in tokens else []
        derived["begin_suppress_tokens"] = [*blank, tokens[_END]]
        names = ("suppress_tokens", "begin_suppress_tokens", "bos_token_id", "pad_token_id", "alignment_heads")
        derived.update({name: config[name] for name in names if config.get(name) is not None})
    if given.get("is_multilingual", derived["is_multilingual"]):
        derived.update(_languages_and_tasks(tokens))
    added = {name: value for name, value in derived.items() if given.get(name) is None}
    note = (f"generation config completed with {', '.join(sorted(added))}",) if added else ()
    return {**given, **added}, note


def _derived(tokens: Mapping[str, int], dims: ModelDimensions) -> dict[str, Any]:
    """Return the fields of a generation config that follow from the tokenizer and the sizes."""
    values: dict[str, Any] = {
        "decoder_start_token_id": tokens[_START],
        "eos_token_id": tokens[_END],
        "no_timestamps_token_id": tokens["<|notimestamps|>"],
        "is_multilingual": dims.vocab_size != _ENGLISH_VOCABULARY and "<|translate|>" in tokens,
        "max_length": dims.n_text_ctx,
    }
    if "<|startofprev|>" in tokens:
        values["prev_sot_token_id"] = tokens["<|startofprev|>"]
    return values


def _languages_and_tasks(tokens: Mapping[str, int]) -> dict[str, Any]:
    """Return the ids of the languages and tasks that a multilingual tokenizer has."""
    languages = {name: at for name, at in tokens.items() if re.fullmatch(r"<\|[a-z]{2,3}\|>", name)}
    tasks = {name: tokens[f"<|{name}|>"] for name in ("transcribe", "translate") if f"<|{name}|>" in tokens}
    return {name: ids for name, ids in (("lang_to_id", languages), ("task_to_id", tasks)) if ids}


def _alignment_heads(
    generation: dict[str, Any], dims: ModelDimensions
) -> tuple[AlignmentHeads | None, tuple[str, ...]]:
    """Return the alignment heads, and remove them from the generation config if the decoder does not have all of them.

    Distilled checkpoints often carry the heads of their teacher, whose decoder has more layers.
    """
    given = generation.get("alignment_heads")
    if not given:
        return None, ()
    try:
        heads = tuple((int(layer), int(head)) for layer, head in given)
    except (TypeError, ValueError):
        heads = ((-1, -1),)
    if all(0 <= a < dims.decoder_layers and 0 <= b < dims.decoder_attention_heads for a, b in heads):
        return heads, ()
    del generation["alignment_heads"]
    size = f"{dims.decoder_layers} layers of {dims.decoder_attention_heads} heads"
    return None, (f"alignment heads of the generation config left out: they do not exist in a decoder of {size}",)

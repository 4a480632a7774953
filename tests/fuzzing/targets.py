"""The loaders that read files from elsewhere, each with the file that is mutated.

A target reads what it is given. It may raise the errors of this package, which a command reports in one line. Anything
else is an internal error.
"""

import contextlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from whisperkit_tools.demo import demo_checkpoint_dir


@dataclass(frozen=True)
class Target:
    """Attributes:
    name: Its name in the counts.
    seed: The healthy file.
    read: Reads a folder in which the mutated file lies.
    file: Its name there.
    """

    name: str
    seed: bytes
    read: Callable[[Path], object]
    file: str


RECORDING = demo_checkpoint_dir().parent / "audio" / "en_00.flac"


def _dataset(folder: Path) -> None:
    from whisperkit_tools.eval.datasets.open import DatasetOptions, open_dataset

    shutil.copyfile(RECORDING, folder / "a.wav")
    shutil.copyfile(RECORDING, folder / "a.flac")
    shutil.copyfile(RECORDING, folder / "1-2-3.flac")

    open_dataset(str(folder), DatasetOptions(skip_bad=True))


def _audio(folder: Path) -> None:
    from whisperkit_tools.eval.datasets.rows import header_duration_s
    from whisperkit_tools.transcribe.audio.load import load_audio

    (path,) = folder.iterdir()
    header_duration_s(path)
    load_audio(path)


def _manifest(folder: Path) -> None:
    from whisperkit_tools.manifest import read_manifest
    from whisperkit_tools.publishing.provenance import commands, source_of

    manifest = read_manifest(folder)
    json.dumps(manifest.to_json())
    if manifest.source is not None:
        source_of(manifest)
    list(commands("acme_whisper", manifest))


def _registry(folder: Path) -> None:
    from whisperkit_tools.publishing.index import list_variants
    from whisperkit_tools.publishing.registry.folder import FolderRegistry

    list_variants(FolderRegistry(folder))


def _journal(folder: Path) -> None:
    from whisperkit_tools.publishing.registry.base import RegistryChange
    from whisperkit_tools.publishing.registry.folder import FolderRegistry

    state = folder / ".wkt"
    (state / "stage").mkdir(parents=True)
    (state / "stage" / "0").write_bytes(b"x")
    (folder / "journal.json").rename(state / "journal.json")
    registry = FolderRegistry(folder)
    snapshot = registry.snapshot()
    registry.commit(RegistryChange({"z": b"z"}), snapshot)


def _table(folder: Path) -> None:
    from whisperkit_tools.publishing.device_table import build_table

    build_table("r", [], (folder / "config.json").read_bytes(), None, ())


def _card(folder: Path) -> None:
    from whisperkit_tools.publishing.card import CardModel, render_card

    render_card(CardModel("a/b", (), (), (), {}), [], (folder / "README.md").read_bytes())


def _generation(folder: Path) -> None:
    from whisperkit_tools.files import read_json_object
    from whisperkit_tools.transcribe.tokenizer import WhisperTokenizer

    WhisperTokenizer.load(
        demo_checkpoint_dir() / "tokenizer.json",
        read_json_object(folder / "generation_config.json"),
        vocab_size=2248,
        n_audio_ctx=1500,
    )


def _checkpoint(folder: Path) -> None:
    from whisperkit_tools.checkpoint import open_checkpoint

    for path in demo_checkpoint_dir().iterdir():
        if path.is_file() and not (folder / path.name).exists():
            (folder / path.name).symlink_to(path)
    open_checkpoint(str(folder))


def _adapter(folder: Path) -> None:
    from whisperkit_tools.checkpoint.lora import read_adapter, scaling

    (folder / "adapter_model.safetensors").symlink_to(demo_checkpoint_dir() / "model.safetensors")
    scaling(read_adapter(folder, allow_pickle=False).config, "decoder.layers.0.q_proj", 2)


def _recipe(folder: Path) -> None:
    from whisperkit_tools.quantization.recipe import read_recipe

    read_recipe(folder / "recipe.json")


def _rows(folder: Path) -> None:
    from whisperkit_tools.eval.reports.read import read_rows

    read_rows(folder / "results.jsonl")


_ROW = {
    "id": "a", "index": 0, "audio": "a.wav", "duration_s": 1.0, "language": "en", "speaker": None, "reference": "one",
    "hypothesis": "one", "alignment": [{"type": "equal", "reference": ["one"], "hypothesis": ["one"]}],
}  # fmt: skip
_DATASET_ROW = {"file_name": "a.wav", "text": "one two", "duration": 1.5, "language": "en", "words_s": [0.1, 0.5]}
_SETTINGS = {"nbits": 4, "axis": "output", "group_size": None}


def targets(audio: Mapping[str, bytes]) -> list[Target]:
    """Return all targets.

    Args:
        audio: Content of audio files by name.
    """
    demo = demo_checkpoint_dir()
    generation, config = (demo / "generation_config.json").read_bytes(), (demo / "config.json").read_bytes()
    manifest = Path(__file__).parents[1] / "data" / "manifests" / "palettize_compared.json"
    seeds = manifest.read_bytes() if manifest.is_file() else b'{"format": 1, "files": {}}'
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "demo", "lora_alpha": 8, "alpha_pattern": {"q_proj": 4}}
    version = {"variant": "a_b", "content": "0" * 64, "created": "2026-01-01", "tool_version": "1", "source": "a/b",
               "source_revision": None, "size_bytes": 5, "metrics": {"wer": {"x": 1.5}}}  # fmt: skip
    entry = {"identifiers": ["iPhone1"], "models": {"default": "a_b", "supported": ["a_b"]}}
    found = [
        Target("manifest", seeds, _manifest, "wkt.json"),
        Target(
            "index",
            _json({"format": 1, "versions": [version], "withdrawn": {}, "table": []}),
            _registry,
            "wkt-index.json",
        ),
        Target("journal", _json({"moves": {"a/b": "0"}, "deletions": ["c"], "tag": "v1"}), _journal, "journal.json"),
        Target("device table", _json({"name": "r", "version": "1", "device_support": [entry]}), _table, "config.json"),
        Target("card", b"---\nlicense: mit\ntags: [a, {b: 1}]\n---\n# x\n", _card, "README.md"),
        Target("generation config", generation, _generation, "generation_config.json"),
        Target("checkpoint config", config, _checkpoint, "config.json"),
        Target("adapter", _json(adapter), _adapter, "adapter_config.json"),
        Target(
            "recipe",
            _json({"format": 1, "tensors": {"AudioEncoder": {"w": {"compression": _SETTINGS}}}}),
            _recipe,
            "recipe.json",
        ),
        Target("rows of a run", _json(_ROW) + b"\n", _rows, "results.jsonl"),
        Target("metadata.json", _json([_DATASET_ROW, {**_DATASET_ROW, "id": "b"}]), _dataset, "metadata.json"),
        Target("metadata.jsonl", _json(_DATASET_ROW) + b"\n", _dataset, "metadata.jsonl"),
        Target("metadata.csv", b"file_name,text\na.wav,one\n", _dataset, "metadata.csv"),
        Target("trans.txt", b"1-2-3 ONE TWO\n", _dataset, "1-2.trans.txt"),
        Target("nlp", b"token|speaker|ts|endTs|punctuation|case|tags\none|1|0.1|0.2|.|LC|[]\n", _dataset, "a.nlp"),
    ]
    return found + [Target(f"audio {Path(name).suffix}", content, _audio, name) for name, content in audio.items()]


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


@contextlib.contextmanager
def emptied(folder: Path):
    """Yield an empty folder, and empty it again."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)

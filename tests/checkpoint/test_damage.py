"""Each way a checkpoint can be broken, and the message for it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkpoint_samples import edit_json, save, small_model
from safetensors.torch import load_file, save_file

from whisperkit_tools.checkpoint import open_checkpoint
from whisperkit_tools.errors import CheckpointError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(small_model(), tmp_path / "My model")


def test_all_problems_of_the_tensors_in_one_message(folder: Path) -> None:
    file = folder / "model.safetensors"
    state = load_file(file)
    del state["model.encoder.layer_norm.bias"]
    state["model.decoder.embed_tokens.weight"] = torch.zeros(41, 16)
    state["model.encoder.conv1.bias"] = torch.zeros(16, dtype=torch.int8)
    state["model.decoder.layers.2.fc1.bias"] = torch.zeros(64)
    save_file(state, file)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(folder))
    message = str(caught.value)
    assert "encoder.layer_norm.bias is missing" in message
    assert "decoder.embed_tokens.weight is [41, 16], expected [40, 16]" in message
    assert "encoder.conv1.bias is stored as I8, expected a floating-point type" in message
    assert "decoder.layers.2.fc1.bias has no place" in message


def test_long_lists_of_problems_are_cut(folder: Path) -> None:
    edit_json(folder / "config.json", encoder_layers=4)
    with pytest.raises(CheckpointError, match=r"and 20 more$"):
        open_checkpoint(str(folder))


def test_values_that_packages_cannot_hold(folder: Path) -> None:
    file = folder / "model.safetensors"
    state = load_file(file)
    state["model.encoder.conv1.bias"][3] = float("nan")
    state["model.encoder.layers.0.fc1.weight"][0, 0] = float("inf")
    state["model.encoder.layers.1.fc2.bias"][0] = -70000.0
    save_file(state, file)
    checkpoint = open_checkpoint(str(folder))
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load_encoder()
    assert "encoder.conv1.bias holds NaN or infinite values" in str(caught.value)
    assert "encoder.layers.0.fc1.weight holds NaN or infinite values" in str(caught.value)
    assert "encoder.layers.1.fc2.bias holds 70000, beyond float16's 65504" in str(caught.value)
    checkpoint.load_decoder()


def test_an_untied_output_layer_is_refused_and_an_equal_one_is_not(folder: Path) -> None:
    file = folder / "model.safetensors"
    state = load_file(file)
    embedding = state["model.decoder.embed_tokens.weight"]
    save_file({**state, "proj_out.weight": embedding.clone()}, file)
    open_checkpoint(str(folder)).load_decoder()
    save_file({**state, "proj_out.weight": embedding + 1}, file)
    with pytest.raises(CheckpointError, match=r"proj_out\.weight differs from decoder\.embed_tokens\.weight"):
        open_checkpoint(str(folder)).load_decoder()


@pytest.mark.parametrize("keep", [0, 5, 300, -7])
def test_truncated_safetensors(folder: Path, keep: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(
        CheckpointError, match=r"weights are truncated or not safetensors.*model\.safetensors.* bytes\)"
    ):
        open_checkpoint(str(folder))


def test_missing_shards(tmp_path: Path) -> None:
    folder = save(small_model(), tmp_path / "m", max_shard_size="20KB")
    first, second, *_ = sorted(folder.glob("*.safetensors"))
    first.unlink()
    second.unlink()
    with pytest.raises(CheckpointError, match=rf"lacks 2 of \d+ shards: {first.name}, {second.name}"):
        open_checkpoint(str(folder))
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "../elsewhere.safetensors"}}))
    with pytest.raises(CheckpointError, match="names files outside its folder"):
        open_checkpoint(str(folder))
    index.write_text("{}")
    with pytest.raises(CheckpointError, match="is not a shard index"):
        open_checkpoint(str(folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "wav2vec2"}, "is not a Whisper: its model_type is 'wav2vec2', expected 'whisper'"),
        ({"d_model": None, "vocab_size": None}, r"config\.json lacks d_model, vocab_size"),
        ({"encoder_layers": 0}, "impossible sizes: encoder_layers is 0"),
        ({"d_model": 17}, "encoder_attention_heads is 2, which does not divide d_model 17"),
        ({"activation_function": "relu"}, "activation_function 'relu'"),
    ],
)
def test_configs_that_are_not_whispers(folder: Path, changes: dict[str, Any], message: str) -> None:
    edit_json(folder / "config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(str(folder))


def test_folders_that_are_not_checkpoints(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*but it is empty"):
        open_checkpoint(str(tmp_path / "empty"))
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json is not valid JSON"):
        open_checkpoint(str(folder))
    with pytest.raises(CheckpointError, match="is a file; give its folder"):
        open_checkpoint(str(folder / "model.safetensors"))
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"needs config\.json and model\.safetensors, but it holds"):
        open_checkpoint(str(folder))


def test_weights_of_something_else(folder: Path) -> None:
    save_file({"lm.weight": torch.zeros(2)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"holds no tensors of a Whisper \(found lm\.weight\)"):
        open_checkpoint(str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="has no weights"):
        open_checkpoint(str(folder), allow_pickle=True)


def test_tokenizers_that_do_not_fit(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**tokenizer, "added_tokens": []}))
    with pytest.raises(CheckpointError, match=r"is not Whisper's: it lacks <\|startoftranscript\|>"):
        open_checkpoint(str(folder))
    tokenizer["added_tokens"].append({"id": 40, "content": "<|0.00|>"})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(CheckpointError, match="has ids up to 40, but the embedding has 40 rows"):
        open_checkpoint(str(folder))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="no tokenizer in"):
        open_checkpoint(str(folder))

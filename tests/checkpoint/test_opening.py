"""Opening checkpoints of every form, against transformers and PEFT."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkpoint_samples import assert_same_outputs, edit_json, save, small_model, write_tokenizer
from safetensors.torch import load_file, save_file
from transformers import WhisperForConditionalGeneration

from whisperkit_tools.checkpoint import open_checkpoint
from whisperkit_tools.checkpoint.naming import name_part, published_names
from whisperkit_tools.checkpoint.openai_format import matching_hub_id
from whisperkit_tools.errors import CheckpointError, OptionsError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(small_model(), tmp_path / "My model")


# Forms


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "20KB"}], ids=["single", "sharded"])
def test_hugging_face_folder(tmp_path: Path, options: dict[str, Any]) -> None:
    model = small_model()
    checkpoint = open_checkpoint(str(save(model, tmp_path / "My model (v2)", **options)))
    assert len(checkpoint.weight_files) == (1 if not options else len(list(tmp_path.rglob("*.safetensors"))))
    assert (checkpoint.org, checkpoint.model, checkpoint.revision) == ("local", "My-model-v2", None)
    assert_same_outputs(checkpoint, model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_stored_types_and_requested_types(tmp_path: Path, dtype: torch.dtype) -> None:
    model = small_model().to(dtype)
    checkpoint = open_checkpoint(str(save(model, tmp_path / "m")))
    encoder = checkpoint.load_encoder(torch.float16)
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float16}
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    expected = model.model.encoder.layers[1].fc1.weight.half()
    assert torch.equal(encoder.layers[1].fc1.weight[:, :, 0, 0], expected)


def test_pickled_weights_only_when_allowed(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="found only pickled weights; set allow_pickle=True"):
        open_checkpoint(str(folder))
    assert_same_outputs(open_checkpoint(str(folder), allow_pickle=True), small_model())


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("this must not run",))


def test_a_pickle_that_would_run_code_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"model.encoder.conv1.weight": Payload()}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin cannot be read as pickled weights"):
        open_checkpoint(str(folder), allow_pickle=True)
    assert "must not run" not in capsys.readouterr().out


@pytest.mark.parametrize("prefix", ["", "module.model."])
def test_other_name_prefixes(folder: Path, prefix: str) -> None:
    file = folder / "model.safetensors"
    state = {prefix + name.removeprefix("model."): tensor for name, tensor in load_file(file).items()}
    save_file(state, file)
    assert_same_outputs(open_checkpoint(str(folder)), small_model())


def openai_state(model: WhisperForConditionalGeneration) -> dict[str, torch.Tensor]:
    """Rename as OpenAI does, written out independently of the product's rules."""
    parts = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "out"}
    state = {}
    for name, tensor in model.model.state_dict().items():
        words = name.split(".")
        side = words[0]
        if "embed_positions" in words:
            words = [side, "positional_embedding"]
        elif "embed_tokens" in words:
            words = [side, "token_embedding", "weight"]
        elif words[1] == "layer_norm":
            words[1] = "ln_post" if side == "encoder" else "ln"
        elif words[1] == "layers":
            words[1] = "blocks"
            inner = {"self_attn": "attn", "encoder_attn": "cross_attn", "final_layer_norm": "mlp_ln"}
            inner |= {"self_attn_layer_norm": "attn_ln", "encoder_attn_layer_norm": "cross_attn_ln"}
            inner |= {"fc1": "mlp.0", "fc2": "mlp.2"}
            words[3:4] = inner[words[3]].split(".")
            words = [parts.get(word, word) for word in words]
        state[".".join(words)] = tensor
    return state


OPENAI_DIMS = {"n_mels": 80, "n_vocab": 40, "n_audio_ctx": 1500, "n_audio_state": 16, "n_audio_head": 2}
OPENAI_DIMS |= {"n_audio_layer": 2, "n_text_ctx": 448, "n_text_state": 16, "n_text_head": 2, "n_text_layer": 2}


def test_openai_file(tmp_path: Path) -> None:
    model = small_model()
    state = openai_state(model)
    assert {"decoder.blocks.1.cross_attn.query.bias", "encoder.ln_post.weight", "encoder.conv2.bias"} <= set(state)
    torch.save({"dims": OPENAI_DIMS, "model_state_dict": state}, tmp_path / "mine.pt")
    write_tokenizer(tmp_path)
    with pytest.raises(CheckpointError, match="is a pickle; set allow_pickle=True"):
        open_checkpoint(str(tmp_path / "mine.pt"))
    checkpoint = open_checkpoint(str(tmp_path / "mine.pt"), allow_pickle=True)
    assert (checkpoint.org, checkpoint.model) == ("local", "mine")
    assert_same_outputs(checkpoint, model)
    shipped = {path.name: path for path in checkpoint.assets}
    assert set(shipped) == {"tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json"}
    assert json.loads(shipped["config.json"].read_text())["decoder_ffn_dim"] == 64
    assert json.loads(shipped["generation_config.json"].read_text()) == checkpoint.generation_config
    assert checkpoint.generation_config["lang_to_id"] == {"<|en|>": 12, "<|es|>": 13}
    assert checkpoint.generation_config["task_to_id"] == {"translate": 14, "transcribe": 15}
    assert checkpoint.generation_config["begin_suppress_tokens"] == [0, 10]


def test_openai_file_without_a_tokenizer_of_unknown_sizes(tmp_path: Path) -> None:
    torch.save({"dims": OPENAI_DIMS, "model_state_dict": openai_state(small_model())}, tmp_path / "mine.pt")
    with pytest.raises(CheckpointError, match=r"no published Whisper has the sizes of .*put tokenizer\.json"):
        open_checkpoint(str(tmp_path / "mine.pt"), allow_pickle=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weights": 1}, r"is not an OpenAI Whisper: found keys \['weights'\]"),
        ([1], "is not an OpenAI Whisper: found list"),
        ({"dims": {"n_mels": 80}, "model_state_dict": {}}, "its 'dims' lack n_vocab, n_audio_ctx"),
    ],
)
def test_files_that_are_not_openais(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(str(tmp_path / "x.pt"), allow_pickle=True)


# Adapters


def train_adapter(folder: Path, base: Path, **options: Any) -> WhisperForConditionalGeneration:
    """Save an adapter with random weights; return PEFT's own merge."""
    import peft

    config = peft.LoraConfig(r=4, lora_alpha=6, **{"target_modules": ["q_proj", "v_proj", "fc1"], **options})
    model = peft.get_peft_model(WhisperForConditionalGeneration.from_pretrained(base), config)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            parameter.data = 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return model.merge_and_unload()


@pytest.mark.filterwarnings("ignore")  # PEFT's advice about what is trained
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"alpha_pattern": {"encoder.*q_proj": 17}, "rank_pattern": {"fc1": 2}},
        {"target_modules": ["conv1", "out_proj"]},
        {"modules_to_save": ["encoder_attn_layer_norm"]},
    ],
    ids=["plain", "rslora", "patterns", "convolution", "modules-to-save"],
)
def test_adapter_equals_pefts_merge(tmp_path: Path, folder: Path, options: dict[str, Any]) -> None:
    expected = train_adapter(tmp_path / "adapter", folder, **options)
    checkpoint = open_checkpoint(str(tmp_path / "adapter"))
    assert checkpoint.model == "adapter"
    assert {path.name for path in checkpoint.weight_files} == {"model.safetensors", "adapter_model.safetensors"}
    for name, tensor in expected.model.state_dict().items():
        torch.testing.assert_close(checkpoint.tensors[name].read(), tensor, msg=name)
    assert_same_outputs(checkpoint, expected)


@pytest.mark.filterwarnings("ignore")
def test_adapter_with_a_larger_vocabulary(tmp_path: Path, folder: Path) -> None:
    train_adapter(tmp_path / "adapter", folder)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    embedding = torch.randn(43, 16)
    save_file({**load_file(file), "base_model.model.model.decoder.embed_tokens.weight": embedding}, file)
    checkpoint = open_checkpoint(str(tmp_path / "adapter"))
    assert checkpoint.dims.vocab_size == 43
    assert torch.equal(checkpoint.load_decoder().embed_tokens.weight, embedding)
    config = next(path for path in checkpoint.assets if path.name == "config.json")
    assert json.loads(config.read_text())["vocab_size"] == 43


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "uses use_dora, which cannot be merged here; merge it with PEFT's merge_and_unload"),
        ({"init_lora_weights": "pissa"}, "uses init_lora_weights=pissa"),
        ({"peft_type": "IA3"}, "is a IA3 adapter; only LORA"),
        ({"base_model_name_or_path": None}, "does not name its base"),
        ({"base_model_name_or_path": "/no/where"}, "base '/no/where' of the adapter .*: no such file or folder"),
    ],
)
def test_adapters_that_cannot_be_merged(tmp_path: Path, folder: Path, changes: dict[str, Any], message: str) -> None:
    train_adapter(tmp_path / "adapter", folder)
    edit_json(tmp_path / "adapter" / "adapter_config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(str(tmp_path / "adapter"))


@pytest.mark.filterwarnings("ignore")
def test_adapter_of_another_model(tmp_path: Path, folder: Path) -> None:
    train_adapter(tmp_path / "adapter", folder)
    shutil.rmtree(folder)
    save(small_model(d_model=32, encoder_layers=1), folder)
    with pytest.raises(CheckpointError, match=r"does not fit its base .*do not give a weight of shape.*and \d+ more"):
        open_checkpoint(str(tmp_path / "adapter"))


# What travels along


def test_generation_config_is_completed_and_shipped(folder: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"alignment_heads": [[1, 0]], "suppress_tokens": [1]}))
    checkpoint = open_checkpoint(str(folder))
    assert checkpoint.alignment_heads == ((1, 0),)
    assert checkpoint.generation_config["no_timestamps_token_id"] == 18
    assert checkpoint.generation_config["suppress_tokens"] == [1]
    assert "begin_suppress_tokens" not in checkpoint.generation_config
    assert any(note.startswith("generation config completed with decoder_start_token_id") for note in checkpoint.notes)


def test_a_complete_generation_config_is_shipped_as_it_is(folder: Path) -> None:
    first = open_checkpoint(str(folder)).generation_config
    (folder / "generation_config.json").write_text(json.dumps(first))
    checkpoint = open_checkpoint(str(folder))
    assert folder / "generation_config.json" in checkpoint.assets
    assert checkpoint.notes == ()


def test_alignment_heads_of_a_teacher_are_left_out(folder: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"alignment_heads": [[7, 0], [1, 1]]}))
    checkpoint = open_checkpoint(str(folder))
    assert checkpoint.alignment_heads is None
    assert "alignment_heads" not in checkpoint.generation_config
    assert any("do not exist in a decoder of 2 layers of 2 heads" in note for note in checkpoint.notes)


def test_licence_of_the_model_card(folder: Path) -> None:
    assert open_checkpoint(str(folder)).license is None
    (folder / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: en\n---\n# Card\n")
    assert open_checkpoint(str(folder)).license == "apache-2.0"
    (folder / "README.md").write_text("---\nlicense: [broken\n---\n")
    assert open_checkpoint(str(folder)).license is None


def test_content_hash(folder: Path) -> None:
    import hashlib

    expected = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert open_checkpoint(str(folder)).content_sha256 == {"model.safetensors": expected}


def test_tokenizer_from_vocabulary_and_merges(shared: Path, tmp_path: Path) -> None:
    from transformers import WhisperTokenizer

    micro = shared / "checkpoints" / "whisper-micro"
    folder = tmp_path / "micro"
    shutil.copytree(micro, folder, ignore=shutil.ignore_patterns("tokenizer*", "heldout"))
    content = json.loads((micro / "tokenizer.json").read_text())
    added = {token["content"]: token["id"] for token in content["added_tokens"]}
    (folder / "vocab.json").write_text(
        json.dumps({k: v for k, v in content["model"]["vocab"].items() if k not in added})
    )
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in content["model"]["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    (folder / "added_tokens.json").write_text(json.dumps(added))
    checkpoint = open_checkpoint(str(folder))
    assert "tokenizer.json made from vocab.json and merges.txt" in checkpoint.notes
    made = next(path for path in checkpoint.assets if path.name == "tokenizer.json")
    text = "Please turn on the kitchen light at ninety five."
    expected = WhisperTokenizer.from_pretrained(micro)(text).input_ids
    assert WhisperTokenizer.from_pretrained(made.parent)(text).input_ids == expected


@pytest.mark.parametrize("name", ["whisper-tiny", "whisper-tiny.en", "whisper-large-v3"])
def test_ids_derived_from_published_tokenizers_equal_the_published_ones(
    shared: Path, tmp_path: Path, name: str
) -> None:
    """The oracle is the generation config that OpenAI's checkpoint carries, which the derivation does not see."""
    published = shared / "checkpoints" / name
    sizes = json.loads((published / "config.json").read_text())
    small_model(vocab_size=sizes["vocab_size"], num_mel_bins=sizes["num_mel_bins"]).save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(published / file, tmp_path)
    found = open_checkpoint(str(tmp_path)).generation_config
    expected = json.loads((published / "generation_config.json").read_text())
    derived = ["decoder_start_token_id", "eos_token_id", "no_timestamps_token_id", "is_multilingual", "max_length"]
    for key in [*derived, "lang_to_id", "task_to_id", "prev_sot_token_id"]:
        if key in expected:
            assert found[key] == expected[key], key
    assert ("lang_to_id" in found) == expected["is_multilingual"]


# Names


def test_published_names() -> None:
    assert published_names("openai/whisper-large-v3") == ("openai", "whisper-large-v3")
    assert published_names("openai/whisper-large-v3-turbo") == ("openai", "whisper-large-v3-v20240930")
    assert published_names("distil-whisper/distil-large-v3.5") == ("distil-whisper", "distil-large-v3.5")
    assert name_part(" ../Größe & more/") == "Gr-e-more"
    assert name_part("..") == "model"


@pytest.mark.parametrize(
    ("layers", "decoder_layers", "vocabulary", "hub_id"),
    [
        (4, 4, 51864, "openai/whisper-tiny.en"),
        (24, 24, 51865, "openai/whisper-medium"),
        (32, 32, 51866, "openai/whisper-large-v3"),
        (32, 4, 51866, "openai/whisper-large-v3-turbo"),
        (32, 32, 51864, None),
        (4, 4, 51866, None),
        (5, 5, 51865, None),
    ],
)
def test_published_model_of_the_same_sizes(
    layers: int, decoder_layers: int, vocabulary: int, hub_id: str | None
) -> None:
    config = {"encoder_layers": layers, "decoder_layers": decoder_layers, "vocab_size": vocabulary}
    assert matching_hub_id(config) == hub_id


@pytest.mark.parametrize(
    ("source", "kind", "message"),
    [
        ("larg-v3", OptionsError, "unknown checkpoint 'larg-v3': did you mean large-v3"),
        ("zzzzzz", OptionsError, "unknown checkpoint 'zzzzzz': known names: demo, tiny, tiny.en"),
        ("./missing", CheckpointError, "no such file or folder"),
        ("a/b/c", CheckpointError, "no such file or folder"),
        ("mine.pt", CheckpointError, "no such file or folder"),
    ],
)
def test_unknown_sources(source: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        open_checkpoint(source)


def test_revision_of_a_local_checkpoint(folder: Path) -> None:
    with pytest.raises(OptionsError, match=r"revision is 'main', but .* is local; only a Hub source has revisions"):
        open_checkpoint(str(folder), revision="main")

"""Small checkpoints that tests open, break and compare."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from whisperkit_tools.checkpoint import Checkpoint

TOKENS = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|es|>", "<|translate|>", "<|transcribe|>"]
TOKENS += ["<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]


def write_tokenizer(folder: Path) -> None:
    added = [{"id": 10 + at, "content": content} for at, content in enumerate(TOKENS)]
    vocabulary = {"Ġ": 0, "a": 1, "b": 2}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": added}))


def small_model(**changes: Any) -> WhisperForConditionalGeneration:
    config = WhisperConfig(
        **{
            "vocab_size": 40,
            "num_mel_bins": 80,
            "d_model": 16,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "pad_token_id": 10,
            "bos_token_id": 10,
            "eos_token_id": 10,
            "decoder_start_token_id": 11,
            "attn_implementation": "eager",
            **changes,
        }
    )
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def save(model: WhisperForConditionalGeneration, folder: Path, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    write_tokenizer(folder)
    return folder


def edit_json(path: Path, **changes: Any) -> None:
    """Change fields of a JSON file. None deletes a field."""
    value = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: content for name, content in value.items() if content is not None}))


def assert_same_outputs(checkpoint: Checkpoint, model: WhisperForConditionalGeneration) -> None:
    features = torch.randn(1, 80, 3000)
    encoder, decoder = checkpoint.load_encoder(), checkpoint.load_decoder(kv_length=8)
    channels = checkpoint.dims.d_model * checkpoint.dims.decoder_layers
    ids, position = torch.tensor([3], dtype=torch.int32), torch.tensor([0], dtype=torch.int32)
    here = torch.eye(1, 8)
    with torch.no_grad():
        expected = model(input_features=features, decoder_input_ids=torch.tensor([[3]]))
        embeds = encoder(features[:, :, None])
        caches = torch.zeros(1, channels, 1, 8)
        logits, *_ = decoder(ids, position, caches, caches, here, embeds, (1 - here) * -1e4)
    expected_embeds = expected.encoder_last_hidden_state.transpose(1, 2)[:, :, None]
    torch.testing.assert_close(embeds, expected_embeds, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits, expected.logits, atol=1e-4, rtol=1e-4)

"""Choosing alignment heads: the score on made-up attention, the attention against transformers, the times on speech."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from whisperkit_tools.checkpoint import open_checkpoint
from whisperkit_tools.compile_hints.mel_spectrogram import MelSpectrogram
from whisperkit_tools.compile_hints.text_decoder import AlignmentHeads, TextDecoder
from whisperkit_tools.conversion.alignment_heads import (
    chance_scores,
    choose_alignment_heads,
    head_scores,
    positions_with_sound,
    select,
    transcribe_attention,
)
from whisperkit_tools.dimensions import ModelDimensions

TOKENS, POSITIONS = 40, 400


def attention_at(centres: np.ndarray, width: float) -> torch.Tensor:
    """Return bell-shaped attention `[tokens, positions]` of a standard deviation of `width` positions."""
    distance = (np.arange(POSITIONS) - centres[:, None]) / width
    weights = np.exp(-0.5 * distance**2)
    return torch.tensor(weights / weights.sum(axis=1, keepdims=True)).float()


def typical_heads() -> dict[str, torch.Tensor]:
    moving = np.linspace(10, 390, TOKENS)
    return {
        "follows exactly": attention_at(moving, 1),
        "follows loosely": attention_at(moving, 10),
        "follows broadly": attention_at(moving, 40),
        "stands still": attention_at(np.full(TOKENS, 200), 1),
        "goes backwards": attention_at(moving[::-1], 1),
        "looks everywhere": torch.full((TOKENS, POSITIONS), 1 / POSITIONS),
        "looks anywhere": torch.rand(TOKENS, POSITIONS, generator=torch.Generator().manual_seed(0)) / POSITIONS * 2,
    }


def test_scores_of_typical_heads() -> None:
    heads = typical_heads()
    scores = dict(zip(heads, head_scores(torch.stack(list(heads.values()))[None])[0].tolist(), strict=True))
    assert scores["follows exactly"] > 0.99
    assert 0.3 < scores["follows loosely"] < 0.5
    assert max(scores["stands still"], scores["goes backwards"], scores["looks everywhere"]) < 0.2


def test_broad_attention_that_follows_is_told_from_sharp_attention_that_does_not() -> None:
    heads = typical_heads()
    weights = torch.stack(list(heads.values()))[None]
    scores, chance = head_scores(weights), chance_scores(weights)
    times = dict(zip(heads, (scores / chance)[0].tolist(), strict=True))
    assert min(times["follows exactly"], times["follows loosely"], times["follows broadly"]) > 2
    assert times["stands still"] == pytest.approx(1, abs=0.01)
    assert times["looks everywhere"] == pytest.approx(1, abs=0.01)
    assert max(times["goes backwards"], times["looks anywhere"]) < 1.2
    # Alone it is found, though "stands still" scores higher.
    broad = [list(heads).index(name) for name in ("follows broadly", "stands still", "looks everywhere")]
    assert scores[0, broad[0]] < scores[0, broad[1]]
    assert select(scores[:, broad], chance[:, broad]).heads == ((0, 0),)


def test_selection() -> None:
    choice = select(torch.tensor([[0.1, 0.5], [0.8, 0.7]]), torch.tensor([[0.1, 0.5], [0.2, 0.25]]))
    assert choice.heads == ((1, 0), (1, 1))
    assert "2 alignment heads chosen on speech (they follow it up to 4.0 times as closely" in choice.reason
    none = select(torch.tensor([[0.1, 0.5]]), torch.tensor([[0.06, 0.4]]))
    assert none.heads is None
    assert "at best 1.7 times as closely as with the tokens in another order, needed 2" in none.reason


def test_positions_with_sound() -> None:
    audio = np.zeros(3200, np.float32)
    assert positions_with_sound(audio) == 0
    audio[320] = 0.5
    assert positions_with_sound(audio) == 2


def test_watched_attention_equals_transformers() -> None:
    sizes = {"encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    sizes |= {"d_model": 16, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "vocab_size": 40}
    special = {"pad_token_id": 30, "bos_token_id": 30, "eos_token_id": 30, "decoder_start_token_id": 31}
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(WhisperConfig(**sizes, **special, attn_implementation="eager")).eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    decoder = TextDecoder(ModelDimensions(n_mels=80, **sizes))
    decoder.load_state_dict(model.model.decoder.state_dict())
    embeds = torch.randn(1, 1500, 16)
    generation = {
        "decoder_start_token_id": 31,
        "eos_token_id": 30,
        "no_timestamps_token_id": 35,
        "is_multilingual": True,
        "lang_to_id": {"<|en|>": 32},
        "task_to_id": {"transcribe": 33},
        "suppress_tokens": [3],
    }
    prompt = torch.tensor([[31, 32, 33, 35]])
    with torch.inference_mode():
        tokens, found = transcribe_attention(decoder, embeds.transpose(1, 2)[:, :, None], generation)
        expected_rows = []
        while len(expected_rows) < 6:
            output = model(encoder_outputs=(embeds,), decoder_input_ids=prompt, output_attentions=True)
            logits = output.logits[0, -1]
            logits[[3, 31]] = -torch.inf
            logits[35:] = -torch.inf
            if int(logits.argmax()) == 30:
                break
            expected_rows.append(torch.stack([layer[0, :, -1] for layer in output.cross_attentions]))
            prompt = torch.cat([prompt, logits.argmax()[None, None]], dim=1)
    assert expected_rows
    assert tokens[: len(expected_rows)] == prompt[0, 4:].tolist()
    expected = torch.stack(expected_rows, dim=2)
    torch.testing.assert_close(found[:, :, : expected.shape[2]], expected, atol=1e-6, rtol=1e-4)


def packed(folder: Path, first: int) -> tuple[np.ndarray, list[float]]:
    """Join five utterances with pauses; return the window and the seconds at which each begins to sound."""
    metadata = json.loads((folder / "metadata.json").read_text())
    window, starts, at = np.zeros(480_000, np.float32), [], 8_000
    for entry in metadata[first : first + 5]:
        audio, _ = soundfile.read(folder / entry["audio"], dtype="float32")
        window[at : at + len(audio)] = audio
        starts.append((at + int(np.flatnonzero(np.abs(audio) > 0.01)[0])) / 16_000)
        at += len(audio) + 9_600
    return window, starts


def row_starts(cost: np.ndarray) -> np.ndarray:
    """Return the column at which the cheapest monotonic path enters each row: plain dynamic time warping."""
    rows, columns = cost.shape
    total = np.full((rows + 1, columns + 1), np.inf)
    total[0, 0] = 0
    for row in range(rows):
        for column in range(columns):
            before = min(total[row, column], total[row, column + 1], total[row + 1, column])
            total[row + 1, column + 1] = cost[row, column] + before
    starts = np.zeros(rows)
    row, column = rows, columns
    while row and column:
        starts[row - 1] = column - 1
        steps = [(row - 1, column - 1), (row - 1, column), (row, column - 1)]
        row, column = min(steps, key=lambda cell: total[cell])
    return starts


def test_chosen_heads_time_speech_as_well_as_the_checkpoints_own(shared: Path) -> None:
    source = shared / "checkpoints" / "whisper-micro"
    checkpoint = open_checkpoint(str(source))
    assert checkpoint.alignment_heads is not None
    windows = [packed(source / "heldout", first) for first in (0, 5)]
    choice = choose_alignment_heads(checkpoint, [window for window, _ in windows])
    assert choice.heads is not None
    errors: dict[AlignmentHeads, list[float]] = {choice.heads: [], checkpoint.alignment_heads: []}
    full_stop = json.loads((source / "tokenizer.json").read_text())["model"]["vocab"]["."]
    encoder, decoder = checkpoint.load_encoder(), checkpoint.load_decoder()
    for window, starts in windows:
        with torch.inference_mode():
            embeds = encoder(MelSpectrogram(80)(torch.from_numpy(window)))
            tokens, weights = transcribe_attention(decoder, embeds, checkpoint.generation_config)
        sentences = [at + 1 for at, token in enumerate(tokens[:-1]) if token == full_stop]
        assert len(sentences) == 4
        for heads, found in errors.items():
            seen = torch.stack([weights[layer, head] for layer, head in heads]).mean(0)
            begins = 0.02 * row_starts(-seen[:, : positions_with_sound(window)].double().numpy())
            found += np.abs(begins[sentences] - starts[1:]).tolist()
    chosen, own = (float(np.mean(found)) for found in errors.values())
    # A sentence's first row begins somewhere in the pause of 0.6 s and the utterance's own silence before it.
    assert chosen < 0.6
    assert chosen <= own + 0.02

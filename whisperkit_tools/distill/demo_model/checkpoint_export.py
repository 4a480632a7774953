"""Export of the trained weights to a checkpoint folder in Hugging Face format."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import GenerationConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration
from transformers.models.whisper.generation_whisper import _dynamic_time_warping, _median_filter

from whisperkit_tools.distill.demo_model.recordings import LEAD_S, pad_utterance
from whisperkit_tools.distill.demo_model.synthesis import Utterance
from whisperkit_tools.distill.demo_model.vocabulary import SpecialIds, save_tokenizer
from whisperkit_tools.distill.demo_model.windows import MAX_INITIAL_TIMESTAMP_S, POSITION_S, LogMel
from whisperkit_tools.files import write_whole
from whisperkit_tools.speech import SAMPLE_RATE_HZ, WINDOW_SAMPLES
from whisperkit_tools.strict_json import parse_json

MEDIAN_WIDTH = 7


def generation_config(ids: SpecialIds, tokenizer: Tokenizer, heads: list[tuple[int, int]]) -> GenerationConfig:
    """Return the generation config of the checkpoint, as transformers' `generate` reads it."""
    blank = tokenizer.encode(" ").ids
    return GenerationConfig(
        alignment_heads=[list(head) for head in heads],
        begin_suppress_tokens=[*blank, ids.end],
        bos_token_id=ids.end,
        decoder_start_token_id=ids.start,
        eos_token_id=ids.end,
        is_multilingual=True,
        lang_to_id=ids.languages,
        max_initial_timestamp_index=round(MAX_INITIAL_TIMESTAMP_S / POSITION_S),
        max_length=448,
        no_timestamps_token_id=ids.no_timestamps,
        pad_token_id=ids.end,
        prev_sot_token_id=ids.previous,
        return_timestamps=False,
        suppress_tokens=list(range(ids.translate, ids.no_timestamps)),
        task_to_id={"transcribe": ids.transcribe, "translate": ids.translate},
    )


def _cross_attention(model: WhisperForConditionalGeneration, features: Tensor, tokens: list[int]) -> Tensor:
    """Return the cross-attention weights of one utterance, [layers, heads, tokens, 1500]."""
    with torch.no_grad():
        output = model(input_features=features, decoder_input_ids=torch.tensor([tokens]), output_attentions=True)
    return torch.stack([layer[0] for layer in output.cross_attentions])


def _word_errors(weights: Tensor, word_tokens: list[int], words_s: np.ndarray) -> float:
    """Return the mean absolute error in seconds of the word starts that dynamic time warping finds.

    Args:
        weights: [heads, tokens, frames] of the heads to average. The first row predicts the first text token.
        word_tokens: Index of each word's first token.
        words_s: The true start of each word.

    Source: openai/whisper timing.py, `find_alignment`.
    """
    deviation, mean = torch.std_mean(weights, dim=-2, keepdim=True, unbiased=False)
    smooth = _median_filter((weights - mean) / deviation.clamp(min=1e-9), MEDIAN_WIDTH)
    rows, columns = _dynamic_time_warping(-smooth.mean(dim=0).double().numpy())
    jumps = np.pad(np.diff(rows), (1, 0), constant_values=1).astype(bool)
    starts_s = columns[jumps] * POSITION_S
    return float(np.abs(starts_s[word_tokens] - words_s).mean())


def heads_by_word_error(
    model: WhisperForConditionalGeneration, tokenizer: Tokenizer, ids: SpecialIds, utterances: list[Utterance]
) -> tuple[list[tuple[int, int]], float]:
    """Return the cross-attention heads that find words best, added one by one while the error falls.

    `conversion.alignment_heads` chooses without knowing the times of the words, as it must for any checkpoint. Here the
    synthesizer reports them, so the error of the words themselves decides.

    Args:
        model: The trained model, with eager attention, because only that returns weights.
        tokenizer: Its tokenizer.
        ids: Its special ids.
        utterances: Held-out speech with known word times.

    Returns:
        heads: (layer, head) pairs.
        error_s: Mean absolute error of the word starts with these heads.
    """
    mel = LogMel()
    cases = []
    for utterance in utterances:
        audio = torch.from_numpy(pad_utterance(utterance))
        features = mel(torch.nn.functional.pad(audio, (0, WINDOW_SAMPLES - len(audio)))[None])
        text = tokenizer.encode(f" {utterance.text}")
        prefix = [ids.start, ids.languages[f"<|{utterance.language}|>"], ids.transcribe, ids.no_timestamps]
        weights = _cross_attention(model, features, [*prefix, *text.ids])[:, :, len(prefix) - 1 :]
        frames = round(len(audio) / SAMPLE_RATE_HZ / POSITION_S)
        firsts = [index for index, token in enumerate(text.tokens) if token.startswith("Ġ")]
        cases.append((weights[..., :frames], firsts, np.array(utterance.words_s) + LEAD_S))

    def error(heads: list[tuple[int, int]]) -> float:
        return float(np.mean([_word_errors(torch.stack([w[h] for h in heads]), f, t) for w, f, t in cases]))

    layers, count = cases[0][0].shape[:2]
    candidates = [(layer, head) for layer in range(layers) for head in range(count)]
    chosen: list[tuple[int, int]] = []
    best = float("inf")
    while candidates:
        errors = {head: error([*chosen, head]) for head in candidates}
        head = min(errors, key=lambda item: errors[item])
        if errors[head] >= best:
            break
        best = errors[head]
        chosen.append(head)
        candidates.remove(head)
    return sorted(chosen), best


def export_checkpoint(
    state: dict[str, Tensor],
    model: WhisperForConditionalGeneration,
    tokenizer: Tokenizer,
    ids: SpecialIds,
    utterances: list[Utterance],
    folder: Path,
) -> dict[str, Any]:
    """Write the checkpoint, and return the figures of its alignment heads.

    normalizer.json, openai/whisper's table of English spellings (MIT), is data that no script makes. The one in
    `folder` stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.load_state_dict(state)
    model.half().float().eval()  # the heads are chosen on the weights as they are stored
    model.set_attn_implementation("eager")
    heads, error_s = heads_by_word_error(model, tokenizer, ids, utterances)
    model.generation_config = generation_config(ids, tokenizer, heads)
    model.half().save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)
    normalizer = folder / "normalizer.json"
    save_tokenizer(tokenizer, folder, normalizer if normalizer.exists() else None)
    return {"alignment_heads": [list(head) for head in heads], "word_start_error_s": round(error_s, 4)}


def write_figures(path: Path, figures: dict[str, Any]) -> None:
    """Merge `figures` into the JSON file at `path`."""
    known: dict[str, Any] = parse_json(path.read_bytes()) if path.exists() else {}
    write_whole(path, json.dumps({**known, **figures}, indent=1, ensure_ascii=False) + "\n")

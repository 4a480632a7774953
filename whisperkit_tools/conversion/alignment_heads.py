"""The choice of alignment heads on speech, for checkpoints that name none or those of another model.

A head is good for word timestamps when, token after token, it attends to a small stretch of audio and that stretch
moves on. So the score of a head is its attention within 100 ms of the best path that advances with every token. It is
one for a head that follows the speech exactly, and near zero for one that attends everywhere.

A score alone says little: a small model's heads follow the speech with broad attention, and a few tokens find a path in
anything. So it is compared with chance: the score of the same attention with its tokens in another order. A head that
follows the speech then loses most of its score. One that attends everywhere, or always to one place, loses none.

Source: the idea of choosing heads from their attention: k2-fsa/sherpa-onnx, pull request 2945.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from whisperkit_tools.checkpoint import Checkpoint
from whisperkit_tools.compile_hints.mel_spectrogram import MelSpectrogram
from whisperkit_tools.compile_hints.text_decoder import AlignmentHeads, TextDecoder, TextDecoderLayer
from whisperkit_tools.conversion.components import one_window

SAMPLES_PER_POSITION = 320  # an encoder position is two mel frames, 20 ms
_REACH = 5  # positions on each side of the path that count as on it
_ADVANCE = 2  # minimum number of positions that the path moves on with each token
_MAX_TOKENS = 120  # enough to tell heads apart, and bounded for a model that repeats itself
_MIN_TOKENS = 8
_TIMES_CHANCE = 2.0  # heads of trained models reach 2.7 to 4.3 where they follow the speech, others 0.9 to 1.6
_SHUFFLES = 4
_RELATIVE_TO_BEST = 0.7
_MAX_HEADS = 10
_SILENCE = 1e-3


@dataclass(frozen=True, slots=True)
class HeadChoice:
    """Chosen alignment heads, or the reason why there are none.

    Attributes:
        heads: The heads, the best first, or None when none follows the speech.
        reason: The reason of the choice, for the user.
        scores: `[layers, heads]`, each head's score. None when nothing could be measured.
        chance: `[layers, heads]`, each head's score with the tokens in another order.
    """

    heads: AlignmentHeads | None
    reason: str
    scores: Tensor | None = None
    chance: Tensor | None = None


def choose_alignment_heads(checkpoint: Checkpoint, windows: Sequence[NDArray[np.float32]]) -> HeadChoice:
    """Choose the decoder heads whose attention follows the speech.

    The components are loaded in float32, one after the other.

    Args:
        checkpoint: The checkpoint.
        windows: Speech, each `[480000]` samples at 16 kHz, padded with zeros.
    """
    with torch.inference_mode():
        embeds = _encode(checkpoint, windows)
        decoder = checkpoint.load_decoder(kv_length=checkpoint.dims.n_text_ctx)
        measured = []
        for window, encoded in zip(windows, embeds, strict=True):
            _, weights = transcribe_attention(decoder, encoded, checkpoint.generation_config)
            spoken = positions_with_sound(window)
            if weights.shape[2] >= _MIN_TOKENS and spoken > _ADVANCE * weights.shape[2]:
                heard = weights[..., :spoken]
                measured.append((weights.shape[2], torch.stack([head_scores(heard), chance_scores(heard)])))
    if not measured:
        return HeadChoice(
            None, "no alignment heads chosen: the model writes too little text for the speech it was given"
        )
    total = sum(tokens for tokens, _ in measured)
    scores, chance = torch.stack([tokens / total * of_window for tokens, of_window in measured]).sum(0)
    return select(scores, chance)


def select(scores: Tensor, chance: Tensor) -> HeadChoice:
    """Select the head that is furthest above chance, and those that are close to it.

    Args:
        scores: `[layers, heads]`.
        chance: `[layers, heads]`, the same with the tokens in another order.
    """
    times = (scores / chance.clamp(min=torch.finfo(chance.dtype).tiny)).flatten()
    order = times.argsort(descending=True)[:_MAX_HEADS].tolist()
    best = float(times[order[0]])
    if best < _TIMES_CHANCE:
        return HeadChoice(
            None,
            f"no alignment heads chosen: the cross-attention does not follow the speech (at best {best:.1f} times as "
            f"closely as with the tokens in another order, needed {_TIMES_CHANCE:g})",
            scores,
            chance,
        )
    minimum = max(_TIMES_CHANCE, _RELATIVE_TO_BEST * best)
    near = tuple(divmod(index, scores.shape[1]) for index in order if times[index] >= minimum)
    return HeadChoice(
        near,
        f"{len(near)} alignment heads chosen on speech (they follow it up to {best:.1f} times as closely as with the "
        "tokens in another order)",
        scores,
        chance,
    )


def chance_scores(weights: Tensor) -> Tensor:
    """Return the `head_scores` that each head reaches with the tokens in another order."""
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(weights.shape[2], generator=generator) for _ in range(_SHUFFLES)]
    return torch.stack([head_scores(weights[:, :, order]) for order in orders]).mean(0)


def head_scores(weights: Tensor) -> Tensor:
    """Score how well each head's attention follows a path that advances with every token.

    Args:
        weights: `[layers, heads, tokens, positions]`, attention over the positions with sound.

    Returns:
        `[layers, heads]`, the mean attention on the best path, between 0 and 1.
    """
    width = 2 * _REACH + 1
    near = torch.nn.functional.avg_pool1d(weights.flatten(0, 1), width, 1, _REACH) * width  # zeros beyond the edges
    best = near[:, 0]
    for token in range(1, near.shape[1]):
        so_far = best.cummax(dim=-1).values
        # A path cannot have come from the last positions, nor be at the first ones.
        reached = torch.nn.functional.pad(so_far[:, :-_ADVANCE], (_ADVANCE, 0), value=-torch.inf)
        best = reached + near[:, token]
    return (best.max(dim=-1).values / near.shape[1]).view(weights.shape[:2])


def positions_with_sound(audio: NDArray[np.float32]) -> int:
    """Return the number of encoder positions up to the last sound, without the silence after it."""
    sound = np.flatnonzero(np.abs(audio) > _SILENCE)
    return int(-(-(sound[-1] + 1) // SAMPLES_PER_POSITION)) if sound.size else 0


def transcribe_attention(
    decoder: TextDecoder, encoder_output_embeds: Tensor, generation: dict[str, Any]
) -> tuple[list[int], Tensor]:
    """Transcribe a window greedily and without timestamps, and record the attention of all heads.

    Args:
        decoder: The decoder.
        encoder_output_embeds: `[1, D, 1, 1500]`.
        generation: The generation config, for the special ids.

    Returns:
        The text tokens, and `[layers, heads, tokens, 1500]`, the attention with which each was predicted.
    """
    watched = _WatchedDecoder(decoder, encoder_output_embeds)
    start = generation["decoder_start_token_id"]
    logits, weights = watched.step(start)
    if generation.get("is_multilingual") and generation.get("lang_to_id") and generation.get("task_to_id"):
        languages = list(generation["lang_to_id"].values())
        watched.step(languages[int(logits[languages].argmax())])
        watched.step(generation["task_to_id"]["transcribe"])
    logits, weights = watched.step(generation["no_timestamps_token_id"])
    suppressed = [*(generation.get("suppress_tokens") or []), start]
    at_first = generation.get("begin_suppress_tokens") or []
    tokens: list[int] = []
    rows: list[Tensor] = []
    while len(rows) < min(_MAX_TOKENS, decoder.dims.n_text_ctx - 4):
        logits[suppressed if rows else [*suppressed, *at_first]] = -torch.inf
        logits[generation["no_timestamps_token_id"] :] = -torch.inf  # timestamps follow it in every Whisper
        token = int(logits.argmax())
        if token == generation["eos_token_id"]:
            break
        tokens.append(token)
        rows.append(weights)
        logits, weights = watched.step(token)
    shape = (decoder.dims.decoder_layers, decoder.dims.decoder_attention_heads, 0, decoder.dims.n_audio_ctx)
    return tokens, torch.stack(rows, dim=2) if rows else torch.zeros(shape)


class _WatchedDecoder:
    """A decoder on one window that returns every head's attention, and projects the audio only once."""

    def __init__(self, decoder: TextDecoder, encoder_output_embeds: Tensor) -> None:
        self.decoder = decoder
        self.position = 0
        self.layers = [layer for layer in decoder.layers if isinstance(layer, TextDecoderLayer)]
        attentions = [layer.encoder_attn for layer in self.layers]
        self.audio = [(part.k_proj(encoder_output_embeds), part.v_proj(encoder_output_embeds)) for part in attentions]
        empty = torch.zeros(1, decoder.dims.d_model, 1, 0)
        self.text = [(empty, empty) for _ in self.layers]

    def step(self, token: int) -> tuple[Tensor, Tensor]:
        """Decode one token, and return the logits `[V]` and the cross-attention `[layers, heads, 1500]`."""
        decoder = self.decoder
        embedded = decoder.embed_tokens(torch.tensor([token])) + decoder.embed_positions(torch.tensor([self.position]))
        self.position += 1
        x = embedded.view(1, -1, 1, 1)
        watched = []
        everyone = tuple(range(decoder.dims.decoder_attention_heads))
        for index, layer in enumerate(self.layers):
            normalised = layer.self_attn_layer_norm(x)
            new = (layer.self_attn.k_proj(normalised), layer.self_attn.v_proj(normalised))
            keys, values = (torch.cat(pair, dim=3) for pair in zip(self.text[index], new, strict=True))
            self.text[index] = (keys, values)
            x = x + layer.self_attn.attend(normalised, keys, values)[0]
            normalised = layer.encoder_attn_layer_norm(x)
            attended, weights = layer.encoder_attn.attend(normalised, *self.audio[index], observed=everyone)
            x = layer.feed_forward(x + attended)
            watched.append(torch.cat(weights, dim=1)[0, :, 0])
        logits = torch.nn.functional.linear(decoder.layer_norm(x).flatten(), decoder.embed_tokens.weight)
        return logits, torch.stack(watched)


def _encode(checkpoint: Checkpoint, windows: Sequence[NDArray[np.float32]]) -> list[Tensor]:
    """Return the audio embeddings of each window. The encoder is released afterwards."""
    mel, encoder = MelSpectrogram(checkpoint.dims.n_mels), checkpoint.load_encoder()
    cut = [one_window(window, checkpoint.dims.n_samples) for window in windows]
    return [encoder(mel(torch.from_numpy(window))) for window in cut]

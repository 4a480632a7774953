"""What a forced transcript tells about the transcript that greedy decoding would write."""

from collections.abc import Sequence

import torch
from torch import Tensor

from whisperkit_tools.transcribe.options import TranscribeOptions
from whisperkit_tools.transcribe.tokenizer import SpecialTokens
from whisperkit_tools.transcribe.windows.rules import LogitRules

# Steps in a batch and single steps round differently, by less than a thousandth. A closer race may end either way.
_MARGIN = 0.01


def is_greedy(
    logits: Tensor, tokens: Sequence[int], first: int, special: SpecialTokens, options: TranscribeOptions
) -> bool:
    """Return whether greedy decoding is certain to write the very tokens that were forced.

    Each step of greedy decoding chooses the likeliest token after those before. Where that is the forced token at
    every step, decoding would have taken the same steps.

    Args:
        logits: `[T - 1, V]` of all steps, those of given tokens included.
        tokens: `[T]`, the forced ids from the start of the transcript to the end of the text.
        first: Index in `tokens` of the first that is chosen, not given.
        special: The special ids.
        options: The options of the transcription. They name one temperature and no timestamps.
    """
    if options.timestamps or tokens[-1] != special.end_of_text:
        return False
    if not _hears_speech(logits[0], special, options) or not _hears_language(logits[0], tokens, special, options):
        return False
    rules = LogitRules(special, timestamps=False)
    return all(
        _is_chosen(rules.apply(logits[at - 1], tokens[first:at]), tokens[at]) for at in range(first, len(tokens))
    )


def _is_chosen(scores: Tensor, token: int) -> bool:
    """Return whether a token is the likeliest by a margin."""
    (best, second), (at, _) = (part.tolist() for part in torch.topk(scores, 2))
    return bool(at == token and best - second > _MARGIN)


def _hears_speech(start: Tensor, special: SpecialTokens, options: TranscribeOptions) -> bool:
    """Return whether a window cannot count as one without speech, given the logits of the transcript's start."""
    if options.no_speech_threshold is None or special.no_speech is None:
        return True
    return float(start.softmax(dim=0)[special.no_speech]) < options.no_speech_threshold - _MARGIN


def _hears_language(start: Tensor, tokens: Sequence[int], special: SpecialTokens, options: TranscribeOptions) -> bool:
    """Return whether the language is the forced one, where it is detected."""
    if not special.is_multilingual:
        return True
    if options.language is not None:
        return tokens[1] == special.language_id(options.language)
    ids = list(special.languages.values())
    return tokens[1] in ids and _is_chosen(start[ids], ids.index(tokens[1]))

"""Rules of decoding: suppressed tokens, the first token, and the grammar of timestamps.

Source: OpenAI Whisper's `SuppressTokens`, `SuppressBlank` and `ApplyTimestampRules`, in the form of transformers'
`WhisperTimeStampLogitsProcessor`, which is the oracle.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from whisperkit_tools.transcribe.tokenizer import SpecialTokens

NEVER = -math.inf


class LogitRules:
    """Sets the logits of tokens that may not come next to minus infinity."""

    def __init__(self, special: SpecialTokens, *, timestamps: bool) -> None:
        """Prepare the rules.

        Args:
            special: The bundle's special ids.
            timestamps: Whether the answer has timestamps.
        """
        self.special = special
        self.timestamps = timestamps
        self._suppressed = torch.tensor(special.suppressed, dtype=torch.long)
        self._suppressed_at_begin = torch.tensor(special.suppressed_at_begin, dtype=torch.long)

    def apply(self, logits: Tensor, generated: Sequence[int]) -> Tensor:
        """Apply all rules.

        Args:
            logits: `[V]` float32, not changed.
            generated: The ids generated so far in this window, without the prompt.

        Returns:
            `[V]`, a copy.
        """
        scores = self._allowed(logits, generated)
        if self.timestamps and self._timestamp_lead(scores) > 0:
            self._keep_timestamps(scores)
        return scores

    def gap(self, logits: Tensor, generated: Sequence[int]) -> float:
        """Return how far the likeliest token is from not being it: the least change of two logits' difference.

        Args:
            logits: `[V]` float32, not changed.
            generated: As for `apply`.
        """
        scores = self._allowed(logits, generated)
        lead = math.inf
        if self.timestamps:
            lead = float(self._timestamp_lead(scores))
            if lead > 0:
                self._keep_timestamps(scores)
        first, second = torch.topk(scores, 2).values.tolist()
        return min(abs(lead), float(first - second))

    def _allowed(self, logits: Tensor, generated: Sequence[int]) -> Tensor:
        """Return a copy of the logits in which no token is left that may not come next in any case."""
        scores = logits.clone()
        if not generated:
            scores.index_fill_(0, self._suppressed_at_begin, NEVER)
        scores.index_fill_(0, self._suppressed, NEVER)
        if self.timestamps:
            self._keep_pairs(scores, generated)
            self._keep_order(scores, generated)
            if not generated:
                self._begin_with_timestamp(scores)
        return scores

    def _keep_pairs(self, scores: Tensor, generated: Sequence[int]) -> None:
        """After text, timestamps come in pairs: the end of a phrase and the start of the next."""
        special = self.special
        scores[special.no_timestamps] = NEVER
        if not generated or not special.is_timestamp(generated[-1]):
            return
        if len(generated) < 2 or special.is_timestamp(generated[-2]):
            scores[special.timestamp_begin : special.timestamp_end] = NEVER
        else:
            scores[: special.end_of_text] = NEVER
            scores[special.timestamp_end :] = NEVER

    def _keep_order(self, scores: Tensor, generated: Sequence[int]) -> None:
        """Time does not run backwards, and no phrase is empty."""
        special = self.special
        at = next((i for i in range(len(generated) - 1, -1, -1) if special.is_timestamp(generated[i])), None)
        if at is None:
            return
        closes_phrase = at == len(generated) - 1 and at > 0 and not special.is_timestamp(generated[at - 1])
        earliest = generated[at] if closes_phrase else generated[at] + 1
        scores[special.timestamp_begin : earliest] = NEVER

    def _begin_with_timestamp(self, scores: Tensor) -> None:
        """The answer begins with a timestamp, no later than the model's configured limit."""
        special = self.special
        scores[: special.timestamp_begin] = NEVER
        scores[special.timestamp_end :] = NEVER
        if special.max_initial_timestamp_index is not None:
            last = special.timestamp_begin + special.max_initial_timestamp_index
            scores[last + 1 :] = NEVER

    def _timestamp_lead(self, scores: Tensor) -> Tensor:
        """Return how much likelier the timestamps together are than the likeliest other token, in log probability.

        One of the timestamps comes next where that is above 0.
        """
        begin, end = self.special.timestamp_begin, self.special.timestamp_end
        timestamp = torch.logsumexp(scores[begin:end], dim=0)
        text = scores[:begin].max()
        if end < scores.shape[0]:
            text = torch.maximum(text, scores[end:].max())
        return timestamp - text

    def _keep_timestamps(self, scores: Tensor) -> None:
        scores[: self.special.timestamp_begin] = NEVER
        scores[self.special.timestamp_end :] = NEVER

"""One window of audio to tokens, tried again at higher temperatures when the result looks wrong."""

import math
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from whisperkit_tools.decoder.prefill_lookup import usable_positions
from whisperkit_tools.decoder.session import CacheColumns, DecoderSession
from whisperkit_tools.errors import BundleError
from whisperkit_tools.transcribe.options import TranscribeOptions
from whisperkit_tools.transcribe.tokenizer import SpecialTokens
from whisperkit_tools.transcribe.windows.rules import NEVER, LogitRules

CERTAIN_NO_SPEECH = 0.99
SAMPLED_FROM = 50  # transformers samples from the 50 likeliest tokens unless told otherwise


@dataclass(frozen=True, slots=True)
class DecodedWindow:
    """The tokens of one window.

    Attributes:
        tokens: Generated ids, without end-of-text.
        temperature: Of the attempt that was kept.
        avg_logprob: Mean log probability of the ids, end-of-text included.
        compression_ratio: Of the ids' bytes.
        no_speech_prob: Probability of no speech right after the start of the transcript; None when no threshold asks
            for it and a prefill took the place of the pass that tells it.
        has_no_speech: The window is taken for one without speech: its tokens do not count.
        attempts: Temperatures tried.
        generated: Ids generated in all attempts.
        alignment: `[len(tokens) + 1, n_audio_ctx]`: row `i` is what the decoder attended to while it predicted
            token `i`, and the last row while it ended. None when the decoder does not say.
        first_token_at: `time.perf_counter()` at the first generated id.
    """

    tokens: tuple[int, ...]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float | None
    has_no_speech: bool
    attempts: int
    generated: int
    alignment: Tensor | None
    first_token_at: float


@dataclass(frozen=True, slots=True)
class _Attempt:
    """Ids (end-of-text included), their log probabilities, and the alignment row of each."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    alignment: tuple[Tensor, ...]


class WindowDecoder:
    """Decodes windows with one set of options."""

    def __init__(
        self,
        session: DecoderSession,
        special: SpecialTokens,
        options: TranscribeOptions,
        *,
        max_length: int,
        vocab_size: int,
    ) -> None:
        """Prepare.

        Args:
            session: The decoder with its caches.
            special: The bundle's special ids.
            options: What to do.
            max_length: Most tokens of prompt and answer together.
            vocab_size: Size of the logits.
        """
        self._session = session
        self._special = special
        self._options = options
        self._max_length = max_length
        self._vocab_size = vocab_size
        self._rules = LogitRules(special, timestamps=options.timestamps)
        self._generator = torch.Generator().manual_seed(options.seed)

    def decode(
        self,
        embeds: Tensor,
        prefix: Sequence[int],
        start_of_transcript: int,
        prefilled: CacheColumns | None = None,
    ) -> DecodedWindow:
        """Decode a window, falling back to the next temperature while the result looks wrong.

        Args:
            embeds: Audio embeddings.
            prefix: Ids that are given: prompt, start of transcript, language, task.
            start_of_transcript: Index of that id in `prefix`.
            prefilled: Caches of the first ids of an answer, used in place of passes where `prefix` has no prompt.

        Raises:
            BundleError: The model gives logits that are not numbers.
        """
        self._session.begin(embeds)
        looked_up = usable_positions(prefilled, prefix, start_of_transcript)
        self._session.fill(prefilled, looked_up)
        no_speech_prob, logits, alignment = self._read_prefix(prefix, start_of_transcript, looked_up)
        first_token_at = time.perf_counter()
        generated = 0
        for number, temperature in enumerate(self._options.temperatures, start=1):
            if number > 1:
                # The prefix stays in the cache; only what was generated behind it is forgotten.
                self._session.rewind(len(prefix))
            attempt = self._attempt(logits, alignment, len(prefix), temperature)
            generated += len(attempt.ids)
            if no_speech_prob is None and self._options.no_speech_threshold is not None:
                # The pass that the prefill left out is made up for here, where the first token does not wait for it.
                no_speech_prob = self._no_speech(self._session.step(prefix[0], 0)[0])
                self._session.fill(prefilled, looked_up)
            avg_logprob = _mean(attempt.logprobs)
            ratio = compression_ratio(attempt.ids, self._vocab_size)
            has_no_speech = self._has_no_speech(no_speech_prob, avg_logprob)
            if has_no_speech or not self._looks_wrong(ratio, avg_logprob):
                break
        ended = bool(attempt.ids) and attempt.ids[-1] == self._special.end_of_text
        return DecodedWindow(
            tokens=attempt.ids[:-1] if ended else attempt.ids,
            temperature=temperature,
            avg_logprob=avg_logprob,
            compression_ratio=ratio,
            no_speech_prob=no_speech_prob,
            has_no_speech=has_no_speech,
            attempts=number,
            generated=generated,
            alignment=_stack(attempt, ended),
            first_token_at=first_token_at,
        )

    def _read_prefix(
        self, prefix: Sequence[int], start_of_transcript: int, looked_up: int
    ) -> tuple[float | None, Tensor, Tensor | None]:
        """Fill the caches from position `looked_up`.

        Returns:
            The no-speech probability, None when its pass was looked up, and the last id's logits and alignment.
        """
        no_speech_prob = None
        for position, token in enumerate(prefix[looked_up:], start=looked_up):
            logits, alignment = self._session.step(token, position)
            if position == start_of_transcript:
                no_speech_prob = self._no_speech(logits)
        if not bool(torch.isfinite(logits).all()):
            raise BundleError(
                "the text decoder gave logits that are not finite: its numbers overflow, or its weights are damaged; "
                "check the bundle with `wkt verify`, or try --precision float32"
            )
        return no_speech_prob, logits, alignment

    def _attempt(self, logits: Tensor, alignment: Tensor | None, begin: int, temperature: float) -> _Attempt:
        """Generate until end-of-text or the length limit."""
        ids: list[int] = []
        logprobs: list[float] = []
        rows: list[Tensor] = []
        end = min(self._max_length, begin + (self._options.max_new_tokens or self._max_length))
        while begin + len(ids) < end:
            token, logprob = self._choose(self._rules.apply(logits, ids), temperature)
            ids.append(token)
            logprobs.append(logprob)
            if alignment is not None:
                rows.append(alignment)
            if token == self._special.end_of_text or begin + len(ids) >= end:
                break
            logits, alignment = self._session.step(token, begin + len(ids) - 1)
        return _Attempt(tuple(ids), tuple(logprobs), tuple(rows))

    def _choose(self, scores: Tensor, temperature: float) -> tuple[int, float]:
        """Return an id and its log probability at temperature 1, under what the rules allow."""
        if temperature == 0:
            token = int(scores.argmax())
        else:
            least = torch.topk(scores, min(SAMPLED_FROM, scores.shape[0])).values[-1]
            scores = scores.masked_fill(scores < least, NEVER)
            probabilities = (scores / temperature).softmax(dim=0)
            token = int(torch.multinomial(probabilities, 1, generator=self._generator))
        return token, float(scores[token] - scores.logsumexp(dim=0))

    def _looks_wrong(self, ratio: float, avg_logprob: float) -> bool:
        options = self._options
        repetitive = options.compression_ratio_threshold is not None and ratio > options.compression_ratio_threshold
        unsure = options.logprob_threshold is not None and avg_logprob < options.logprob_threshold
        return repetitive or unsure

    def _no_speech(self, logits: Tensor) -> float:
        """Return the probability of no speech in the logits of the start of the transcript."""
        token = self._special.no_speech
        return 0.0 if token is None else float(logits.softmax(dim=0)[token])

    def _has_no_speech(self, no_speech_prob: float | None, avg_logprob: float) -> bool:
        """Silence is where the model says so and is not sure of what it wrote nevertheless.

        That is OpenAI's and transformers' rule. Beyond it, a model that is certain of silence is believed even when
        it then writes with confidence: the tokens forced on it next speak of a language and a task.
        """
        options = self._options
        threshold = options.no_speech_threshold
        if threshold is None or no_speech_prob is None or no_speech_prob <= threshold:
            return False
        if no_speech_prob > CERTAIN_NO_SPEECH or options.logprob_threshold is None:
            return True
        return avg_logprob < options.logprob_threshold


def compression_ratio(tokens: Sequence[int], vocab_size: int) -> float:
    """Bytes of the ids over the same compressed: high for repetitions.

    Source: transformers' `WhisperGenerationMixin._retrieve_compression_ratio`.
    """
    width = int(math.log2(vocab_size) / 8) + 1
    data = b"".join(token.to_bytes(width, "little") for token in tokens)
    return len(data) / len(zlib.compress(data))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _stack(attempt: _Attempt, ended: bool) -> Tensor | None:
    """Rows of the tokens and one more; where nothing ended the window, the last row stands in for it."""
    if not attempt.alignment:
        return None
    rows = attempt.alignment if ended else (*attempt.alignment, attempt.alignment[-1])
    return torch.stack(rows)

"""Decoding one window of audio to tokens, again at higher temperatures while the result looks wrong."""

import math
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from whisperkit_tools import contract
from whisperkit_tools.decoder.prefill_lookup import usable_positions
from whisperkit_tools.decoder.session import CacheColumns, DecoderSession, DecoderStep, StepRequest, Steps
from whisperkit_tools.errors import BundleError, option
from whisperkit_tools.speech import Segment, Word
from whisperkit_tools.transcribe.options import TranscribeOptions
from whisperkit_tools.transcribe.tokenizer import SpecialTokens
from whisperkit_tools.transcribe.windows.rules import NEVER, LogitRules

CERTAIN_NO_SPEECH = 0.99
# Log probability of a timestamp among 1501 that are about equally likely is -7.3. Of a model that predicts times, even
# an unsure one spreads over a few neighbours.
GUESSED_TIME = -5.0
SAMPLED_FROM = 50  # transformers samples from the 50 likeliest tokens unless told otherwise


@dataclass(frozen=True, slots=True)
class DecodedWindow:
    """The tokens of one window.

    Attributes:
        tokens: Generated ids, without end-of-text.
        temperature: Temperature of the attempt that was kept.
        avg_logprob: Mean log probability of its ids, end-of-text included.
        compression_ratio: Compression ratio of its ids' bytes.
        no_speech_prob: Probability of no speech right after the start of the transcript. None when no threshold needs
            it and a prefill replaced the step that tells it.
        has_no_speech: Whether the window counts as one without speech, so that its tokens do not count.
        attempts: Number of temperatures tried.
        generated: Number of ids generated in all attempts.
        alignment: `[len(tokens) + 1, n_audio_ctx]`: row `i` is the decoder's attention while it predicted token `i`,
            and the last row its attention while it ended. None when the decoder does not return it.
        first_token_at: Time of the clock at the first generated id.
        surest_timestamp: Highest log probability of a timestamp after text. None where no timestamp follows text, so
            that nothing closes.
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
    surest_timestamp: float | None = None

    @property
    def guesses_times(self) -> bool:
        """Whether no timestamp after text is more than a guess among all of them."""
        return self.surest_timestamp is not None and self.surest_timestamp < GUESSED_TIME

    def segment(
        self, start_s: float, end_s: float, text: str, tokens: tuple[int, ...], words: tuple[Word, ...]
    ) -> Segment:
        """Return a segment of this window, its times in seconds of the audio."""
        return Segment(
            start_s=round(start_s, 3),
            end_s=round(end_s, 3),
            text=text,
            tokens=tokens,
            temperature=self.temperature,
            avg_logprob=round(self.avg_logprob, 6),
            compression_ratio=round(self.compression_ratio, 6),
            no_speech_prob=None if self.no_speech_prob is None else round(self.no_speech_prob, 6),
            words=words,
        )


@dataclass(frozen=True, slots=True)
class _Prefix:
    """The given ids once they were read: the last with its step, and what the start of the transcript told."""

    token: int
    last: DecoderStep
    no_speech_prob: float | None


@dataclass(frozen=True, slots=True)
class _Attempt:
    """A window decoded at one temperature.

    Attributes:
        temperature: The temperature.
        ids: Generated ids, end-of-text included.
        logprobs: Their log probabilities.
        alignment: The row of each, `[n_audio_ctx]`. Empty when the decoder does not return them.
        ended: Whether the last id is end-of-text.
        tolerance: Maximum error of a log probability, see `DecoderStep`.
    """

    temperature: float
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    alignment: tuple[Tensor, ...]
    ended: bool
    tolerance: float = 0.0

    @property
    def avg_logprob(self) -> float:
        """Mean log probability of the ids, 0 without any."""
        return sum(self.logprobs) / len(self.logprobs) if self.logprobs else 0.0

    def stacked_alignment(self) -> Tensor | None:
        """Return a row per token and one more. Where nothing ended the window, the last row stands in for it."""
        if not self.alignment:
            return None
        return torch.stack(self.alignment if self.ended else (*self.alignment, self.alignment[-1]))


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
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Prepare.

        Args:
            session: The decoder with its caches.
            special: The bundle's special ids.
            options: Temperatures, thresholds and limits.
            max_length: Maximum number of tokens of prompt and answer together.
            vocab_size: Size of the logits.
            clock: Tells the time in seconds.
        """
        self._clock = clock
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
    ) -> Steps[DecodedWindow]:
        """Decode a window, falling back to the next temperature while the result looks wrong.

        `DecoderSession.perform` runs this on the session alone. Steps of several windows can be decoded together.

        Args:
            embeds: Audio embeddings, `[1, D, 1, n_audio_ctx]`.
            prefix: Given ids: prompt, start of transcript, language, task.
            start_of_transcript: Index of that id in `prefix`.
            prefilled: Caches of the first ids of an answer, used instead of decoding them where `prefix` has no prompt.

        Yields:
            Steps on the session.

        Raises:
            BundleError: The model gives logits that are not finite.
        """
        self._session.begin(embeds)
        looked_up = usable_positions(prefilled, prefix, start_of_transcript)
        self._session.fill(prefilled, looked_up)
        read = yield from self._read_prefix(prefix, start_of_transcript, looked_up)
        no_speech_prob, first_token_at = read.no_speech_prob, self._clock()
        attempts: list[_Attempt] = []
        for temperature in self._options.temperatures:
            if attempts:
                # The prefix stays in the caches. Only what was generated after it is forgotten.
                self._session.rewind(len(prefix))
            attempts.append((yield from self._attempt(read, len(prefix), temperature)))
            if no_speech_prob is None and self._options.no_speech_threshold is not None:
                # The step that the prefill replaced is made up for here, where the first token does not wait for it.
                start = yield StepRequest(prefix[0], 0)
                no_speech_prob = self._no_speech(start.logits)
                self._session.fill(prefilled, looked_up)
            if self._is_in_doubt(attempts[-1]):
                self._session.rewind(len(prefix))
                again = self._again(read, len(prefix))
                attempts[-1] = yield from self._attempt(again, len(prefix), temperature, ahead=False)
            if self._is_accepted(attempts[-1], no_speech_prob):
                break
        return self._window(attempts, no_speech_prob, first_token_at)

    def _window(
        self, attempts: Sequence[_Attempt], no_speech_prob: float | None, first_token_at: float
    ) -> DecodedWindow:
        """Return the window as the last attempt has it."""
        kept = attempts[-1]
        return DecodedWindow(
            tokens=kept.ids[:-1] if kept.ended else kept.ids,
            temperature=kept.temperature,
            avg_logprob=kept.avg_logprob,
            compression_ratio=compression_ratio(kept.ids, self._vocab_size),
            no_speech_prob=no_speech_prob,
            has_no_speech=self._has_no_speech(no_speech_prob, kept.avg_logprob),
            attempts=len(attempts),
            generated=sum(len(attempt.ids) for attempt in attempts),
            alignment=kept.stacked_alignment(),
            first_token_at=first_token_at,
            surest_timestamp=self._surest_timestamp(kept),
        )

    def _surest_timestamp(self, attempt: _Attempt) -> float | None:
        """Return the highest log probability of a timestamp that follows text."""
        special = self._special
        first = next((at for at, token in enumerate(attempt.ids) if special.is_text(token)), len(attempt.ids))
        later = zip(attempt.ids[first:], attempt.logprobs[first:], strict=True)
        return max((logprob for token, logprob in later if special.is_timestamp(token)), default=None)

    def _read_prefix(self, prefix: Sequence[int], start_of_transcript: int, looked_up: int) -> Steps[_Prefix]:
        """Decode the given ids from position `looked_up` on."""
        no_speech_prob = None
        ahead = self._session.read(prefix, looked_up) if self._session.computes_ahead else None
        for position, token in enumerate(prefix[looked_up:], start=looked_up):
            step = (yield StepRequest(token, position)) if ahead is None else next(ahead)
            if position == start_of_transcript:
                no_speech_prob = self._no_speech(step.logits)
                tolerance = step.tolerance
            require_finite(step.logits, position)
        if no_speech_prob is not None and self._decides(no_speech_prob, tolerance):
            no_speech_prob = self._no_speech(
                self._session.step(prefix[start_of_transcript], start_of_transcript).logits
            )
        return _Prefix(prefix[-1], step, no_speech_prob)

    def _again(self, read: _Prefix, begin: int) -> _Prefix:
        """Return the same with the last id read once more, by a single step."""
        return replace(read, last=self._session.step(read.token, begin - 1))

    def _decides(self, no_speech_prob: float, tolerance: float) -> bool:
        """Return whether the tolerance of a no-speech probability decides on whether the window has speech."""
        thresholds = (self._options.no_speech_threshold, CERTAIN_NO_SPEECH)
        return any(limit is not None and abs(no_speech_prob - limit) < tolerance for limit in thresholds)

    def _is_in_doubt(self, attempt: _Attempt) -> bool:
        """Return whether the tolerance of the log probabilities decides on whether another temperature is tried."""
        threshold = self._options.logprob_threshold
        return threshold is not None and abs(attempt.avg_logprob - threshold) < attempt.tolerance

    def _attempt(self, read: _Prefix, begin: int, temperature: float, *, ahead: bool = True) -> Steps[_Attempt]:
        """Generate until end-of-text or the length limit.

        Args:
            read: The given ids.
            begin: Number of given ids.
            temperature: 0 for the likeliest id, above it for a random one.
            ahead: Whether the session may compute ahead, where the likeliest ids are taken.
        """
        ids: list[int] = []
        logprobs: list[float] = []
        rows: list[Tensor] = []
        tolerance = 0.0
        end = min(self._max_length, begin + (self._options.max_new_tokens or self._max_length))
        ahead = ahead and temperature == 0
        step = read.last if ahead or not read.last.tolerance else self._again(read, begin).last
        while begin + len(ids) < end:
            if step.tolerance and self._rules.gap(step.logits, ids) < step.tolerance:
                step = self._session.step(ids[-1] if ids else read.token, begin + len(ids) - 1)
            token, logprob = self._choose(self._rules.apply(step.logits, ids), temperature)
            ids.append(token)
            logprobs.append(logprob)
            tolerance = max(tolerance, step.tolerance)
            if step.alignment is not None:
                rows.append(step.alignment)
            if token == self._special.end_of_text or begin + len(ids) >= end:
                break
            step = yield from self._next(ids, begin + len(ids) - 1, ahead)
            require_finite(step.logits, begin + len(ids) - 1)
        ended = bool(ids) and ids[-1] == self._special.end_of_text
        return _Attempt(temperature, tuple(ids), tuple(logprobs), tuple(rows), ended, tolerance)

    def _next(self, ids: Sequence[int], position: int, ahead: bool) -> Steps[DecoderStep]:
        """Decode the last of the generated ids."""
        if ahead and self._session.computes_ahead:
            return self._session.step_ahead(ids[-1], position, ids, self._expected)
        return (yield StepRequest(ids[-1], position))

    def _expected(self, logits: Tensor, ids: Sequence[int]) -> int | None:
        """Return the likeliest id under the rules. None for the end of the text."""
        token = int(self._rules.apply(logits, ids).argmax())
        return None if token == self._special.end_of_text else token

    def _choose(self, scores: Tensor, temperature: float) -> tuple[int, float]:
        """Return an id and its log probability at temperature 1, under what the rules allow.

        Raises:
            BundleError: They allow none.
        """
        if float(scores.max()) == NEVER:
            raise BundleError(
                "the bundle's generation_config.json suppresses every token that may come next; convert it again"
            )
        if temperature == 0:
            token = int(scores.argmax())
        else:
            least = torch.topk(scores, min(SAMPLED_FROM, scores.shape[0])).values[-1]
            scores = scores.masked_fill(scores < least, NEVER)
            probabilities = (scores / temperature).softmax(dim=0)
            token = int(torch.multinomial(probabilities, 1, generator=self._generator))
        return token, float(scores[token] - scores.logsumexp(dim=0))

    def _is_accepted(self, attempt: _Attempt, no_speech_prob: float | None) -> bool:
        """Return whether no other temperature needs to be tried."""
        options = self._options
        if self._has_no_speech(no_speech_prob, attempt.avg_logprob):
            return True
        max_ratio, min_logprob = options.compression_ratio_threshold, options.logprob_threshold
        is_repetitive = max_ratio is not None and compression_ratio(attempt.ids, self._vocab_size) > max_ratio
        is_unsure = min_logprob is not None and attempt.avg_logprob < min_logprob
        return not (is_repetitive or is_unsure)

    def _no_speech(self, logits: Tensor) -> float:
        """Return the probability of no speech in the logits of the start of the transcript."""
        token = self._special.no_speech
        return 0.0 if token is None else float(logits.softmax(dim=0)[token])

    def _has_no_speech(self, no_speech_prob: float | None, avg_logprob: float) -> bool:
        """Return whether the model reports silence and is unsure of what it wrote nevertheless.

        That is the rule of OpenAI's code and of transformers. In addition, a model that is certain of silence is
        believed even when it then writes with confidence, because the next forced tokens name a language and a task.
        """
        options = self._options
        threshold = options.no_speech_threshold
        if threshold is None or no_speech_prob is None or no_speech_prob <= threshold:
            return False
        if no_speech_prob > CERTAIN_NO_SPEECH or options.logprob_threshold is None:
            return True
        return avg_logprob < options.logprob_threshold


def require_finite(logits: Tensor, position: int) -> None:
    """Check the logits of one decoding step. One NaN in them would decide on all that follows.

    Args:
        logits: `[V]`.
        position: Index of the step in the window, from 0.

    Raises:
        BundleError: One of them is not finite.
    """
    if not bool(torch.isfinite(logits).all()):
        raise BundleError(
            f"{contract.DECODER} gave logits that are not finite at step {position} of a window: its numbers overflow, "
            f"or its weights are damaged; check the bundle with `wkt verify`, or try {option('precision', 'float32')}"
        )


def compression_ratio(tokens: Sequence[int], vocab_size: int) -> float:
    """Return the bytes of the ids over the same bytes compressed, which is high for repetitions.

    Source: transformers' `WhisperGenerationMixin._retrieve_compression_ratio`.
    """
    width = int(math.log2(vocab_size) / 8) + 1
    data = b"".join(token.to_bytes(width, "little") for token in tokens)
    return len(data) / len(zlib.compress(data))

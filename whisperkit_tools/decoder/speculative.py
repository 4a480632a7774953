"""Speculative decoding: a small draft writes some tokens ahead, and the large decoder reads them all in one call.

`SpeculativeSession` is a session over the large decoder. A decoding loop asks it for one step after the other, as it
asks any session, and applies all of its rules to each step's logits. The session computes ahead of these questions:
where the loop's next token is the one that the draft expected, the step is there already. So the tokens are those of
the loop alone, whatever the draft writes.

One call on several tokens rounds differently from as many single steps. Each of its steps therefore carries a
tolerance: the maximum difference of two of its logits from the single step's, with a margin, which conversion measured.
Where the loop's choice depends on less than that, it asks for the step again with `step`, which computes it by single
steps from the first position that was not computed so. Each position is repeated at most once in a window.

Source: Leviathan et al. 2023, "Fast inference from Transformers via speculative decoding", arXiv 2211.17192; for
Whisper: Gandhi et al. 2023, "Distil-Whisper", arXiv 2311.00430, section 6.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from whisperkit_tools import contract
from whisperkit_tools.decoder.session import CacheColumns, CacheSession, DecoderSession, DecoderStep, fixed_axis
from whisperkit_tools.errors import BundleError
from whisperkit_tools.mil.backend import TensorModel
from whisperkit_tools.speech import Speculation

Expectation: TypeAlias = Callable[[Tensor, Sequence[int]], int | None]
"""Chooses a token from logits `[V]` and the ids generated before it. None where nothing may follow."""


class Verifier:
    """The decoder on several tokens at once, over the caches of a session.

    Attributes:
        tokens: Maximum number of tokens in a call.
        tolerance: Difference of two logits below which a choice between them may differ from that of single steps.
    """

    def __init__(self, model: TensorModel, session: CacheSession, tolerance: float = 0.0) -> None:
        """Take the model.

        Args:
            model: TextDecoderVerify.
            session: The session whose caches it reads and fills.
            tolerance: See the attribute.

        Raises:
            BundleError: The model does not belong to the session's decoder.
        """
        self.tokens = fixed_axis(model.inputs[contract.INPUT_IDS], 0)
        self.tolerance = tolerance
        self._model, self._session = model, session
        length = fixed_axis(model.inputs[contract.KEY_CACHE], 3)
        if length != session.length:
            raise BundleError(
                f"{contract.VERIFIER} has caches of {length} positions, and {contract.DECODER} of {session.length}: "
                "they do not belong together; convert the model again"
            )

    def fits(self, position: int) -> bool:
        """Return whether a call that begins at a position stays inside the caches."""
        return position + self.tokens <= self._session.length

    def run(self, tokens: Sequence[int], position: int) -> list[DecoderStep]:
        """Decode up to `tokens` tokens, and cache their keys and values.

        Args:
            tokens: The ids.
            position: Number of tokens before them.
        """
        # Further rows repeat the last token. Nothing that is kept sees them.
        filled = [*tokens, *[tokens[-1]] * (self.tokens - len(tokens))]
        outputs = self._session.run_several(self._model, filled, position, kept=len(tokens))
        logits = outputs[contract.LOGITS].reshape(self.tokens, -1).float().cpu()
        alignment = outputs.get(contract.ALIGNMENT)
        rows = [None] * self.tokens if alignment is None else list(alignment.float().cpu())
        return [DecoderStep(logits[row], rows[row], self.tolerance) for row in range(len(tokens))]


@dataclass(slots=True)
class _Counts:
    """What the rounds of a session did so far, see `Speculation`."""

    rounds: int = 0
    proposed: int = 0
    accepted: int = 0
    repeated_steps: int = 0


class SpeculativeSession(DecoderSession):
    """A session of a large decoder that computes ahead what a draft expects.

    `steps` counts the calls of the large decoder.
    """

    computes_ahead = True

    def __init__(
        self, session: CacheSession, verifier: Verifier, draft: "DraftSession", *, embeds: Callable[[Tensor], Tensor]
    ) -> None:
        """Put the parts together.

        Args:
            session: The large decoder, one token a call.
            verifier: The large decoder on several tokens, on the same session.
            draft: The draft.
            embeds: The draft's audio embeddings of a window, from the large model's.
        """
        self._session, self._verifier, self._draft = session, verifier, draft
        self._draft_embeds = embeds
        self._counts = _Counts()
        self._tokens: list[int] = []  # those in the caches
        self._single = 0  # how many positions of the caches single steps have computed, one after another
        self._ahead: dict[int, tuple[int, DecoderStep]] = {}
        self.length = session.length

    @property
    def steps(self) -> int:
        """Calls of the large decoder so far."""
        return self._session.steps

    @steps.setter
    def steps(self, value: int) -> None:
        self._session.steps = value

    @property
    def speculation(self) -> Speculation:
        """What the draft did so far."""
        counts = self._counts
        return Speculation(counts.rounds, counts.proposed, counts.accepted, counts.repeated_steps, self._draft.steps)

    def begin(self, embeds: Tensor) -> None:
        """Start a window with empty caches."""
        self._session.begin(embeds)
        self._draft.begin(lambda: self._draft_embeds(embeds))
        self._forget(0)

    def fill(self, columns: CacheColumns | None, count: int) -> None:
        """Take the first `count` positions from `columns`, if there are any, instead of decoding their tokens."""
        self._session.fill(columns, count)
        if columns is not None:
            self._single = max(self._single, count)

    def rewind(self, position: int) -> None:
        """Forget what was cached at `position` and after it."""
        self._session.rewind(position)
        self._forget(position)

    def columns(self, start: int, stop: int) -> CacheColumns:
        """Return a copy of what is cached at the positions from `start` to before `stop`."""
        return self._session.columns(start, stop)

    def outputs(self, token: int, position: int) -> Mapping[str, Tensor]:
        """Decode one token by single steps, and return the decoder's own outputs by name."""
        for at in range(self._single, position):
            self._session.outputs(self._tokens[at], at)
            self._counts.repeated_steps += 1
        found = self._session.outputs(token, position)
        self._note([token], position)
        self._single = max(self._single, position + 1)
        return found

    def _run(self, ids: Tensor, position: int) -> Mapping[str, Tensor]:
        return self._session.outputs(int(ids[0]), position)

    def read(self, tokens: Sequence[int], start: int = 0) -> Iterator[DecoderStep]:
        """Decode given tokens, several in a call. Those before `start` are cached already."""
        self._note(tokens[:start], 0)
        at = start
        while at < len(tokens):
            some = list(tokens[at : at + self._verifier.tokens])
            if not self._verifier.fits(at):
                yield self.step(some[0], at)
                at += 1
                continue
            yield from self._verify(some, at)
            at += len(some)

    def step_ahead(self, token: int, position: int, generated: Sequence[int], expect: Expectation) -> DecoderStep:
        """Decode one token, and the tokens that the draft expects after it.

        Args:
            token: Its id.
            position: Number of tokens before it.
            generated: The ids of the answer so far, `token` included.
            expect: Chooses the draft's tokens, by the rules of the loop.
        """
        known = self._ahead.get(position)
        if known is not None and known[0] == token:
            self._counts.accepted += 1
            self._note([token], position)
            return known[1]
        self._note([token], position)
        if not self._verifier.fits(position):
            return self.step(token, position)
        proposed = self._draft.propose(self._tokens, generated, expect, self._verifier.tokens - 1)
        self._counts.rounds += 1
        self._counts.proposed += len(proposed)
        steps = self._verify([token, *proposed], position)
        self._ahead = {
            position + at: (one, step) for at, (one, step) in enumerate(zip(proposed, steps[1:], strict=True), start=1)
        }
        return steps[0]

    def _verify(self, tokens: list[int], position: int) -> list[DecoderStep]:
        """Run several tokens in one call."""
        with torch.no_grad():
            steps = self._verifier.run(tokens, position)
        self._note(tokens, position)
        self._single = min(self._single, position)
        return steps

    def _note(self, tokens: Sequence[int], position: int) -> None:
        """Remember the ids at some positions. Where another id stood, what followed it is forgotten."""
        for at, token in enumerate(tokens, start=position):
            if at < len(self._tokens) and self._tokens[at] != token:
                self._forget(at)
            if at == len(self._tokens):
                self._tokens.append(token)

    def _forget(self, position: int) -> None:
        del self._tokens[position:]
        self._single = min(self._single, position)
        self._ahead = {}


class DraftSession:
    """The draft: a session of its own, and the tokens that it has read.

    Attributes:
        steps: Calls of the draft so far.
    """

    def __init__(self, session: DecoderSession, verifier: Verifier | None = None) -> None:
        """Take the session.

        Args:
            session: The draft's decoder.
            verifier: The draft on several tokens, on the same session, to read long prompts. None reads them one by
                one.
        """
        self._session, self._verifier = session, verifier
        self._read: list[int] = []
        self._embeds: Callable[[], Tensor] | None = None

    @property
    def steps(self) -> int:
        """Calls of the draft so far."""
        return self._session.steps

    def begin(self, embeds: Callable[[], Tensor]) -> None:
        """Start a window. Its audio embeddings are asked for when the draft is first needed."""
        self._embeds = embeds
        self._read = []

    def propose(self, tokens: Sequence[int], generated: Sequence[int], expect: Expectation, limit: int) -> list[int]:
        """Return the tokens that the draft expects next.

        Args:
            tokens: All ids so far, prompt included.
            generated: Those of the answer.
            expect: Chooses each token.
            limit: Maximum number of tokens.
        """
        if self._embeds is not None:
            self._session.begin(self._embeds())
            self._embeds = None
        proposed: list[int] = []
        logits = self._logits_after(tokens)
        while len(proposed) < limit:
            token = expect(logits, [*generated, *proposed])
            if token is None:
                break
            proposed.append(token)
            if len(proposed) < limit:
                logits = self._logits_after([*tokens, *proposed])
        return proposed

    def _logits_after(self, tokens: Sequence[int]) -> Tensor:
        """Read the tokens that were not read yet, the last one in any case."""
        same = 0
        for mine, given in zip(self._read, tokens[:-1], strict=False):
            if mine != given:
                break
            same += 1
        at, step = same, None
        while at < len(tokens):
            verifier = self._verifier
            if verifier is not None and len(tokens) - at > 1 and verifier.fits(at):
                with torch.no_grad():
                    steps = verifier.run(tokens[at : at + verifier.tokens], at)
                step, at = steps[-1], at + len(steps)
            else:
                step, at = self._session.step(tokens[at], at), at + 1
        self._read = list(tokens)
        if step is None:
            raise ValueError("a draft continues at least one token")
        return step.logits

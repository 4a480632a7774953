"""Teacher forcing through a bundle's own programs: a given transcript in, every position's logits out, and gradients.

The decoder takes one token per step and reads earlier positions from caches that are inputs, so on a device the steps
run in order. Here all steps of a chunk of positions run at once under `torch.vmap`, so the weights see one batch. Where
the program shows each layer's part of the caches, the steps see each other's columns (`batched.share_cache_columns`).
Nothing has to be known in advance then, and gradients are those of the whole recurrence.

Elsewhere the steps run in order, and for gradients once more as a batch on the finished caches. These are outputs of
earlier steps, so their gradients matter: keys and values of the self-attention act through nothing else. Let
`c = u(c, w)` say that the caches hold the updates of all steps, and `l(c, w)` be the logits. For a cotangent `g` of the
logits the adjoint of the caches is the solution of

    a = (dl/dc)' g + (du/dc)' a

in which every layer's updates depend on the caches of lower layers only. As many rounds as there are layers therefore
give it exactly. Chunks are taken from the last to the first, because a position acts on later ones only.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from whisperkit_tools import contract
from whisperkit_tools.decoder.batched import BatchedDecoder
from whisperkit_tools.decoder.session import CacheSession
from whisperkit_tools.decoder.step_inputs import StepInputs
from whisperkit_tools.errors import BundleError
from whisperkit_tools.mil.program import Program
from whisperkit_tools.progress import Progress, SilentProgress

_CHUNK_BYTES = 1 << 30  # of the caches' copies, one a position, that a chunk's graph holds
_TOLERANCE = 1e-3  # of the largest number; other orders of sums differ by a thousandth of that

_Run: TypeAlias = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
_Outputs: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""Logits, and the columns of keys and of values."""


@dataclass(frozen=True, slots=True)
class SpeechWindow:
    """Up to thirty seconds of speech, and the tokens that the uncompressed bundle transcribes it to.

    Attributes:
        features: `[1, n_mels, 1, n_frames]`.
        tokens: All ids, from the start of the transcript to the end of the text.
        first: Index in `tokens` of the first that was predicted, not given.
    """

    features: Tensor
    tokens: tuple[int, ...]
    first: int

    def __post_init__(self) -> None:
        """Check the ids.

        Raises:
            ValueError: Nothing was predicted.
        """
        if not 1 <= self.first < len(self.tokens):
            raise ValueError(f"of {len(self.tokens)} tokens the first predicted is {self.first}; there is none")

    @property
    def predicted(self) -> int:
        """Number of predicted tokens."""
        return len(self.tokens) - self.first


@dataclass(frozen=True, slots=True)
class ForcedRun:
    """All decoding steps of one window.

    Attributes:
        logits: `[predicted, V]`, the logits that each predicted token was chosen from.
        keys: `[1, D * L, 1, S]`, the finished cache of keys.
        values: `[1, D * L, 1, S]`, the finished cache of values.
    """

    logits: Tensor
    keys: Tensor
    values: Tensor

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """All three tensors."""
        return self.logits, self.keys, self.values


class TeacherForcing:
    """A decoder program that is given its tokens.

    Attributes:
        program: The decoder.
        length: Positions of its caches.
        layers: Its layers.
        batch: Runs all steps of a transcript at once. None after it has been given up.
        fallback: Reason why steps no longer run as one batch. None while they do.
        sequential_runs: Transcripts that `forward` ran step by step because of that.
    """

    def __init__(self, decoder: Program, progress: Progress | None = None) -> None:
        """Take the program.

        Args:
            decoder: A TextDecoder with caches as inputs, in float32.
            progress: Told once when batches have to be given up, which costs time but not accuracy.

        Raises:
            BundleError: It is not a decoder of the runtime's contract, or its caches have an open axis.
        """
        channels, self.length, d_model = _decoder_sizes(decoder)
        self.program = decoder
        self.layers = max(1, channels // d_model)
        self.fallback: str | None = None
        self.sequential_runs = 0
        self._progress = progress or SilentProgress()
        self._cache_shape = (1, channels, 1, self.length)
        self._steps = StepInputs(self.length, decoder.device)
        self.batch: BatchedDecoder | None = BatchedDecoder(decoder, self.length)
        self._verified_length = 0  # the longest transcript whose batch is known to give the same as its single steps
        if not self.batch.shares_columns:
            self._report("its caches are not split into the layers' parts as in converted decoders")

    @property
    def is_batched(self) -> bool:
        """Whether the steps of a transcript run as one batch, on caches as long as the transcript."""
        return self.batch is not None

    def ids(self, window: SpeechWindow) -> Tensor:
        """Return the tokens that go in, `[T, 1]`: all but the last, which is only predicted.

        Raises:
            BundleError: The caches are too short for them.
        """
        if len(window.tokens) - 1 > self.length:
            raise BundleError(
                f"a transcript of {len(window.tokens)} tokens does not fit the caches of {self.length} positions"
            )
        return torch.tensor(window.tokens[:-1], dtype=torch.int32, device=self.program.device)[:, None]

    def forward(self, window: SpeechWindow, embeds: Tensor) -> ForcedRun:
        """Run all steps without gradients, as one batch where that was verified to give the same as single steps.

        Args:
            window: The tokens.
            embeds: The window's audio embeddings, `[1, D, 1, n_audio_ctx]`.

        Raises:
            BundleError: The caches are too short for the tokens.
        """
        ids = self.ids(window)
        if self.batch is not None and self.batch.shares_columns:
            try:
                found = self._batched(self.batch, window, ids, embeds)
            except (RuntimeError, ValueError) as error:  # an operation that insists on the caches' own length
                self._give_up(f"a batch of steps fails: {error}")
            else:
                return found if len(ids) <= self._verified_length else self._verified(found, window, embeds)
        self.sequential_runs += 1
        return self.sequential(window, embeds)

    def _verified(self, found: ForcedRun, window: SpeechWindow, embeds: Tensor) -> ForcedRun:
        """Return a batch's result if single steps give the same, and else theirs."""
        expected = self.sequential(window, embeds)
        if all(_is_same(*pair) for pair in zip(found.tensors, expected.tensors, strict=True)):
            self._verified_length = len(window.tokens) - 1
            return found
        self._give_up("a batch of steps computes something else than single steps")
        self.sequential_runs += 1
        return expected

    def _give_up(self, reason: str) -> None:
        """Run steps one by one, and on whole caches, from now on."""
        self.batch = None
        self._report(reason)

    def _report(self, reason: str) -> None:
        if self.fallback is None:
            name, self.fallback = self.program.path.name, reason
            self._progress.note(
                f"{name}: steps run one by one, which takes longer, as a batch is not possible: {reason}"
            )

    def sequential(self, window: SpeechWindow, embeds: Tensor) -> ForcedRun:
        """Run the steps one by one, as the device does. Otherwise the same as `forward`."""
        session = CacheSession(self.program, device=self.program.device)
        session.begin(embeds)
        rows = list[Tensor]()
        for position in range(len(self.ids(window))):
            outputs = session.outputs(window.tokens[position], position)
            if position >= window.first - 1:
                rows.append(outputs[contract.LOGITS].reshape(-1).clone())
        caches = session.columns(0, self.length)
        return ForcedRun(torch.stack(rows), caches.keys, caches.values)

    def _batched(self, batch: BatchedDecoder, window: SpeechWindow, ids: Tensor, embeds: Tensor) -> ForcedRun:
        keys, values = (torch.zeros(self._cache_shape, device=self.program.device) for _ in range(2))
        filled = keys[..., : len(ids)], values[..., : len(ids)]
        rows: list[Tensor] = []
        with torch.no_grad():
            for chunk in self._chunks(len(ids), len(ids)):
                logits, *columns = self._chunk(batch.run, ids, chunk, filled, embeds)
                for cache, column in zip(filled, columns, strict=True):
                    cache[..., chunk] = column[..., 0].permute(1, 2, 3, 0)
                rows.append(logits)
        return ForcedRun(torch.cat(rows)[window.first - 1 :].clone(), keys, values)

    def _chunk(self, run: _Run, ids: Tensor, chunk: slice, caches: Sequence[Tensor], embeds: Tensor) -> _Outputs:
        """Run the steps of a chunk of positions as one batch."""

        def step(changing: Mapping[str, Tensor], shared: Mapping[str, Tensor]) -> _Outputs:
            return _call(run, changing, shared)

        keys, values = caches
        changing = {contract.INPUT_IDS: ids[chunk], **self._steps.batch(chunk, keys.shape[3])}
        found: _Outputs = torch.vmap(step, in_dims=(0, None))(changing, _shared(keys, values, embeds))
        return found

    def values(
        self, window: SpeechWindow, forced: ForcedRun, embeds: Tensor, names: Sequence[str]
    ) -> Iterator[dict[str, Tensor]]:
        """Yield outputs of the program besides the contract's, for each chunk of positions, without gradients.

        Args:
            window: The tokens.
            forced: From `forward`, with the same weights.
            embeds: The same embeddings.
            names: Outputs of the program.

        Yields:
            By name `[T, *shape]`, or `[1, *shape]` where all steps have the same value.
        """
        ids = self.ids(window)
        batch = self._fitting_batch(ids, forced, embeds)
        run, length = (self.program.run, self.length) if batch is None else (batch.run, len(ids))
        shared = _shared(forced.keys[..., :length], forced.values[..., :length], embeds)

        def step(changing: Mapping[str, Tensor], shared: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
            found = run({**changing, **shared})
            return tuple(found[name] for name in names)

        for chunk in self._chunks(len(ids), length):
            changing = {contract.INPUT_IDS: ids[chunk], **self._steps.batch(chunk, length)}
            with torch.no_grad():
                found = torch.vmap(step, in_dims=(0, None))(changing, shared)
            # An output that no changing input reaches is one value, expanded.
            yield {name: value if value.stride(0) else value[:1] for name, value in zip(names, found, strict=True)}

    def backward(self, window: SpeechWindow, forced: ForcedRun, embeds: Tensor, cotangent: Tensor) -> Tensor:
        """Add the gradient of `sum(cotangent * logits)` to `.grad` of the program's parameters that ask for it.

        Args:
            window: The tokens.
            forced: From `forward`, with the same weights.
            embeds: The same embeddings.
            cotangent: `[predicted, V]`.

        Returns:
            The gradient for the embeddings.
        """
        ids = self.ids(window)
        batch = self._fitting_batch(ids, forced, embeds)
        length = self.length if batch is None else len(ids)
        finished = ForcedRun(forced.logits, forced.keys[..., :length], forced.values[..., :length])
        padded = torch.cat([cotangent.new_zeros(window.first - 1, cotangent.shape[1]), cotangent])
        adjoint = [torch.zeros_like(finished.keys), torch.zeros_like(finished.values)]
        audio = embeds.detach().clone().requires_grad_(True)
        for chunk in reversed(self._chunks(len(ids), length)):
            self._backward_chunk(batch, ids, chunk, finished, audio, padded[chunk], adjoint)
        return audio.grad if audio.grad is not None else torch.zeros_like(audio)

    def _fitting_batch(self, ids: Tensor, forced: ForcedRun, embeds: Tensor) -> BatchedDecoder | None:
        """Return the batched decoder if it gives the same last logits on caches as long as the transcript."""
        if self.batch is None:
            return None
        length = len(ids)
        shared = _shared(forced.keys[..., :length], forced.values[..., :length], embeds)
        last = self._steps.batch(slice(length - 1, length), length)
        changing = {contract.INPUT_IDS: ids[-1], **{name: value[0] for name, value in last.items()}}
        try:
            with torch.no_grad():
                found = _call(self.batch.run, changing, shared)[0]
        except (RuntimeError, ValueError) as error:  # an operation that insists on the caches' own length
            self._give_up(f"a batch of steps fails: {error}")
            return None
        if not _is_same(found, forced.logits[-1]):
            self._give_up("on caches as long as the transcript it computes something else")
        return self.batch

    def _chunks(self, count: int, length: int) -> list[slice]:
        size = max(8, _CHUNK_BYTES // (16 * self._cache_shape[1] * length))
        return [slice(start, min(start + size, count)) for start in range(0, count, size)]

    def _backward_chunk(
        self,
        batch: BatchedDecoder | None,
        ids: Tensor,
        chunk: slice,
        forced: ForcedRun,
        audio: Tensor,
        cotangent: Tensor,
        adjoint: list[Tensor],
    ) -> None:
        """Do one chunk. `adjoint` holds the caches' cotangents from later chunks, and gains those from this one."""
        caches = [cache.detach().clone().requires_grad_(True) for cache in (forced.keys, forced.values)]
        run = self.program.run if batch is None else batch.run
        with torch.enable_grad():
            logits, *updates = self._chunk(run, ids, chunk, caches, audio)
        cotangents = [_by_position(part, chunk) for part in adjoint]
        if batch is None or not batch.shares_columns:
            cotangents = self._solve_adjoint(logits, updates, caches, cotangent, cotangents, chunk)
        torch.autograd.backward((logits, *updates), (cotangent, *cotangents), inputs=[*self._wanted(), audio, *caches])
        for total, cache in zip(adjoint, caches, strict=True):
            if cache.grad is not None:
                total.add_(cache.grad)

    def _solve_adjoint(
        self,
        logits: Tensor,
        updates: list[Tensor],
        caches: list[Tensor],
        cotangent: Tensor,
        from_later: list[Tensor],
        chunk: slice,
    ) -> list[Tensor]:
        """Return the cotangents of a chunk's updates: from later chunks, and in rounds from its own steps."""
        from_logits = torch.autograd.grad(logits, caches, cotangent, retain_graph=True)
        base = [part + _by_position(more, chunk) for part, more in zip(from_later, from_logits, strict=True)]
        solution = base
        for _ in range(min(self.layers, chunk.stop - chunk.start) - 1):
            found = torch.autograd.grad(updates, caches, solution, retain_graph=True)
            solution = [first + _by_position(part, chunk) for first, part in zip(base, found, strict=True)]
        return solution

    def _wanted(self) -> list[Tensor]:
        return [weight for weight in self.program.parameters() if weight.requires_grad]


def _decoder_sizes(decoder: Program) -> tuple[int, int, int]:
    """Return the channels and positions of the caches, and the width of the audio embeddings.

    Raises:
        BundleError: Inputs are missing, or an axis is open.
    """
    names = (
        contract.INPUT_IDS, contract.CACHE_LENGTH, contract.KEY_CACHE, contract.VALUE_CACHE, contract.UPDATE_MASK,
        contract.EMBEDS, contract.PADDING_MASK,
    )  # fmt: skip
    if missing := sorted(set(names) - decoder.inputs.keys()):
        raise BundleError(f"{decoder.path}: lacks the inputs {', '.join(missing)} of the runtime's decoder")
    cache, embeds = (decoder.inputs[name].shape for name in (contract.KEY_CACHE, contract.EMBEDS))
    if any(axis is None for axis in (*cache, *embeds)):
        raise BundleError(f"{decoder.path}: the caches' shape is open; the runtime needs fixed sizes")
    return cache[1] or 0, cache[3] or 0, embeds[1] or 1


def _shared(keys: Tensor, values: Tensor, embeds: Tensor) -> dict[str, Tensor]:
    """Return the inputs that all steps of a batch share."""
    return {contract.KEY_CACHE: keys, contract.VALUE_CACHE: values, contract.EMBEDS: embeds}


def _call(run: _Run, changing: Mapping[str, Tensor], shared: Mapping[str, Tensor]) -> _Outputs:
    """Run one step, or under `torch.vmap` a batch of them. Return logits `[V]` and the columns `[1, D * L, 1, 1]`."""
    outputs = run({**changing, **shared})
    return outputs[contract.LOGITS].reshape(-1), outputs[contract.KEY_UPDATES], outputs[contract.VALUE_UPDATES]


def _is_same(found: Tensor, expected: Tensor) -> bool:
    return float((found - expected).abs().max()) <= _TOLERANCE * float(expected.abs().max())


def _by_position(cache: Tensor, chunk: slice) -> Tensor:
    """Return columns of a cache `[1, C, 1, S]` as updates `[T, 1, C, 1, 1]`."""
    return cache[..., chunk].permute(3, 0, 1, 2)[..., None]


def divergence(reference: Tensor, logits: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence of each row in nats, `KL(reference || other)`. Both are logits `[T, V]`.

    It is computed in float64, because at small divergences the difference of float32 logarithms is mostly rounding.
    """
    first, second = reference.double().log_softmax(-1), logits.double().log_softmax(-1)
    return (first.exp() * (first - second)).sum(-1)


def mean_divergence(references: Iterable[Tensor], found: Iterable[Tensor]) -> float:
    """Return the mean over the windows of the mean divergence of each window's predicted tokens, in nats."""
    rows = [divergence(one, two).mean() for one, two in zip(references, found, strict=True)]
    return float(torch.stack(rows).mean())

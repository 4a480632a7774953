"""Teacher forcing through a bundle's own programs: a given transcript in, every position's logits out, and gradients.

The decoder takes one token a call and reads earlier positions from caches that are inputs, so on a device the calls are
made in order. Here all calls of a chunk of positions run at once under `torch.vmap`, so that what the weights see is
one batch. Where each layer's part of the caches can be told from the program, the calls see each other's columns (see
`linking`); nothing has to be known beforehand, and gradients are those of the whole recurrence.

Elsewhere calls are made in order, and for gradients once more as a batch on the finished caches. These are outputs of
earlier calls, so their gradients matter: keys and values of the self-attention act through nothing else. Let
`c = u(c, w)` say that the caches hold the updates of all calls, and `l(c, w)` be the logits; for a cotangent `g` of the
logits the caches' adjoint is the solution of

    a = (dl/dc)' g + (du/dc)' a

in which every layer's updates depend on lower layers' caches only. As many rounds as there are layers therefore give it
exactly. Chunks are taken from the last to the first, because a position acts on later ones only.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from whisperkit_tools import contract
from whisperkit_tools.decoder.batched import ShortDecoder
from whisperkit_tools.errors import BundleError
from whisperkit_tools.mil.program import Program

_CHUNK_BYTES = 1 << 30  # of the caches' copies, one a position, that a chunk's graph holds
_SAME = 1e-3  # of the largest number; other orders of sums differ by a thousandth of that


_Run: TypeAlias = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


@dataclass(frozen=True, slots=True)
class Window:
    """Thirty seconds of calibration speech and what the uncompressed bundle says they are.

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
        """How many tokens were predicted."""
        return len(self.tokens) - self.first


@dataclass(frozen=True, slots=True)
class Forced:
    """One window's calls.

    Attributes:
        logits: `[predicted, V]`, what each predicted token was chosen from.
        keys: `[1, D * L, 1, S]`, the finished caches.
        values: The same.
    """

    logits: Tensor
    keys: Tensor
    values: Tensor

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """All three."""
        return self.logits, self.keys, self.values


class TeacherForcing:
    """A decoder program that is given its tokens."""

    def __init__(self, decoder: Program) -> None:
        """Take the program.

        Raises:
            BundleError: It is no decoder of the runtime's contract, or an axis of its caches is open.
        """
        needed = {
            contract.INPUT_IDS,
            contract.CACHE_LENGTH,
            contract.KEY_CACHE,
            contract.VALUE_CACHE,
            contract.UPDATE_MASK,
        }
        needed |= {contract.EMBEDS, contract.PADDING_MASK}
        if missing := sorted(needed - decoder.inputs.keys()):
            raise BundleError(f"{decoder.path}: lacks the inputs {', '.join(missing)} of the runtime's decoder")
        shapes = [decoder.inputs[name].shape for name in (contract.KEY_CACHE, contract.EMBEDS)]
        if any(axis is None for shape in shapes for axis in shape):
            raise BundleError(f"{decoder.path}: the caches' shape is open; the runtime needs fixed sizes")
        self.program = decoder
        self._cache_shape = [axis or 0 for axis in shapes[0]]
        self.length = self._cache_shape[3]
        self.layers = max(1, self._cache_shape[1] // (shapes[1][1] or 1))
        device = decoder.device
        self._here = torch.eye(self.length, device=device)[:, None]
        self._padding = torch.full((self.length, self.length), contract.MASKED, device=device).triu(1)[:, None]
        self._positions = torch.arange(self.length, dtype=torch.int32, device=device)[:, None]
        self._short: ShortDecoder | None = ShortDecoder(decoder, self.length)
        self._tried = 0  # the longest transcript of which the short decoder is known to give the same at once

    def _inputs(self, ids: Tensor, at: int | slice, length: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return ids[at], self._positions[at], self._here[at][..., :length], self._padding[at][..., :length]

    @staticmethod
    def _call(
        run: _Run,
        ids: Tensor,
        position: Tensor,
        here: Tensor,
        padding: Tensor,
        keys: Tensor,
        values: Tensor,
        embeds: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        outputs = run(
            {
                contract.INPUT_IDS: ids,
                contract.CACHE_LENGTH: position,
                contract.KEY_CACHE: keys,
                contract.VALUE_CACHE: values,
                contract.UPDATE_MASK: here,
                contract.EMBEDS: embeds,
                contract.PADDING_MASK: padding,
            }
        )
        return outputs["logits"].reshape(-1), outputs[contract.KEY_UPDATES], outputs[contract.VALUE_UPDATES]

    def ids(self, window: Window) -> Tensor:
        """The tokens that go in, `[T, 1]`: all but the last, which is only predicted.

        Raises:
            BundleError: The caches are too short for them.
        """
        if len(window.tokens) - 1 > self.length:
            raise BundleError(
                f"a transcript of {len(window.tokens)} tokens does not fit the caches of {self.length} positions"
            )
        return torch.tensor(window.tokens[:-1], dtype=torch.int32, device=self.program.device)[:, None]

    def forward(self, window: Window, embeds: Tensor) -> Forced:
        """Run all calls, without gradients: at once where that was found to give what they give one by one.

        Args:
            window: The tokens.
            embeds: The window's audio embeddings, `[1, D, 1, n_audio_ctx]`.

        Raises:
            BundleError: The caches are too short for the tokens.
        """
        ids = self.ids(window)
        if self._short is None or not self._short.is_linked:
            return self.in_steps(window, embeds)
        try:
            found = self._at_once(self._short, window, ids, embeds)
        except (RuntimeError, ValueError):  # as in `_fitting_short`
            self._short = None
            return self.in_steps(window, embeds)
        if len(ids) > self._tried:
            expected = self.in_steps(window, embeds)
            if not all(_is_same(*pair) for pair in zip(found.tensors, expected.tensors, strict=True)):
                self._short = None
                return expected
            self._tried = len(ids)
        return found

    def in_steps(self, window: Window, embeds: Tensor) -> Forced:
        """Run the calls one by one, as the device does; else the same as `forward`."""
        keys, values = self._empty_caches()
        ids, rows = self.ids(window), list[Tensor]()
        with torch.no_grad():
            for at in range(len(ids)):
                inputs = self._inputs(ids, at, self.length)
                row, key, value = self._call(self.program.run, *inputs, keys, values, embeds)
                keys[..., at : at + 1], values[..., at : at + 1] = key, value
                if at >= window.first - 1:
                    rows.append(row.clone())
        return Forced(torch.stack(rows), keys, values)

    def _at_once(self, short: ShortDecoder, window: Window, ids: Tensor, embeds: Tensor) -> Forced:
        keys, values = self._empty_caches()
        filled = keys[..., : len(ids)], values[..., : len(ids)]
        rows: list[Tensor] = []
        with torch.no_grad():
            for chunk in self._chunks(len(ids), len(ids)):
                logits, *updates = self._many(short.run, ids, chunk, filled, embeds)
                for cache, update in zip(filled, updates, strict=True):
                    cache[..., chunk] = update[..., 0].permute(1, 2, 3, 0)
                rows.append(logits)
        return Forced(torch.cat(rows)[window.first - 1 :].clone(), keys, values)

    def _empty_caches(self) -> tuple[Tensor, Tensor]:
        keys, values = (torch.zeros(self._cache_shape, device=self.program.device) for _ in range(2))
        return keys, values

    def _many(
        self, run: _Run, ids: Tensor, chunk: slice, caches: Sequence[Tensor], embeds: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The calls of a chunk as one batch."""
        call = torch.vmap(partial(self._call, run), in_dims=(0, 0, 0, 0, None, None, None))
        found: tuple[Tensor, Tensor, Tensor] = call(
            *self._inputs(ids, chunk, caches[0].shape[3]), caches[0], caches[1], embeds
        )
        return found

    def backward(self, window: Window, forced: Forced, embeds: Tensor, cotangent: Tensor) -> Tensor:
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
        short = self._fitting_short(window, forced, embeds)
        length = self.length if short is None else len(ids)
        finished = Forced(forced.logits, forced.keys[..., :length], forced.values[..., :length])
        padded = torch.cat([cotangent.new_zeros(window.first - 1, cotangent.shape[1]), cotangent])
        adjoint = [torch.zeros_like(finished.keys), torch.zeros_like(finished.values)]
        audio = embeds.detach().clone().requires_grad_(True)
        for chunk in reversed(self._chunks(len(ids), length)):
            self._backward_chunk(short, ids, chunk, finished, audio, padded[chunk], adjoint)
        return audio.grad if audio.grad is not None else torch.zeros_like(audio)

    def _fitting_short(self, window: Window, forced: Forced, embeds: Tensor) -> ShortDecoder | None:
        """The short decoder, if it computes the same last logits on caches as long as the transcript; if not, never."""
        if self._short is None:
            return None
        ids = self.ids(window)
        length, last = len(ids), forced.logits[-1]
        keys, values = forced.keys[..., :length], forced.values[..., :length]
        try:
            with torch.no_grad():
                inputs = self._inputs(ids, length - 1, length)
                found = self._call(self._short.run, *inputs, keys, values, embeds)[0]
        except (RuntimeError, ValueError):  # an operation that insists on the caches' own length
            self._short = None
            return None
        if not _is_same(found, last):
            self._short = None
        return self._short

    def _chunks(self, count: int, length: int) -> list[slice]:
        size = max(8, _CHUNK_BYTES // (16 * self._cache_shape[1] * length))
        return [slice(start, min(start + size, count)) for start in range(0, count, size)]

    def _backward_chunk(
        self,
        short: ShortDecoder | None,
        ids: Tensor,
        chunk: slice,
        forced: Forced,
        audio: Tensor,
        cotangent: Tensor,
        adjoint: list[Tensor],
    ) -> None:
        """Do one chunk; `adjoint` holds what later chunks say of the caches and gains what this one does."""
        caches = [cache.detach().clone().requires_grad_(True) for cache in (forced.keys, forced.values)]
        run = self.program.run if short is None else short.run
        with torch.enable_grad():
            logits, *updates = self._many(run, ids, chunk, caches, audio)
        own = [_by_position(part, chunk) for part in adjoint]
        if short is None or not short.is_linked:
            own = self._solved(logits, updates, caches, cotangent, own, chunk)
        torch.autograd.backward((logits, *updates), (cotangent, *own), inputs=[*self._wanted(), audio, *caches])
        for total, cache in zip(adjoint, caches, strict=True):
            if cache.grad is not None:
                total.add_(cache.grad)

    def _solved(
        self,
        logits: Tensor,
        updates: list[Tensor],
        caches: list[Tensor],
        cotangent: Tensor,
        later: list[Tensor],
        chunk: slice,
    ) -> list[Tensor]:
        """The adjoint of a chunk's updates: what `later` chunks say of them and, in rounds, what its own calls say."""
        seen = torch.autograd.grad(logits, caches, cotangent, retain_graph=True)
        base = [part + _by_position(more, chunk) for part, more in zip(later, seen, strict=True)]
        own = base
        for _ in range(min(self.layers, chunk.stop - chunk.start) - 1):
            found = torch.autograd.grad(updates, caches, own, retain_graph=True)
            own = [first + _by_position(part, chunk) for first, part in zip(base, found, strict=True)]
        return own

    def _wanted(self) -> list[Tensor]:
        return [weight for weight in self.program.parameters() if weight.requires_grad]


def _is_same(found: Tensor, expected: Tensor) -> bool:
    return float((found - expected).abs().max()) <= _SAME * float(expected.abs().max())


def _by_position(cache: Tensor, chunk: slice) -> Tensor:
    """Columns of a cache `[1, C, 1, S]` as updates `[T, 1, C, 1, 1]`."""
    return cache[..., chunk].permute(3, 0, 1, 2)[..., None]


def divergence(reference: Tensor, logits: Tensor) -> Tensor:
    """Kullback-Leibler divergence of each row in nats, `KL(reference || other)`; both are logits `[T, V]`.

    In float64: at small divergences the difference of float32 logarithms is mostly rounding.
    """
    first, second = reference.double().log_softmax(-1), logits.double().log_softmax(-1)
    return (first.exp() * (first - second)).sum(-1)


def mean_divergence(references: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Mean over the windows of the mean over each window's predicted tokens."""
    rows = [divergence(one, two).mean() for one, two in zip(references, found, strict=True)]
    return float(torch.stack(rows).mean())

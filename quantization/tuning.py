"""Adjusting palettes after rounding: gradient descent of the divergence on the tables' entries, indices unchanged.

The gradient of an entry is the sum of those of the elements that it stands for. Weights come from the tables at every
step and the gradient goes through both programs of the bundle, caches included, as in `teacher`. Steps are Adam's, each
table's scaled by the error that its rounding made, because that is how far an entry may usefully move.

Source: Kingma and Ba, "Adam"; trained palettes as in Han et al., "Deep Compression", section 3.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from whisperkit_tools.contract import DECODER, EMBEDS, ENCODER, FEATURES
from whisperkit_tools.decoder.teacher_forcing import SpeechWindow, TeacherForcing, divergence
from whisperkit_tools.mil.activation_checkpointing import CheckpointedProgram
from whisperkit_tools.mil.ops.constexpr import entry_rows, palette_to_dense
from whisperkit_tools.mil.program import Program
from whisperkit_tools.quantization.checkpointing import Kept, Nothing, Pace
from whisperkit_tools.quantization.palette import Palettized

_BETAS = (0.9, 0.99)
_DONE = "done"


@dataclass(frozen=True, slots=True)
class TuningOptions:
    """How palettes are tuned.

    Attributes:
        steps: Steps, each on one window.
        rate: Size of a step, in units of the root mean squared rounding error of the weight.
        seed: Of the order of the windows.
        budget_bytes: What activations of the encoder may take at once.
    """

    steps: int
    rate: float = 0.015
    seed: int = 0
    budget_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: A value is not positive.
        """
        if self.steps < 1 or not self.rate > 0:
            raise ValueError(f"steps is {self.steps}, rate {self.rate}; both have to be positive")


class Table:
    """The palette of one weight as torch tensors.

    Attributes:
        entries: `[N]` float32, the palette's elements in row-major order.
    """

    def __init__(self, palettized: Palettized) -> None:
        self.palettized = palettized
        self.entries = torch.from_numpy(palettized.lut.astype(np.float32).reshape(-1))
        self._indices = torch.from_numpy(palettized.indices)
        self._scale = None if palettized.scale is None else torch.from_numpy(palettized.scale)
        self._outliers = None
        if palettized.outlier_positions is not None and palettized.outlier_values is not None:
            positions, values = palettized.outlier_positions, palettized.outlier_values
            self._outliers = torch.from_numpy(positions), torch.from_numpy(values)

    def weight(self) -> Tensor:
        """The weight that the entries stand for, rounded as the written package rounds it, float32."""
        lut = self.entries.half().reshape(self.palettized.lut.shape)
        axis = self.palettized.option.axis
        return palette_to_dense(self._indices, lut, axis, self._scale, self._outliers).float()

    def gradient(self, weight_gradient: Tensor) -> Tensor:
        """The entries' gradient from the weight's: the sum over the elements that each entry stands for."""
        if self._scale is not None:
            weight_gradient = weight_gradient * self._scale.float()
        vector, axis, split = self.palettized.lut.shape[-1], self.palettized.option.axis, list(weight_gradient.shape)
        split[axis : axis + 1] = [-1, vector]
        gradients = weight_gradient.reshape(split).movedim(axis + 1, -1).reshape(-1, vector)
        rows = entry_rows(self._indices, self.palettized.lut.shape).reshape(-1)
        return torch.zeros_like(self.entries).reshape(-1, vector).index_add_(0, rows, gradients).reshape(-1)

    def tuned(self) -> Palettized:
        """The palette with the present entries."""
        lut = self.entries.half().numpy().reshape(self.palettized.lut.shape)
        return replace(self.palettized, lut=lut)


@dataclass(slots=True)
class _Tuned:
    """One weight under way: its table, the parameter that takes the result, the gradient, and Adam's moments."""

    table: Table
    parameter: nn.Parameter
    step_size: float
    gradient: Tensor
    mean: Tensor
    square: Tensor

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Ask for gradients inside the block, and take up each as it arrives: the parameter's is as large as it."""

        def collect(parameter: Tensor) -> None:
            if parameter.grad is not None:
                self.gradient += self.table.gradient(parameter.grad)
                parameter.grad = None

        self.parameter.requires_grad_(True)
        # Torch gives this method no types.
        handle = self.parameter.register_post_accumulate_grad_hook(collect)  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            handle.remove()
            self.parameter.requires_grad_(False)

    def update(self, rate: float, count: int) -> None:
        self.mean.lerp_(self.gradient, 1 - _BETAS[0])
        self.square.lerp_(self.gradient.square(), 1 - _BETAS[1])
        self.gradient.zero_()
        mean = self.mean / (1 - _BETAS[0] ** count)
        root = (self.square / (1 - _BETAS[1] ** count)).sqrt()
        self.table.entries -= rate * self.step_size * mean / (root + 1e-12)

    def tensors(self) -> dict[str, Tensor]:
        """What changes from step to step."""
        return {"entries": self.table.entries, "mean": self.mean, "square": self.square}

    def apply(self) -> None:
        with torch.no_grad():
            self.parameter.copy_(self.table.weight())


class Tuning:
    """The compressed programs and the divergence that is to be lowered."""

    def __init__(
        self,
        packages: Mapping[str, Path],
        palettized: Mapping[str, Mapping[str, Palettized]],
        windows: Sequence[SpeechWindow],
        references: Sequence[Tensor],
        options: TuningOptions,
        judging: Sequence[int] = (),
    ) -> None:
        """Load the uncompressed packages and put the compressed weights in.

        Args:
            packages: Paths of AudioEncoder and TextDecoder, uncompressed.
            palettized: For each component its compressed weights.
            windows: Calibration speech.
            references: The uncompressed bundle's logits of each window.
            options: How to tune.
            judging: Indices of the windows that judge and are not tuned on; without any all do both.
        """
        self._options = options
        self._windows, self._references = windows, references
        every = range(len(windows))
        self._judging = list(judging or every)
        self._tuning = [at for at in every if at not in judging] or self._judging
        encoder, decoder = Program.load(packages[ENCODER]), Program.load(packages[DECODER])
        self._encoder, self._forcing = encoder, TeacherForcing(decoder)
        self._tuned = {
            (component, name): _prepared(part, program.weights[name])
            for component, program in ((ENCODER, encoder), (DECODER, decoder))
            for name, part in palettized.get(component, {}).items()
        }
        self._tunes_encoder = bool(palettized.get(ENCODER))
        self._segments = CheckpointedProgram(encoder, options.budget_bytes) if self._tunes_encoder else None
        self._name = self._named()
        # Without a change in the encoder its output does not change either.
        self._embeds: dict[int, Tensor] = {}

    def _encode(self, at: int) -> Tensor:
        if at in self._embeds:
            return self._embeds[at]
        with torch.no_grad():
            embeds = self._encoder.run({FEATURES: self._windows[at].features})[EMBEDS]
        if not self._tunes_encoder:
            self._embeds[at] = embeds
        return embeds

    def divergence(self) -> float:
        """Mean over the windows that judge of their tokens' mean with the present tables, in nats."""
        with torch.no_grad():
            rows = [
                divergence(
                    self._references[at], self._forcing.forward(self._windows[at], self._encode(at)).logits
                ).mean()
                for at in self._judging
            ]
        return float(torch.stack(rows).mean())

    def run(
        self, progress: Callable[[int, float], None] | None = None, kept: Kept | None = None
    ) -> tuple[float, float]:
        """Take all steps, and keep the tables of the start if the end is no better.

        Args:
            progress: Told after each step its number and its window's divergence before it.
            kept: Where tables are kept under `name` about once a minute and at the end, until the caller drops them,
                and where an interrupted run with the same palettes, windows and options goes on from; it then gives
                the same result.

        Returns:
            The mean divergence before and after.
        """
        before = self.divergence()
        first = {key: tuned.table.entries.clone() for key, tuned in self._tuned.items()}
        order = _order(self._tuning, self._options)
        kept, pace = kept or Nothing(), Pace()
        done = self._resume(kept.load(self.name))
        for number, at in enumerate(order[done:], start=done + 1):
            rate = self._options.rate * 0.5 * (1 + math.cos(math.pi * (number - 1) / len(order)))
            found = self._step(at, rate, number)
            if progress is not None:
                progress(number, found)
            if pace.is_time() or number == len(order):
                kept.save(self.name, self._state(number))
        after = self.divergence()
        if not after < before:
            for key, tuned in self._tuned.items():
                tuned.table.entries = first[key]
                tuned.apply()
            after = before
        return before, after

    @property
    def name(self) -> str:
        """Under which tables are kept; it stands for the palettes as they were, the windows and the options."""
        return self._name

    def _named(self) -> str:
        digest = hashlib.sha256(repr(self._options).encode())
        for (component, name), tuned in self._tuned.items():
            palettized = tuned.table.palettized
            digest.update(f"{component}/{name}".encode())
            digest.update(palettized.lut.tobytes())
            digest.update(palettized.indices.tobytes())
        for at, window in enumerate(self._windows):
            digest.update(f"{window.tokens} {at in self._judging}".encode())
            digest.update(window.features.numpy().tobytes())
        return f"tuning-{digest.hexdigest()[:16]}"

    def _state(self, done: int) -> dict[str, Tensor]:
        state = {_DONE: torch.tensor(done)}
        for key, tuned in self._tuned.items():
            state |= {"/".join((*key, part)): value for part, value in tuned.tensors().items()}
        return state

    def _resume(self, state: Mapping[str, Tensor] | None) -> int:
        """Go on from a state; return how many steps were done."""
        if state is None:
            return 0
        for key, tuned in self._tuned.items():
            for part, value in tuned.tensors().items():
                value.copy_(state["/".join((*key, part))])
            tuned.apply()
        return int(state[_DONE])

    def _step(self, at: int, rate: float, number: int) -> float:
        window, reference = self._windows[at], self._references[at]
        embeds = self._encode(at)
        forced = self._forcing.forward(window, embeds)
        found = float(divergence(reference, forced.logits).mean())
        cotangent = (forced.logits.softmax(-1) - reference.softmax(-1)) / len(reference)
        with ExitStack() as stack:
            for tuned in self._tuned.values():
                stack.enter_context(tuned.collecting())
            arrived = self._forcing.backward(window, forced, embeds, cotangent)
            if self._segments is not None:
                self._segments.backward({FEATURES: window.features}, {EMBEDS: arrived})
        for tuned in self._tuned.values():
            tuned.update(rate, number)
            tuned.apply()
        return found

    def result(self) -> dict[str, dict[str, Palettized]]:
        """The tuned palettes by component and name."""
        found: dict[str, dict[str, Palettized]] = {}
        for (component, name), tuned in self._tuned.items():
            found.setdefault(component, {})[name] = tuned.table.tuned()
        return found


def _prepared(palettized: Palettized, parameter: nn.Parameter) -> _Tuned:
    table = Table(palettized)
    error = float((table.weight() - parameter.detach()).square().mean().sqrt())
    scale = 1.0 if palettized.scale is None else float(np.abs(palettized.scale.astype(np.float32)).mean())
    gradient, mean, square = (torch.zeros_like(table.entries) for _ in range(3))
    tuned = _Tuned(table, parameter, error / scale, gradient, mean, square)
    tuned.apply()
    return tuned


def _order(windows: Sequence[int], options: TuningOptions) -> list[int]:
    """Which window each step takes: all of them in a new order, again and again."""
    rng = np.random.default_rng(options.seed)
    order: list[int] = []
    while len(order) < options.steps:
        order += rng.permutation(windows).tolist()
    return order[: options.steps]

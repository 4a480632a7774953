"""Palette tuning: gradient descent of the divergence on the entries of palettes, with the indices fixed.

The gradient of an entry is the sum of the gradients of the elements that it represents. Each step computes the weights
from the entries, and the gradient goes through both programs of the bundle, caches included, as in teacher forcing.
Steps are Adam's. The step size of each palette is scaled by its rounding error, because an entry cannot usefully move
farther than that.

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
from whisperkit_tools.decoder.teacher_forcing import SpeechWindow, TeacherForcing, divergence, mean_divergence
from whisperkit_tools.errors import OptionsError
from whisperkit_tools.mil.activation_checkpointing import CheckpointedProgram
from whisperkit_tools.mil.ops.constexpr import entry_rows, palette_to_dense
from whisperkit_tools.mil.program import Program
from whisperkit_tools.quantization.checkpointing import CheckpointStore, NullStore, SaveInterval
from whisperkit_tools.quantization.palette import Palettized

_BETAS = (0.9, 0.99)
_DONE = "done"


@dataclass(frozen=True, slots=True)
class TuningOptions:
    """Settings of palette tuning.

    Attributes:
        steps: Number of steps, each on one window.
        rate: Size of a step, in units of the root mean squared rounding error of the weight.
        seed: Seed of the order of the windows.
        budget_bytes: Maximum memory of the encoder's activations.
    """

    steps: int
    rate: float = 0.015
    seed: int = 0
    budget_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            OptionsError: A value is not positive.
        """
        if self.steps < 1 or not self.rate > 0:
            raise OptionsError(f"tuning has {self.steps} steps of size {self.rate}; both have to be positive")


class TunablePalette:
    """The palette of one weight as torch tensors.

    Attributes:
        palettized: The compressed weight before tuning.
        entries: `[N]` float32, the elements of the palettes in row-major order.
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
        """Return the weight that the present entries represent, rounded as in the written package, float32."""
        lut = self.entries.half().reshape(self.palettized.lut.shape)
        axis = self.palettized.compression.axis
        return palette_to_dense(self._indices, lut, axis, self._scale, self._outliers).float()

    def gradient(self, weight_gradient: Tensor) -> Tensor:
        """Return the gradient `[N]` of the entries: the sum over the elements that each entry represents."""
        if self._scale is not None:
            weight_gradient = weight_gradient * self._scale.float()
        vector, axis = self.palettized.lut.shape[-1], self.palettized.compression.axis
        split = list(weight_gradient.shape)
        split[axis : axis + 1] = [-1, vector]
        gradients = weight_gradient.reshape(split).movedim(axis + 1, -1).reshape(-1, vector)
        rows = entry_rows(self._indices, self.palettized.lut.shape).reshape(-1)
        return torch.zeros_like(self.entries).reshape(-1, vector).index_add_(0, rows, gradients).reshape(-1)

    def tuned(self) -> Palettized:
        """Return the compressed weight with the present entries, rounded to float16."""
        lut = self.entries.half().numpy().reshape(self.palettized.lut.shape)
        return replace(self.palettized, lut=lut)


@dataclass(slots=True)
class _TunedWeight:
    """One weight under tuning.

    Attributes:
        palette: The palette with the present entries.
        parameter: The program's parameter, which receives the weight.
        step_size: Factor of Adam's steps.
        gradient: `[N]` gradient of the entries in this step.
        mean: `[N]` Adam's first moment.
        square: `[N]` Adam's second moment.
    """

    palette: TunablePalette
    parameter: nn.Parameter
    step_size: float
    gradient: Tensor
    mean: Tensor
    square: Tensor

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Record gradients inside the block. Each is reduced as it arrives, because it is as large as the weight."""

        def collect(parameter: Tensor) -> None:
            if parameter.grad is not None:
                self.gradient += self.palette.gradient(parameter.grad)
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
        """Take Adam's step number `count`."""
        self.mean.lerp_(self.gradient, 1 - _BETAS[0])
        self.square.lerp_(self.gradient.square(), 1 - _BETAS[1])
        self.gradient.zero_()
        mean = self.mean / (1 - _BETAS[0] ** count)
        root = (self.square / (1 - _BETAS[1] ** count)).sqrt()
        self.palette.entries -= rate * self.step_size * mean / (root + 1e-12)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that change from step to step."""
        return {"entries": self.palette.entries, "mean": self.mean, "square": self.square}

    def apply(self) -> None:
        """Write the present weight to the program."""
        with torch.no_grad():
            self.parameter.copy_(self.palette.weight())


class Tuning:
    """The compressed programs and the divergence to minimise."""

    def __init__(
        self,
        packages: Mapping[str, Path],
        palettized: Mapping[str, Mapping[str, Palettized]],
        windows: Sequence[SpeechWindow],
        references: Sequence[Tensor],
        options: TuningOptions,
        judging: Sequence[int] = (),
    ) -> None:
        """Load the uncompressed packages and replace their weights by the compressed ones.

        Args:
            packages: Paths of the uncompressed encoder and decoder.
            palettized: For each component its compressed weights.
            windows: Calibration speech.
            references: The uncompressed bundle's logits of each window.
            options: Settings of the tuning.
            judging: Indices of the windows that judge and are not tuned on. Empty when all windows do both.
        """
        self._options = options
        self._windows, self._references = windows, references
        every = range(len(windows))
        self._judging = list(judging or every)
        self._tuning = [at for at in every if at not in judging] or self._judging
        encoder, decoder = Program.load(packages[ENCODER]), Program.load(packages[DECODER])
        self._encoder, self._forcing = encoder, TeacherForcing(decoder)
        self._weights: dict[tuple[str, str], _TunedWeight] = {}
        self._untuned: dict[tuple[str, str], Palettized] = {}  # integers, which have no palette
        for component, program in ((ENCODER, encoder), (DECODER, decoder)):
            for name, part in palettized.get(component, {}).items():
                prepared = _prepared(part, program.weights[name])
                if part.compression.kind == "palette":
                    self._weights[component, name] = prepared
                else:
                    self._untuned[component, name] = part
        self._tunes_encoder = any(component == ENCODER for component, _ in self._weights)
        self._segments = CheckpointedProgram(encoder, options.budget_bytes) if self._tunes_encoder else None
        self._name = self._checkpoint_name()
        # Without tuned weights in the encoder its output never changes.
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
        """Return the present divergence in nats: the mean over the judging windows of the mean over their tokens."""
        logits = (self._forcing.forward(self._windows[at], self._encode(at)).logits for at in self._judging)
        with torch.no_grad():
            return mean_divergence((self._references[at] for at in self._judging), logits)

    def run(
        self,
        on_step: Callable[[int, float], None] | None = None,
        checkpoints: CheckpointStore | None = None,
    ) -> tuple[float, float]:
        """Take all steps. Restore the initial palettes if the result is not better.

        Args:
            on_step: Receives after each step its number, and its window's divergence before it.
            checkpoints: Stores palettes under `name` about once a minute and at the end, until the caller drops them.
                An interrupted run with the same palettes, windows and options resumes from it, with the same result.

        Returns:
            The mean divergence before and after. Both are the same where no weight has a palette.
        """
        before = self.divergence()
        if not self._weights:
            return before, before
        first = {key: weight.palette.entries.clone() for key, weight in self._weights.items()}
        order = _window_order(self._tuning, self._options)
        checkpoints, interval = checkpoints or NullStore(), SaveInterval()
        done = self._resume(checkpoints.load(self.name))
        for number, at in enumerate(order[done:], start=done + 1):
            rate = self._options.rate * 0.5 * (1 + math.cos(math.pi * (number - 1) / len(order)))
            found = self._step(at, rate, number)
            if on_step is not None:
                on_step(number, found)
            if interval.has_passed() or number == len(order):
                checkpoints.save(self.name, self._state(number))
        after = self.divergence()
        if not after < before:
            for key, weight in self._weights.items():
                weight.palette.entries = first[key]
                weight.apply()
            after = before
        return before, after

    @property
    def name(self) -> str:
        """Name of the checkpoint, derived from the initial palettes, the windows and the options."""
        return self._name

    def _checkpoint_name(self) -> str:
        digest = hashlib.sha256(repr(self._options).encode())
        parts = {key: weight.palette.palettized for key, weight in self._weights.items()} | self._untuned
        for (component, name), palettized in parts.items():
            digest.update(f"{component}/{name}".encode())
            digest.update(palettized.lut.tobytes())
            digest.update(palettized.indices.tobytes())
            digest.update(b"" if palettized.scale is None else palettized.scale.tobytes())
        for at, window in enumerate(self._windows):
            digest.update(f"{window.tokens} {at in self._judging}".encode())
            digest.update(window.features.numpy().tobytes())
        return f"tuning-{digest.hexdigest()[:16]}"

    def _state(self, done: int) -> dict[str, Tensor]:
        state = {_DONE: torch.tensor(done)}
        for key, weight in self._weights.items():
            state |= {"/".join((*key, part)): value for part, value in weight.tensors().items()}
        return state

    def _resume(self, state: Mapping[str, Tensor] | None) -> int:
        """Continue from a state, and return the number of steps done."""
        if state is None:
            return 0
        for key, weight in self._weights.items():
            for part, value in weight.tensors().items():
                value.copy_(state["/".join((*key, part))])
            weight.apply()
        return int(state[_DONE])

    def _step(self, at: int, rate: float, number: int) -> float:
        window, reference = self._windows[at], self._references[at]
        embeds = self._encode(at)
        forced = self._forcing.forward(window, embeds)
        found = float(divergence(reference, forced.logits).mean())
        cotangent = (forced.logits.softmax(-1) - reference.softmax(-1)) / len(reference)
        with ExitStack() as stack:
            for weight in self._weights.values():
                stack.enter_context(weight.collecting())
            arrived = self._forcing.backward(window, forced, embeds, cotangent)
            if self._segments is not None:
                self._segments.backward({FEATURES: window.features}, {EMBEDS: arrived})
        for weight in self._weights.values():
            weight.update(rate, number)
            weight.apply()
        return found

    def result(self) -> dict[str, dict[str, Palettized]]:
        """Return the tuned palettes by component and name."""
        found: dict[str, dict[str, Palettized]] = {}
        parts = {key: weight.palette.tuned() for key, weight in self._weights.items()} | self._untuned
        for (component, name), part in parts.items():
            found.setdefault(component, {})[name] = part
        return found


def _prepared(palettized: Palettized, parameter: nn.Parameter) -> _TunedWeight:
    palette = TunablePalette(palettized)
    error = float((palette.weight() - parameter.detach()).square().mean().sqrt())
    scale = 1.0 if palettized.scale is None else float(np.abs(palettized.scale.astype(np.float32)).mean())
    gradient, mean, square = (torch.zeros_like(palette.entries) for _ in range(3))
    weight = _TunedWeight(palette, parameter, error / scale, gradient, mean, square)
    weight.apply()
    return weight


def _window_order(windows: Sequence[int], options: TuningOptions) -> list[int]:
    """Return the window of each step: all of them in a new random order, again and again."""
    rng = np.random.default_rng(options.seed)
    order: list[int] = []
    while len(order) < options.steps:
        order += rng.permutation(windows).tolist()
    return order[: options.steps]

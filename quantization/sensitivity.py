"""Sensitivity of each weight: the curvature of the divergence at the decoder's logits, from one pass over speech.

Around the uncompressed weights the Kullback-Leibler divergence of the compressed bundle's logits from the uncompressed
ones is a quadratic form, `KL = 1/2 d' H d` for a change `d` of the weights, with `H` the Gauss-Newton matrix
`J' (diag(p) - p p') J` of the probabilities `p`. Its diagonal is estimated by squaring gradients. With random signs `s`
for every token and vocabulary entry, the cotangent `sqrt(p) * s - p * sum(sqrt(p) * s)` of the logits has exactly the
covariance `diag(p) - p p'`. Labels drawn from `p` have the same covariance, but for a confident model their gradients
are almost always near zero and occasionally huge. Tokens are drawn independently, so one backward pass serves a whole
window, decoder and encoder.

The predicted divergence of a compressed weight is `1/2 sum(F * (compressed - weight)**2)`, in nats per token, with `F`
the diagonal. The predictions of several weights add up. The diagonal treats errors as independent. The gradients of
weights that are added to activations, such as the encoder's positions, largely point the same way. For these few
weights the gradients themselves are stored, and the prediction is `1/2 mean((gradient . change)**2)`.

Source: Martens, "New insights and perspectives on the natural gradient method", sections 6 and 9.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from whisperkit_tools.contract import DECODER, EMBEDS, ENCODER, FEATURES
from whisperkit_tools.decoder.teacher_forcing import ForcedRun, SpeechWindow, TeacherForcing
from whisperkit_tools.errors import OptionsError
from whisperkit_tools.memory import release_memory
from whisperkit_tools.mil.activation_checkpointing import CheckpointedProgram
from whisperkit_tools.mil.graph import Graph, read_graph
from whisperkit_tools.mil.program import Program
from whisperkit_tools.progress import Progress, SilentProgress
from whisperkit_tools.quantization.checkpointing import CheckpointStore, NullStore, SaveInterval

MIN_ELEMENTS = 2048  # below it a palette and its record cost more than they save
_ENCODER_COTANGENTS = "cotangents"  # name of the checkpoint between the two passes
_SUM, _COTANGENT, _GENERATOR, _DONE, _GRADIENT = "sum/", "cotangent/", "generator", "done", "gradient/"
_MAX_GRADIENTS = 16  # stored of a weight that is added

FloatArray = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Curvature:
    """The curvature of one component's weights, in nats per token.

    Attributes:
        diagonal: For each weight the diagonal, of the weight's shape.
        gradients: For each weight that is added to activations some of the gradients, `[S, *shape]`. The diagonal is
            their mean square.
    """

    diagonal: dict[str, FloatArray]
    gradients: dict[str, FloatArray] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FisherOptions:
    """Settings of the curvature's estimation.

    Attributes:
        samples: Random cotangents per window.
        seed: Seed of the random signs.
        budget_bytes: Maximum memory of the encoder's activations.
    """

    samples: int = 1
    seed: int = 0
    budget_bytes: int = 2 << 30

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            OptionsError: There is no sample.
        """
        if self.samples < 1:
            raise OptionsError(f"samples is {self.samples}, expected 1 or more")


def compressible_weights(graph: Graph) -> tuple[str, ...]:
    """Return the weights for which palettes pay: float16, two axes or more, in the weights file, `MIN_ELEMENTS`."""
    return tuple(
        name
        for name, constant in graph.constants.items()
        if constant.in_weights_file
        and constant.spec.dtype == "float16"
        and len(constant.spec.shape) >= 2
        and constant.spec.size >= MIN_ELEMENTS
    )


def added_weights(graph: Graph) -> tuple[str, ...]:
    """Return the compressible weights that are only added to activations."""
    readers: dict[str, set[str]] = {name: set() for name in compressible_weights(graph)}
    for op in graph.operations:
        for value in op.reads:
            if value.name in readers:
                readers[value.name].add(op.type)
    return tuple(name for name, types in readers.items() if types == {"add"})


def cotangent(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a cotangent for logits `[T, V]` with covariance `diag(p) - p p'` in every row."""
    p = logits.double().softmax(-1)
    signs = torch.randint(0, 2, p.shape, generator=generator).to(p) * 2 - 1
    root = p.sqrt() * signs
    return (root - p * root.sum(-1, keepdim=True)).to(logits)


def estimate_curvatures(
    packages: Mapping[str, Path],
    windows: Sequence[SpeechWindow],
    options: FisherOptions | None = None,
    save: Callable[[str, Curvature], None] | None = None,
    progress: Progress | None = None,
    checkpoints: CheckpointStore | None = None,
) -> None:
    """Estimate the curvature of both components, with one loaded at a time.

    Args:
        packages: Paths of encoder and decoder.
        windows: The calibration speech.
        options: Settings of the estimation.
        save: Receives each component's name and result, the decoder's first, because the encoder's depends on it.
        progress: Told after each window, under the component's name.
        checkpoints: Stores sums about once a minute. An interrupted pass over the same windows resumes from it, and
            gives bit-identical results.
    """
    options, checkpoints = options or FisherOptions(), checkpoints or NullStore()
    progress = progress or SilentProgress()
    total = len(windows) * options.samples
    arrived = checkpoints.load(_ENCODER_COTANGENTS)
    if arrived is None:
        embeds = encode_windows(packages[ENCODER], windows)
        release_memory()
        decoder = _DecoderPass(packages[DECODER], progress)
        arrived = decoder.run(windows, embeds, options, progress, checkpoints)
        found = decoder.squares.result(total)
        del decoder, embeds  # before the result is encoded, which takes memory too
        _report(save, DECODER, found)
        del found
        checkpoints.save(_ENCODER_COTANGENTS, arrived)
        checkpoints.drop(DECODER)
    encoder = _EncoderPass(packages[ENCODER], options)
    encoder.run(windows, arrived, options, progress, checkpoints)
    found = encoder.squares.result(total)
    del encoder
    _report(save, ENCODER, found)
    # The decoder's too: a run that was killed between saving the cotangents and dropping it has left it.
    for name in (DECODER, ENCODER, _ENCODER_COTANGENTS):
        checkpoints.drop(name)


def _report(save: Callable[[str, Curvature], None] | None, component: str, found: Curvature) -> None:
    release_memory()
    if save is not None:
        save(component, found)


def encode_windows(package: Path, windows: Sequence[SpeechWindow]) -> list[Tensor]:
    """Return the audio embeddings `[1, D, 1, n_audio_ctx]` of each window."""
    program = Program.load(package)
    return [program.run({FEATURES: window.features})[EMBEDS] for window in windows]


class _GradientSquares:
    """Sums of squared gradients of a program's weights, and the first gradients of those that are added."""

    def __init__(self, program: Program, graph: Graph) -> None:
        names = compressible_weights(graph)
        self._weights = {name: program.weights[name] for name in names if name in program.weights}
        self._sums = {name: torch.zeros_like(weight) for name, weight in self._weights.items()}
        self._gradients: dict[str, list[Tensor]] = {name: [] for name in added_weights(graph) if name in self._weights}

    @contextmanager
    def collecting(self, sample: int, windows: int) -> Iterator[None]:
        """Record gradients inside the block, and add their squares at its end.

        Args:
            sample: Number of the sample within its window.
            windows: Number of windows. Gradients are stored from as many windows as possible.
        """
        stores = sample < max(1, _MAX_GRADIENTS // windows)
        for weight in self._weights.values():
            weight.requires_grad_(True)
            weight.grad = None
        try:
            yield
            for name, weight in self._weights.items():
                if weight.grad is not None:
                    self._sums[name].addcmul_(weight.grad, weight.grad)
                    if stores and name in self._gradients and len(self._gradients[name]) < _MAX_GRADIENTS:
                        self._gradients[name].append(weight.grad.clone())
        finally:
            for weight in self._weights.values():
                weight.requires_grad_(False)
                weight.grad = None

    def state(self) -> dict[str, Tensor]:
        """Return sums and gradients for `resume`."""
        stored = {f"{_GRADIENT}{name}": torch.stack(found) for name, found in self._gradients.items() if found}
        return stored | {f"{_SUM}{name}": value for name, value in self._sums.items()}

    def resume(self, state: Mapping[str, Tensor]) -> None:
        """Continue from the sums and gradients of `state`."""
        for name, value in self._sums.items():
            value.copy_(state[f"{_SUM}{name}"])
        for name in self._gradients:
            self._gradients[name] = list(state.get(f"{_GRADIENT}{name}", torch.empty(0)).clone())

    def result(self, count: int) -> Curvature:
        """Return the sums divided by the number of windows and samples, and the gradients. Releases the sums."""
        diagonal = {name: self._sums.pop(name).div_(count).cpu().numpy() for name in list(self._sums)}
        gradients = {name: torch.stack(found).cpu().numpy() for name, found in self._gradients.items() if found}
        return Curvature(diagonal, gradients)


class _DecoderPass:
    """The decoder's part of the backward pass."""

    def __init__(self, package: Path, progress: Progress) -> None:
        self._forcing = TeacherForcing(Program.load(package), progress)
        self.squares = _GradientSquares(self._forcing.program, read_graph(package))

    def run(
        self,
        windows: Sequence[SpeechWindow],
        embeds: Sequence[Tensor],
        options: FisherOptions,
        progress: Progress,
        checkpoints: CheckpointStore,
    ) -> dict[str, Tensor]:
        """Add every window. Return the encoder's cotangents by the numbers of window and sample."""
        generator = torch.Generator().manual_seed(options.seed)
        arrived: dict[str, Tensor] = {}
        interval, state = SaveInterval(), checkpoints.load(DECODER)
        if state is not None:
            self.squares.resume(state)
            generator.set_state(state[_GENERATOR])
            arrived = {name: value.clone() for name, value in state.items() if name.startswith(_COTANGENT)}
        del state  # as large as the sums
        first = len(arrived) // options.samples
        for number, (window, audio) in enumerate(zip(windows[first:], embeds[first:], strict=True), start=first):
            forced = self._forcing.forward(window, audio)
            self._forcing.program.forget()  # keys and values of the audio, large and not needed for gradients
            for sample in range(options.samples):
                with self.squares.collecting(sample, len(windows)):
                    found = self._sample(window, forced, audio, generator)
                arrived[_cotangent_name(number, sample)] = found.contiguous()
            progress.advance(DECODER, number + 1, len(windows))
            if interval.has_passed():
                release_memory()  # writing may take a copy
                checkpoints.save(DECODER, {**self.squares.state(), **arrived, _GENERATOR: generator.get_state()})
        return arrived

    def _sample(self, window: SpeechWindow, forced: ForcedRun, audio: Tensor, generator: torch.Generator) -> Tensor:
        # The mean over the tokens gives each window the same weight, so that long ones do not outweigh short ones.
        drawn = cotangent(forced.logits, generator) / window.predicted**0.5
        return self._forcing.backward(window, forced, audio, drawn)


class _EncoderPass:
    """The encoder's part of the backward pass."""

    def __init__(self, package: Path, options: FisherOptions) -> None:
        self._program = Program.load(package)
        self._segments = CheckpointedProgram(self._program, options.budget_bytes)
        self.squares = _GradientSquares(self._program, read_graph(package))

    def run(
        self,
        windows: Sequence[SpeechWindow],
        arrived: Mapping[str, Tensor],
        options: FisherOptions,
        progress: Progress,
        checkpoints: CheckpointStore,
    ) -> None:
        """Add every window."""
        interval, state, first = SaveInterval(), checkpoints.load(ENCODER), 0
        if state is not None:
            self.squares.resume(state)
            first = int(state[_DONE])
        del state
        for number, window in enumerate(windows[first:], start=first):
            for sample in range(options.samples):
                with self.squares.collecting(sample, len(windows)):
                    cotangents = {EMBEDS: arrived[_cotangent_name(number, sample)]}
                    self._segments.backward({FEATURES: window.features}, cotangents)
            progress.advance(ENCODER, number + 1, len(windows))
            if interval.has_passed():
                release_memory()
                checkpoints.save(ENCODER, {**self.squares.state(), _DONE: torch.tensor(number + 1)})


def _cotangent_name(window: int, sample: int) -> str:
    return f"{_COTANGENT}{window}/{sample}"


def reference_logits(packages: Mapping[str, Path], windows: Sequence[SpeechWindow]) -> list[Tensor]:
    """Return the teacher-forced logits `[predicted, V]` of each window through a bundle's packages."""
    embeds = encode_windows(packages[ENCODER], windows)
    forcing = TeacherForcing(Program.load(packages[DECODER]))
    return [forcing.forward(window, audio).logits for window, audio in zip(windows, embeds, strict=True)]


def predicted_divergence(
    diagonal: FloatArray, change: NDArray[np.floating], gradients: FloatArray | None = None
) -> float:
    """Return the divergence that a change of one weight alone causes, in nats per token.

    Args:
        diagonal: The curvature's diagonal, of the weight's shape.
        change: The change, of the weight's shape.
        gradients: `[S, *shape]` where errors of the elements add up, as in `Curvature`. They are few, so the
            diagonal's prediction is the minimum.
    """
    wide = change.astype(np.float32).reshape(-1)
    independent = float(0.5 * np.dot(diagonal.reshape(-1) * wide, wide))
    if gradients is None:
        return independent
    together = gradients.reshape(len(gradients), -1) @ wide
    return max(independent, float(0.5 * np.mean(together**2)))

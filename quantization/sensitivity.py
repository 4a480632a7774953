"""How much each weight matters: the curvature of the divergence at the decoder's logits, from one pass over speech.

Around the uncompressed weights the Kullback-Leibler divergence of the compressed bundle's logits from the uncompressed
ones' is a quadratic form, `KL = 1/2 d' H d` for a change `d` of the weights, with `H` the Gauss-Newton matrix
`J' (diag(p) - p p') J` of the probabilities `p`. Its diagonal is estimated by squaring gradients: with signs `s` drawn
at random for every token and vocabulary entry, the cotangent `sqrt(p) * s - p * sum(sqrt(p) * s)` of the logits has
exactly the covariance `diag(p) - p p'`. (Labels drawn from `p` have it too, but a sure model then gives next to no
gradient most of the time and a huge one at times.) Tokens are drawn independently, so one pass backward serves a whole
window, decoder and encoder.

The predicted divergence of a compressed tensor is `1/2 sum(F * (compressed - weight)**2)`, in nats a token, and those
of several tensors add up. The diagonal takes errors for independent. Those of weights that are added to activations,
such as the encoder's positions, largely point the same way, so of these few the gradients themselves are kept, and the
prediction is `1/2 mean((gradient . change)**2)`.

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
from whisperkit_tools.memory import release_memory
from whisperkit_tools.mil.activation_checkpointing import CheckpointedProgram
from whisperkit_tools.mil.graph import Graph, read_graph
from whisperkit_tools.mil.program import Program
from whisperkit_tools.quantization.checkpointing import Kept, Nothing, Pace

MIN_ELEMENTS = 2048  # below it a palette and its record cost more than they save
_ARRIVED = "cotangents"
_SUM, _COTANGENT, _GENERATOR, _DONE, _GRADIENT = "sum/", "cotangent/", "generator", "done", "gradient/"
_MOST_GRADIENTS = 16  # kept of a weight that is added

FloatArray = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Curvature:
    """The curvature of one component's weights, in nats a token.

    Attributes:
        diagonal: For each weight its diagonal, of the weight's shape.
        gradients: For each weight that is added to activations some of the gradients that the diagonal is the mean
            square of, `[S, *shape]`.
    """

    diagonal: dict[str, FloatArray]
    gradients: dict[str, FloatArray] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FisherOptions:
    """How the curvature is estimated.

    Attributes:
        samples: Random cotangents a window.
        seed: Of the signs.
        budget_bytes: What activations of the encoder may take at once.
    """

    samples: int = 1
    seed: int = 0
    budget_bytes: int = 2 << 30

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: There is no sample.
        """
        if self.samples < 1:
            raise ValueError(f"samples is {self.samples}, expected at least 1")


def compressible(graph: Graph) -> tuple[str, ...]:
    """Names of a program's weights that palettes pay for: float16, at least two axes, in the weights file."""
    return tuple(
        name
        for name, constant in graph.constants.items()
        if constant.in_weights_file
        and constant.spec.dtype == "float16"
        and len(constant.spec.shape) >= 2
        and constant.spec.size >= MIN_ELEMENTS
    )


def added(graph: Graph) -> tuple[str, ...]:
    """Names of the compressible weights that are only added to activations."""
    readers: dict[str, set[str]] = {name: set() for name in compressible(graph)}
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


def curvatures(
    packages: Mapping[str, Path],
    windows: Sequence[SpeechWindow],
    options: FisherOptions | None = None,
    done: Callable[[str, Curvature], None] | None = None,
    ticks: Callable[[str, int, int], None] | None = None,
    kept: Kept | None = None,
) -> None:
    """Estimate the curvature of both components, one loaded at a time.

    Args:
        packages: Paths of AudioEncoder and TextDecoder.
        windows: The speech.
        options: How.
        done: Called with each component's name and result: the decoder's first, from which the encoder's follows.
        ticks: Called with the component's name, how many windows are done, and how many there are.
        kept: Where sums are kept about once a minute, and where an interrupted pass over the same windows goes on from;
            it then gives the same result to the bit.
    """
    options, kept = options or FisherOptions(), kept or Nothing()
    total = len(windows) * options.samples
    arrived = kept.load(_ARRIVED)
    if arrived is None:
        embeds = encode(packages[ENCODER], windows)
        release_memory()
        decoder = _Decoder(packages[DECODER])
        arrived = decoder.run(windows, embeds, options, ticks, kept)
        found = decoder.square.result(total)
        del decoder, embeds  # before the result is encoded, which takes memory too
        _report(done, DECODER, found)
        del found
        kept.save(_ARRIVED, arrived)
        kept.drop(DECODER)
    encoder = _Encoder(packages[ENCODER], options)
    encoder.run(windows, arrived, options, ticks, kept)
    found = encoder.square.result(total)
    del encoder
    _report(done, ENCODER, found)
    for name in (DECODER, ENCODER, _ARRIVED):  # a run that was killed between two of these lines has left the first
        kept.drop(name)


def _report(done: Callable[[str, Curvature], None] | None, component: str, found: Curvature) -> None:
    release_memory()
    if done is not None:
        done(component, found)


def encode(package: Path, windows: Sequence[SpeechWindow]) -> list[Tensor]:
    """Audio embeddings `[1, D, 1, n_audio_ctx]` of each window."""
    program = Program.load(package)
    return [program.run({FEATURES: window.features})[EMBEDS] for window in windows]


class _Squares:
    """Sums of squared gradients of a program's compressible weights, and first gradients of those that are added."""

    def __init__(self, program: Program, graph: Graph) -> None:
        names = compressible(graph)
        self._weights = {name: program.weights[name] for name in names if name in program.weights}
        self._sums = {name: torch.zeros_like(weight) for name, weight in self._weights.items()}
        self._gradients: dict[str, list[Tensor]] = {name: [] for name in added(graph) if name in self._weights}

    @contextmanager
    def collecting(self, sample: int, windows: int) -> Iterator[None]:
        """Ask for gradients inside the block, and add their squares at its end.

        Args:
            sample: Number of the gradient among those of its window.
            windows: How many windows there are; gradients are kept of as many as possible.
        """
        is_kept = sample < max(1, _MOST_GRADIENTS // windows)
        for weight in self._weights.values():
            weight.requires_grad_(True)
            weight.grad = None
        try:
            yield
            for name, weight in self._weights.items():
                if weight.grad is not None:
                    self._sums[name].addcmul_(weight.grad, weight.grad)
                    if is_kept and name in self._gradients and len(self._gradients[name]) < _MOST_GRADIENTS:
                        self._gradients[name].append(weight.grad.clone())
        finally:
            for weight in self._weights.values():
                weight.requires_grad_(False)
                weight.grad = None

    def state(self) -> dict[str, Tensor]:
        """Sums and gradients, for `resume`."""
        kept = {f"{_GRADIENT}{name}": torch.stack(found) for name, found in self._gradients.items() if found}
        return kept | {f"{_SUM}{name}": value for name, value in self._sums.items()}

    def resume(self, state: Mapping[str, Tensor]) -> None:
        """Go on from sums of `state`."""
        for name, value in self._sums.items():
            value.copy_(state[f"{_SUM}{name}"])
        for name in self._gradients:
            self._gradients[name] = list(state.get(f"{_GRADIENT}{name}", torch.empty(0)).clone())

    def result(self, count: int) -> Curvature:
        """The sums over the number of windows and samples, and the gradients; what was summed is let go."""
        diagonal = {name: self._sums.pop(name).div_(count).cpu().numpy() for name in list(self._sums)}
        gradients = {name: torch.stack(found).cpu().numpy() for name, found in self._gradients.items() if found}
        return Curvature(diagonal, gradients)


class _Decoder:
    """The decoder's part of the pass."""

    def __init__(self, package: Path) -> None:
        self._forcing = TeacherForcing(Program.load(package))
        self.square = _Squares(self._forcing.program, read_graph(package))

    def run(
        self,
        windows: Sequence[SpeechWindow],
        embeds: Sequence[Tensor],
        options: FisherOptions,
        ticks: Callable[[str, int, int], None] | None,
        kept: Kept,
    ) -> dict[str, Tensor]:
        """Add every window; return what arrives at the encoder, under each window's and sample's number."""
        generator = torch.Generator().manual_seed(options.seed)
        arrived: dict[str, Tensor] = {}
        pace, state = Pace(), kept.load(DECODER)
        if state is not None:
            self.square.resume(state)
            generator.set_state(state[_GENERATOR])
            arrived = {name: value.clone() for name, value in state.items() if name.startswith(_COTANGENT)}
        del state  # as large as the sums
        first = len(arrived) // options.samples
        for number, (window, audio) in enumerate(zip(windows[first:], embeds[first:], strict=True), start=first):
            forced = self._forcing.forward(window, audio)
            self._forcing.program.forget()  # keys and values of the audio, large and of no use to gradients
            for sample in range(options.samples):
                with self.square.collecting(sample, len(windows)):
                    found = self._sample(window, forced, audio, generator)
                arrived[_cotangent_name(number, sample)] = found.contiguous()
            if ticks is not None:
                ticks(DECODER, number + 1, len(windows))
            if pace.is_time():
                release_memory()  # writing may take a copy
                kept.save(DECODER, {**self.square.state(), **arrived, _GENERATOR: generator.get_state()})
        return arrived

    def _sample(self, window: SpeechWindow, forced: ForcedRun, audio: Tensor, generator: torch.Generator) -> Tensor:
        # Each window's mean over its tokens counts the same, so that short utterances are not drowned by long ones.
        drawn = cotangent(forced.logits, generator) / window.predicted**0.5
        return self._forcing.backward(window, forced, audio, drawn)


class _Encoder:
    """The encoder's part of the pass."""

    def __init__(self, package: Path, options: FisherOptions) -> None:
        self._program = Program.load(package)
        self._segments = CheckpointedProgram(self._program, options.budget_bytes)
        self.square = _Squares(self._program, read_graph(package))

    def run(
        self,
        windows: Sequence[SpeechWindow],
        arrived: Mapping[str, Tensor],
        options: FisherOptions,
        ticks: Callable[[str, int, int], None] | None,
        kept: Kept,
    ) -> None:
        """Add every window."""
        pace, state, first = Pace(), kept.load(ENCODER), 0
        if state is not None:
            self.square.resume(state)
            first = int(state[_DONE])
        del state
        for number, window in enumerate(windows[first:], start=first):
            for sample in range(options.samples):
                with self.square.collecting(sample, len(windows)):
                    cotangents = {EMBEDS: arrived[_cotangent_name(number, sample)]}
                    self._segments.backward({FEATURES: window.features}, cotangents)
            if ticks is not None:
                ticks(ENCODER, number + 1, len(windows))
            if pace.is_time():
                release_memory()
                kept.save(ENCODER, {**self.square.state(), _DONE: torch.tensor(number + 1)})


def _cotangent_name(window: int, sample: int) -> str:
    return f"{_COTANGENT}{window}/{sample}"


def reference_logits(packages: Mapping[str, Path], windows: Sequence[SpeechWindow]) -> list[Tensor]:
    """The teacher-forced logits `[predicted, V]` of each window through a bundle's packages."""
    embeds = encode(packages[ENCODER], windows)
    forcing = TeacherForcing(Program.load(packages[DECODER]))
    return [forcing.forward(window, audio).logits for window, audio in zip(windows, embeds, strict=True)]


def predicted_divergence(
    diagonal: FloatArray, change: NDArray[np.floating], gradients: FloatArray | None = None
) -> float:
    """The divergence that a change of one weight alone causes, in nats a token.

    Args:
        diagonal: Of the curvature, of the weight's shape.
        change: The same shape.
        gradients: `[S, *shape]` where errors of the elements add up, as `Curvature` says. They are few, so the
            diagonal's prediction stands where theirs is lower.
    """
    wide = change.astype(np.float32).reshape(-1)
    independent = float(0.5 * np.dot(diagonal.reshape(-1) * wide, wide))
    if gradients is None:
        return independent
    together = gradients.reshape(len(gradients), -1) @ wide
    return max(independent, float(0.5 * np.mean(together**2)))

"""Second moments of the inputs that a bundle's linear layers and 1x1 convolutions multiply, over speech.

They say which errors of a weight cancel in its layer's output, see `compensation`. Layers with the same input share one
moment. An encoder's input has 1,500 columns a window, a decoder's has one a token.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from whisperkit_tools.contract import DECODER, EMBEDS, ENCODER, FEATURES
from whisperkit_tools.decoder.teacher_forcing import SpeechWindow, TeacherForcing
from whisperkit_tools.memory import release_memory
from whisperkit_tools.mil.graph import read_graph
from whisperkit_tools.mil.program import Program
from whisperkit_tools.progress import Progress, SilentProgress
from whisperkit_tools.quantization.compensation import compensable, second_moment, with_inputs
from whisperkit_tools.quantization.sensitivity import compressible_weights, encode_windows


@dataclass(frozen=True, slots=True)
class InputMoments:
    """Moments of one component.

    Attributes:
        values: For each weight the name of the value that it multiplies.
        moments: By the value's name `[C, C]` float32, summed over all columns of the speech.
    """

    values: dict[str, str]
    moments: dict[str, NDArray[np.float32]]


def estimate_moments(
    packages: Mapping[str, Path],
    windows: Sequence[SpeechWindow],
    save: Callable[[str, InputMoments], None],
    progress: Progress | None = None,
) -> None:
    """Measure the moments of both components, with one loaded at a time.

    Args:
        packages: Paths of encoder and decoder.
        windows: The calibration speech.
        save: Receives each component's name and result.
        progress: Told after each window, under the component's name.
    """
    progress = progress or SilentProgress()
    save(ENCODER, _encoder_moments(packages[ENCODER], windows, progress))
    release_memory()
    embeds = encode_windows(packages[ENCODER], windows)
    release_memory()
    save(DECODER, _decoder_moments(packages[DECODER], windows, embeds, progress))


def _tapped(package: Path) -> tuple[Program, dict[str, str]]:
    """Return a program that gives its layers' inputs too, and by weight the name of that input."""
    graph = read_graph(package)
    wanted = set(compressible_weights(graph))
    known = {name: value.name for name, value in compensable(graph).items() if name in wanted}
    return Program(with_inputs(graph, known)), known


class _Sums:
    """Sums of the second moments of values."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(dict.fromkeys(names))
        self._sums: dict[str, Tensor] = {}

    def add(self, found: Mapping[str, Tensor]) -> None:
        """Add the values that are among `names`."""
        for name in self.names:
            if name in found:
                moment = second_moment(found[name])
                self._sums[name] = moment if name not in self._sums else self._sums[name].add_(moment)

    def result(self, values: dict[str, str]) -> InputMoments:
        """Return the sums."""
        return InputMoments(values, {name: value.cpu().numpy() for name, value in self._sums.items()})


def _encoder_moments(package: Path, windows: Sequence[SpeechWindow], progress: Progress) -> InputMoments:
    program, values = _tapped(package)
    sums = _Sums(values.values())
    for number, window in enumerate(windows, start=1):
        given = {FEATURES: window.features}
        with torch.no_grad():
            sums.add({**given, **program.run(given)})
        progress.advance(f"{ENCODER} inputs", number, len(windows))
    return sums.result(values)


def _decoder_moments(
    package: Path, windows: Sequence[SpeechWindow], embeds: Sequence[Tensor], progress: Progress
) -> InputMoments:
    program, values = _tapped(package)
    forcing, sums = TeacherForcing(program), _Sums(values.values())
    taps = [name for name in sums.names if name in program.outputs]
    for number, (window, audio) in enumerate(zip(windows, embeds, strict=True), start=1):
        forced = forcing.forward(window, audio)
        sums.add({EMBEDS: audio})
        for found in forcing.values(window, forced, audio, taps):
            sums.add({name: value.flatten(0, 1) for name, value in found.items()})
        program.forget()
        progress.advance(f"{DECODER} inputs", number, len(windows))
    return sums.result(values)

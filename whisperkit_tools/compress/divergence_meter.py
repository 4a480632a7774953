"""Divergence of weights that exist in memory only. They are put into the uncompressed programs and run on speech."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from whisperkit_tools.contract import DECODER, EMBEDS, ENCODER, FEATURES
from whisperkit_tools.decoder.teacher_forcing import SpeechWindow, TeacherForcing, divergence
from whisperkit_tools.memory import release_memory
from whisperkit_tools.mil.graph import read_graph
from whisperkit_tools.mil.program import Program
from whisperkit_tools.quantization.block_formats import BlockFormat, in_block_format, matrices

DenseWeights: TypeAlias = Callable[[str], Iterable[tuple[str, NDArray[Any]]]]
"""Gives, for a component's name, names and values of the weights that differ from the uncompressed ones."""


class EditableProgram:
    """A component whose weights are replaced for a while.

    Attributes:
        program: The program, with the weights of the last `replace`.
    """

    def __init__(self, package: Path) -> None:
        self.program = Program.load(package)
        self._component, self._weights = package.stem, self.program.weights
        self._constants = read_graph(package).constants
        self._replaced: set[str] = set()

    def replace(self, weights: DenseWeights | None) -> bool:
        """Give the program other weights, or its own ones for None. Return whether anything has changed."""
        before, self._replaced = self._replaced, set()
        for name, value in weights(self._component) if weights is not None else ():
            self._write(name, value)
            self._replaced.add(name)
        for name in before - self._replaced:
            self._write(name, self._constants[name].value)
        return bool(before or self._replaced)

    def _write(self, name: str, value: NDArray[Any]) -> None:
        with torch.no_grad():
            self._weights[name].copy_(torch.from_numpy(value.astype(np.float32)))


class DivergenceMeter:
    """Measures candidates on windows of speech. One component is loaded at a time."""

    def __init__(self, packages: Mapping[str, Path], windows: Sequence[SpeechWindow]) -> None:
        """Take the speech.

        Args:
            packages: Paths of the uncompressed encoder and decoder.
            windows: Speech with the uncompressed bundle's own transcripts.
        """
        self._packages = packages
        self._windows = sorted(windows, key=lambda window: -len(window.tokens))  # the longest verifies all batches
        self._references: list[Tensor] | None = None

    @property
    def tokens(self) -> int:
        """Number of predicted tokens that count."""
        return sum(window.predicted for window in self._windows)

    def measure(self, candidates: Sequence[DenseWeights]) -> list[float]:
        """Return the mean divergence of each candidate's tokens from the uncompressed ones, nats a token."""
        every = [None, *candidates] if self._references is None else list(candidates)
        embeds = self._encode(every)
        release_memory()
        decoder = EditableProgram(self._packages[DECODER])
        forcing = TeacherForcing(decoder.program)
        found: list[float] = []
        for weights, encoded in zip(every, embeds, strict=True):
            decoder.replace(weights)
            logits = (
                forcing.forward(window, audio).logits for window, audio in zip(self._windows, encoded, strict=True)
            )
            if self._references is None:
                self._references = list(logits)
            else:
                found.append(self._mean(self._references, logits))
        return found

    def _encode(self, candidates: Sequence[DenseWeights | None]) -> list[list[Tensor]]:
        """Return each candidate's embeddings of every window."""
        encoder = EditableProgram(self._packages[ENCODER])
        found = []
        for weights in candidates:
            encoder.replace(weights)
            found.append([encoder.program.run({FEATURES: window.features})[EMBEDS] for window in self._windows])
        return found

    def _mean(self, references: Iterable[Tensor], logits: Iterable[Tensor]) -> float:
        totals = (float(divergence(*pair).sum()) for pair in zip(references, logits, strict=True))
        return sum(totals) / self.tokens


def block_format_weights(packages: Mapping[str, Path], wanted: BlockFormat) -> DenseWeights:
    """Return a bundle's weights in one of ggml's block formats."""

    def weights(component: str) -> Iterable[tuple[str, NDArray[Any]]]:
        graph = read_graph(packages[component])
        for name in matrices(graph):
            yield name, in_block_format(graph, name, wanted)

    return weights

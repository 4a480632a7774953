"""Divergence of a plan, measured on speech: of the encoder, the decoder, the token embedding, and all together.

The weights that palettes represent are put into the executor. No package has to be written for that.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from whisperkit_tools.compress.weight_inventory import WeightInventory
from whisperkit_tools.contract import DECODER, EMBEDS, ENCODER, FEATURES
from whisperkit_tools.decoder.teacher_forcing import SpeechWindow, TeacherForcing, mean_divergence
from whisperkit_tools.mil.program import Program
from whisperkit_tools.quantization.palette import Palettized
from whisperkit_tools.quantization.recipe import WeightKey

EMBEDDING = "token embedding"
PARTS = (ENCODER, DECODER, EMBEDDING)
"""Encoder, decoder without the token embedding, and token embedding: by name, the parts that are measured alone."""

Palettes: TypeAlias = Mapping[WeightKey, Palettized]


def part_of(weights: WeightInventory, key: WeightKey) -> str:
    """Return the part that a weight belongs to."""
    return EMBEDDING if key in weights.embeddings else key[0]


@dataclass(frozen=True, slots=True)
class PartDivergences:
    """Measured divergences in nats per token.

    Attributes:
        parts: With the weights of one part compressed, by name.
        together: With all weights compressed.
    """

    parts: dict[str, float]
    together: float


class PlanMeasurement:
    """Measurement of palettes on speech that the plan has not seen."""

    def __init__(self, weights: WeightInventory, windows: Sequence[SpeechWindow]) -> None:
        """Load both programs, and run the uncompressed ones.

        Args:
            weights: The uncompressed weights.
            windows: The speech, with the uncompressed bundle's transcripts.
        """
        self._weights, self._windows = weights, windows
        self._programs = {name: Program.load(path) for name, path in weights.packages.items()}
        self._forcing = TeacherForcing(self._programs[DECODER])
        self._embeds = self._encode()
        self._references = self._logits(self._embeds)

    def _encode(self) -> list[Tensor]:
        with torch.no_grad():
            return [self._programs[ENCODER].run({FEATURES: window.features})[EMBEDS] for window in self._windows]

    def _logits(self, embeds: Sequence[Tensor]) -> list[Tensor]:
        pairs = zip(self._windows, embeds, strict=True)
        return [self._forcing.forward(window, audio).logits for window, audio in pairs]

    def _divergence(self, embeds: Sequence[Tensor]) -> float:
        return mean_divergence(self._references, self._logits(embeds))

    def measure(self, palettes: Palettes) -> PartDivergences:
        """Return the divergences that palettes cause."""
        by_part = {part: {k: v for k, v in palettes.items() if part_of(self._weights, k) == part} for part in PARTS}
        found = {}
        with self._holding(by_part[ENCODER]):
            embeds = self._encode() if by_part[ENCODER] else self._embeds
        found[ENCODER] = self._divergence(embeds) if by_part[ENCODER] else 0.0
        for part in (DECODER, EMBEDDING):
            with self._holding(by_part[part]):
                found[part] = self._divergence(self._embeds) if by_part[part] else 0.0
        with self._holding({**by_part[DECODER], **by_part[EMBEDDING]}):
            together = self._divergence(embeds)
        return PartDivergences(found, together)

    def together(self, palettes: Palettes) -> float:
        """Return the divergence of all palettes together."""
        with self._holding(palettes):
            return self._divergence(self._encode())

    @contextmanager
    def _holding(self, palettes: Palettes) -> Iterator[None]:
        """Hold compressed weights inside the block, and the uncompressed ones after it."""
        try:
            for (component, name), palettized in palettes.items():
                self._put(component, name, torch.from_numpy(palettized.dense()))
            yield
        finally:
            for component, name in palettes:
                self._put(component, name, torch.from_numpy(self._weights.weight((component, name)).copy()))

    def _put(self, component: str, name: str, value: Tensor) -> None:
        with torch.no_grad():
            self._programs[component].weights[name].copy_(value)

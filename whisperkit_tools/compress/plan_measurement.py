"""Divergence of a plan, measured on speech: of the encoder, the decoder, the token embedding, and all together.

The weights that palettes represent are put into the executor. No package has to be written for that.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from numpy.typing import NDArray
from torch import Tensor

from whisperkit_tools.compress.divergence_meter import DenseWeights, EditableProgram
from whisperkit_tools.compress.weight_inventory import WeightInventory
from whisperkit_tools.contract import DECODER, EMBEDS, ENCODER, FEATURES, MODEL_COMPONENTS
from whisperkit_tools.decoder.teacher_forcing import SpeechWindow, TeacherForcing, divergence
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
    """Measurement of palettes on speech that the plan has not seen. Both components are loaded."""

    def __init__(self, weights: WeightInventory, windows: Sequence[SpeechWindow]) -> None:
        """Load both programs, and run the uncompressed ones.

        Args:
            weights: The uncompressed weights.
            windows: The speech, with the uncompressed bundle's transcripts.
        """
        self._weights, self._windows = weights, windows
        self._encoder, self._decoder = (EditableProgram(weights.packages[name]) for name in MODEL_COMPONENTS)
        self._forcing = TeacherForcing(self._decoder.program)
        self._embeds = self._encode({})
        self._references = self._logits(self._embeds, {})

    def _encode(self, palettes: Palettes) -> list[Tensor]:
        self._encoder.replace(_dense(palettes))
        with torch.no_grad():
            return [self._encoder.program.run({FEATURES: window.features})[EMBEDS] for window in self._windows]

    def _logits(self, embeds: Sequence[Tensor], palettes: Palettes) -> list[Tensor]:
        self._decoder.replace(_dense(palettes))
        pairs = zip(self._windows, embeds, strict=True)
        return [self._forcing.forward(window, audio).logits for window, audio in pairs]

    def _divergence(self, embeds: Sequence[Tensor], palettes: Palettes) -> float:
        rows = [divergence(*pair) for pair in zip(self._references, self._logits(embeds, palettes), strict=True)]
        return float(torch.cat(rows).mean())

    def decoder_alone(self, palettes: Palettes) -> float:
        """Return the divergence that palettes of decoder weights cause alone."""
        return self._divergence(self._embeds, palettes)

    def measure(self, palettes: Palettes) -> PartDivergences:
        """Return the divergences that palettes cause."""
        split = {part: {k: v for k, v in palettes.items() if part_of(self._weights, k) == part} for part in PARTS}
        embeds = self._encode(split[ENCODER]) if split[ENCODER] else self._embeds
        parts = {ENCODER: self._divergence(embeds, {}) if split[ENCODER] else 0.0}
        for part in (DECODER, EMBEDDING):
            parts[part] = self._divergence(self._embeds, split[part]) if split[part] else 0.0
        return PartDivergences(parts, self._divergence(embeds, {**split[DECODER], **split[EMBEDDING]}))


def _dense(palettes: Palettes) -> DenseWeights:
    """Return the weights of one component's palettes."""

    def weights(component: str) -> Iterable[tuple[str, NDArray[Any]]]:
        return ((name, palettized.dense()) for (where, name), palettized in palettes.items() if where == component)

    return weights

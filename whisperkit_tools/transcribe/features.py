"""Mel features by window: from audio through the bundle's own MelSpectrogram, or from an array."""

from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from whisperkit_tools.transcribe.models import Models

FloatArray: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]


class FeatureSource(Protocol):
    """Gives the features of any window of one audio."""

    @property
    def n_frames(self) -> int:
        """Mel frames of the whole audio."""
        ...

    def window(self, start: int, count: int) -> Tensor:
        """Features `[1, n_mels, 1, 3000]` of `count` frames from `start`, filled up behind."""
        ...


class AudioFeatures:
    """Features of audio, each window by itself, as on the device: 30 s of samples, filled up with zeros.

    transformers instead computes the features of a long audio as a whole. Its frames at a window's edges see the
    samples beyond, its floor of 80 dB below the loudest frame is that of the whole audio, and behind the audio's end it
    fills up with feature value 0, not with silence.
    """

    def __init__(self, models: Models, audio: FloatArray) -> None:
        self._models = models
        self._audio = audio
        self.n_frames = max(1, len(audio) // models.sizes.hop_length)

    def window(self, start: int, count: int) -> Tensor:
        """Features of the samples from frame `start`; `count` does not matter, for nothing follows the audio's end."""
        sizes = self._models.sizes
        first = start * sizes.hop_length
        samples = np.zeros(sizes.n_samples, dtype=np.float32)
        piece = self._audio[first : first + sizes.n_samples]
        samples[: len(piece)] = piece
        return self._models.features(samples)


class ArrayFeatures:
    """Features that were computed elsewhere, cut into windows and filled up with zeros as transformers does."""

    def __init__(self, features: Tensor | FloatArray, window_frames: int) -> None:
        """Take the features.

        Args:
            features: `[n_mels, frames]`.
            window_frames: Frames of a window.
        """
        self._features = torch.as_tensor(features)
        self._window_frames = window_frames
        self.n_frames = int(self._features.shape[-1])

    def window(self, start: int, count: int) -> Tensor:
        """Frames `start` to `start + count`."""
        piece = self._features[:, start : start + count]
        return F.pad(piece, (0, self._window_frames - piece.shape[-1]))[None, :, None, :]

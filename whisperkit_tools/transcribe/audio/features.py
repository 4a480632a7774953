"""Mel features by window, from audio through the bundle's own MelSpectrogram or from an array."""

from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from whisperkit_tools.decoder.models import Models
from whisperkit_tools.speech import Samples

REACH = 200  # samples that a frame sees on each side of its place: half of the Fourier transform's 400
DYNAMIC_RANGE = 2.0  # 80 dB below the loudest frame, in units of the features: (log10 power + 4) / 4


class FeatureSource(Protocol):
    """The features of one audio, window by window."""

    @property
    def n_frames(self) -> int:
        """Mel frames of the whole audio."""
        ...

    def window(self, start: int, count: int) -> Tensor:
        """Return features `[1, n_mels, 1, 3000]` of `count` frames from `start`, filled up at the end."""
        ...


class AudioFeatures:
    """Features of audio, each window by itself, as on the device: 30 s of samples, filled up with zeros.

    transformers instead computes the features of a long audio as a whole: `FileFeatures`.
    """

    def __init__(self, models: Models, audio: Samples) -> None:
        self._models = models
        self._audio = audio
        self.n_frames = max(1, len(audio) // models.sizes.hop_length)

    def window(self, start: int, count: int) -> Tensor:
        """Return features of the samples from frame `start`. `count` makes no difference: silence follows the audio."""
        sizes = self._models.sizes
        first = start * sizes.hop_length
        samples = np.zeros(sizes.n_samples, dtype=np.float32)
        piece = self._audio[first : first + sizes.n_samples]
        samples[: len(piece)] = piece
        return self._models.features(samples)


class FileFeatures:
    """Features of audio longer than a window, computed as a whole, as transformers does before its `generate`.

    Frames at a window's edges see the samples beyond, the floor of 80 dB below the loudest frame is that of the whole
    audio, and after its end windows are filled up with feature value 0, not with silence. The same package computes
    them in overlapping windows, whose frames at the edges are dropped. A window's own floor is never above that of the
    whole audio, so raising the frames to the latter is enough.

    All frames are held at once in float32: 115 MB per hour of audio with 80 bins.
    """

    def __init__(self, models: Models, audio: Samples) -> None:
        """Take the audio.

        Args:
            models: The bundle's packages.
            audio: `[samples]`, more than a window. A shorter one is a single window, as for `AudioFeatures`.
        """
        self._models = models
        self._audio = audio
        self._whole: ArrayFeatures | None = None
        self.n_frames = len(audio) // models.sizes.hop_length

    def window(self, start: int, count: int) -> Tensor:
        """Return the frames `start` to `start + count`. The first call computes all frames."""
        if self._whole is None:
            self._whole = ArrayFeatures(self._all_frames(), self._models.sizes.n_frames)
        return self._whole.window(start, count)

    def _all_frames(self) -> Tensor:
        """Return `[n_mels, n_frames]`."""
        sizes = self._models.sizes
        # After the last sample transformers mirrors the audio, as the package does before a window's first.
        samples = np.concatenate([self._audio, self._audio[-2 : -REACH - 2 : -1]])
        edge = -(-REACH // sizes.hop_length)  # frames at a window's either end that see beyond it
        frames = torch.empty(sizes.n_mels, self.n_frames)
        first = done = 0
        while done < self.n_frames:
            window = np.zeros(sizes.n_samples, dtype=np.float32)
            piece = samples[first * sizes.hop_length :][: sizes.n_samples]
            window[: len(piece)] = piece
            whole = min(first + sizes.n_frames - edge, self.n_frames)
            frames[:, done:whole] = self._models.features(window)[0, :, 0, done - first : whole - first]
            done, first = whole, whole - edge
        return frames.clamp(min=float(frames.max()) - DYNAMIC_RANGE)


class ArrayFeatures:
    """Features that were computed elsewhere, cut into windows that are filled up with zeros as transformers does."""

    def __init__(self, features: Tensor | Samples, window_frames: int) -> None:
        """Take the features.

        Args:
            features: `[n_mels, frames]`.
            window_frames: Frames of a window.
        """
        self._features = torch.as_tensor(features)
        self._window_frames = window_frames
        self.n_frames = int(self._features.shape[-1])

    def window(self, start: int, count: int) -> Tensor:
        """Return the frames `start` to `start + count`."""
        piece = self._features[:, start : start + count]
        return F.pad(piece, (0, self._window_frames - piece.shape[-1]))[None, :, None, :]


def audio_features(models: Models, audio: Samples, kind: str) -> FeatureSource:
    """Return the features of audio, computed `window` by window or over the whole `file`.

    Args:
        models: The bundle's packages.
        audio: `[samples]`, float32.
        kind: One of `FEATURES`.
    """
    is_long = len(audio) > models.sizes.n_samples
    return FileFeatures(models, audio) if kind == "file" and is_long else AudioFeatures(models, audio)

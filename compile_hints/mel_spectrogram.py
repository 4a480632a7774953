"""Audio to log-mel features, as convolutions.

Powers range from 4e4 (full scale) down to Whisper's floor of 1e-10, far below float16's smallest number, and rounding
the audio itself to float16 raises the noise above the lower part of Whisper's 80 dB range. So the module computes in
float32 on float32 audio. Only its result, which lies between about -1.5 and 1.7, fits float16.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whisperkit_tools.speech import SAMPLE_RATE_HZ

N_FFT = 400  # 25 ms
HOP_LENGTH = 160  # 10 ms
N_BINS = N_FFT // 2 + 1  # 201 frequencies, 0 to 8000 Hz


class MelSpectrogram(nn.Module):
    """Log-mel features as Whisper's feature extractor computes them.

    Source: OpenAI's `log_mel_spectrogram`; transformers' `WhisperFeatureExtractor`.
    """

    windowed_dft: Tensor
    mel_filters: Tensor

    def __init__(self, n_mels: int) -> None:
        super().__init__()
        self.n_mels = n_mels
        self.register_buffer("windowed_dft", _windowed_dft(), persistent=False)
        self.register_buffer("mel_filters", _mel_filters(n_mels), persistent=False)

    def forward(self, audio: Tensor) -> Tensor:
        """Compute the features of one window.

        Args:
            audio: `[480000]` float32 samples at 16 kHz, between -1 and 1.

        Returns:
            `melspectrogram_features`, `[1, n_mels, 1, 3000]`.
        """
        # The feature extractor pads 200 on both sides and drops the last frame, which alone reads the last 160.
        padded = F.pad(audio.view(1, 1, -1), (N_FFT // 2, N_FFT // 2 - HOP_LENGTH), mode="reflect")
        spectrum = F.conv2d(padded.unsqueeze(2), self.windowed_dft, stride=(1, HOP_LENGTH))  # [1, 402, 1, 3000]
        real, imaginary = torch.split(spectrum, N_BINS, dim=1)
        power = real * real + imaginary * imaginary
        mel = F.conv2d(power, self.mel_filters)
        log_mel = mel.clamp(min=1e-10).log10()
        floor = log_mel.amax(dim=(1, 2, 3), keepdim=True) - 8.0  # 80 dB below the loudest
        return (torch.maximum(log_mel, floor) + 4.0) / 4.0


def _windowed_dft() -> Tensor:
    """Return the kernels `[402, 1, 1, 400]`: Hann-windowed cosines, then sines, of each frequency.

    They are on the CPU whatever the default device is, because they are constants and not weights to be loaded.
    """
    sample = torch.arange(N_FFT, dtype=torch.float64, device="cpu")
    frequency = torch.arange(N_BINS, dtype=torch.float64, device="cpu")
    window = 0.5 - 0.5 * torch.cos(2 * math.pi * sample / N_FFT)
    # Reduced modulo the period while still whole numbers, or the angle loses digits.
    angle = 2 * math.pi / N_FFT * torch.outer(frequency, sample).remainder(N_FFT)
    kernels = torch.cat([torch.cos(angle) * window, torch.sin(angle) * window])
    return kernels.float()[:, None, None, :]


def _mel_filters(n_mels: int) -> Tensor:
    """Return the triangular filters `[n_mels, 201, 1, 1]`, each of unit area.

    Source: M. Slaney, "Auditory Toolbox", 1998: linear to 1 kHz, logarithmic above.
    """
    edges_hz = _mel_to_hz(
        torch.linspace(0, _hz_to_mel(SAMPLE_RATE_HZ / 2), n_mels + 2, dtype=torch.float64, device="cpu")
    )
    bins_hz = torch.linspace(0, SAMPLE_RATE_HZ / 2, N_BINS, dtype=torch.float64, device="cpu")
    lower, centre, upper = (edges_hz[i : i + n_mels, None] for i in range(3))
    rising = (bins_hz - lower) / (centre - lower)
    falling = (upper - bins_hz) / (upper - centre)
    triangles = torch.minimum(rising, falling).clamp(min=0) * (2 / (upper - lower))
    return triangles.float()[:, :, None, None]


_LINEAR_HZ_PER_MEL = 200 / 3
_BREAK_HZ = 1000.0  # where Slaney's scale turns logarithmic, at 15 mel
_LOG_STEP = math.log(6.4) / 27


def _hz_to_mel(frequency_hz: float) -> float:
    """Convert a frequency above 1 kHz to Slaney's mel."""
    return _BREAK_HZ / _LINEAR_HZ_PER_MEL + math.log(frequency_hz / _BREAK_HZ) / _LOG_STEP


def _mel_to_hz(mel: Tensor) -> Tensor:
    """Convert Slaney's mel to hertz."""
    break_mel = _BREAK_HZ / _LINEAR_HZ_PER_MEL
    return torch.where(mel < break_mel, mel * _LINEAR_HZ_PER_MEL, _BREAK_HZ * torch.exp(_LOG_STEP * (mel - break_mel)))

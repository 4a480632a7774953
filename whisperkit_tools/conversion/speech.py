"""The speech on which packages are verified: the embedded demo's, so that verifying needs no download."""

import numpy as np
import soundfile
from numpy.typing import NDArray

from whisperkit_tools.demo import demo_longform
from whisperkit_tools.errors import AudioError
from whisperkit_tools.speech import SAMPLE_RATE_HZ, WINDOW_SAMPLES


def verification_speech() -> NDArray[np.float32]:
    """The first window of the demo's long-form speech, `[480000]` samples at 16 kHz.

    Raises:
        AudioError: The installed demo audio is not what the package ships.
    """
    path = demo_longform()[0].path
    samples, rate_hz = soundfile.read(path, frames=WINDOW_SAMPLES, dtype="float32")
    if rate_hz != SAMPLE_RATE_HZ or samples.shape != (WINDOW_SAMPLES,):
        raise AudioError(f"{path} is damaged ({rate_hz} Hz, shape {samples.shape}); install whisperkit-tools again")
    return np.asarray(samples, np.float32)

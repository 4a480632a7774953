from types import SimpleNamespace

import numpy as np
import pytest

from whisperkit_tools.compress.gate_measurement import decoding_options
from whisperkit_tools.speech import Recording


@pytest.mark.parametrize(("is_multilingual", "language"), [(True, "en"), (False, None)])
@pytest.mark.parametrize(("length", "is_long"), [(100, False), (101, True)])
def test_a_model_of_english_alone_is_given_no_language(is_multilingual, language, length, is_long):
    """Such a model refuses a language, though the demo's recordings name theirs."""
    transcriber = SimpleNamespace(
        special=SimpleNamespace(is_multilingual=is_multilingual),
        models=SimpleNamespace(sizes=SimpleNamespace(n_samples=100)),
    )
    recording = Recording("a", samples=np.zeros(length, np.float32), language="en")
    options = decoding_options(recording, transcriber)
    assert (options.language, options.timestamps, options.temperatures) == (language, is_long, (0.0,))

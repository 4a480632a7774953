"""The embedded demo, loaded to transcribe, and transformers' Whisper with the same weights."""

import pytest
from helpers.benchmark_modules import benchmark

from whisperkit_tools.demo import demo_checkpoint_dir
from whisperkit_tools.transcribe.transcriber import Transcriber


@pytest.fixture(scope="session")
def transcriber(demo_bundle):
    return Transcriber.load(demo_bundle)


@pytest.fixture(scope="session")
def oracle():
    return benchmark("generate_parity").Oracle(demo_checkpoint_dir())

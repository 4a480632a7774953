"""The embedded demo, loaded to transcribe, and transformers' Whisper with the same weights."""

import pytest

from tests.benchmarks.generate_parity import Oracle
from whisperkit_tools.bundle import Bundle
from whisperkit_tools.decoder.loading import load_models
from whisperkit_tools.demo import demo_checkpoint_dir
from whisperkit_tools.transcribe.transcriber import Transcriber


@pytest.fixture(scope="session")
def transcriber(demo_bundle):
    return Transcriber.load(demo_bundle)


@pytest.fixture(scope="session")
def models(demo_bundle):
    return load_models(Bundle.open(demo_bundle))


@pytest.fixture(scope="session")
def oracle():
    return Oracle(demo_checkpoint_dir())

"""An encoder of fifteen seconds: a mel of its length, and everything after it follows from the packages."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import whisperkit_tools as wkt
from whisperkit_tools.contract import AUDIO, FEATURES, MEL
from whisperkit_tools.demo import demo_checkpoint_dir, demo_longform, demo_utterances
from whisperkit_tools.transcribe.options import TranscribeOptions


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("short") / "fifteen"
    shutil.copytree(demo_checkpoint_dir(), folder)
    state = load_file(folder / "model.safetensors")
    for name in [name for name in state if name.endswith("encoder.embed_positions.weight")]:
        state[name] = state[name][:750].clone()
    save_file(state, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_source_positions": 750}))
    return wkt.convert(str(folder), output_dir=folder.parent / "bundles", verify=True)


def test_the_mel_has_the_encoders_length(bundle: Any) -> None:
    graph = bundle.package(MEL).graph()
    assert graph.inputs[AUDIO].shape == (240_000,)
    assert graph.outputs[FEATURES].shape == (1, 80, 1, 1500)
    assert bundle.manifest.dimensions.n_audio_ctx == 750
    shipped = json.loads((bundle.path / "preprocessor_config.json").read_text())
    assert (shipped["chunk_length"], shipped["n_samples"], shipped["nb_max_frames"]) == (15, 240_000, 1500)


def test_its_windows_are_fifteen_seconds(bundle: Any) -> None:
    transcriber = wkt.Transcriber.load(bundle)
    short = transcriber.transcribe(demo_utterances()[0].path)
    assert short.timings.windows == 1
    assert len(short.text.split()) > 2
    path: Path = next(item.path for item in demo_longform() if item.language == "en")
    for options in (TranscribeOptions(), TranscribeOptions(long_form="chunked", chunk_length_s=30)):
        long = transcriber.transcribe(path, options)
        assert long.timings.windows is not None
        assert long.timings.windows >= long.audio_duration_s / 15
        assert long.segments[-1].end_s <= long.audio_duration_s
        assert len(long.text.split()) > 60

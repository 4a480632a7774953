"""Speculative decoding: whatever a draft writes, the tokens are those of the large model alone."""

import shutil
from dataclasses import replace

import pytest
import torch
from helpers.checkpoint_samples import edit_json

from whisperkit_tools.bundle import Bundle
from whisperkit_tools.decoder.adapters import FunctionModel
from whisperkit_tools.decoder.loading import load_drafted_models
from whisperkit_tools.demo import demo_longform, demo_utterances
from whisperkit_tools.errors import BundleError, OptionsError
from whisperkit_tools.pipeline.checks import verify
from whisperkit_tools.transcribe.options import TranscribeOptions
from whisperkit_tools.transcribe.transcriber import Transcriber

CLIPS = [recording.path for recording in demo_utterances()[::20]]
LONG = demo_longform()[1].path


class Distracted(FunctionModel):
    """The demo's decoder as a draft that errs: its logits are disturbed, in the same way for the same token."""

    def __init__(self, model, strength):
        super().__init__(self.disturbed, model.inputs, model.outputs)
        self.model, self.strength, self.calls = model, strength, 0

    def disturbed(self, inputs):
        self.calls += 1
        outputs = dict(self.model.run(inputs))
        seed = int(inputs["input_ids"]) * 1000 + int(inputs["cache_length"])
        noise = torch.randn(outputs["logits"].shape, generator=torch.Generator().manual_seed(seed))
        outputs["logits"] = outputs["logits"] + self.strength * noise
        return outputs


class Speculating:
    """A transcriber whose draft can be changed, beside a plain one."""

    def __init__(self, folder, precision="float32"):
        self.bundle = Bundle.open(folder)
        self.plain = Transcriber.load(self.bundle, precision=precision)
        self.models = load_drafted_models(self.bundle, self.bundle, precision=precision)

    def with_draft(self, strength, **changes):
        draft = replace(self.models.draft, decoder=Distracted(self.models.draft.decoder, strength))
        return Transcriber.from_models(replace(self.models, draft=draft, **changes), self.bundle)

    def compare(self, speculating, audio, **options):
        chosen = TranscribeOptions(**options)
        expected, found = (one.transcribe(audio, chosen) for one in (self.plain, speculating))
        assert found.tokens == expected.tokens
        assert found.text == expected.text
        assert [segment.temperature for segment in found.segments] == [
            segment.temperature for segment in expected.segments
        ]
        assert [word.text for word in found.words] == [word.text for word in expected.words]
        return expected, found


@pytest.fixture(scope="module")
def both(verifying_bundle):
    return Speculating(verifying_bundle)


@pytest.mark.parametrize("strength", [0.0, 1.5, 100.0])
def test_tokens_are_those_of_the_model_alone(both, strength):
    speculating = both.with_draft(strength)
    for clip in CLIPS:
        _, found = both.compare(speculating, clip)
    assert found.speculation.accepted <= found.speculation.proposed


@pytest.mark.parametrize(
    "options",
    [
        {"timestamps": False},
        {"word_timestamps": True, "language": "en"},
        {"temperatures": (0.4,)},
        {"temperatures": (0.0, 0.6), "logprob_threshold": -1e-6, "compression_ratio_threshold": None},
        {"prompt": "The train leaves at six. Turn off the heater in the hall.", "language": "en"},
        {"max_new_tokens": 4},
    ],
)
def test_every_option_gives_the_same_tokens(both, options):
    both.compare(both.with_draft(1.5), CLIPS[0], **options)


def test_long_audio_is_the_same_conditioned_and_in_chunks(both):
    speculating = both.with_draft(1.5)
    both.compare(speculating, LONG, condition_on_previous_text=True, language="es")
    both.compare(speculating, LONG, long_form="chunked", language="es")


def test_rounded_as_on_the_device_the_tokens_are_the_same(verifying_bundle):
    half = Speculating(verifying_bundle, "float16")
    for clip in CLIPS[:2]:
        half.compare(half.with_draft(1.5), clip)


def test_a_draft_that_is_right_saves_most_calls(both):
    expected, found = both.compare(both.with_draft(0.0), LONG, language="es")
    said = found.speculation
    assert said.accepted > 0.8 * said.proposed
    # A call for five tokens; at a window's end less is of use.
    assert found.timings.decoder_steps < 0.4 * expected.timings.decoder_steps
    assert said.rounds <= found.timings.decoder_steps


def test_a_choice_within_the_tolerance_is_made_by_single_steps(both):
    """With a tolerance beyond all logits every choice is: the work of both, and the very same log probabilities."""
    expected, found = both.compare(both.with_draft(0.0, tolerance=1e6), CLIPS[0], language="en")
    assert found.speculation.repeated_steps > 0
    assert [one.avg_logprob for one in found.segments] == [one.avg_logprob for one in expected.segments]
    assert found.timings.decoder_steps >= expected.timings.decoder_steps


def test_a_draft_with_its_own_encoder_hears_the_same_features(both):
    draft = replace(both.models.draft, encoder=FunctionModel(both.models.encoder.run, both.models.encoder.inputs,
                                                             both.models.encoder.outputs))  # fmt: skip
    models = replace(both.models, draft=draft)
    assert both.models.shares_encoder
    assert not models.shares_encoder
    _, found = both.compare(Transcriber.from_models(models, both.bundle), CLIPS[1])
    assert found.speculation.accepted > 0.5 * found.speculation.proposed


def test_a_transcription_without_a_draft_says_so(both):
    assert both.plain.transcribe(CLIPS[0]).speculation is None


def test_what_cannot_speculate_is_refused(verifying_bundle, demo_bundle, stateful_bundle, tmp_path):
    with pytest.raises(BundleError, match=r"has no TextDecoderVerify.*convert it with draft_tokens=5"):
        Transcriber.load(demo_bundle, draft=demo_bundle)
    with pytest.raises(BundleError, match="has its caches as states"):
        Transcriber.load(verifying_bundle, draft=stateful_bundle)
    other = tmp_path / "other"
    shutil.copytree(demo_bundle, other)
    tokenizer = Bundle.open(other).read_json("tokenizer.json")
    vocabulary = {("x" + token if at == 7 else token): at for token, at in tokenizer["model"]["vocab"].items()}
    edit_json(other / "tokenizer.json", model={**tokenizer["model"], "vocab": vocabulary, "merges": []})
    with pytest.raises(BundleError, match=r"has another tokenizer than .* tokens differ, such as"):
        Transcriber.load(verifying_bundle, draft=other)


def test_the_command_takes_a_draft(wkt, verifying_bundle, demo_bundle):
    plain = wkt("transcribe", CLIPS[0], "--bundle", verifying_bundle)
    assert wkt("transcribe", CLIPS[0], "--bundle", verifying_bundle, "--draft", demo_bundle)[:2] == plain[:2]
    code, out, err = wkt("transcribe", CLIPS[0], "--bundle", demo_bundle, "--draft", demo_bundle)
    assert (code, out) == (1, "")
    assert "convert it with --draft-tokens 5" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draft_tokens": 1}, "draft_tokens is 1, allowed are 2 to 32"),
        ({"draft_tokens": 5, "verify": False}, "set verify=True"),
        ({"draft_tokens": 5, "stateful": True, "deployment_target": "ios18"}, "omit stateful=True"),
    ],
)
def test_conversions_that_cannot_have_a_verifier_are_refused(options, message):
    from whisperkit_tools.conversion.config import ConvertConfig

    with pytest.raises(OptionsError, match=message):
        ConvertConfig(**options)


def test_the_manifest_records_how_exact_the_verifier_is(verifying_bundle):
    record = Bundle.open(verifying_bundle).manifest.speculation
    assert record.tokens == 5
    assert verify(verifying_bundle, parity=False).found.problems == ()
    assert set(record.tolerance) == {"float32", "float16"}
    assert 0 < record.difference["float32"] < record.difference["float16"] < record.tolerance["float16"]

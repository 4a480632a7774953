"""Decoding with a table in place of the first passes: what is spared, when it is not used, and that it is right."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from whisperkit_tools.bundle import Bundle
from whisperkit_tools.conversion.prefill.comparison import PrefillComparison
from whisperkit_tools.conversion.prefill.evidence import read_table
from whisperkit_tools.conversion.prefill.table import PrefillTable, forced_tokens
from whisperkit_tools.decoder.adapters import FunctionModel
from whisperkit_tools.decoder.prefill_lookup import PREFILL_OUTPUTS, PrefillLookup
from whisperkit_tools.decoder.session import CacheColumns, CacheSession
from whisperkit_tools.demo import demo_longform, demo_utterances
from whisperkit_tools.errors import BundleError
from whisperkit_tools.mil.tensor_spec import TensorSpec
from whisperkit_tools.speech import Recording
from whisperkit_tools.transcribe.options import TranscribeOptions
from whisperkit_tools.transcribe.tokenizer import SpecialTokens
from whisperkit_tools.transcribe.transcriber import Transcriber
from whisperkit_tools.transcribe.windows.decoding import WindowDecoder

END, START, NO_SPEECH, LANGUAGE, TASK, PLAIN, PREVIOUS, VOCABULARY, LENGTH = 10, 11, 12, 13, 14, 15, 16, 30, 24
SPECIAL = SpecialTokens(
    end_of_text=END, start_of_transcript=START, start_of_previous=PREVIOUS, no_speech=NO_SPEECH, no_timestamps=PLAIN,
    timestamp_begin=17, timestamp_end=VOCABULARY, languages={"en": LANGUAGE}, tasks={"transcribe": TASK},
    suppressed=(), suppressed_at_begin=(), max_initial_timestamp_index=None,
)  # fmt: skip
KEYS, VALUES = (torch.tensor(row).expand(1, 2, 1, 3) for row in ([70.0, 71, 72], [80.0, 81, 82]))
CACHES = CacheColumns(KEYS, VALUES)
ENDLESS = {"logprob_threshold": None, "compression_ratio_threshold": None}


class ScriptedDecoder:
    """Says the end at once, with a given probability of no speech, and notes what it was fed."""

    outputs = ()

    def __init__(self, no_speech=0.0):
        self.calls, self.no_speech = [], no_speech
        self.inputs = {"key_cache": TensorSpec("key_cache", (1, 2, 1, LENGTH), "float16")}

    def run(self, inputs, /):
        position, token = int(inputs["cache_length"]), int(inputs["input_ids"])
        keys, values = (inputs[name][0, 0, 0].clone() for name in ("key_cache", "value_cache"))
        self.calls.append((token, position, keys, values))
        logits = torch.zeros(VOCABULARY)
        logits[NO_SPEECH if token == START else END] = self.no_speech if token == START else 9.0
        update = torch.full((1, 2, 1, 1), position + 1.0)
        return {"logits": logits.view(1, 1, -1), "key_cache_updates": update, "value_cache_updates": -update}


def decode(prefix, *, prefilled=CACHES, no_speech=0.0, **options):
    decoder = ScriptedDecoder(no_speech)
    session = CacheSession(decoder)
    chosen = TranscribeOptions(**{"timestamps": False, "temperatures": (0.0,), "no_speech_threshold": None} | options)
    windows = WindowDecoder(session, SPECIAL, chosen, max_length=LENGTH, vocab_size=VOCABULARY)
    embeds = torch.zeros(1, 1, 1, 1500)
    return session.perform(windows.decode(embeds, prefix, prefix.index(START), prefilled)), decoder.calls


def test_the_first_passes_are_looked_up_and_the_last_token_sees_their_caches():
    window, calls = decode([START, LANGUAGE, TASK, PLAIN])
    assert [(token, position) for token, position, *_ in calls] == [(PLAIN, 3)]
    assert calls[0][2].tolist()[:5] == [70, 71, 72, 0, 0]
    assert calls[0][3].tolist()[:5] == [80, 81, 82, 0, 0]
    assert window.tokens == ()
    assert window.no_speech_prob is None


def test_the_last_given_token_is_always_decoded():
    _, calls = decode([START, LANGUAGE, TASK], timestamps=True)
    assert calls[0][:2] == (TASK, 2)
    assert calls[0][2].tolist()[:4] == [70, 71, 0, 0]


def test_without_a_table_or_behind_a_prompt_all_is_decoded():
    _, calls = decode([START, LANGUAGE, TASK, PLAIN], prefilled=None)
    assert [position for _, position, *_ in calls] == [0, 1, 2, 3]
    _, calls = decode([PREVIOUS, 3, START, LANGUAGE, TASK, PLAIN])
    assert [position for _, position, *_ in calls] == [0, 1, 2, 3, 4, 5]
    assert calls[-1][2].tolist()[:6] == [1, 2, 3, 4, 5, 0]


def test_the_no_speech_check_makes_up_for_the_first_pass_after_the_text():
    window, calls = decode([START, LANGUAGE, TASK, PLAIN], no_speech=20.0, no_speech_threshold=0.6)
    assert [(token, position) for token, position, *_ in calls] == [(PLAIN, 3), (START, 0)]
    assert window.has_no_speech
    assert window.no_speech_prob > 0.99
    window, _ = decode([START, LANGUAGE, TASK, PLAIN], no_speech=-20.0, no_speech_threshold=0.6)
    assert not window.has_no_speech


def test_later_attempts_see_the_table_too():
    options = {"temperatures": (0.0, 0.5), "logprob_threshold": -1e-9, "no_speech_threshold": 0.6}
    window, calls = decode([START, LANGUAGE, TASK], timestamps=True, **options)
    assert window.attempts == 2
    again = [keys.tolist() for token, position, keys, _ in calls if position > 2]
    assert all(keys[:3] == [70, 71, 3] for keys in again)


def outputs(channels=2, length=3, names=PREFILL_OUTPUTS):
    return {name: TensorSpec(name, (1, channels, 1, length), "float16") for name in names}


@pytest.mark.parametrize("declared", [outputs(channels=4), outputs(names=PREFILL_OUTPUTS[:1]), {}])
def test_a_table_of_another_decoder_is_refused(declared):
    with pytest.raises(BundleError, match="does not belong to this TextDecoder"):
        PrefillLookup(SimpleNamespace(outputs=declared), 2)


# --- with the demo's packages ---------------------------------------------------------------------------------------


def read(path):
    return soundfile.read(path, dtype="float32")[0]


@pytest.fixture(scope="module")
def transcriber(prefill_bundle):
    return Transcriber.load(prefill_bundle)


@pytest.fixture(scope="module")
def speech():
    return read(demo_utterances()[11].path)


PLAIN_TEXT = TranscribeOptions(
    language="en", timestamps=False, no_speech_threshold=None, temperatures=(0.0,), **ENDLESS
)


def steps(transcriber, audio, **changes):
    result = transcriber.transcribe(audio, replace(PLAIN_TEXT, **changes))
    return result, result.timings.decoder_steps


def test_three_passes_of_each_window_are_spared(transcriber, speech):
    without, slow = steps(transcriber, speech, prefill=False)
    with_table, fast = steps(transcriber, speech)
    if with_table.tokens == without.tokens:
        assert slow - fast == 3
    assert len(with_table.tokens) + 1 == fast
    assert len(without.tokens) + 4 == slow


def with_prefill(transcriber, prefill, bundle):
    return Transcriber.from_models(replace(transcriber.models, prefill=prefill), Bundle.open(bundle))


def test_the_exact_caches_give_the_exact_tokens(prefill_bundle, speech):
    """A table that holds what decoding this very audio leaves in the caches: nothing may change."""
    transcriber = Transcriber.load(prefill_bundle)
    models, special = transcriber.models, transcriber.special
    without, slow = steps(transcriber, speech, prefill=False)
    exact = transcriber.session.columns(0, 3)
    assert float(exact.keys.abs().max()) > 0
    asked = []

    def look_up(inputs):
        asked.append((int(inputs["language"]), int(inputs["task"])))
        return dict(zip(PREFILL_OUTPUTS, (exact.keys, exact.values), strict=True))

    prefill = FunctionModel(look_up, models.prefill.inputs, models.prefill.outputs)
    found, fast = steps(with_prefill(transcriber, prefill, prefill_bundle), speech)
    assert found.tokens == without.tokens
    assert slow - fast == 3
    assert asked == [(special.languages["en"], 0)]


def test_a_prompt_keeps_the_table_out(transcriber, speech):
    without, slow = steps(transcriber, speech, prompt="the kitchen", prefill=False)
    with_table, same = steps(transcriber, speech, prompt="the kitchen")
    assert (with_table.tokens, same) == (without.tokens, slow)


def test_conditioned_windows_use_the_table_only_where_nothing_stands_before(transcriber, monkeypatch):
    audio = read(demo_longform()[0].path)[: 45 * 16_000]
    session, fill, counts = transcriber.session, transcriber.session.fill, []
    monkeypatch.setattr(session, "fill", lambda caches, count: (counts.append(count), fill(caches, count))[1])
    result, _ = steps(transcriber, audio, condition_on_previous_text=True, timestamps=True)
    assert result.timings.windows >= 2
    assert counts == [2] + [0] * (result.timings.windows - 1)
    counts.clear()
    result, _ = steps(transcriber, audio, timestamps=True)
    assert counts == [2] * result.timings.windows


def test_the_language_is_detected_first(transcriber, speech):
    result, taken = steps(transcriber, speech, language=None)
    assert result.language == "en"
    assert taken == 1 + len(result.tokens) + 1
    spanish = read([item for item in demo_utterances() if item.language == "es"][3].path)
    assert steps(transcriber, spanish, language=None)[0].language == "es"


def test_silence_stays_silent_with_the_table(transcriber):
    result = transcriber.transcribe(np.zeros(48_000, np.float32), TranscribeOptions(language="en"))
    assert result.text == ""


def test_a_table_of_another_length_is_not_used_and_said(prefill_bundle, speech):
    transcriber = Transcriber.load(prefill_bundle)
    table = SimpleNamespace(outputs=outputs(transcriber.sizes.cache_channels, length=1))
    result, taken = steps(with_prefill(transcriber, table, prefill_bundle), speech)
    assert taken == len(result.tokens) + 4
    assert "prefill is not used: it holds 1 tokens, this model forces 3" in result.notices[0]


def test_no_prefill_on_the_command_line_decodes_all(wkt, prefill_bundle):
    path = demo_utterances()[11].path
    arguments = ("transcribe", path, "--bundle", prefill_bundle, "--language", "en", "--no-timestamps", "--json")
    code, fast, _ = wkt(*arguments, "--no-speech-threshold", "none")
    assert code == 0
    code, slow, _ = wkt(*arguments, "--no-speech-threshold", "none", "--no-prefill")
    assert code == 0
    spared = [json.loads(out)["timings"]["decoder_steps"] - len(json.loads(out)["tokens"]) for out in (slow, fast)]
    assert spared[0] - spared[1] == 3


def test_comparing_prefills_gives_the_texts_of_transcribing_with_them(transcriber, prefill_bundle, speech):
    clip = Recording("speech", samples=speech, language="en")
    forced = forced_tokens(Bundle.open(prefill_bundle).read_json("generation_config.json"))
    table = read_table(prefill_bundle / "TextDecoderContextPrefill.mlpackage", forced)
    zeros = PrefillTable(forced, torch.zeros_like(table.keys), torch.zeros_like(table.values))
    comparison = PrefillComparison(prefill_bundle)
    found = {
        name: dict(comparison.transcripts([clip, clip], one)) for name, one in (("without", None), ("with", table))
    }
    assert [found["without"][at].text for at in (0, 1)] == [steps(transcriber, speech, prefill=False)[0].text] * 2
    assert found["with"][1].text == steps(transcriber, speech)[0].text
    ((_, cut),) = comparison.transcripts([clip], zeros, [3])
    assert len(cut.tokens) <= 3

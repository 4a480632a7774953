"""Figures of the demo checkpoint, by transformers' own `generate`.

They judge the checkpoint before any conversion, by a decoder that is not ours, and on tasks that `wkt evaluate` does
not have: translation, a wrong language token, and the probability of no speech.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from whisperkit_tools.demo import demo_longform, read_demo_audio
from whisperkit_tools.distill.demo_model.recordings import pad_utterance
from whisperkit_tools.distill.demo_model.synthesis import Utterance
from whisperkit_tools.distill.demo_model.windows import NOISE_FLOOR_HZ, LogMel
from whisperkit_tools.eval.metrics.wer import word_error_rate
from whisperkit_tools.signals import coloured_noise
from whisperkit_tools.speech import SAMPLE_RATE_HZ, WINDOW_SAMPLES, Recording

BATCH = 10


def plain(text: str) -> str:
    """Return lower case without punctuation: the normaliser of the demo checkpoint's word error rates."""
    return " ".join(re.sub(r"[^\w\s]", " ", text.lower()).split())


class TransformersModel:
    """A checkpoint, loaded in float32 on its float16 weights."""

    def __init__(self, folder: Path) -> None:
        self.processor = WhisperProcessor.from_pretrained(folder)
        self.model = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        self._mel = LogMel()

    def features(self, clips: list[np.ndarray]) -> torch.Tensor:
        """Return the log mel of clips padded to 30 s, [clips, 80, 3000]."""
        audio = np.zeros((len(clips), WINDOW_SAMPLES), dtype=np.float32)
        for row, clip in zip(audio, clips, strict=True):
            row[: len(clip)] = clip
        return self._mel(torch.from_numpy(audio))

    def transcribe(self, clips: list[np.ndarray], language: str, task: str, timestamps: bool = False) -> list[str]:
        """Return the greedy text of short clips."""
        texts: list[str] = []
        for start in range(0, len(clips), BATCH):
            tokens = self.model.generate(
                self.features(clips[start : start + BATCH]),
                language=language,
                task=task,
                return_timestamps=timestamps,
            )
            texts += self.processor.batch_decode(tokens, skip_special_tokens=True)
        return texts

    def first_token_probabilities(self, clips: list[np.ndarray]) -> torch.Tensor:
        """Return the probabilities after the start token, [clips, vocabulary]."""
        rows = []
        for start in range(0, len(clips), BATCH):
            features = self.features(clips[start : start + BATCH])
            tokens = torch.full((len(features), 1), self.model.config.decoder_start_token_id)
            with torch.no_grad():
                rows.append(self.model(input_features=features, decoder_input_ids=tokens).logits[:, 0].softmax(-1))
        return torch.cat(rows)

    def longform(self, recording: Recording, condition: bool) -> str:
        """Return the sequential long-form text with timestamps."""
        audio = recording.audio(read_demo_audio)
        inputs = self.processor(
            audio, sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt", truncation=False, return_attention_mask=True
        )
        tokens = self.model.generate(
            **inputs,
            language=recording.language,
            task="transcribe",
            return_timestamps=True,
            condition_on_prev_tokens=condition,
        )
        return str(self.processor.batch_decode(tokens, skip_special_tokens=True)[0])


def quiet_clips() -> list[np.ndarray]:
    """Return silence and noise of several kinds and levels."""
    generator = np.random.default_rng(11)
    count = WINDOW_SAMPLES
    clips: list[np.ndarray] = [np.zeros(count, dtype=np.float32), np.zeros(SAMPLE_RATE_HZ, dtype=np.float32)]
    for exponent in (0.0, 1.0, 2.0):
        for level in (1e-3, 1e-2, 0.1):
            noise = coloured_noise(count, exponent, generator, NOISE_FLOOR_HZ) * level
            clips += [noise, noise[: 3 * SAMPLE_RATE_HZ]]
    return clips


def evaluate(folder: Path, held_out: dict[str, list[Utterance]]) -> dict[str, Any]:
    """Return all figures of a checkpoint. WER is a fraction, after the normaliser `plain`."""
    model = TransformersModel(folder)
    clips = {code: [pad_utterance(item) for item in spoken] for code, spoken in held_out.items()}
    ids = model.model.generation_config
    no_speech = ids.no_timestamps_token_id - 1
    figures: dict[str, Any] = {"utterances": {code: len(spoken) for code, spoken in held_out.items()}}
    correct = 0
    speech_no_speech = []
    for code, spoken in held_out.items():
        texts = [item.text for item in spoken]
        for timestamps in (False, True):
            name = f"transcribe_{code}{'_timestamps' if timestamps else ''}_wer"
            found = model.transcribe(clips[code], code, "transcribe", timestamps)
            figures[name] = round(word_error_rate(texts, found, plain), 4)
        probabilities = model.first_token_probabilities(clips[code])
        languages = torch.tensor(sorted(ids.lang_to_id.values()))
        correct += int((languages[probabilities[:, languages].argmax(-1)] == ids.lang_to_id[f"<|{code}|>"]).sum())
        speech_no_speech.append(probabilities[:, no_speech])
    english = [item.sentence.english for item in held_out["es"]]
    for name, language, task in (("translate_es", "es", "translate"), ("wrong_language_token_es", "en", "transcribe")):
        reference = english if task == "translate" else [item.text for item in held_out["es"]]
        found = model.transcribe(clips["es"], language, task)
        figures[f"{name}_wer"] = round(word_error_rate(reference, found, plain), 4)
    figures["language_accuracy"] = round(correct / sum(map(len, held_out.values())), 4)
    figures["no_speech_on_speech_max"] = round(float(torch.cat(speech_no_speech).max()), 5)
    quiet = model.first_token_probabilities(quiet_clips())[:, no_speech]
    figures["no_speech_on_silence_and_noise_min"] = round(float(quiet.min()), 5)
    for recording in demo_longform():
        for condition in (False, True):
            name = f"{recording.id}_timestamps{'_conditioned' if condition else ''}_wer"
            found = [model.longform(recording, condition)]
            figures[name] = round(word_error_rate([recording.text or ""], found, plain), 4)
    figures["decoding"] = "transformers generate, greedy, float32 on the float16 weights"
    return figures

"""Transcribing files, folders and standard input with one bundle."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from whisperkit_tools.bundle import DEFAULT_BUNDLES_DIR, Bundle
from whisperkit_tools.errors import AudioError
from whisperkit_tools.mil.tensor_spec import Precision
from whisperkit_tools.pipeline.arguments import as_bundle, as_numbers, as_tuple
from whisperkit_tools.progress import Progress, SilentProgress
from whisperkit_tools.speech import Transcription
from whisperkit_tools.transcribe.audio.load import AudioInput, find_inputs, load_audio
from whisperkit_tools.transcribe.options import TranscribeOptions
from whisperkit_tools.transcribe.transcriber import Transcriber


@dataclass(frozen=True, slots=True)
class TranscriptionJob:
    """Audio inputs to transcribe with one bundle. The bundle is loaded when the first result is asked for.

    Attributes:
        inputs: The audio, in the order in which it is transcribed.
        options: How it is transcribed.
        bundle: The bundle, opened or by folder; None for the last converted one.
        bundles_dir: The folder in which to look for that one.
        precision: `float32` or `float16`, which rounds as the device does.
        backend: `torch` anywhere, or `coreml` on macOS.
        compute_units: Core ML compute units; None for those of the on-device runtime.
        device: PyTorch device.
        draft: The bundle of a smaller model that writes ahead; None for none.
    """

    inputs: tuple[AudioInput, ...]
    options: TranscribeOptions
    bundle: Bundle | str | Path | None = None
    bundles_dir: str | Path = DEFAULT_BUNDLES_DIR
    precision: Precision = "float32"
    backend: str = "torch"
    compute_units: str | None = None
    device: str = "cpu"
    draft: Bundle | str | Path | None = None

    def results(self, progress: Progress | None = None) -> Iterator[tuple[int, Transcription]]:
        """Transcribe the inputs, each when it is asked for.

        Yields:
            The index of the input, and its transcription. Inputs that cannot be decoded are left out.

        Raises:
            WktError: The bundle cannot be loaded, or the options do not fit it.
            AudioError: At the end, naming all inputs that failed.
        """
        progress = progress or SilentProgress()
        transcriber = self._loaded()
        transcriber.check(self.options)
        failed = []
        for index, item in enumerate(self.inputs):
            notes: list[str] = []
            try:
                samples = load_audio(item, note=notes.append)
            except AudioError as error:
                if len(self.inputs) == 1:
                    raise
                failed.append(error.message)
                continue
            heard = transcriber.transcribe(samples, self.options, progress=progress, label=self._label(index))
            yield index, replace(heard, notices=(*notes, *heard.notices))
        if failed:
            lines = "\n".join(f"  {line}" for line in failed)
            raise AudioError(f"{len(failed)} of {len(self.inputs)} inputs failed:\n{lines}")

    def _loaded(self) -> Transcriber:
        bundle = as_bundle(self.bundle, self.bundles_dir)
        return Transcriber.load(
            bundle,
            precision=self.precision,
            backend=self.backend,
            compute_units=self.compute_units,
            device=self.device,
            draft=self.draft,
        )

    def _label(self, index: int) -> str:
        name, count = Path(self.inputs[index].name).name, len(self.inputs)
        return f"{index + 1}/{count} {name}" if count > 1 else name


def transcription_job(
    audio: str | Sequence[str],
    *,
    bundle: Bundle | str | Path | None = None,
    bundles_dir: str | Path = DEFAULT_BUNDLES_DIR,
    draft: Bundle | str | Path | None = None,
    language: str | None = None,
    task: str | None = None,
    prompt: str | None = None,
    timestamps: bool = True,
    word_timestamps: bool = False,
    temperature: str | float | Sequence[float] = "0,0.2,0.4,0.6,0.8,1",
    compression_ratio_threshold: float | None = 1.35,
    logprob_threshold: float | None = -1.0,
    no_speech_threshold: float | None = 0.6,
    condition_on_previous_text: bool = False,
    long_form: str = "sequential",
    chunk_length: float | None = None,
    stride: float = 2.5,
    vad: str = "energy",
    max_new_tokens: int | None = None,
    features: str = "window",
    prefill: bool = True,
    seed: int = 0,
    precision: Precision = "float32",
    backend: str = "torch",
    compute_units: str | None = None,
    device: str = "cpu",
) -> TranscriptionJob:
    """Find the inputs, check the options, and return a job that transcribes the inputs.

    Args:
        audio: Files, folders, or `-` for standard input.
        bundle: The bundle, opened or by folder. None for the last converted one.
        bundles_dir: The folder in which to look for that one.
        draft: The bundle of a smaller model, opened or by folder, that writes ahead. None for none.
        language: See `TranscribeOptions`, as for all keywords down to `seed`.
        task: `transcribe`, or `translate` to English. None for the one that the model was tuned for.
        prompt: Text that the audio continues.
        timestamps: Predict the times of phrases.
        word_timestamps: Compute the times of words.
        temperature: Temperatures to try in order.
        compression_ratio_threshold: Limit for a repetitive result. None switches the check off.
        logprob_threshold: Limit for an uncertain result. None switches the check off.
        no_speech_threshold: Limit for silence. None switches the check off.
        condition_on_previous_text: Give each window the text before it as a prompt.
        long_form: `sequential`, `chunked` or `vad`.
        chunk_length: Length of a chunk or piece in seconds.
        stride: Overlap of a chunk with each neighbour, in seconds.
        vad: Detector of pauses.
        max_new_tokens: Maximum number of tokens in a window's result.
        features: Mel features of each `window` or of the whole `file`.
        prefill: Use the bundle's table for the first decoder passes of a window.
        seed: Seed for sampling at temperatures above 0.
        precision: `float32`, or `float16` to round as the device does.
        backend: `torch` anywhere, or `coreml` on macOS.
        compute_units: Core ML compute units. None for those of the on-device runtime.
        device: PyTorch device.

    Raises:
        OptionsError: A value is out of range.
        AudioError: Inputs are missing, empty, or folders without audio. All are named.
    """
    options = TranscribeOptions(
        language=language,
        task=task,
        prompt=prompt,
        timestamps=timestamps,
        word_timestamps=word_timestamps,
        temperatures=as_numbers("temperature", temperature, "0,0.2,0.4") or (),
        compression_ratio_threshold=compression_ratio_threshold,
        logprob_threshold=logprob_threshold,
        no_speech_threshold=no_speech_threshold,
        condition_on_previous_text=condition_on_previous_text,
        long_form=long_form,
        chunk_length_s=chunk_length,
        stride_s=stride,
        vad=vad,
        max_new_tokens=max_new_tokens,
        features=features,
        prefill=prefill,
        seed=seed,
    )
    inputs = tuple(find_inputs(as_tuple(audio)))
    return TranscriptionJob(inputs, options, bundle, bundles_dir, precision, backend, compute_units, device, draft)

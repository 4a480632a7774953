"""Services with OpenAI's transcription endpoint: OpenAI's own, vLLM, the on-device runtime's local server, and others.

Source: https://platform.openai.com/docs/api-reference/audio/createTranscription
"""

import bisect
import io
import os
import time
import urllib.error
import urllib.request
import uuid
import wave
from collections.abc import Collection, Sequence
from dataclasses import replace
from http.client import HTTPException
from typing import Any, cast
from urllib.parse import urlsplit

import numpy as np

from whisperkit_tools import limits
from whisperkit_tools.errors import EvaluationError, OptionsError, option
from whisperkit_tools.eval.backends.base import transcription
from whisperkit_tools.eval.backends.options import Value, checked
from whisperkit_tools.eval.backends.registry import BackendOptions
from whisperkit_tools.speech import SAMPLE_RATE_HZ, Samples, Segment, Timings, Transcription, Word
from whisperkit_tools.strict_json import json_text, parse_json

KEY_VARIABLE = "OPENAI_API_KEY"  # OpenAI's own clients read it from there
DEFAULT_ENDPOINT = "https://api.openai.com/v1"
_TRY_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_LONGEST_WAIT_S = 60.0
_PART_BYTES = 1 << 16
_DEFAULTS: dict[str, Value] = {"response_format": "verbose_json", "timeout_s": 600.0, "retries": 4, "prompt": ""}


def load(options: BackendOptions) -> "EndpointTranscriber":
    """Take a service's base address, such as `http://localhost:50060/v1`. The key comes from the environment.

    Raises:
        OptionsError: The address or an option is wrong, or OpenAI's own service lacks its key.
    """
    endpoint = (options.endpoint or DEFAULT_ENDPOINT).rstrip("/")
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise OptionsError(
            f"{option('endpoint')} {endpoint!r} is not an address; give one such as http://localhost:8000/v1"
        )
    if parts.username is not None or parts.query or parts.fragment:  # reports show the address
        raise OptionsError(
            f"{option('endpoint')} of {parts.hostname} holds more than an address; its key is read from {KEY_VARIABLE}"
        )
    own = checked(options.name, options.extra, _DEFAULTS)
    if own["response_format"] not in ("verbose_json", "json"):
        raise OptionsError(
            f"backend openai: response_format is {own['response_format']!r}, allowed are verbose_json and json"
        )
    if int(own["retries"]) < 0:
        raise OptionsError(f"backend openai: retries is {own['retries']}, expected 0 or more")
    key = os.environ.get(KEY_VARIABLE, "")
    if not key and endpoint == DEFAULT_ENDPOINT:
        raise OptionsError(
            f"{DEFAULT_ENDPOINT} needs a key: set {KEY_VARIABLE}, or name another service with {option('endpoint')}"
        )
    url = f"{endpoint}/audio/transcriptions"
    return EndpointTranscriber(url, options.model, key, options.temperatures[0], own)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: the key and the audio go to the address that was given and to no other."""

    def redirect_request(self, *_: Any) -> None:
        """Refuse, which makes it an HTTP error."""


_OPENER = urllib.request.build_opener(_NoRedirect)


class EndpointTranscriber:
    """Sends each audio as a WAV file of 16 bits and reads the text that comes back."""

    def __init__(self, url: str, model: str, key: str, temperature: float, options: dict[str, Value]) -> None:
        self._url = url
        self._model = model
        self._key = key
        self._temperature = temperature
        self._options = options

    def check(self, languages: Collection[str]) -> None:
        """Leave it to the service, which alone knows its models."""

    def transcribe(self, audio: Samples, *, language: str | None = None, words: bool = False) -> Transcription:
        """Transcribe one audio.

        Raises:
            EvaluationError: The service cannot be reached, refuses, or answers something else.
        """
        begun = time.perf_counter()
        body, content_type = _multipart(self._fields(language, words), _wav(audio))
        answer = self._post(body, content_type)
        total_s = time.perf_counter() - begun
        try:
            text = str(answer["text"]).strip()
            _check_length(text, len(audio) / SAMPLE_RATE_HZ)
            segments = _segments(text, answer.get("segments"), answer.get("words"))
            language = _code(answer.get("language"))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise EvaluationError(
                f"{self._url} answered without a usable text: {json_text(answer, indent=None)[:200]}"
            ) from error
        return transcription(text, audio, Timings(round(total_s, 6)), segments, language)

    def _fields(self, language: str | None, words: bool) -> list[tuple[str, str]]:
        fields = [("model", self._model), ("response_format", str(self._options["response_format"]))]
        fields.append(("temperature", f"{self._temperature:g}"))
        if language is not None:
            fields.append(("language", language))
        if self._options["prompt"]:
            fields.append(("prompt", str(self._options["prompt"])))
        if self._options["response_format"] == "verbose_json":
            granularities = ["segment", "word"] if words else ["segment"]
            fields += [("timestamp_granularities[]", granularity) for granularity in granularities]
        return fields

    def _post(self, body: bytes, content_type: str) -> dict[str, Any]:
        """Send, and send again while the service is temporarily unable to answer."""
        headers = {"Content-Type": content_type, "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self._url, data=body, headers=headers)
        attempt = 0
        while True:
            is_last = attempt >= int(self._options["retries"])
            try:
                timeout_s = float(self._options["timeout_s"])
                deadline = time.monotonic() + timeout_s
                with _OPENER.open(request, timeout=timeout_s) as response:
                    return self._parsed(self._received(response, deadline))
            except urllib.error.HTTPError as error:
                if is_last or error.code not in _TRY_AGAIN:
                    raise EvaluationError(self._refusal(error)) from error
                wait_s = _retry_after_s(error) or 2.0**attempt
            except (urllib.error.URLError, HTTPException, OSError) as error:
                if is_last:
                    reason = getattr(error, "reason", None) or error
                    raise EvaluationError(
                        f"{self._url} cannot be reached: {reason}; is the service running?"
                    ) from error
                wait_s = 0.5 * 2.0**attempt
            time.sleep(min(wait_s, _LONGEST_WAIT_S))
            attempt += 1

    def _received(self, response: Any, deadline: float) -> bytes:
        """Return the whole answer. The timeout of a socket ends with every byte that comes, this one does not."""
        raw = bytearray()
        while part := response.read1(_PART_BYTES):
            raw += part
            if len(raw) > limits.ANSWER_BYTES:
                raise EvaluationError(f"{self._url} answered more than {limits.ANSWER_BYTES >> 20} MB")
            if time.monotonic() > deadline:
                raise EvaluationError(
                    f"{self._url} was still answering after {self._options['timeout_s']} s, the backend's timeout_s"
                )
        return bytes(raw)

    def _parsed(self, raw: bytes) -> dict[str, Any]:
        try:
            answer = parse_json(raw)
        except ValueError as error:
            raise EvaluationError(f"{self._url} answered no JSON: {raw[:100]!r}") from error
        if not isinstance(answer, dict):
            raise EvaluationError(f"{self._url} answered a JSON {type(answer).__name__}, expected an object")
        return answer

    def _refusal(self, error: urllib.error.HTTPError) -> str:
        """Return the service's own explanation, as far as it gives one."""
        if error.code in _REDIRECTS:
            place = error.headers.get("Location")
            return f"{self._url} answered {error.code}, moved to {place}; give that {option('endpoint')}"
        raw = error.read(limits.REFUSAL_BYTES)[:2000].decode("utf-8", "replace")
        try:
            said = parse_json(raw)["error"]
            message = said["message"] if isinstance(said, dict) else str(said)
        except (ValueError, KeyError, TypeError):
            message = (raw.strip().splitlines() or ["no message"])[0]
        hint = f"; check {KEY_VARIABLE}" if error.code in (401, 403) else ""
        return f"{self._url} answered {error.code}: {message[:300]}{hint}"


def _check_length(text: str, duration_s: float) -> None:
    """Check that a text can have been spoken in a time.

    Raises:
        ValueError: It is far too long.
    """
    allowed = limits.TEXT_FREE + limits.TEXT_PER_S * duration_s
    if len(text) > allowed:
        raise ValueError(f"{len(text)} characters of text for {duration_s:.1f} s of audio")


def _wav(audio: Samples) -> bytes:
    """The audio as a WAV file of 16 bits, rounded as libsndfile does."""
    samples = np.clip(np.rint(audio * 32767.0), -32768, 32767).astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE_HZ)
        file.writeframes(samples.tobytes())
    return buffer.getvalue()


def _multipart(fields: Sequence[tuple[str, str]], wav: bytes) -> tuple[bytes, str]:
    """A form with a file, and its content type (RFC 7578)."""
    boundary = uuid.uuid4().hex
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields
    ]
    head = 'Content-Disposition: form-data; name="file"; filename="audio.wav"\r\nContent-Type: audio/wav'
    parts += [f"--{boundary}\r\n{head}\r\n\r\n".encode(), wav, f"\r\n--{boundary}--\r\n".encode()]
    return b"".join(parts), f"multipart/form-data; boundary={boundary}"


def _retry_after_s(error: urllib.error.HTTPError) -> float | None:
    """Return the wait that the service requests. None when it requests none, or gives a date."""
    try:
        return max(0.0, float(error.headers.get("Retry-After", "")))
    except ValueError:
        return None


def _segments(text: str, phrases: Any, words: Any) -> list[Segment]:
    """Return the phrases with their words. Services list the words separately, some without any phrase."""
    found = [Segment(float(part["start"]), float(part["end"]), str(part["text"])) for part in _listed(phrases)]
    timed = [Word(str(part["word"]), float(part["start"]), float(part["end"])) for part in _listed(words)]
    if timed and not found:
        found = [Segment(timed[0].start_s, timed[-1].end_s, text)]
    # A word belongs to the last phrase that has begun with it, the first words to the first phrase in any case.
    starts = [part.start_s for part in found[1:]]
    owners = [bisect.bisect_right(starts, word.start_s) for word in timed]
    return [
        replace(part, words=tuple(word for word, owner in zip(timed, owners, strict=True) if owner == place))
        for place, part in enumerate(found)
    ]


def _listed(parts: Any) -> list[Any]:
    return parts if isinstance(parts, list) else []


def _code(language: Any) -> str | None:
    """Return a language's code. OpenAI's service answers with its English name."""
    if not isinstance(language, str) or not language:
        return None
    if len(language) <= len("yue"):
        return language.lower()
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    return cast("str | None", TO_LANGUAGE_CODE.get(language.lower()))

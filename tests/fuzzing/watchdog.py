"""Reading mutated files in a child process, which may hang, crash or fill its memory without harm."""

import io
import multiprocessing
import resource
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from tests.fuzzing.targets import Target, emptied, targets

HANG_S = 10.0
MEMORY_BYTES = 2 << 30
_BASE_BYTES = 6 << 30  # address space that the libraries take without using it
_FORMATS = (
    ("wav", "WAV", None),
    ("flac", "FLAC", None),
    ("ogg", "OGG", "VORBIS"),
    ("mp3", "MP3", None),
    ("aiff", "AIFF", None),
)


def audio_seeds() -> dict[str, bytes]:
    """Return a short tone in each format, by name."""
    import soundfile

    tone = (0.3 * np.sin(np.arange(8000) / 5)).astype(np.float32)
    found = {}
    for suffix, form, subtype in _FORMATS:
        file = io.BytesIO()
        soundfile.write(file, tone, 16_000, format=form, subtype=subtype)
        found[f"a.{suffix}"] = file.getvalue()
    return found


def attempt(target: Target, content: bytes, folder: Path) -> str:
    """Return what came of reading a file: `accepted`, `clean error`, or the description of an internal error."""
    from whisperkit_tools.errors import WktError

    with emptied(folder):
        (folder / target.file).write_bytes(content)
        try:
            target.read(folder)
        except WktError as error:
            return "clean error" if str(error) else "internal error: an error without a message"
        except OSError as error:
            return "clean error" if error.errno else f"internal error: {type(error).__name__}: {error}"
        except Exception as error:
            return f"internal error: {type(error).__name__}: {str(error)[:200]}"
    return "accepted"


def _child(connection: Connection, folder: Path) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES + _BASE_BYTES,) * 2)
    known = {target.name: target for target in targets(audio_seeds())}
    for target in known.values():  # imports libraries, which takes longer than any file
        attempt(target, target.seed, folder)
    connection.send("ready")
    while True:
        name, content = connection.recv()
        result = attempt(known[name], content, folder)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        connection.send(result if peak < MEMORY_BYTES else "over 2 GB")


class Watched:
    """A child process that reads files, replaced when it dies or hangs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_child, args=(theirs, self._folder), daemon=True)
        self._process.start()
        theirs.close()
        self._connection.recv()

    def read(self, name: str, content: bytes) -> str:
        """Return what came of it, also `crash` and `hang`."""
        self._connection.send((name, content))
        if not self._connection.poll(HANG_S):
            self.stop()
            self._start()
            return "hang"
        try:
            result: str = self._connection.recv()
        except EOFError:
            self._process.join()
            code = self._process.exitcode
            self._start()
            return f"crash (exit code {code})"
        if result == "over 2 GB":
            self.stop()
            self._start()
        return result

    def stop(self) -> None:
        """End the child."""
        self._process.kill()
        self._process.join()

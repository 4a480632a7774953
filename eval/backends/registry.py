"""Backends by name: those that come with this package, and those that others register.

A third party registers a callable under the entry point group `whisperkit_tools.transcribers`; it is called with a
`BackendSpec` and returns a `Transcriber`:

    [project.entry-points."whisperkit_tools.transcribers"]
    my-engine = "my_package.wkt:load"
"""

import difflib
import hashlib
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import cast

from whisperkit_tools.errors import EvaluationError
from whisperkit_tools.eval.backends.base import BackendInfo, Candidate, Transcriber

GROUP = "whisperkit_tools.transcribers"
DEFAULT_TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """A backend of this package.

    Attributes:
        module: Its module in this folder.
        requires: The library's import name; empty when it needs none.
        extra: Of this package, that installs it.
        libraries: Distributions whose versions stand in reports.
    """

    module: str
    requires: str = ""
    extra: str = ""
    libraries: tuple[str, ...] = ()


BUILT_IN = {
    "transformers": BuiltIn("transformers_whisper", libraries=("transformers", "torch")),
    "faster-whisper": BuiltIn("faster_whisper", "faster_whisper", "faster-whisper", ("faster-whisper", "ctranslate2")),
    "whisper.cpp": BuiltIn("whisper_cpp", "pywhispercpp", "whisper-cpp", ("pywhispercpp",)),
    "mlx-whisper": BuiltIn("mlx_whisper", "mlx_whisper", "mlx", ("mlx-whisper", "mlx")),
    "openai": BuiltIn("http_endpoint"),
}


@dataclass(frozen=True, slots=True)
class BackendSpec:
    """Which backend, with which model, and how; picklable.

    Attributes:
        name: Of the backend.
        model: A name or path as the backend knows it.
        device: Where to compute, for those that can choose; empty for the backend's own choice.
        endpoint: Base address of a service.
        temperatures: Tried in order while a result looks wrong, where the backend has them.
        options: Of the backend's own, as words.
    """

    name: str
    model: str
    device: str = ""
    endpoint: str = ""
    temperatures: tuple[float, ...] = DEFAULT_TEMPERATURES
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LoadBackend:
    """Loads a backend in whatever process it is called."""

    spec: BackendSpec

    def __call__(self) -> Transcriber:
        """Load the model.

        Raises:
            EvaluationError: Its library is missing, or the model cannot be loaded.
        """
        load = _loader(self.spec.name)
        try:
            return load(self.spec)
        except ImportError as error:
            raise EvaluationError(
                f"backend {self.spec.name} needs a library that cannot be imported: {error}; install it again"
            ) from error


def candidate(spec: BackendSpec, *, identity: str = "", name: str = "") -> Candidate:
    """A backend with its model, ready to be evaluated; nothing is loaded yet.

    Args:
        spec: Which.
        identity: What tells the model from another of the same name; the digest of a local file or folder when empty.
        name: In reports; backend and model when empty.

    Raises:
        EvaluationError: No such backend, or its library is missing.
    """
    check_available(spec.name)
    options = {**spec.options, **({"endpoint": spec.endpoint} if spec.endpoint else {})}
    options |= {"device": spec.device} if spec.device else {}
    info = BackendInfo(
        name=spec.name,
        model=spec.model,
        identity=identity or _digest(Path(spec.model)),
        options={**options, "temperatures": list(spec.temperatures)},
        versions=_versions(spec.name),
    )
    short = Path(spec.model).name if Path(spec.model).exists() else spec.model
    return Candidate(name or f"{spec.name}-{short}", LoadBackend(spec), info)


def backend_names() -> list[str]:
    """Names of all backends, those of others included."""
    return [*BUILT_IN, *sorted(set(_registered()) - set(BUILT_IN))]


def check_available(name: str) -> None:
    """Check that a backend exists and that its library is installed.

    Raises:
        EvaluationError: What to install, or which backends there are.
    """
    built_in = BUILT_IN.get(name)
    if built_in is None and name not in _registered():
        near = difflib.get_close_matches(name, backend_names(), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise EvaluationError(f"unknown backend {name!r}; {hint}there are {', '.join(backend_names())}")
    if built_in is not None and built_in.requires and importlib.util.find_spec(built_in.requires) is None:
        raise EvaluationError(
            f"backend {name} needs a library that is not installed; pip install 'whisperkit-tools[{built_in.extra}]'"
        )


def _loader(name: str) -> Callable[[BackendSpec], Transcriber]:
    check_available(name)
    if name in BUILT_IN:
        module = importlib.import_module(f"whisperkit_tools.eval.backends.{BUILT_IN[name].module}")
        return cast(Callable[[BackendSpec], Transcriber], module.load)
    try:
        return cast(Callable[[BackendSpec], Transcriber], _registered()[name].load())
    except (ImportError, AttributeError) as error:
        value = _registered()[name].value
        raise EvaluationError(f"backend {name} is registered as {value}, which cannot be imported: {error}") from error


def _registered() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def _versions(name: str) -> dict[str, str]:
    found = {}
    registered = _registered().get(name)
    distribution = registered.dist if name not in BUILT_IN and registered is not None else None
    if distribution is not None:
        found[distribution.name] = distribution.version
    for library in BUILT_IN[name].libraries if name in BUILT_IN else ():
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found


def _digest(path: Path) -> str:
    """Digest of a model's files; empty when it is not local."""
    if not path.exists():
        return ""
    whole = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        with file.open("rb") as opened:
            whole.update(f"{file.relative_to(path)} {hashlib.file_digest(opened, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()

"""Backends by name: those of this package, and those that other packages register.

A third party registers a callable under the entry point group `whisperkit_tools.transcribers`. It is called with a
`BackendOptions` and returns a `TranscriptionBackend`:

    [project.entry-points."whisperkit_tools.transcribers"]
    my-engine = "my_package.wkt:load"
"""

import difflib
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import cast

from whisperkit_tools.errors import EvaluationError, OptionsError
from whisperkit_tools.eval.backends.base import BackendInfo, EvaluationTarget, TranscriptionBackend
from whisperkit_tools.files import content_files, content_sha256, sha256

GROUP = "whisperkit_tools.transcribers"
DEFAULT_TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """A backend of this package.

    Attributes:
        module: Its module in this folder.
        requires: The library's import name. Empty when it needs none.
        extra: The extra of this package that installs it.
        libraries: Distributions whose versions reports show.
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
class BackendOptions:
    """Choice of a backend and its model. Picklable.

    Attributes:
        name: Name of the backend.
        model: A name or path as the backend knows it.
        device: Compute device, for backends that can choose. Empty for the backend's own choice.
        endpoint: Base address of a service.
        temperatures: Tried in order while a result looks wrong, where the backend has them.
        extra: The backend's own options, as words.
    """

    name: str
    model: str
    device: str = ""
    endpoint: str = ""
    temperatures: tuple[float, ...] = DEFAULT_TEMPERATURES
    extra: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LoadBackend:
    """Loads a backend in the process in which it is called."""

    options: BackendOptions

    def __call__(self) -> TranscriptionBackend:
        """Load the model.

        Raises:
            EvaluationError: Its library is missing, or the model cannot be loaded.
        """
        load = _loader(self.options.name)
        try:
            return load(self.options)
        except ImportError as error:
            raise EvaluationError(
                f"backend {self.options.name} needs a library that cannot be imported: {error}; install it again"
            ) from error


def backend_target(options: BackendOptions, *, identity: str = "", name: str = "") -> EvaluationTarget:
    """Return a backend with its model, ready to be evaluated. Nothing is loaded yet.

    Args:
        options: Backend and model.
        identity: Distinguishes the model from another of the same name. When empty, the digest of a local one.
        name: Name in reports. Backend and model when empty.

    Raises:
        OptionsError: No such backend.
        EvaluationError: Its library is missing.
    """
    check_available(options.name)
    shown = {**options.extra, **({"endpoint": options.endpoint} if options.endpoint else {})}
    shown |= {"device": options.device} if options.device else {}
    info = BackendInfo(
        name=options.name,
        model=options.model,
        identity=identity or _digest(Path(options.model)),
        options={**shown, "temperatures": list(options.temperatures)},
        versions=_versions(options.name),
    )
    short = Path(options.model).name if Path(options.model).exists() else options.model
    return EvaluationTarget(name or f"{options.name}-{short}", LoadBackend(options), info)


def backend_names() -> list[str]:
    """Return the names of all backends, including those of other packages."""
    return [*BUILT_IN, *sorted(set(_registered()) - set(BUILT_IN))]


def check_available(name: str) -> None:
    """Check that a backend exists and that its library is installed.

    Raises:
        OptionsError: No such backend. Lists the known ones.
        EvaluationError: Its library is missing. States the command that installs it.
    """
    built_in = BUILT_IN.get(name)
    if built_in is None and name not in _registered():
        near = difflib.get_close_matches(name, backend_names(), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise OptionsError(f"unknown backend {name!r}; {hint}there are {', '.join(backend_names())}")
    if built_in is not None and built_in.requires and importlib.util.find_spec(built_in.requires) is None:
        raise EvaluationError(
            f"backend {name} needs a library that is not installed; pip install 'whisperkit-tools[{built_in.extra}]'"
        )


def _loader(name: str) -> Callable[[BackendOptions], TranscriptionBackend]:
    check_available(name)
    if name in BUILT_IN:
        module = importlib.import_module(f"whisperkit_tools.eval.backends.{BUILT_IN[name].module}")
        return cast(Callable[[BackendOptions], TranscriptionBackend], module.load)
    try:
        return cast(Callable[[BackendOptions], TranscriptionBackend], _registered()[name].load())
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
    """Return the digest of a model's files. Empty when it is not local."""
    if not path.exists():
        return ""
    files = content_files(path) if path.is_dir() else [path]
    return content_sha256({file.relative_to(path).as_posix(): sha256(file) for file in files})

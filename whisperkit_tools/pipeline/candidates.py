"""From backends and bundles as users name them to the candidates of an evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from whisperkit_tools.bundle import Bundle
from whisperkit_tools.errors import OptionsError, option
from whisperkit_tools.eval.backends.base import EvaluationTarget
from whisperkit_tools.eval.backends.registry import (
    BUILT_IN,
    DEFAULT_TEMPERATURES,
    BackendOptions,
    backend_target,
    check_available,
)
from whisperkit_tools.mil.tensor_spec import Precision
from whisperkit_tools.pipeline.arguments import unique_names
from whisperkit_tools.pipeline.bundle_backend import (
    BUNDLE_BACKENDS,
    CORE_ML,
    EXECUTOR,
    LoadBundle,
    bundle_target,
    hugging_face_folder,
)
from whisperkit_tools.transcribe.many import AUTO, BatchSize
from whisperkit_tools.transcribe.options import TranscribeOptions

TRANSFORMERS, OPENAI = "transformers", "openai"
# Options of our own decoding, which other backends do not know. With some of them, the values of `long_form` that
# they belong to.
STRATEGIES: Mapping[str, tuple[str, ...]] = {
    "long_form": (),
    "chunk_length_s": ("chunked", "vad"),
    "stride_s": ("chunked",),
    "vad": ("vad",),
    "features": (),
    "condition_on_previous_text": (),
}


@dataclass(frozen=True, slots=True)
class BackendChoice:
    """A backend as the user named it.

    Attributes:
        name: Name of the backend.
        model: The model after the colon; None without one.
    """

    name: str
    model: str | None

    @classmethod
    def parse(cls, text: str) -> "BackendChoice":
        """Split `NAME` or `NAME:MODEL`."""
        name, colon, model = text.partition(":")
        return cls(name, model if colon else None)

    @property
    def runs_bundles(self) -> bool:
        """Whether the backend runs bundles."""
        return self.name in BUNDLE_BACKENDS


@dataclass(frozen=True, slots=True)
class CandidateOptions:
    """How the candidates run.

    Attributes:
        decoding: The fields of `TranscribeOptions` that the user chose.
        precision: Precision of the executor.
        compute_units: Compute units of Core ML; None for those of the on-device runtime.
        device: PyTorch device, also for other backends that can choose; empty for their own choice.
        endpoint: Address of a service.
        backend_options: Options of backends that do not run bundles, as `NAME=VALUE` or `BACKEND:NAME=VALUE`.
        batch_size: Number of recordings that a bundle decodes at once.
    """

    decoding: Mapping[str, Any] = field(default_factory=dict)
    precision: Precision = "float32"
    compute_units: str | None = None
    device: str = ""
    endpoint: str = ""
    backend_options: tuple[str, ...] = ()
    batch_size: BatchSize = AUTO

    def check_used(self, backends: Sequence[BackendChoice]) -> None:
        """Refuse options that no chosen backend would use.

        Raises:
            OptionsError: Naming each, and the backend that has it.
        """
        unused = [*self._unused_by_backends(backends), *self._unused_by_strategy(), *self._unknown_options(backends)]
        if unused:
            raise OptionsError("; ".join(unused))

    def _unused_by_backends(self, backends: Sequence[BackendChoice]) -> list[str]:
        names = {choice.name for choice in backends}
        models = names - set(BUNDLE_BACKENDS)
        registered = models - set(BUILT_IN)  # their options are their own
        unused = []
        if self.endpoint and OPENAI not in names and not registered:
            unused.append(f"{option('endpoint')} needs a service: add {option('backend', 'openai:MODEL')}")
        if self.precision != "float32" and EXECUTOR not in names:
            unused.append(f"{option('precision')} applies to the executor: add {option('backend', EXECUTOR)}")
        if self.compute_units is not None and CORE_ML not in names:
            unused.append(f"{option('compute_units')} applies to Core ML: add {option('backend', CORE_ML)}")
        if names == models:
            unused += [f"{option(name)} applies to bundles: add {option('backend', EXECUTOR)}" for name in self.own]
        return unused

    def _unused_by_strategy(self) -> list[str]:
        chosen = self.decoding.get("long_form")
        return [
            f"{option(name)} needs {option('long_form', ' or '.join(strategies))}"
            for name, strategies in STRATEGIES.items()
            if strategies and name in self.decoding and chosen not in strategies
        ]

    def _unknown_options(self, backends: Sequence[BackendChoice]) -> list[str]:
        models = {choice.name for choice in backends if not choice.runs_bundles}
        unknown = []
        for word in self.backend_options:
            prefix, colon, _ = word.partition("=")[0].rpartition(":")
            if not models or (colon and prefix not in models):
                unknown.append(f"{option('backend_option', word)} belongs to no chosen backend with options of its own")
        return unknown

    @property
    def own(self) -> list[str]:
        """The chosen options that only bundles know."""
        return [name for name in STRATEGIES if name in self.decoding]


def candidates(
    bundles: Sequence[Bundle], backends: Sequence[BackendChoice], options: CandidateOptions
) -> list[EvaluationTarget]:
    """Return all bundles under all backends that run bundles, then the models of the other backends.

    Raises:
        OptionsError: A backend is unknown, or lacks a bundle or a model to run.
        EvaluationError: The library of a backend is not installed.
    """
    names = {path.resolve(): name for name, path in unique_names([bundle.path for bundle in bundles]).items()}
    runs_bundles = [choice for choice in backends if choice.runs_bundles]
    found = []
    for choice in runs_bundles:
        if choice.model is not None:
            raise OptionsError(
                f"{option('backend', choice.name)} runs bundles; name {choice.model} as {option('bundles')} instead"
            )
        suffix = f"-{choice.name}" if len(runs_bundles) > 1 else ""
        for bundle in {bundle.path.resolve(): bundle for bundle in bundles}.values():
            found.append(_of_bundle(bundle, choice.name, names[bundle.path.resolve()] + suffix, options))
    for choice in backends:
        if not choice.runs_bundles:
            found += _of_model(choice, bundles, options)
    return found


def _of_bundle(bundle: Bundle, backend: str, name: str, options: CandidateOptions) -> EvaluationTarget:
    load = LoadBundle(
        path=str(bundle.path.resolve()),
        options=TranscribeOptions(**options.decoding),
        backend=backend,
        precision=options.precision,
        compute_units=options.compute_units,
        device=options.device or "cpu",
        batch_size=options.batch_size,
    )
    return bundle_target(bundle, load, name)


def _of_model(choice: BackendChoice, bundles: Sequence[Bundle], options: CandidateOptions) -> list[EvaluationTarget]:
    """Return a backend with its model, or with the PyTorch original of each bundle where no model is named."""
    check_available(choice.name)
    models = [choice.model] if choice.model else _sources(bundles) if choice.name == TRANSFORMERS else []
    if not models:
        raise OptionsError(
            f"{option('backend', choice.name)} needs a model: {option('backend', f'{choice.name}:MODEL')}"
        )
    found = []
    for model in models:
        place, identity = hugging_face_folder(model) if choice.name == TRANSFORMERS else (model, "")
        spec = BackendOptions(
            name=choice.name,
            model=place,
            device=options.device,
            endpoint=options.endpoint,
            temperatures=tuple(options.decoding.get("temperatures", DEFAULT_TEMPERATURES)),
            extra=_own_options(choice.name, options.backend_options),
        )
        found.append(backend_target(spec, identity=identity, name=f"{choice.name}-{Path(model).name}"))
    return found


def _sources(bundles: Sequence[Bundle]) -> list[str]:
    """Return the checkpoints that bundles were made from, by the names that their manifests record."""
    sources = (bundle.manifest.source for bundle in bundles)
    return list(dict.fromkeys(source.name for source in sources if source and source.name))


def _own_options(backend: str, words: Sequence[str]) -> dict[str, str]:
    """Return the options of a backend: those for all backends, and those with its name before a colon."""
    own = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise OptionsError(f"{option('backend_option')}: {word!r} is not NAME=VALUE or BACKEND:NAME=VALUE")
        prefix, colon, rest = name.rpartition(":")
        if not colon or prefix == backend:
            own[rest] = value
    return own


def require_bundle_backend(backends: Sequence[BackendChoice]) -> None:
    """Refuse bundles where no backend runs them.

    Raises:
        OptionsError: No chosen backend runs bundles, and none could take its model from them.
    """
    if not any(choice.runs_bundles or choice.model is None for choice in backends):
        raise OptionsError(f"no chosen backend runs bundles; add {option('backend', EXECUTOR)}")

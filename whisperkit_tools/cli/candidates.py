"""From what a command line names to what is evaluated: bundles under their backends, models of other backends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whisperkit_tools.errors import EvaluationError

if TYPE_CHECKING:
    from whisperkit_tools.bundle import Bundle
    from whisperkit_tools.eval.backends.base import Candidate
    from whisperkit_tools.mil.tensor_spec import Precision

TRANSFORMERS, OPENAI = "transformers", "openai"
BUNDLE_OPTIONS = {
    "long_form": "--long-form",
    "chunk_length_s": "--chunk-length",
    "stride_s": "--stride",
    "vad": "--vad",
    "features": "--features",
    "condition_on_previous_text": "--condition-on-previous-text",
}
"""Of our own decoding, by the field of `TranscribeOptions`."""


@dataclass(frozen=True, slots=True)
class BackendChoice:
    """One `--backend`: its name, and the model behind the colon if there is one."""

    name: str
    model: str | None

    @classmethod
    def parse(cls, text: str) -> "BackendChoice":
        """Take `NAME` or `NAME:MODEL` apart."""
        name, colon, model = text.partition(":")
        return cls(name, model if colon else None)


@dataclass(frozen=True, slots=True)
class CandidateOptions:
    """How the candidates run.

    Attributes:
        decoding: Of `TranscribeOptions`, those that were given.
        precision: Of the executor.
        compute_units: Of Core ML.
        device: Of the executor and of backends that can choose; empty for their own choice.
        endpoint: Of a service.
        backend_options: Of backends that do not run bundles, as `NAME=VALUE` or `BACKEND:NAME=VALUE`.
    """

    decoding: Mapping[str, Any] = field(default_factory=dict)
    precision: "Precision" = "float32"
    compute_units: str | None = None
    device: str = ""
    endpoint: str = ""
    backend_options: tuple[str, ...] = ()


def unused_options(backends: Sequence[BackendChoice], options: Mapping[str, Any]) -> list[str]:
    """What was given on the command line and no chosen backend would take in, one line each.

    Args:
        backends: The chosen ones.
        options: The command's, by their names.
    """
    from whisperkit_tools.eval.backends.registry import BUILT_IN
    from whisperkit_tools.pipeline import BUNDLE_BACKENDS, CORE_ML, EXECUTOR

    names = {choice.name for choice in backends}
    models = names - set(BUNDLE_BACKENDS)
    registered = models - set(BUILT_IN)  # what those know is theirs
    wrong = []
    if options["endpoint"] and OPENAI not in names and not registered:
        wrong.append("--endpoint is of a service: add --backend openai:MODEL")
    if options["precision"] != "float32" and EXECUTOR not in names:
        wrong.append("--precision is of the executor: add --backend executor")
    if options["compute_units"] is not None and CORE_ML not in names:
        wrong.append("--compute-units is of Core ML: add --backend coreml")
    wrong += [
        f"{option} is of bundles: add --backend executor"
        for name, option in BUNDLE_OPTIONS.items()
        if options[name] is not None and names == models
    ]
    strategies = {"chunk_length_s": ("chunked", "vad"), "stride_s": ("chunked",), "vad": ("vad",)}
    wrong += [
        f"{BUNDLE_OPTIONS[name]} goes with --long-form {' or '.join(allowed)}"
        for name, allowed in strategies.items()
        if options[name] is not None and options["long_form"] not in allowed
    ]
    for word in options["backend_options"]:
        prefix, colon, _ = word.partition("=")[0].rpartition(":")
        if not models or (colon and prefix not in models):
            wrong.append(f"--backend-option {word} is of no chosen backend that has its own options")
    return wrong


def candidates(
    bundles: "Sequence[Bundle]", backends: Sequence[BackendChoice], options: CandidateOptions
) -> "list[Candidate]":
    """All bundles under all backends that run bundles, then the models of the others.

    Raises:
        WktError: A backend is unknown or not installed, or lacks a bundle or a model to run.
    """
    from whisperkit_tools.cli.arguments import unique_names
    from whisperkit_tools.pipeline import BUNDLE_BACKENDS

    names = {path.resolve(): name for name, path in unique_names([bundle.path for bundle in bundles]).items()}
    runs_bundles = [choice for choice in backends if choice.name in BUNDLE_BACKENDS]
    found = []
    for choice in runs_bundles:
        if choice.model is not None:
            raise EvaluationError(f"--backend {choice.name} runs bundles; name {choice.model} as BUNDLE instead")
        suffix = f"-{choice.name}" if len(runs_bundles) > 1 else ""
        for bundle in {bundle.path.resolve(): bundle for bundle in bundles}.values():
            found.append(_of_bundle(bundle, choice.name, names[bundle.path.resolve()] + suffix, options))
    for choice in backends:
        if choice.name not in BUNDLE_BACKENDS:
            found += _of_model(choice, bundles, options)
    return found


def _of_bundle(bundle: "Bundle", backend: str, name: str, options: CandidateOptions) -> "Candidate":
    from whisperkit_tools.pipeline import LoadBundle, bundle_candidate
    from whisperkit_tools.transcribe.options import TranscribeOptions

    load = LoadBundle(
        path=str(bundle.path.resolve()),
        options=TranscribeOptions(**options.decoding),
        backend=backend,
        precision=options.precision,
        compute_units=options.compute_units,
        device=options.device or "cpu",
    )
    return bundle_candidate(bundle, load, name)


def _of_model(choice: BackendChoice, bundles: "Sequence[Bundle]", options: CandidateOptions) -> "list[Candidate]":
    """A backend with its model; the PyTorch original of each bundle where none is named."""
    from whisperkit_tools.eval.backends.registry import (
        DEFAULT_TEMPERATURES,
        BackendSpec,
        candidate,
        check_available,
    )
    from whisperkit_tools.pipeline import original_of

    check_available(choice.name)
    models = [choice.model] if choice.model else _sources(bundles) if choice.name == TRANSFORMERS else []
    if not models:
        raise EvaluationError(f"--backend {choice.name} needs a model: --backend {choice.name}:MODEL")
    found = []
    for model in models:
        place, identity = original_of(model) if choice.name == TRANSFORMERS else (model, "")
        spec = BackendSpec(
            name=choice.name,
            model=place,
            device=options.device,
            endpoint=options.endpoint,
            temperatures=tuple(options.decoding.get("temperatures", DEFAULT_TEMPERATURES)),
            options=_own_options(choice.name, options.backend_options),
        )
        found.append(candidate(spec, identity=identity, name=f"{choice.name}-{Path(model).name}"))
    return found


def _sources(bundles: "Sequence[Bundle]") -> list[str]:
    """Names of the checkpoints that bundles were made from, as their manifests have them."""
    sources = (bundle.manifest.source for bundle in bundles)
    return list(dict.fromkeys(source.name for source in sources if source and source.name))


def _own_options(backend: str, words: Sequence[str]) -> dict[str, str]:
    """Options for a backend: those for all, and those with its name before a colon."""
    own = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise EvaluationError(f"--backend-option {word!r} is not NAME=VALUE or BACKEND:NAME=VALUE")
        prefix, colon, rest = name.rpartition(":")
        if not colon or prefix == backend:
            own[rest] = value
    return own

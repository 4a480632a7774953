"""The files that all variants of a repository share: index, model card, device table and chart."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from whisperkit_tools.contract import MODEL_COMPONENTS
from whisperkit_tools.errors import BundleError
from whisperkit_tools.manifest import MANIFEST, NO_MANIFEST, Manifest
from whisperkit_tools.publishing.card import CARD, CardModel, CardVariant, render_card
from whisperkit_tools.publishing.device_table import TABLE, DeviceTable, TableVariant, build_table
from whisperkit_tools.publishing.eligibility import PublishableBundle
from whisperkit_tools.publishing.index import INDEX, Index, PublishedVersion
from whisperkit_tools.publishing.options import PublishOptions
from whisperkit_tools.publishing.provenance import commands, source_of
from whisperkit_tools.publishing.registry.base import Content, Registry, Snapshot
from whisperkit_tools.publishing.size_quality_chart import CHART, ChartVariant, render_chart
from whisperkit_tools.publishing.variant_names import variants_of
from whisperkit_tools.strict_json import parse_json

GATE = "quality gate"  # in place of a dataset's name where the quality gate of `wkt palettize` measured a figure


@dataclass(frozen=True, slots=True)
class RepositoryState:
    """A repository as it is, and what it is to hold.

    Attributes:
        registry: The registry.
        snapshot: Its present state.
        before: Its present index.
        index: The index with what is published or withdrawn.
        bundles: The bundles to publish, by name.
        withdrawn: The variants to remove.
    """

    registry: Registry
    snapshot: Snapshot
    before: Index
    index: Index
    bundles: Mapping[str, PublishableBundle]
    withdrawn: frozenset[str] = frozenset()

    def variants(self) -> set[str]:
        """Return the names of all variants that the repository is to hold."""
        return {*variants_of(self.snapshot.files), *self.bundles} - self.withdrawn

    def manifest(self, name: str) -> Manifest:
        """Return a variant's manifest: the bundle's, or the repository's, where a damaged one counts as none."""
        if name in self.bundles:
            return self.bundles[name].bundle.manifest
        path = f"{name}/{MANIFEST}"
        try:
            return Manifest.from_json(self.json_object(path), path)
        except BundleError:
            return NO_MANIFEST

    def json_object(self, path: str) -> dict[str, Any]:
        """Return a JSON object of the repository, empty where it is missing or damaged (`wkt pull` reports that)."""
        try:
            value = parse_json(self.registry.read(path, self.snapshot) or b"{}")
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}


def published_version(item: PublishableBundle, options: PublishOptions, now: str) -> PublishedVersion:
    """Return the index entry of a bundle.

    Args:
        item: The bundle.
        options: How it is published.
        now: ISO 8601 UTC.
    """
    source = source_of(item.bundle.manifest)
    return PublishedVersion(
        variant=item.name,
        content=item.content,
        created=now,
        tool_version=_tool_version(item.bundle.manifest) or "unknown",
        source=source.name,
        source_revision=source.revision,
        size_bytes=item.size_bytes,
        metrics=_metrics(item),
        unproven=item.unproven,
        tag=options.tag,
    )


def shared_files(state: RepositoryState, device_table: Mapping[str, Any] | None) -> Mapping[str, Content]:
    """Return the shared files by their paths. The chart is missing where no two variants have a figure in common.

    Args:
        state: What the repository is to hold.
        device_table: A table to publish instead of the recommendation.
    """
    table = _table(state, device_table)
    index = replace(state.index, table=table.made)
    chart = render_chart([ChartVariant(one.variant, one.size_bytes, one.metrics) for one in index.latest().values()])
    card = _card(state, table.content, drawn=chart is not None)
    return {TABLE: table.content, CARD: card, INDEX: index.to_bytes()} | ({} if chart is None else {CHART: chart})


def _tool_version(manifest: Manifest) -> str:
    return manifest.tool.version if manifest.tool else ""


def _metrics(item: PublishableBundle) -> dict[str, dict[str, Any]]:
    """Return figures in percent by kind and dataset: those of the evaluations, and the gate's QoI."""
    found: dict[str, dict[str, Any]] = {}

    def add(kind: str, dataset: str, value: Any) -> None:
        if value is not None:
            found.setdefault(kind, {})[dataset] = value

    for dataset, run in sorted(item.reports.items()):
        add("wer", dataset, _percent(run.metrics.wer))
        add("wer_interval", dataset, _percents(run.metrics.wer_interval))
        add("qoi", dataset, _percent(run.metrics.qoi))
        add("qoi_interval", dataset, _percents(run.metrics.qoi_interval))
        add("rtfx", dataset, None if run.speed.rtfx_corpus is None else round(run.speed.rtfx_corpus, 2))
    compression = item.bundle.manifest.compression
    qoi = compression.gate.qoi if compression and compression.gate else None
    if qoi is not None:
        add("qoi", GATE, round(qoi.value, 3))
        add("qoi_interval", GATE, [round(qoi.low, 3), round(qoi.high, 3)])
    return found


def _percent(fraction: float | None) -> float | None:
    return None if fraction is None else round(100 * fraction, 3)


def _percents(fractions: tuple[float, float] | None) -> list[float] | None:
    return None if fractions is None else [round(100 * value, 3) for value in fractions]


def _table(state: RepositoryState, device_table: Mapping[str, Any] | None) -> DeviceTable:
    """Return the device table over all variants that the repository is to hold."""
    variants = []
    for name in sorted(state.variants()):
        version = state.index.current(name)
        errors = list(version.metrics.get("wer", {}).values()) if version else []
        wer = sum(errors) / len(errors) if errors else None
        variants.append(TableVariant(name, _model_bytes(state, name), "_turbo" in name, wer, "_stateful" in name))
    present = state.registry.read(TABLE, state.snapshot)
    return build_table(state.registry.name, variants, present, device_table, state.before.table)


def _model_bytes(state: RepositoryState, name: str) -> int:
    """Return the bytes of encoder and decoder together, of the compiled ones where there are no others."""
    if name in state.bundles:
        return state.bundles[name].model_bytes
    sizes = {
        suffix: sum(
            file.size_bytes
            for path, file in state.snapshot.files.items()
            if path.startswith(tuple(f"{name}/{component}.{suffix}/" for component in MODEL_COMPONENTS))
        )
        for suffix in ("mlpackage", "mlmodelc")
    }
    return sizes["mlpackage"] or sizes["mlmodelc"]


def _card(state: RepositoryState, table: bytes, *, drawn: bool) -> bytes:
    manifests = {name: state.manifest(name) for name in sorted(state.variants())}
    recommended = parse_json(table).get("device_support", [])
    variants = [_card_variant(state, name, manifest, recommended) for name, manifest in manifests.items()]
    sources = {source_of(manifest) for manifest in manifests.values() if manifest.source is not None}
    newest = max(manifests.values(), key=lambda item: item.created, default=NO_MANIFEST)
    version = _tool_version(newest)
    model = CardModel(
        repo_id=state.registry.name,
        sources=tuple(sorted(sources, key=lambda item: (item.name, item.revision or ""))),
        languages=_languages(state, manifests),
        commands=tuple(dict.fromkeys(line for name, item in manifests.items() for line in commands(name, item))),
        tools={**({"whisperkit-tools": version} if version else {}), **newest.libraries},
        chart=CHART if drawn else None,
    )
    return render_card(model, variants, state.registry.read(CARD, state.snapshot))


def _card_variant(state: RepositoryState, name: str, manifest: Manifest, recommended: Sequence[Any]) -> CardVariant:
    version = state.index.current(name)
    chips = tuple(str(entry.get("chips", "")) for entry in recommended if name in entry["models"]["supported"])
    target = (manifest.conversion.deployment_target if manifest.conversion else None) or "unknown"
    if version is not None:
        compression = manifest.compression
        comparison = compression.comparison if compression else None
        return CardVariant(version, target, chips, gate_overlap=_gate_overlap(manifest), comparison=comparison)
    size = sum(file.size_bytes for path, file in state.snapshot.files.items() if path.startswith(f"{name}/"))
    return CardVariant(PublishedVersion(name, "", "", "unknown", "unknown", None, size), target, chips, foreign=True)


def _gate_overlap(manifest: Manifest) -> tuple[int, int] | None:
    gate = manifest.compression.gate if manifest.compression else None
    return (gate.overlap, gate.examples) if gate and gate.overlap else None


def _languages(state: RepositoryState, names: Iterable[str]) -> tuple[str, ...]:
    """Return the codes that the variants' tokenizers know, empty where no variant states them."""
    found: set[str] = set()
    for name in names:
        item = state.bundles.get(name)
        file = "generation_config.json"
        config = item.bundle.read_json(file) if item else state.json_object(f"{name}/{file}")
        tokens = config.get("lang_to_id")
        codes = {str(token).strip("<|>") for token in tokens} if isinstance(tokens, Mapping) else set()
        found |= codes or ({"en"} if config else set())
    return tuple(sorted(found))

"""Publishing and withdrawing variants: what would change, and changing it in one commit.

The plan is made from the repository's present state and the bundles, and says exactly which files are added, changed
and deleted. When somebody else pushes in between, the plan is made again on the new state, unless both touch one
variant.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from whisperkit_tools.errors import BundleError, PublishError
from whisperkit_tools.manifest import MANIFEST, NO_MANIFEST, Manifest
from whisperkit_tools.publishing.card import CARD, CardModel, CardVariant, render_card
from whisperkit_tools.publishing.device_table import TABLE, DeviceTable, Variant, build_table
from whisperkit_tools.publishing.eligibility import Evidence
from whisperkit_tools.publishing.index import INDEX, Index, Version
from whisperkit_tools.publishing.provenance import commands, source_of
from whisperkit_tools.publishing.registry.base import (
    Change,
    Commit,
    ConflictError,
    Content,
    Registry,
    Snapshot,
    printable,
)
from whisperkit_tools.publishing.reports import REPORTS, report_files, split_reports
from whisperkit_tools.publishing.size_quality_chart import PICTURE, Measured, render_picture
from whisperkit_tools.publishing.variant_names import check_globs, check_together, variants_of

REBASES = 4
GATE = "quality gate"  # stands for a dataset's name where a figure is the palettization gate's own
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class PublishOptions:
    """How to publish.

    Attributes:
        create: Make the repository when it is not there.
        private: Of a repository that is made.
        pull_request: Propose the change instead of making it.
        tag: A name for the release.
        adopt: Take over a repository that another tool laid out.
        device_table: A table to take instead of the recommendation.
        with_transcripts: Publish `report.html` too, which holds the datasets' texts.
    """

    create: bool = False
    private: bool = False
    pull_request: bool = False
    tag: str | None = None
    adopt: bool = False
    device_table: Mapping[str, Any] | None = None
    with_transcripts: bool = False

    def __post_init__(self) -> None:
        """Check the tag.

        Raises:
            PublishError: It is no name, or there will be no commit to give it to.
        """
        if self.tag is None:
            return
        if not _TAG.fullmatch(self.tag) or ".." in self.tag or self.tag.endswith((".", ".lock")):
            raise PublishError(
                f"{self.tag!r} is no tag: letters, digits, '.', '_' and '-' are allowed, for example v1.0"
            )
        if self.pull_request:
            raise PublishError("a pull request has no tag yet; leave --tag away, and publish with it once it is merged")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a commit would do.

    Attributes:
        snapshot: The state it starts from.
        added: New files, with sizes.
        changed: Files with new content, with their new sizes.
        deleted: Files that go, with sizes.
        unchanged: How many files stay as they are.
        variants: That are published or withdrawn.
        change: The commit.
    """

    snapshot: Snapshot
    added: Mapping[str, int]
    changed: Mapping[str, int]
    deleted: Mapping[str, int]
    unchanged: int
    variants: tuple[str, ...]
    change: Change

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.added or self.changed or self.deleted)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was done: the last plan, and the commit, or None when nothing had to change."""

    plan: Plan
    commit: Commit | None
    rebased: int = 0


@dataclass(slots=True)
class _State:
    """The repository as it is to be: its index, and what the bundles at hand say."""

    registry: Registry
    snapshot: Snapshot
    index: Index
    evidence: dict[str, Evidence] = field(default_factory=dict)
    gone: frozenset[str] = frozenset()


def plan_publication(registry: Registry, evidence: Sequence[Evidence], options: PublishOptions, now: str) -> Plan:
    """What publishing these bundles would change.

    Args:
        registry: Where to.
        evidence: The bundles, proved.
        options: How.
        now: ISO 8601 UTC.

    Raises:
        PublishError: It may not be published there.
    """
    snapshot = registry.snapshot()
    if snapshot.commit is None and not options.create:
        raise PublishError(f"{registry.absent}; make it with --create")
    _check_owner(registry, snapshot, adopt=options.adopt)
    names = [item.bundle.name for item in evidence]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise PublishError(f"{', '.join(twice)}: given twice; a repository holds one variant of a name")
    index = Index.parse(registry.read(INDEX, snapshot))
    for item in evidence:
        index = index.published(_version(item, options, now))
    state = _State(registry, snapshot, index, {item.bundle.name: item for item in evidence})
    check_together({*variants_of(snapshot.files), *state.evidence})
    plan = _plan(state, options, _title(state))
    _check_tag(registry, plan, options.tag)
    return plan


def _check_tag(registry: Registry, plan: Plan, tag: str | None) -> None:
    """Refuse a tag that names another state, before anything is uploaded."""
    if tag is None or plan.snapshot.commit is None:
        return
    commit = registry.tags().get(tag)
    if commit is not None and (commit != plan.snapshot.commit or not plan.is_empty):
        raise PublishError(
            f"{registry.label} has a tag {tag!r} already, for {commit[:12]}; choose another name for this release"
        )


def plan_withdrawal(registry: Registry, variant: str, now: str) -> Plan:
    """What removing a variant from folder, table, card and index would change.

    Raises:
        PublishError: It is not there.
    """
    snapshot = registry.snapshot()
    if snapshot.commit is None:
        raise PublishError(registry.absent)
    _check_owner(registry, snapshot, adopt=False)
    index = Index.parse(registry.read(INDEX, snapshot))
    if index.current(variant) is not None or variant not in variants_of(snapshot.files):
        index = index.without(variant, now)  # an adopted variant of another tool is in no index
    state = _State(registry, snapshot, index, gone=frozenset({variant}))
    return _plan(state, PublishOptions(), f"Withdraw {variant}")


def carry_out(registry: Registry, make_plan: Callable[[], Plan], options: PublishOptions) -> Outcome:
    """Commit a plan; make it again when the repository has moved on.

    Args:
        registry: Where to.
        make_plan: Makes the plan on the present state.
        options: How.

    Raises:
        PublishError: The registry refuses, or somebody else changed the same variant.
    """
    plan = make_plan()  # refuses what may not be published before a repository is made for it
    if options.create and plan.snapshot.commit is None:
        registry.create(private=options.private)
        plan = make_plan()
    for rebased in range(REBASES):
        if plan.is_empty:
            _finish_tag(registry, plan, options.tag)
            return Outcome(plan, None, rebased)
        try:
            made = registry.commit(plan.change, plan.snapshot, pull_request=options.pull_request)
            return Outcome(plan, made, rebased)
        except ConflictError:
            newer = make_plan()
            _check_overlap(registry, plan, newer)
            plan = newer
    raise PublishError(f"{registry.label} changes faster than this can be committed; try again when it is quiet")


def _finish_tag(registry: Registry, plan: Plan, tag: str | None) -> None:
    """Set the tag that a command was killed before setting."""
    if tag is not None and plan.snapshot.commit is not None and tag not in registry.tags():
        registry.set_tag(tag, plan.snapshot.commit)


def _check_overlap(registry: Registry, ours: Plan, newer: Plan) -> None:
    """Refuse when what somebody else pushed is about the same variant, unless it is the same content."""
    for name in ours.variants:
        before = {path: item for path, item in ours.snapshot.files.items() if path.startswith(f"{name}/")}
        after = {path: item for path, item in newer.snapshot.files.items() if path.startswith(f"{name}/")}
        mine = {path for path in (*newer.added, *newer.changed, *newer.deleted) if path.startswith(f"{name}/")}
        if before != after and mine:
            raise PublishError(
                f"{name} was changed in {registry.label} by somebody else while this was uploaded: they committed "
                f"{_short(newer)}, ours started from {_short(ours)} and differs in {len(mine)} files; look at theirs "
                "(`wkt pull`), then publish again"
            )


def _short(plan: Plan) -> str:
    return (plan.snapshot.commit or "nothing")[:12]


def _check_owner(registry: Registry, snapshot: Snapshot, *, adopt: bool) -> None:
    """A repository that another tool laid out is not rewritten unasked."""
    if INDEX in snapshot.files or adopt:
        return
    foreign = sorted(variants_of(snapshot.files)) or [name for name in (TABLE, CARD) if name in snapshot.files]
    if foreign:
        shown = printable(", ".join(foreign[:3])) + (", ..." if len(foreign) > 3 else "")
        raise PublishError(
            f"{registry.label} was not laid out by wkt (it holds {shown} and no {INDEX}); to add to it and keep "
            "its card, table and variants in order from now on, publish with --adopt"
        )


def _title(state: _State) -> str:
    names = list(state.evidence)
    what = names[0] if len(names) == 1 else f"{len(names)} variants"
    known = set(variants_of(state.snapshot.files))
    return f"{'Update' if set(names) <= known else 'Publish'} {what}"


def _version(item: Evidence, options: PublishOptions, now: str) -> Version:
    source = source_of(item.bundle.manifest)
    return Version(
        variant=item.bundle.name,
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


def _metrics(item: Evidence) -> dict[str, dict[str, Any]]:
    """Figures in percent by kind and dataset: those of the evaluations, and the gate's QoI."""
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


def _tool_version(manifest: Manifest) -> str:
    return manifest.tool.version if manifest.tool else ""


def _percent(fraction: float | None) -> float | None:
    return None if fraction is None else round(100 * fraction, 3)


def _percents(fractions: tuple[float, float] | None) -> list[float] | None:
    return None if fractions is None else [round(100 * value, 3) for value in fractions]


def _plan(state: _State, options: PublishOptions, title: str) -> Plan:
    """Compare what is to be with what is there."""
    wanted: dict[str, Content] = {}
    for name, item in state.evidence.items():
        wanted |= {f"{name}/{path}": file for path, file in item.files().items()}
        wanted |= report_files(item, with_transcripts=options.with_transcripts)
    table = _table(state, options)
    state.index = replace(state.index, table=table.made)
    latest = state.index.latest().values()
    picture = render_picture([Measured(item.variant, item.size_bytes, item.metrics) for item in latest])
    wanted |= {TABLE: table.content, CARD: _card(state, table.content, drawn=picture is not None)}
    wanted |= {INDEX: state.index.to_bytes()} | ({} if picture is None else {PICTURE: picture})
    files = state.snapshot.files
    deletions = _outdated(state, wanted)
    check_globs(_present_variants(state), {*wanted, *files} - deletions)
    change = Change({}, title=title, description=_description(state), tag=options.tag)
    return _difference(state.snapshot, wanted, deletions, (*state.evidence, *sorted(state.gone)), change)


def _outdated(state: _State, wanted: Mapping[str, Content]) -> set[str]:
    """What goes: files that left their bundle, withdrawn variants, a picture of figures that are gone."""
    folders = tuple(f"{name}/" for name in (*state.evidence, *state.gone))
    stale = {path for path in state.snapshot.files if path.startswith(folders) and path not in wanted}
    drawn = PICTURE in state.snapshot.files and INDEX in state.snapshot.files
    return stale | ({PICTURE} if drawn and PICTURE not in wanted else set())


def _difference(snapshot: Snapshot, wanted: Mapping[str, Content], deletions: set[str], variants: Sequence[str],
                change: Change) -> Plan:  # fmt: skip
    """The plan that makes a state hold `wanted`."""
    files = snapshot.files
    fresh = {path: content for path, content in wanted.items() if path not in files or not files[path].holds(content)}
    return Plan(
        snapshot=snapshot,
        added={path: _size(content) for path, content in sorted(fresh.items()) if path not in files},
        changed={path: _size(content) for path, content in sorted(fresh.items()) if path in files},
        deleted={path: files[path].size_bytes for path in sorted(deletions)},
        unchanged=len(files) - len(deletions) - sum(path in files for path in fresh),
        variants=tuple(variants),
        change=replace(change, additions=fresh, deletions=frozenset(deletions)),
    )


def _size(content: Content) -> int:
    return content.stat().st_size if isinstance(content, Path) else len(content)


def _description(state: _State) -> str:
    lines = []
    for name in state.evidence:
        version = state.index.current(name)
        if version is not None:
            before = f", supersedes {version.supersedes[:12]}" if version.supersedes else ""
            lines.append(f"{name}: {version.size_bytes / 1e6:.1f} MB, content {version.content[:12]}{before}")
    return "\n".join(lines)


def _present_variants(state: _State) -> dict[str, list[str]]:
    there = {name: paths for name, paths in variants_of(state.snapshot.files).items() if name not in state.gone}
    return there | {name: [] for name in state.evidence}


def _table(state: _State, options: PublishOptions) -> DeviceTable:
    """The device table over all variants that will be there."""
    variants = []
    for name in sorted(_present_variants(state)):
        version = state.index.current(name)
        errors = list(version.metrics.get("wer", {}).values()) if version else []
        wer = sum(errors) / len(errors) if errors else None
        variants.append(Variant(name, _model_bytes(state, name), "_turbo" in name, wer, "_stateful" in name))
    present = state.registry.read(TABLE, state.snapshot)
    before = Index.parse(state.registry.read(INDEX, state.snapshot))
    return build_table(state.registry.name, variants, present, options.device_table, before.table)


def _model_bytes(state: _State, name: str) -> int:
    """Encoder and decoder together; of a variant that has them compiled only, those."""
    if name in state.evidence:
        return state.evidence[name].model_bytes
    sizes = {
        suffix: sum(
            file.size_bytes
            for path, file in state.snapshot.files.items()
            if path.startswith((f"{name}/AudioEncoder.{suffix}/", f"{name}/TextDecoder.{suffix}/"))
        )
        for suffix in ("mlpackage", "mlmodelc")
    }
    return sizes["mlpackage"] or sizes["mlmodelc"]


def _card(state: _State, table: bytes, *, drawn: bool) -> bytes:
    manifests = {name: _manifest(state, name) for name in _present_variants(state)}
    recommended = json.loads(table).get("device_support", [])
    variants = [_card_variant(state, name, manifests[name], recommended) for name in sorted(manifests)]
    sources = {source_of(manifest) for manifest in manifests.values() if manifest.source is not None}
    newest = max(manifests.values(), key=lambda item: item.created, default=NO_MANIFEST)
    version = _tool_version(newest)
    model = CardModel(
        repo_id=state.registry.name,
        sources=tuple(sorted(sources, key=lambda item: (item.name, item.revision or ""))),
        languages=_languages(state, manifests),
        commands=tuple(dict.fromkeys(line for name, item in manifests.items() for line in commands(name, item))),
        tools={
            **({"whisperkit-tools": version} if version else {}),
            **newest.libraries,
        },
        picture=PICTURE if drawn else None,
    )
    return render_card(model, variants, state.registry.read(CARD, state.snapshot))


def _card_variant(state: _State, name: str, manifest: Manifest, recommended: Sequence[Any]) -> CardVariant:
    version = state.index.current(name)
    chips = tuple(str(entry.get("chips", "")) for entry in recommended if name in entry["models"]["supported"])
    target = (manifest.conversion.deployment_target if manifest.conversion else None) or "unknown"
    if version is not None:
        return CardVariant(version, target, chips)
    size = sum(file.size_bytes for path, file in state.snapshot.files.items() if path.startswith(f"{name}/"))
    return CardVariant(Version(name, "", "", "unknown", "unknown", None, size), target, chips, foreign=True)


def _manifest(state: _State, name: str) -> Manifest:
    """Return a variant's manifest from the bundle at hand, or from the repository, where a damaged one is empty."""
    if name in state.evidence:
        return state.evidence[name].bundle.manifest
    path = f"{name}/{MANIFEST}"
    try:
        return Manifest.from_json(_json(state, path), path)
    except BundleError:
        return NO_MANIFEST


def _json(state: _State, path: str) -> Mapping[str, Any]:
    """A JSON object of the repository; empty where it is missing or damaged, which `wkt pull` tells."""
    try:
        value = json.loads(state.registry.read(path, state.snapshot) or b"{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _languages(state: _State, names: Iterable[str]) -> tuple[str, ...]:
    """Codes that the variants' tokenizers know; none where no variant tells, so that a card's own stay."""
    found: set[str] = set()
    for name in names:
        item = state.evidence.get(name)
        config = item.bundle.read_json("generation_config.json") if item else _json(
            state, f"{name}/generation_config.json")  # fmt: skip
        codes = {str(token).strip("<|>") for token in _tokens(config)}
        found |= codes or ({"en"} if config else set())
    return tuple(sorted(found))


def _tokens(config: Mapping[str, Any]) -> Iterable[Any]:
    tokens = config.get("lang_to_id")
    return tokens if isinstance(tokens, Mapping) else ()


def plan_reports(registry: Registry, reports: Change, options: PublishOptions) -> Plan:
    """What reports would change in a repository of their own.

    Raises:
        PublishError: It is not there.
    """
    snapshot = registry.snapshot()
    if snapshot.commit is None and not options.create:
        raise PublishError(f"{registry.absent}; make it with --create")
    return _difference(snapshot, reports.additions, set(), (), reports)


def without_reports(plan: Plan) -> Plan:
    """The plan without its reports, which go elsewhere."""
    return replace(
        plan,
        added={path: size for path, size in plan.added.items() if not path.startswith(f"{REPORTS}/")},
        changed={path: size for path, size in plan.changed.items() if not path.startswith(f"{REPORTS}/")},
        change=split_reports(plan.change)[0],
    )

"""Publishing and withdrawing variants: what would change, and changing it in one commit.

The plan is made from the repository's present state and the bundles, and says exactly which files are added, changed
and deleted. When somebody else pushes in between, the plan is made again on the new state, unless both touch one
variant.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from whisperkit_tools.bundle import MANIFEST
from whisperkit_tools.errors import PublishError
from whisperkit_tools.publish.card import CARD, CardModel, CardVariant, render_card
from whisperkit_tools.publish.device_table import TABLE, Variant, build_table
from whisperkit_tools.publish.index import INDEX, Index, Version
from whisperkit_tools.publish.names import check_together, variants_of
from whisperkit_tools.publish.proof import Evidence
from whisperkit_tools.publish.registry import Change, Commit, ConflictError, Content, Registry, Snapshot

REBASES = 4
GATE = "quality gate"  # stands for a dataset's name where a figure is the palettization gate's own
REPORTS = "reports"


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
        raise PublishError(f"{registry.label} does not exist, or this token may not see it; make it with --create")
    _check_owner(registry, snapshot, adopt=options.adopt)
    index = _read_index(registry, snapshot)
    for item in evidence:
        index = index.published(_version(item, options, now))
    state = _State(registry, snapshot, index, {item.bundle.name: item for item in evidence})
    present = set(variants_of(snapshot.files))
    check_together({*present, *state.evidence})
    return _plan(state, options, _title(state))


def plan_withdrawal(registry: Registry, variant: str, now: str) -> Plan:
    """What removing a variant from folder, table, card and index would change.

    Raises:
        PublishError: It is not there.
    """
    snapshot = registry.snapshot()
    if snapshot.commit is None:
        raise PublishError(f"{registry.label} does not exist, or this token may not see it")
    _check_owner(registry, snapshot, adopt=False)
    index = _read_index(registry, snapshot).without(variant, now)
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
    if options.create:
        registry.create(private=options.private)
    plan = make_plan()
    for rebased in range(REBASES):
        if plan.is_empty:
            return Outcome(plan, None, rebased)
        try:
            return Outcome(
                plan, registry.commit(plan.change, plan.snapshot, pull_request=options.pull_request), rebased
            )
        except ConflictError:
            newer = make_plan()
            _check_overlap(registry, plan, newer)
            plan = newer
    raise PublishError(f"{registry.label} changes faster than this can be committed; try again when it is quiet")


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
        shown = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
        raise PublishError(
            f"{registry.label} was not laid out by wkt (it holds {shown} and no {INDEX}); to add to it and keep its "
            "card, table and variants in order from now on, pass --adopt"
        )


def _read_index(registry: Registry, snapshot: Snapshot) -> Index:
    return Index.parse(registry.read(INDEX, snapshot))


def _title(state: _State) -> str:
    names = list(state.evidence)
    what = names[0] if len(names) == 1 else f"{len(names)} variants"
    known = set(variants_of(state.snapshot.files))
    return f"{'Update' if set(names) <= known else 'Publish'} {what}"


def _version(item: Evidence, options: PublishOptions, now: str) -> Version:
    manifest = item.bundle.manifest
    source = manifest.get("source", {})
    org, model = source.get("org"), source.get("model")
    return Version(
        variant=item.bundle.name,
        content=item.content,
        created=now,
        tool_version=str(manifest.get("tool", {}).get("version", "unknown")),
        source=f"{org}/{model}" if org and model else str(source.get("name", "unknown")),
        source_revision=source.get("revision"),
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
    qoi = (item.bundle.manifest.get("compression") or {}).get("gate", {}).get("qoi")
    if isinstance(qoi, dict):
        add("qoi", GATE, round(qoi["value"], 3))
        add("qoi_interval", GATE, [round(qoi["low"], 3), round(qoi["high"], 3)])
    return found


def _percent(fraction: float | None) -> float | None:
    return None if fraction is None else round(100 * fraction, 3)


def _percents(fractions: tuple[float, float] | None) -> list[float] | None:
    return None if fractions is None else [round(100 * value, 3) for value in fractions]


def _plan(state: _State, options: PublishOptions, title: str) -> Plan:
    """Compare what is to be with what is there."""
    wanted: dict[str, Content] = {}
    for name, item in state.evidence.items():
        wanted |= {f"{name}/{path}": file for path, file in item.files().items()}
        wanted |= _reports(item, options)
    table = _table(state, options)
    wanted |= {TABLE: table, CARD: _card(state, table), INDEX: state.index.to_bytes()}
    files = state.snapshot.files
    folders = [f"{name}/" for name in (*state.evidence, *state.gone)]
    deletions = {path for path in files if path not in wanted and any(path.startswith(folder) for folder in folders)}
    fresh = {path: content for path, content in wanted.items() if path not in files or not files[path].holds(content)}
    return Plan(
        snapshot=state.snapshot,
        added={path: _size(content) for path, content in sorted(fresh.items()) if path not in files},
        changed={path: _size(content) for path, content in sorted(fresh.items()) if path in files},
        deleted={path: files[path].size_bytes for path in sorted(deletions)},
        unchanged=len(files) - len(deletions) - sum(path in files for path in fresh),
        variants=(*state.evidence, *sorted(state.gone)),
        change=Change(fresh, frozenset(deletions), title, _description(state), options.tag),
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


def _reports(item: Evidence, options: PublishOptions) -> dict[str, Content]:
    """The evaluations' files under `reports/<dataset>/<variant>/<date>-<content>/`."""
    names = ["report.json", "report.md", *(["report.html"] if options.with_transcripts else [])]
    found: dict[str, Content] = {}
    for dataset, folder in item.report_folders.items():
        safe = "".join(character if character.isalnum() or character in "-_" else "-" for character in dataset)
        day = item.reports[dataset].finished[:10]
        base = f"{REPORTS}/{safe.strip('-') or 'dataset'}/{item.bundle.name}/{day}-{item.content[:8]}"
        found |= {f"{base}/{name}": folder / name for name in names if (folder / name).is_file()}
    return found


def _present_variants(state: _State) -> dict[str, list[str]]:
    there = {name: paths for name, paths in variants_of(state.snapshot.files).items() if name not in state.gone}
    return there | {name: [] for name in state.evidence}


def _table(state: _State, options: PublishOptions) -> bytes:
    """The device table over all variants that will be there."""
    variants = []
    for name, paths in sorted(_present_variants(state).items()):
        item, version = state.evidence.get(name), state.index.current(name)
        if item is not None:
            size = item.model_bytes
        else:
            inside = (f"{name}/AudioEncoder.mlpackage/", f"{name}/TextDecoder.mlpackage/")
            size = sum(state.snapshot.files[path].size_bytes for path in paths if path.startswith(inside))
        errors = list(version.metrics.get("wer", {}).values()) if version else []
        wer = sum(errors) / len(errors) if errors else None
        variants.append(Variant(name, size, "_turbo" in name, wer))
    present = state.registry.read(TABLE, state.snapshot)
    return build_table(state.registry.name, variants, present, options.device_table)


def _card(state: _State, table: bytes) -> bytes:
    manifests = {name: _manifest(state, name) for name in state.index.latest()}
    recommended = json.loads(table).get("device_support", [])
    variants = [
        CardVariant(
            version,
            str(manifests[name].get("conversion", {}).get("deployment_target", "unknown")),
            tuple(str(entry.get("chips", "")) for entry in recommended if name in entry["models"]["supported"]),
        )
        for name, version in state.index.latest().items()
    ]
    return render_card(_card_model(state, manifests), variants, state.registry.read(CARD, state.snapshot))


def _manifest(state: _State, name: str) -> Mapping[str, Any]:
    """A variant's manifest: of the bundle at hand, else of the repository."""
    if name in state.evidence:
        return state.evidence[name].bundle.manifest
    content = state.registry.read(f"{name}/{MANIFEST}", state.snapshot)
    try:
        value = json.loads(content or b"{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _card_model(state: _State, manifests: Mapping[str, Mapping[str, Any]]) -> CardModel:
    sources = [item.get("source", {}) for item in manifests.values()]
    latest = list(state.index.latest().values())
    first: Mapping[str, Any] = next((item for item in sources if item), {})
    tools = next((item for item in manifests.values() if item.get("tool")), {})
    return CardModel(
        repo_id=state.registry.name,
        base_model=latest[0].source if latest else "unknown",
        base_revision=latest[0].source_revision if latest else None,
        license=first.get("license"),
        languages=_languages(state),
        commands=tuple(dict.fromkeys(line for name, item in manifests.items() for line in commands(name, item))),
        tools={"whisperkit-tools": str(tools.get("tool", {}).get("version", "unknown")), **tools.get("libraries", {})},
    )


def commands(variant: str, manifest: Mapping[str, Any]) -> list[str]:
    """The commands that make a bundle like this one."""
    conversion, source = manifest.get("conversion", {}), manifest.get("source", {})
    name = f"{source['org']}/{source['model']}" if {"org", "model"} <= source.keys() else source.get("name", "SOURCE")
    if source.get("name") == "demo":
        name = "demo"
    parts = ["wkt convert", str(name)]
    if source.get("revision") and name != "demo":
        parts.append(f"--revision {source['revision']}")
    parts += ["--turbo"] if conversion.get("turbo") else []
    parts += ["--stateful"] if conversion.get("stateful") else []
    parts += [f"--deployment-target {conversion['deployment_target']}"] if conversion.get("deployment_target") else []
    made = [" ".join(parts)]
    compression = manifest.get("compression")
    if compression:
        original = compression.get("original", {}).get("name", "BUNDLE")
        made.append(f"wkt palettize bundles/{original} --target-size {compression.get('nbytes', 0)}  # gives {variant}")
    return made


def _languages(state: _State) -> tuple[str, ...]:
    """Language codes of the first bundle at hand; those of an untouched card stay as they are."""
    for item in state.evidence.values():
        ids = item.bundle.read_json("generation_config.json").get("lang_to_id", {})
        return tuple(sorted(str(token).strip("<|>") for token in ids)) or ("en",)
    return ()


def with_reports_apart(plan: Plan) -> tuple[Plan, Change]:
    """The plan without its reports, and a change that puts these into another repository."""
    apart = {path: content for path, content in plan.change.additions.items() if path.startswith(f"{REPORTS}/")}
    additions = {path: content for path, content in plan.change.additions.items() if path not in apart}
    change = replace(plan.change, additions=additions)
    kept = replace(
        plan,
        added={path: size for path, size in plan.added.items() if path not in apart},
        changed={path: size for path, size in plan.changed.items() if path not in apart},
        change=change,
    )
    return kept, Change(apart, frozenset(), f"Reports: {plan.change.title}", plan.change.description)


def publish_reports(registry: Registry, change: Change, options: PublishOptions) -> Commit | None:
    """Put reports into a repository of their own; None when all of them are there.

    Raises:
        PublishError: The registry refuses, or is not there.
    """
    if options.create:
        registry.create(private=options.private)
    for _ in range(REBASES):
        snapshot = registry.snapshot()
        if snapshot.commit is None:
            raise PublishError(f"{registry.label} does not exist, or this token may not see it; make it with --create")
        files = snapshot.files
        fresh = {
            path: content
            for path, content in change.additions.items()
            if path not in files or not files[path].holds(content)
        }
        if not fresh:
            return None
        try:
            return registry.commit(replace(change, additions=fresh), snapshot, pull_request=options.pull_request)
        except ConflictError:
            continue
    raise PublishError(f"{registry.label} changes faster than this can be committed; try again when it is quiet")

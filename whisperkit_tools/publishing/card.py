"""The model card: `README.md` with metadata that the Hub understands, and sections that wkt keeps up to date.

A section stands between two comments. Text outside of them survives, as do metadata that people add. Whatever comes
from outside (names, licences, reasons, labels of figures) is escaped.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from whisperkit_tools.compression_records import ComparedSizeRecord, ComparisonRecord
from whisperkit_tools.errors import PublishError
from whisperkit_tools.eval.reports.format import markdown_text
from whisperkit_tools.front_matter import FrontMatterError, split_front_matter
from whisperkit_tools.publishing.index import PublishedVersion
from whisperkit_tools.publishing.provenance import PublishedSource, command_line

CARD = "README.md"
SECTIONS = ("about", "variants", "use", "made")
_LEGEND = (
    "WER: word error rate. QoI: share of examples on which the variant is no worse than its reference. In parentheses: "
    "95% intervals. Speed is that of the machine that measured, not of a phone."
)
_COLUMNS = (("wer", "WER {} (%)", 2), ("qoi", "QoI {} (%)", 1), ("rtfx", "Speed {} (x real time)", 1))
_SYSTEMS = {"ios16": "iOS 16, macOS 13", "ios17": "iOS 17, macOS 14", "ios18": "iOS 18, macOS 15"}
_COMPARISON = (
    "KL divergence from the uncompressed model in nats a token (lower is better), and the size of encoder and decoder: "
    "of each variant, and of the same weights in the block formats of ggml and whisper.cpp, on the same speech."
)
_OURS = ("coreml", "whisper", "asr", "quantized")  # tags
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class CardVariant:
    """A variant in the card.

    Attributes:
        version: Its entry in the index.
        deployment_target: The oldest system that loads it.
        chips: Chip families to which the device table recommends it.
        foreign: Whether another tool published it, so that only its name and size are known.
        gate_overlap: Examples of its quality gate that it was also calibrated on, and all of them. None where there
            are none, or where it is not known.
        comparison: Its divergence beside that of ggml's block formats. None where it was not measured.
    """

    version: PublishedVersion
    deployment_target: str
    chips: tuple[str, ...] = ()
    foreign: bool = False
    gate_overlap: tuple[int, int] | None = None
    comparison: ComparisonRecord | None = None


@dataclass(frozen=True, slots=True)
class CardModel:
    """The source of the variants, and how they were made.

    Attributes:
        repo_id: Id of the published repository, or the folder's name for a local one.
        sources: The checkpoints that the variants were made from.
        languages: Codes of the languages that the tokenizers know.
        commands: Commands that make the variants.
        tools: Versions of wkt and the libraries.
        chart: Path of the chart of size and quality in the repository, if there is one.
    """

    repo_id: str
    sources: tuple[PublishedSource, ...]
    languages: tuple[str, ...]
    commands: tuple[str, ...]
    tools: Mapping[str, str]
    chart: str | None = None


def render_card(model: CardModel, variants: Sequence[CardVariant], present: bytes | None) -> bytes:
    """Return the card of a repository.

    Args:
        model: The source and how the variants were made.
        variants: All variants.
        present: The present card, or None. What is outside the sections survives.

    Raises:
        PublishError: The present card cannot be read, or its sections are broken.
    """
    text = _decode(present)
    metadata, body = _split(text)
    merged = {**metadata, **_metadata(model, variants, metadata)}
    results = _model_index(model, variants, metadata)
    merged.pop("model-index", None)
    merged |= {"model-index": results} if results else {}
    if not body.strip():
        body = f"# {markdown_text(model.repo_id.rsplit('/', maxsplit=1)[-1])}\n"
    for name, content in zip(SECTIONS, _contents(model, variants), strict=True):
        body = _replace(body, name, content)
    front = yaml.safe_dump(merged, sort_keys=False, allow_unicode=True, width=1000)
    return f"---\n{front}---\n{body}".encode()


def _decode(present: bytes | None) -> str:
    try:
        return (present or b"").decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise PublishError(f"the repository's {CARD} is not UTF-8 ({error}); repair it first") from error


def _split(text: str) -> tuple[dict[str, Any], str]:
    try:
        return split_front_matter(text)
    except FrontMatterError as error:
        raise PublishError(
            f"the metadata of the repository's {CARD} cannot be read ({error}); repair them first"
        ) from error


def _metadata(model: CardModel, variants: Sequence[CardVariant], present: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata that wkt keeps up to date. A licence and tags that people wrote stay."""
    compressed = any(re.search(r"_\d+MB$", item.version.variant) for item in variants)
    wanted = _OURS if compressed else _OURS[:-1]
    tags = present.get("tags") or ()
    theirs = [str(tag) for tag in ([tags] if isinstance(tags, str) else tags) if tag not in _OURS]
    licences = sorted({source.license for source in model.sources if source.license})
    made: dict[str, Any] = {
        "library_name": "whisperkit",
        "pipeline_tag": "automatic-speech-recognition",
        "license": present.get("license") or (_license(licences[0]) if len(licences) == 1 else "other"),
        "tags": [*theirs, *wanted],
    }
    bases = _bases(model)
    if bases:
        made["base_model"] = bases[0] if len(bases) == 1 else bases
        # The Hub knows finetune, adapter, merge and quantized. A converted float16 copy counts as the last one, too.
        made["base_model_relation"] = "quantized"
    if model.languages:
        made["language"] = list(model.languages)
    return made


def _bases(model: CardModel) -> list[str]:
    """Return the sources that are on the Hub: those with a commit there, not local folders."""
    return sorted({item.name for item in model.sources if item.revision and _HUB_ID.fullmatch(item.name)})


def _model_index(model: CardModel, variants: Sequence[CardVariant], present: Mapping[str, Any]) -> list[Any]:
    """Return the measured results, and entries of `model-index` that people made under other names."""
    name = model.repo_id.rsplit("/", maxsplit=1)[-1]
    there = present.get("model-index")
    theirs = [item for item in there if not isinstance(item, dict) or item.get("name") != name] if isinstance(
        there, list) else []  # fmt: skip
    results = _results(variants)
    return [*theirs, *([{"name": name, "results": results}] if results else [])]


def _license(name: str | None) -> str:
    """Return a licence as the Hub names them: one lower-case word."""
    return re.sub(r"[^a-z0-9.+-]+", "-", (name or "other").lower()).strip("-")[:64] or "other"


def _results(variants: Sequence[CardVariant]) -> list[dict[str, Any]]:
    """Return the WER in percent of each variant on each dataset, in the form of the Hub's `model-index`."""
    return [
        {
            "task": {"type": "automatic-speech-recognition", "name": "Automatic Speech Recognition"},
            "dataset": {"name": dataset, "type": dataset},
            "metrics": [{"type": "wer", "value": round(value, 2), "name": f"WER of {item.version.variant}"}],
        }
        for item in variants
        for dataset, value in sorted(item.version.metrics.get("wer", {}).items())
    ]


def _replace(body: str, name: str, content: str) -> str:
    begin, end = f"<!-- wkt:begin {name} -->", f"<!-- wkt:end {name} -->"
    if (body.count(begin), body.count(end)) not in ((0, 0), (1, 1)) or (
        begin in body and body.index(end) < body.index(begin)
    ):
        raise PublishError(
            f"the repository's {CARD} has a broken section: it needs exactly one {begin!r} and one {end!r} after it"
        )
    section = f"{begin}\n{content.strip()}\n{end}"
    if begin not in body:
        return f"{body.rstrip()}\n\n{section}\n"
    return body[: body.index(begin)] + section + body[body.index(end) + len(end) :]


def _contents(model: CardModel, variants: Sequence[CardVariant]) -> list[str]:
    return [_about(model), _table(model, variants), _use(model, variants), _made(model, variants)]


def _about(model: CardModel) -> str:
    sources = ", ".join(map(_source, model.sources)) or "Whisper models"
    return (
        f"Core ML models of {sources}, for speech recognition on Apple silicon. Each folder is a variant that an app "
        "downloads and runs as it is."
    )


def _source(source: PublishedSource) -> str:
    text = markdown_text(source.name)
    if source.revision and _HUB_ID.fullmatch(source.name):
        text = f"[{text}](https://huggingface.co/{_url(source.name)})"
    revision = f", revision `{_code(source.revision)}`" if source.revision else ""
    licence = f", licence {markdown_text(source.license)}" if source.license else ""
    about = f"{revision}{licence}"
    return f"{text} ({about.removeprefix(', ')})" if about else text


def _table(model: CardModel, variants: Sequence[CardVariant]) -> str:
    columns = _columns(variants)
    headings = ["Variant", "Size (MB)", *(heading.format(markdown_text(name)) for name, _, heading, _ in columns)]
    rule = ["---", *["---:"] * (len(headings) - 1), "---", "---"]
    rows = [
        [
            f"`{_code(item.version.variant)}`",
            f"{item.version.size_bytes / 1e6:.1f}",
            *(_figure(item.version.metrics, kind, name, digits) for name, kind, _, digits in columns),
            markdown_text(_SYSTEMS.get(item.deployment_target, item.deployment_target)),
            markdown_text(", ".join(item.chips) or "-"),
        ]
        for item in variants
    ]
    lines = ["## Variants", "", _row([*headings, "Needs", "Chips"]), _row(rule), *map(_row, rows)]
    lines += _notes(variants)
    if columns:
        lines += ["", _LEGEND]
    if model.chart:
        lines += ["", f"![Size and quality of the variants]({_url(model.chart)})"]
    return "\n".join([*lines, *_comparison(variants)])


def _comparison(variants: Sequence[CardVariant]) -> list[str]:
    """Return a table of the variants beside ggml's block formats, after an empty line. Empty without figures."""
    compared = [(item.version.variant, item.comparison) for item in variants if item.comparison is not None]
    names = list(dict.fromkeys(one.name for _, found in compared for one in found.block_formats))
    if not names:
        return []
    rows = []
    for variant, found in compared:
        theirs = {one.name: _size_and_divergence(one) for one in found.block_formats}
        rows.append(
            [f"`{_code(variant)}`", _size_and_divergence(found.chosen), *(theirs.get(name, "-") for name in names)]
        )
    heading = ["Variant", "As published", *(f"ggml {markdown_text(name)}" for name in names)]
    return ["", _COMPARISON, "", _row(heading), _row(["---", *["---:"] * (len(heading) - 1)]), *map(_row, rows)]


def _size_and_divergence(one: ComparedSizeRecord | None) -> str:
    return "-" if one is None or one.kl is None else f"{one.kl:.4f} ({one.nbytes / 1e6:.1f} MB)"


def _notes(variants: Sequence[CardVariant]) -> list[str]:
    """Return what readers must know about single variants, after an empty line."""
    notes = [
        f"- `{_code(item.version.variant)}` was published without its proof: {markdown_text(item.version.unproven)}"
        for item in variants
        if item.version.unproven
    ]
    notes += [
        f"- `{_code(item.version.variant)}`: {item.gate_overlap[0]} of the {item.gate_overlap[1]} examples of its "
        "quality gate are from recordings that it was also calibrated or tuned on"
        for item in variants
        if item.gate_overlap
    ]
    notes += [
        f"- `{_code(item.version.variant)}` keeps the decoder's caches as states: it needs iOS 18 or macOS 15, and "
        "WhisperKit does not load it today"
        for item in variants
        if "_stateful" in item.version.variant
    ]
    notes += [
        f"- `{_code(item.version.variant)}` was published by another tool, so it is not known how it was made"
        for item in variants
        if item.foreign
    ]
    return ["", *notes] if notes else []


def _columns(variants: Sequence[CardVariant]) -> list[tuple[str, str, str, int]]:
    """Return dataset, kind, heading and digits of each figure that any variant has."""
    metrics = [item.version.metrics for item in variants]
    datasets = sorted({name for item in metrics for kind, _, _ in _COLUMNS for name in item.get(kind, {})})
    return [
        (name, kind, heading, digits)
        for name in datasets
        for kind, heading, digits in _COLUMNS
        if any(name in item.get(kind, {}) for item in metrics)
    ]


def _figure(metrics: Mapping[str, Any], kind: str, dataset: str, digits: int) -> str:
    value = metrics.get(kind, {}).get(dataset)
    if value is None:
        return "-"
    interval = metrics.get(f"{kind}_interval", {}).get(dataset)
    around = f" ({interval[0]:.{digits}f}-{interval[1]:.{digits}f})" if interval else ""
    return f"{value:.{digits}f}{around}"


def _use(model: CardModel, variants: Sequence[CardVariant]) -> str:
    if not variants:
        return "## How to use\n\nThere is no variant at present. Earlier revisions of this repository have some."
    runnable = [item.version.variant for item in variants if "_stateful" not in item.version.variant]
    name, repo = _code((runnable or [variants[0].version.variant])[0]), _code(model.repo_id)
    on_hub = _HUB_ID.fullmatch(model.repo_id) is not None
    where = f'model: "{name}", modelRepo: "{repo}"' if on_hub else f'modelFolder: "{repo}/{name}", download: false'
    return "\n".join([
        "## How to use",
        "",
        "In an app, with [WhisperKit](https://github.com/argmaxinc/argmax-oss-swift):",
        "",
        "```swift",
        "import WhisperKit",
        "",
        f"let config = WhisperKitConfig({where})",
        "let pipe = try await WhisperKit(config)",
        'let results = try await pipe.transcribe(audioPath: "audio.m4a")',
        "```",
        "",
        "On any machine, with whisperkit-tools:",
        "",
        "```",
        f"wkt pull {'' if on_hub else './'}{repo} {name}",
        command_line("transcribe", "audio.m4a", options=[("bundle", f"bundles/{name}")]),
        "```",
    ])  # fmt: skip


def _made(model: CardModel, variants: Sequence[CardVariant]) -> str:
    lines = ["## How it was made", ""]
    if model.commands:
        lines += ["```", *(_code(command) for command in model.commands), "```", ""]
    tools = [f"{markdown_text(name)} {markdown_text(text)}" for name, text in sorted(model.tools.items())]
    lines += [f"With {', '.join(tools)}.", ""] if tools else []
    lines += ["| Variant | Made from | sha256 of its content |", "| --- | --- | --- |"]
    for item in variants:
        revision = item.version.source_revision
        source = f"{markdown_text(item.version.source)}{f' at `{_code(revision[:12])}`' if revision else ''}"
        content = f"`{_code(item.version.content[:16])}`" if item.version.content else "-"
        lines.append(_row([f"`{_code(item.version.variant)}`", source, content]))
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _code(text: str) -> str:
    """Return text for a code span, block or table cell, without what ends one, starts a comment, or is invisible."""
    return "".join(character for character in text if character.isprintable() and character not in "`|<>")


def _url(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._~/-]", "", text)

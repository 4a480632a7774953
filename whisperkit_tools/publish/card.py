"""The model card: `README.md` with metadata that the Hub understands, and sections that wkt keeps up to date.

A section stands between two comments; what people write outside of them survives, as do metadata of their own. Whatever
comes from outside (names, licences, reasons, figures' labels) is escaped.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from whisperkit_tools.errors import PublishError
from whisperkit_tools.eval.report_format import markdown_text
from whisperkit_tools.publish.index import Version

CARD = "README.md"
SECTIONS = ("about", "variants", "use", "made")
_LEGEND = (
    "WER: word error rate. QoI: share of examples on which the variant is no worse than its reference. In parentheses: "
    "95% intervals. Speed is that of the machine that measured, not of a phone."
)
_FRONT = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)


@dataclass(frozen=True, slots=True)
class CardVariant:
    """What the card says of one variant.

    Attributes:
        version: Its entry in the index.
        deployment_target: Oldest system that loads it.
        chips: Families to which the device table recommends it.
    """

    version: Version
    deployment_target: str
    chips: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CardModel:
    """What the card says of the source.

    Attributes:
        repo_id: Of the published repository; the folder's name for a local one.
        base_model: `ORG/NAME` of the source.
        base_revision: Its commit.
        license: Its licence, as the source names it.
        languages: Codes that the tokenizer knows.
        commands: How the variants were made.
        tools: Versions of wkt and the libraries.
        picture: Path of a picture of size and quality in the repository.
    """

    repo_id: str
    base_model: str
    base_revision: str | None
    license: str | None
    languages: tuple[str, ...]
    commands: tuple[str, ...]
    tools: Mapping[str, str]
    picture: str | None = None


def render_card(model: CardModel, variants: Sequence[CardVariant], present: bytes | None) -> bytes:
    """The card for the variants that are there.

    Args:
        model: The source and how the variants were made.
        variants: All of them.
        present: The card that is there; what is outside the sections survives.

    Raises:
        PublishError: The present card cannot be read, or its sections are broken.
    """
    text = _decode(present)
    metadata, body = _split(text)
    merged = {**metadata, **_metadata(model, variants, metadata)}
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
        raise PublishError(f"the repository's {CARD} is not UTF-8 ({error}); mend it first") from error


def _split(text: str) -> tuple[dict[str, Any], str]:
    found = _FRONT.match(text)
    if found is None:
        return {}, text
    try:
        metadata = yaml.safe_load(found[1]) or {}
    except yaml.YAMLError as error:
        raise PublishError(
            f"the metadata of the repository's {CARD} are not YAML ({error}); mend them first"
        ) from error
    if not isinstance(metadata, dict):
        raise PublishError(f"the metadata of the repository's {CARD} are no mapping; mend them first")
    return metadata, text[found.end() :]


def _metadata(model: CardModel, variants: Sequence[CardVariant], present: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata that we keep up to date; a licence and tags that people wrote stay."""
    wanted = ["coreml", "whisper", "asr", *(["quantized"] if _any_compressed(variants) else [])]
    tags = [str(tag) for tag in present.get("tags") or ()]
    made: dict[str, Any] = {
        "library_name": "whisperkit",
        "pipeline_tag": "automatic-speech-recognition",
        "license": present.get("license") or _license(model.license),
        "tags": list(dict.fromkeys([*tags, *wanted])),
    }
    if "/" in model.base_model:
        made["base_model"] = model.base_model
        # The Hub knows finetune, adapter, merge and quantized; a converted float16 copy is the last of them, too.
        made["base_model_relation"] = "quantized"
    if model.languages:
        made["language"] = list(model.languages)
    results = _results(model, variants)
    if results:
        made["model-index"] = [{"name": model.repo_id.rsplit("/", maxsplit=1)[-1], "results": results}]
    return made


def _license(name: str | None) -> str:
    """A licence as the Hub names them: one lower-case word."""
    return re.sub(r"[^a-z0-9.+-]+", "-", (name or "other").lower()).strip("-")[:64] or "other"


def _any_compressed(variants: Sequence[CardVariant]) -> bool:
    return any(item.version.variant.endswith("MB") for item in variants)


def _results(model: CardModel, variants: Sequence[CardVariant]) -> list[dict[str, Any]]:
    """WER in percent of each variant on each dataset, as the Hub's `model-index` has them."""
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
            f"the repository's {CARD} has a broken section: one {begin!r} and one {end!r} after it belong together"
        )
    section = f"{begin}\n{content.strip()}\n{end}"
    if begin not in body:
        return f"{body.rstrip()}\n\n{section}\n"
    return body[: body.index(begin)] + section + body[body.index(end) + len(end) :]


def _contents(model: CardModel, variants: Sequence[CardVariant]) -> list[str]:
    return [_about(model), _table(model, variants), _use(model, variants), _made(model, variants)]


def _about(model: CardModel) -> str:
    source = markdown_text(model.base_model)
    if "/" in model.base_model:
        source = f"[{source}](https://huggingface.co/{_url(model.base_model)})"
    revision = f", revision `{_code(model.base_revision)}`" if model.base_revision else ""
    return (
        f"Core ML models of {source}{revision}, for speech recognition on Apple silicon. Each folder is a variant that "
        "an app downloads and runs as it is."
    )


def _table(model: CardModel, variants: Sequence[CardVariant]) -> str:
    datasets = sorted(
        {name for item in variants for kind in ("wer", "qoi") for name in item.version.metrics.get(kind, {})}
    )
    headings = ["Variant", "Size (MB)"]
    for name in map(markdown_text, datasets):
        headings += [f"WER {name} (%)", f"QoI {name} (%)", f"Speed {name} (x real time)"]
    rule = ["---", *["---:"] * (len(headings) - 1), "---", "---"]
    rows = [
        [
            f"`{_code(item.version.variant)}`",
            f"{item.version.size_bytes / 1e6:.1f}",
            *_figures(item, datasets),
            markdown_text(item.deployment_target),
            markdown_text(", ".join(item.chips) or "-"),
        ]
        for item in variants
    ]
    lines = ["## Variants", "", _row([*headings, "Needs", "Recommended for"]), _row(rule), *map(_row, rows)]
    lines += _notes(variants)
    if datasets:
        lines += ["", _LEGEND]
    if model.picture:
        lines += ["", f"![Size and quality of the variants]({_url(model.picture)})"]
    return "\n".join(lines)


def _notes(variants: Sequence[CardVariant]) -> list[str]:
    """What readers must know of single variants, after an empty line."""
    notes = [
        f"- `{_code(item.version.variant)}` was published without its proof: {markdown_text(item.version.unproven)}"
        for item in variants
        if item.version.unproven
    ]
    return ["", *notes] if notes else []


def _figures(item: CardVariant, datasets: Sequence[str]) -> list[str]:
    metrics, cells = item.version.metrics, []
    for name in datasets:
        cells += [_figure(metrics, "wer", name, 2), _figure(metrics, "qoi", name, 1)]
        speed = metrics.get("rtfx", {}).get(name)
        cells.append("-" if speed is None else f"{speed:.1f}")
    return cells


def _figure(metrics: Mapping[str, Any], kind: str, dataset: str, digits: int) -> str:
    value = metrics.get(kind, {}).get(dataset)
    if value is None:
        return "-"
    interval = metrics.get(f"{kind}_interval", {}).get(dataset)
    around = f" ({interval[0]:.{digits}f}-{interval[1]:.{digits}f})" if interval else ""
    return f"{value:.{digits}f}{around}"


def _use(model: CardModel, variants: Sequence[CardVariant]) -> str:
    name = variants[0].version.variant if variants else "VARIANT"
    return "\n".join([
        "## How to use",
        "",
        "In an app, with [WhisperKit](https://github.com/argmaxinc/argmax-oss-swift):",
        "",
        "```swift",
        "import WhisperKit",
        "",
        f'let config = WhisperKitConfig(model: "{_code(name)}", modelRepo: "{_code(model.repo_id)}")',
        "let pipe = try await WhisperKit(config)",
        'let results = try await pipe.transcribe(audioPath: "audio.m4a")',
        "```",
        "",
        "On any machine, with whisperkit-tools:",
        "",
        "```",
        f"wkt pull {_code(model.repo_id)} {_code(name)}",
        f"wkt transcribe --bundle bundles/{_code(name)} audio.m4a",
        "```",
    ])  # fmt: skip


def _made(model: CardModel, variants: Sequence[CardVariant]) -> str:
    lines = ["## How it was made", "", "```", *(_code(command) for command in model.commands), "```", ""]
    lines.append(
        "With "
        + ", ".join(f"{markdown_text(name)} {markdown_text(text)}" for name, text in sorted(model.tools.items()))
        + "."
    )
    lines += ["", "| Variant | Made from | sha256 of its content |", "| --- | --- | --- |"]
    for item in variants:
        revision = item.version.source_revision
        source = f"{markdown_text(item.version.source)}{f' at `{_code(revision[:12])}`' if revision else ''}"
        lines.append(_row([f"`{_code(item.version.variant)}`", source, f"`{_code(item.version.content[:16])}`"]))
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _code(text: str) -> str:
    """Text for a code span or block: nothing that ends it, no line breaks, no invisible characters."""
    return "".join(character for character in text if character.isprintable() and character != "`")


def _url(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._~/-]", "", text)

"""`report.html`: one file that opens anywhere, asks the network for nothing, and takes transcripts for hostile input.

What Python knows is laid out by the template, escaped by Jinja. The examples are JSON in a script element that is not
executed, put on the page by the script as text nodes only. A content security policy lets no other script run.
"""

import base64
import functools
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from whisperkit_tools.eval.reports import format as formats
from whisperkit_tools.eval.reports import page as report_page
from whisperkit_tools.eval.reports.charts import linear_axis
from whisperkit_tools.eval.reports.comparison import Comparison
from whisperkit_tools.eval.reports.examples import json_in_script, page_examples
from whisperkit_tools.eval.reports.read import ReadRun

TEMPLATES = Path(__file__).parent / "templates"
DEFAULT_EXAMPLES_LIMIT = 20_000
DEFAULT_EMBED_BYTES = 64_000_000
SERIES_STYLES = 8  # colours and shapes in report.css and report.html
LISTED = 200


@dataclass(frozen=True, slots=True)
class PageConfig:
    """What goes into the page.

    Attributes:
        title: Heading; made from the runs when None.
        embed_audio: Whether audio files go into the page, those of the worst examples first.
        embed_bytes: Of them at most.
        examples_limit: Examples that the page holds at most, the worst first.
    """

    title: str | None = None
    embed_audio: bool = False
    embed_bytes: int = DEFAULT_EMBED_BYTES
    examples_limit: int = DEFAULT_EXAMPLES_LIMIT

    def __post_init__(self) -> None:
        """Raise `ValueError` for a limit that leaves nothing."""
        if self.embed_bytes < 1 or self.examples_limit < 1:
            raise ValueError("embed_bytes and examples_limit must be positive")


def render_html(
    runs: Sequence[ReadRun], comparisons: Sequence[Comparison], folder: Path, config: PageConfig | None = None
) -> str:
    """Write the page.

    Args:
        runs: One run, or several over the same dataset; the first is the baseline.
        comparisons: Of the others with it.
        folder: Where the page will be, for the addresses of audio files.
        config: Standard values when None.

    Returns:
        The whole file. Half characters, which JSON can hold and UTF-8 cannot, are written as JavaScript's escapes.
    """
    config = config or PageConfig()
    environment = _environment()
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    examples = page_examples(
        runs, folder, limit=config.examples_limit, embed_bytes=config.embed_bytes if config.embed_audio else 0
    )
    text = environment.get_template("report.html").render(
        **_context(runs, comparisons),
        title=config.title or heading(runs),
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),  # ours, and no input is in it
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        examples=examples,
        data=Markup(json_in_script(examples.data)),  # escaped for a script element by json_in_script
    )
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")


def heading(runs: Sequence[ReadRun]) -> str:
    """The report's heading, from its runs."""
    if len(runs) == 1:
        return runs[0].report.name
    if len(runs) == 2:
        return f"{runs[1].report.name} against {runs[0].report.name}"
    models = {run.report.backend.model for run in runs}
    return f"{len(runs)} runs" + (f" of {models.pop()}" if len(models) == 1 else " compared")


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    environment.filters.update(
        percent=formats.percent,
        points=formats.points,
        points_interval=formats.points_interval,
        interval=formats.interval,
        duration=formats.duration,
        count=formats.count,
        fact=formats.fact,
        time_of=formats.time_of,
        breakable=_breakable,
    )
    return environment


def _finalize(value: Any) -> Any:
    """All text on the page shows its direction overrides; what is marked as markup is ours."""
    return formats.visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _breakable(name: str) -> Markup:
    """A name, escaped, that may be broken after its marks on a narrow screen."""
    parts = re.split(r"(?<=[_/.-])", formats.visible(name))
    return Markup("<wbr>").join(parts)  # joining escapes the parts


def _context(runs: Sequence[ReadRun], comparisons: Sequence[Comparison]) -> dict[str, Any]:
    reports = [run.report for run in runs]
    return {
        "runs": reports,
        "dataset": reports[0].dataset,
        "series": SERIES_STYLES,
        "listed": LISTED,
        "remarks": [*report_page.remarks(reports), *(note for run in runs for note in run.notes)],
        "tiles": report_page.tiles(reports, comparisons),
        "table": report_page.table(reports, comparisons),
        "comparisons": comparisons,
        "verdicts": [report_page.verdict(comparison) for comparison in comparisons],
        "forest": _forest(comparisons),
        "scatters": report_page.scatters(reports, comparisons),
        "breakdowns": report_page.breakdowns(reports),
        "noise": report_page.noise_curves(reports),
        "figures": report_page.figures(reports),
    }


def _forest(comparisons: Sequence[Comparison]) -> dict[str, Any] | None:
    """The scale on which the intervals of all differences stand, and their places; None without intervals."""
    known = [it for it in comparisons if it.wer_difference_interval is not None]
    ends = [100 * end for it in known for end in it.wer_difference_interval or ()]
    if not ends:
        return None
    reach = 1.1 * max(0.1, *(abs(end) for end in ends))
    axis = linear_axis([-reach, reach])
    places = {
        it.candidate_key: [
            axis.place(100 * value) for value in (*(it.wer_difference_interval or ()), it.wer_difference or 0.0)
        ]
        for it in known
    }
    return {"zero": axis.place(0.0), "ticks": axis.ticks, "places": places}

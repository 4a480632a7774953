"""`report.html`: one file that opens anywhere, makes no network requests, and treats transcripts as hostile input.

The template lays out the figures, escaped by Jinja. The examples are JSON in a script element that is not
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

from whisperkit_tools.errors import OptionsError, option
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
class PageOptions:
    """Content of the page.

    Attributes:
        title: Heading. Derived from the runs when None.
        embed_audio: Whether audio files are embedded, the worst examples first.
        embed_bytes: Maximum number of bytes of embedded audio files.
        examples_limit: Maximum number of examples in the page, the worst first.

    Raises:
        OptionsError: A limit that leaves nothing.
    """

    title: str | None = None
    embed_audio: bool = False
    embed_bytes: int = DEFAULT_EMBED_BYTES
    examples_limit: int = DEFAULT_EXAMPLES_LIMIT

    def __post_init__(self) -> None:
        """Check the limits."""
        limits = {"embed_bytes": self.embed_bytes, "examples_limit": self.examples_limit}
        problems = [f"{option(name)} is {value}, expected 1 or more" for name, value in limits.items() if value < 1]
        if problems:
            raise OptionsError("; ".join(problems))


def render_html(
    runs: Sequence[ReadRun], comparisons: Sequence[Comparison], folder: Path, config: PageOptions | None = None
) -> str:
    """Write the page.

    Args:
        runs: One run, or several over the same dataset. The first is the baseline.
        comparisons: Comparisons of the others with it.
        folder: Folder of the page, to which audio addresses are relative.
        config: Default settings when None.

    Returns:
        The whole file. Half characters, which JSON can hold and UTF-8 cannot, are written as JavaScript's escapes.
    """
    config = config or PageOptions()
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
    """Return the report's heading, derived from its runs."""
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
    """Make direction overrides in all text visible, except in markup, which is made here."""
    return formats.visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _breakable(name: str) -> Markup:
    """Return a name, escaped, that may break after its punctuation marks on a narrow screen."""
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
    """Return the scale of the intervals of all differences, and their positions. None without intervals."""
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

"""The report of a run, or the report that compares several runs."""

from collections.abc import Iterable
from pathlib import Path

from whisperkit_tools.errors import OptionsError, option
from whisperkit_tools.eval.reports.comparison import ComparisonOptions
from whisperkit_tools.eval.reports.html import PageOptions
from whisperkit_tools.eval.reports.write import WrittenReport, in_baseline_order, write_report, write_run_pages
from whisperkit_tools.eval.runs.runner import FinishedRun

Run = str | Path | FinishedRun


def report(
    runs: Run | Iterable[Run],
    *,
    output: str | Path | None = None,
    baseline: str | Path | FinishedRun | None = None,
    common: bool = False,
    samples: int = 10_000,
    seed: int = 0,
    embed_audio: bool = False,
    embed_limit: int = 64,
    examples: int = 20_000,
    title: str | None = None,
    force: bool = False,
) -> WrittenReport:
    """Rewrite the report of a run, or compare runs over the same examples.

    Args:
        runs: One or several finished runs, as `evaluate` returned them or by folder.
        output: The folder of the report. None for the folder of the only run.
        baseline: The run that the others are compared with. None for the first.
        common: Compare the examples that the runs have in common.
        samples: Bootstrap samples.
        seed: Seed of the bootstrap.
        embed_audio: Put audio files into the page, those of the worst examples first.
        embed_limit: Maximum size of embedded audio, in MB.
        examples: Maximum number of examples in the page, the worst first.
        title: Heading of the report.
        force: Replace the report that is in the folder.

    Raises:
        OptionsError: Several runs are given without a folder for the report.
        DatasetError: A run cannot be read, two runs cannot be compared, or the folder exists.

    Example:
        >>> import whisperkit_tools as wkt
        >>> run = wkt.evaluate("bundles/acme_whisper-demo", dataset="demo", limit=2, check_silence=False)[0]
        >>> written = wkt.report(run, output="report", title="A report")
        >>> (written.folder / "report.html").is_file()
        True
    """
    given = [runs] if isinstance(runs, (str, Path, FinishedRun)) else list(runs)
    folders = [_folder(run) for run in given]
    if output is None and (len(folders) > 1 or baseline is not None):
        raise OptionsError(f"several runs are compared in a folder of their own: name it with {option('output')}")
    page = PageOptions(title, embed_audio, embed_limit * 1_000_000, examples)
    if output is None:
        return write_run_pages(folders[0], page)
    ordered = in_baseline_order(folders, None if baseline is None else _folder(baseline))
    comparison = ComparisonOptions(common, samples, seed)
    return write_report(ordered, Path(output), page=page, comparison=comparison, force=force)


def _folder(run: Run) -> Path:
    return run.folder if isinstance(run, FinishedRun) else Path(run)

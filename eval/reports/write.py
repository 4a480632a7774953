"""The report of an evaluation: `report.json` for programs, `report.md` for the model card, `report.html` for people.

`report.json`, schema version 1
-------------------------------
The dataclasses of `schema.py` are the schema, field by field. This is the outline. Rates are fractions, times are
seconds, sizes are bytes, and null is what was not measured. A reader ignores unknown fields.
`schema_version` grows when a field changes its meaning or disappears.

    schema_version: 1
    runs: one, or several over the same dataset, the baseline first; each
        key, name               the run's digest; a name that is unique within the report
        bundle                  name, path, bytes, component_bytes, sha256, created, options; null without a bundle
        backend                 name, model, identity, options, versions
        dataset                 name, fingerprint, source, examples, audio_s, language, ignored_segments
        options, machine, versions, started, finished
        metrics                 wer, cer, substitutions, deletions, insertions, reference_words, wer_interval,
                                qoi, qoi_interval, qoi_reference, insertion_error_rate, repeated_5grams,
                                no_speech {clips, clips_with_text, words, details},
                                word_timestamp_error {words, mean_s, median_s, p90_s, within_100ms, within_200ms},
                                other_scores [{scorer, version, wer, substitutions, deletions, insertions,
                                reference_words}], empty_references, inserted_on_empty
        speed                   encoder_s, token_s, tokens_per_s, first_token_s, rtfx_corpus, rtfx_median,
                                fallbacks, total_s
        noise                   [{kind, snr_db, wer}]
        streaming               hop_s, *_latency_s, *_latency_p95_s, compute_s, is_real_time, wer, hops, examples
        by_duration, by_speaker [{label, examples, audio_s, reference_words, wer}]
        problems, failures      [{id, kind, message}], [{id, error}]
    comparisons: one for each run but the first, as `comparison.Comparison`; each
        baseline, candidate     names; with _key, the runs' keys
        examples                compared; left_out_failed, left_out_unpaired: not compared
        baseline_wer, candidate_wer, wer_difference (candidate minus baseline: positive is worse)
        wer_difference_interval [low, high], 95 %, paired bootstrap of `samples` samples with `seed`
        worse_probability       fraction of the samples in which the candidate has more errors
        qoi, qoi_interval       fraction of examples on which the candidate is no worse, Wilson interval
        qoi_reverse, ..._interval   fraction on which the baseline is no worse than the candidate
        regressed, improved     [{id, errors, baseline_wer, candidate_wer}], the largest change first

`results.jsonl` beside a run's `report.json` has one example a line (`schema.ResultRow`), with its words aligned.
"""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from whisperkit_tools.errors import OptionsError, option
from whisperkit_tools.eval.reports.comparison import Comparison, ComparisonOptions, compare
from whisperkit_tools.eval.reports.html import PageOptions, render_html
from whisperkit_tools.eval.reports.markdown import render_markdown
from whisperkit_tools.eval.reports.read import ReadRun, read_run, read_runs
from whisperkit_tools.eval.schema import REPORT_FILE, RESULTS_FILE, RUN_FILE, Report
from whisperkit_tools.eval.typed_json import to_json
from whisperkit_tools.files import write_json, write_whole

MARKDOWN_FILE = "report.md"
PAGE_FILE = "report.html"


@dataclass(frozen=True, slots=True)
class WrittenReport:
    """A written report.

    Attributes:
        folder: Folder with `report.md` and `report.html`, and of a comparison `report.json`.
        runs: The runs, with unique names.
        comparisons: Comparisons of all other runs with the first.
    """

    folder: Path
    runs: tuple[ReadRun, ...]
    comparisons: tuple[Comparison, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """Oddities of the runs' files, one line each."""
        return tuple(note for run in self.runs for note in run.notes)


def write_run_pages(folder: Path, page: PageOptions | None = None) -> WrittenReport:
    """Write `report.md` and `report.html` of one run into its own folder, from its `report.json` and `results.jsonl`.

    Args:
        folder: Folder of a finished run. Existing pages are replaced.
        page: Default settings when None.

    Raises:
        DatasetError: The folder is not a finished run, or its files are damaged.
    """
    run = read_run(folder)
    _write_pages(run.folder, run.folder, [run], [], page)
    return WrittenReport(run.folder, (run,), ())


def write_report(
    folders: Sequence[Path],
    target: Path,
    *,
    page: PageOptions | None = None,
    comparison: ComparisonOptions | None = None,
    force: bool = False,
) -> WrittenReport:
    """Write the report of runs into a folder of its own.

    Args:
        folders: Folders of finished runs over the same examples. The first is the baseline.
        target: The folder to write. Its parents are created.
        page: Default settings when None.
        comparison: Default settings when None.
        force: Replace an existing report. Other files stay.

    Raises:
        OptionsError: The target exists and `force` is not given, or it is not a folder for a report, or two runs
            cannot be compared.
        DatasetError: A run cannot be read.
    """
    if not folders:
        raise OptionsError("no run to report; pass the folders of runs that `wkt evaluate` made")
    _require_target(target, force=force)
    runs = read_runs(folders)
    comparisons = [compare(runs[0], run, comparison) for run in runs[1:]]
    if target.exists():
        _write_all(target, target, runs, comparisons, page)
        return WrittenReport(target, tuple(runs), tuple(comparisons))
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    try:
        _write_all(partial, target, runs, comparisons, page)
        partial.chmod(0o755)  # a temporary folder is private, a report is like any other folder
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return WrittenReport(target, tuple(runs), tuple(comparisons))


def _require_target(target: Path, *, force: bool) -> None:
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise OptionsError(f"{target} exists and is not a folder; choose another place with {option('output')}")
    if not target.exists():
        return
    if (target / RESULTS_FILE).exists() or (target / RUN_FILE).exists():
        raise OptionsError(
            f"{target} is the folder of a run, whose report would be lost; choose another place with {option('output')}"
        )
    if not any(target.iterdir()):
        return
    if not force:
        raise OptionsError(
            f"{target} already exists; replace its report with {option('force', True)}, or choose another place with "
            f"{option('output')}"
        )
    if not (target / REPORT_FILE).is_file():
        raise OptionsError(
            f"{target} holds files but no report, so {option('force')} does not write into it; choose another place"
        )


def _write_all(
    place: Path, target: Path, runs: Sequence[ReadRun], comparisons: Sequence[Comparison], page: PageOptions | None
) -> None:
    """Write the three files into `place`, which is the target or becomes it."""
    _write_pages(place, target, runs, comparisons, page)
    report = Report(tuple(run.report for run in runs), tuple(to_json(comparison) for comparison in comparisons))
    write_json(place / REPORT_FILE, to_json(report))


def _write_pages(
    place: Path, target: Path, runs: Sequence[ReadRun], comparisons: Sequence[Comparison], page: PageOptions | None
) -> None:
    html = render_html(runs, comparisons, target, page)
    title = page.title if page else None
    markdown = render_markdown([run.report for run in runs], comparisons, title)
    write_whole(place / PAGE_FILE, html)
    write_whole(place / MARKDOWN_FILE, markdown.encode("utf-8", errors="backslashreplace").decode("utf-8"))


def in_baseline_order(folders: Sequence[Path], baseline: Path | None) -> list[Path]:
    """Return the runs with the baseline first. It is the first one given when None."""
    if baseline is None:
        return list(folders)
    chosen = baseline.resolve()
    return [baseline, *(folder for folder in folders if folder.resolve() != chosen)]

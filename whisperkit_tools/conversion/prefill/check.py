"""An existing bundle's prefill, checked again: its contract, and its caches against those of the checkpoint on speech.

The table itself is not estimated anew, since it may come from audio that only its maker has; what it claims to stand
for, the caches of other speech, anyone can compute.
"""

from whisperkit_tools.bundle import Bundle
from whisperkit_tools.checkpoint import Checkpoint
from whisperkit_tools.contract import PREFILL, prefill_interface
from whisperkit_tools.conversion.contract_check import package_problems
from whisperkit_tools.conversion.prefill.audio import held_out_windows
from whisperkit_tools.conversion.prefill.evidence import ENGLISH, null_tables, read_table, similarity
from whisperkit_tools.conversion.prefill.table import TASKS, encode, forced_tokens, language_codes
from whisperkit_tools.dimensions import ModelDimensions
from whisperkit_tools.errors import BundleError, ConversionError

LEAST_OVER_ZEROS_DB = 3.0
MOST_OFF_RECORD_DB = 1.0


def prefill_contract_problems(bundle: Bundle, dims: ModelDimensions) -> list[str]:
    """Where the package, if there is one, differs from what the runtime reads; where the manifest misses it."""
    recorded = bundle.manifest.prefill
    if not bundle.has(PREFILL):
        return [f"{PREFILL} is missing, but recorded as included"] if recorded and recorded.included else []
    try:
        forced = forced_tokens(bundle.read_json("generation_config.json"))
        return package_problems(PREFILL, bundle.package(PREFILL).path, prefill_interface(dims, forced.length))
    except (BundleError, ConversionError) as error:
        return [str(error)]
    except Exception as error:  # protobuf and coremltools raise many kinds for a damaged model file
        return [f"{PREFILL}: cannot be read ({type(error).__name__}: {error})"]


def prefill_problems(bundle: Bundle, checkpoint: Checkpoint) -> list[str]:
    """Where the table's caches do not stand for those of speech, or not as well as is recorded."""
    generation = checkpoint.generation_config
    table = read_table(bundle.package(PREFILL).path, forced_tokens(generation))
    tables = {"prefill": table, "zeros": null_tables(table)["zeros"]}
    found = similarity(checkpoint, tables, encode(checkpoint, held_out_windows()))
    evidence = bundle.manifest.prefill.evidence if bundle.manifest.prefill else None
    recorded = evidence.psnr_db if evidence and evidence.held_out_from == "demo" else {}
    codes = language_codes(generation)
    problems = []
    for (language, task), value in found["prefill"].items():
        code, name = codes.get(language, ENGLISH), TASKS[task]
        zeros, claimed = found["zeros"][language, task], recorded.get(code, {}).get(name)
        if not value >= zeros + LEAST_OVER_ZEROS_DB:
            problems.append(f"{PREFILL}: {code} {name} has {value:.1f} dB on speech, zeros have {zeros:.1f} dB")
        elif claimed is not None and abs(value - claimed) > MOST_OFF_RECORD_DB:
            problems.append(f"{PREFILL}: {code} {name} has {value:.1f} dB on speech, recorded are {claimed:.1f} dB")
    return problems

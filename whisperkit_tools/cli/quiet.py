"""Keeps the libraries' own warnings, notices and progress bars away from the user."""

import logging
import os
import warnings


def silence_libraries() -> None:
    """Let only errors of the libraries through: their warnings address us, not the user of `wkt`."""
    warnings.simplefilter("ignore")
    # Read by the libraries themselves when they are first imported, which is later than this.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in ("transformers", "huggingface_hub", "coremltools", "torch", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)

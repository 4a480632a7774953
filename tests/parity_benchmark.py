"""The parity benchmark as a module: its oracle is that of the tests of transcription too."""

import importlib.util
from pathlib import Path


def _benchmark():
    path = Path(__file__).parent / "benchmarks" / "generate_parity.py"
    spec = importlib.util.spec_from_file_location("generate_parity", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


parity = _benchmark()

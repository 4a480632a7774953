"""coremltools' protobuf classes, without the rest of coremltools.

Importing coremltools takes two seconds, most of them for frontends and passes that reading a package does not need. Its
generated protobuf modules lie in a folder of their own and import nothing else of it, so they are imported as a package
by themselves. A later import of coremltools finds the same message classes, because protobuf keeps one for each type.
"""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from whisperkit_tools.errors import BundleError

_ALIAS = "whisperkit_tools.mil._coremltools_proto"


def model_proto() -> ModuleType:
    """Return coremltools' `Model_pb2`.

    Raises:
        BundleError: coremltools is not installed.
    """
    if "coremltools" in sys.modules:
        return importlib.import_module("coremltools.proto.Model_pb2")
    if _ALIAS not in sys.modules:
        found = importlib.util.find_spec("coremltools")  # finds, but does not run it
        if found is None or found.origin is None:
            raise BundleError("coremltools is not installed; reading packages needs it: pip install coremltools")
        folder = Path(found.origin).parent / "proto"
        spec = importlib.util.spec_from_file_location(
            _ALIAS, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        if spec is None or spec.loader is None:
            raise BundleError(f"coremltools is damaged: {folder} is not there; install it again")
        package = importlib.util.module_from_spec(spec)
        sys.modules[_ALIAS] = package
        spec.loader.exec_module(package)
    return importlib.import_module(f"{_ALIAS}.Model_pb2")

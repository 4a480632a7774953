"""An opened `.mlpackage`: its path, and everything that can be read from it or run."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whisperkit_tools.contract import STEP_FUNCTION, WINDOW_FUNCTION
from whisperkit_tools.errors import BundleError
from whisperkit_tools.files import folder_bytes

if TYPE_CHECKING:
    from whisperkit_tools.mil.backend import ArrayModel
    from whisperkit_tools.mil.graph import Graph
    from whisperkit_tools.mil.program import Program
    from whisperkit_tools.mil.tensor_spec import Precision


@dataclass(frozen=True, slots=True)
class Package:
    """A package on disk. Opening it reads nothing; each method reads what it needs.

    Attributes:
        path: The `.mlpackage` folder.

    Example:
        >>> import whisperkit_tools as wkt
        >>> package = wkt.Package.open("bundles/acme_whisper-demo/AudioEncoder.mlpackage")
        >>> package.name, package.functions
        ('AudioEncoder', ('main',))
    """

    path: Path

    @classmethod
    def open(cls, path: str | Path) -> "Package":
        """Open a package.

        Raises:
            BundleError: There is no package at `path`.
        """
        folder = Path(path)
        if not folder.exists():
            raise BundleError(f"{folder}: no such package")
        if not (folder / "Manifest.json").is_file():
            raise BundleError(f"{folder}: is not an .mlpackage (it has no Manifest.json)")
        return cls(folder)

    @property
    def name(self) -> str:
        """Name of the component: the folder's without its ending."""
        return self.path.stem

    @property
    def nbytes(self) -> int:
        """Bytes of all its files."""
        return folder_bytes(self.path)

    @property
    def functions(self) -> tuple[str, ...]:
        """Names of its functions, the default one first.

        Raises:
            BundleError: The package is damaged or not an ML Program.
        """
        from whisperkit_tools.mil.graph import function_names

        return function_names(self.path)

    @property
    def is_stateful(self) -> bool:
        """Whether it is a decoder with its caches as states, a form that today's open runtime does not load."""
        return WINDOW_FUNCTION in self.functions and bool(self.graph(STEP_FUNCTION).states)

    def graph(self, function: str = STEP_FUNCTION) -> "Graph":
        """Read a function's operations, constants, inputs and outputs.

        Raises:
            BundleError: The package is damaged, not an ML Program, or has no such function.
        """
        from whisperkit_tools.mil.graph import read_graph

        return read_graph(self.path, function)

    def program(
        self, function: str = STEP_FUNCTION, *, precision: "Precision" = "float32", device: str = "cpu"
    ) -> "Program":
        """Load a function for running on PyTorch; see `Program.load`.

        Raises:
            BundleError: The package is damaged, not an ML Program, or has no such function.
            UnsupportedOperationError: The executor does not implement some of its operations.
        """
        from whisperkit_tools.mil.program import Program

        return Program.load(self.path, precision=precision, device=device, function=function)

    def core_ml(self, function: str = STEP_FUNCTION, *, compute_units: str = "all") -> "ArrayModel":
        """Load a function for running on Core ML, which needs macOS.

        Raises:
            BundleError: The package is damaged, or Core ML cannot load it.
            UnsupportedOperationError: This machine has no Core ML.
        """
        from whisperkit_tools.mil.backend import load_backend

        return load_backend(self.path, "coreml", compute_units=compute_units, function=function)

    def spec(self) -> Any:
        """Return the Core ML `Model` protobuf.

        Raises:
            BundleError: The package is damaged.
        """
        from whisperkit_tools.mil.graph import read_spec

        return read_spec(self.path)

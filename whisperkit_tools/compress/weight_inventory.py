"""The weights of a bundle's encoder and decoder: what can be compressed, and how much there is of it."""

from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from whisperkit_tools.bundle import Bundle
from whisperkit_tools.contract import MODEL_COMPONENTS
from whisperkit_tools.errors import BundleError, option
from whisperkit_tools.files import sha256
from whisperkit_tools.mil.graph import Graph
from whisperkit_tools.quantization.compressed_ops import outlier_obstacles
from whisperkit_tools.quantization.compression import dense_nbytes
from whisperkit_tools.quantization.recipe import WeightKey
from whisperkit_tools.quantization.sensitivity import compressible_weights

_COMPRESSED = ("constexpr_lut_to_dense", "constexpr_lut_to_sparse", "constexpr_sparse_to_dense")


class WeightInventory:
    """The uncompressed weights of a bundle's encoder and decoder.

    Attributes:
        bundle: The bundle.
        shapes: Shapes of the compressible weights, by component and name.
        spec_version: Core ML specification version of the result.
        fixed_nbytes: Bytes of encoder and decoder that cannot be compressed.
    """

    def __init__(self, bundle: Bundle) -> None:
        """Read the graphs of the packages.

        Raises:
            BundleError: The bundle is compressed already, stateful, or has nothing to compress.
        """
        self.bundle = bundle
        self._graphs: dict[str, Graph] = {name: bundle.package(name).graph() for name in MODEL_COMPONENTS}
        if any(graph.states for graph in self._graphs.values()):
            raise BundleError(
                f"{bundle.path} keeps its caches in states, through which sensitivity cannot be measured; compress the "
                f"form with caches as inputs: convert without {option('stateful')}"
            )
        compressed = {op.type for graph in self._graphs.values() for op in graph.operations} & set(_COMPRESSED)
        if compressed:
            raise BundleError(
                f"{bundle.path} is compressed already ({', '.join(sorted(compressed))}), and a second compression "
                "would add to the loss; pass the uncompressed bundle it was made from, or convert the model again"
            )
        self.shapes: dict[WeightKey, tuple[int, ...]] = {
            (component, name): tuple(axis or 0 for axis in graph.constants[name].spec.shape)
            for component, graph in self._graphs.items()
            for name in compressible_weights(graph)
        }
        if not self.shapes:
            raise BundleError(f"{bundle.path} has no float16 weights to compress")
        self.spec_version = min(graph.metadata.spec_version for graph in self._graphs.values())
        self.fixed_nbytes = self.nbytes - sum(dense_nbytes(shape) for shape in self.shapes.values())

    @property
    def embeddings(self) -> set[WeightKey]:
        """The compressible weights that rows are looked up in."""
        return {
            (component, value.name)
            for component, graph in self._graphs.items()
            for operation in graph.operations
            if operation.type == "gather"
            for value in operation.inputs.get("x", ())
            if (component, value.name) in self.shapes
        }

    @property
    def packages(self) -> dict[str, Path]:
        """Paths of the packages that are compressed, by component."""
        return {name: self.bundle.package(name).path for name in MODEL_COMPONENTS}

    @property
    def nbytes(self) -> int:
        """Bytes of encoder and decoder."""
        return sum(self.bundle.package(name).nbytes for name in MODEL_COMPONENTS)

    @property
    def elements(self) -> int:
        """Number of elements of all compressible weights."""
        return sum(prod(shape) for shape in self.shapes.values())

    @property
    def largest_component(self) -> int:
        """Number of elements of all constants of the larger component."""
        return max(sum(constant.spec.size for constant in graph.constants.values()) for graph in self._graphs.values())

    def weights_sha256(self) -> dict[str, str]:
        """Return for each component the digest of its weights file."""
        return {name: sha256(next(iter(sorted(path.rglob("weight*.bin"))))) for name, path in self.packages.items()}

    def weight(self, key: WeightKey) -> NDArray[np.float16]:
        """Read a weight."""
        value: NDArray[np.float16] = self._graphs[key[0]].constants[key[1]].value
        return value

    def allows_outliers(self, key: WeightKey) -> bool:
        """Whether outliers can be added in all operations that read a weight."""
        component, name = key
        return not outlier_obstacles(name, self._graphs[component])

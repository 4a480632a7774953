"""Parity: a written package, run by the executor, against the PyTorch module it was exported from.

The module holds the weights as stored (rounded to float16) and computes in float32. The package is run twice: in
float32, where only the export itself can make a difference, and in float16 with every operation's result rounded, as
hardware does.

Source of the thresholds: PSNR > 70 dB between re-authored PyTorch and the original, >= 40 dB between compiled and
PyTorch (apple/coreai-models).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from whisperkit_tools import contract
from whisperkit_tools.contract import PackageInterface
from whisperkit_tools.decoder.adapters import FunctionModel
from whisperkit_tools.decoder.loading import load_decoder
from whisperkit_tools.decoder.session import DecoderSession
from whisperkit_tools.decoder.stateful import StatefulDecoder, new_session
from whisperkit_tools.errors import QualityGateError
from whisperkit_tools.mil.backend import TensorModel
from whisperkit_tools.mil.package import Package
from whisperkit_tools.mil.tensor_spec import Precision, TensorSpec
from whisperkit_tools.signals import psnr_db

Arrays = dict[str, NDArray[Any]]

DECODER_STEPS = 8


@dataclass(frozen=True, slots=True)
class ParityGate:
    """The minimum PSNR of each output of each package.

    Attributes:
        float32_db: When the package is computed in float32.
        float16_db: When every operation's result is rounded to float16.
    """

    float32_db: float = 70.0
    float16_db: float = 40.0


@dataclass(frozen=True, slots=True)
class ComponentParity:
    """PSNR in dB of each output of one package, the minimum over the decoding steps."""

    component: str
    float32_db: dict[str, float]
    float16_db: dict[str, float]

    def shortfalls(self, gate: ParityGate) -> list[str]:
        """Return one line for each output below the gate."""
        return [
            f"{self.component}: {name} has {value:.1f} dB in {mode}, at least {minimum:g} dB is required"
            for mode, figures, minimum in (
                ("float32", self.float32_db, gate.float32_db),
                ("float16", self.float16_db, gate.float16_db),
            )
            for name, value in figures.items()
            if not value >= minimum
        ]


def require(parities: list[ComponentParity], gate: ParityGate) -> None:
    """Raise unless every output passes the gate.

    Raises:
        QualityGateError: An output falls short. All of them are named.
    """
    lines = [line for parity in parities for line in parity.shortfalls(gate)]
    if lines:
        raise QualityGateError("the packages do not compute what the checkpoint does: " + "; ".join(lines))


class Reference:
    """A module's outputs on one window of speech.

    They are computed once, so that the module can be released before the package is loaded.
    """

    def __init__(self, component: str, module: torch.nn.Module, interface: PackageInterface, example: Arrays) -> None:
        """Compute the outputs.

        Args:
            component: The package's name.
            module: Its module in float32.
            interface: Names and shapes.
            example: The inputs, apart from the decoder's token, position, caches and masks.
        """
        self.component = component
        self.interface = interface
        self.example = example
        # A decoder's first token. The first run adds the tokens that it chooses greedily.
        self.tokens = [int(token) for token in example.get(contract.INPUT_IDS, [])]
        self.outputs = self._run(_module_model(module, interface))

    def compare(self, package: Path) -> ComponentParity:
        """Run the package in both precisions on the same inputs."""
        return ComponentParity(self.component, self._figures(package, "float32"), self._figures(package, "float16"))

    def _figures(self, package: Path, precision: Any) -> dict[str, float]:
        steps = self._run(_package_model(package, precision), precision)
        pairs = [
            (name, psnr_db(expected[name], found[name]))
            for expected, found in zip(self.outputs, steps, strict=True)
            for name in expected
        ]
        return {name: min(value for other, value in pairs if other == name) for name in self.outputs[0]}

    def _run(self, model: TensorModel | StatefulDecoder, precision: Precision = "float32") -> list[Arrays]:
        if not self.tokens and not isinstance(model, StatefulDecoder):
            with torch.no_grad():
                return [_arrays(model.run({name: torch.from_numpy(value) for name, value in self.example.items()}))]
        session = new_session(model, dtype=torch.float16 if precision == "float16" else torch.float32)
        return self._decode(session)

    def _decode(self, session: DecoderSession) -> list[Arrays]:
        """Decode some steps with the session's own caches."""
        session.begin(torch.from_numpy(self.example[contract.EMBEDS]))
        steps: list[Arrays] = []
        for position in range(min(DECODER_STEPS, session.length)):
            outputs = dict(session.outputs(self.tokens[position], position))
            added = session.columns(position, position + 1)
            outputs |= {contract.KEY_UPDATES: added.keys, contract.VALUE_UPDATES: added.values}
            steps.append(_arrays({name: outputs[name] for name in self.interface.outputs}))
            if position + 1 == len(self.tokens):
                self.tokens.append(int(outputs[contract.LOGITS].argmax()))
        return steps


def _arrays(tensors: Mapping[str, Tensor]) -> Arrays:
    return {name: tensor.numpy().copy() for name, tensor in tensors.items()}


def _package_model(path: Path, precision: Precision) -> TensorModel | StatefulDecoder:
    package = Package(path)
    return load_decoder(package, lambda function: package.program(function, precision=precision))


def _module_model(module: torch.nn.Module, interface: PackageInterface) -> FunctionModel:
    """Return a module as a model with the package's inputs and outputs."""

    def run(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        outputs = module(*(inputs[name] for name in interface.inputs))
        return dict(zip(interface.outputs, outputs if isinstance(outputs, tuple) else (outputs,), strict=True))

    inputs, outputs = (
        {name: TensorSpec(name, tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
        for tensors in (interface.inputs, interface.outputs)
    )
    return FunctionModel(run, inputs, outputs)


def as_float16(array: NDArray[Any]) -> NDArray[np.float32]:
    """Round to float16, as the runtime hands activations from package to package, and widen again."""
    return array.astype(np.float16).astype(np.float32)

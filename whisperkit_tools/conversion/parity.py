"""Parity: a written package, run by the executor, against the PyTorch module it was exported from.

The module holds the weights as stored (rounded to float16) and computes in float32. The package is run twice: in
float32, where only the export itself can make a difference, and in float16 with every operation's result rounded, as
hardware does.

Source of the thresholds: PSNR > 70 dB between re-authored PyTorch and the original, >= 40 dB between compiled and
PyTorch (apple/coreai-models).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from whisperkit_tools import contract
from whisperkit_tools.contract import STEP_FUNCTION, TEXT_STATES, WINDOW_FUNCTION, PackageInterface
from whisperkit_tools.errors import QualityGateError
from whisperkit_tools.mil.graph import function_names
from whisperkit_tools.mil.program import Program
from whisperkit_tools.mil.tensor_spec import Precision
from whisperkit_tools.signals import psnr_db

Arrays = dict[str, NDArray[Any]]
Predict = Callable[[Arrays], Mapping[str, NDArray[Any]]]

DECODER_STEPS = 8


@dataclass(frozen=True, slots=True)
class ParityGate:
    """The least PSNR that each output of each package must reach.

    Attributes:
        float32_db: When the package is computed in float32.
        float16_db: When every operation's result is rounded to float16.
    """

    float32_db: float = 70.0
    float16_db: float = 40.0


@dataclass(frozen=True, slots=True)
class ComponentParity:
    """PSNR in dB of each output of one package; the least over the decoding steps."""

    component: str
    float32_db: dict[str, float]
    float16_db: dict[str, float]

    def shortfalls(self, gate: ParityGate) -> list[str]:
        """One line for each output below the gate."""
        return [
            f"{self.component}: {name} has {value:.1f} dB in {mode}, at least {least:g} dB is required"
            for mode, figures, least in (
                ("float32", self.float32_db, gate.float32_db),
                ("float16", self.float16_db, gate.float16_db),
            )
            for name, value in figures.items()
            if not value >= least
        ]


def require(parities: list[ComponentParity], gate: ParityGate) -> None:
    """Close the gate.

    Raises:
        QualityGateError: An output falls short; all of them are named.
    """
    lines = [line for parity in parities for line in parity.shortfalls(gate)]
    if lines:
        raise QualityGateError("the packages do not compute what the checkpoint does: " + "; ".join(lines))


class Reference:
    """A module's outputs on one window of speech, computed once, so that the module can be let go before the package
    is loaded.
    """  # noqa: D205 (one sentence)

    def __init__(self, component: str, module: torch.nn.Module, interface: PackageInterface, example: Arrays) -> None:
        """Compute the outputs.

        Args:
            component: The package's name.
            module: Its module; its floating-point parameters are widened to float32 in place.
            interface: Names and shapes.
            example: The inputs, apart from the decoder's token, position, caches and masks.
        """
        self.component = component
        self.interface = interface
        self.example = example
        self.tokens: list[int] = []
        predict = _module_predict(module.float(), interface)
        self.outputs = self._run(predict, choose_tokens=True)

    def compare(self, package: Path) -> ComponentParity:
        """Run the package in both precisions on the same inputs."""
        return ComponentParity(self.component, self._figures(package, "float32"), self._figures(package, "float16"))

    def _figures(self, package: Path, precision: Any) -> dict[str, float]:
        steps = self._run(_package_predict(package, precision), choose_tokens=False)
        pairs = [
            (name, psnr_db(expected[name], found[name]))
            for expected, found in zip(self.outputs, steps, strict=True)
            for name in expected
        ]
        return {name: min(value for other, value in pairs if other == name) for name in self.outputs[0]}

    def _run(self, predict: Predict, *, choose_tokens: bool) -> list[Arrays]:
        if contract.INPUT_IDS not in self.interface.inputs:
            return [dict(predict(self.example))]
        return self._decode(predict, choose_tokens)

    def _decode(self, predict: Predict, choose_tokens: bool) -> list[Arrays]:
        """Decode some steps with the run's own caches; the reference chooses the tokens, greedily."""
        caches = {
            name: np.zeros(self.interface.inputs[name].shape, np.float32)
            for name in (contract.KEY_CACHE, contract.VALUE_CACHE)
        }
        token = int(self.example[contract.INPUT_IDS][0])
        steps: list[Arrays] = []
        for position in range(min(DECODER_STEPS, caches[contract.KEY_CACHE].shape[3])):
            token = token if choose_tokens or position == 0 else self.tokens[position - 1]
            outputs = dict(predict({**self.example, **_step_inputs(token, position, caches)}))
            steps.append(outputs)
            for name, cache in caches.items():
                cache[..., position] = outputs[f"{name}_updates"][..., 0]
            if choose_tokens:
                token = int(outputs["logits"].argmax())
                self.tokens.append(token)
        return steps


def _step_inputs(token: int, position: int, caches: Arrays) -> Arrays:
    length = caches[contract.KEY_CACHE].shape[3]
    at = np.arange(length)[None]
    return {
        contract.INPUT_IDS: np.array([token], np.int32),
        contract.CACHE_LENGTH: np.array([position], np.int32),
        **caches,
        contract.UPDATE_MASK: (at == position).astype(np.float32),
        contract.PADDING_MASK: np.where(at <= position, 0, contract.MASKED).astype(np.float32),
    }


def _package_predict(package: Path, precision: Precision) -> Predict:
    """Return what runs a package; a stateful decoder with the inputs and outputs of the runtime's form."""
    if WINDOW_FUNCTION not in function_names(package):
        return Program.load(package, precision=precision).predict
    step, window = (
        Program.load(package, precision=precision, function=name) for name in (STEP_FUNCTION, WINDOW_FUNCTION)
    )
    state = step.make_state()

    def predict(inputs: Arrays) -> Arrays:
        position = int(inputs[contract.CACHE_LENGTH][0])
        if position == 0:
            window.predict({name: inputs[name] for name in window.inputs}, state)
        outputs: Arrays = step.predict({name: inputs[name] for name in step.inputs}, state)
        updates = {name: state.read_state(name)[..., position : position + 1] for name in TEXT_STATES}
        return {**outputs, **{f"{name}_updates": update for name, update in updates.items()}}

    return predict


def _module_predict(module: torch.nn.Module, interface: PackageInterface) -> Predict:
    def predict(inputs: Arrays) -> Arrays:
        with torch.inference_mode():
            outputs = module(*(torch.from_numpy(inputs[name]) for name in interface.inputs))
        tensors = outputs if isinstance(outputs, tuple) else (outputs,)
        return {name: tensor.numpy() for name, tensor in zip(interface.outputs, tensors, strict=True)}

    return predict


def as_float16(array: NDArray[Any]) -> NDArray[np.float32]:
    """Round to float16, as the runtime hands activations from package to package, and widen again."""
    return array.astype(np.float16).astype(np.float32)

"""Rules for ML Programs on the Neural Engine, each with its source: what cannot stay there, and what costs too much.

They judge the program alone. Core ML decides on the device, and `mil.coreml.planned_devices` asks it.
"""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from whisperkit_tools.compile_hints.lint.chips import Chip, ChipTable
from whisperkit_tools.compile_hints.lint.flops import GATHERS, Weight, count_program, tensor_bytes, used_weights
from whisperkit_tools.compile_hints.lint.forms import form_reports, weight_forms
from whisperkit_tools.compile_hints.lint.traffic import (
    copied_bytes,
    memory_bytes,
    operation_key,
    partitions,
    runtime_operations,
)
from whisperkit_tools.mil.graph import Graph, Operation
from whisperkit_tools.mil.tensor_spec import TensorSpec, bit_width, is_float

ALIGNMENT_BYTES = 64
MASK_FLOOR = -4e4
STATE_ALIGNMENT = 32  # elements of float16, which are the 64 bytes of a row
APPLE = "Apple, Deploying Transformers on the Apple Neural Engine; apple/coreai-models neural_engine_rules.md"
COREAI = "apple/coreai-models neural_engine_rules.md"
GUIDE = "ane-guide, measured elsewhere"


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of the lint.

    Attributes:
        name: Name by which findings of the rule can be ignored.
        leaves: Operations that break it leave the Neural Engine; the others stay, at a price.
        source: Who says so.
        advice: What to do about it.
    """

    name: str
    leaves: bool
    source: str
    advice: str


_RULES = (
    Rule("no-path", True, GUIDE, "write it with operations that the engine has, or compute it outside the program"),
    Rule("newer-chip", True, GUIDE, "write it with operations that this chip has, or leave it to newer chips"),
    Rule("unknown-operation", True, "ane-guide, appendix A, does not list it", "ask Core ML on a Mac"),
    Rule("control-flow", True, GUIDE, "unroll loops and conditions before conversion"),
    Rule("float32", True, COREAI, "convert with float16 precision, constants included"),
    Rule("integer", True, COREAI, "compute indices and masks outside the program, or in float16"),
    Rule("int32-cast", True, GUIDE, "take the value as float16 instead of casting it"),
    Rule("rank", True, COREAI, "merge axes before this operation"),
    Rule("open-shape", True, COREAI, "fix the size of every axis; convert once for each size that is needed"),
    Rule(
        "tensor-size",
        True,
        "ane-guide; compiler log in FluidAudio#121, measured elsewhere",
        "split the operation into parts below the limit, or let it fall back",
    ),
    Rule("stride", True, COREAI, "use strides made of factors 2 and 3, at most 2 with a palettized kernel"),
    Rule(
        "weight-size",
        True,
        "smpanaro's notes, 2023, measured elsewhere",
        "split the weight along its output channels",
    ),
    Rule(
        "aperture",
        True,
        "smpanaro's notes, 2023; ane-guide, chapter 21, measured elsewhere",
        "split the program into several packages; beyond the limit all of it falls back",
    ),
    Rule(
        "state-width",
        True,
        "apple/coremltools#2631, measured elsewhere on an M4",
        "give states a last axis that is a multiple of 32, and mask what is added",
    ),
    Rule("ios-size", False, COREAI, "compress the weights or take a smaller model"),
    Rule("mask", False, COREAI, "mask with a finite value, -1e4, at most -4e4"),
    Rule("copy", False, APPLE, "keep the sequence on the last axis from end to end"),
    Rule("alignment", False, APPLE, "let the last axis fill whole 64-byte rows, or accept the padding"),
)


def rules() -> dict[str, Rule]:
    """Return all rules by name."""
    reported = [
        Rule(report.rule, False, report.source, report.advice) for report in form_reports().values() if report.verdict
    ]
    return {rule.name: rule for rule in (*_RULES, *reported)}


@dataclass(frozen=True, slots=True)
class Finding:
    """One place where a program breaks a rule.

    Attributes:
        rule: The rule's name.
        leaves: The operations leave the Neural Engine.
        where: The operation or tensor, with the module it was traced from where the package records that.
        what: What was found, with the limit.
        source: Who says so.
        advice: What to do about it.
        operations: Names of the operations concerned (their first outputs).
        wasted_bytes: Bytes of padding or copying.
    """

    rule: str
    leaves: bool
    where: str
    what: str
    source: str
    advice: str
    operations: tuple[str, ...] = ()
    wasted_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Residency:
    """Findings of the lint about one program on one chip.

    Attributes:
        chip: Name of the chip.
        on_engine: For each operation (by the name of its first output) whether it can stay on the Neural Engine.
        types: Type of each operation.
        flops_share: Share of the program's FLOPs on the Neural Engine, 0 to 1.
        bytes_share: The same of the bytes moved through memory.
        switches: How often the engine changes.
        padding_bytes: Bytes wasted by padding the last axis of inputs and outputs.
        copied_bytes: Bytes read and written by transposes and reshapes that move the last axis.
        findings: Those that leave the engine first.
    """

    chip: str
    on_engine: dict[str, bool] = field(repr=False)
    types: dict[str, str] = field(repr=False)
    flops_share: float
    bytes_share: float
    switches: int
    padding_bytes: int
    copied_bytes: int
    findings: tuple[Finding, ...]


def lint_program(graph: Graph, chip: Chip, table: ChipTable) -> Residency:
    """Apply every rule to a program.

    Args:
        graph: The program.
        chip: The chip it is to run on.
        table: What holds for all chips.
    """
    linter = _Linter(graph, chip, table)
    findings = sorted(linter.findings(), key=lambda finding: not finding.leaves)
    leaving = {name for finding in findings if finding.leaves for name in finding.operations}
    operations = runtime_operations(graph)
    on_engine = {operation_key(operation): operation_key(operation) not in leaving for operation in operations}
    flops_share, bytes_share = _shares(graph, on_engine, chip)
    return Residency(
        chip=chip.name,
        on_engine=on_engine,
        types={operation_key(operation): operation.type for operation in operations},
        flops_share=flops_share,
        bytes_share=bytes_share,
        switches=max(len(partitions(graph, on_engine)) - 1, 0),
        padding_bytes=sum(finding.wasted_bytes for finding in findings if finding.rule == "alignment"),
        copied_bytes=sum(finding.wasted_bytes for finding in findings if finding.rule == "copy"),
        findings=tuple(findings),
    )


def _shares(graph: Graph, on_engine: dict[str, bool], chip: Chip) -> tuple[float, float]:
    """Return the shares of FLOPs and of bytes on the engine; the share of nothing is 1."""
    moved = memory_bytes(graph, on_engine, chip.working_set_bytes.value)
    flops, size = {True: 0, False: 0}, {True: 0, False: 0}
    for count in count_program(graph):
        side = on_engine[operation_key(count.operation)]
        flops[side] += count.flops
        size[side] += moved[operation_key(count.operation)] + sum(weight.stored_bytes for weight in count.weights)
    return _share(flops), _share(size)


def _share(parts: dict[bool, int]) -> float:
    total = sum(parts.values())
    return parts[True] / total if total else 1.0


def padding_bytes(spec: TensorSpec) -> int:
    """Return the bytes added when a tensor's last axis is padded to whole 64-byte rows; 0 when that axis is open."""
    if not spec.shape or not spec.shape[-1] or spec.dtype == "string":
        return 0
    row = spec.shape[-1] * bit_width(spec.dtype) // 8
    return -row % ALIGNMENT_BYTES * (spec.size // spec.shape[-1])


class _Linter:
    """One program on one chip; each method is one rule or a family of them."""

    def __init__(self, graph: Graph, chip: Chip, table: ChipTable) -> None:
        self.graph, self.chip, self.table = graph, chip, table
        self.rules = rules()
        self.weights = used_weights(graph)
        self.computed = {out.name for operation in runtime_operations(graph) for out in operation.outputs}

    def findings(self) -> Iterator[Finding]:
        """Yield every finding, in the order of the program, float32 islands and whole-program limits last."""
        for operation in runtime_operations(self.graph):
            yield from self._type(operation)
            yield from self._integers(operation)
            yield from self._shapes(operation)
            yield from self._strides(operation)
            yield from self._weights(operation)
            yield from self._masks(operation)
            yield from self._copies(operation)
        yield from self._forms()
        yield from self._states()
        yield from self._float32_islands()
        yield from self._alignment()
        yield from self._totals()

    def _found(self, rule: str, operation: Operation, what: str, wasted_bytes: int = 0) -> Finding:
        where = f"{operation.type} {operation_key(operation)}" + (f" ({operation.module})" if operation.module else "")
        return self._make(rule, where, what, (operation_key(operation),), wasted_bytes)

    def _make(
        self, rule: str, where: str, what: str, operations: tuple[str, ...] = (), wasted_bytes: int = 0
    ) -> Finding:
        entry = self.rules[rule]
        return Finding(rule, entry.leaves, where, what, entry.source, entry.advice, operations, wasted_bytes)

    def _type(self, operation: Operation) -> Iterator[Finding]:
        kind = operation.type
        if operation.has_blocks:
            yield self._found("control-flow", operation, f"{kind} holds nested programs")
        elif kind in self.table.no_path.value:
            yield self._found("no-path", operation, f"no Neural Engine runs {kind}")
        elif kind in self.chip.unsupported.value:
            limit = " beyond a small software path" if kind in GATHERS else ""
            what = f"{self.chip.title} has no {kind}{limit}; the first with it: {self.table.first_with(kind)}"
            yield self._found("newer-chip", operation, what)
        elif kind not in self.table.native.value:
            yield self._found("unknown-operation", operation, f"nothing is known of {kind} on the Neural Engine")

    def _integers(self, operation: Operation) -> Iterator[Finding]:
        wide = ("int32", "uint32", "int64", "uint64")
        outputs = [out for out in operation.outputs if out.dtype in wide]
        if operation.type == "cast":
            integer = bool(outputs) or any(spec.dtype in wide for spec in operation.inputs["x"])
            if integer and self.chip.rejects_int32_cast.value:
                yield self._found("int32-cast", operation, f"{self.chip.title} rejects casts from and to int32")
        elif outputs:
            yield self._found("integer", operation, f"{outputs[0]}; the engine computes float16, int8 and int16")

    def _activations(self, operation: Operation) -> list[TensorSpec]:
        """Return the tensors of an operation that are not constants."""
        known = self.computed | self.graph.inputs.keys() | self.graph.states.keys()
        return [*(spec for spec in operation.reads if spec.name in known), *operation.outputs]

    def _shapes(self, operation: Operation) -> Iterator[Finding]:
        tensors = self._activations(operation)
        for spec in tensors:
            if len(spec.shape) > self.chip.max_rank.value:
                what = f"{spec} has {len(spec.shape)} axes, at most {self.chip.max_rank.value} are possible"
                yield self._found("rank", operation, what)
                break
        for spec in tensors:
            if None in spec.shape:
                yield self._found("open-shape", operation, f"{spec} has axes of open size")
                break
        for spec in tensors:
            if excess := self._excess(spec):
                yield self._found("tensor-size", operation, f"{spec}: {excess}")
                break

    def _excess(self, spec: TensorSpec) -> str:
        """Return which axis is too long, an empty text when none is; axes count from the last: W, H, C, N."""
        limits = [self.chip.max_width_height.value] * 2 + [self.chip.max_channels_batch.value] * 2
        for name, size, limit in zip("WHCN", reversed(spec.shape), limits, strict=False):
            if size is not None and size > limit:
                return f"axis {name} is {size}, the limit is {limit}"
        return ""

    def _strides(self, operation: Operation) -> Iterator[Finding]:
        if operation.type not in ("conv", "conv_transpose") or "strides" not in operation.inputs:
            return
        strides = [int(step) for step in self.graph.constants[operation.inputs["strides"][0].name].value]
        weight = self.weights.get(operation.inputs["weight"][0].name)
        if any(not _made_of_2_and_3(step) for step in strides):
            yield self._found("stride", operation, f"strides {strides} have other factors than 2 and 3")
        elif weight and weight.form == "lut" and max(strides) > 2:
            yield self._found(
                "stride", operation, f"strides {strides} with a palettized kernel, at most 2 are possible"
            )

    def _weights(self, operation: Operation) -> Iterator[Finding]:
        limit = self.table.max_weight_bytes.value
        for weight in self._used(operation):
            if weight.dense_bytes > limit:
                what = f"{weight.name} has {weight.dense_bytes / 2**20:.0f} MiB, the limit is {limit / 2**20:.0f} MiB"
                yield self._found("weight-size", operation, what)

    def _used(self, operation: Operation) -> list[Weight]:
        names = {spec.name for spec in operation.reads}
        return [self.weights[name] for name in names if name in self.weights]

    def _masks(self, operation: Operation) -> Iterator[Finding]:
        if operation.type not in ("add", "sub", "select", "fill"):
            return
        for spec in operation.reads:
            constant = self.graph.constants.get(spec.name)
            if constant is None or not is_float(spec.dtype) or not spec.size:
                continue
            lowest = float(np.min(constant.value))
            if lowest < MASK_FLOOR:
                yield self._found("mask", operation, f"{spec} holds {lowest:g}, which softmax does not handle")

    def _copies(self, operation: Operation) -> Iterator[Finding]:
        if size := copied_bytes(operation, self.graph):
            change = f"{operation.inputs['x'][0]} to {operation.outputs[0]}"
            yield self._found("copy", operation, f"moves the last axis, {change}", size)

    def _forms(self) -> Iterator[Finding]:
        """Yield one finding for each weight in a form that others report to fail, or that nobody reports to work."""
        reports = form_reports()
        for name, form in weight_forms(self.graph):
            if reports[form].verdict:
                yield self._make(reports[form].rule, f"weight {name}", reports[form].what)

    def _states(self) -> Iterator[Finding]:
        """Yield one finding for each state whose rows are not whole; all that reads or writes it leaves."""
        for state in self.graph.states.values():
            width = state.shape[-1] if state.shape else None
            if width is not None and width % STATE_ALIGNMENT:
                used = tuple(
                    operation_key(operation)
                    for operation in runtime_operations(self.graph)
                    if any(spec.name == state.name for spec in operation.reads)
                )
                what = f"{state}: the last axis is not a multiple of {STATE_ALIGNMENT}; such states fail on the engine"
                yield self._make("state-width", f"state {state.name}", what, used)

    def _float32_islands(self) -> Iterator[Finding]:
        """Yield one finding for each run of operations in float32; a cast from it belongs to it, one to it does not."""
        island: list[Operation] = []
        for operation in [*runtime_operations(self.graph), None]:
            if operation is not None and self._in_float32(operation):
                island.append(operation)
            elif island:
                kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(op.type for op in island).most_common(4))
                where = (
                    f"{operation_key(island[0])} to {operation_key(island[-1])}"
                    if len(island) > 1
                    else operation_key(island[0])
                )
                what = f"{len(island)} operations compute in float32 ({kinds})"
                yield self._make("float32", where, what, tuple(operation_key(op) for op in island))
                island = []

    def _in_float32(self, operation: Operation) -> bool:
        wide = ("float32", "float64")
        if operation.type == "cast":
            return any(spec.dtype in wide and spec.name in self.computed for spec in operation.reads)
        return any(spec.dtype in wide for spec in (*operation.reads, *operation.outputs))

    def _alignment(self) -> Iterator[Finding]:
        for kind, specs in (("input", self.graph.inputs), ("output", self.graph.outputs)):
            for spec in specs.values():
                if wasted := padding_bytes(spec):
                    ratio = 1 + wasted / max(tensor_bytes(spec), 1)
                    what = f"its last axis is padded to {ALIGNMENT_BYTES} bytes: {wasted} bytes more, {ratio:.4g}x"
                    yield self._make("alignment", f"{kind} {spec}", what, (), wasted)

    def _totals(self) -> Iterator[Finding]:
        dense = sum(weight.dense_bytes for weight in self.weights.values())
        stored = sum(weight.stored_bytes for weight in self.weights.values())
        aperture, largest = self.chip.aperture_bytes, self.chip.max_model_bytes
        if aperture and dense > aperture.value:
            what = f"{dense / 1e9:.2f} GB decompressed, {self.chip.title} addresses {aperture.value / 1e9:.2f} GB"
            yield self._make(
                "aperture",
                "all weights",
                what,
                tuple(operation_key(operation) for operation in runtime_operations(self.graph)),
            )
        if largest and stored > largest.value:
            what = f"{stored / 1e9:.2f} GB stored, iOS takes models below {largest.value / 1e9:g} GB"
            yield self._make("ios-size", "all weights", what)


def _made_of_2_and_3(step: int) -> bool:
    return step == 1 or (step > 0 and 6 ** math.ceil(math.log2(step)) % step == 0)

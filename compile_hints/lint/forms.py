"""Forms of compressed weights, and what is reported of each on the Neural Engine.

Reports are read from `compressed_forms.json` beside this module.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from whisperkit_tools.mil.graph import Graph, Operation
from whisperkit_tools.mil.tensor_spec import is_float
from whisperkit_tools.strict_json import parse_json

RULE_PREFIX = "form-"


@dataclass(frozen=True, slots=True)
class FormReport:
    """What is reported of a compressed form.

    Attributes:
        form: The form's name, as `weight_forms` yields it.
        title: The form in print.
        verdict: What it does on the Neural Engine. Empty where it is reported to work.
        chip: The report's chip. Empty where it names none.
        system: The report's operating system. Empty where it names none.
        kind: As in `Figure`.
        source: Who says so, and where.
        advice: What to do about it.
    """

    form: str
    title: str
    verdict: str
    chip: str
    system: str
    kind: str
    source: str
    advice: str

    @property
    def rule(self) -> str:
        """Name of the lint rule."""
        return RULE_PREFIX + self.form

    @property
    def what(self) -> str:
        """The finding in print."""
        where = ", ".join(part for part in (self.system, self.chip) if part)
        return f"{self.title}: {self.verdict}" + (f" ({where})" if where else "")


@cache
def form_reports() -> dict[str, FormReport]:
    """Return the report of each form, by its name."""
    data = parse_json((files(__package__) / "compressed_forms.json").read_bytes())
    return {entry["form"]: FormReport(**entry) for entry in data["forms"]}


def weight_forms(graph: Graph) -> Iterator[tuple[str, str]]:
    """Yield name and form of each compressed weight that has a form of its own. Plain palettes have none."""
    for operation in graph.operations:
        if operation.type.startswith("constexpr_") and (form := _form(operation)):
            yield operation.outputs[0].name, form


def _form(operation: Operation) -> str:
    if operation.type == "constexpr_affine_dequantize":
        return "channels"
    if operation.type == "constexpr_blockwise_shift_scale":
        return _scaled_form(operation)
    if operation.type == "constexpr_sparse_to_dense":
        return "outliers"
    if operation.type == "constexpr_lut_to_dense" and "shape" not in operation.inputs:  # the form of iOS 18
        shape = operation.inputs["lut"][0].shape
        *groups, _, vector = shape if len(shape) > 1 else (*shape, 1)  # of one palette, as iOS 16 has it
        return "vectors" if vector != 1 else "groups" if any(size != 1 for size in groups) else ""
    return ""


def _scaled_form(operation: Operation) -> str:
    data, scale = operation.inputs["data"][0], operation.inputs["scale"][0]
    if is_float(data.dtype):
        return "scales"
    blocks = [size for size, whole in zip(scale.shape, data.shape, strict=True) if size not in (1, whole)]
    return "blocks" if blocks or sum(size != 1 for size in scale.shape) > 1 else "channels"

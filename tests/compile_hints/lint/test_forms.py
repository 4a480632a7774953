"""Compressed forms and their reports. Programs are built by coremltools."""

import numpy as np
import pytest
from helpers.mil_programs import save

from whisperkit_tools.compile_hints.lint.chips import KINDS, load_chips
from whisperkit_tools.compile_hints.lint.forms import form_reports, weight_forms
from whisperkit_tools.compile_hints.lint.rules import lint_program, rules
from whisperkit_tools.mil.coreml import import_coremltools
from whisperkit_tools.mil.graph import read_graph

RNG = np.random.default_rng(0)
INTEGERS = RNG.integers(-127, 128, (64, 96)).astype(np.int8)
INDICES = RNG.integers(0, 256, (64, 96)).astype(np.uint8)


def half(*shape):
    return RNG.uniform(0.01, 0.1, shape).astype(np.float16)


def affine(mb):
    return mb.constexpr_affine_dequantize(
        quantized_data=INTEGERS, zero_point=np.zeros(64, np.int8), scale=half(64), axis=np.int32(0)
    )


def palette(mb, groups=(1, 1), vector=1):
    indices = INDICES[: 64 // vector]
    axis = {"vector_axis": np.int32(0)} if vector > 1 else {}
    return mb.constexpr_lut_to_dense(indices=indices, lut=half(*groups, 256, vector), **axis)


def scaled(mb):
    return mb.constexpr_blockwise_shift_scale(data=palette(mb), scale=half(64, 1))


def sparse(mb):
    mask = (INDICES < 8).astype(np.uint8)
    from coremltools.converters.mil.mil import types

    return mb.constexpr_sparse_to_dense(nonzero_data=half(int(mask.sum())), mask=mask.astype(types.np_uint1_dtype))


CASES = [
    ("iOS16", affine, "channels", None),
    ("iOS18", lambda mb: mb.constexpr_blockwise_shift_scale(data=INTEGERS, scale=half(64, 1)), "channels", None),
    ("iOS18", lambda mb: mb.constexpr_blockwise_shift_scale(data=INTEGERS, scale=half(64, 3)), "blocks", "form-blocks"),
    (
        "iOS18",
        lambda mb: mb.constexpr_blockwise_shift_scale(data=INTEGERS, scale=half(64, 96)),
        "blocks",
        "form-blocks",
    ),
    ("iOS18", palette, None, None),
    ("iOS18", lambda mb: palette(mb, (2, 1)), "groups", None),
    ("iOS18", lambda mb: palette(mb, (1, 3)), "groups", None),
    ("iOS18", lambda mb: palette(mb, vector=2), "vectors", "form-vectors"),
    ("iOS18", scaled, "scales", "form-scales"),
    ("iOS18", sparse, "outliers", "form-outliers"),
]


@pytest.mark.parametrize(("opset", "weight", "form", "rule"), CASES)
def test_each_form_is_recognised_and_reported(tmp_path, opset, weight, form, rule):
    import_coremltools()
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    specs = [mb.TensorSpec(shape=(1, 96), dtype=types.fp16)]
    path = save(lambda x: mb.linear(x=x, weight=weight(mb)), specs, tmp_path / "program.mlpackage", opset)
    graph = read_graph(path)
    assert [found for _, found in weight_forms(graph)] == ([form] if form else [])
    table = load_chips()
    findings = [
        finding for finding in lint_program(graph, table.chip("m4"), table).findings if finding.rule.startswith("form-")
    ]
    assert [finding.rule for finding in findings] == ([rule] if rule else [])
    assert not any(finding.leaves for finding in findings)


def test_reports_have_sources_and_say_where():
    assert all(report.source and report.kind in KINDS for report in form_reports().values())
    assert {name for name in rules() if name.startswith("form-")} == {
        "form-scales", "form-blocks", "form-vectors", "form-outliers"
    }  # fmt: skip
    assert form_reports()["scales"].what.endswith("reported not to load on the Neural Engine (macOS 26, M4)")
    assert "#2688" in form_reports()["scales"].source
    assert "#279" in form_reports()["blocks"].source

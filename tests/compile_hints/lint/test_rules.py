"""The lint's rules, each with a program that breaks it and one that does not; programs are built by coremltools."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.mil_programs import save

from whisperkit_tools.compile_hints.lint.chips import KINDS, Figure, load_chips
from whisperkit_tools.compile_hints.lint.rules import Finding, Residency, lint_program, padding_bytes, rules
from whisperkit_tools.mil.coreml import import_coremltools
from whisperkit_tools.mil.graph import Constant, Graph, Metadata, Operation, read_graph
from whisperkit_tools.mil.tensor_spec import TensorSpec

TABLE = load_chips()
METADATA = Metadata("", "", "", "", 9, "CoreML8", {})


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Graph]:
    """Build a program with coremltools from inputs `(shape, type)`, save it, read it back."""
    count = 0

    def make(program: Callable[..., Any], *inputs: tuple[tuple[Any, ...], str], opset: str = "iOS17") -> Graph:
        nonlocal count
        count += 1
        import_coremltools()
        from coremltools.converters.mil.mil import types

        specs = [mb().TensorSpec(shape=shape, dtype=getattr(types, dtype)) for shape, dtype in inputs]
        path = save(program, specs, tmp_path / f"program{count}.mlpackage", opset)
        return read_graph(path)

    return make


def mb() -> Any:
    import_coremltools()
    from coremltools.converters.mil import Builder

    return Builder


def broken(graph: Graph, chip: str = "m1") -> dict[str, list[Finding]]:
    found: dict[str, list[Finding]] = {}
    for finding in lint_program(graph, TABLE.chip(chip), TABLE).findings:
        found.setdefault(finding.rule, []).append(finding)
    return found


def lint(graph: Graph, chip: str = "m1") -> Residency:
    return lint_program(graph, TABLE.chip(chip), TABLE)


def shape_only(*operations: Operation, constants: tuple[TensorSpec, ...] = (), **inputs: TensorSpec) -> Graph:
    """A program whose constants have shapes but take no memory."""
    held = {spec.name: Constant(spec, np.broadcast_to(np.float16(0), spec.shape)) for spec in constants}
    outputs = {spec.name: spec for spec in operations[-1].outputs}
    return Graph(Path("shape only"), "main", METADATA, inputs, {}, outputs, held, operations)


def linear(rows: int, columns: int) -> Graph:
    """A product with one float16 weight `[rows, columns]`."""
    x, weight = TensorSpec("x", (1, columns), "float16"), TensorSpec("w", (rows, columns), "float16")
    out = TensorSpec("y", (1, rows), "float16")
    return shape_only(Operation("linear", "y", {"x": (x,), "weight": (weight,)}, (out,), 0), constants=(weight,), x=x)


LEAVES_FIRST = [((1, 64, 1, 32), "fp16")]


@pytest.mark.parametrize("kind", ["mod", "logical_and", "reduce_prod", "one_hot", "non_zero", "band_part"])
def test_no_path(build, kind):
    programs = {
        "mod": lambda x: mb().mod(x=x, y=np.float16(3)),
        "logical_and": lambda x: mb().logical_and(
            x=mb().greater(x=x, y=np.float16(0)), y=mb().less(x=x, y=np.float16(2))
        ),
        "reduce_prod": lambda x: mb().reduce_prod(x=x, axes=[1], keep_dims=True),
        "one_hot": lambda x: mb().one_hot(indices=mb().const(val=np.array([1], np.int32)), one_hot_vector_size=4),
        "non_zero": lambda x: mb().non_zero(x=x),
        "band_part": lambda x: mb().band_part(x=x, lower=1, upper=1),
    }
    found = broken(build(programs[kind], *LEAVES_FIRST), "m5")
    assert [finding.what for finding in found["no-path"]] == [f"no Neural Engine runs {kind}"]
    assert found["no-path"][0].leaves
    assert "no-path" not in broken(build(lambda x: mb().relu(x=x), *LEAVES_FIRST), "m5")


def test_lstm_and_scatter_have_no_path():
    out = TensorSpec("y", (1, 32), "float16")
    for kind in ("lstm", "gru", "scatter", "scatter_nd", "scatter_along_axis"):
        assert "no-path" in broken(shape_only(Operation(kind, "y", {}, (out,), 0)), "m5")


@pytest.mark.parametrize(
    ("kind", "last_without", "first_with"),
    [
        ("topk", "m1", "m2"),
        ("sin", "m2", "m3"),
        ("cos", "a15", "a16"),
        ("gather", "a14", "a15"),
        ("argsort", "m1", "m2"),
    ],
)
def test_operations_that_newer_chips_have(build, kind, last_without, first_with):
    programs = {
        "topk": lambda x: mb().topk(x=x, k=2, axis=1)[0],
        "sin": lambda x: mb().sin(x=x),
        "cos": lambda x: mb().cos(x=x),
        "gather": lambda x: mb().gather(x=x, indices=np.array([1, 3], np.int32), axis=1),
        "argsort": lambda x: mb().cast(x=mb().argsort(x=x, axis=1), dtype="fp16"),
    }
    graph = build(programs[kind], *LEAVES_FIRST)
    old = broken(graph, last_without)["newer-chip"]
    assert len(old) == 1
    assert f"has no {kind}" in old[0].what
    assert "the first with it: " in old[0].what
    assert "newer-chip" not in broken(graph, first_with)


def test_unknown_operation_and_control_flow():
    out = TensorSpec("y", (1, 32), "float16")
    assert "unknown-operation" in broken(shape_only(Operation("frobnicate", "y", {}, (out,), 0)))
    assert "unknown-operation" not in broken(shape_only(Operation("relu", "y", {}, (out,), 0)))
    assert "control-flow" in broken(shape_only(Operation("cond", "y", {}, (out,), 0, has_blocks=True)))
    assert "control-flow" not in broken(shape_only(Operation("relu", "y", {}, (out,), 0)))


def test_float32_islands_are_found_as_a_whole(build):
    def island(x):
        inside = mb().cast(x=mb().relu(x=x), dtype="fp32")
        inside = mb().exp(x=mb().add(x=inside, y=np.float32(1)))
        return mb().relu(x=mb().cast(x=inside, dtype="fp16"), name="after")

    report = lint(build(island, *LEAVES_FIRST))
    found = [finding for finding in report.findings if finding.rule == "float32"]
    assert len(found) == 1
    assert len(found[0].operations) == 3  # add, exp and the cast back; the cast to it stays
    assert "3 operations compute in float32" in found[0].what
    assert report.switches == 2
    assert 0 < report.flops_share < 1
    assert lint(build(lambda x: mb().exp(x=mb().add(x=x, y=np.float16(1))), *LEAVES_FIRST)).findings == ()


def test_a_float32_constant_is_enough():
    x, y = TensorSpec("x", (1, 32), "float16"), TensorSpec("y", (1, 32), "float16")
    constant = TensorSpec("c", (1, 32), "float32")
    graph = shape_only(Operation("add", "y", {"x": (x,), "y": (constant,)}, (y,), 0), constants=(constant,), x=x)
    assert "float32" in broken(graph)


def test_int32_casts_on_m1_and_integer_arithmetic_anywhere(build):
    there_and_back = build(lambda x: mb().cast(x=mb().cast(x=x, dtype="int32"), dtype="fp16"), *LEAVES_FIRST)
    assert len(broken(there_and_back, "m1")["int32-cast"]) == 2
    assert broken(there_and_back, "m2") == {}
    adds = build(lambda x: mb().cast(x=mb().add(x=x, y=np.int32(1)), dtype="fp16"), ((1, 16), "int32"))
    assert len(broken(adds, "m5")["integer"]) == 1
    assert "integer" not in broken(there_and_back, "m1")


def test_rank(build):
    six = TensorSpec("y", (1, 1, 1, 1, 1, 32), "float16")
    assert "rank" in broken(shape_only(Operation("relu", "y", {}, (six,), 0)), "m5")
    five = build(lambda x: mb().relu(x=x), ((1, 2, 2, 2, 32), "fp16"))
    assert broken(five, "m1") == {}
    assert "at most 4 are possible" in broken(five, "a13")["rank"][0].what


def test_open_shape():
    x, y = TensorSpec("x", (1, None), "float16"), TensorSpec("y", (1, None), "float16")
    assert "open-shape" in broken(shape_only(Operation("relu", "y", {"x": (x,)}, (y,), 0), x=x))
    fixed = TensorSpec("y", (1, 32), "float16")
    assert "open-shape" not in broken(shape_only(Operation("relu", "y", {}, (fixed,), 0)))


@pytest.mark.parametrize(
    ("shape", "chip", "axis"),
    [
        ((1, 1, 51866), "m1", "W is 51866, the limit is 16384"),
        ((1, 1, 51866), "a16", "W is 51866, the limit is 16384"),
        ((1, 1, 51866), "m4", None),
        ((1, 51866, 1, 1), "m1", None),
        ((1, 1, 16384), "m1", None),
        ((1, 1, 16385, 32), "m1", "H is 16385, the limit is 16384"),
        ((1, 65537, 1, 32), "m5", "C is 65537, the limit is 65536"),
        ((65537, 1, 1, 32), "m5", "N is 65537, the limit is 65536"),
    ],
)
def test_tensor_size(shape, chip, axis):
    x, y = TensorSpec("x", shape, "float16"), TensorSpec("y", shape, "float16")
    found = broken(shape_only(Operation("relu", "y", {"x": (x,)}, (y,), 0), x=x), chip)
    assert ("tensor-size" in found) == (axis is not None)
    if axis:
        assert found["tensor-size"][0].what.endswith(f"axis {axis}")


def test_stride(build):
    weight = np.ones((8, 64, 1, 5), np.float16)

    def conv(step):
        return build(lambda x: mb().conv(x=x, weight=weight, strides=[1, step]), ((1, 64, 1, 64), "fp16"))

    assert "stride" in broken(conv(5))
    assert all("stride" not in broken(conv(step)) for step in (2, 6))


def test_stride_with_a_palettized_kernel(build):
    def program(step):
        def conv(x):
            indices = np.zeros((8, 64, 1, 3), np.uint8)
            lut = np.zeros((1, 1, 1, 1, 16, 1), np.float16)
            from coremltools.converters.mil.mil import types

            packed = indices.astype(types.nptype_from_builtin(types.string_to_builtin("uint4")))
            weight = mb().constexpr_lut_to_dense(indices=packed, lut=lut)
            return mb().conv(x=x, weight=weight, strides=[1, step])

        return build(conv, ((1, 64, 1, 96), "fp16"), opset="iOS18")

    assert "with a palettized kernel" in broken(program(3))["stride"][0].what
    assert "stride" not in broken(program(2))


def test_weight_size():
    assert "225 MiB, the limit is 224 MiB" in broken(linear(2048, 57600))["weight-size"][0].what
    assert "weight-size" not in broken(linear(2048, 57344))


def test_aperture_of_m1_class_chips():
    def many(count):
        x = TensorSpec("x", (1, 10000), "float16")
        weights = tuple(TensorSpec(f"w{index}", (10000, 10000), "float16") for index in range(count))
        operations, last = [], x
        for index, weight in enumerate(weights):
            out = TensorSpec(f"y{index}", (1, 10000), "float16")
            operations.append(Operation("linear", out.name, {"x": (last,), "weight": (weight,)}, (out,), index))
            last = out
        return shape_only(*operations, constants=weights, x=x)

    report = lint(many(19), "m1")
    assert "3.80 GB decompressed, M1 addresses 3.75 GB" in next(f.what for f in report.findings if f.rule == "aperture")
    assert not any(report.on_engine.values())
    assert "aperture" not in broken(many(18), "m1")
    assert "aperture" not in broken(many(19), "m2")
    assert "3.80 GB stored" in broken(many(19), "a17pro")["ios-size"][0].what
    assert "ios-size" not in broken(many(9), "a17pro")
    assert "ios-size" not in broken(many(19), "m2")


def test_masks_are_finite(build):
    def add(value):
        return build(lambda x: mb().softmax(x=mb().add(x=x, y=np.float16(value)), axis=-1), *LEAVES_FIRST)

    found = broken(add(-np.inf))["mask"][0]
    assert not found.leaves
    assert "-inf" in found.what
    assert "mask" in broken(add(-5e4))
    assert "mask" not in broken(add(-1e4))


def test_copies(build):
    def reshape(shape):
        return build(lambda x: mb().reshape(x=x, shape=shape), *LEAVES_FIRST)

    def transpose(perm):
        return build(lambda x: mb().transpose(x=x, perm=perm), *LEAVES_FIRST)

    report = lint(reshape([1, 32, 1, 64]))
    assert [finding.rule for finding in report.findings] == ["copy"]
    assert report.copied_bytes == 2 * 64 * 32 * 2
    assert report.on_engine == {next(iter(report.on_engine)): True}
    assert lint(reshape([1, 8, 8, 32])).findings == ()
    assert "copy" in broken(transpose([0, 3, 2, 1]))
    assert broken(transpose([0, 2, 1, 3])) == {}


@pytest.mark.parametrize(
    ("shape", "dtype", "wasted"),
    [
        ((1, 128, 1, 1), "float16", 128 * 62),  # 32 times the memory
        ((1, 128, 1, 32), "float16", 0),
        ((1, 128, 1, 1500), "float16", 128 * 8),
        ((1,), "int32", 60),
        ((16,), "int32", 0),
        ((1, 128, 1, None), "float16", 0),
        ((), "float16", 0),
    ],
)
def test_padding_of_the_last_axis(shape, dtype, wasted):
    assert padding_bytes(TensorSpec("x", shape, dtype)) == wasted


def test_alignment_is_judged_at_inputs_and_outputs_alone(build):
    def sums(x):
        return mb().reduce_sum(x=x, axes=[3], keep_dims=True)

    found = broken(build(sums, *LEAVES_FIRST))["alignment"]
    assert len(found) == 1
    assert found[0].where.startswith("output ")
    assert (found[0].wasted_bytes, found[0].what) == (
        64 * 62,
        "its last axis is padded to 64 bytes: 3968 bytes more, 32x",
    )
    assert broken(build(lambda x: mb().add(x=sums(x), y=x), *LEAVES_FIRST)) == {}


def test_the_order_that_changes_the_engine_least(build):
    """Two independent sines on M1 leave together: engine, away, engine."""

    def program(x):
        first = mb().sin(x=mb().relu(x=x))
        second = mb().sin(x=mb().exp(x=x))
        return mb().add(x=mb().relu(x=first), y=mb().relu(x=second))

    assert lint(build(program, *LEAVES_FIRST), "m1").switches == 2
    assert lint(build(program, *LEAVES_FIRST), "m3").switches == 0


@pytest.mark.parametrize(("width", "leaves"), [(1504, False), (1500, True), (448, False), (30, True)])
def test_states_have_whole_rows(width, leaves):
    state, column = TensorSpec("cache", (1, 4, 1, width), "float16"), TensorSpec("x", (1, 4, 1, width), "float16")
    read = Operation("read_state", "read", {"input": (state,)}, (TensorSpec("old", state.shape, "float16"),), 0)
    total = Operation(
        "add", "sum", {"x": read.outputs, "y": (column,)}, (TensorSpec("new", state.shape, "float16"),), 1
    )
    write = Operation("write_state", "write", {"input": (state,), "data": total.outputs}, (), 2)
    last = Operation("relu", "relu", {"x": total.outputs}, (TensorSpec("y", state.shape, "float16"),), 3)
    graph = shape_only(read, total, write, last, x=column)
    graph.states["cache"] = state
    found = broken(graph, "m4").get("state-width", [])
    assert [finding.operations for finding in found] == ([("old", "write")] if leaves else [])
    on_engine = lint(graph, "m4").on_engine
    assert on_engine["old"] is not leaves and on_engine["write"] is not leaves and on_engine["new"]


def test_every_rule_says_what_to_do_and_who_says_so():
    assert all(rule.advice and rule.source for rule in rules().values())


def test_every_figure_has_a_known_kind_and_a_source():
    figures = [
        value
        for chip in TABLE.chips.values()
        for name in chip.__slots__
        for value in (getattr(chip, name).values() if name == "stream_gain" else [getattr(chip, name)])
        if isinstance(value, Figure)
    ]
    assert len(figures) > 100
    assert all(figure.kind in KINDS and figure.source for figure in figures)
    assert TABLE.native.value.isdisjoint(TABLE.no_path.value)


def test_an_unknown_chip_lists_those_that_are_known():
    with pytest.raises(ValueError, match=r"unknown chip 'm9'; known are a12, .*a17pro.*m5"):
        TABLE.chip("m9")
    assert TABLE.chip("A17 Pro").name == "a17pro"

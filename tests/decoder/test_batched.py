"""Columns of the caches that the steps of a batch share. Their gradients are tested in test_teacher_forcing."""

from dataclasses import replace

import pytest
import torch

from whisperkit_tools.decoder.batched import share_cache_columns, write_columns
from whisperkit_tools.mil.graph import read_graph
from whisperkit_tools.mil.kernels import bind


@pytest.fixture(scope="module")
def nodes(demo_bundle):
    return bind(read_graph(demo_bundle / "TextDecoder.mlpackage"))


def _one(nodes, kind, reads):
    return next(at for at, node in enumerate(nodes) if node.type == kind and reads in node.reads)


def _with(nodes, at, **changes):
    return [replace(node, **changes) if number == at else node for number, node in enumerate(nodes)]


def test_every_layer_reads_its_part_through_a_link_and_only_after_its_column_is_made(nodes):
    found = share_cache_columns(nodes)
    links = [node for node in found if node.type == "write_columns"]
    layers = len(nodes[_one(nodes, "split", "key_cache")].outputs)
    assert len(links) == 2 * layers
    assert len(found) == len(nodes) + len(links)
    parts = {node.arguments[0] for node in links}
    assert all(node.type == "write_columns" for node in found if parts.intersection(node.reads))
    made = set()
    for node in found:
        assert made.issuperset(name for name in node.reads if any(name == o.name for n in found for o in n.outputs))
        made.update(out.name for out in node.outputs)


def test_a_cache_that_two_operations_read_is_not_linked(nodes):
    split = nodes[_one(nodes, "split", "key_cache")]
    assert share_cache_columns([*nodes, replace(split, name="again", outputs=())]) is None


def test_a_cache_that_is_cut_along_another_axis_is_not_linked(nodes):
    at = _one(nodes, "split", "value_cache")
    assert share_cache_columns(_with(nodes, at, values={**nodes[at].values, "axis": 3})) is None


def test_updates_that_are_not_one_column_of_each_part_are_not_linked(nodes):
    at = next(number for number, node in enumerate(nodes) if node.outputs[0].name == "key_cache_updates")
    assert share_cache_columns(_with(nodes, at, arguments=nodes[at].arguments[:-1])) is None


def test_a_column_that_is_made_from_its_own_part_is_not_linked(nodes):
    part = nodes[_one(nodes, "split", "key_cache")].outputs[0].name
    joined = next(node for node in nodes if node.outputs[0].name == "key_cache_updates").arguments[0]
    maker = next(number for number, node in enumerate(nodes) if node.outputs[0].name == joined)
    assert share_cache_columns(_with(nodes, maker, arguments=(part, *nodes[maker].arguments[1:]))) is None


@pytest.mark.parametrize("calls", [None, 3])
def test_a_link_writes_the_columns_and_takes_the_gradient_of_each_to_its_call(calls):
    part = torch.randn(1, 2, 1, 5, requires_grad=True)
    masks = torch.eye(5)[1 : 1 + (calls or 1)][:, None]
    updates = torch.randn(len(masks), 1, 2, 1, 1, requires_grad=True)
    wanted = torch.randn(1, 2, 1, 5)
    if calls:
        found = torch.vmap(write_columns, in_dims=(None, 0, 0), out_dims=None)(part, updates, masks)
    else:
        found = write_columns(part, updates[0], masks[0])
    found.backward(wanted)
    for column in range(5):
        is_written = 0 < column <= len(masks)
        expected = updates[column - 1, ..., 0] if is_written else part[..., column]
        assert torch.equal(found[..., column], expected)
        gradient = updates.grad[column - 1, ..., 0] if is_written else part.grad[..., column]
        assert torch.equal(gradient, wanted[..., column])
        assert not is_written or not part.grad[..., column].any()

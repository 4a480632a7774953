"""Replacement of combinations of operations by faster ones, for float32 without gradients.

Each rule looks at one call and, through the producers of its arguments, at the calls before it. A call inside a
combination is only replaced when nobody else reads its result. float16 mode rounds the results in between, and a run
with gradients takes the program as it stands, so neither uses this.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from whisperkit_tools.mil import fused_kernels as fused
from whisperkit_tools.mil.kernels import Node, make_kernel
from whisperkit_tools.mil.tensor_spec import TensorSpec, is_float


class UseDef:
    """Definitions and uses: which call computes each value, and which calls read it."""

    def __init__(self, nodes: Sequence[Node], outputs: Iterable[str], stored: Mapping[str, TensorSpec]) -> None:
        self._producers = {output.name: node for node in nodes for output in node.outputs}
        self._specs = {**stored, **{output.name: output for node in nodes for output in node.outputs}}
        self._readers = Counter(name for node in nodes for name in node.reads)
        self._readers.update(outputs)
        self._nodes = nodes
        self._outputs = frozenset(outputs)

    def sole_producer(self, name: str | None, *types: str) -> Node | None:
        """Return the call that computes `name`, if it is of one of `types` and `name` has a single reader."""
        if name is None or self._readers[name] != 1:
            return None
        node = self._producers.get(name)
        return node if node is not None and node.type in types else None

    def is_last_reader(self, node: Node, name: str) -> bool:
        """Return whether no call after `node` reads a value or a view of it, and neither is an output."""
        views = {name}
        passed = False
        for other in self._nodes:
            if passed and not views.isdisjoint(other.reads):
                return False
            if other is not node and other.may_share_memory and not views.isdisjoint(other.reads):
                views.update(output.name for output in other.outputs)
            passed = passed or other is node
        return views.isdisjoint(self._outputs)

    def readers(self, name: str, *types: str) -> list[Node]:
        """Return the calls of these types that read a value."""
        return [node for node in self._nodes if node.type in types and name in node.reads]

    def shape(self, name: str | None) -> tuple[int, ...] | None:
        """Return the shape of a value, if all of it is known."""
        spec = self._specs.get(name) if name is not None else None
        return _known(spec.shape) if spec is not None else None


@dataclass(frozen=True, slots=True)
class Replacement:
    """A rewrite: the calls `removed` make room for `added`, which stand at the place of the last of them."""

    removed: tuple[Node, ...]
    added: tuple[Node, ...]


_PACKED = 1 << 22  # elements from which a matrix is beyond the caches, and worth a second copy in float16

Rule: TypeAlias = Callable[[Node, UseDef], Replacement | None]


def fuse(nodes: Sequence[Node], outputs: Iterable[str], stored: Mapping[str, TensorSpec]) -> list[Node]:
    """Apply all rules.

    Args:
        nodes: The calls in order.
        outputs: Names of the outputs.
        stored: Specs of the inputs and constants.

    Returns:
        Calls that compute the same outputs.
    """
    rules: tuple[Rule, ...] = (
        _cached_attention,
        _cached_attention_at,
        _attention,
        _split_head_attention,
        _affine_layer_norm,
        _state_slice_write,
    )
    names = tuple(outputs)
    result = list(nodes)
    for rule in rules:
        result = _apply(rule, result, UseDef(result, names, stored))
    known = {**stored, **{output.name: output for node in result for output in node.outputs}}
    result = [new for node in result for new in _product(node, known)]
    return _channels_last(result)


def _apply(rule: Rule, nodes: list[Node], uses: UseDef) -> list[Node]:
    """Apply one rule everywhere."""
    removed: set[int] = set()
    added: dict[int, tuple[Node, ...]] = {}
    for node in nodes:
        found = rule(node, uses)
        if found is not None:
            removed.update(id(old) for old in found.removed)
            added[id(node)] = found.added
    result: list[Node] = []
    for node in nodes:
        result.extend(added.get(id(node), ()))
        if id(node) not in removed:
            result.append(node)
    return result


def _fused(name: str, function: Callable[..., Any], like: Node, arguments: Iterable[str | None], **values: Any) -> Node:
    """Return a call of a fused kernel that computes what `like` computes."""
    return Node(name, like.name, make_kernel(name, function), tuple(arguments), like.outputs, values)


def _known(shape: Iterable[int | None]) -> tuple[int, ...] | None:
    sizes = tuple(shape)
    return None if None in sizes else tuple(size for size in sizes if size is not None)


# --- products -------------------------------------------------------------------------------------------------------


def _product(node: Node, known: Mapping[str, TensorSpec]) -> tuple[Node, ...]:
    """Return matrix products for a 1x1 convolution along the sequence or a linear layer on one vector, else `node`."""
    if node.type == "conv":
        return (_pointwise(node, known) or node,)
    shape = _known(node.outputs[0].shape) if node.type == "linear" and not node.dynamic else None
    if shape is None or _count(shape[:-1]) != 1:
        return (node,)
    x, weight, *bias = node.arguments
    spec = known.get(weight or "")
    if spec is None or spec.size < _PACKED:
        return (_fused("fused_linear", fused.single_row_linear, node, node.arguments, shape=shape),)
    packed = TensorSpec(f"{node.name}:packed", spec.shape, spec.dtype)
    packing = Node("packed_half", packed.name, make_kernel("packed_half", fused.packed_half), (weight,), (packed,))
    return packing, _fused("fused_linear", fused.single_row_linear, node, (x, packed.name, *bias), shape=shape)


def _pointwise(node: Node, known: Mapping[str, TensorSpec]) -> Node | None:
    weight = known.get(node.arguments[1] or "")
    shape = _known(node.outputs[0].shape)
    if weight is None or shape is None or len(shape) != 4 or weight.shape[2:] != (1, 1):
        return None
    padded = node.values.get("pad_type") == "custom" and any(node.values.get("pad", ()))
    stepping = any(step != 1 for step in node.values.get("strides", ()))
    if node.dynamic or padded or stepping or node.values.get("groups", 1) != 1:
        return None
    single = shape[0] * shape[2] * shape[3] == 1
    return _fused("fused_conv", fused.single_position_conv if single else fused.pointwise_conv, node, node.arguments)


def _channels_last(nodes: list[Node]) -> list[Node]:
    """Let wide convolutions give channels-last results, where layer norms over the channels follow.

    Otherwise their layout would stay with the residual stream, and each norm and each sum would have to convert.
    """
    if not any(node.type == "layer_norm" and list(node.values.get("axes", ())) == [1] for node in nodes):
        return nodes
    return [
        _fused("fused_conv", fused.channels_last_conv, node, node.arguments, **node.values)
        if node.type == "conv" and len(node.outputs[0].shape) == 4 and not node.dynamic
        else node
        for node in nodes
    ]


def _count(shape: Iterable[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


# --- attention ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Attention:
    """The calls of one attention: two products, the mask's addition if any, the softmax."""

    nodes: tuple[Node, ...]
    scores: Node
    mask: str | None
    combine: Node
    weights_first: bool


def _find_attention(node: Node, uses: UseDef) -> _Attention | None:
    """Recognise `matmul(value, softmax(matmul(query, key) [+ mask]))`, with the last product either way round."""
    if node.type != "matmul" or node.dynamic:
        return None
    left, right = node.arguments
    for weights, weights_first in ((left, True), (right, False)):
        softmax = uses.sole_producer(weights, "softmax")
        # The weights are `[Q, K]`; as the second factor they have to be transposed.
        transposed = node.values.get("transpose_x" if weights_first else "transpose_y", False)
        if softmax is None or transposed is weights_first or not _over_last_axis(softmax):
            continue
        nodes: tuple[Node, ...] = (softmax, node)
        mask, scored = None, softmax.arguments[0]
        addition = uses.sole_producer(scored, "add")
        if addition is not None:
            scored, mask = _product_and_mask(addition, uses, "matmul")
            nodes = (addition, *nodes)
        scores = uses.sole_producer(scored, "matmul")
        if scores is not None and not scores.dynamic:
            return _Attention((scores, *nodes), scores, mask, node, weights_first)
    return None


def _over_last_axis(softmax: Node) -> bool:
    return not softmax.dynamic and softmax.values.get("axis", -1) in (-1, len(softmax.outputs[0].shape) - 1)


def _product_and_mask(addition: Node, uses: UseDef, product: str) -> tuple[str | None, str | None]:
    """Tell which summand is the product of query and key, an operation of type `product`."""
    first, second = addition.arguments
    if uses.sole_producer(first, product) is not None:
        return first, second
    return (second, first) if uses.sole_producer(second, product) is not None else (None, None)


def _attention(node: Node, uses: UseDef) -> Replacement | None:
    """Replace an attention with batch and head axes, of more than one position, by one kernel.

    For one position the scores are small, and plain products read keys and values faster.
    """
    found = _find_attention(node, uses)
    if found is None or found.scores.outputs[0].shape[-2:-1] == (1,):
        return None
    left, right = node.arguments
    value = right if found.weights_first else left
    value_transposed = node.values.get("transpose_y" if found.weights_first else "transpose_x", False)
    scores = found.scores
    query, key = scores.arguments
    shapes = [uses.shape(name) for name in (query, key, value)]
    if any(shape is None or len(shape) != 4 for shape in shapes) or len({shape[:2] for shape in shapes if shape}) != 1:
        return None
    new = _fused(
        "fused_scaled_dot_product_attention",
        fused.attention,
        node,
        [query, key, value, found.mask] if found.mask is not None else [query, key, value],
        query_is_column=scores.values.get("transpose_x", False),
        key_is_column=not scores.values.get("transpose_y", False),
        value_is_column=value_transposed if found.weights_first else not value_transposed,
        result_is_column=not found.weights_first,
    )
    return Replacement(found.nodes, (new,))


def _split_head_attention(node: Node, uses: UseDef) -> Replacement | None:
    """Replace `einsum(value, softmax(einsum(key, query) [+ mask]))` with the softmax over axis 1."""
    last = _terms(node, "bchq", rest="k")
    if last is None or last.keys() != {"bchk", "bkhq"}:
        return None
    softmax = uses.sole_producer(last["bkhq"], "softmax")
    if softmax is None or softmax.dynamic or softmax.values.get("axis", -1) not in (1, -3):
        return None
    nodes: tuple[Node, ...] = (softmax, node)
    mask, scored = None, softmax.arguments[0]
    addition = uses.sole_producer(scored, "add")
    if addition is not None:
        scored, mask = _product_and_mask(addition, uses, "einsum")
        nodes = (addition, *nodes)
    scores = uses.sole_producer(scored, "einsum")
    first = _terms(scores, "bkhq", rest="c") if scores is not None else None
    shape = uses.shape(mask) if mask is not None else (1,) * 4
    if scores is None or first is None or first.keys() != {"bkhc", "bchq"} or shape is None or len(shape) != 4:
        return None
    arguments = [first["bchq"], first["bkhc"], last["bchk"], *([] if mask is None else [mask])]
    name = "fused_scaled_dot_product_attention"
    return Replacement((scores, *nodes), (_fused(name, fused.split_head_attention, node, arguments),))


def _terms(node: Node, result: str, rest: str) -> dict[str, str] | None:
    """Return an einsum's arguments by their axes, the axes of its result being called `result`, a summed one `rest`."""
    if node.type != "einsum" or node.dynamic or len(node.arguments) != 2:
        return None
    left, made = str(node.values["equation"]).replace(" ", "").split("->")
    if len(made) != len(result) or len(set(left) - {",", *made}) != 1:
        return None
    summed = (set(left) - {",", *made}).pop()
    names = str.maketrans(made + summed, result + rest)
    terms = left.translate(names).split(",")
    return {term: name for term, name in zip(terms, node.arguments, strict=True) if name is not None}


@dataclass(frozen=True, slots=True)
class _Update:
    """`cache * elsewhere + update * here`, split into heads."""

    nodes: tuple[Node, ...]
    cache: str
    update: str
    here: str
    elsewhere: str


def _find_single_attention(node: Node, uses: UseDef) -> tuple[_Attention, str | None, str | None] | None:
    """Recognise an attention of one position with a mask; return it with the names of the query and the keys."""
    found = _find_attention(node, uses)
    shape = _known(node.outputs[0].shape) if found is not None else None
    if found is None or found.weights_first or found.mask is None or shape is None:
        return None
    query, key = found.scores.arguments
    transposed = (found.scores.values.get("transpose_x", False), found.scores.values.get("transpose_y", False))
    if transposed != (True, False) or node.values.get("transpose_x", False) or (shape[0], shape[-1]) != (1, 1):
        return None
    return found, query, key


def _cached_attention(node: Node, uses: UseDef) -> Replacement | None:
    """Replace an attention of one position, together with the update of the caches it reads."""
    single = _find_single_attention(node, uses)
    if single is None:
        return None
    found, query, key = single
    keys, values = _find_update(key, uses), _find_update(node.arguments[0], uses)
    if keys is None or values is None or (keys.here, keys.elsewhere) != (values.here, values.elsewhere):
        return None
    arguments = [query, keys.cache, values.cache, keys.update, values.update, keys.here, keys.elsewhere, found.mask]
    new = _fused("fused_cached_attention", fused.cached_attention, node, arguments)
    return Replacement((*keys.nodes, *values.nodes, *found.nodes), (new,))


def _find_update(name: str | None, uses: UseDef) -> _Update | None:
    """Recognise a cache update of a cache `[1, D, 1, S]` and an update `[1, D, 1, 1]`."""
    heads = uses.sole_producer(name, "reshape")
    total = uses.sole_producer(heads.arguments[0], "add") if heads is not None else None
    if heads is None or total is None or len(heads.outputs[0].shape) != 4:
        return None
    kept, added = (uses.sole_producer(summand, "mul") for summand in total.arguments)
    if kept is None or added is None:
        return None
    full = total.outputs[0].shape
    if kept.arguments[0] is not None and uses.shape(kept.arguments[0]) != full:
        kept, added = added, kept
    cache, elsewhere = kept.arguments
    update, here = added.arguments
    fits = uses.shape(cache) == full and uses.shape(update) == (*full[:3], 1) and full[0] == full[2] == 1
    if not fits or cache is None or update is None or here is None or elsewhere is None:
        return None
    return _Update((kept, added, total, heads), cache, update, here, elsewhere)


def _cached_attention_at(node: Node, uses: UseDef) -> Replacement | None:
    """The same where the caches are updated by `slice_update`."""
    single = _find_single_attention(node, uses)
    if single is None:
        return None
    found, query, key = single
    updated = [_find_column_update(name, uses) for name in (key, node.arguments[0])]
    if updated[0] is None or updated[1] is None:
        return None
    (key_heads, keys), (value_heads, values) = updated[0], updated[1]
    if keys.dynamic["begin"] != values.dynamic["begin"]:
        return None
    arguments = (query, keys.arguments[0], values.arguments[0], keys.arguments[1], values.arguments[1], found.mask)
    kernel = make_kernel("fused_cached_attention_at", fused.cached_attention_at)
    new = Node(kernel.type, node.name, kernel, arguments, node.outputs, dynamic={"begin": keys.dynamic["begin"]})
    return Replacement((keys, values, key_heads, value_heads, *found.nodes), (new,))


def _find_column_update(name: str | None, uses: UseDef) -> tuple[Node, Node] | None:
    """Recognise `reshape(slice_update(cache, column))` of a cache `[1, D, 1, S]` at a position known at run time."""
    heads = uses.sole_producer(name, "reshape")
    update = uses.sole_producer(heads.arguments[0], "slice_update") if heads is not None else None
    if heads is None or update is None or set(update.dynamic) != {"begin", "end"} or len(heads.outputs[0].shape) != 4:
        return None
    full = uses.shape(update.arguments[0])
    open_axes = [True, True, True, False]
    bounds = [update.values.get(mask) for mask in ("begin_mask", "end_mask")]
    plain = not any(update.values.get("squeeze_mask") or ()) and set(update.values.get("stride") or (1,)) == {1}
    fits = full is not None and uses.shape(update.arguments[1]) == (*full[:3], 1) and full[0] == full[2] == 1
    return (heads, update) if fits and plain and bounds == [open_axes, open_axes] else None


# --- states ---------------------------------------------------------------------------------------------------------


def _state_slice_write(node: Node, uses: UseDef) -> Replacement | None:
    """Write a slice into a state in place: `write_state(s, slice_update(read_state(s), ...))`, if no call notices."""
    if node.type != "write_state" or node.arguments[0] is None:
        return None
    state, written = node.arguments[0], node.arguments[1]
    update = uses.sole_producer(written, "slice_update")
    reads, writes = uses.readers(state, "read_state"), uses.readers(state, "write_state", "coreml_update_state")
    if update is None or len(reads) != 1 or len(writes) != 1:
        return None
    present = reads[0].outputs[0].name
    if update.arguments[0] != present or not uses.is_last_reader(update, present):
        return None
    kernel = make_kernel("fused_write_state", fused.write_state_slice)
    new = Node(kernel.type, node.name, kernel, (state, update.arguments[1]), (), update.values, update.dynamic)
    return Replacement((update, node), (new,))


# --- normalisation --------------------------------------------------------------------------------------------------


def _affine_layer_norm(node: Node, uses: UseDef) -> Replacement | None:
    """Move the scale and shift of a batch norm into the layer norm over the channels before it."""
    if node.type != "batch_norm" or node.dynamic:
        return None
    before = uses.sole_producer(node.arguments[0], "layer_norm")
    if before is None or len(before.arguments) > 1 or list(before.values.get("axes", ())) != [1]:
        return None
    mean, variance, *rest = node.arguments[1:]
    gamma, beta = (*rest, None, None)[:2]
    channels = (before.outputs[0].shape[1],)
    names = f"{node.name}:scale", f"{node.name}:shift"
    scale, shift = (TensorSpec(name, channels, before.outputs[0].dtype) for name in names)
    epsilon = {"epsilon": node.values["epsilon"]} if "epsilon" in node.values else {}
    new = (
        Node(
            "norm_scale", scale.name, make_kernel("norm_scale", fused.norm_scale), (variance, gamma), (scale,), epsilon
        ),
        Node("norm_shift", shift.name, make_kernel("norm_shift", fused.norm_shift), (mean, scale.name, beta), (shift,)),
        Node(
            "layer_norm",
            node.name,
            before.kernel,
            (before.arguments[0], scale.name, shift.name),
            node.outputs,
            before.values,
        ),
    )
    return Replacement((before, node), new) if is_float(node.outputs[0].dtype) else None

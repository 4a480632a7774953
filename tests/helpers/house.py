"""What the house rules look at: the production modules, their imports, their strings and their classes."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOPS = ("whisperkit_tools", "compile_hints", "quantization", "eval")
FLAG = re.compile(r"(?<![\w-])(?:--[a-z][a-z0-9-]*|-[a-z])(?![\w=-])")

Modules = dict[str, ast.Module]


def modules(root: Path = ROOT) -> Modules:
    """Parse every production module, by its dotted name below `whisperkit_tools`."""
    found = {}
    for top in TOPS:
        for path in sorted((root / top).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            inner = parts[1:] if parts[0] == "whisperkit_tools" else parts
            name = ".".join(part for part in inner if part != "__init__")
            found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def circles(parsed: Modules) -> list[list[str]]:
    """Circles of modules that import each other, imports inside functions included, those for types alone not."""
    edges = {name: _imported(tree, parsed) - {name} for name, tree in parsed.items()}
    return [sorted(group) for group in _components(edges) if len(group) > 1]


def _imported(tree: ast.Module, parsed: Modules) -> set[str]:
    found = set()
    for node in _runtime_nodes(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("whisperkit_tools"):
            base = node.module.removeprefix("whisperkit_tools").removeprefix(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}".removeprefix(".")
                found.add(inner if inner in parsed else base)
    return found - {""}  # the root package: its version, and the face, which imports lazily by design


def _runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under `if TYPE_CHECKING:`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        yield node
        yield from _runtime_nodes(node)


def _components(edges: dict[str, set[str]]) -> list[set[str]]:
    """Strongly connected components: modules that reach each other."""
    reach: dict[str, set[str]] = {}
    for start in edges:
        seen, stack = set(), [start]
        while stack:
            for name in edges.get(stack.pop(), set()) - seen:
                seen.add(name)
                stack.append(name)
        reach[start] = seen
    groups: list[set[str]] = []
    for name in edges:
        if not any(name in group for group in groups):
            groups.append({name} | {other for other in reach[name] if name in reach[other]})
    return groups


def flags(parsed: Modules, own: frozenset[str], *, known: frozenset[str] = frozenset()) -> list[str]:
    """Flags of our command line in strings, docstrings included, of modules outside `cli`.

    Args:
        parsed: The modules.
        own: The flags of our commands. Those of other tools may be mentioned.
        known: Modules with a command line of their own.
    """
    return [
        f"{name}:{node.lineno}: {found}"
        for name, tree in parsed.items()
        if name.split(".")[0] != "cli" and name not in known
        for node in _strings(tree)
        for found in FLAG.findall(node.value)
        if found in own
    ]


def spelled_out(parsed: Modules, names: frozenset[str], *, elsewhere: frozenset[str]) -> list[str]:
    """Contract names as words of strings outside the contract, docstrings excepted.

    Args:
        parsed: The modules.
        names: The names of the contract.
        elsewhere: Modules, or rooms with a trailing dot, where such a string is another library's word.
    """
    return [
        f"{name}:{node.lineno}: {node.value}"
        for name, tree in parsed.items()
        if name != "contract" and not name.startswith(tuple(room for room in elsewhere if room.endswith(".")))
        if name not in elsewhere
        for node in _strings(tree, docstrings=False)
        if not names.isdisjoint(re.findall(r"\w+", node.value))
    ]


def _strings(tree: ast.Module, *, docstrings: bool = True) -> list[ast.Constant]:
    skipped = set() if docstrings else {id(node) for node in _docstrings(tree)}
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped
    ]


def _docstrings(tree: ast.Module) -> Iterator[ast.Constant]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                yield first.value


def doubled_classes(parsed: Modules) -> dict[str, list[str]]:
    """Public classes that several modules define under one name."""
    homes = defaultdict(list)
    for name, tree in parsed.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(name)
    return {name: found for name, found in homes.items() if len(found) > 1}

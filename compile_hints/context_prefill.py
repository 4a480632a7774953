"""The caches after the tokens that every answer starts with, as a table: a look-up instead of decoder passes.

The caches of `<|startoftranscript|>`, the language and the task depend only little on the audio, so their mean over
audio can replace them. The decoder is causal: the first token's caches are the same for all languages and tasks, and
the second's for all tasks. So the tokens form a tree, and the table has one row for each of its nodes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class ForcedTokens:
    """The tokens that an answer starts with: one, or three when the model takes a language and a task.

    They form a tree with numbered nodes: the start, then the languages, then each language's tasks.

    Attributes:
        start: Id of `<|startoftranscript|>`.
        languages: Ids of the languages. Empty for an English-only model.
        tasks: Ids of `<|transcribe|>` and, where there is one, `<|translate|>`. Empty for an English-only model.
    """

    start: int
    languages: tuple[int, ...] = ()
    tasks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Raise `ValueError` for ids that contradict each other."""
        if bool(self.languages) != bool(self.tasks):
            raise ValueError(f"{len(self.languages)} languages and {len(self.tasks)} tasks: expected both or neither")
        if len(set(self.languages)) < len(self.languages) or len(set(self.tasks)) < len(self.tasks):
            raise ValueError("an id stands for two languages or two tasks")

    @property
    def length(self) -> int:
        """Number of tokens that an answer starts with."""
        return 3 if self.languages else 1

    @property
    def tokens(self) -> tuple[int, ...]:
        """The token of each node."""
        return (self.start, *self.languages, *(task for _ in self.languages for task in self.tasks))

    @property
    def positions(self) -> tuple[int, ...]:
        """The position of each node's token in the answer."""
        pairs = len(self.languages) * len(self.tasks)
        return (0, *(1 for _ in self.languages), *(2 for _ in range(pairs)))

    @property
    def paths(self) -> tuple[tuple[int, ...], ...]:
        """For each node, the nodes from the start to itself."""
        start, pairs = [(0,)], [(0, 1 + at) for at in range(len(self.languages))]
        leaves = [self.path(language, task) for language in self.languages for task in range(len(self.tasks))]
        return (*start, *pairs, *leaves)

    def path(self, language: int, task: int) -> tuple[int, ...]:
        """Return the nodes of one answer.

        Args:
            language: The language's token id, without meaning for an English-only model.
            task: Index in `tasks`.

        Raises:
            ValueError: There is no such language or task.
        """
        if not self.languages:
            return (0,)
        if language not in self.languages or not 0 <= task < len(self.tasks):
            raise ValueError(f"there is no language {language} with task {task} among the forced tokens")
        at, count = self.languages.index(language), len(self.languages)
        return (0, 1 + at, 1 + count + at * len(self.tasks) + task)


class ContextPrefill(nn.Module):
    """A look-up of the caches of one language and task."""

    def __init__(self, forced: ForcedTokens, keys: Tensor, values: Tensor) -> None:
        """Take the table.

        Args:
            forced: The tree of tokens.
            keys: `[nodes, D * L]`, all layers' keys of each node.
            values: `[nodes, D * L]`.

        Raises:
            ValueError: The tables do not have one row for each node.
        """
        super().__init__()
        nodes = len(forced.tokens)
        if keys.shape != values.shape or keys.ndim != 2 or keys.shape[0] != nodes:
            raise ValueError(
                f"the tables are {list(keys.shape)} and {list(values.shape)}, expected a row for each of {nodes} nodes"
            )
        self.forced = forced
        self.keys = nn.Parameter(keys, requires_grad=False)
        self.values = nn.Parameter(values, requires_grad=False)
        count, tasks = len(forced.languages), len(forced.tasks)
        # Row of each position: first + language * by_language + task * by_task.
        self._first, self._by_language, self._by_task = (
            ([0, 1, 1 + count], [0, 1, tasks], [0, 0, 1]) if count else ([0], [0], [0])
        )

    def forward(self, task: Tensor, language: Tensor) -> tuple[Tensor, Tensor]:
        """Look up.

        Args:
            task: `[1]` int32: 0 to transcribe, 1 to translate.
            language: `[1]` int32, the language's token id. An unknown one stands for the first language, because a
                table cannot refuse.

        Returns:
            `key_cache_prefill` and `value_cache_prefill`, each `[1, D * L, 1, n]`.
        """
        known = self._integers(self.forced.languages or (self.forced.start,), like=language)
        numbers = self._integers(range(len(known)), like=language)
        at = ((known == language).to(language.dtype) * numbers).sum(dim=0, keepdim=True, dtype=language.dtype)
        task = torch.minimum(task, task.new_full((1,), max(len(self.forced.tasks) - 1, 0)))
        first, by_language, by_task = (
            self._integers(numbers, like=task) for numbers in (self._first, self._by_language, self._by_task)
        )
        rows = first + at * by_language + task * by_task
        return self._columns(rows, self.keys), self._columns(rows, self.values)

    @staticmethod
    def _integers(numbers: Sequence[int], like: Tensor) -> Tensor:
        return torch.tensor(list(numbers), dtype=like.dtype, device=like.device)

    @staticmethod
    def _columns(rows: Tensor, table: Tensor) -> Tensor:
        """Return the rows of a table as positions of a cache."""
        return F.embedding(rows, table).t()[None, :, None, :]

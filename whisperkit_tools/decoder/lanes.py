"""Several transcripts side by side through one decoder: a step reads the weights once for all of them.

Each transcript has a lane, with caches and audio of its own, and is at a position of its own. Its session is like any
other, so decoding loops need not know of the lanes. Only `DecoderLanes.step` does.

A step computes on every position of the caches that it is given, also on those that nothing was written to. The lanes
therefore hand in the caches only up to the first positions that hold all transcripts. And they keep the part of each
layer as a tensor of its own, because a product that reads a part of a larger tensor would have to copy it first.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from whisperkit_tools import contract
from whisperkit_tools.decoder.batched import parts_and_columns, with_open_length
from whisperkit_tools.decoder.session import CacheColumns, DecoderSession, DecoderStep, fixed_axis
from whisperkit_tools.decoder.step_inputs import StepInputs
from whisperkit_tools.mil.kernels import Node
from whisperkit_tools.mil.program import Program
from whisperkit_tools.mil.tensor_spec import TensorSpec

_CACHES = ((contract.KEY_CACHE, contract.KEY_UPDATES), (contract.VALUE_CACHE, contract.VALUE_UPDATES))
_GRANULE = 32  # positions by which the caches grow
_TOLERANCE = 1e-3  # of the largest logit; other orders of sums differ by a thousandth of that


class DecoderLanes:
    """A decoder program with caches for several transcripts.

    Attributes:
        capacity: Number of lanes.
        length: Positions of the caches.
    """

    def __init__(self, decoder: Program, capacity: int, dtype: torch.dtype = torch.float32) -> None:
        """Make empty caches.

        Args:
            decoder: A TextDecoder with caches as inputs.
            capacity: Number of lanes.
            dtype: Type of the floating-point tensors handed in.

        Raises:
            BundleError: The caches' shape is open.
            RuntimeError: There is not enough memory.
        """
        self.capacity = capacity
        self.device, self.dtype = decoder.device, dtype
        cache = decoder.inputs[contract.KEY_CACHE]
        self.length = fixed_axis(cache, 3)
        layers = _Layers.of(decoder, self.length)
        self._layers = layers
        shape = (2, len(layers.parts) // 2, capacity, layers.channels, 1, self.length)
        self._caches = torch.zeros(shape, device=self.device, dtype=dtype)
        self._flat = self._caches.view(len(layers.parts), capacity, layers.channels, self.length)
        self._steps = StepInputs(self.length, self.device, dtype)
        self._program = decoder.batched(capacity, layers.rewritten, inputs=layers.inputs, outputs=layers.outputs)
        self._sessions = [LaneSession(self, lane) for lane in range(capacity)]
        self._granule = self.length
        if self._takes_short_caches(decoder):
            self._granule = _GRANULE

    def sessions(self) -> list["LaneSession"]:
        """Return the session of each lane, in their order."""
        return list(self._sessions)

    def put(self, lane: int, embeds: Tensor) -> None:
        """Give a lane the audio embeddings `[1, D, 1, n_audio_ctx]` of its window."""
        with torch.no_grad():
            self._program.put(lane, {contract.EMBEDS: embeds})

    def caches(self, lane: int) -> tuple[Tensor, Tensor]:
        """Return the caches of a lane, keys and values: views `[L, D, S]`."""
        keys, values = self._caches[:, :, lane, :, 0]
        return keys, values

    def move(self, source: int, target: int) -> None:
        """Move a session to another lane with its audio and caches. The one that was there takes its place, empty."""
        self._program.move(source, target)
        self._caches[:, :, target] = self._caches[:, :, source]
        sessions = self._sessions
        sessions[source], sessions[target] = sessions[target], sessions[source]
        sessions[source].lane, sessions[target].lane = source, target
        sessions[source].forget()

    def step(self, tokens: Sequence[int], positions: Sequence[int], first: int = 0) -> list[DecoderStep]:
        """Decode a token in each of consecutive lanes, and cache their keys and values.

        Args:
            tokens: The token of each lane.
            positions: In each lane, the number of tokens before it.
            first: Number of the first lane.
        """
        for session, position in zip(self._sessions[first:], positions, strict=False):
            session.stepped(position)
        count = -(-(max(positions) + 1) // self._granule) * self._granule
        outputs = self._run(tokens, positions, min(count, self.length), first)
        logits = outputs[contract.LOGITS].reshape(len(tokens), -1).float().cpu()
        alignment = outputs.get(contract.ALIGNMENT)
        if alignment is None:
            return [DecoderStep(row, None) for row in logits]
        rows = alignment.reshape(len(tokens), -1).float().cpu()
        return [DecoderStep(*row) for row in zip(logits, rows, strict=True)]

    def _run(self, tokens: Sequence[int], positions: Sequence[int], length: int, first: int) -> dict[str, Tensor]:
        count = len(tokens)
        at = torch.tensor(positions, device=self.device)
        ids = torch.tensor(tokens, dtype=torch.int32, device=self.device)
        inputs = {contract.INPUT_IDS: ids}
        inputs |= {name: value.squeeze(1) for name, value in self._steps.batch(at, length).items()}
        parts = self._caches[:, :, first : first + count, ..., :length].flatten(0, 1)
        inputs |= dict(zip(self._layers.parts, parts, strict=True))
        with torch.no_grad():
            outputs = self._program.run(inputs, first, count)
        columns = torch.stack([outputs[name] for name in self._layers.columns])
        lanes = torch.arange(first, first + count, device=self.device)
        self._flat[:, lanes, :, at] = columns.flatten(2).transpose(0, 1).to(self.dtype)
        return outputs

    def _takes_short_caches(self, decoder: Program) -> bool:
        """Find out whether the program computes the same on shorter caches, which an operation may forbid."""
        if self.length <= _GRANULE:
            return False
        shape = [axis or 1 for axis in decoder.inputs[contract.EMBEDS].shape]
        self.put(
            0, torch.linspace(-1, 1, shape[1], device=self.device, dtype=self.dtype).reshape(1, -1, 1, 1).expand(shape)
        )
        try:
            short, whole = (
                self._run([0], [_GRANULE - 1], length, 0)[contract.LOGITS].float() for length in (_GRANULE, self.length)
            )
        except RuntimeError:
            return False
        finally:
            self._caches.zero_()
        return float((short - whole).abs().max()) <= _TOLERANCE * float(whole.abs().max())


class _Layers:
    """The caches as a decoder's calls see them: split into the layers' parts where the program shows these.

    Attributes:
        parts: Names of the inputs that take the caches, keys before values.
        columns: Names of the outputs that give what a step adds to each.
        channels: Channels of each.
        inputs: All inputs of the rewritten calls.
        outputs: All outputs of the rewritten calls.
    """

    def __init__(
        self, decoder: Program, length: int, pairs: Sequence[tuple[TensorSpec, str]], removed: set[str]
    ) -> None:
        self._length, self._removed = length, removed
        self.parts = [part.name for part, _ in pairs]
        self.columns = [column for _, column in pairs]
        self.channels = fixed_axis(pairs[0][0], 1)
        made = {output.name: output for node in decoder.executor.schedule.nodes for output in node.outputs}
        caches = {name for names in _CACHES for name in names}
        self.inputs = {name: spec for name, spec in decoder.inputs.items() if name not in caches}
        self.inputs |= {part.name: part for part, _ in pairs}
        self.outputs = {name: spec for name, spec in decoder.outputs.items() if name not in caches}
        self.outputs |= {column: made[column] for column in self.columns}

    @classmethod
    def of(cls, decoder: Program, length: int) -> "_Layers":
        """Read the structure off a decoder's calls."""
        nodes = decoder.executor.schedule.nodes
        found = [parts_and_columns(nodes, cache, updates) for cache, updates in _CACHES]
        sizes = {part.shape for pairs in found for part, _ in pairs or ()}
        joined = {updates for _, updates in _CACHES}
        if None in found or len(sizes) != 1 or any(joined.intersection(node.reads) for node in nodes):
            return cls(decoder, length, [(decoder.inputs[cache], updates) for cache, updates in _CACHES], set())
        split = {node.name for node in nodes if any(cache in node.reads for cache, _ in _CACHES)}
        concat = {node.name for node in nodes if joined.intersection(output.name for output in node.outputs)}
        return cls(decoder, length, [pair for pairs in found for pair in pairs or ()], split | concat)

    def rewritten(self, nodes: Sequence[Node]) -> list[Node]:
        """Return the calls on the layers' parts, of any length."""
        return [with_open_length(node, self._length) for node in nodes if node.name not in self._removed]


class LaneSession(DecoderSession):
    """The session of one lane.

    Attributes:
        lane: Its number.
    """

    def __init__(self, lanes: DecoderLanes, lane: int) -> None:
        """Take a lane with empty caches.

        Args:
            lanes: All lanes.
            lane: Its number.
        """
        super().__init__(lanes.length, lanes.device, lanes.dtype)
        self.lane = lane
        self._lanes = lanes
        self._filled = 0  # positions that may hold something

    def begin(self, embeds: Tensor) -> None:
        """Start a window with empty caches. The same embeddings object is projected only once."""
        if embeds is not self._embeds:
            self._lanes.put(self.lane, embeds)
            self._embeds = embeds
        self.rewind(0)

    def fill(self, columns: CacheColumns | None, count: int) -> None:
        """Take the first `count` positions from `columns`, if there are any, instead of decoding their tokens."""
        if columns is None:
            return
        for cache, taken in zip(self._lanes.caches(self.lane), (columns.keys, columns.values), strict=True):
            cache[..., :count] = taken[..., :count].reshape(*cache.shape[:2], count)
        self._filled = max(self._filled, count)

    def rewind(self, position: int) -> None:
        """Forget what was cached at `position` and after it."""
        for cache in self._lanes.caches(self.lane):
            cache[..., position : self._filled] = 0
        self._filled = min(self._filled, position)

    def columns(self, start: int, stop: int) -> CacheColumns:
        """Return a copy of what is cached at the positions from `start` to before `stop`."""
        keys, values = (cache[..., start:stop].flatten(0, 1)[None, :, None] for cache in self._lanes.caches(self.lane))
        return CacheColumns(keys.clone(), values.clone())

    def stepped(self, position: int) -> None:
        """Note that a token of this lane is decoded at a position."""
        self._filled = max(self._filled, position + 1)
        self.steps += 1

    def forget(self) -> None:
        """Note that the lane holds another session's audio and caches."""
        self._embeds = torch.empty(0)
        self._filled = self.length

    def _run(self, ids: Tensor, position: int) -> Mapping[str, Tensor]:
        (found,) = self._lanes.step(ids.tolist(), [position], self.lane)
        self.steps -= 1  # the caller counts it, too
        alignment = {} if found.alignment is None else {contract.ALIGNMENT: found.alignment}
        return {contract.LOGITS: found.logits, **alignment}

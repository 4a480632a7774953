"""LiteASR: an encoder whose linear layers are products of two thin matrices, made dense as they are read.

Source: Kamahori et al. 2025, "LiteASR", arXiv 2502.20583; the layout of efficient-speech/lite-whisper-*: a layer
computes `x @ weight1 @ weight2 + bias`.
"""

from torch import Tensor

from whisperkit_tools.checkpoint.tensors import StoredTensor, TensorTable
from whisperkit_tools.errors import CheckpointError

MODEL_TYPE = "lite-whisper"


def dense(table: TensorTable) -> dict[str, StoredTensor]:
    """Return the tensors with each pair of thin matrices replaced by the weight that they stand for.

    A bias of keys is dropped: it adds the same to the score of every key, which the softmax does not see.

    Raises:
        CheckpointError: A pair is incomplete or does not fit. All of them are named.
    """
    found, problems = dict[str, StoredTensor](), list[str]()
    for name, tensor in table.items():
        stem, _, end = name.rpartition(".")
        if end == "weight1":
            second = table.get(f"{stem}.weight2")
            if second is None or len(tensor.shape) != 2 or len(second.shape) != 2 or tensor.shape[1] != second.shape[0]:
                problems.append(f"{stem}: weight1 {list(tensor.shape)} has no weight2 that fits")
            else:
                found[f"{stem}.weight"] = _product(tensor, second)
        elif end == "weight2":
            problems += [] if f"{stem}.weight1" in table else [f"{stem}: weight2 has no weight1"]
        elif not name.endswith("k_proj.bias"):
            found[name] = tensor
    if problems:
        raise CheckpointError(f"the low-rank layers are not complete: {'; '.join(problems[:10])}")
    return found


def is_low_rank(table: TensorTable) -> bool:
    """Return whether a checkpoint has such layers."""
    return any(name.endswith(".weight1") for name in table)


def _product(first: StoredTensor, second: StoredTensor) -> StoredTensor:
    def read() -> Tensor:
        return (first.read().float() @ second.read().float()).T.contiguous()

    return StoredTensor((second.shape[1], first.shape[0]), "F32", read)

"""Download of a checkpoint from the Hugging Face Hub, with plain messages for its failures."""

from pathlib import Path

from whisperkit_tools.checkpoint.naming import aliases, nearest
from whisperkit_tools.errors import CheckpointError

ASSET_PATTERNS = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "normalizer.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "README.md",
    "adapter_config.json",
)
# Exact, because some repositories hold a second, float32 copy as `model.fp32-*.safetensors`.
SAFETENSORS_PATTERNS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "model-?????-of-?????.safetensors",
    "adapter_model.safetensors",
)
PICKLE_PATTERNS = (
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "pytorch_model-?????-of-?????.bin",
    "adapter_model.bin",
)


def download(hub_id: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    """Download the matching files of a repository, or find them in the Hub cache.

    Returns:
        The snapshot folder. Its name is the resolved commit.

    Raises:
        CheckpointError: The repository cannot be reached, does not exist, or may not be read.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=list(patterns)))
    except HFValidationError as error:
        raise CheckpointError(f"{hub_id!r} is not a Hub id: {error}") from error
    except Exception as error:  # the client raises its own errors and those of its HTTP library
        raise CheckpointError(_explain(hub_id, revision, error)) from error


def _explain(hub_id: str, revision: str | None, error: Exception) -> str:
    """Return one line with the failure and the remedy."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    while isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # the client looked into its cache after the Hub had refused: the refusal is the cause
    log_in = "log in with `hf auth login` or set HF_TOKEN"
    if isinstance(error, GatedRepoError):
        return f"{hub_id} is gated: accept its terms at {_endpoint()}/{hub_id}, then {log_in}"
    if isinstance(error, RevisionNotFoundError):
        return f"{hub_id} has no revision {revision!r}; give a branch, a tag or a full commit hash"
    if isinstance(error, RepositoryNotFoundError):
        suggestion = nearest(hub_id, sorted(set(aliases().values())))
        return f"no model {hub_id} on {_endpoint()}: {suggestion} If it is private, {log_in}"
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None
    if status in (401, 403):
        return f"{_endpoint()} refuses access to {hub_id} (HTTP {status}): {log_in} with an account that may read it"
    if status is not None:
        return f"{_endpoint()} answers HTTP {status} for {hub_id}; try again later"
    if isinstance(error, OSError) and not isinstance(error, (LocalEntryNotFoundError, ConnectionError)):
        return f"{hub_id} cannot be downloaded: {error}"  # a full disk, for example
    return (
        f"cannot reach {_endpoint()} and {hub_id} is not in the Hub cache; to work offline give a local folder, or "
        f"download it once on a machine with a connection and set HF_HUB_OFFLINE=1; for a mirror set HF_ENDPOINT"
    )


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)

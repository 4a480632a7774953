"""Complete Whisper checkpoints by name: aliases, the Hub, local folders, OpenAI files, LoRA adapters.

`open_checkpoint` finds and checks a checkpoint without reading its weights. `Checkpoint.load_encoder` and
`Checkpoint.load_decoder` read them, one component at a time.
"""

from whisperkit_tools.checkpoint.model import Checkpoint
from whisperkit_tools.checkpoint.opening import open_checkpoint

__all__ = ["Checkpoint", "open_checkpoint"]

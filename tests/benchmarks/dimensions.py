"""Dimensions of the published models and of the demo, and what has them: configs, checkpoints, random weights."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from whisperkit_tools.dimensions import ModelDimensions

KV_LENGTH = 448


@dataclass(frozen=True, slots=True)
class Size:
    """A model's true dimensions; feed-forward layers are four times as wide as the model."""

    d_model: int
    layers: int
    heads: int
    vocabulary: int
    n_mels: int = 80
    encoder_layers: int | None = None
    alignment_heads: tuple[tuple[int, int], ...] = ()

    @property
    def head_width(self) -> int:
        """Channels of a head."""
        return self.d_model // self.heads

    def config(self) -> WhisperConfig:
        """Return transformers' config."""
        return WhisperConfig(
            d_model=self.d_model,
            encoder_layers=self.encoder_layers or self.layers,
            decoder_layers=self.layers,
            encoder_attention_heads=self.heads,
            decoder_attention_heads=self.heads,
            encoder_ffn_dim=4 * self.d_model,
            decoder_ffn_dim=4 * self.d_model,
            num_mel_bins=self.n_mels,
            vocab_size=self.vocabulary,
        )


SIZES = {  # source: the published configs and generation configs
    "demo": Size(128, 2, 4, 2248, encoder_layers=3, alignment_heads=((1, 0), (1, 1))),
    "tiny": Size(384, 4, 6, 51865, alignment_heads=((2, 2), (3, 0), (3, 2), (3, 3), (3, 4), (3, 5))),
    "base": Size(512, 6, 8, 51865),
    "small": Size(768, 12, 12, 51865),
    "medium": Size(1024, 24, 16, 51865),
    "large-v3": Size(
        1280, 32, 20, 51866, 128, alignment_heads=tuple((layer, 4) for layer in (7, 10, 12, 13, 19, 20, 21, 23, 24, 25))
    ),
}


DECODERS = [name for name, size in SIZES.items() if size.alignment_heads]


def dimensions(config: Any) -> ModelDimensions:
    """Return the dimensions that a transformers config states."""
    return ModelDimensions(
        n_mels=config.num_mel_bins,
        n_audio_ctx=config.max_source_positions,
        d_model=config.d_model,
        encoder_layers=config.encoder_layers,
        encoder_attention_heads=config.encoder_attention_heads,
        encoder_ffn_dim=config.encoder_ffn_dim,
        decoder_layers=config.decoder_layers,
        decoder_attention_heads=config.decoder_attention_heads,
        decoder_ffn_dim=config.decoder_ffn_dim,
        n_text_ctx=config.max_target_positions,
        vocab_size=config.vocab_size,
    )


def random_model(name: str) -> WhisperForConditionalGeneration:
    """Return a model of true dimensions with seeded random weights."""
    torch.manual_seed(0)
    return WhisperForConditionalGeneration(SIZES[name].config())


def write_checkpoint(name: str, folder: Path) -> None:
    """Write a checkpoint of these dimensions in float16; the tokenizer files, which are only copied, are the demo's."""
    from whisperkit_tools.demo import demo_checkpoint_dir

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        random_model(name).save_pretrained(folder, max_shard_size="2GB")
    finally:
        torch.set_default_dtype(before)
    for file in demo_checkpoint_dir().glob("*.json"):
        if file.name != "config.json":
            shutil.copyfile(file, folder / file.name)

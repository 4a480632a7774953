"""How long one window takes through a bundle's packages, and through transformers' `generate` with its KV cache.

Both encode the same 30 s of features and decode the same number of tokens, greedily, in one process and in turn, so
that whatever else the machine does falls on both. Without `--checkpoint` the model has whisper-tiny's true dimensions
and seeded random weights, rounded to float16 for both.

    python tests/benchmarks/decode_speed.py [--checkpoint DIR] [--tokens 100] [--runs 7] [--threads 2] [--json FILE]
"""

import argparse
import contextlib
import io
import json
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

from whisperkit_tools.compile_hints.audio_encoder import AudioEncoder
from whisperkit_tools.compile_hints.text_decoder import TextDecoder
from whisperkit_tools.contract import package_interfaces
from whisperkit_tools.conversion.export import PackageMetadata, export_package, fold_query_scale
from whisperkit_tools.dimensions import ModelDimensions
from whisperkit_tools.mil.program import Program

KV_LENGTH = 448


def tiny() -> WhisperForConditionalGeneration:
    """A model of whisper-tiny's dimensions with seeded random weights."""
    config = WhisperConfig(
        d_model=384,
        encoder_layers=4,
        decoder_layers=4,
        encoder_attention_heads=6,
        decoder_attention_heads=6,
        encoder_ffn_dim=1536,
        decoder_ffn_dim=1536,
        num_mel_bins=80,
        vocab_size=51865,
    )
    torch.manual_seed(0)
    return WhisperForConditionalGeneration(config)


def load_model(checkpoint: Path | None) -> WhisperForConditionalGeneration:
    """The reference, its weights rounded to float16 as they are in a package, computing in float32."""
    if checkpoint is None:
        model = tiny()
    else:
        model = WhisperForConditionalGeneration.from_pretrained(checkpoint, attn_implementation="sdpa")
    model.generation_config = GenerationConfig(
        decoder_start_token_id=model.config.decoder_start_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
    )
    return model.half().float().eval()


def dimensions(config: Any) -> ModelDimensions:
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


def export(model: WhisperForConditionalGeneration, folder: Path) -> None:
    """Write AudioEncoder and TextDecoder as convert does."""
    dims = dimensions(model.config)
    interfaces = package_interfaces(dims, KV_LENGTH, word_timestamps=False)
    state = model.model.state_dict()
    modules: dict[str, torch.nn.Module] = {"AudioEncoder": AudioEncoder(dims), "TextDecoder": TextDecoder(dims)}
    for name, prefix in (("AudioEncoder", "encoder."), ("TextDecoder", "decoder.")):
        part = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        modules[name].load_state_dict(part)
        fold_query_scale(modules[name])
        metadata = PackageMetadata(name, "", "", "", {})
        path = folder / f"{name}.mlpackage"
        export_package(modules[name].half(), interfaces[name], path, deployment_target="ios16", metadata=metadata)


class Bundle:
    """The two packages with caches, decoding greedily."""

    def __init__(self, folder: Path) -> None:
        start = time.perf_counter()
        self.encoder = Program.load(folder / "AudioEncoder.mlpackage")
        self.decoder = Program.load(folder / "TextDecoder.mlpackage")
        self.load_s = time.perf_counter() - start
        shape = [axis or 1 for axis in self.decoder.inputs["key_cache"].shape]
        self.keys, self.values = torch.zeros(shape), torch.zeros(shape)
        self.masks = torch.eye(KV_LENGTH)
        self.padding = torch.full((KV_LENGTH, KV_LENGTH), -10000.0).triu(1)

    @torch.no_grad()
    def transcribe(self, features: torch.Tensor, start: int, end: int, tokens: int) -> list[int]:
        """Encode `features` `[1, n_mels, 3000]` and decode `tokens` tokens, none of them the end of text."""
        embeds = self.encoder.run({"melspectrogram_features": features[:, :, None]})["encoder_output_embeds"]
        self.keys.zero_()
        self.values.zero_()
        found = [start]
        for position in range(tokens):
            outputs = self.decoder.run(
                {
                    "input_ids": torch.tensor([found[-1]], dtype=torch.int32),
                    "cache_length": torch.tensor([position], dtype=torch.int32),
                    "key_cache": self.keys,
                    "value_cache": self.values,
                    "kv_cache_update_mask": self.masks[position : position + 1],
                    "encoder_output_embeds": embeds,
                    "decoder_key_padding_mask": self.padding[position : position + 1],
                }
            )
            self.keys[..., position : position + 1] = outputs["key_cache_updates"]
            self.values[..., position : position + 1] = outputs["value_cache_updates"]
            logits = outputs["logits"].view(-1)
            logits[end] = -torch.inf
            found.append(int(logits.argmax()))
        return found[1:]


def measure(ways: dict[str, Callable[[], Any]], runs: int) -> dict[str, dict[str, list[float]]]:
    """Wall and processor seconds of each way, `runs` times in turn after one run to warm up."""
    seconds: dict[str, dict[str, list[float]]] = {name: {"wall": [], "cpu": []} for name in ways}
    for run in range(runs + 1):
        for name, way in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            way()
            if run:
                seconds[name]["wall"].append(time.perf_counter() - wall)
                seconds[name]["cpu"].append(time.process_time() - cpu)
    return seconds


def compare(args: argparse.Namespace) -> dict[str, Any]:
    model = load_model(args.checkpoint)
    config = model.config
    features = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1.5, (1, config.num_mel_bins, 3000)))
    features = features.half().float()
    start, end = config.decoder_start_token_id, config.eos_token_id
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stderr(io.StringIO()):  # coremltools' progress bars
            export(model, Path(folder))
        bundle = Bundle(Path(folder))
        decoder_ids = torch.tensor([[start]])
        found: dict[str, list[int]] = {}

        def through_bundle() -> None:
            found["bundle"] = bundle.transcribe(features, start, end, args.tokens)

        def through_generate() -> None:
            limits = {"max_new_tokens": args.tokens, "min_new_tokens": args.tokens}
            ids = model.generate(features, decoder_input_ids=decoder_ids, do_sample=False, use_cache=True, **limits)
            found["generate"] = ids[0].tolist()[-args.tokens :]

        seconds = measure({"bundle": through_bundle, "generate": through_generate}, args.runs)
    result: dict[str, Any] = {"tokens": args.tokens, "threads": torch.get_num_threads(), "seconds": seconds}
    for clock in ("wall", "cpu"):
        medians = {name: statistics.median(values[clock]) for name, values in seconds.items()}
        result[f"median_{clock}_s"] = medians
        result[f"ratio_{clock}"] = medians["bundle"] / medians["generate"]
    result["load_s"] = bundle.load_s
    result["equal_tokens"] = sum(a == b for a, b in zip(found["bundle"], found["generate"], strict=True))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="folder of a Hugging Face Whisper checkpoint")
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    result = compare(args)
    print(f"{'':10} {'median':>8} {'min':>8} {'max':>8} {'cpu':>8}  seconds")
    for name, values in result["seconds"].items():
        figures = (
            result["median_wall_s"][name],
            min(values["wall"]),
            max(values["wall"]),
            result["median_cpu_s"][name],
        )
        print(f"{name:10} " + " ".join(f"{figure:8.3f}" for figure in figures))
    print(f"ratio of medians {result['ratio_wall']:.3f}, of processor time {result['ratio_cpu']:.3f}")
    print(f"equal tokens {result['equal_tokens']} of {result['tokens']}; loading {result['load_s']:.2f} s")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()

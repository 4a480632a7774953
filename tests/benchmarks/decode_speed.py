"""Time of one window through a bundle's packages, against transformers' `generate` with its KV cache.

Both encode the same 30 s of features and decode the same number of tokens, greedily, in one process and in turn, so
that whatever else the machine does falls on both. Without `--checkpoint` the model has whisper-tiny's true dimensions
and seeded random weights, rounded to float16 for both.

    python -m tests.benchmarks decode-speed [--checkpoint DIR] [--tokens 100] [--runs 7] [--threads 2]
"""

import contextlib
import io
import logging
import statistics
import tempfile
import warnings
from argparse import ArgumentParser, Namespace
from pathlib import Path

import numpy as np
import torch
from transformers import GenerationConfig, WhisperForConditionalGeneration

from tests.benchmarks.dimensions import KV_LENGTH, dimensions, random_model
from tests.benchmarks.harness import Column, Figure, Result, Stopwatch, Table, benchmark, in_turn, threads_option
from whisperkit_tools.compile_hints.audio_encoder import AudioEncoder
from whisperkit_tools.compile_hints.text_decoder import TextDecoder
from whisperkit_tools.contract import DECODER, EMBEDS, ENCODER, FEATURES, package_interfaces
from whisperkit_tools.conversion.export import PackageMetadata, export_package, fold_query_scale
from whisperkit_tools.decoder.session import CacheSession
from whisperkit_tools.mil.program import Program


def load_model(checkpoint: Path | None) -> WhisperForConditionalGeneration:
    """The reference, its weights rounded to float16 as they are in a package, computing in float32."""
    if checkpoint is None:
        model = random_model("tiny")
    else:
        model = WhisperForConditionalGeneration.from_pretrained(checkpoint, attn_implementation="sdpa")
    model.generation_config = GenerationConfig(
        decoder_start_token_id=model.config.decoder_start_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
    )
    return model.half().float().eval()


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
    """The two packages, decoding greedily in a session."""

    def __init__(self, folder: Path) -> None:
        watch = Stopwatch()
        self.encoder = Program.load(folder / f"{ENCODER}.mlpackage")
        self.session = CacheSession(Program.load(folder / f"{DECODER}.mlpackage"))
        self.load_s = watch.wall_s

    @torch.no_grad()
    def transcribe(self, features: torch.Tensor, start: int, end: int, tokens: int) -> list[int]:
        """Encode `features` `[1, n_mels, 3000]` and decode `tokens` tokens, none of them the end of text."""
        self.session.begin(self.encoder.run({FEATURES: features[:, :, None]})[EMBEDS])
        found = [start]
        for position in range(tokens):
            logits = self.session.step(found[-1], position).logits
            logits[end] = -torch.inf
            found.append(int(logits.argmax()))
        return found[1:]


def options(parser: ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, help="folder of a Hugging Face Whisper checkpoint")
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--runs", type=int, default=7)
    threads_option(parser)


@benchmark("decode-speed", options)
def decode_speed(args: Namespace) -> Result:
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
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

        seconds = in_turn({"bundle": through_bundle, "generate": through_generate}, args.runs)
    equal = sum(a == b for a, b in zip(found["bundle"], found["generate"], strict=True))
    return summary(seconds, bundle.load_s, equal, args.tokens)


def summary(seconds: dict[str, dict[str, list[float]]], load_s: float, equal: int, tokens: int) -> Result:
    """Medians and their ratios."""
    table = Table((
        Column("way", ""), Column("median_s", "median s", ".3f"), Column("min_s", "min s", ".3f"),
        Column("max_s", "max s", ".3f"), Column("median_cpu_s", "cpu s", ".3f"),
    ))  # fmt: skip
    for name, values in seconds.items():
        wall = values["wall"]
        table.add(
            way=name, median_s=statistics.median(wall), min_s=min(wall), max_s=max(wall),
            median_cpu_s=statistics.median(values["cpu"]), **values,
        )  # fmt: skip
    bundle, generate = table.rows
    figures = [
        Figure("through the bundle, median", bundle["median_s"], "s", spec=".2f"),
        Figure("through transformers' `generate` with its cache, median", generate["median_s"], "s", spec=".2f"),
        Figure("ratio of medians", bundle["median_s"] / generate["median_s"], spec=".2f"),
        Figure("ratio of processor time", bundle["median_cpu_s"] / generate["median_cpu_s"], spec=".2f"),
        Figure("loading the bundle", load_s, "s", spec=".2f"),
        Figure("equal tokens", f"{equal} of {tokens}"),
    ]
    return Result([table], figures, [f"{torch.get_num_threads()} threads"])

"""The factory of the embedded demo model and its audio. It starts from nothing.

    python -m whisperkit_tools.distill.demo_model all --work DIR

It needs espeak-ng (1.51 made the committed files) beside transformers, soundfile, soxr and jiwer. DIR holds the speech
pool (1.3 GB) and the training state. `train --resume` continues after a kill. The same seed, steps and workers draw the
same sentences, voices and windows, with and without a kill.

The command `all` with its defaults made the committed checkpoint. Its figures are in checkpoint/figures.json. Its steps
took 96 minutes on two busy cores. The loss on 30-second windows was still falling at the end.
"""

import argparse
import json
import os
import random
from importlib.resources import files
from pathlib import Path

import torch
import torch.distributed
from tokenizers import Tokenizer
from torch.multiprocessing.spawn import spawn

from whisperkit_tools.distill.demo_model.checkpoint_export import export_checkpoint, write_figures
from whisperkit_tools.distill.demo_model.figures import evaluate
from whisperkit_tools.distill.demo_model.grammar import Sentence, draw_held_out, draw_sentences
from whisperkit_tools.distill.demo_model.recordings import speak_held_out, write_recordings
from whisperkit_tools.distill.demo_model.synthesis import load_pool, save_pool, speak_all
from whisperkit_tools.distill.demo_model.train import Trainer, build_model, default_stages
from whisperkit_tools.distill.demo_model.vocabulary import special_ids, train_tokenizer
from whisperkit_tools.distill.demo_model.windows import WindowMaker

HELD_OUT_SENTENCES = 400
HELD_OUT_SEED = 1
EVALUATED = 100  # held-out utterances per language, the first of which are the committed recordings
HERE = Path(str(files("whisperkit_tools") / "demo"))


def held_out_sentences() -> list[Sentence]:
    """Return the sentences that training never sees."""
    return draw_held_out(HELD_OUT_SENTENCES, HELD_OUT_SEED)


def make_pool(path: Path, count: int, seed: int) -> None:
    """Speak `count` training sentences, half in each language."""
    sentences = draw_sentences(count, seed + 2, frozenset(held_out_sentences()))
    rng = random.Random(seed)
    save_pool(path, speak_all([(sentence, rng.choice(("en", "es"))) for sentence in sentences], seed))


def make_tokenizer(path: Path, seed: int) -> Tokenizer:
    """Train the tokenizer, or read the one that an earlier run trained."""
    if not path.exists():
        sentences = draw_sentences(20000, seed + 3)
        texts = [sentence.text(language) for sentence in sentences for language in ("en", "es")]
        train_tokenizer(texts).save(str(path))
    return Tokenizer.from_file(str(path))


def train(options: argparse.Namespace) -> None:
    """Make the pool and the tokenizer, then train."""
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    pool = work / "pool.npz"
    if not pool.exists():
        make_pool(pool, options.pool, options.seed)
    make_tokenizer(work / "tokenizer.json", options.seed)
    spawn(train_worker, (options,), nprocs=options.workers)  # type: ignore[no-untyped-call]


def train_worker(rank: int, options: argparse.Namespace) -> None:
    """Train in one process of several."""
    torch.set_num_threads(1)
    if options.workers > 1:
        meeting = f"file://{options.work.resolve()}/meeting-{os.getppid()}"  # one per run: a leftover file would block
        torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=options.workers)
    tokenizer = make_tokenizer(options.work / "tokenizer.json", options.seed)
    maker = WindowMaker(load_pool(options.work / "pool.npz"), tokenizer, special_ids())
    stages = default_stages(options.short_steps, options.middle_steps, options.long_steps, options.decay_steps)
    trainer = Trainer(maker, stages, options.work / "state.pt", options.seed, rank, options.workers)
    if options.resume:
        trainer.resume()
    trainer.run()


def record(options: argparse.Namespace) -> None:
    """Write the audio files."""
    write_recordings(options.audio, speak_held_out(held_out_sentences(), EVALUATED))


def export(options: argparse.Namespace) -> None:
    """Write the checkpoint folder from the training state."""
    state = torch.load(options.work / "state.pt", weights_only=True)
    ids = special_ids()
    tokenizer = Tokenizer.from_file(str(options.work / "tokenizer.json"))
    spoken = speak_held_out(held_out_sentences(), EVALUATED)
    chosen = [utterance for code in ("en", "es") for utterance in spoken[code][-12:]]
    figures = export_checkpoint(state["model"], build_model(ids, 0), tokenizer, ids, chosen, options.checkpoint)
    write_figures(options.checkpoint / "figures.json", figures)


def measure(options: argparse.Namespace) -> None:
    """Print the figures of the checkpoint and write them into it."""
    spoken = speak_held_out(held_out_sentences(), EVALUATED)
    figures = evaluate(options.checkpoint, {code: spoken[code][: options.count] for code in ("en", "es")})
    figures["command"] = f"python -m whisperkit_tools.distill.demo_model evaluate --count {options.count}"
    write_figures(options.checkpoint / "figures.json", figures)
    print(json.dumps(figures, indent=1))


def make_all(options: argparse.Namespace) -> None:
    """Run every step, in order."""
    for step in (train, record, export, measure):
        step(options)


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `train` and `all` share."""
    parser.add_argument("--resume", action="store_true", help="continue from the saved state")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--pool", type=int, default=20000, help="utterances to speak")
    parser.add_argument("--short-steps", type=int, default=3000)
    parser.add_argument("--middle-steps", type=int, default=1500)
    parser.add_argument("--long-steps", type=int, default=3300)
    parser.add_argument("--decay-steps", type=int, default=1100, help="of the long stage, at its end")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    work = argparse.ArgumentParser(add_help=False)
    work.add_argument("--work", type=Path, required=True, help="folder for the pool and the training state")
    audio = argparse.ArgumentParser(add_help=False)
    audio.add_argument("--audio", type=Path, default=HERE / "audio")
    checkpoint = argparse.ArgumentParser(add_help=False)
    checkpoint.add_argument("--checkpoint", type=Path, default=HERE / "checkpoint")
    count = argparse.ArgumentParser(add_help=False)
    count.add_argument("--count", type=int, default=EVALUATED, help="held-out utterances per language to evaluate")
    training = commands.add_parser("train", parents=[work], help="speech pool, tokenizer and training")
    add_training_options(training)
    training.set_defaults(run=train)
    commands.add_parser("audio", parents=[audio], help="the recordings").set_defaults(run=record)
    exporting = commands.add_parser(
        "export", parents=[work, checkpoint], help="the checkpoint, from the training state"
    )
    exporting.set_defaults(run=export)
    measuring = commands.add_parser(
        "evaluate", parents=[checkpoint, count], help="figures by transformers' generate, also written to figures.json"
    )
    measuring.set_defaults(run=measure)
    everything = commands.add_parser("all", parents=[work, audio, checkpoint, count], help="all of these in order")
    add_training_options(everything)
    everything.set_defaults(run=make_all)
    return parser.parse_args(arguments)


def main() -> None:
    """Run one command."""
    options = parse()
    options.run(options)


if __name__ == "__main__":
    main()

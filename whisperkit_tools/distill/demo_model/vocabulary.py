"""The demo's tokenizer: a small byte-level BPE followed by all of Whisper's special tokens in Whisper's order.

The ids differ from OpenAI's on purpose. A program that assumes theirs fails on the demo.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import WhisperTokenizer
from transformers.models.whisper.tokenization_whisper import LANGUAGES

TEXT_TOKENS = 640
TIMESTAMP_TOKENS = 1501  # 0.00 to 30.00 seconds in steps of 0.02
TIMESTAMP_STEP_S = 0.02


@dataclass(frozen=True, slots=True)
class SpecialIds:
    """The ids of the special tokens.

    Source: the order of openai/whisper's tokenizer (`get_encoding`), with the 99 languages of its first versions.
    """

    end: int
    start: int
    languages: dict[str, int]
    translate: int
    transcribe: int
    previous: int
    no_speech: int
    no_timestamps: int
    first_timestamp: int

    @property
    def vocabulary_size(self) -> int:
        """Entries of the vocabulary, special tokens included."""
        return self.first_timestamp + TIMESTAMP_TOKENS

    def timestamp(self, seconds: float) -> int:
        """Return the id of the timestamp nearest to `seconds`, 0 to 30."""
        return self.first_timestamp + min(TIMESTAMP_TOKENS - 1, max(0, round(seconds / TIMESTAMP_STEP_S)))


def _language_codes() -> list[str]:
    """Return Whisper's 99 languages. The hundredth, Cantonese, came with large-v3."""
    return [code for code in LANGUAGES if code != "yue"]


def _control_tokens() -> list[str]:
    languages = [f"<|{code}|>" for code in _language_codes()]
    tasks = ["<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    return ["<|endoftext|>", "<|startoftranscript|>", *languages, *tasks]


def special_ids() -> SpecialIds:
    """Return the ids that follow from `TEXT_TOKENS` and the order of the control tokens."""
    ids = {token: TEXT_TOKENS + index for index, token in enumerate(_control_tokens())}
    return SpecialIds(
        end=ids["<|endoftext|>"],
        start=ids["<|startoftranscript|>"],
        languages={f"<|{code}|>": ids[f"<|{code}|>"] for code in _language_codes()},
        translate=ids["<|translate|>"],
        transcribe=ids["<|transcribe|>"],
        previous=ids["<|startofprev|>"],
        no_speech=ids["<|nospeech|>"],
        no_timestamps=ids["<|notimestamps|>"],
        first_timestamp=TEXT_TOKENS + len(ids),
    )


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Train the byte-level BPE on sentences, each with the leading space that Whisper's text carries."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=TEXT_TOKENS, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator((f" {text}" for text in texts), trainer)
    found = tokenizer.get_vocab_size()
    if found != TEXT_TOKENS:
        raise ValueError(f"the texts gave {found} tokens, {TEXT_TOKENS} wanted; train on more sentences")
    control = _control_tokens()
    timestamps = [f"<|{index * TIMESTAMP_STEP_S:.2f}|>" for index in range(TIMESTAMP_TOKENS)]
    tokenizer.add_special_tokens(control)
    # As in Whisper's tokenizer.json, timestamps are added tokens, but not special ones.
    tokenizer.add_tokens(timestamps)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, normalizer: Path | None) -> None:
    """Write tokenizer.json and tokenizer_config.json (and normalizer.json) as transformers does.

    Args:
        tokenizer: The result of `train_tokenizer`.
        folder: The checkpoint's folder.
        normalizer: The table of English spellings, openai/whisper's `english.json` (MIT). None omits it.
    """
    bare = folder / "tokenizer.json"
    tokenizer.save(str(bare))
    wrapped = WhisperTokenizer.from_pretrained(folder, normalizer_file=None if normalizer is None else str(normalizer))
    wrapped.save_pretrained(folder)

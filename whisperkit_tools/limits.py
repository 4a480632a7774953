"""Limits on what data may ask for: the one place where they stand.

Files, archives, services and standard input come from elsewhere. A few bytes can ask for gigabytes or for hours.
Each limit is far above what a Whisper model, a recording or a dataset needs. What exceeds one is refused in one line.
"""

# JSON. Python's own parser has no limit on nesting but that of its stack.
JSON_BYTES = 64 << 20  # of one document, or of one line of a .jsonl file. The largest tokenizer has 4 MB
JSON_LINES_BYTES = 1 << 30  # of a .jsonl file or another table
JSON_DEPTH = 64
JSON_DIGITS = 20  # of an integer: 64 bits have 20

# YAML at the head of a model card. Aliases, by which 600 bytes become gigabytes, are refused.
YAML_BYTES = 1 << 20
YAML_DEPTH = 32

# ML Programs. The largest tensor of Whisper large-v3 is its token embedding, 66 million elements.
MODEL_BYTES = 512 << 20  # of a model specification without its weights
TENSOR_ELEMENTS = 1 << 28  # of any tensor that a program declares or computes; 1 GB in float32
MODEL_LAYERS = 256  # of an encoder or a decoder; the largest Whisper has 32
MODEL_SIZE = 1 << 20  # of any other size in a config; the largest vocabulary has 51,866 tokens
WINDOW_SAMPLES = 60 * 48_000  # of the audio that a model takes at once; every Whisper takes 480,000

# Audio. A rate far below speech would make a few bytes hours of samples at 16 kHz.
MIN_SAMPLE_RATE_HZ = 1_000
MAX_SAMPLE_RATE_HZ = 768_000
AUDIO_CHANNELS = 64  # through FFmpeg, whose conversion of samples ends there
AUDIO_S = 8 * 3600  # of one recording: 1.8 GB of samples
STDIN_BYTES = 1 << 30

# Archives of datasets.
ARCHIVE_FILES = 1_000_000
ARCHIVE_RATIO = 30  # unpacked bytes for each byte of the archive; audio packs to half at best
ARCHIVE_FREE_BYTES = 64 << 20  # unpacked bytes that are allowed whatever the ratio

# Services that transcribe.
ANSWER_BYTES = 16 << 20  # the word times of eight hours have half of that
REFUSAL_BYTES = 64 << 10
TEXT_PER_S = 200  # characters of text for each second of audio; fast speech has 25
TEXT_FREE = 10_000  # characters that are allowed whatever the length

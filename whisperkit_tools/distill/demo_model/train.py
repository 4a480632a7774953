"""Training of the demo model, in three stages of growing windows.

A Whisper learns slowly from 30-second windows, because its decoder must first learn where to listen. Six-second
windows teach that at a fifth of the cost. Twelve-second windows at a random place of the 30 s then teach the timestamps
and the positions. The last stage teaches what occurs only in whole windows.
"""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor
from transformers import WhisperConfig, WhisperForConditionalGeneration

from whisperkit_tools.distill.demo_model.vocabulary import SpecialIds
from whisperkit_tools.distill.demo_model.windows import IGNORED, LogMel, Window, WindowMaker, WindowOptions
from whisperkit_tools.files import replace_whole

WARMUP_STEPS = 200
TIMESTAMP_NORM = 3.0  # large enough for the output's softmax to tell neighbouring timestamps apart
SAVE_EVERY = 200
LOG_EVERY = 50


@dataclass(frozen=True, slots=True)
class Stage:
    """One training stage. The learning rate is constant until `decay_steps` before its end, then falls linearly."""

    name: str
    windows: WindowOptions
    batch: int
    steps: int
    learning_rate: float
    decay_steps: int = 0
    between: tuple[WindowOptions, int] | None = None  # windows and batch of every second step

    def drawn(self, step: int) -> tuple[WindowOptions, int]:
        """Return the windows and the batch of `step`."""
        return self.between if self.between is not None and step % 2 else (self.windows, self.batch)

    def rate(self, step: int, warm: bool) -> float:
        """Return the learning rate of `step`, with a warm-up in the first stage (`warm`)."""
        rate = self.learning_rate * (min(1.0, (step + 1) / WARMUP_STEPS) if warm else 1.0)
        left = self.steps - step
        return rate * max(0.02, left / self.decay_steps) if left < self.decay_steps else rate


def default_stages(short_steps: int, middle_steps: int, long_steps: int, decay_steps: int) -> list[Stage]:
    """Return the three stages that made the committed checkpoint."""
    short = WindowOptions(6.0, single=0.75, timestamps=0.35)
    return [
        Stage("short", short, 24, short_steps, 1e-3),
        Stage("middle", WindowOptions(12.0, single=0.1, timestamps=0.85, offset=True), 12, middle_steps, 8e-4),
        Stage(
            "long",
            WindowOptions(30.0, single=0.25, timestamps=0.8, prompt=0.25),
            6,
            long_steps,
            6e-4,
            decay_steps,
            between=(short, 24),  # recognition itself is still learned fastest from short windows
        ),
    ]


def build_model(ids: SpecialIds, seed: int) -> WhisperForConditionalGeneration:
    """Return a Whisper of 1.7 M parameters with random weights."""
    torch.manual_seed(seed)
    config = WhisperConfig(
        vocab_size=ids.vocabulary_size,
        num_mel_bins=80,
        d_model=128,
        encoder_layers=3,
        encoder_attention_heads=4,
        encoder_ffn_dim=512,
        decoder_layers=2,
        decoder_attention_heads=4,
        decoder_ffn_dim=512,
        pad_token_id=ids.end,
        bos_token_id=ids.end,
        eos_token_id=ids.end,
        decoder_start_token_id=ids.start,
        suppress_tokens=None,
        begin_suppress_tokens=None,
        attn_implementation="sdpa",
    )
    model = WhisperForConditionalGeneration(config)
    place_timestamps(model, ids)
    return model


def place_timestamps(model: WhisperForConditionalGeneration, ids: SpecialIds) -> None:
    """Start each timestamp's embedding as the encoder's sinusoid of the same time.

    As 1,501 unrelated vectors, each seen rarely, they take very long to learn. From sinusoids, a timestamp is close to
    its neighbours, and one linear map gives cross-attention the place that a timestamp names.
    """
    with torch.no_grad():
        embedding = model.model.decoder.embed_tokens.weight
        positions = model.model.encoder.embed_positions.weight
        scale = TIMESTAMP_NORM / positions.norm(dim=1).mean()
        first = ids.first_timestamp
        embedding[first : first + len(positions)] = positions * scale
        embedding[first + len(positions)] = positions[-1] * scale  # 30.00 s has no position of its own


def encode_audio(model: WhisperForConditionalGeneration, features: Tensor, offsets: Tensor) -> Tensor:
    """Run the encoder on a stretch of any length that starts at encoder position `offsets`.

    Args:
        model: The model.
        features: Log mel [batch, 80, frames].
        offsets: int64 [batch].

    Returns:
        [batch, frames / 2, d_model].
    """
    encoder = model.model.encoder
    hidden = F.gelu(encoder.conv1(features))
    hidden = F.gelu(encoder.conv2(hidden)).transpose(1, 2)
    positions = offsets[:, None] + torch.arange(hidden.shape[1])
    hidden = hidden + encoder.embed_positions.weight[positions]
    for layer in encoder.layers:
        hidden = layer(hidden, None)
    return encoder.layer_norm(hidden)  # type: ignore[no-any-return]


def pad(rows: list[list[int]], value: int) -> Tensor:
    """Return the rows as int64 [rows, longest], padded on the right."""
    width = max(map(len, rows))
    return torch.tensor([row + [value] * (width - len(row)) for row in rows])


@dataclass(frozen=True, slots=True)
class Batch:
    """Features [batch, 80, frames], decoder input and labels [batch, tokens], offsets [batch]."""

    features: Tensor
    tokens: Tensor
    labels: Tensor
    offsets: Tensor


def collate(windows: list[Window], mel: LogMel, ids: SpecialIds) -> Batch:
    """Return windows of one length as tensors."""
    audio = torch.stack([torch.from_numpy(window.audio) for window in windows])
    return Batch(
        mel(audio),
        pad([window.tokens for window in windows], ids.end),
        pad([window.labels for window in windows], IGNORED),
        torch.tensor([window.offset for window in windows]),
    )


def batch_loss(model: WhisperForConditionalGeneration, batch: Batch, bfloat16: bool = True) -> tuple[Tensor, float]:
    """Return the mean cross-entropy over the labels, and the share of labels that the model puts first."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
        encoded = encode_audio(model, batch.features, batch.offsets)
        hidden = model.model.decoder(
            input_ids=batch.tokens, encoder_hidden_states=encoded, use_cache=False
        ).last_hidden_state
        known = batch.labels != IGNORED
        logits = model.proj_out(hidden[known]).float()
    labels = batch.labels[known]
    accuracy = (logits.argmax(-1) == labels).float().mean().item()
    return F.cross_entropy(logits, labels), accuracy


class Trainer:
    """Training through the stages. Saved states let a killed run continue where it stopped.

    Several workers, one thread each, share a batch and average their gradients once a step. On a busy machine that is
    several times faster than as many threads in one process, because threads wait for each other at every operation.
    """

    def __init__(
        self, maker: WindowMaker, stages: list[Stage], state_path: Path, seed: int, rank: int = 0, workers: int = 1
    ) -> None:
        self.rank, self.workers = rank, workers
        self.maker = maker
        self.stages = stages
        self.state_path = state_path
        self.seed = seed
        self.model = build_model(maker.ids, seed)
        self._mel = LogMel()
        parameters = [item for item in self.model.parameters() if item.requires_grad]
        decayed = [item for item in parameters if item.dim() > 1]
        plain = [item for item in parameters if item.dim() <= 1]
        groups = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98), eps=1e-6)
        self.stage_index, self.step = 0, 0

    def save(self) -> None:
        """Write the state as a whole, so that a kill leaves the old one or the new one.

        The first worker writes. The others' state is the same.
        """
        if self.rank:
            return
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "stage": self.stage_index,
            "step": self.step,
        }
        with replace_whole(self.state_path) as partial:
            torch.save(state, partial)

    def resume(self) -> None:
        """Read the state that `save` wrote."""
        state: dict[str, Any] = torch.load(self.state_path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.stage_index, self.step = state["stage"], state["step"]

    def _batch(self, stage: Stage, step: int) -> Batch:
        windows, rows = stage.drawn(step)
        seeds = [f"{self.seed} {stage.name} {step} {row}" for row in range(self.rank, rows, self.workers)]
        return collate([self.maker.draw(windows, seed) for seed in seeds], self._mel, self.maker.ids)

    def _batches(self, stage: Stage) -> Iterator[Batch]:
        """Yield batches from the current step on, each drawn while the previous one is learned from."""
        with ThreadPoolExecutor(1) as executor:
            following = executor.submit(self._batch, stage, self.step)
            for step in range(self.step + 1, stage.steps + 1):
                batch = following.result()
                if step < stage.steps:
                    following = executor.submit(self._batch, stage, step)
                yield batch

    def _learn(self, batch: Batch, rate: float) -> tuple[float, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss, accuracy = batch_loss(self.model, batch)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._average_gradients()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss.item(), accuracy

    def _average_gradients(self) -> None:
        if self.workers == 1:
            return
        gradients = [item.grad for item in self.model.parameters() if item.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        torch.distributed.all_reduce(flat)
        for gradient, mean in zip(gradients, torch.split(flat, [item.numel() for item in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient) / self.workers)

    def run(self) -> None:
        """Train to the end of the last stage."""
        self.model.train()
        while self.stage_index < len(self.stages):
            self._run_stage(self.stages[self.stage_index])
            self.stage_index, self.step = self.stage_index + 1, 0
            self.save()

    def _run_stage(self, stage: Stage) -> None:
        began, losses, accuracies = time.perf_counter(), 0.0, 0.0
        for batch in self._batches(stage):
            loss, accuracy = self._learn(batch, stage.rate(self.step, warm=self.stage_index == 0))
            losses, accuracies, self.step = losses + loss, accuracies + accuracy, self.step + 1
            if self.step % LOG_EVERY == 0 and self.rank == 0:
                seconds = (time.perf_counter() - began) / LOG_EVERY
                print(
                    f"{time.strftime('%H:%M:%S')} {stage.name} {self.step}/{stage.steps} loss {losses / LOG_EVERY:.4f} "
                    f"accuracy {accuracies / LOG_EVERY:.4f} {seconds:.3f} s/step",
                    flush=True,
                )
                began, losses, accuracies = time.perf_counter(), 0.0, 0.0
            if self.step % SAVE_EVERY == 0:
                self.save()

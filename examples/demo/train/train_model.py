"""Train the demo model on a wall-clock budget.

    python train_model.py WORK_DIR --minutes 55

Reads ``WORK_DIR/tokens.safetensors`` (``prepare_data.py``); writes ``WORK_DIR/state.safetensors``
every ``--save-minutes`` and at the end (parameters under transformers' names; written to a
temporary name and renamed, so that a reader never sees half a file) and one line of figures per
report to ``WORK_DIR/training_log.jsonl`` (appended). ``--start-from`` continues from a saved state
with fresh optimizer moments, a new warm-up and a new clock.

The schedule follows the clock, not a step count: warm-up over ``WARMUP_STEPS``, constant until
``DECAY_START`` of the budget, then linear to ``FINAL_LR_RATIO``; from ``QUANTISE_START`` on the
forward pass uses the weights as they will be stored. Routing is balanced without an auxiliary
loss: each router's correction bias rises for underloaded experts and falls for overloaded ones.
"""

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from optimizer import Muon, adamw_groups, matrix_rows
from safetensors.torch import load_file, save_file
from torch import nn
from trainable_model import build_model, token_losses
from training_kernels import ExpertLoad, QuantisedTraining, install_training_kernels
from transformers import DeepseekV4ForCausalLM

DOMAINS = ("en", "py", "zh")
BATCH_ROWS = (8, 8, 4)
"""Sequences per step and domain: Chinese has a tenth of the others' text."""
SEQUENCE_LENGTH = 256
DOCUMENT_START_SHARE = 0.5
"""This share of the sequences starts at a document's ``BOS``, as prompts do."""
EVAL_ROWS = 12
WARMUP_STEPS = 40
DECAY_START = 0.4
FINAL_LR_RATIO = 0.02
QUANTISE_START = 0.75
BIAS_RATE = 1e-3
GRADIENT_CLIP = 1.0
WEIGHT_DECAY = 0.1
ADAM_BETAS = (0.9, 0.97)
REPORT_EVERY = 10
EVAL_EVERY = 100
BOS = 0


@dataclass(frozen=True, slots=True)
class Domain:
    """Token ids of one domain and where its documents start."""

    train: torch.Tensor
    starts: torch.Tensor
    held_out: torch.Tensor

    def sample(self, rows: int, generator: torch.Generator) -> torch.Tensor:
        """``[rows, SEQUENCE_LENGTH + 1]`` random training sequences."""
        last = len(self.train) - SEQUENCE_LENGTH - 1
        anywhere = torch.randint(last, (rows,), generator=generator)
        which = torch.randint(len(self.starts), (rows,), generator=generator)
        at_start = self.starts[which].clamp(max=last)
        use_start = torch.rand(rows, generator=generator) < DOCUMENT_START_SHARE
        return gather_rows(self.train, torch.where(use_start, at_start, anywhere))


def gather_rows(tokens: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    span = torch.arange(SEQUENCE_LENGTH + 1)
    return tokens[offsets.unsqueeze(1) + span]


def load_domains(path: Path) -> dict[str, Domain]:
    tensors = load_file(path)
    return {
        name: Domain(
            train=tensors[f"{name}.train"].long(),
            starts=(tensors[f"{name}.train"] == BOS).nonzero().squeeze(1),
            held_out=tensors[f"{name}.held_out"].long(),
        )
        for name in DOMAINS
    }


@torch.no_grad()
def held_out_losses(model: DeepseekV4ForCausalLM, domains: dict[str, Domain]) -> dict[str, float]:
    """Mean loss per token on fixed held-out sequences, evenly spaced, by domain."""
    model.eval()
    losses = {}
    for name, domain in domains.items():
        last = len(domain.held_out) - SEQUENCE_LENGTH - 1
        rows = gather_rows(domain.held_out, torch.linspace(0, last, EVAL_ROWS).long())
        losses[name] = round(token_losses(model, rows).mean().item(), 4)
    model.train()
    return losses


def check_causality(model: DeepseekV4ForCausalLM, rows: torch.Tensor) -> None:
    """Raise if changing the second half of a sequence changes losses in its first half."""
    half = SEQUENCE_LENGTH // 2
    changed = rows.clone()
    changed[:, half + 1 :] = BOS + 5
    with torch.no_grad():
        difference = (token_losses(model, rows) - token_losses(model, changed))[:, :half]
    if difference.abs().max() > 1e-2:
        raise RuntimeError("the model sees the future: check the attention mask registration")


def save_state(model: DeepseekV4ForCausalLM, path: Path, figures: dict[str, object]) -> None:
    temporary = path.with_suffix(".tmp")
    state = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, temporary, metadata={name: str(value) for name, value in figures.items()})
    os.replace(temporary, path)


def learning_rate_ratio(step: int, spent: float) -> float:
    """Share of the peak learning rate at ``step``, with ``spent`` of the time budget used."""
    warmup = min(1.0, (step + 1) / WARMUP_STEPS)
    if spent < DECAY_START:
        return warmup
    left = (1 - spent) / (1 - DECAY_START)
    return warmup * max(FINAL_LR_RATIO, left)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the demo model on a wall-clock budget.")
    parser.add_argument("work_dir", type=Path)
    parser.add_argument("--minutes", type=float, default=55.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--muon-lr", type=float, default=6e-3)
    parser.add_argument("--adam-lr", type=float, default=3e-3)
    parser.add_argument("--embedding-lr-ratio", type=float, default=3.0)
    parser.add_argument("--save-minutes", type=float, default=4.0)
    parser.add_argument("--max-steps", type=int, default=0, help="stop early (0: the clock stops)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, nargs=3, default=BATCH_ROWS, metavar=("EN", "PY", "ZH"))
    parser.add_argument("--start-from", type=Path, help="a state.safetensors to continue from")
    return parser.parse_args()


class Optimizers:
    """Muon and AdamW over all trainable parameters, driven by one learning-rate ratio."""

    def __init__(self, model: DeepseekV4ForCausalLM, arguments: argparse.Namespace) -> None:
        matrices: list[tuple[nn.Parameter, int]] = []
        others: list[tuple[str, nn.Parameter]] = []
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            rows = matrix_rows(name, parameter, model.config)
            if rows is None:
                others.append((name, parameter))
            else:
                matrices.append((parameter, rows))
        self.parameters = [p for p, _ in matrices] + [p for _, p in others]
        self.muon = Muon(matrices, arguments.muon_lr, weight_decay=WEIGHT_DECAY)
        groups = adamw_groups(others, arguments.adam_lr, arguments.embedding_lr_ratio, WEIGHT_DECAY)
        self.adamw = torch.optim.AdamW(groups, betas=ADAM_BETAS, fused=True)
        self.peak_lrs = [self.muon.lr, *(group["lr"] for group in self.adamw.param_groups)]

    def step(self, ratio: float) -> None:
        """Clip the gradients, update at ``ratio`` times the peak learning rates, drop them."""
        torch.nn.utils.clip_grad_norm_(self.parameters, GRADIENT_CLIP)
        muon_lr, *adam_lrs = [peak * ratio for peak in self.peak_lrs]
        self.muon.lr = muon_lr
        for group, lr in zip(self.adamw.param_groups, adam_lrs, strict=True):
            group["lr"] = lr
        self.muon.step()
        self.adamw.step()
        self.adamw.zero_grad()


def top_k_blocks(model: DeepseekV4ForCausalLM) -> list[nn.Module]:
    """The MoE blocks whose routing is learnt (the hash-routed ones need no balancing)."""
    return [layer.mlp for layer in model.model.layers if not layer.mlp.is_hash]


def last_load(block: nn.Module) -> torch.Tensor:
    return ExpertLoad.counts[block.experts].float()


def balance_routers(model: DeepseekV4ForCausalLM, rate: float) -> None:
    """Move each correction bias by ``rate`` towards an even load (of all domains together)."""
    for block in top_k_blocks(model):
        load = last_load(block)
        block.gate.e_score_correction_bias += rate * (load.mean() - load).sign()


def training_report(
    model: DeepseekV4ForCausalLM, losses: torch.Tensor, rows: Sequence[int]
) -> dict[str, object]:
    """Loss by domain of one step (``losses [sum(rows), S]``), each router's max / mean load."""
    parts = losses.detach().mean(1).split(list(rows))
    loss = {d: round(p.mean().item(), 3) for d, p in zip(DOMAINS, parts, strict=True)}
    loads = [last_load(block) for block in top_k_blocks(model)]
    return {"loss": loss, "load_max_mean": [round((c.max() / c.mean()).item(), 2) for c in loads]}


class TrainingLog:
    """One JSON object per line, on standard output and in the log file."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("a")

    def write(self, figures: dict[str, object]) -> None:
        line = json.dumps(figures)
        print(line, flush=True)
        self.file.write(line + "\n")
        self.file.flush()


def train(
    model: DeepseekV4ForCausalLM, domains: dict[str, Domain], arguments: argparse.Namespace
) -> None:
    generator = torch.Generator().manual_seed(arguments.seed)
    optimizers = Optimizers(model, arguments)
    check_causality(model, domains["en"].sample(2, generator))
    log = TrainingLog(arguments.work_dir / "training_log.jsonl")
    state_path = arguments.work_dir / "state.safetensors"
    mix = arguments.rows
    started = last_save = time.monotonic()
    step = tokens = 0
    while True:
        spent = (time.monotonic() - started) / (60 * arguments.minutes)
        if spent >= 1 or (arguments.max_steps and step >= arguments.max_steps):
            break
        QuantisedTraining.enabled = spent >= QUANTISE_START
        ratio = learning_rate_ratio(step, spent)
        parts = [domains[d].sample(n, generator) for d, n in zip(DOMAINS, mix, strict=True)]
        losses = token_losses(model, torch.cat(parts))
        losses.mean().backward()
        optimizers.step(ratio)
        balance_routers(model, BIAS_RATE * ratio)
        step += 1
        tokens += losses.numel()

        minutes = (time.monotonic() - started) / 60
        figures: dict[str, object] = {"step": step, "minutes": round(minutes, 2), "tokens": tokens}
        if step % REPORT_EVERY == 0:
            report = figures | {"lr_ratio": round(ratio, 3)} | training_report(model, losses, mix)
            if step % EVAL_EVERY == 0:
                report["held_out"] = held_out_losses(model, domains)
            log.write(report)
        if time.monotonic() - last_save > 60 * arguments.save_minutes:
            save_state(model, state_path, figures)
            last_save = time.monotonic()

    QuantisedTraining.enabled = True
    figures = {"step": step, "tokens": tokens}
    log.write(figures | {"held_out_quantised": held_out_losses(model, domains)})
    save_state(model, state_path, figures)


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)  # denormals in decayed moments cost more than they are worth
    install_training_kernels()
    domains = load_domains(arguments.work_dir / "tokens.safetensors")
    tokenizer = json.loads((arguments.work_dir / "tokenizer/tokenizer.json").read_text())
    model = build_model(len(tokenizer["model"]["vocab"]), arguments.seed)
    if arguments.start_from:
        model.load_state_dict(load_file(arguments.start_from))
    print(f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)
    train(model, domains, arguments)


if __name__ == "__main__":
    main()

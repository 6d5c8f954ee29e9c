"""Train the demo model; resumable (checkpoints in OUT), choosing by the dev rows only.

    python scripts/demo/train_model.py --data ../shared/data --tokenizer build/demo/tokenizer \
        --out build/demo/model --epochs 10

The loss is next-token prediction on the text plus, after " The emotion is", the label among its
set. Comments are answered with logits adjusted by `--adjust` times the log share of their class
(Menon et al. 2021), so that rare classes are not given up; the situations are balanced as they
stand. Heads for the fine labels shape the training and are dropped.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
from demo_data import (
    EKMAN7,
    SITUATION13,
    Example,
    goemotions,
    joined,
    single_label,
    situations,
    xed,
)
from demo_model import (
    Batch,
    Encoded,
    Helper,
    answers,
    batches,
    capped,
    encode,
    label_ids,
    new_model,
    scores,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoTokenizer, Gemma2ForCausalLM, PreTrainedTokenizerFast

_EMA = 0.998


class Objective:
    """The loss of one batch."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        *,
        shares: Tensor,
        shares13: Tensor,
        adjust: float,
        smoothing: float,
        word_dropout: float,
        helpers: float,
        comments13: float,
    ) -> None:
        self.ekman = label_ids(tokenizer, EKMAN7)
        self.thirteen = label_ids(tokenizer, SITUATION13)
        self.labels = torch.unique(torch.cat([self.ekman, self.thirteen]))
        self.adjustment = adjust * shares.log()
        self.comments13 = comments13
        self.adjustment13 = adjust * shares13.log()
        self.smoothing = smoothing
        self.word_dropout = word_dropout
        self.weights = {"text": 0.5, "ekman": 1.5, "thirteen": 0.5, "any label": 0.1}
        self.weights |= dict.fromkeys(("fine", "plutchik", "tokens"), helpers)
        self.unknown = tokenizer.unk_token_id

    def __call__(
        self, model: Gemma2ForCausalLM, helper: Helper, batch: Batch
    ) -> tuple[Tensor, dict[str, float]]:
        places = torch.arange(batch.ids.shape[1])
        in_text = (places > 0) & (places < batch.text_end[:, None])
        masked = in_text & (torch.rand(batch.ids.shape) < self.word_dropout)
        hidden = model.model(
            input_ids=batch.ids.masked_fill(masked, self.unknown), use_cache=False
        ).last_hidden_state
        rows = torch.arange(len(batch.ids))
        readout = hidden[rows, batch.length - 1]
        # Every second position, by chance: the softmax over the vocabulary costs most.
        next_in_text = in_text[:, 1:] & (torch.rand(in_text[:, 1:].shape) < 0.5)
        text = functional.cross_entropy(
            capped(model, hidden[:, :-1][next_in_text]).float(), batch.ids[:, 1:][next_in_text]
        )
        logits = capped(model, readout).float()
        parts = {"text": text, **self._label_losses(logits, batch)}
        parts |= self._helper_losses(helper, hidden.float(), readout.float(), in_text, batch)
        total = sum(self.weights[name] * part for name, part in parts.items())
        return total, {name: part.item() for name, part in parts.items()}

    def _label_losses(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        adjusted = logits[:, self.ekman] + batch.adjust[:, None] * self.adjustment
        target = batch.ekman * (1 - self.smoothing) + self.smoothing / len(EKMAN7)
        ekman = -(target * adjusted.log_softmax(-1)).sum(-1)
        losses = {
            "ekman": (ekman * batch.ekman_weight).sum() / len(logits),
            "any label": -(logits[:, self.labels].logsumexp(-1) - logits.logsumexp(-1)).mean(),
        }
        adjusted = logits[:, self.thirteen] + batch.adjust[:, None] * self.adjustment13
        each = functional.cross_entropy(adjusted, batch.thirteen, ignore_index=-1, reduction="none")
        share = torch.where(batch.adjust > 0, self.comments13, 1.0)
        losses["thirteen"] = (each * batch.thirteen_weight * share).sum() / len(logits)
        return losses

    def _helper_losses(
        self, helper: Helper, hidden: Tensor, readout: Tensor, in_text: Tensor, batch: Batch
    ) -> dict[str, Tensor]:
        def over(logits: Tensor, target: Tensor, known: Tensor) -> Tensor:
            each = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
            return (each.sum(-1) * known).sum() / len(logits)

        # Every text token is asked too, so that the reading of a token is one of its context.
        mean = (hidden * in_text[..., None]).sum(1) / in_text.sum(1, keepdim=True).clamp(min=1)
        adjusted = helper.text(mean) + batch.adjust[:, None] * self.adjustment
        text = -(batch.ekman * adjusted.log_softmax(-1)).sum(-1)
        return {
            "fine": over(helper.fine(readout), batch.fine, batch.has_fine),
            "plutchik": over(helper.plutchik(readout), batch.plutchik, batch.has_plutchik),
            "tokens": (text * batch.ekman_weight).sum() / len(mean),
        }


def add_dropout(model: Gemma2ForCausalLM, rate: float) -> None:
    """Drop entries of the embedding and of what MLPs add, in training mode only."""

    def drop(module: nn.Module, _: object, output: Tensor) -> Tensor:
        return functional.dropout(output, rate, training=module.training)

    model.model.embed_tokens.register_forward_hook(drop)
    for layer in model.model.layers:
        layer.post_feedforward_layernorm.register_forward_hook(drop)


def optimizer(model: nn.Module, helper: nn.Module, *, decay: float) -> torch.optim.AdamW:
    """Return AdamW with decay on matrices only."""
    parameters = [*model.parameters(), *helper.parameters()]
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": decay},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.98),
        fused=True,
    )


class Run:
    """One training run: its model, its averaged weights, and where it stands."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        torch.manual_seed(options.seed)
        self.tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
        self.model = new_model(self.tokenizer)
        if options.start:
            self.model.load_state_dict(load_file(options.start / "model.safetensors"), strict=False)
            self.model.tie_weights()
        add_dropout(self.model, options.dropout)
        self.helper = Helper()
        self.optimizer = optimizer(self.model, self.helper, decay=options.decay)
        self.average = {k: v.clone() for k, v in self.model.state_dict().items()}
        comments = goemotions(options.data, "train")
        counts = torch.tensor([x.ekman for x in single_label(comments)]).sum(0)
        lines = xed(options.data)
        told = [x.thirteen for x in (*comments, *lines) if x.thirteen is not None]
        counts13 = torch.bincount(torch.tensor(told), minlength=len(SITUATION13)).float()
        self.objective = Objective(
            self.tokenizer,
            shares=counts / counts.sum(),
            shares13=counts13 / counts13.sum(),
            adjust=options.adjust,
            smoothing=options.smoothing,
            word_dropout=options.word_dropout,
            helpers=options.helpers,
            comments13=options.comments13,
        )
        self.fixed = encode(
            [*comments, *situations("train") * options.situation_repeats], self.tokenizer
        )
        self.other = encode(lines, self.tokenizer)
        self.comments = comments
        self.epoch = 0
        self.step = 0
        self.best = -1.0
        self.steps = self._epoch_steps() * options.epochs

    def _rows(self, epoch: int) -> list[Encoded]:
        joins: list[Example] = joined(
            single_label(self.comments), self.options.joined, seed=self.options.seed + epoch
        )
        half = self.other[epoch % 2 :: 2]
        return [*self.fixed, *half, *encode(joins, self.tokenizer)]

    def _epoch(self, epoch: int) -> list[Batch]:
        return list(
            batches(
                self._rows(epoch),
                tokens=self.options.batch_tokens,
                pad=self.tokenizer.pad_token_id,
                chooser=random.Random(self.options.seed + epoch),
            )
        )

    def _epoch_steps(self) -> int:
        return len(self._epoch(0))

    def rate(self) -> float:
        """Return the learning rate of this step: a warm-up, then a cosine to a fiftieth."""
        if self.step < 200:
            return self.options.rate * (self.step + 1) / 200
        part = min(1.0, self.step / self.steps)
        return self.options.rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * part)))

    def train(self) -> None:
        """Train to the last epoch, or to the time limit, then keep the best averaged weights."""
        started = time.monotonic()
        while self.epoch < self.options.epochs:
            for batch in self._epoch(self.epoch):
                if self.options.minutes and time.monotonic() - started > 60 * self.options.minutes:
                    break
                self._update(batch, started)
            self.epoch += 1
            self.save(self.measure())
            if self.options.minutes and time.monotonic() - started > 60 * self.options.minutes:
                break

    def _update(self, batch: Batch, started: float) -> None:
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.options.bfloat16):
            loss, parts = self.objective(self.model, self.helper, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        keep = min(_EMA, self.step / (self.step + 20))
        with torch.no_grad():
            now = self.model.state_dict()
            torch._foreach_lerp_(
                list(self.average.values()), [now[name] for name in self.average], 1 - keep
            )
        if self.step % 100 == 0:
            shown = " ".join(f"{name} {value:.3f}" for name, value in sorted(parts.items()))
            seconds = time.monotonic() - started
            print(f"step {self.step}/{self.steps} {seconds:.0f} s {shown}", flush=True)

    def measure(self) -> dict[str, float]:
        """Return the averaged weights' scores on dev rows and dev topics."""
        model = new_model(self.tokenizer)
        model.load_state_dict(self.average)
        figures = dev_figures(model, self.tokenizer, self.options.data)
        print(f"epoch {self.epoch} {json.dumps(figures)}", flush=True)
        return figures

    def save(self, figures: dict[str, float]) -> None:
        """Write where the run stands, and the averaged weights where they are the best yet."""
        folder = self.options.out
        folder.mkdir(parents=True, exist_ok=True)
        state = {f"model.{k}": v.contiguous().clone() for k, v in self.model.state_dict().items()}
        state |= {f"average.{k}": v.contiguous().clone() for k, v in self.average.items()}
        state |= {f"helper.{k}": v.contiguous() for k, v in self.helper.state_dict().items()}
        for number, held in self.optimizer.state_dict()["state"].items():
            state |= {f"optimizer.{number}.{k}": v.contiguous() for k, v in held.items()}
        quality = figures["accuracy"] + figures["balanced"] + 0.5 * figures["unnamed"]
        place = {"epoch": str(self.epoch), "step": str(self.step)}
        place["best"] = str(max(self.best, quality))
        save_file(state, folder / "checkpoint.new", metadata=place)
        (folder / "checkpoint.new").replace(folder / "checkpoint.safetensors")
        if quality > self.best:
            self.best = quality
            model = new_model(self.tokenizer)
            model.load_state_dict(self.average)
            model.save_pretrained(folder / "best")
            self.tokenizer.save_pretrained(folder / "best")
            (folder / "best" / "dev.json").write_text(json.dumps(figures, indent=1))

    def resume(self) -> None:
        """Go on from OUT's checkpoint where there is one."""
        path = self.options.out / "checkpoint.safetensors"
        if not path.exists():
            return
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            place = file.metadata()
        state = load_file(path)

        def part(name: str) -> dict[str, Tensor]:
            return {k.removeprefix(name): v for k, v in state.items() if k.startswith(name)}

        self.model.load_state_dict(part("model."))
        self.helper.load_state_dict(part("helper."))
        self.average = part("average.")
        held: dict[int, dict[str, Tensor]] = {}
        for key, value in part("optimizer.").items():
            number, _, name = key.partition(".")
            held.setdefault(int(number), {})[name] = value
        whole = self.optimizer.state_dict()
        self.optimizer.load_state_dict({"state": held, "param_groups": whole["param_groups"]})
        self.epoch, self.step = int(place["epoch"]), int(place["step"])
        self.best = float(place["best"])
        print(f"resumed at epoch {self.epoch}, step {self.step}", flush=True)


def dev_figures(
    model: Gemma2ForCausalLM, tokenizer: PreTrainedTokenizerFast, data: Path
) -> dict[str, float]:
    """Return what checkpoints are chosen by: GoEmotions' dev rows and the dev topics."""
    seven = label_ids(tokenizer, EKMAN7)
    comments = encode(single_label(goemotions(data, "dev")), tokenizer)
    target = torch.tensor([row.example.ekman for row in comments]).argmax(-1)
    accuracy, balanced = scores(answers(model, tokenizer, comments)[:, seven], target)
    figures = {"accuracy": accuracy, "balanced": balanced}
    rows = encode(situations("dev"), tokenizer)
    logits = answers(model, tokenizer, rows)
    thirteen = label_ids(tokenizer, SITUATION13)
    for name, named in (("named", True), ("unnamed", False)):
        half = [i for i, row in enumerate(rows) if row.example.named is named]
        target = torch.tensor([rows[i].example.thirteen for i in half])
        figures[f"{name}13"] = scores(logits[half][:, thirteen], target)[1]
        direct = [i for i in half if rows[i].example.weight == 1 and rows[i].example.ekman]
        target = torch.tensor([rows[i].example.ekman for i in direct]).argmax(-1)
        figures[name] = scores(logits[direct][:, seven], target)[1]
    return {name: round(value, 4) for name, value in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--minutes", type=float, help="stop after this long; run again to go on")
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--decay", type=float, default=0.1)
    parser.add_argument("--dropout", type=float, default=0.15)
    parser.add_argument("--word-dropout", type=float, default=0.1)
    parser.add_argument("--smoothing", type=float, default=0.05)
    parser.add_argument("--adjust", type=float, default=0.5)
    parser.add_argument("--situation-repeats", type=int, default=3)
    parser.add_argument("--helpers", type=float, default=0.5, help="weight of the dropped heads")
    parser.add_argument(
        "--comments13",
        type=float,
        default=0.0,
        help="weight of the thirteen labels on comments and subtitles; the shipped model has none",
    )
    parser.add_argument("--start", type=Path, help="begin from a trained model's weights")
    parser.add_argument("--joined", type=int, default=1500)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--float32", dest="bfloat16", action="store_false")
    options = parser.parse_args()
    run = Run(options)
    print(f"{sum(p.numel() for p in run.model.parameters())} parameters, {run.steps} steps")
    run.resume()
    run.train()


if __name__ == "__main__":
    main()

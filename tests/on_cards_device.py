"""The pretend cards themselves: what CUDA refuses they refuse, and the numbers are the CPU's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from support_cards import CARDS, Moves
from support_on_cards import cards
from torch import Tensor, nn

__all__ = ["cards"]


def _x() -> Tensor:
    return torch.arange(12.0).view(3, 4)


def _on(card: int = 0) -> Tensor:
    return _x().to(CARDS[card])


REFUSED: dict[str, Callable[[], object]] = {
    "two cards": lambda: _on(0) + _on(1),
    "a card and the CPU": lambda: _on() * torch.ones(4),
    "a scalar of another card": lambda: _on(0) + torch.ones((), device=CARDS[1]),
    "a matrix on the CPU": lambda: _on() @ torch.ones(4, 2),
    "a list of both": lambda: torch.cat([_on(), _x()]),
    "a scalar in a list": lambda: torch.stack([_on().sum(), torch.zeros(())]),
    "a result on the CPU": lambda: torch.zeros(()).add_(_on().sum()),
    "a CPU tensor by a card's index": lambda: _x()[torch.tensor([1], device=CARDS[0])],
    "index_select by a CPU index": lambda: _on().index_select(0, torch.tensor([1])),
    "gather by a CPU index": lambda: _on().gather(0, torch.zeros(1, 4, dtype=torch.long)),
    "values of the CPU": lambda: _on().index_put_((torch.tensor([0]),), torch.ones(1, 4)),
    "a mask of the CPU": lambda: _on().masked_fill(_x() > 3, 0.0),
    "an embedding of CPU tokens": lambda: nn.functional.embedding(torch.tensor([1]), _on()),
    "numpy": lambda: _on().numpy(),
    "numpy's array": lambda: np.asarray(_on()),
    "a draw on the card": lambda: torch.randn(3, device=CARDS[0]),
    "a draw like another": lambda: torch.rand_like(_on()),
    "a generator of the CPU": lambda: torch.multinomial(_on()[1], 1, generator=torch.Generator()),
    "a layer on another card": lambda: nn.Linear(4, 2).to(CARDS[1])(_on(0)),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cuda_refuses_is_refused(what: str) -> None:
    with pytest.raises((RuntimeError, TypeError)):
        REFUSED[what]()


def _written(x: Tensor) -> Tensor:
    changed = x.clone()
    changed[:, 1:3] += 1
    changed[[0, 2], 0] = 7.0
    changed[torch.tensor([1])] *= 2
    changed[changed > 9] = 0.5
    changed.view(-1)[3:5].mul_(3)
    changed.T[2].copy_(torch.tensor([1.0, 2.0, 3.0]))
    return changed


def _scattered(x: Tensor) -> Tensor:
    values, indices = x.topk(2, dim=-1)
    return (
        torch.zeros_like(x).scatter_(-1, indices, values.relu()).scatter_add_(-1, indices, values)
    )


def _attended(x: Tensor) -> Tensor:
    return nn.functional.scaled_dot_product_attention(x[None], x[None], x[None], is_causal=True)


def _made(x: Tensor) -> Tensor:
    on = x.device
    made = torch.zeros(3, 4, device=on) + torch.full((4,), 2.0, device=on)
    made = made + torch.arange(4, device=on) + torch.tensor([1.0, 2, 3, 4], device=on)
    return made + torch.ones((), dtype=torch.float64) + x.new_zeros(4) + torch.tensor(3.0)


def _squared(x: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        there = (leaf * 2).to(CARDS[1]) if x.device.type == "card" else leaf * 2
        (slope,) = torch.autograd.grad((there @ there.T).square().sum(), leaf)
    return slope


def _looked_up(x: Tensor) -> Tensor:
    ids = torch.tensor([[2, 0]], device=x.device)
    found = nn.functional.embedding(ids, x)
    return torch.where(found > 5, found, -found).index_select(1, ids[0] // 2)


DONE: dict[str, Callable[[Tensor], Tensor]] = {
    "writing in place, through views": _written,
    "scatter": _scattered,
    "attention": _attended,
    "making tensors there": _made,
    "the way back over two cards": _squared,
    "looking up": _looked_up,
    "a layer": lambda x: nn.LayerNorm(4, device=x.device)(x),
    "a copy": lambda x: copy.deepcopy(x),
    "a vector times a matrix": lambda x: x[:, 0] @ x,
    "another dtype": lambda x: x.bfloat16().double(),
}


UNDER: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "enable_grad": torch.enable_grad,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
}


@pytest.mark.parametrize(
    ("what", "under"),
    [
        (what, under)
        for what in DONE
        for under in UNDER
        if (what, under) != ("the way back over two cards", "inference_mode")
    ],
)
def test_what_is_done_gives_the_numbers_of_the_cpu(what: str, under: str) -> None:
    with UNDER[under]():
        mine, theirs = DONE[what](_on()), DONE[what](_x())
    assert mine.device == torch.device(CARDS[0])
    assert torch.equal(mine.cpu(), theirs)
    assert mine.tolist() == theirs.tolist()
    assert float(mine.detach().sum()) == float(theirs.detach().sum())


def test_a_document_goes_out_and_comes_back(cards: Moves) -> None:
    cards.made.clear()
    again = load(save({"x": _on(1)}))["x"].to(CARDS[0])
    assert torch.equal(again.cpu(), _x()) and not cards.between_cards()
    _on(0).to(CARDS[1])
    torch.zeros(3, 4, device=CARDS[0]).copy_(_on(1))
    assert [move.shape for move in cards.between_cards()] == [(3, 4), (3, 4)]


def test_a_card_without_a_number_is_the_first() -> None:
    assert _x().to("card").device == torch.zeros(1, device="card").device == torch.device(CARDS[0])

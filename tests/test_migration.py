"""The migration pages: the loop that a page shows, against a literal transcription of the one that it replaces."""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import sharp.test_features as features
import sharp.test_oracles as oracles
import torch
import torch.nn.functional as F
from cases import BATCH, COUNTS, data, mlp

from flattail import ASAM, ERM, SAM, ImbSAM, Split
from flattail.models import Cosine

PAGES = Path(__file__).parents[1] / "docs" / "migration"
STEPS = 5


def shown(page):
    """What the page's one block of Python defines: its `train` and its `method`."""
    (block,) = re.findall(r"^```python\n(.*?)^```", (PAGES / f"{page}.md").read_text(), re.S | re.M)
    names = {"__name__": page}
    exec(compile(block, f"{page}.md", "exec"), names)
    return names


def stepped(train, model):
    """The weights after five steps of SGD with momentum and weight decay."""
    train(model, torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9, weight_decay=5e-3))
    return [p.detach().clone() for p in model.parameters()]


def literal(step_of, closures, progress):
    """A plain loop around a step that leaves gradients."""

    def train(model, optimizer):
        for losses, t in zip(closures(model), progress, strict=True):
            for p, g in zip(model.parameters(), step_of(model, losses, losses.y, t), strict=True):
                p.grad = g
            optimizer.step()

    return train


def closures(model, lam=1.0):
    return [oracles.Mixed(model, *data(seed=step, n=BATCH), lam) for step in range(STEPS)]


BATCHES = [data(seed=step, n=BATCH) for step in range(STEPS)]
SHARES = [step / STEPS for step in range(STEPS)]


def agree(train, by_hand, model):
    """Equal weights to the last digits, and other ones than plain training gives."""
    here, there, plain = (
        stepped(loop, model()) for loop in (train, by_hand, literal(oracles.erm, closures, [0.0] * STEPS))
    )
    for a, b in zip(here, there, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    assert max(float((a - b).abs().max()) for a, b in zip(here, plain, strict=True)) > 1e-4


@pytest.mark.parametrize(
    ("method", "step"),
    [(SAM(rho=0.3), oracles.sam), (ASAM(rho=0.4, floor=0.0), partial(oracles.asam, eta=0.0))],
    ids=["SAM", "adaptive"],
)
def test_sam(method, step):
    page = shown("sam")
    assert page["method"] == SAM(rho=0.05)
    agree(
        lambda model, optimizer: page["train"](model, optimizer, BATCHES, method),
        literal(step, closures, SHARES),
        lambda: mlp(seed=2),
    )


@pytest.mark.parametrize(
    ("changed", "step"),
    [
        ({}, oracles.imbsam(2.0)),
        ({"tail_weight": 1.0}, oracles.imbsam()),
        ({"tail_weight": 1.0, "over": "members"}, oracles.imbsam(group_mean=True)),
    ],
    ids=["doubled", "earlier", "copy"],
)
def test_imbsam(changed, step):
    page = shown("imbsam")
    assert page["method"] == ImbSAM(rho=0.05, eta=20, tail_weight=2.0)
    method = replace(page["method"], rho=0.3, eta=100, **changed)
    agree(
        lambda model, optimizer: page["train"](model, optimizer, BATCHES, COUNTS, method),
        literal(step, closures, SHARES),
        lambda: mlp(seed=2),
    )


@pytest.mark.parametrize("gamma", [0.7, 0.0, 0.4])
def test_ssesam_across_its_switch(gamma):
    page = shown("ssesam")
    method = replace(page["method"], head_rho=0.2, tail_rho=0.4, switch=gamma)
    agree(
        lambda model, optimizer: page["train"](model, optimizer, [[batch] for batch in BATCHES], COUNTS, method),
        literal(oracles.ssesam(gamma, epochs=STEPS), closures, SHARES),
        lambda: mlp(seed=2),
    )


@pytest.mark.parametrize(("kappa", "phi", "lam"), [(0.3, 0.5, 1.0), (0.1, 0.3, 0.7), (1e-6, 0.3, 0.7)])
def test_ccsam(kappa, phi, lam):
    page = shown("ccsam")
    method = replace(page["method"], scale=kappa, mix=phi)
    assert method == page["method"] or kappa > 1e-6

    def train(model, optimizer):
        batches = [(mixed.x, mixed.y, mixed.other, mixed.lam) for mixed in closures(model, lam)]
        page["train"](model, optimizer, batches, COUNTS, method)

    agree(
        train,
        literal(oracles.ccsam_released(kappa, phi, lam), partial(closures, lam=lam), SHARES),
        lambda: mlp(seed=2),
    )


def test_ccsam_s_second_stage():
    """Epoch by epoch, the ramp an epoch ahead as there; the backbone stays."""
    page, model = shown("ccsam"), mlp(seed=2)
    before = [p.clone() for p in model.backbone.parameters()]

    def second(model, optimizer):
        page["second"](model, torch.optim.SGD(model.head.parameters(), lr=0.2), [[b] for b in BATCHES], COUNTS, 0.7)

    def by_hand(model, optimizer):
        model.backbone.requires_grad_(False)
        optimizer = torch.optim.SGD(model.head.parameters(), lr=0.2)
        for epoch, (x, y) in enumerate(BATCHES):
            optimizer.zero_grad()
            features.released(model, x, y, (epoch + 1) / STEPS).backward()
            optimizer.step()

    agree(second, by_hand, lambda: mlp(seed=2))
    assert all(torch.equal(a, b) for a, b in zip(before, model.backbone.parameters(), strict=True))


def test_the_report_of_the_released_radius_calls_it_vacuous(capsys):
    shown("ccsam")
    assert "vacuous" in capsys.readouterr().out


def ldam_by_hand(epoch, switch, s=30.0, max_m=0.5):
    """Margins n^(-1/4), the weights of the effective number from an epoch on, PyTorch's weighted mean."""
    n = COUNTS.double()
    margins = n**-0.25 * (max_m / (n**-0.25).max())
    beta = [0.0, 0.9999][epoch // switch]
    weights = (1 - beta) / (1 - beta**n)
    weights = weights / weights.sum() * len(n)

    def loss(logits, y):
        moved = logits.clone()
        moved[range(len(y)), y] -= margins[y]
        return F.cross_entropy(s * moved, y, weight=weights)

    return loss


@pytest.mark.parametrize("method", [ERM(), SAM(rho=0.8)], ids=["LDAM-DRW", "with SAM"])
def test_ldam_drw(method):
    page, switch = shown("ldam-drw"), 3
    assert page["method"] == ERM()

    def by_hand(model, optimizer):
        for epoch, (x, y) in enumerate(BATCHES):
            loss = ldam_by_hand(epoch, switch)
            grads = oracles.passes(model, loss(model(x), y))
            if isinstance(method, SAM):
                look = partial(lambda x, y, loss: oracles.passes(model, loss(model(x), y)), x, y, loss)
                grads = oracles.at(model, oracles.up(grads, method.rho), look)
            for p, g in zip(model.parameters(), grads, strict=True):
                p.grad = g
            optimizer.step()

    def model():
        torch.manual_seed(1)
        return Split(mlp(seed=2).backbone, Cosine(7, len(COUNTS)).double())

    agree(
        lambda model, optimizer: page["train"](
            model, optimizer, [[batch] for batch in BATCHES], COUNTS, switch, method
        ),
        by_hand,
        model,
    )


def test_the_swap_of_data_is_wrong_where_the_page_says_so():
    """Right for a linear head, wrong for a cosine head: the gradient of its own weights."""

    def swapped(head, z, y):
        kept = head.weight.data
        head.weight.data = kept + 0.3 * torch.ones_like(kept).tril()
        loss = F.cross_entropy(head(z), y)
        head.weight.data = kept
        return torch.autograd.grad(loss, head.weight)[0]

    def exact(head, z, y):
        moved = head.weight + 0.3 * torch.ones_like(head.weight).tril()
        rest = {n: p for n, p in head.named_parameters() if n != "weight"}
        return torch.autograd.grad(
            F.cross_entropy(torch.func.functional_call(head, {"weight": moved} | rest, (z,)), y), head.weight
        )[0]

    z, y = torch.randn(12, 7, dtype=torch.float64), torch.randint(len(COUNTS), (12,))
    linear, cosine = torch.nn.Linear(7, len(COUNTS)).double(), Cosine(7, len(COUNTS)).double()
    torch.testing.assert_close(swapped(linear, z, y), exact(linear, z, y), rtol=0, atol=1e-14)
    assert (swapped(cosine, z, y) - exact(cosine, z, y)).abs().max() > 1e-3

"""What a step leaves behind beside gradients: BatchNorm statistics, generator states, dropout masks."""

import pytest
import torch
import torch.nn.functional as F
from cases import BLIND, EVERY, HEADS, WEIGHTS, Pair, close, closure, data, flat, gradient, gradients, mlp
from test_contract import PASSES
from torch import nn

from flattail.models.causal import Causal
from flattail.sharp import CCSAM, LPFSGD, SAM, SSESAM, ImbSAM

MOVED = [label for label in BLIND if label != "m-sam"]  # their one look is not from w; momentum begins at rest


def norm_model(momentum=0.1, seed=0):
    return mlp(seed, norm=lambda d: nn.BatchNorm1d(d, momentum=momentum))


def statistics(model):
    return {n: b.clone() for n, b in model.named_buffers()}


def equal(a, b):
    return all(torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("label", EVERY)
def test_kept_buffers_are_those_of_one_plain_forward(label, momentum):
    one, two, (x, y) = norm_model(momentum), norm_model(momentum), data()
    for step in range(3):
        gradient(one, EVERY[label], x + step, y)
        two(x + step)
        assert label in MOVED or equal(statistics(one), statistics(two))
    assert int(one.backbone[1].num_batches_tracked) == 3


@pytest.mark.parametrize("label", EVERY)
def test_kept_buffers_of_micro_batches_are_those_of_their_forwards(label):
    one, two, (x, y) = norm_model(), norm_model(), data()
    for together in (False, True):
        parts = [(x[:9], y[:9]), (x[9:], y[9:])]
        flat(one, EVERY[label], climb_together=together).backward(
            [closure(one, a, b) for a, b in parts], [b for _, b in parts], progress=0.1, step=0
        )
        for a, _ in parts:
            two(a)
        assert label in MOVED or equal(statistics(one), statistics(two))


@pytest.mark.parametrize("label", EVERY)
def test_buffers_all_move_in_every_pass(label):
    model, (x, y) = norm_model(), data()
    gradient(model, EVERY[label], x, y, how={"buffers": "all"})
    assert int(model.backbone[1].num_batches_tracked) == PASSES[label][0]


def test_buffers_all_see_the_displaced_weights():
    """Two statistics updates, one at w and one at w + e, as in the published loops."""
    model, by_hand, (x, y) = norm_model(), norm_model(), data()
    gradient(model, SAM(rho=0.5), x, y, how={"buffers": "all"})
    params = list(by_hand.parameters())
    g = torch.autograd.grad(closure(by_hand, x, y)().mean(), params)
    size = torch.cat([v.flatten() for v in g]).norm()
    with torch.no_grad():
        for p, v in zip(params, g, strict=True):
            p.add_(0.5 * v / size)
    by_hand(x)
    for n, b in statistics(by_hand).items():
        torch.testing.assert_close(dict(model.named_buffers())[n], b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("buffers", ["keep", "all"])
def test_a_model_in_eval_mode_keeps_its_statistics(buffers):
    model, (x, y) = norm_model().eval(), data()
    before = statistics(model)
    gradient(model, SAM(rho=0.1), x, y, how={"buffers": buffers})
    assert equal(statistics(model), before)


def test_a_layer_in_training_mode_inside_a_model_in_eval_mode_is_kept():
    one, two, (x, y) = norm_model().eval(), norm_model().eval(), data()
    for m in (one, two):
        m.backbone[1].train()
    gradient(one, SAM(rho=0.1), x, y)
    two(x)
    assert equal(statistics(one), statistics(two))


class Average(nn.Module):
    """Buffers that are bound anew in each forward, and one that is shared."""

    def __init__(self, shared):
        super().__init__()
        self.register_buffer("mean", torch.zeros(7).double())
        self.register_buffer("shared", shared)
        self.register_buffer("nothing", None)

    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        self.shared.add_(1)
        return x - self.mean


def test_buffers_that_are_bound_anew_or_shared_are_kept():
    def make():
        shared = torch.zeros(()).double()
        model = mlp(norm=lambda d: nn.Sequential(Average(shared), Average(shared)))
        for m in model.modules():  # `.to` made two of it
            if isinstance(m, Average):
                m.shared = model.backbone[1][0].shared
        return model

    one, two = make(), make()
    x, y = data()
    for _ in range(2):
        gradient(one, SAM(rho=0.3), x, y)
        two(x)
    assert equal(statistics(one), statistics(two)) and float(one.backbone[1][0].shared) == 4


# -- noise -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", WEIGHTS)
def test_the_same_masks_in_all_passes_leave_no_gap_without_a_climb(label):
    """Fails if masks differ: at radius 0 a displaced pass is the first one again, to the last bit."""
    model, (x, y) = mlp(dropout=0.5), data()
    aware = flat(model, SAM(rho=0.0))
    aware.backward(closure(model, x, y), y)
    assert float(aware.gaps["flat"]) == 0.0
    zero = {"ssesam": SSESAM(head_rho=0, tail_rho=0), "imbsam": ImbSAM(rho=0, eta=100)}
    for method in zero.values():
        aware = flat(model, method)
        aware.backward([closure(model, x[:9], y[:9]), closure(model, x[9:], y[9:])], [y[:9], y[9:]], progress=0.1)
        assert all(abs(float(g)) < 1e-15 for g in aware.gaps.values())


def test_fresh_masks_are_another_draw():
    model, (x, y) = mlp(dropout=0.5), data()
    aware = flat(model, SAM(rho=0.0), dropout="fresh")
    aware.backward(closure(model, x, y), y)
    assert abs(float(aware.gaps["flat"])) > 1e-3


@pytest.mark.parametrize("label", EVERY)
def test_same_masks_are_those_of_a_fixed_network(label):
    """With the generator put back before every call, dropout is a fixed function: the gradients must be its own."""
    model, (x, y) = mlp(dropout=0.5), data()
    state = torch.get_rng_state()

    def fixed():
        torch.set_rng_state(state)
        return F.cross_entropy(model(x), y, reduction="none")

    expected = gradient(model, EVERY[label], x, y, losses=fixed, how={"dropout": "fresh"})
    torch.set_rng_state(state)
    close(gradient(model, EVERY[label], x, y), expected, 0)


@pytest.mark.parametrize("label", EVERY)
def test_the_generator_is_afterwards_where_one_plain_forward_leaves_it(label):
    model, (x, y) = mlp(dropout=0.5), data()
    start = torch.get_rng_state()
    model(x)
    after_one = torch.get_rng_state()
    torch.set_rng_state(start)
    gradient(model, EVERY[label], x, y)
    assert torch.equal(torch.get_rng_state(), after_one)
    model(x[:9]), model(x[9:])
    after_parts = torch.get_rng_state()
    for together in (False, True):
        torch.set_rng_state(after_one)
        parts = [closure(model, x[:9], y[:9]), closure(model, x[9:], y[9:])]
        flat(model, EVERY[label], climb_together=together).backward(parts, [y[:9], y[9:]], progress=0.1, step=0)
        assert torch.equal(torch.get_rng_state(), after_parts)


@pytest.mark.parametrize("label", WEIGHTS)
def test_fresh_noise_draws_once_per_pass(label):
    model, (x, y) = mlp(dropout=0.5), data()
    start = torch.get_rng_state()
    for _ in range(PASSES[label][0]):
        model(x)
    expected = torch.get_rng_state()
    torch.set_rng_state(start)
    gradient(model, WEIGHTS[label], x, y, how={"dropout": "fresh"})
    assert torch.equal(torch.get_rng_state(), expected)


@pytest.mark.parametrize("label", HEADS)
def test_a_head_with_dropout_is_finite(label):
    model, (x, y) = mlp(head="mlp"), data()
    model.head.insert(1, nn.Dropout(0.5))
    got = gradient(model, HEADS[label], x, y)
    assert all(torch.isfinite(g).all() for g in got.values())


def test_a_step_repeats_bit_for_bit():
    for label in EVERY:
        runs = []
        for _ in range(2):
            torch.manual_seed(5)
            model, (x, y) = mlp(dropout=0.5, norm=nn.BatchNorm1d), data()
            gradient(model, EVERY[label], x, y)
            runs.append(gradients(model))
        close(*runs, 0)


@pytest.mark.parametrize("method", [SSESAM(0.0, 0.0), CCSAM(scope="all", scale=0.0, mix=0.5)], ids=["two", "classes"])
@pytest.mark.parametrize("rows", [False, True])
def test_noise_that_no_module_names_is_the_same_in_all_passes(rows, method):
    """`F.dropout` inside a forward pass: without a radius there is no gap, however rows are run."""
    model, (x, y) = mlp(), data()
    forward = model.head.forward
    model.head.forward = lambda z: forward(F.dropout(z, 0.5))

    def some(rows=slice(None)):
        return F.cross_entropy(model(x[rows]), y[rows], reduction="none")

    engine = flat(model, method)
    engine.backward(some if rows else lambda: some(), y, progress=0.1, step=0)
    assert len(engine.gaps) > 1 and all(abs(float(gap)) < 1e-12 for gap in engine.gaps.values())


@pytest.mark.parametrize("method", [SAM(), ImbSAM(eta=100), SSESAM(), LPFSGD(draws=4)], ids=lambda m: type(m).__name__)
def test_a_coupled_module_sees_its_batch_once_and_whole(method):
    """The causal head's direction moves by every batch once, also where rows could be run apart."""
    x, y = data()
    moved = []
    for rows in (False, True):
        torch.manual_seed(0)
        model = Pair(nn.Linear(5, 8), Causal(8, 6)).double().train()

        def some(rows=slice(None), model=model):
            return F.cross_entropy(model(x[rows]), y[rows], reduction="none")

        flat(model, method).backward(some if rows else lambda some=some: some(), y, 0.1, step=0, seed=0)
        moved.append(model.head.direction)
    torch.testing.assert_close(*moved)
    if not isinstance(method, LPFSGD):  # whose one look is not from w
        torch.testing.assert_close(moved[0], model.backbone(x).mean(0).detach())

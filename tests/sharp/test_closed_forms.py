"""Methods on quadratics, where gradients and climbs can be written down: the gradient is sum_k H_k (w + e_k)."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flattail.sharp import ASAM, CCSAM, ERM, SAM, SSESAM, FocalSAM, ImbSAM, SharpnessAware, displaced

COUNTS = torch.tensor([500, 60, 8])
Y = torch.tensor([0, 0, 0, 1, 1, 2, 0, 2, 1, 0])
D = 4


class Bowl(nn.Module):
    """Sample i loses 1/2 w' H_i w, the weights being spread over two parameters."""

    def __init__(self, seed=0):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.a = nn.Parameter(torch.randn(1, generator=g, dtype=torch.float64))
        self.b = nn.Parameter(torch.randn(D - 1, generator=g, dtype=torch.float64))
        root = torch.randn(len(Y), D, D, generator=g, dtype=torch.float64)
        self.h = root + root.mT  # saddles too

    @property
    def w(self):
        return torch.cat([self.a, self.b])

    def forward(self):
        return 0.5 * torch.einsum("d,bde,e->b", self.w, self.h, self.w)


def mean(h, weight):
    """The Hessian of a term, and of its own mean."""
    total = torch.einsum("b,bde->de", weight.double(), h)
    return total / len(Y), total / weight.sum()


def ball(rho):
    return lambda w, g: rho * g / (g.norm() + 1e-12)


def stretched(rho, floor=0.01):
    t = lambda w: w.abs() + floor  # noqa: E731
    return lambda w, g: rho * t(w) ** 2 * g / ((t(w) * g).norm() + 1e-12)


def conditional(n, scale, cap=math.inf):
    def climb(w, g):
        rho = (w.norm() / (2 * (g.norm() + 1e-12))) ** 0.5 * D**-0.25 * max(n - 1, 1) ** -0.25
        e = scale * D**0.5 * rho * g / (g.norm() + 1e-12)
        return e * min(1.0, cap * float(w.norm() / (scale * D**0.5 * rho + 1e-12)))

    return climb


tail = (COUNTS < 100)[Y].double()
ones = torch.ones(len(Y), dtype=torch.float64)
share = 0.5 * (1 - COUNTS / COUNTS.sum().double())[Y] ** 3
member = [(c == Y).double() for c in range(3)]
stay = lambda w, g: 0 * g  # noqa: E731
FORMS = {
    "erm": (ERM(), [(ones, stay)]),
    "sam": (SAM(rho=0.3), [(ones, ball(0.3))]),
    "asam": (ASAM(rho=0.3), [(ones, stretched(0.3))]),
    "imbsam": (ImbSAM(rho=0.3, eta=100), [(1 - tail, stay), (tail, ball(0.3))]),
    "imbsam-x2": (ImbSAM(rho=0.3, eta=100, tail_weight=2.0), [(1 - tail, stay), (2 * tail, ball(0.3))]),
    "imbsam-group-mean": (
        ImbSAM(rho=0.3, eta=100, over="members"),
        [((1 - tail) * len(Y) / (1 - tail).sum(), stay), (tail * len(Y) / tail.sum(), ball(0.3))],
    ),
    "ssesam": (SSESAM(head_rho=0.1, tail_rho=0.4), [(1 - tail, ball(0.1)), (tail, ball(0.4))]),
    "focalsam": (FocalSAM(rho=0.2), [(1 - share, stay), (share, ball(0.2))]),
    "ccsam": (
        CCSAM(scale=1.0, scope="all", cap=math.inf, average="samples"),
        [(m, conditional(n, 1.0)) for m, n in zip(member, COUNTS.tolist(), strict=True)],
    ),
    "ccsam-cap": (
        CCSAM(scale=1.0, scope="all", cap=0.05, average="samples"),
        [(m, conditional(n, 1.0, 0.05)) for m, n in zip(member, COUNTS.tolist(), strict=True)],
    ),
    "ccsam-mix-classes": (
        CCSAM(scope="all", scale=0.1, cap=math.inf, mix=0.3, average="classes"),
        [(0.7 * ones, stay)]
        + [(0.3 * m * len(Y) / 3 / m.sum(), conditional(n, 0.1)) for m, n in zip(member, COUNTS.tolist(), strict=True)],
    ),
    "ccsam-class-sum": (
        CCSAM(scope="all", scale=0.1, cap=math.inf, average="class-sum"),
        [(m * len(Y) / m.sum(), conditional(n, 0.1)) for m, n in zip(member, COUNTS.tolist(), strict=True)],
    ),
}


@pytest.mark.parametrize("label", FORMS)
@pytest.mark.parametrize("seed", range(3))
def test_gradient_is_the_sum_over_terms(label, seed):
    method, rows = FORMS[label]
    bowl = Bowl(seed)
    SharpnessAware(bowl, method, COUNTS).backward(bowl, Y, progress=0.0)
    w = bowl.w.detach()
    expected = torch.zeros(D, dtype=torch.float64)
    for weight, climb in rows:
        h, own = mean(bowl.h, weight)
        expected += h @ (w + climb(w, own @ w))
    got = torch.cat([bowl.a.grad, bowl.b.grad])
    torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-13)


@given(rho=st.floats(1e-4, 10), seed=st.integers(0, 50))
@settings(max_examples=25, deadline=None)
def test_gap_and_radius_are_those_of_the_ball(rho, seed):
    bowl = Bowl(seed)
    aware = SharpnessAware(bowl, SAM(rho=rho))
    aware.backward(bowl, Y)
    w, h = bowl.w.detach(), bowl.h.mean(0)
    g = h @ w
    e = rho * g / g.norm()
    gap = 0.5 * (w + e) @ h @ (w + e) - 0.5 * w @ h @ w
    torch.testing.assert_close(aware.gaps["flat"], gap, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(aware.outcome.radii["flat"], rho / w.norm(), rtol=1e-9, atol=0)


@given(c=st.floats(0.1, 1e3), seed=st.integers(0, 20))
@settings(max_examples=25, deadline=None)
def test_the_climb_of_sam_does_not_know_the_size_of_the_loss(c, seed):
    bowl, scaled = Bowl(seed), Bowl(seed)
    SharpnessAware(bowl, SAM(rho=0.3)).backward(bowl, Y)
    SharpnessAware(scaled, SAM(rho=0.3)).backward(lambda: c * scaled(), Y)
    torch.testing.assert_close(scaled.b.grad, c * bowl.b.grad, rtol=1e-9, atol=1e-9 * c)


@given(c=st.floats(1e-2, 1e2), seed=st.integers(0, 20))
@settings(max_examples=25, deadline=None)
def test_asam_does_not_know_the_units_of_the_weights(c, seed):
    """With floor 0 the stretched ball is invariant: w in units of c gives the same loss there (Kwon et al., th. 2)."""
    bowl, other = Bowl(seed), Bowl(seed)
    with torch.no_grad():
        other.b.mul_(c)
    rescale = torch.tensor([1.0] + [1 / c] * (D - 1), dtype=torch.float64)
    one, two = SharpnessAware(bowl, ASAM(rho=0.3, floor=0.0)), SharpnessAware(other, ASAM(rho=0.3, floor=0.0))
    one.backward(bowl, Y)
    two.backward(lambda: 0.5 * torch.einsum("d,bde,e->b", rescale * other.w, other.h, rescale * other.w), Y)
    torch.testing.assert_close(two.gaps["flat"], one.gaps["flat"], rtol=1e-9, atol=1e-10)


def test_sam_on_a_diagonal_bowl_as_written_by_hand():
    """f = 1/2 w' diag(d) w: the climb, the gradient, one momentum update, weight decay from the restored w."""
    d, rho, lr, beta, decay = torch.tensor([1.0, 2.0, 4.0]).double(), 0.5, 0.1, 0.9, 0.01
    start = torch.tensor([1.0, -1.0, 0.5]).double()
    net = nn.ParameterList([nn.Parameter(start.clone())])
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=beta, weight_decay=decay)
    w, buffer = start.clone(), torch.zeros(3).double()
    for _ in range(4):
        optimizer.zero_grad()
        at = []
        SharpnessAware(net, SAM(rho=rho)).backward(
            lambda at=at: (at.append(net[0].detach().clone()), (0.5 * d * net[0] ** 2).sum()[None])[1],
            torch.zeros(1).long(),
        )
        e = rho * d * w / ((d * w).norm() + 1e-12)
        torch.testing.assert_close(at[1] - at[0], e, rtol=1e-12, atol=1e-14)
        assert torch.equal(net[0], at[0])
        buffer = beta * buffer + d * (w + e) + decay * w
        w = w - lr * buffer
        optimizer.step()
        torch.testing.assert_close(net[0].detach(), w, rtol=1e-13, atol=1e-13)


@given(seed=st.integers(0, 1000), size=st.floats(1e-6, 1e6))
@settings(max_examples=30, deadline=None)
def test_displaced_restores_bit_for_bit_where_subtraction_does_not(seed, size):
    g = torch.Generator().manual_seed(seed)
    w = [torch.randn(50, generator=g), torch.randn(7, 3, generator=g)]
    e = [size * torch.randn(x.shape, generator=g) for x in w]
    before, places = [x.clone() for x in w], [x.data_ptr() for x in w]
    with displaced(w, e):
        assert all(torch.equal(x, b + m) for x, b, m in zip(w, before, e, strict=True))
    assert all(torch.equal(x, b) for x, b in zip(w, before, strict=True))
    assert places == [x.data_ptr() for x in w]


class Sum(nn.Module):
    """Autograd hands both parameters the same gradient tensor, and a third an expanded one."""

    def __init__(self, seed=0):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.ones(3).double()), nn.Parameter(torch.full((3,), 2.0).double())
        self.c = nn.Parameter(torch.ones(3).double())

    def forward(self):
        return ((self.a + self.b + self.c.sum()) ** 2).sum().expand(4) / 4


def test_gradients_that_share_memory_are_climbed_once():
    net = Sum()
    SharpnessAware(net, SAM(rho=0.3)).backward(net, torch.zeros(4).long())
    u = net.a.detach() + net.b.detach() + net.c.detach().sum()
    g = u / 2
    slope = torch.cat([g, g, g.sum().expand(3)])
    e = 0.3 * slope / slope.norm()
    moved = u + e[:3] + e[3:6] + e[6:].sum()
    torch.testing.assert_close(net.a.grad, moved / 2, rtol=1e-13, atol=0)
    torch.testing.assert_close(net.c.grad, (moved / 2).sum().expand(3), rtol=1e-13, atol=0)


def test_expanded_gradients_can_be_climbed():
    net = nn.ParameterList([nn.Parameter(torch.arange(3.0).double())])
    SharpnessAware(net, SAM(rho=0.3)).backward(lambda: net[0].sum().expand(4) ** 2, torch.zeros(4).long())
    torch.testing.assert_close(net[0].grad, torch.full((3,), 2 * (3 + 0.3 * 3**0.5)).double())


def test_linear_map_whose_gradient_is_expanded():
    net = nn.ParameterList([nn.Parameter(torch.arange(3.0).double())])
    SharpnessAware(net, SAM(rho=0.3)).backward(lambda: net[0].sum().expand(4), torch.zeros(4).long())
    torch.testing.assert_close(net[0].grad, torch.ones(3).double())

"""Every method against a slow, literal transcription of its paper's algorithm, over five SGD steps."""

import math

import pytest
import torch
import torch.nn.functional as F
from cases import BATCH, COUNTS, LAYERS, SAMPLES, data, mlp

from flattail.sharp import ASAM, CCSAM, ERM, SAM, SSESAM, FocalSAM, ImbSAM, SharpnessAware

STEPS = 5
N = COUNTS.double()


# -- the papers' steps, each by explicit passes; all return a gradient per parameter -----------------------


def passes(model, total, keep=False):
    """One backward: the gradient of a scalar, zero where a parameter was not used."""
    params = list(model.parameters())
    grads = torch.autograd.grad(total, params, retain_graph=keep, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(params, grads, strict=True)]


def length(tensors):
    return math.sqrt(sum(float((t.detach() ** 2).sum()) for t in tensors))


def at(model, moves, look):
    """What `look` gives at w + e; then w is put back from a copy."""
    kept = [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
        for p, e in zip(model.parameters(), moves, strict=True):
            p.add_(e)
    result = look()
    with torch.no_grad():
        for p, k in zip(model.parameters(), kept, strict=True):
            p.copy_(k)
    return result


def up(grads, rho, eps=1e-12):
    size = length(grads)
    return [rho * g / (size + eps) for g in grads]


def erm(model, losses, y, t):
    return passes(model, losses().mean())


def sam(model, losses, y, t):
    g = passes(model, losses().mean())
    return at(model, up(g, 0.3), lambda: passes(model, losses().mean()))


def asam(model, losses, y, t, eta=0.01):
    g = passes(model, losses().mean())
    stretch = [p.detach().abs() + eta for p in model.parameters()]
    size = length([s * d for s, d in zip(stretch, g, strict=True)])
    e = [0.4 * s**2 * d / (size + 1e-12) for s, d in zip(stretch, g, strict=True)]
    return at(model, e, lambda: passes(model, losses().mean()))


def imbsam(tail_factor=1.0, group_mean=False):
    """Two backwards on one graph, one forward on the whole batch at w + e."""

    def step(model, losses, y, t):
        tail = (N < 100)[y]
        sizes = (int((~tail).sum()), int(tail.sum())) if group_mean else (len(y), len(y))
        loss = losses()
        head_grad = passes(model, loss[~tail].sum() / sizes[0], keep=True)
        tail_grad = passes(model, tail_factor * loss[tail].sum() / sizes[1])
        look = lambda: passes(model, tail_factor * losses()[tail].sum() / sizes[1])  # noqa: E731
        flat = at(model, up(tail_grad, 0.3), look)
        return [a + b for a, b in zip(head_grad, flat, strict=True)]

    return step


def ssesam(gamma, epochs=10, rho_head=0.2, rho_tail=0.4):
    """Four forwards; the epoch counter is compared with gamma T as the release does, up to rounding."""

    def step(model, losses, y, t):
        epoch = round(t * epochs)
        rho = 0.0 if epoch >= gamma * epochs - 1e-6 else rho_head
        tail = (N < 100)[y]
        total = None
        for group, radius in ((~tail, rho), (tail, rho_tail)):
            look = lambda group=group: passes(model, losses()[group].sum() / len(y))  # noqa: E731
            g = look()
            g = at(model, up(g, radius), look)
            total = g if total is None else [a + b for a, b in zip(total, g, strict=True)]
        return total

    return step


def focalsam(strength=0.8, gamma=3.2, rho=0.3):
    """Plain, plus each class's own share of the sharpness."""

    def step(model, losses, y, t):
        pi = N / N.sum()
        delta = (strength * (1 - pi) ** gamma)[y]
        loss = losses()
        plain = passes(model, ((1 - delta) * loss).sum() / len(y), keep=True)
        g = passes(model, (delta * loss).sum() / len(y))
        flat = at(model, up(g, rho), lambda: passes(model, (delta * losses()).sum() / len(y)))
        return [a + b for a, b in zip(plain, flat, strict=True)]

    return step


def ccsam_paper(names, *, scale=1.0, cap=math.inf, average="samples", mix=1.0):
    """Eqs. 8 to 11: one slope, one radius and one pass per class, by functional_call."""

    def step(model, losses, y, t):
        params = dict(model.named_parameters())
        theta = {n: p for n, p in params.items() if any(n.startswith(s) for s in names)}
        size, k = length(theta.values()), sum(p.numel() for p in theta.values())
        x, classes = losses.x, y.unique().tolist()
        total = (1 - mix) * losses().mean()
        for c in classes:
            mean = losses()[y == c].mean()
            g = dict(zip(theta, torch.autograd.grad(mean, list(theta.values())), strict=True))
            g_size = length(g.values())
            n = max(int(COUNTS[c]) - 1, 1)
            rho = (size / (2 * g_size)) ** 0.5 * k**-0.25 * n**-0.25  # eq. 8
            e_size = scale * math.sqrt(k) * rho  # eq. 9
            e_size = min(e_size, cap * size)
            moved = {m: p + e_size * g[m] / g_size if m in g else p for m, p in params.items()}
            flat = F.cross_entropy(torch.func.functional_call(model, moved, (x[y == c],)), y[y == c])
            share = {"samples": int((y == c).sum()) / len(y), "classes": 1 / len(classes), "class-sum": 1.0}[average]
            total = total + mix * share * flat  # eq. 10-11 with share 1
        return passes(model, total)

    return step


def ccsam_released(kappa, phi, lam=1.0):
    """The released step: per-tensor norms, a loop over the classes of y_a, hard labels in the flat term."""

    def step(model, losses, y, t):
        z = model.backbone(losses.x)
        o = model.head(z)
        loss = lam * F.cross_entropy(o, y, reduction="none")
        loss = loss + (1 - lam) * F.cross_entropy(o, losses.other, reduction="none")
        theta = [model.head.weight, model.head.bias]
        size, k = length(theta) + 1e-12, sum(p.numel() for p in theta)
        flat = torch.zeros_like(loss)
        for c in y.unique().tolist():
            own = y == c
            grads = torch.autograd.grad(loss[own].mean(), theta, retain_graph=True)
            moved = []
            for p, g in zip(theta, grads, strict=True):
                g_size = float(g.norm())
                r = kappa * math.sqrt(size) / math.sqrt(g_size) / math.sqrt(2)
                r = r / (int(COUNTS[c]) - 1) ** 0.25 / k**0.25
                moved.append(p + r * math.sqrt(k) * g / g_size)
            flat[own] = F.cross_entropy(F.linear(z[own], *moved), y[own], reduction="none")
        return passes(model, (1 - phi) * loss.mean() + phi * flat.mean())

    return step


# -- five steps of each ------------------------------------------------------------------------------------


class Mixed:
    """The closure of a batch, with its parts in sight of the oracles: mixup when lam < 1."""

    def __init__(self, model, x, y, lam=1.0):
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(3))
        self.model, self.y, self.lam, self.other = model, y, lam, y[order]
        self.x = lam * x + (1 - lam) * x[order]

    def __call__(self):
        o = self.model(self.x)
        hard = F.cross_entropy(o, self.y, reduction="none")
        if self.lam == 1:
            return hard
        return self.lam * hard + (1 - self.lam) * F.cross_entropy(o, self.other, reduction="none")

    def hard(self):
        return F.cross_entropy(self.model(self.x), self.y, reduction="none")


def train(step_of, progress, *, lam=1.0, head="linear"):
    model = mlp(seed=2, head=head)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9, weight_decay=5e-3)
    for step, t in enumerate(progress):
        losses = Mixed(model, *data(seed=step, n=BATCH), lam)
        optimizer.zero_grad()
        step_of(model, losses, t)
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def by_hand(oracle):
    def step(model, losses, t):
        for p, g in zip(model.parameters(), oracle(model, losses, losses.y, t), strict=True):
            p.grad = g

    return step


def by_engine(method, how=None):
    def step(model, losses, t):
        SharpnessAware(model, method, COUNTS, **(how or {})).backward(losses, losses.y, t, hard=losses.hard)

    return step


INF = math.inf
LAST = ("backbone.2", "head")
ORACLES = {
    "erm": (ERM(), erm),
    "sam": (SAM(rho=0.3), sam),
    "asam": (ASAM(rho=0.4), asam),
    "imbsam": (ImbSAM(rho=0.3, eta=100), imbsam()),
    "imbsam-x2": (ImbSAM(rho=0.3, eta=100, tail_weight=2.0), imbsam(2.0)),
    "imbsam-group-mean": (ImbSAM(rho=0.3, eta=100, over="members"), imbsam(group_mean=True)),
    "focalsam": (FocalSAM(rho=0.3, strength=0.8, gamma=3.2), focalsam()),
    "focalsam-strong": (FocalSAM(rho=0.3, strength=1.1, gamma=2.0), focalsam(strength=1.1, gamma=2.0)),
    "ccsam-head": (SAMPLES(scale=1.0, cap=INF), ccsam_paper(("head",))),
    "ccsam-head-capped": (SAMPLES(scale=1.0, cap=0.1), ccsam_paper(("head",), cap=0.1)),
    "ccsam-head-classes": (
        CCSAM(scale=0.1, cap=INF, average="classes"),
        ccsam_paper(("head",), scale=0.1, average="classes"),
    ),
    "ccsam-head-sum": (
        CCSAM(scale=0.1, cap=INF, average="class-sum"),
        ccsam_paper(("head",), scale=0.1, average="class-sum"),
    ),
    "ccsam-head-mixed": (SAMPLES(scale=0.1, cap=0.1, mix=0.3), ccsam_paper(("head",), scale=0.1, mix=0.3, cap=0.1)),
    "ccsam-layers": (
        SAMPLES(scale=0.1, cap=INF, scope=LAYERS),
        ccsam_paper(LAST, scale=0.1),
    ),
    "ccsam-layers-sum": (
        CCSAM(scale=0.1, cap=0.05, scope=LAYERS, average="class-sum", mix=0.6),
        ccsam_paper(LAST, scale=0.1, cap=0.05, average="class-sum", mix=0.6),
    ),
    "ccsam-all": (SAMPLES(scale=0.1, cap=INF, scope="all"), ccsam_paper(("",), scale=0.1)),
    "ccsam-all-classes": (
        CCSAM(scale=1.0, cap=0.1, scope="all", average="classes"),
        ccsam_paper(("",), cap=0.1, average="classes"),
    ),
}


@pytest.mark.parametrize("label", ORACLES)
def test_five_steps_equal_the_papers(label):
    method, oracle = ORACLES[label]
    t = [i / 10 for i in range(STEPS)]
    got, expected, plain = (train(s, t) for s in (by_engine(method), by_hand(oracle), by_hand(erm)))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    if label != "erm":
        assert max(float((a - b).abs().max()) for a, b in zip(got, plain, strict=True)) > 1e-4


@pytest.mark.parametrize("gamma", [0.2, 0.0, 1.0, 0.25])
def test_five_steps_of_ssesam_across_its_switch(gamma):
    t = [i / 10 for i in range(STEPS)]  # an epoch a step
    got = train(by_engine(SSESAM(head_rho=0.2, tail_rho=0.4, switch=gamma)), t)
    expected = train(by_hand(ssesam(gamma)), t)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kappa, phi, lam", [(0.3, 0.5, 1.0), (0.1, 0.3, 0.7), (1e-2, 1.0, 0.4), (1e-6, 0.5, 0.7)])
def test_five_steps_of_the_released_ccsam(kappa, phi, lam):
    """Under mixup the flat term has the hard labels y_a alone; slopes are of the mixed losses, grouped by y_a."""
    method = SAMPLES(scale=kappa, cap=INF, mix=phi, norm="per-tensor", labels="hard")
    t = [0.0] * STEPS
    got = train(by_engine(method), t, lam=lam)
    expected = train(by_hand(ccsam_released(kappa, phi, lam)), t, lam=lam)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_gaps_under_hard_labels_compare_hard_labels_or_say_nothing():
    model = mlp()
    losses = Mixed(model, *data(), 0.7)
    for scale, scope in ((0.0, "head"), (0.1, "head"), (0.1, "all")):
        method = SAMPLES(scale=scale, labels="hard", scope=scope)
        aware = SharpnessAware(model, method, COUNTS)
        aware.backward(losses, losses.y, hard=losses.hard)
        gaps = torch.stack(list(aware.gaps.values()))
        if scope == "all":
            assert bool(gaps.isnan().all())
        else:
            hard_at_w, there = losses.hard().detach().mean(), aware.outcome.values["class"]
            torch.testing.assert_close(gaps[0], there - hard_at_w, rtol=1e-10, atol=1e-15)
            assert (float(gaps[0].abs()) < 1e-15) == (scale == 0)


def test_a_cosine_head_equals_functional_call():
    """The hazard of swapping `.data`: the gradient of a cosine head must be taken at the moved weights."""
    t = [0.0] * STEPS
    for head, method, oracle in (
        ("cosine", SAMPLES(scale=0.1, cap=INF), ccsam_paper(("head",), scale=0.1)),
        ("mlp", CCSAM(scale=1.0, cap=0.1, average="class-sum"), ccsam_paper(("head",), cap=0.1, average="class-sum")),
        ("no-bias", SAMPLES(scale=1.0, cap=0.1, mix=0.5), ccsam_paper(("head",), cap=0.1, mix=0.5)),
    ):
        got, expected = train(by_engine(method), t, head=head), train(by_hand(oracle), t, head=head)
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_ssesam_after_its_switch_is_imbsam_and_before_it_is_not():
    late, early = SSESAM(head_rho=0.2, tail_rho=0.3, switch=0.5), [0.4] * STEPS
    imb = ImbSAM(rho=0.3, eta=100)
    for t, same in (([0.5] * STEPS, True), (early, False)):
        a, b = train(by_engine(late), t), train(by_engine(imb), t)
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True)) == same


def test_the_radius_of_the_paper_is_no_small_one():
    """METHODS 4.6 b: ||theta|| = 6, k = 650, n_c = 50: a slope of 1 gives ||e|| of 3.3, one of .1 gives 10.5."""
    climb = (
        SAMPLES(scale=1.0, cap=INF)
        .terms(type("At", (), {"counts": torch.full((10,), 50), "y": torch.zeros(1).long(), "ones": torch.ones(1)})())[
            0
        ]
        .climb
    )
    sizes = climb.length(torch.tensor(6.0), torch.tensor([[1.0], [0.1]]), 650)[:, 0]
    torch.testing.assert_close(sizes, torch.tensor([3.3, 10.5]), atol=0.06, rtol=0)

"""The displaced head: the closed form equals a loop over classes, in every shape that a batch and a head can have."""

import math

import pytest
import torch
import torch.nn.functional as F
from cases import (
    CLASSES,
    Pair,
    apart,
    close,
    closure,
    data,
    flat,
    gradient,
    gradients,
    mlp,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flattail.sharp import CCSAM, ERM, Part, Radial, Term, l2_ball, sharp_backward
from flattail.sharp.head import routed

INF = math.inf
FORMS = {
    "paper": CCSAM(scale=1.0, cap=INF, average="samples"),
    "small": CCSAM(scale=1e-6, cap=INF, average="samples"),
    "capped": CCSAM(scale=1.0, cap=0.05, average="classes", mix=0.4),
    "per-tensor": CCSAM(scale=1.0, cap=INF, norm="per-tensor", average="class-sum"),
    "per-tensor-capped": CCSAM(scale=1.0, cap=0.2, norm="per-tensor", average="samples", mix=0.7),
}


class Affine(nn.Linear):
    """A linear head that is not of class `nn.Linear`, and so takes the generic path."""


def twins(head="linear", seed=0):
    """Two equal models, whose heads take the closed form and the generic path."""
    one, two = mlp(seed, head=head), mlp(seed, head=head)
    two.head.__class__ = Affine
    return one, two


@pytest.mark.parametrize("head", ["linear", "no-bias"])
@pytest.mark.parametrize("form", FORMS)
def test_closed_form_equals_the_loop_over_classes(form, head):
    one, two = twins(head)
    x, y = data(3)
    outs = []
    grads = []
    for model in (one, two):
        inputs = x.clone().requires_grad_()
        z = []
        handle = model.backbone.register_forward_hook(lambda m, i, o, z=z: (o.retain_grad(), z.append(o))[0])
        aware = flat(model, FORMS[form])
        aware.backward(closure(model, inputs, y), y)
        handle.remove()
        outs.append(aware.outcome)
        grads.append(gradients(model) | {"x": inputs.grad, "z": z[0].grad})
    close(grads[0], grads[1], 1e-12)
    torch.testing.assert_close(outs[0].radii["class"], outs[1].radii["class"], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(outs[0].gaps["class"], outs[1].gaps["class"], rtol=1e-9, atol=1e-12)


@given(seed=st.integers(0, 10_000), n=st.integers(1, 14), scale=st.floats(1e-3, 2), cap=st.sampled_from([0.05, INF]))
@settings(max_examples=30, deadline=None)
def test_closed_form_equals_the_loop_for_any_batch(seed, n, scale, cap):
    one, two = twins(seed=seed)
    x, _ = data(seed, n)
    y = torch.randint(0, CLASSES, (n,), generator=torch.Generator().manual_seed(seed))
    method = CCSAM(scale=scale, cap=cap)
    close(gradient(one, method, x, y), gradient(two, method, x, y), 1e-10)


def test_any_radial_climb_has_the_closed_form():
    """A SAM ball per class, by hand: e_c = rho g_c / ||g_c||."""
    model, (x, y) = mlp(), data()
    weight = torch.ones(len(y))
    term = Term("class", weight, l2_ball(0.3), by=y, groups=CLASSES)
    sharp_backward([Part(closure(model, x, y), [term])], model, "head")
    got = gradients(model)
    model.zero_grad()
    total = 0
    for c in range(CLASSES):
        rows = y == c
        mean = F.cross_entropy(model(x[rows]), y[rows])
        g = torch.autograd.grad(mean, list(model.head.parameters()))
        size = torch.cat([v.flatten() for v in g]).norm()
        moved = {n: p + 0.3 * v / size for (n, p), v in zip(model.head.named_parameters(), g, strict=True)}
        logits = torch.func.functional_call(model.head, moved, (model.backbone(x[rows]),))
        total = total + F.cross_entropy(logits, y[rows], reduction="sum") / len(y)
    total.backward()
    close(got, gradients(model), 1e-13)


@pytest.mark.parametrize("head", ["linear", "cosine", "mlp"])
def test_routed_is_one_displaced_pass_per_class(head):
    model, (x, y) = mlp(head=head), data()
    z = model.backbone(x).detach().requires_grad_()
    g = torch.Generator().manual_seed(1)
    moves = {
        c: {n: 0.1 * torch.randn(p.shape, generator=g, dtype=p.dtype) for n, p in model.head.named_parameters()}
        for c in range(CLASSES - 1)  # the last class stays at w
    }
    got = routed(model.head, z, y, moves, None)
    expected = torch.zeros_like(got)
    for c in range(CLASSES):
        rows = y == c
        moved = {n: p + moves.get(c, {}).get(n, 0) for n, p in model.head.named_parameters()}
        expected = expected.index_put(
            (rows.nonzero().squeeze(1),), torch.func.functional_call(model.head, moved, (z[rows],))
        )
    torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-13)
    over = [z, *model.head.parameters()]
    for a, b in zip(
        torch.autograd.grad(got.sin().sum(), over), torch.autograd.grad(expected.sin().sum(), over), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("head", ["linear", "cosine"])
@pytest.mark.parametrize("form", FORMS)
def test_a_class_of_one_sample_and_one_of_no_slope_are_finite(form, head):
    """n_c = 1 has n_c - 1 = 0 in the radius; a class that is fitted exactly has a slope of zero."""
    from flattail.sharp import SharpnessAware

    model, (x, y) = mlp(head=head), data()
    losses = lambda: torch.where(y == 2, 0.0, 1.0) * F.cross_entropy(model(x), y, reduction="none")  # noqa: E731
    aware = SharpnessAware(model, FORMS[form], torch.tensor([500, 200, 120, 60, 2, 1]))
    aware.backward(losses, y)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert bool(aware.outcome.finite)
    radii = aware.outcome.radii["class"]
    assert radii[2] == 0 and bool((radii[[0, 1, 3, 4, 5]] > 0).all())


def test_a_slope_of_zero_is_finite_in_float32_too():
    model, (x, y) = mlp(dtype=torch.float32), data(dtype=torch.float32)
    losses = lambda: 1e-20 * F.cross_entropy(model(100 * x), y, reduction="none")  # noqa: E731
    for form in FORMS.values():
        got = gradient(model, form, x, y, losses=losses)
        assert all(torch.isfinite(g).all() for g in got.values())


def chunks(x, y, sizes=(3, 11, 8)):
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


@pytest.mark.parametrize("head", ["linear", "cosine"])
@pytest.mark.parametrize("form", FORMS)
def test_micro_batches_that_climb_together_equal_one_batch(form, head):
    model, (x, y) = mlp(head=head), data()
    one = flat(model, FORMS[form])
    one.backward(closure(model, x, y), y)
    expected = gradients(model)
    model.zero_grad()
    parts = chunks(x, y)
    together = flat(model, FORMS[form], climb_together=True)
    loss = together.backward([closure(model, a, b) for a, b in parts], [b for _, b in parts])
    close(gradients(model), expected, 1e-12)
    torch.testing.assert_close(loss, one.outcome.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(together.gaps["class"], one.gaps["class"], rtol=1e-9, atol=1e-12)
    assert together.outcome.forwards == 6
    torch.testing.assert_close(together.outcome.radii["class"], one.outcome.radii["class"], rtol=1e-9, atol=0)


@pytest.mark.parametrize("form", FORMS)
def test_micro_batches_that_climb_apart_are_averaged_by_mass(form):
    model, (x, y) = mlp(), data()
    parts = chunks(x, y)
    expected, gap = None, 0
    for a, b in parts:
        share = len(b) / len(y)
        got = gradient(model, FORMS[form], a, b)
        expected = {n: share * g + (0 if expected is None else expected[n]) for n, g in got.items()}
        alone = flat(model, FORMS[form])
        alone.backward(closure(model, a, b), b)
        gap = gap + share * alone.gaps["class"]
    model.zero_grad()
    aware = flat(model, FORMS[form])
    aware.backward([closure(model, a, b) for a, b in parts], [b for _, b in parts])
    close(gradients(model), expected, 1e-13)
    torch.testing.assert_close(aware.gaps["class"], gap, rtol=1e-11, atol=1e-14)
    assert apart(gradients(model), gradient(model, FORMS[form], x, y)) or form == "small"


def test_gradients_accumulate_over_micro_batches_too():
    model, (x, y) = mlp(), data()
    parts = chunks(x, y)
    how = ([closure(model, a, b) for a, b in parts], [b for _, b in parts])
    for together in (False, True):
        model.zero_grad()
        aware = flat(model, FORMS["paper"], climb_together=together)
        aware.backward(*how)
        once = gradients(model)
        aware.backward(*how)
        close(gradients(model), {n: 2 * g for n, g in once.items()}, 1e-13)


def test_a_frozen_backbone_and_a_frozen_bias():
    for freeze in ("backbone", "head.bias", "head.weight"):
        one, two = twins()
        x, y = data()
        grads = []
        for model in (one, two):
            for n, p in model.named_parameters():
                p.requires_grad_(not n.startswith(freeze))
            grads.append(gradient(model, FORMS["paper"], x, y))
            assert all((g is None) == n.startswith(freeze) for n, g in grads[-1].items())
        close(*grads, 1e-12)


def test_only_narrows_what_the_head_displaces():
    one, two = twins()
    x, y = data()
    grads = [gradient(m, FORMS["paper"], x, y, how={"only": r"head\.weight"}) for m in (one, two)]
    close(*grads, 1e-12)
    assert apart(grads[0], gradient(one, FORMS["paper"], x, y))


def test_the_backbone_runs_once_and_may_be_noisy():
    """Dropout in the backbone: the flat term sees the very features of the plain one."""
    model, (x, y) = mlp(dropout=0.5), data()
    aware = flat(model, CCSAM(scale=0.0, average="samples", mix=0.5))
    aware.backward(closure(model, x, y), y)
    assert float(aware.gaps["class"]) == 0.0


SHARED = {"dropout": lambda: nn.Dropout(0.5), "batchnorm": lambda: nn.BatchNorm1d(8)}


@pytest.mark.parametrize("shared", SHARED)
@pytest.mark.parametrize("average", ["samples", "classes"])
def test_a_head_whose_samples_share_something_has_them_together(shared, average):
    """Dropout or BatchNorm in the head: the whole batch goes through every class's head, under the same masks."""
    torch.manual_seed(0)
    head = nn.Sequential(SHARED[shared](), nn.Linear(8, CLASSES))
    model, (x, y) = Pair(nn.Sequential(nn.Linear(5, 8), nn.Tanh()), head).double(), data()

    def seeded(method):
        torch.manual_seed(3)
        return gradient(model, method, x, y)

    one, layers = (CCSAM(scale=1.0, cap=INF, average=average, scope=scope) for scope in ("head", r"^head\."))
    before = {n: b.clone() for n, b in model.named_buffers()}
    close(seeded(one), seeded(layers), 1e-12)
    close(seeded(CCSAM(scale=0.0, average="samples")), seeded(ERM()), 1e-12)
    steps = {n: b for n, b in model.named_buffers() if n.endswith("num_batches_tracked")}
    assert all(int(b) - int(before[n]) == 4 for n, b in steps.items())  # once a step


@pytest.mark.parametrize("how", [{"mix": 0.5}, {"labels": "hard"}], ids=str)
def test_noise_that_a_loss_draws_is_the_same_after_a_noisy_backbone(how):
    model, (x, y) = mlp(dropout=0.5), data()

    def losses():
        return F.cross_entropy(model(x) + torch.randn(len(y), CLASSES), y, reduction="none")

    aware = flat(model, CCSAM(scale=0.0, average="samples", **how))
    aware.backward(losses, y, hard=losses)
    assert float(aware.outcome.gaps["class"]) == 0.0


def test_a_generic_head_under_autocast_runs_as_it_ran():
    """z is bfloat16 there: a head of float32 weights must be routed under the cast that it ran under."""
    for head in ("linear", "mlp", "cosine"):
        model, (x, y) = mlp(head=head, dtype=torch.float32), data(dtype=torch.float32)

        def losses(model=model, x=x, y=y):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                out = model(x)
            return F.cross_entropy(out, y, reduction="none")

        exact = gradient(model, FORMS["capped"], x, y)
        inside = gradient(model, FORMS["capped"], x, y, losses=losses)
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            flat(model, FORMS["capped"]).backward(closure(model, x, y), y)
        for got in (inside, gradients(model)):
            for n, g in got.items():
                assert torch.isfinite(g).all()
                assert (g - exact[n]).norm() <= 0.1 * exact[n].norm(), (head, n)


def test_module_state_after_an_exception_in_the_moved_head():
    model, (x, y) = mlp(), data()
    calls = []

    def losses():
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("second look")
        return F.cross_entropy(model(x), y, reduction="none")

    before = {n: dict(m.__dict__) for n, m in model.named_modules()}
    with pytest.raises(RuntimeError, match="second look"):
        flat(model, FORMS["paper"]).backward(losses, y)
    assert {n: sorted(m.__dict__) for n, m in model.named_modules()} == {n: sorted(d) for n, d in before.items()}
    assert not model.head._forward_hooks and not model.backbone._forward_hooks


def test_a_forward_patched_on_the_instance_is_put_back():
    model, (x, y) = mlp(), data()
    original = model.head.forward
    model.head.forward = lambda z: original(z)
    patched = model.head.forward
    gradient(model, FORMS["paper"], x, y)
    assert model.head.forward is patched


def test_a_head_that_runs_twice_is_refused():
    model, (x, y) = mlp(), data()
    twice = lambda: F.cross_entropy(model(x) + model(x), y, reduction="none")  # noqa: E731
    with pytest.raises(ValueError, match="2 times"):
        flat(model, FORMS["paper"]).backward(twice, y)


def test_two_climbing_terms_are_refused():
    model, (x, y) = mlp(), data()
    weight = torch.ones(len(y))
    terms = [Term("a", weight, l2_ball(0.1)), Term("b", weight, l2_ball(0.2))]
    with pytest.raises(ValueError, match=r"one climbing term.*\['a', 'b'\]"):
        sharp_backward([Part(closure(model, x, y), terms)], model, "head")


def test_a_scope_of_weights_and_the_head_agree_where_they_mean_the_same():
    """scope='head' through one pass equals the pattern '^head' through a pass per class."""
    model, (x, y) = mlp(), data()
    for average in ("samples", "classes", "class-sum"):
        head = CCSAM(scale=1.0, cap=INF, mix=0.6, average=average)
        layers = CCSAM(scale=1.0, cap=INF, mix=0.6, average=average, scope=r"^head\.")
        close(gradient(model, head, x, y), gradient(model, layers, x, y), 1e-12)


def test_spatial_heads_take_the_generic_path():
    """A head of a convolution: plain `x @ W` and convolutions are where swapping `.data` goes wrong."""
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh())
    head = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4, CLASSES))
    model = Pair(backbone, head).double()
    x, (_, y) = torch.randn(22, 2, 5, 5).double(), data()
    radial = Radial(lambda w, g, k: torch.full_like(g, 0.2))
    term = Term("class", torch.ones(len(y)), radial, by=y, groups=CLASSES)
    sharp_backward([Part(closure(model, x, y), [term])], model, "head")
    got = gradients(model)
    model.zero_grad()
    layers = Term("class", torch.ones(len(y)), radial, by=y, groups=CLASSES)
    sharp_backward([Part(closure(model, x, y), [layers])], model, "weights", only=r"^head\.")
    close(got, gradients(model), 1e-12)


def test_by_default_classes_of_ccsam_climb_by_their_own_lengths():
    """Eqs. 8 and 9 up to a common factor: rare classes, and those with small gradients, further; no cap in between."""
    model, (x, y) = mlp(), data()
    aware = flat(model, CCSAM())
    aware.backward(closure(model, x, y), y)
    (found,) = aware.outcome.radii.values()
    head = [*model.head.parameters()]
    whole = torch.cat([p.detach().flatten() for p in head])
    for c in y.unique().tolist():
        loss = closure(model, x[y == c], y[y == c])().mean()
        slope = torch.cat([g.flatten() for g in torch.autograd.grad(loss, head)]).norm()
        length = 0.03 * len(whole) ** 0.25 * (whole.norm() / (2 * slope)) ** 0.5 / (int(aware.counts[c]) - 1) ** 0.25
        assert (
            float(found[c]) == pytest.approx(float(length / whole.norm()), rel=1e-9) and float(found[c]) < CCSAM().cap
        )

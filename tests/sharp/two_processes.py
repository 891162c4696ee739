"""On two processes: a DistributedDataParallel against explicit slopes and one process's joined batch.

Every process holds the whole batch too, so each makes both sides of its comparisons. Prints "<case> ok" per case.
"""

import re
import sys
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parents[1]))
from cases import BLIND, CLASSES, EVERY, HEADS, INSIDE, LAYERS, MERGED, WEIGHTS, close, data, flat, mlp
from forked import forked

from flattail.sharp import ERM, SAM, SSESAM, FocalSAM, ImbSAM, Weighted

MASSES = torch.tensor([0.2, 0.5, 0.7, 1.1, 2.0, 5.0], dtype=torch.float64)
STEPS = 5  # two where the matter is who holds what
SCHEDULED = {"sam-steps", "sam-linear", "imbsam-few", "window", "every"}  # the same terms as others, at other times
ALIKE = {"wsam-weak", "gradient-norm", "look-sam", "every-gsam", "lpf-rising", "features-batch", "features-rarity"} | {
    "perturbation-3",
    "window-friendly",
    "ccsam-random-all",
    "ccsam-unit",
}  # and few that tell more
LABELS = [label for label in EVERY if label not in SCHEDULED | ALIKE]


def make(model, x, y, rows=False):
    if rows:
        return lambda rows: Weighted(F.cross_entropy(model(x[rows]), y[rows], reduction="none"), MASSES[y[rows]])
    return lambda: Weighted(F.cross_entropy(model(x), y, reduction="none"), MASSES[y])


def split(case, x, y, rank):
    """What a rank holds of a batch."""
    if case == "uneven":
        rows = slice(0, 8) if rank == 0 else slice(8, None)
    elif case == "no tail":  # rank 0 holds none of the classes under 100 samples
        head = (y < 3).nonzero().squeeze(1)
        rest = (y >= 3).nonzero().squeeze(1)
        rows = head if rank == 0 else rest
    elif case == "no sample":
        rows = slice(0, 0) if rank == 0 else slice(None)
    return x[rows], y[rows]


def train(model, method, batches, *, micro=1, rows=False, **how):
    """SGD steps; the weights afterwards."""
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    optimizer = torch.optim.SGD(inner.parameters(), lr=0.2, momentum=0.9, weight_decay=5e-3)
    aware, losses = flat(model, method, **how), []
    for step, (x, y) in enumerate(batches):
        optimizer.zero_grad()
        xs, ys = x.tensor_split(micro), y.tensor_split(micro)
        parts = [make(model, a, b, rows) for a, b in zip(xs, ys, strict=True)]
        losses.append(aware.backward(parts, list(ys), progress=step / 10, step=step))
        optimizer.step()
    return {n: p.detach().clone() for n, p in inner.named_parameters()}, torch.stack(losses)


def wrap(model, **kw):
    return DistributedDataParallel(model, **kw)


@cache
def one_process(label, head, steps):
    """Some steps on the whole batch."""
    return train(mlp(head=head), EVERY[label], [data(seed) for seed in range(steps)])


def joined(rank, case, label, micro, rows, head="linear", steps=2, **kw):
    whole = [data(seed) for seed in range(steps)]
    mine = [split(case, x, y, rank) for x, y in whole]
    got, loss = train(wrap(mlp(head=head), **kw), EVERY[label], mine, micro=micro, rows=rows, climb_together=True)
    expected, loss_whole = one_process(label, head, steps)
    close(got, expected, 1e-12)
    torch.testing.assert_close(loss, loss_whole, rtol=1e-11, atol=0)


def test_joined_batch(rank):
    for label in EVERY:
        joined(rank, "uneven", label, 1, False, steps=STEPS)


def test_rank_without_tail(rank):
    for label in LABELS:
        joined(rank, "no tail", label, 1, label in WEIGHTS)


def test_rank_without_samples(rank):
    for label in LABELS:
        for rows in {False, label in WEIGHTS}:
            joined(rank, "no sample", label, 1, rows)


def test_micro_batches(rank):
    for label in LABELS:
        joined(rank, "uneven", label, 3, False)
        joined(rank, "no tail", label, 2, True)


def test_bucket_views_and_generic_heads(rank):
    for label in ("sam", "imbsam", "ssesam-before", "ccsam"):
        joined(rank, "uneven", label, 2, False, gradient_as_bucket_view=True)
    for label in INSIDE:
        for case in ("uneven", "no tail", "no sample"):
            joined(rank, case, label, 1, False, head="cosine")


def test_m_sharpness(rank):
    """Without climb_together each process climbs by its own slope; checked against both slopes by hand."""

    def loss_of(model, w, x, y, weight, moved=None):
        params = {n: p + (0 if moved is None else moved[n]) for n, p in w.items()}
        return (weight * F.cross_entropy(torch.func.functional_call(model, params, (x,)), y, reduction="none")).sum()

    def by_hand(model, weights_of, radii, halves):
        w = {n: p.detach().requires_grad_() for n, p in model.named_parameters()}
        total = {n: torch.zeros_like(p) for n, p in w.items()}
        b = sum(len(y) for _, y in halves)
        for x, y in halves:
            for weight, rho in zip(weights_of(y), radii, strict=True):
                move = None
                if rho:
                    g = torch.autograd.grad(loss_of(model, w, x, y, weight), list(w.values()))
                    size = torch.cat([v.flatten() for v in g]).norm()
                    move = {n: rho * v / (size + 1e-12) for n, v in zip(w, g, strict=True)}
                there = torch.autograd.grad(loss_of(model, w, x, y, weight, move), list(w.values()))
                total = {n: total[n] + v / b for n, v in zip(w, there, strict=True)}
        return total

    x, y = data(1)
    halves = [split("uneven", x, y, r) for r in (0, 1)]
    tails = lambda y: [(y < 3).double(), (y >= 3).double()]  # noqa: E731
    for method, weights_of, radii in (
        (SAM(rho=0.4), lambda y: [torch.ones(len(y)).double()], [0.4]),
        (ImbSAM(rho=0.4, eta=100), tails, [0, 0.4]),
        (SSESAM(head_rho=0.2, tail_rho=0.4), tails, [0.2, 0.4]),
    ):
        model = wrap(mlp())
        mine = halves[rank]
        losses = lambda model=model, mine=mine: F.cross_entropy(model(mine[0]), mine[1], reduction="none")  # noqa: E731
        flat(model, method).backward(losses, mine[1], progress=0.0)
        got = {n: p.grad for n, p in model.module.named_parameters()}
        close(got, by_hand(mlp(), weights_of, radii, halves), 1e-12)
        one = mlp()
        flat(one, method).backward(lambda one=one: F.cross_entropy(one(x), y, reduction="none"), y, progress=0.0)
        assert max(float((p.grad - got[n]).abs().max()) for n, p in one.named_parameters()) > 1e-5


def test_m_sharpness_of_the_head(rank):
    """The mean over processes of what each would do with its own batch, in the mass of the whole."""
    x, y = data(1)
    halves = [split("uneven", x, y, r) for r in (0, 1)]
    method = HEADS["ccsam"]
    expected = None
    for a, b in halves:
        one = mlp()
        flat(one, method).backward(lambda one=one, a=a, b=b: F.cross_entropy(one(a), b, reduction="none"), b)
        grads = {n: len(b) / len(y) * p.grad for n, p in one.named_parameters()}
        expected = grads if expected is None else {n: expected[n] + g for n, g in grads.items()}
    model, (a, b) = wrap(mlp()), halves[rank]
    flat(model, method).backward(lambda: F.cross_entropy(model(a), b, reduction="none"), b)
    close({n: p.grad for n, p in model.module.named_parameters()}, expected, 1e-12)


def test_gradients_are_reduced_once(rank):
    for label in LABELS:
        model = wrap(mlp())
        reduced = []
        model.register_comm_hook(None, lambda s, bucket, reduced=reduced: (reduced.append(1), mean_hook(bucket))[1])
        x, y = split("uneven", *data(), rank)
        flat(model, EVERY[label]).backward(
            [make(model, a, b) for a, b in zip(x.tensor_split(2), y.tensor_split(2), strict=True)],
            list(y.tensor_split(2)),
            progress=0.1,
            step=0,
        )
        assert len(reduced) == (label not in MERGED), (label, len(reduced))  # those meet in a buffer of their own


KEPT = {name: getattr(dist, name) for name in ("all_reduce", "all_gather")}


@contextmanager
def counted():
    """Inside, how many scalars of its own this process gives to each collective."""
    sent = []

    def all_reduce(tensor, *args, **how):
        sent.append(tensor.numel())
        return KEPT["all_reduce"](tensor, *args, **how)

    def all_gather(tensors, tensor, *args, **how):
        sent.append(tensor.numel())
        return KEPT["all_gather"](tensors, tensor, *args, **how)

    dist.all_reduce, dist.all_gather = all_reduce, all_gather
    try:
        yield sent
    finally:
        dist.all_reduce, dist.all_gather = KEPT["all_reduce"], KEPT["all_gather"]


REDUCED = {"gsam": 2, "friendly": 2, "look-sam": 2, "pgd-small": 2}  # times all weights; others once
CLIMBS = {"sam": 1, "asam": 1, "imbsam": 1, "ssesam-before": 2, "ssesam-after": 1, "focalsam": 1, "wsam": 1} | {
    "gradient-norm": 1, "gsam": 1, "friendly": 1, "look-sam": 1, "pgd-small": 1,
    "ccsam-all": CLASSES, "ccsam-class-sum-all": CLASSES, "ccsam-layers": CLASSES,
}  # fmt: skip
NONE = ["erm", "m-sam", "lpf", "perturbation", "pgd", "features", "features-batch", "ccsam"]  # none that takes a slope


def scalars_of(label, together, model, terms, samples):
    """Scalars that a process gives to others in a step: the table of docs/scaling.md, and its sums of a few."""
    every = [p.numel() for p in model.parameters()]
    moved = [p.numel() for n, p in model.named_parameters() if label != "ccsam-layers" or re.search(LAYERS, n)]
    total = REDUCED.get(label, 1) * sum(every) + 2 + terms
    total += CLASSES if "ccsam-" in label else 0  # who is in the batch
    if not together:
        return total
    if label == "ccsam":
        return total + samples * (model.head.in_features + CLASSES + 2) + 4
    return total + CLIMBS.get(label, 0) * (sum(moved) + 1) + (3 if label == "features-batch" else 0)


def test_communication(rank):
    """Counted at every collective, and in the buckets that DistributedDataParallel reduces."""
    for label in [*CLIMBS, *NONE]:
        for together in (False, True):
            model, reduced = wrap(mlp()), []
            hook = lambda state, bucket, r=reduced: (r.append(bucket.buffer().numel()), summed_hook(bucket))[1]  # noqa: E731
            model.register_comm_hook(None, hook)
            x, y = split("uneven", *data(), rank)
            with counted() as sent:
                aware = flat(model, EVERY[label], climb_together=together)
                aware.backward(make(model, x, y), y, progress=0.1, step=0)
            terms = len(aware.outcome.values) if label != "ccsam" else CLASSES
            expected = scalars_of(label, together, model.module, terms, samples=14)  # parts of 8 and of 14
            assert sum(sent) + sum(reduced) == expected, (label, together, sent, reduced, expected)
            if label in HEADS and EVERY[label].where == "head":
                assert (aware.outcome.forwards, aware.outcome.backwards) == (1, 1), "also where climbs are common"


def summed_hook(bucket):
    """As DistributedDataParallel does by itself, past what is counted."""
    work = bucket.buffer().div_(2)
    future = torch.futures.Future()
    future.set_result(KEPT["all_reduce"](work) or work)
    return future


def mean_hook(bucket):
    work = dist.all_reduce(bucket.buffer().div_(2), async_op=True).get_future()
    return work.then(lambda f: f.value()[0])


def test_around_the_wrapper_is_refused(rank):
    x, y = split("uneven", *data(), rank)
    for method in (SAM(), ERM(), FocalSAM(), HEADS["ccsam"]):
        model = wrap(mlp())
        inner = model.module
        try:
            flat(model, method).backward(lambda inner=inner: F.cross_entropy(inner(x), y, reduction="none"), y)
        except ValueError as error:
            assert "model.module" in str(error), error
        else:
            raise AssertionError("not refused")


def test_non_finite_on_one_rank_is_seen_by_all(rank):
    """A scaler on every process must skip, or weights part; statistics are put back on every process."""
    for label in ("sam", "imbsam", "ssesam-before", "ccsam", "erm"):
        torch.manual_seed(0)
        model = wrap(mlp(norm=nn.BatchNorm1d, dtype=torch.float32))
        before = {n: t.clone() for n, t in model.state_dict().items()}
        x, y = split("uneven", *data(dtype=torch.float32), rank)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0)

        def losses(model=model, x=x, y=y):
            loss = F.cross_entropy(model(x), y, reduction="none")
            return loss * (torch.inf if rank == 0 else 1.0)

        flat(model, EVERY[label]).backward(losses, y, progress=0.1, step=0, scaler=scaler)
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        assert scaler.get_scale() == 1.0
        assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    for label in ("sam", "ccsam"):
        model = wrap(mlp())
        x, y = split("uneven", *data(), rank)
        losses = lambda m=model, x=x, y=y: F.cross_entropy(m(x), y, reduction="none") * (torch.nan if rank else 1)  # noqa: E731
        try:
            flat(model, EVERY[label], check=True).backward(losses, y, progress=0.1)
        except FloatingPointError:
            continue
        raise AssertionError("check said nothing on this process")


def test_statistics_of_batchnorm_are_those_of_one_forward(rank):
    for label in LABELS:
        torch.manual_seed(0)
        one, two = wrap(mlp(norm=nn.BatchNorm1d)), wrap(mlp(norm=nn.BatchNorm1d))
        x, y = split("uneven", *data(), rank)
        flat(one, EVERY[label]).backward(make(one, x, y), y, progress=0.1, step=0)
        two(x)
        for (n, a), b in zip(one.named_buffers(), two.buffers(), strict=True):
            assert torch.equal(a, b) or label in BLIND, (label, n, a, b)


def test_merged_gradients_add_up_as_they_are_and_memory_is_common(rank):
    """What is in `.grad` already stays local to nobody; the memories of both processes are one, bit for bit."""
    for label in ("gsam", "friendly", "look-sam-often", "m-sam", "pgd-small"):
        model = wrap(mlp())
        x, y = split("uneven", *data(), rank)
        aware = flat(model, EVERY[label])  # each climbs by its own slope
        for step in range(3):
            aware.backward(make(model, x, y), y, progress=0.1, step=step)
        for tensor in [p.grad for p in model.parameters()] + [
            t for m in (aware.memory or {}).values() for t in (m if isinstance(m, list) else [m])
        ]:
            both = [torch.empty_like(tensor) for _ in range(2)]
            dist.all_gather(both, tensor.contiguous())
            assert torch.equal(*both), label
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()  # a plain step afterwards reduces as ever
        F.cross_entropy(model(x), y).backward()


def test_memory_rests_on_all_where_one_is_not_finite(rank):
    for label in ("friendly", "m-sam"):
        model = wrap(mlp())
        x, y = split("uneven", *data(), rank)
        aware = flat(model, EVERY[label])
        aware.backward(make(model, x, y), y, progress=0.1, step=0)
        before = aware.state_dict()["memory"]
        bad = lambda model=model, x=x, y=y: make(model, x, y)().values * (torch.nan if rank else 1)  # noqa: E731
        aware.backward(bad, y, progress=0.1, step=1)
        after = aware.state_dict()["memory"]
        for name, old in before.items():
            for a, b in zip(old, after[name], strict=True) if isinstance(old, list) else [(old, after[name])]:
                assert torch.equal(a, b), (label, name)
        assert not all(torch.isfinite(p.grad).all() for p in model.parameters())


def every(rank):
    """Those that were named, or all; each says that it has come to its end."""
    assert dist.get_world_size() == 2
    for name, case in list(globals().items()):
        if name.startswith("test_") and (len(sys.argv) == 1 or name in sys.argv[1:]):
            case(rank)
            dist.barrier()
            if rank == 0:
                print(f"{name} ok", flush=True)


if __name__ == "__main__":
    forked(2, every, seconds=40)

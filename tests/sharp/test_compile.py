"""torch.compile: the whole model for methods that displace weights, the backbone for those that displace the head."""

import pytest
import torch
from cases import EVERY, HEADS, Pair, close, closure, data, flat, gradients, mlp, row_closure
from torch import nn

from flattail.sharp import CCSAM, SAM, SSESAM, FocalSAM, ImbSAM, SharpnessAware

WHOLE = {
    "sam": SAM(rho=0.2),
    "imbsam": ImbSAM(rho=0.2, eta=100),
    "ssesam": SSESAM(),
    "focalsam": FocalSAM(),
    "ccsam-all": EVERY["ccsam-all"],
}


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def steps(model, callee, method, make=closure, micro=1):
    """The gradients of two steps, so that a compiled graph is used again at moved weights."""
    aware, grads = flat(model, method), []
    for seed in (0, 1):
        x, y = data(seed)
        model.zero_grad()
        parts = list(zip(x.tensor_split(micro), y.tensor_split(micro), strict=True))
        aware.backward([make(callee, a, b) for a, b in parts], [b for _, b in parts], progress=0.1, step=0)
        grads.append(gradients(model))
    return grads


def compare(got, expected, tol):
    for a, b in zip(got, expected, strict=True):
        close({n.removeprefix("_orig_mod."): g for n, g in a.items()}, b, tol)


@pytest.mark.parametrize("label", WHOLE)
def test_the_whole_model_of_weight_methods(label):
    """Two backwards on one graph: what is compiled must let its saved tensors be used twice."""
    plain, model = mlp(), mlp()
    compiled = torch.compile(model, backend="aot_eager")
    compare(steps(compiled, compiled, WHOLE[label]), steps(plain, plain, WHOLE[label]), 1e-12)


def test_a_compiled_model_beside_the_plain_one_that_the_engine_holds():
    plain, model = mlp(), mlp()
    compiled = torch.compile(model, backend="aot_eager")
    compare(steps(model, compiled, SSESAM()), steps(plain, plain, SSESAM()), 1e-12)


def test_a_model_compiled_in_place():
    plain, model = mlp(), mlp()
    model.compile(backend="aot_eager")
    compare(steps(model, model, ImbSAM(eta=100)), steps(plain, plain, ImbSAM(eta=100)), 1e-12)


def test_rows_and_micro_batches_compile():
    plain, model = mlp(), mlp()
    compiled = torch.compile(model, backend="aot_eager", dynamic=True)
    method = ImbSAM(eta=100)
    compare(steps(compiled, compiled, method, row_closure, 2), steps(plain, plain, method, row_closure, 2), 1e-12)


class Body(nn.Sequential):
    """A module of one's own: torch 2.11 leaves its own as they are where they are compiled in place."""

    def forward(self, x):
        return super().forward(x)


@pytest.mark.parametrize("place", ["wrapped", "in place"])
@pytest.mark.parametrize("label", HEADS)
def test_the_backbone_of_head_methods(label, place):
    plain, model = mlp(), mlp()
    runs = []

    def counting(graph, inputs):
        def run(*args):
            runs.append(1)
            return graph(*args)

        return run

    if place == "wrapped":
        model = Pair(torch.compile(model.backbone, backend=counting), model.head)
    else:
        model.backbone = Body(*model.backbone)
        model.backbone.compile(backend=counting)
    got = [{n.replace("_orig_mod.", ""): g for n, g in grads.items()} for grads in steps(model, model, HEADS[label])]
    compare(got, steps(plain, plain, HEADS[label]), 1e-12)
    assert len(runs) == 2, "one pass of the backbone per step"


def test_the_head_may_be_compiled_too():
    plain, model = mlp(head="cosine"), mlp(head="cosine")
    model.head.compile(backend="aot_eager")
    compare(steps(model, model, CCSAM()), steps(plain, plain, CCSAM()), 1e-12)


def test_a_whole_compiled_model_is_refused_by_head_methods():
    in_place = mlp()
    in_place.compile(backend="aot_eager")
    for model in (torch.compile(mlp(), backend="aot_eager"), in_place):
        with pytest.raises(ValueError, match=r"compile `model.backbone`, not the whole model"):
            SharpnessAware(model, CCSAM(), torch.tensor([5, 5, 5, 5, 5, 5]))
        flat(model, CCSAM(scope="all"))


@pytest.mark.slow
@pytest.mark.parametrize("label", WHOLE)
def test_inductor_whole(label):
    plain, model = mlp(dtype=torch.float32), mlp(dtype=torch.float32)
    compiled = torch.compile(model)
    single = lambda m, x, y: closure(m, x.float(), y)  # noqa: E731
    compare(steps(compiled, compiled, WHOLE[label], single), steps(plain, plain, WHOLE[label], single), 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("label", ["ccsam", "ccsam-class-sum"])
def test_inductor_backbone(label):
    plain, model = mlp(dtype=torch.float32), mlp(dtype=torch.float32)
    model.backbone.compile()
    single = lambda m, x, y: closure(m, x.float(), y)  # noqa: E731
    compare(steps(model, model, HEADS[label], single), steps(plain, plain, HEADS[label], single), 1e-4)


def test_backward_passes_stay_on_the_thread_that_was_told_to_keep_graphs():
    """A GPU's passes run on a thread of autograd's own, for which torch's configuration is another."""
    model, (x, y), seen = mlp(), data(), []

    def losses():
        logits = model(x)
        logits.register_hook(lambda g: seen.append(torch._C._is_multithreading_enabled()))
        return torch.nn.functional.cross_entropy(logits, y, reduction="none")

    flat(model, SAM()).backward(losses, y)
    assert len(seen) == 2 and not any(seen) and torch._C._is_multithreading_enabled()

"""What a GPU does is what the CPU does: steps in float64, fp16 under a real scaler, masks, and nobody who waits.

`python -m pytest -m gpu tests/test_gpu.py`, on a machine that has one.
"""

import pytest
import torch
import torch.nn.functional as F
from cases import EVERY, NORMED, close, closure, data, flat, gradient, mlp
from meta import NEED_CLASSES
from torch import nn

from flattail.sharp import CCSAM, SAM, SSESAM, ImbSAM, SAMNorms

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


@pytest.fixture
def noise_of_the_cpu(monkeypatch):
    """A GPU's generator draws other numbers from the same seed: here the CPU draws for both."""
    generator, randn = torch.Generator, torch.randn
    monkeypatch.setattr(torch, "Generator", lambda device=None: generator())
    monkeypatch.setattr(torch, "randn", lambda *shape, device="cpu", **how: randn(*shape, **how).to(device))


@pytest.mark.parametrize("label", [*EVERY, NORMED])
def test_a_float64_step_is_that_of_the_cpu(label, noise_of_the_cpu):
    method, (x, y) = EVERY.get(label, SAMNorms(rho=0.1)), data()
    here, there = (
        gradient(mlp(norm=nn.BatchNorm1d).to(device), method, x.to(device), y.to(device)) for device in ("cpu", "cuda")
    )
    close({n: g if g is None else g.cpu() for n, g in there.items()}, here, tol=1e-10)


@pytest.mark.parametrize("method", [SAM(rho=0.1), CCSAM()], ids=repr)
def test_fp16_under_a_scaler_is_near_float32(method):
    x, y = (t.cuda() for t in data(dtype=torch.float32))
    model = mlp(dtype=torch.float32, norm=nn.BatchNorm1d).cuda()
    exact = gradient(model, method, x, y)

    def losses():
        with torch.autocast("cuda", dtype=torch.float16):
            logits = model(x)
        return F.cross_entropy(logits.float(), y, reduction="none")

    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.0), torch.amp.GradScaler("cuda", init_scale=2.0**12)
    optimizer.zero_grad()
    aware = flat(model, method)
    aware.backward(losses, y, progress=0.1, step=0, scaler=scaler)
    assert all(float(gap) != 0 for gap in aware.gaps.values())
    scaler.unscale_(optimizer)
    for name, p in model.named_parameters():
        assert (p.grad - exact[name]).norm() <= 0.05 * exact[name].norm() + 1e-3, name
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**12


@pytest.mark.parametrize("method", [SAM(rho=0.1), CCSAM()], ids=repr)
def test_an_overflow_of_fp16_skips_the_step_and_halves_the_scale(method):
    x, y = (t.cuda() for t in data(dtype=torch.float32))
    model = mlp(dtype=torch.float32, norm=nn.BatchNorm1d).cuda()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cuda", init_scale=2.0**40)
    with torch.autocast("cuda", dtype=torch.float16):
        flat(model, method).backward(closure(model, x, y), y, progress=0.1, step=0, scaler=scaler)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**39
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


@pytest.mark.parametrize("method", [SAM(rho=0.1), SSESAM(), CCSAM(scope="all")], ids=repr)
def test_the_masks_of_dropout_are_alike_in_all_passes(method):
    model, (x, y) = mlp(dropout=0.5).cuda(), (t.cuda() for t in data())
    masks = []
    model.backbone[1].register_forward_hook(lambda _, inputs, out: masks.append(out == 0))
    before = torch.cuda.get_rng_state()
    flat(model, method).backward(closure(model, x, y), y, progress=0.1, step=0)
    assert len(masks) > 1 and masks[0].any() and all(torch.equal(mask, masks[0]) for mask in masks)
    assert not torch.equal(torch.cuda.get_rng_state(), before)
    model(x)
    assert not torch.equal(masks[-1], masks[0])  # the next step draws others


@pytest.mark.parametrize("label", [label for label in EVERY if label not in NEED_CLASSES])
def test_a_step_waits_for_nothing(label):
    model, (x, y) = mlp(dtype=torch.float32, norm=nn.BatchNorm1d).cuda(), data(dtype=torch.float32)
    x, y, aware = x.cuda(), y.cuda(), flat(model, EVERY[label])
    for _ in range(2):  # what stays on the device goes there once
        aware.backward(closure(model, x, y), y, progress=0.1, step=0)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        aware.backward(closure(model, x, y), y, progress=0.1, step=0)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("method", [SAM(rho=0.1), ImbSAM(rho=0.1, eta=100), CCSAM()], ids=repr)
def test_a_compiled_model_bears_a_short_batch(method):
    """Shapes that change have backward passes compiled at once, by the thread that runs the forward."""
    torch._dynamo.reset()
    plain, model = mlp().cuda(), mlp().cuda()
    (model.backbone if method.where == "head" else model).compile(backend="aot_eager")
    for n in (22, 22, 9):
        x, y = (t.cuda() for t in data(n=n))
        close(gradient(model, method, x, y), gradient(plain, method, x, y), 1e-10)
    torch._dynamo.reset()

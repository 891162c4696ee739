"""Products with the Hessian: against dense matrices, whatever the micro-batches, weights and subsets of parameters."""

import importlib.util

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import CLASSES, COUNTS, data, mlp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, hessian

from flattail.analysis import Hessian, Samples, Subject
from flattail.sharp import Weighted


def losses_of(model):
    return lambda x, y: F.cross_entropy(model(x), y, reduction="none")


def dense(model, x, y, weight, only=""):
    """The whole matrix, by torch.func, of sum_i weight_i loss_i / sum_i weight_i."""
    named = {n: p.detach() for n, p in model.named_parameters() if only in n}
    sizes, shapes = [p.numel() for p in named.values()], [p.shape for p in named.values()]

    def loss(w):
        moved = {n: v.view(s) for n, v, s in zip(named, w.split(sizes), shapes, strict=True)}
        values = F.cross_entropy(functional_call(model, moved, (x,)), y, reduction="none")
        return (weight * values).sum() / weight.sum()

    return hessian(loss)(torch.cat([p.reshape(-1) for p in named.values()]))


def network():
    """A convolution, a BatchNorm in evaluation mode with moved statistics, attention-free: a small real thing."""
    torch.manual_seed(3)
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4)
    ).double()
    net(torch.randn(16, 1, 4, 4, dtype=torch.float64))
    return net.eval()


@settings(max_examples=12, deadline=None)
@given(micro=st.integers(1, 30), c=st.integers(0, CLASSES - 1), seed=st.integers(0, 5))
def test_class_products_are_those_of_the_dense_matrix_for_any_micro_batch(micro, c, seed):
    model, (x, y) = mlp(seed), data(seed)
    H = Hessian(losses_of(model), [(x, y)], list(model.parameters()), weight=lambda y: (y == c).double(), micro=micro)
    D = dense(model, x, y, (y == c).double())
    V = torch.randn(H.size, 3, dtype=torch.float64)
    torch.testing.assert_close(H @ V, D @ V, atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(H @ V[:, 0], D @ V[:, 0], atol=1e-12, rtol=1e-10)
    assert H.products == 4


def test_masses_and_weights_multiply_and_are_divided_by_once():
    model, (x, y) = mlp(), data()
    m = torch.rand(CLASSES, dtype=torch.float64) + 0.1
    a = torch.rand(len(y), dtype=torch.float64)
    weighted = Hessian(
        lambda x, y: Weighted(losses_of(model)(x, y), m[y]),
        [(x[:9], y[:9], a[:9]), (x[9:], y[9:], a[9:])],
        list(model.parameters()),
    )
    v = torch.randn(weighted.size, dtype=torch.float64)
    torch.testing.assert_close(weighted @ v, dense(model, x, y, a * m[y]) @ v)


def test_a_class_weight_cancels_within_its_class():
    model, (x, y) = mlp(), data()
    only = {"weight": lambda y: (y == 2).double()}
    plain = Hessian(losses_of(model), [(x, y)], list(model.parameters()), **only)
    drw = Hessian(
        lambda x, y: Weighted(losses_of(model)(x, y), 7.0 * torch.ones_like(y, dtype=torch.float64)),
        [(x, y)],
        list(model.parameters()),
        **only,
    )
    v = torch.randn(plain.size, dtype=torch.float64)
    torch.testing.assert_close(plain @ v, drw @ v)


def test_it_is_symmetric_linear_and_says_the_same_twice():
    net, x, y = network(), torch.randn(10, 1, 4, 4, dtype=torch.float64), torch.randint(4, (10,))
    H = Hessian(losses_of(net), [(x, y)], list(net.parameters()), micro=4)
    u, v = torch.randn(2, H.size, dtype=torch.float64)
    torch.testing.assert_close(u @ (H @ v), v @ (H @ u))
    torch.testing.assert_close(H @ (2 * u - 3 * v), 2 * (H @ u) - 3 * (H @ v))
    assert torch.equal(H @ u, H @ u)
    H.check()


def test_classes_add_up_to_the_whole_by_their_shares():
    model, (x, y) = mlp(), data()
    counts = torch.bincount(y, minlength=CLASSES)
    v = torch.randn(sum(p.numel() for p in model.parameters()), dtype=torch.float64)

    def product(member):
        samples = Samples.of([(x, y)], classes=CLASSES)
        return Hessian(losses_of(model), samples.batches(samples.weights(member), 5), list(model.parameters())) @ v

    parts = sum(counts[c] / counts.sum() * product(torch.eye(CLASSES)[c]) for c in range(CLASSES))
    torch.testing.assert_close(parts, product(torch.ones(CLASSES)))


def test_a_subject_is_the_model_in_evaluation_mode_with_an_affine_batchnorm():
    net, x, y = network(), torch.randn(6, 1, 4, 4, dtype=torch.float64), torch.randint(4, (6,))
    subject = Subject.of(net.train(), torch.ones(4), dtype="float64")
    net.eval()
    H = Hessian(subject.losses, [(x, y)], subject.weights)
    v = torch.randn(H.size, dtype=torch.float64)
    torch.testing.assert_close(H @ v, dense(net, x, y, torch.ones(6, dtype=torch.float64)) @ v)
    torch.testing.assert_close(H.gradient()[0], losses_of(net)(x, y).mean().item())


def test_a_subset_of_the_parameters_is_a_block_of_the_matrix():
    model, (x, y) = mlp(), data()
    subject = Subject.of(model, COUNTS, only=r"^head\.", dtype="float64")
    H = Hessian(subject.losses, [(x, y)], subject.weights)
    block = dense(model, x, y, torch.ones(len(y), dtype=torch.float64), only="head.")
    torch.testing.assert_close(H @ torch.eye(H.size, dtype=torch.float64), block)
    with pytest.raises(ValueError, match="no trainable parameter has 'neck'"):
        Subject.of(model, COUNTS, only="neck")


def test_float32_products_are_close_to_float64():
    model, (x, y) = mlp(), data()
    narrow, wide = (Subject.of(model, COUNTS, dtype=d) for d in ("float32", "float64"))
    v = torch.randn(narrow.size)
    got, true = (
        Hessian(narrow.losses, [(x, y)], narrow.weights) @ v,
        Hessian(wide.losses, [(x, y)], wide.weights) @ v.double(),
    )
    assert got.dtype == torch.float32
    assert float((got - true).norm() / true.norm()) < 1e-5


def test_a_loss_that_is_linear_in_the_weights_has_no_curvature():
    w = [nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(2))]
    H = Hessian(lambda x, y: x @ w[0], [(torch.randn(5, 3), torch.zeros(5, dtype=torch.int64))], w)
    assert torch.equal(H @ torch.ones(5), torch.zeros(5))


def test_training_mode_and_chance_are_refused_with_the_reason():
    x, y = torch.randn(8, 1, 4, 4), torch.randint(4, (8,))
    net = network().float().train()
    with pytest.raises(ValueError, match="BatchNorm2d in training mode"):
        Hessian(losses_of(net), [(x, y)], list(net.parameters()), model=net).check()
    drop = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 4))
    with pytest.raises(ValueError, match="Dropout in training mode"):
        Hessian(losses_of(drop), [(x, y)], list(drop.parameters()), model=drop).check()
    still = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))

    class Noisy:
        def __iter__(self):
            yield x + torch.randn_like(x), y

    with pytest.raises(ValueError, match="random augmentation"):
        Hessian(losses_of(still), Noisy(), list(still.parameters()), model=still).check()


def test_errors_name_the_remedy():
    model, (x, y) = mlp(), data()
    subject = Subject.of(model, COUNTS, dtype="float64")
    with pytest.raises(ValueError, match="does not take inputs of shape"):
        subject.losses(x[:, :3], y)
    with pytest.raises(ValueError, match="`counts` has 3 classes"):
        Subject.of(model, COUNTS[:3], dtype="float64").losses(x, y)
    with pytest.raises(FloatingPointError, match="not finite for samples of class"):
        subject.losses(x * float("inf"), y)
    with pytest.raises(ValueError, match="not per sample"):
        Subject.of(model, COUNTS, loss=lambda z, y, n: F.cross_entropy(z, y), dtype="float64").losses(x, y)
    with pytest.raises(ValueError, match="no sample counts"):
        Hessian(losses_of(model), [(x, y)], list(model.parameters()), weight=lambda y: 0.0 * y).gradient()


def test_too_little_memory_suggests_a_smaller_micro_batch():
    model, (x, y) = mlp(), data()

    def hungry(x, y):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(MemoryError, match="try micro=16"):
        Hessian(hungry, [(x, y)], list(model.parameters()), micro=64) @ torch.zeros(1)


def test_compiled_models_are_looked_at_uncompiled():
    model, (x, y) = mlp(), data()
    compiled = torch.compile(model, backend="eager")
    subject = Subject.of(compiled, COUNTS, dtype="float64")
    assert type(subject.model) is type(model)
    torch.testing.assert_close(subject.losses(x, y).values, losses_of(model)(x, y))


def test_attention_has_second_derivatives():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1, batch_first=True)
    net = nn.Sequential(layer, nn.Flatten(), nn.Linear(12, 3))
    subject = Subject.of(net, torch.ones(3), dtype="float64")
    x, y = torch.randn(5, 3, 4), torch.randint(3, (5,))
    H = Hessian(subject.losses, [(x, y)], subject.weights, model=subject.model)
    H.check()
    u, v = torch.randn(2, H.size, dtype=torch.float64)
    torch.testing.assert_close(u @ (H @ v), v @ (H @ u))


@pytest.mark.skipif(importlib.util.find_spec("curvlinops") is None, reason="curvlinops-for-pytorch is not installed")
def test_another_library_has_the_same_products():
    from curvlinops import HessianLinearOperator

    net, x, y = network(), torch.randn(12, 1, 4, 4, dtype=torch.float64), torch.randint(4, (12,))
    pieces = [(x[:7], y[:7]), (x[7:], y[7:])]
    H = Hessian(losses_of(net), pieces, list(net.parameters()))
    other = HessianLinearOperator(net, nn.CrossEntropyLoss(), list(net.parameters()), pieces, check_deterministic=False)
    v = torch.randn(H.size, dtype=torch.float64)
    torch.testing.assert_close(H @ v, other @ v)


def test_scipy_sees_the_same_operator():
    model, (x, y) = mlp(), data()
    H = Hessian(losses_of(model), [(x, y)], list(model.parameters()))
    v = np.random.default_rng(0).normal(size=H.size)
    np.testing.assert_allclose(H.to_scipy() @ v, (H @ torch.as_tensor(v)).numpy())

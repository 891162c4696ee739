"""Spectra: signs, traces, densities and error bars on matrices whose spectrum is known."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import data, mlp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import trapezoid
from scipy.sparse.linalg import eigsh
from test_hessian import dense, losses_of

from flattail.analysis import Hessian, Krylov, density, spectrum
from flattail.analysis.spectrum import deflated_trace, signs


def diag(*values, dtype=torch.float64):
    return torch.diag(torch.tensor(values, dtype=dtype))


def rotated(values, seed=0):
    """A dense symmetric matrix with these eigenvalues."""
    n = len(values)
    Q, _ = torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    return Q @ torch.diag(torch.as_tensor(values, dtype=torch.float64)) @ Q.T


@pytest.mark.parametrize("values", [(3.0, -5.0, 1.0), (5.0, -3.0, 1.0), (-1.0, -2.0, -7.0), (2.0, 4.0, 9.0)])
def test_both_ends_keep_their_signs(values):
    s = spectrum(diag(*values))
    assert s.lambda_max == pytest.approx(max(values))
    assert s.lambda_min == pytest.approx(min(values))
    assert s.ratio == pytest.approx(abs(min(values) / max(values)))
    assert s.trace == pytest.approx(sum(values))
    assert s.converged


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-10, 10, width=16), min_size=2, max_size=30), st.integers(0, 3))
def test_any_small_matrix_is_seen_whole(values, seed):
    s = spectrum(rotated(values, seed), tolerance=0, seed=seed)
    size = max(map(abs, values))
    assert s.lambda_max == pytest.approx(max(values), abs=1e-7 * size + 1e-300)
    assert s.lambda_min == pytest.approx(min(values), abs=1e-7 * size + 1e-300)
    assert s.masses[0][~np.isnan(s.masses[0])].sum() == pytest.approx(1)


def test_dense_hessians_of_networks():
    model, (x, y) = mlp(), data(n=40)
    for c in (0, 5):
        D = dense(model, x, y, (y == c).double())
        H = Hessian(losses_of(model), [(x, y)], list(model.parameters()), weight=lambda y, c=c: (y == c).double())
        s, true = spectrum(H, draws=40), torch.linalg.eigvalsh(D)
        assert s.lambda_max == pytest.approx(true[-1].item(), rel=1e-6)
        assert s.lambda_min == pytest.approx(true[0].item(), rel=1e-6)
        assert abs(s.trace - D.trace().item()) < 4 * s.trace_probes
        for v, value in ((s.v_min, s.lambda_min), (s.v_max, s.lambda_max)):
            assert float((D @ v - value * v).norm()) < 1e-2
            assert float(v.norm()) == pytest.approx(1)
        assert s.products == H.products < 100


def test_scipy_finds_the_same_ends():
    model, (x, y) = mlp(1), data(1)
    H = Hessian(losses_of(model), [(x, y)], list(model.parameters()))
    low, high = eigsh(H.to_scipy(), k=2, which="BE", return_eigenvectors=False, tol=1e-10)
    s = spectrum(H)
    assert (s.lambda_min, s.lambda_max) == pytest.approx((low, high), rel=1e-6)


def test_residuals_are_those_of_the_vectors_and_bound_the_errors():
    A = rotated(np.linspace(-1, 3, 200))
    run = Krylov(torch.randn(200, dtype=torch.float64), steps=25, tolerance=0)
    while not run.over:
        run.absorb(A @ run.next)
    true = torch.linalg.eigvalsh(A)
    for i in (0, -1):
        y = run.ritz(i)
        assert float((A @ y - run.values[i] * y).norm()) == pytest.approx(run.residuals[i], rel=1e-6)
        assert float((true - run.values[i]).abs().min()) <= run.residuals[i]
    orthonormal = run.basis @ run.basis.T
    assert float((orthonormal - torch.eye(25, dtype=torch.float64)).abs().max()) < 1e-13


def test_float32_keeps_its_basis_orthonormal_over_many_steps():
    A = rotated(np.concatenate([np.zeros(250), [50.0, 20.0, -4.0], np.linspace(-1, 1, 47)])).float()
    run = Krylov(torch.randn(300), steps=60, tolerance=0)
    while not run.over:
        run.absorb(A @ run.next)
    assert float((run.basis @ run.basis.T - torch.eye(run.steps)).abs().max()) < 1e-5
    assert (run.values[0], run.values[-1]) == pytest.approx((-4, 50), rel=1e-4)


def test_few_directions_of_curvature_end_the_run_early():
    values = np.zeros(100)
    values[:3] = 4.0, -2.0, 1.0
    s = spectrum(rotated(values), tolerance=0)
    assert s.products <= 4 + 2
    assert s.converged
    assert (s.lambda_max, s.lambda_min, s.trace) == pytest.approx((4, -2, 3))
    flat = spectrum(torch.zeros(20, 20))
    assert flat.lambda_max == flat.lambda_min == flat.trace == 0
    assert np.isnan(flat.ratio)


def test_a_spent_budget_is_said():
    s = spectrum(rotated(np.linspace(-1, 1, 500)), steps=5)
    assert not s.converged
    assert s.residual_max > 1e-3
    assert s.products == 5 + 2


def test_it_stops_at_convergence():
    values = np.concatenate([np.random.default_rng(0).normal(0, 0.1, 400), [30.0, 12.0, -5.0]])
    s = spectrum(rotated(values))
    assert s.products < 35
    assert s.converged
    assert (s.lambda_max, s.lambda_min) == pytest.approx((30, -5), rel=1e-6)


def test_the_trace_has_no_bias_and_an_honest_error_bar():
    A = rotated(np.concatenate([np.random.default_rng(1).normal(0.05, 0.3, 150), [40.0, -6.0]]))
    found = [spectrum(A, seed=s, steps=15, draws=10) for s in range(60)]
    error = np.array([s.trace - A.trace().item() for s in found])
    assert abs(error.mean()) < 3 * error.std() / np.sqrt(len(error))
    assert np.mean([s.trace_probes for s in found]) == pytest.approx(error.std(), rel=0.35)


def test_deflation_beats_plain_probes_at_equal_products():
    values = np.concatenate([np.random.default_rng(2).normal(0, 0.1, 300), [50.0, 30.0, 20.0, 10.0, -8.0]])
    A, steps, draws = rotated(values), 15, 10
    ours, plain = [], []
    for seed in range(25):
        generator = torch.Generator().manual_seed(seed)
        run = Krylov(signs(len(A), A, generator), steps=steps, tolerance=0)
        while not run.over:
            run.absorb(A @ run.next)
        ours.append(deflated_trace(A, run, draws, generator)[0])
        z = torch.stack([signs(len(A), A, generator) for _ in range(steps + draws)], 1)
        plain.append(float((z * (A @ z)).sum(0).mean()))
    true = A.trace().item()
    assert np.std(np.array(ours) - true) < np.std(np.array(plain) - true) / 5


def test_layer_by_layer_the_trace_has_no_bias_and_less_noise():
    model, (x, y) = mlp(), data(n=40)
    H = Hessian(losses_of(model), [(x, y)], list(model.parameters()), weight=lambda y: (y == 5).double())
    D = dense(model, x, y, (y == 5).double())
    assert H.blocks == [[0], [1], [2], [3], [4], [5]]
    layered = [spectrum(H, seed=s, steps=10) for s in range(80)]
    plain = [spectrum(D, seed=s, steps=10) for s in range(80)]
    error = np.array([s.trace for s in layered]) - D.trace().item()
    assert abs(error.mean()) < 3 * error.std() / np.sqrt(len(error))
    assert np.mean([s.trace_probes for s in layered]) == pytest.approx(error.std(), rel=0.35)
    assert error.std() < 0.7 * np.std([s.trace for s in plain])


def test_products_within_layers_are_the_blocks_of_the_matrix():
    model, (x, y) = mlp(), data()
    H = Hessian(losses_of(model), [(x[:9], y[:9]), (x[9:], y[9:])], list(model.parameters()))
    D, start = dense(model, x, y, torch.ones(len(y), dtype=torch.float64)), 0
    block = torch.zeros_like(D)
    for w in H.weights:
        stop = start + w.numel()
        block[start:stop, start:stop] = D[start:stop, start:stop]
        start = stop
    torch.testing.assert_close(H.within(torch.eye(H.size, dtype=torch.float64)), block)


def test_the_density_is_the_histogram_of_the_eigenvalues():
    values = np.concatenate([np.linspace(-2, -1, 300), np.linspace(0.5, 3, 700)])
    s = spectrum(torch.diag(torch.tensor(values)), steps=80, probes=6, tolerance=0)
    grid = np.linspace(-4, 5, 2000)
    p = density(s.nodes, s.masses, grid, width=0.2)
    true = np.exp(-0.5 * ((grid[:, None] - values) / 0.2) ** 2).mean(1) / (0.2 * np.sqrt(2 * np.pi))
    assert trapezoid(p, grid) == pytest.approx(1, abs=1e-3)
    assert np.abs(p - true).max() < 0.05
    assert s.negative_mass == pytest.approx(0.3, abs=4 * s.negative_mass_probes + 0.02)
    bent = np.abs(values[values < 0]).sum() / np.abs(values).sum()
    assert s.negative_share == pytest.approx(bent, abs=4 * s.negative_share_probes + 0.02)


def test_one_probe_has_no_spread_and_several_do():
    A = rotated(np.linspace(-1, 2, 120))
    one, three = spectrum(A, steps=20), spectrum(A, steps=20, probes=3)
    assert np.isnan(one.lambda_max_probes)
    assert three.lambda_max_probes > 0
    assert three.lambda_max >= one.lambda_max - 1e-12
    assert three.nodes.shape == (3, 20)


def test_the_same_seed_says_the_same_and_steps_are_reported():
    A, told = rotated(np.linspace(-1, 2, 60)), []
    a, b = (spectrum(A, seed=4, on_step=told.append) for _ in range(2))
    assert (a.trace, a.lambda_min) == (b.trace, b.lambda_min)
    assert told[: len(told) // 2] == sorted(told[: len(told) // 2])
    assert told[-1] == a.products


def test_products_that_are_not_finite_are_refused():
    with pytest.raises(FloatingPointError, match="dtype=float64"):
        spectrum(diag(1.0, float("nan"), 2.0))


def test_impossible_budgets_are_refused():
    with pytest.raises(ValueError, match="steps, probes and draws of 1"):
        spectrum(diag(1.0, 2.0), probes=0)


def test_cross_entropy_of_a_linear_model_has_no_negative_curvature():
    torch.manual_seed(0)
    layer = torch.nn.Linear(6, 4).double()
    x, y = torch.randn(30, 6, dtype=torch.float64), torch.randint(4, (30,))
    H = Hessian(lambda x, y: F.cross_entropy(layer(x), y, reduction="none"), [(x, y)], list(layer.parameters()))
    s = spectrum(H, tolerance=0)
    assert s.lambda_min == pytest.approx(0, abs=1e-8)
    assert s.negative_mass == 0

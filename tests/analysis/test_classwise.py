"""The class-wise Hessian as a whole: rows, error bars, resumption, samples of one."""

import numpy as np
import pytest
import torch
from cases import CLASSES, COUNTS, data, mlp
from test_hessian import dense

from flattail.analysis import ANALYSES, ClassHessian, class_hessian

GROUPS = {"many": COUNTS >= 100, "few": COUNTS < 20}
QUICK = {"dtype": "float64", "subsets": 2, "probes": 1}


def test_every_class_and_group_against_dense_matrices():
    model, (x, y) = mlp(), data(n=30)
    found = class_hessian(model, [(x, y)], COUNTS, groups=GROUPS, draws=8, **QUICK)
    assert found["name"].tolist() == ["0", "1", "2", "3", "4", "5", "many", "few", "all"]
    for i, name in enumerate(found["name"]):
        member = torch.eye(CLASSES)[int(name)] if name.isdigit() else GROUPS.get(name, torch.ones(CLASSES)).float()
        D = dense(model, x, y, member[y].double())
        true = torch.linalg.eigvalsh(D)
        assert found["lambda_max"][i] == pytest.approx(true[-1].item(), rel=1e-5)
        assert found["lambda_min"][i] == pytest.approx(true[0].item(), rel=1e-5)
        assert abs(found["trace"][i] - D.trace().item()) < 5 * found["trace_probes"][i]
        assert found["samples"][i] == int(member[y].sum())
        assert found["count"][i] == int(COUNTS[member.bool()].sum())
    assert found["converged"].all()
    some = found["samples"] > 4
    assert some.sum() > 4
    assert (found["lambda_min_samples"][some] > 0).all()
    assert (found["seconds"] > 0).all()
    np.testing.assert_allclose(np.nansum(found["masses"], 2), 1)


def test_the_error_bar_over_samples_is_the_standard_error():
    class Bent(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))

        def forward(self, x):
            return (0.5 * x * self.w**2).expand(-1, 2)

    for n in (5, 100):
        x = torch.randn(n, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 3
        found = class_hessian(
            Bent(), [(x, torch.zeros(n, dtype=torch.int64))], torch.tensor([n, 1]), classes="0", subsets=200, samples=n,
            dtype="float64", loss=lambda z, y, n: z[:, 0],
        )  # fmt: skip
        assert found["lambda_max"][0] == pytest.approx(x.mean().item())
        assert found["lambda_max_samples"][0] == pytest.approx(x.std().item() / n**0.5, rel=0.2)


def test_one_sample_works_and_is_marked():
    model, (x, y) = mlp(), data()
    first = torch.cat([(y == c).nonzero().squeeze(1)[: 1 + 3 * (c > 0)] for c in range(CLASSES)])
    found = class_hessian(model, [(x[first], y[first])], COUNTS, classes="0,1", **QUICK)
    assert found["single"].tolist() == [True, False]
    assert np.isnan(found["lambda_min_samples"][0])
    assert np.isfinite(found["lambda_min"]).all()


def test_the_model_is_left_alone_and_the_mode_does_not_matter():
    model, (x, y) = mlp(dropout=0.5), data()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    training = class_hessian(model.train(), [(x, y)], COUNTS, classes="all", **QUICK)
    assert model.training
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    evaluation = class_hessian(model.eval(), [(x, y)], COUNTS, classes="all", **QUICK)
    assert training["lambda_max"] == evaluation["lambda_max"]


def test_chance_in_evaluation_mode_is_refused():
    class Careless(torch.nn.Linear):
        def forward(self, x):
            return super().forward(torch.nn.functional.dropout(x))

    x, y = data()
    with pytest.raises(ValueError, match=r"repeated Hessian-vector product differs.*training=True"):
        class_hessian(Careless(5, CLASSES), [(x, y)], COUNTS)


def test_an_interrupted_analysis_goes_on_class_by_class():
    model, (x, y) = mlp(), data()
    kept, whole = {}, class_hessian(model, [(x, y)], COUNTS, **QUICK)

    def keep(name, arrays):
        kept[name] = arrays
        if name == "2":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        class_hessian(model, [(x, y)], COUNTS, on_part=keep, **QUICK)
    assert list(kept) == ["0", "1", "2"]
    new = []
    found = class_hessian(model, [(x, y)], COUNTS, done=kept, on_part=lambda name, _: new.append(name), **QUICK)
    assert new == ["3", "4", "5", "all"]
    for key in set(whole) - {"seconds"}:
        np.testing.assert_array_equal(found[key], whole[key])


def test_progress_runs_to_its_end_for_every_part():
    model, (x, y) = mlp(), data()
    told = {}
    class_hessian(model, [(x, y)], COUNTS, progress=lambda n, k, most: told.setdefault(n, []).append(k / most), **QUICK)
    assert list(told) == ["0", "1", "2", "3", "4", "5", "all"]
    assert all(shares == sorted(shares) and shares[-1] == 1 for shares in told.values())


def test_a_quota_is_drawn_by_the_seed():
    model, (x, y) = mlp(), data(n=60)
    a, b, c = (class_hessian(model, [(x, y)], COUNTS, classes="5", samples=4, seed=s, **QUICK) for s in (0, 0, 1))
    assert a["samples"] == 4
    assert a["lambda_max"] == b["lambda_max"] != c["lambda_max"]


def test_a_subset_of_parameters():
    model, (x, y) = mlp(), data()
    found = class_hessian(model, [(x, y)], COUNTS, classes="all", only=r"^head\.", **QUICK)
    block = dense(model, x, y, torch.ones(len(y), dtype=torch.float64), only="head.")
    assert found["lambda_max"][0] == pytest.approx(torch.linalg.eigvalsh(block)[-1].item(), rel=1e-6)
    assert found["lambda_min"][0] > -1e-9


def test_options_are_documented_values():
    assert ClassHessian() == ClassHessian()
    assert set(ANALYSES) == {"hessian", "landscape", "sharpness", "radius", "escape"}
    assert all(cls.__doc__ and "(" not in cls.__doc__.split(".")[0][:1] for cls in ANALYSES.values())

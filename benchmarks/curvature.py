"""Class-wise curvature, ours against the textbook's three procedures, side by side in one run: seconds and errors.

The textbook: power iteration (at most 100 products, relative change 1e-3), Hutchinson (at most 100, relative change of
the running mean 1e-3) and Lanczos (100 steps, reorthogonalised once), each product building its graph anew. Ours: one
Lanczos run that stops at convergence, and a trace deflated by it. Errors are against a converged reference: float64
Lanczos from another start, and a deflated trace of many draws. Prints tables in Markdown.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from flattail import CE, Stage, fit
from flattail.analysis import ClassHessian, Hessian, Samples, Subject, spectrum
from flattail.data.cifar import CIFAR10LT
from flattail.data.halves import in_order
from flattail.models import ResNet20
from flattail.train import accelerated

Product = Callable[[Tensor], Tensor]


def textbook_product(subject: Subject, x: Tensor, y: Tensor) -> Product:
    """Double backward of the mean loss, from scratch each time, through the module as it is."""
    weights = subject.weights

    def product(v: Tensor) -> Tensor:
        values, _ = subject.losses(x, y)
        gradient = torch.autograd.grad(values.mean(), weights, create_graph=True)
        flat = torch.cat([g.reshape(-1) for g in gradient])
        return torch.cat([h.reshape(-1) for h in torch.autograd.grad(flat @ v, weights)])

    return product


def power_iteration(product: Product, v: Tensor) -> tuple[float, int]:
    """The eigenvalue of largest magnitude, and the products taken."""
    v, last = v / v.norm(), None
    for i in range(100):
        w = product(v)
        value = float(v @ w)
        if last is not None and abs(value - last) / (abs(last) + 1e-6) < 1e-3:
            return value, i + 1
        v, last = w / w.norm(), value
    return value, 100


def hutchinson(product: Product, n: int, generator: torch.Generator) -> tuple[float, int]:
    """The trace, and the products taken."""
    seen: list[float] = []
    for i in range(100):
        z = (2 * torch.randint(2, (n,), generator=generator) - 1).float()
        before = statistics.mean(seen) if seen else 0.0
        seen.append(float(z @ product(z)))
        if i and abs(statistics.mean(seen) - before) / (abs(before) + 1e-6) < 1e-3:
            break
    return statistics.mean(seen), len(seen)


def lanczos(product: Product, v: Tensor, steps: int = 100) -> tuple[float, float, int]:
    """The smallest and largest Ritz value, and the products taken."""
    basis, alpha, beta = [v / v.norm()], [], []
    for _ in range(steps):
        w = product(basis[-1])
        alpha.append(float(w @ basis[-1]))
        for q in basis:
            w = w - (w @ q) * q
        beta.append(float(w.norm()))
        basis.append(w / w.norm())
    values = np.linalg.eigvalsh(np.diag(alpha) + np.diag(beta[:-1], 1) + np.diag(beta[:-1], -1))
    return float(values[0]), float(values[-1]), steps


def trained(args: argparse.Namespace) -> tuple[nn.Module, Samples, Tensor]:
    """The network, up to so many samples of every class, and the class counts."""
    data = CIFAR10LT().load(args.root)
    torch.manual_seed(0)
    model = ResNet20().build(10)
    if args.weights:
        model.load_state_dict(load_file(args.weights))
    else:
        fit(model, data, [Stage(epochs=args.epochs, loss=CE())], accelerator=accelerated("cpu", "fp32"))
    half = data.train
    held = Samples.of(
        lambda: half.batches(in_order(len(half), 512)), classes=10, per_class=max(args.samples, 2 * args.samples)
    )
    return model, held, data.counts


def few_of(held: Samples, c: int, samples: int) -> Samples:
    """The first samples of a class."""
    rows = (held.y == c).nonzero().squeeze(1)[:samples]
    return Samples(held.x[rows], held.y[rows], held.rows[rows], held.total)


def compare(subject: Subject, exact: Subject, held: Samples, args: argparse.Namespace) -> list[list[float]]:
    """A row per class: class, seconds and products of both, errors of both, standard error of the reference."""
    rows = []
    unpatched = unwrapped(subject)
    for c in args.classes:
        some = few_of(held, c, args.samples)
        piece = [(some.x, some.y)]
        reference = spectrum(
            Hessian(exact.losses, [(some.x, some.y)], exact.weights), steps=150, tolerance=1e-10, seed=99, draws=2
        )
        H = Hessian(subject.losses, piece, subject.weights)
        much = spectrum(H, steps=60, tolerance=0, draws=args.reference, seed=98)

        generator = torch.Generator().manual_seed(c)
        begun, spent = time.perf_counter(), time.process_time()
        product = textbook_product(unpatched, some.x, some.y)
        top, p = power_iteration(product, torch.randn(subject.size, generator=generator))
        trace, h = hutchinson(product, subject.size, generator)
        start = (2 * torch.randint(2, (subject.size,), generator=generator) - 1).float()
        low, _, k = lanczos(product, start)
        theirs, their_cpu = time.perf_counter() - begun, time.process_time() - spent

        begun, spent = time.perf_counter(), time.process_time()
        H = Hessian(subject.losses, piece, subject.weights)
        ours = spectrum(H, seed=c, draws=args.draws)
        mine, my_cpu = time.perf_counter() - begun, time.process_time() - spent

        def off(value: float, true: float) -> float:
            return abs(value - true) / abs(true)

        true = (reference.lambda_max, reference.lambda_min, much.trace)
        row = [c, theirs, mine, p + h + k, ours.products]
        for pair in zip((top, low, trace), (ours.lambda_max, ours.lambda_min, ours.trace), true, strict=True):
            row += [off(pair[0], pair[2]), off(pair[1], pair[2])]
        rows.append([*row, much.trace_probes / abs(much.trace), ours.trace_probes / abs(ours.trace), their_cpu, my_cpu])
        print(
            f"class {c}: lambda {true[1]:.4g} to {true[0]:.4g}, trace {true[2]:.4g}; textbook {p} + {h} + {k} products "
            f"in {theirs:.1f} s, ours {ours.products} in {mine:.1f} s",
            flush=True,
        )
    return rows


def unwrapped(subject: Subject) -> Subject:
    """The same subject with torch's own BatchNorm."""
    for module in subject.model.modules():
        vars(module).pop("forward", None)
    weights = dict(subject.model.named_parameters())
    return Subject(subject.model, subject.names, [weights[n] for n in subject.names], subject.loss, subject.counts)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("data"), help="the folder of the data")
    parser.add_argument("--weights", type=Path, help="model.safetensors of a ResNet-20 run; else one is trained")
    parser.add_argument("--epochs", type=int, default=3, help="of that training")
    parser.add_argument("--samples", type=int, default=50, help="of each class")
    parser.add_argument(
        "--draws", type=int, default=1, help="of our trace; one has no error bar, as the textbook has none"
    )
    parser.add_argument("--reference", type=int, default=40, help="draws of the reference trace")
    parser.add_argument("--classes", type=int, nargs="+", default=list(range(10)))
    args = parser.parse_args()
    model, held, counts = trained(args)
    subject, exact = Subject.of(model, counts), Subject.of(model, counts, dtype="float64")
    print(f"ResNet-20, {subject.size} weights, {args.samples} samples a class, {torch.get_num_threads()} threads\n")
    rows = np.array(compare(Subject.of(model, counts), exact, held, args), dtype=float)
    both = np.array(growth(subject, held, args), dtype=float)
    print("\n| | textbook | ours |\n| --- | --- | --- |")
    print(f"| seconds, all classes | {rows[:, 1].sum():.1f} | {rows[:, 2].sum():.1f} |")
    print(f"| CPU seconds, all classes | {rows[:, 13].sum():.1f} | {rows[:, 14].sum():.1f} |")
    print(f"| products, all classes | {rows[:, 3].sum():.0f} | {rows[:, 4].sum():.0f} |")
    for i, name in enumerate(("lambda_max", "lambda_min", "trace")):
        a, b = rows[:, 5 + 2 * i], rows[:, 6 + 2 * i]
        print(f"| relative error of {name}, median (worst) | {np.median(a):.1e} ({a.max():.1e}) | ", end="")
        print(f"{np.median(b):.1e} ({b.max():.1e}) |")
    wall, cpu = rows[:, 1].sum() / rows[:, 2].sum(), rows[:, 13].sum() / rows[:, 14].sum()
    print(f"\n{wall:.1f} times less time, {cpu:.1f} times less CPU time")
    print(
        f"worst standard error of the reference trace {rows[:, 11].max():.1e}, of our trace {rows[:, 12].max():.1e}\n"
    )
    print("| samples of a class | seconds a product | classes in a call | seconds a class |")
    print("| --- | --- | --- | --- |")
    for n, product, classes, each in both:
        print(f"| {n:.0f} | {product:.2f} | {classes:.0f} | {each:.1f} |")


def growth(subject: Subject, held: Samples, args: argparse.Namespace) -> list[list[float]]:
    """How cost grows: seconds of a product by samples, seconds of a class by the number of classes in a call."""
    rows = []
    n = args.samples
    look = ClassHessian(steps=5, probes=1, draws=2, subsets=0, tolerance=0.0, micro=n // 2)
    for factor, classes in ((0.5, 1), (1.0, 2), (2.0, 3)):
        some = few_of(held, 0, int(n * factor))
        H = Hessian(subject.losses, [(some.x, some.y)], subject.weights, micro=n // 4)
        v, taken = torch.randn(subject.size), []
        for _ in range(3):
            begun = time.perf_counter()
            H @ v
            taken.append(time.perf_counter() - begun)
        chosen = list(range(classes))
        rows_of = torch.cat([(held.y == c).nonzero().squeeze(1)[: n // 2] for c in chosen])
        part = Samples(held.x[rows_of], held.y[rows_of], held.rows[rows_of], held.total)
        begun = time.perf_counter()
        for c in chosen:
            look.part(subject, part, torch.eye(10, dtype=torch.bool)[c], lambda k, most: None)
        rows.append([int(n * factor), statistics.median(taken), classes, (time.perf_counter() - begun) / classes])
    return rows


if __name__ == "__main__":
    main()

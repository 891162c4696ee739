"""Draws the figures of `docs/idea.md`, in colours that follow the reader's light or dark scheme.

python docs/figures/draw.py         writes the SVG files beside this script
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from flattail import CCSAM, SAM, SharpnessAware

HERE = Path(__file__).parent
INK, SOFT, HEAD, TAIL, FLAT = "#112233", "#889aab", "#1c6fd1", "#d1491c", "#1c8a4b"
DARK = {INK: "#e3e7ec", SOFT: "#78879a", HEAD: "#6db0ff", TAIL: "#ff8e66", FLAT: "#5ccf8f"}
STYLE: Any = {
    "svg.hashsalt": "flattail", "svg.fonttype": "path", "font.size": 10, "axes.titlesize": 10.5,
    "axes.spines.top": False, "axes.spines.right": False,
    "axes.edgecolor": SOFT, "axes.labelcolor": INK, "text.color": INK, "xtick.color": SOFT,
    "ytick.color": SOFT, "xtick.labelcolor": INK, "ytick.labelcolor": INK, "axes.titlecolor": INK,
    "lines.linewidth": 1.8,
}  # fmt: skip
ARROW = {"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 0, "linewidth": 1.6, "mutation_scale": 12}


def arrow(ax: Axes, start: np.ndarray, end: np.ndarray, colour: str) -> None:
    """An arrow from one point `[2]` to another."""
    ax.annotate("", xy=tuple(end), xytext=tuple(start), arrowprops=ARROW | {"color": colour})


def bare(ax: Axes, title: str) -> None:
    """A map without axes."""
    ax.set_aspect("equal")
    ax.axis("off")
    ax.set_title(title)


def bowl(
    x: np.ndarray, y: np.ndarray, centre: tuple[float, float], stretch: tuple[float, float], turn: float
) -> np.ndarray:
    """A quadratic in coordinates turned by an angle."""
    c, s = np.cos(turn), np.sin(turn)
    u, v = c * (x - centre[0]) + s * (y - centre[1]), -s * (x - centre[0]) + c * (y - centre[1])
    return stretch[0] * u**2 + stretch[1] * v**2


def slope(f: Any, at: np.ndarray, h: float = 1e-5) -> np.ndarray:
    """The gradient `[2]` of f at a point `[2]`, by central differences."""
    steps = np.eye(2) * h
    return np.array([(f(*(at + d)) - f(*(at - d))) / (2 * h) for d in steps])


def climb(f: Any, at: np.ndarray, rho: float) -> np.ndarray:
    """SAM's displacement `[2]`."""
    g = slope(f, at)
    return rho * g / np.linalg.norm(g)


def ball() -> Figure:
    """The climb in the plane, and what it finds at a sharp and at a flat minimum."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.6), width_ratios=[1, 1.35])
    w, rho = np.array([1.15, 0.75]), 0.75
    x, y = np.meshgrid(np.linspace(-1.6, 2.5, 200), np.linspace(-1.5, 2.1, 200))
    f = lambda x, y: bowl(x, y, (0, 0), (1.0, 0.28), 0.5)  # noqa: E731
    left.contour(x, y, f(x, y), levels=[0.05, 0.25, 0.6, 1.1, 1.75, 2.6, 3.6], colors=SOFT, linewidths=0.9)
    e = climb(f, w, rho)
    left.add_patch(Circle(tuple(w), rho, fill=True, facecolor=FLAT, alpha=0.16))
    left.add_patch(Circle(tuple(w), rho, fill=False, edgecolor=FLAT, linewidth=1.6))
    arrow(left, w, w + e, FLAT)
    down = -0.45 * slope(f, w + e) / np.linalg.norm(slope(f, w + e))
    arrow(left, w, w + down, INK)
    left.plot(*w, "o", color=INK, markersize=5)
    left.text(w[0] + 0.04, w[1] - 0.27, "$w$")
    left.text(*(w + e + [0.08, 0.02]), r"$w + e$", color=FLAT)
    left.text(*(w + down + [-0.32, 0.12]), r"$-\nabla L(w+e)$", ha="right")
    bare(left, r"one climb of length $\rho$, and the step taken")

    t = np.linspace(-1.9, 3.9, 500)
    loss = np.minimum(6.0 * (t + 0.6) ** 2, 0.35 * (t - 2.1) ** 2 + 0.12)
    loss = -np.log(np.exp(-6 * loss) + 1e-9) / 6
    right.plot(t, loss, color=INK)
    for at, colour, name, shift in ((-0.6, TAIL, "sharp", 0.32), (2.1, FLAT, "flat", 0.22)):
        inside = abs(t - at) <= 0.42
        worst = loss[inside].max()
        right.plot(t[inside], loss[inside], color=colour, linewidth=3.2)
        right.plot([at - 0.42, at + 0.42], [worst, worst], color=colour, linewidth=1.2, linestyle=(0, (3, 2)))
        right.text(at, worst + shift, f"{name}:\nworst\nnearby", ha="center", va="center", color=colour, fontsize=9)
    right.set(ylim=(-0.05, 1.75), xlim=(-1.7, 3.8), xlabel="weights", ylabel="loss", xticks=[], yticks=[])
    right.set_title("the lower minimum is not the lower worst case")
    return figure


def places() -> Figure:
    """Head and tail seen from different places: three methods at one point."""
    figure, axes = plt.subplots(1, 3, figsize=(8.4, 3.1))
    w = np.array([0.15, 0.1])
    x, y = np.meshgrid(np.linspace(-1.6, 1.7, 200), np.linspace(-1.45, 1.45, 200))
    head = lambda x, y: bowl(x, y, (-0.9, -0.35), (0.9, 0.35), 0.2)  # noqa: E731
    tail = lambda x, y: bowl(x, y, (1.0, -0.45), (0.5, 1.5), -0.7)  # noqa: E731
    for ax, title in zip(
        axes, ("SAM: all from one climb", "ImbSAM: the tail climbs", "SSE-SAM: each its own"), strict=True
    ):
        ax.contour(x, y, head(x, y), levels=[0.06, 0.25, 0.6, 1.1], colors=HEAD, linewidths=0.8, alpha=0.4)
        ax.contour(x, y, tail(x, y), levels=[0.06, 0.25, 0.6, 1.1], colors=TAIL, linewidths=0.8, alpha=0.4)
        bare(ax, title)
    both = lambda x, y: head(x, y) + 0.15 * tail(x, y)  # noqa: E731
    looks = [
        [(climb(both, w, 0.6), FLAT, 0.6, "both")],
        [(np.zeros(2), HEAD, 0, "head"), (climb(tail, w, 0.6), TAIL, 0.6, "tail")],
        [(climb(head, w, 0.4), HEAD, 0.4, "head"), (climb(tail, w, 0.6), TAIL, 0.6, "tail")],
    ]
    for ax, terms in zip(axes, looks, strict=True):
        for e, colour, rho, name in terms:
            if rho:
                ax.add_patch(Circle(tuple(w), rho, fill=True, facecolor=colour, alpha=0.1))
                ax.add_patch(Circle(tuple(w), rho, fill=False, edgecolor=colour, linewidth=1.1))
                arrow(ax, w, w + e, colour)
            way = e + np.array([0.0, 0.12]) if rho else np.array([0.42, 0.0])
            side = "center" if rho == 0 else "left" if way[0] > 0 else "right"
            ax.text(*(w + 1.12 * way), name, color=colour, ha=side, va="center", weight="bold")
        ax.plot(*w, "o", color=INK, markersize=5)
        ax.text(w[0] - 0.02, w[1] - 0.22, "$w$", ha="center")
    return figure


def radii() -> Figure:
    """CC-SAM's radius by class size, eqs. 8 and 9, on CIFAR-10-LT with an imbalance of 100."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.8, 3.4), width_ratios=[1, 1.35], gridspec_kw={"wspace": 0.32})
    counts = np.array([5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50])
    length = lambda n, g: 650**0.25 * np.sqrt(6 / (2 * g)) / (n - 1) ** 0.25  # noqa: E731
    shown, used = [0, 3, 6, 9], CCSAM()
    for i in shown:
        r = length(counts[i], 1.0)
        colour = HEAD if i == 0 else TAIL if i == 9 else SOFT
        left.add_patch(Circle((0, 0), r, fill=True, facecolor=colour, alpha=0.1))
        left.add_patch(Circle((0, 0), r, fill=False, edgecolor=colour, linewidth=1.5))
        left.text(
            0, r - 0.06, f"{counts[i]:,}", ha="center", va="top", color=colour if colour != SOFT else INK, fontsize=9
        )
    left.plot(0, 0, "o", color=INK, markersize=5)
    left.text(0.12, -0.3, r"$\theta$")
    left.set(xlim=(-3.6, 3.6), ylim=(-3.6, 3.6))
    bare(left, "a ball per class around the head, equal slopes")
    n = np.geomspace(50, 5000, 100)
    for g, colour, dash in ((0.1, TAIL, "-"), (1.0, FLAT, "-"), (10.0, HEAD, "-")):
        right.plot(n, length(n, g) / 6, dash, color=colour)
        right.plot(counts, length(counts, g) / 6, "o", color=colour, markersize=4)
        right.text(5600, length(5000, g) / 6, rf"$\Vert g_c\Vert={g:g}$", color=colour, va="center")
        right.plot(n, np.minimum(used.scale * length(n, g) / 6, used.cap), color=colour, linestyle=(0, (4, 3)))
    right.text(5600, used.scale * length(5000, 1.0) / 6, "by default", va="center")
    right.set(
        xscale="log",
        yscale="log",
        xlabel="training images of the class",
        ylabel=r"$\Vert e_c\Vert\;/\;\Vert\theta\Vert$",
    )
    right.set(xlim=(45, 20000), ylim=(0.001, 2.5))
    right.set_xticks([50, 500, 5000], ["50", "500", "5,000"])
    right.set_yticks([0.001, 0.01, 0.1, 1.0], ["0.001", "0.01", "0.1", "1"])
    right.minorticks_off()
    right.set_title("rarer, or already fitted: further")
    return figure


def descent(rho: float, steps: int = 200, rate: float = 0.05) -> np.ndarray:
    """The path `[steps + 1, 2]` of SAM on E = x²/2 − y²/4, with noise along y where |x| > 0.8."""
    draw, model = torch.Generator().manual_seed(0), torch.nn.Module()
    model.w = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    (w,) = model.parameters()
    flat, path = SharpnessAware(model, SAM(rho)), [w.detach().clone()]
    for _ in range(steps):
        a, b = (2 * torch.randint(2, (2, 1), generator=draw) - 1).double()

        def losses(a: torch.Tensor = a, b: torch.Tensor = b, w: torch.Tensor = w) -> torch.Tensor:
            x, y = w
            return x**2 / 2 - y**2 / 4 + a * x + b * torch.relu(x.abs() - 0.8) * y

        w.grad = None
        flat.backward(losses, torch.zeros(1, dtype=torch.int64))
        assert w.grad is not None
        with torch.no_grad():
            w.sub_(rate * w.grad)
        path.append(w.detach().clone())
    return torch.stack(path).numpy()


def saddle() -> Figure:
    """Where a climb amplifies, and a saddle that only a large radius leaves."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.4), width_ratios=[1.15, 1])
    values = np.linspace(-3, 1, 400)
    for rho, colour in ((0.5, HEAD), (2.0, TAIL)):
        left.plot(values, (1 + rho * values) ** 2, color=colour)
        left.fill_between(
            values, 1, (1 + rho * values) ** 2, where=(values < -2 / rho), color=colour, alpha=0.18, linewidth=0
        )
    left.axhline(1, color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
    left.axvline(0, color=SOFT, linewidth=0.8)
    left.set(
        ylim=(0, 5), xlim=(-3, 1), xlabel=r"eigenvalue $\lambda$ of the Hessian", ylabel="factor on the second moment"
    )
    left.text(-1.4, 4.2, r"$\rho_{\rm eff}=2$", color=TAIL)
    left.text(-2.95, 0.3, r"$\rho_{\rm eff}=0.5$", color=HEAD)
    left.text(-1.85, 1.13, "amplified above,", fontsize=8.5, ha="center")
    left.text(-1.85, 0.72, "damped below", fontsize=8.5, ha="center")
    left.set_title(r"$(1+\rho_{\rm eff}\lambda)^2$: weak saddles need a large radius")
    x, y = np.meshgrid(np.linspace(-1.5, 1.5, 200), np.linspace(-1.5, 1.5, 200))
    right.contour(x, y, x**2 / 2 - y**2 / 4, levels=np.linspace(-0.5, 1, 13), colors=SOFT, linewidths=0.7)
    path = descent(3.0)
    gone = int(np.argmax(abs(path[:, 1]) > 1))
    right.plot(*path[: gone + 1].T, color=TAIL, linewidth=1.1)
    stays = descent(0.2)
    right.plot(*stays.T, color=HEAD, linewidth=2.2)
    right.plot(0, 0, "o", color=INK, markersize=4)
    right.set(xlim=(-1.5, 1.5), ylim=(-1.5, 1.5))
    right.text(0.55, 0.12, r"$\rho=0.2$ stays", color=HEAD)
    right.text(
        0.1, 1.22 * np.sign(path[gone, 1]), rf"$\rho=3$ leaves in {gone} steps", color=TAIL, ha="center", va="center"
    )
    bare(right, r"SAM on $x^2/2 - y^2/4$")
    return figure


FIGURES = {"ball": ball, "places": places, "radii": radii, "saddle": saddle}


def save(figure: Figure, path: Path) -> None:
    """Write the SVG with colours as variables that a dark scheme sets anew."""
    figure.savefig(path, transparent=True, bbox_inches="tight", pad_inches=0.05, metadata={"Date": None})
    plt.close(figure)
    text = path.read_text(encoding="utf-8")
    names = {light: f"--c{i}" for i, light in enumerate(DARK)}
    for light, name in names.items():
        text = text.replace(light, f"var({name})")
    scheme = lambda colours: " ".join(f"{names[k]}: {v};" for k, v in colours.items())  # noqa: E731
    style = (
        f"<style>svg {{ {scheme({k: k for k in DARK})} }} "
        f"@media (prefers-color-scheme: dark) {{ svg {{ {scheme(DARK)} }} }}</style>"
    )
    path.write_text(text.replace("<defs>", f"{style}\n <defs>", 1), encoding="utf-8")


def main(out: Path) -> None:
    """Draw every figure into a folder."""
    with plt.rc_context(STYLE):
        for name, draw in FIGURES.items():
            save(draw(), out / f"{name}.svg")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)

"""Tiny models, labels and one or more instances of every method: what the tests of the engine run on."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from flattail.sharp import (
    ASAM,
    CCSAM,
    ERM,
    GSAM,
    LPFSGD,
    MSAM,
    PGD,
    SAM,
    SSESAM,
    WSAM,
    AdversarialFeatures,
    Every,
    FocalSAM,
    FriendlySAM,
    GradientNormPenalty,
    ImbSAM,
    Linear,
    LookSAM,
    ModelPerturbation,
    SAMNorms,
    SharpnessAware,
    Steps,
    Window,
)

COUNTS = torch.tensor([500, 200, 120, 60, 30, 8])  # class 5 is "few"; three classes are tail at eta=100
CLASSES = len(COUNTS)
BATCH = 22
LAYERS = r"backbone\.2|head"
SAMPLES = partial(CCSAM, average="samples")  # the only average whose radius 0 is ERM

# instances of every row of METHODS: (label, method, the same method without radius)
CASES = {
    "erm": [("erm", ERM(), ERM())],
    "sam": [
        ("sam", SAM(rho=0.1), SAM(rho=0.0)),
        ("sam-steps", SAM(rho=Steps((0.05, 0.2), (0.05,))), SAM(rho=Steps((0.0, 0.0), (0.05,)))),
        ("sam-linear", SAM(rho=Linear(0.05, 0.8)), SAM(rho=Linear(0.0, 0.0))),
    ],
    "asam": [("asam", ASAM(rho=0.3), ASAM(rho=0.0))],
    "imbsam": [
        ("imbsam", ImbSAM(rho=0.1, eta=100), ImbSAM(rho=0.0, eta=100)),
        ("imbsam-few", ImbSAM(rho=0.1, eta="few"), ImbSAM(rho=0.0, eta="few")),
    ],
    "ssesam": [
        ("ssesam-before", SSESAM(), SSESAM(head_rho=0.0, tail_rho=0.0)),
        ("ssesam-after", SSESAM(switch=0.05), SSESAM(head_rho=0.0, tail_rho=0.0, switch=0.05)),
    ],
    "focalsam": [("focalsam", FocalSAM(), FocalSAM(rho=0.0))],
    "ccsam": [
        ("ccsam", SAMPLES(), SAMPLES(scale=0.0)),
        (
            "ccsam-released",
            SAMPLES(scale=0.01, cap=float("inf"), mix=0.3, norm="per-tensor"),
            SAMPLES(scale=0.0, mix=0.3, norm="per-tensor"),
        ),
        ("ccsam-all", SAMPLES(scope="all"), SAMPLES(scale=0.0, scope="all")),
        ("ccsam-layers", SAMPLES(scope=LAYERS, mix=0.5), SAMPLES(scale=0.0, scope=LAYERS, mix=0.5)),
    ],
    "adversarial-features": [
        ("features", AdversarialFeatures(), AdversarialFeatures(strength=0.0)),
        ("features-batch", AdversarialFeatures(norm="batch"), AdversarialFeatures(strength=0.0, norm="batch")),
    ],
    "wsam": [("wsam", WSAM(rho=0.1), WSAM(rho=0.0)), ("wsam-weak", WSAM(rho=0.1, gamma=0.3), WSAM(rho=0.0, gamma=0.3))],
    "gradient-norm-penalty": [("gradient-norm", GradientNormPenalty(), GradientNormPenalty(rho=0.0))],
    "gsam": [("gsam", GSAM(rho=0.1), GSAM(rho=0.0))],
    "friendly-sam": [("friendly", FriendlySAM(rho=0.1), FriendlySAM(rho=0.0))],
    "look-sam": [
        ("look-sam", LookSAM(rho=0.1), LookSAM(rho=0.0)),
        ("look-sam-often", LookSAM(rho=0.1, k=2), LookSAM(rho=0.0, k=2)),
    ],
    "m-sam": [("m-sam", MSAM(), MSAM(rho=0.0))],
    "sam-norms": [("sam-norms", SAMNorms(rho=0.1), SAMNorms(rho=0.0))],
    "lpf-sgd": [
        ("lpf", LPFSGD(gamma=0.1), LPFSGD(gamma=0.0)),
        ("lpf-rising", LPFSGD(gamma=0.02, alpha=15.0), LPFSGD(gamma=0.0, alpha=15.0)),
    ],
    "model-perturbation": [
        ("perturbation", ModelPerturbation(rho=0.1), ModelPerturbation(rho=0.0)),
        ("perturbation-3", ModelPerturbation(rho=0.1, draws=3), ModelPerturbation(rho=0.0, draws=3)),
    ],
    "pgd": [
        ("pgd", PGD(rho=0.1), PGD(rho=0.0)),
        ("pgd-small", PGD(rho=0.1, threshold=9.0, pause=3), PGD(rho=0.0, threshold=9.0)),
    ],
    "window": [
        ("window", Window(SAM(rho=0.1), 0.05, 0.5), Window(SAM(rho=0.0))),
        ("window-friendly", Window(FriendlySAM(rho=0.1), 0.05, 0.5), Window(FriendlySAM(rho=0.0))),
    ],
    "every": [
        ("every", Every(SAM(rho=0.1), 2), Every(SAM(rho=0.0), 2)),
        ("every-gsam", Every(GSAM(rho=0.1), 2), Every(GSAM(rho=0.0), 2)),
    ],
}
# other divisors than the batch's mass: their radius 0 is another objective than ERM's
DIVIDED = {
    "imbsam-x2": ImbSAM(rho=0.1, eta=100, tail_weight=2.0),
    "imbsam-group-mean": ImbSAM(rho=0.1, eta=100, over="members"),
    "ccsam-classes": CCSAM(average="classes"),
    "ccsam-class-sum": CCSAM(average="class-sum", norm="per-tensor"),
    "ccsam-unit": SAMPLES(scale=0.2, length="unit"),
    "ccsam-random": SAMPLES(scale=1.0, cap=0.1, direction="random"),
    "ccsam-random-all": SAMPLES(scale=1.0, cap=0.1, direction="random", scope="all"),
    "features-released": AdversarialFeatures(norm="class", rarity=2.0, ahead=0.1, limit=0.3),
    "features-rarity": AdversarialFeatures(strength=0.2, rarity=2.0),
    "ccsam-class-sum-all": CCSAM(average="class-sum", scope="all", mix=0.7),
}
NORMED = "sam-norms"  # needs normalisation layers, and equals SAM of their parameters: tests of its own
EVERY = {label: method for name, rows in CASES.items() for label, method, _ in rows if name != NORMED} | DIVIDED
PLAIN = {label: still for name, rows in CASES.items() for label, _, still in rows if name != NORMED}
WEIGHTS = {label: m for label, m in EVERY.items() if m.where == "weights"}
HEADS = {label: m for label, m in EVERY.items() if m.where == "head"}
INSIDE = {label: m for label, m in EVERY.items() if m.where != "weights"}
MERGED = {label: m for label, m in EVERY.items() if getattr(m, "merge", None)}
BLIND = ["m-sam", "lpf", "lpf-rising", "perturbation", "perturbation-3", "pgd"]  # nobody looks from w
NOISY = [*BLIND[1:], "pgd-small", "ccsam-random", "ccsam-random-all"]  # a move that was drawn
DOWNHILL = [*NOISY, "m-sam", "friendly", "window-friendly"]  # a move that may lead there


class Pair(nn.Module):
    """A backbone and a head, as head methods need them."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, x):
        return self.head(self.backbone(x))


class Cosine(nn.Module):
    """A cosine head: logits are cosines times a learnt scale."""

    def __init__(self, d: int, classes: int) -> None:
        super().__init__()
        self.weight, self.s = nn.Parameter(torch.randn(classes, d)), nn.Parameter(torch.tensor(4.0))

    def forward(self, z):
        return self.s * F.normalize(z, dim=1) @ F.normalize(self.weight, dim=1).T


def mlp(seed=0, *, d=5, hidden=7, head="linear", dtype=torch.float64, norm=None, dropout=0.0):
    """A tanh network of a few dozen weights: smooth, so that closed forms hold to the last digit."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        middle = [] if norm is None else [norm(hidden)]
        middle += [nn.Dropout(dropout)] if dropout else []
        backbone = nn.Sequential(nn.Linear(d, hidden), *middle, nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh())
        heads = {
            "linear": lambda: nn.Linear(hidden, CLASSES),
            "no-bias": lambda: nn.Linear(hidden, CLASSES, bias=False),
            "cosine": lambda: Cosine(hidden, CLASSES),
            "mlp": lambda: nn.Sequential(nn.Linear(hidden, 4), nn.Tanh(), nn.Linear(4, CLASSES)),
        }
        return Pair(backbone, heads[head]()).to(dtype)


def data(seed=0, n=BATCH, d=5, dtype=torch.float64):
    """Inputs `[n, d]` and labels `[n]` with every class in them, where n allows it."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g, dtype=dtype)
    y = torch.cat([torch.arange(CLASSES), torch.randint(0, CLASSES, (max(n, CLASSES),), generator=g)])[:n]
    return x, y[torch.randperm(n, generator=g)]


def closure(model, x, y):
    return lambda: F.cross_entropy(model(x), y, reduction="none")


def row_closure(model, x, y):
    return lambda rows: F.cross_entropy(model(x[rows]), y[rows], reduction="none")


def flat(model, method, **how):
    """The drop-in, every step with the same noise unless another seed is given."""
    aware = SharpnessAware(model, method, COUNTS, **how)
    aware.backward = partial(aware.backward, seed=0)
    return aware


def gradients(model):
    return {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}


def gradient(model, method, x, y, *, losses=None, how=None, **given):
    """The gradient that one step of a method leaves, from a clean `.grad`."""
    model.zero_grad()
    flat(model, method, **(how or {})).backward(
        losses or closure(model, x, y), y, **{"progress": 0.1, "step": 0, **given}
    )
    return gradients(model)


def close(a, b, tol=1e-12):
    """Equal gradients, to a tolerance relative to the largest entry of each."""
    assert a.keys() == b.keys()
    for n in a:
        if a[n] is None or b[n] is None:
            assert a[n] is b[n], n
            continue
        gap, size = (a[n] - b[n]).abs().max(), b[n].abs().max()
        assert gap <= tol * (1 + size), f"{n}: differs by {gap:.2e} of {size:.2e}"


def apart(a, b, tol=1e-6):
    """Gradients that really differ: guards a comparison against saying nothing."""
    return max(float((a[n] - b[n]).abs().max()) for n in a) > tol

"""A training loop of one's own, made sharpness-aware: one line added, one changed."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from flattail import SSESAM, SharpnessAware

torch.manual_seed(0)
digits = load_digits()
x, y = torch.tensor(digits.images, dtype=torch.float32).flatten(1) / 16, torch.tensor(digits.target)
counts = torch.tensor([120 // 2 ** (c // 2) for c in range(10)])  # 120 120 60 60 ... 7 7
rows = torch.cat([(y == c).nonzero().squeeze(1)[:n] for c, n in enumerate(counts.tolist())])
test = torch.cat([(y == c).nonzero().squeeze(1)[-50:] for c in range(10)])

model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
flat = SharpnessAware(model, SSESAM(tail_rho=0.2, eta=30), counts)  # added

steps = 300
for step in range(steps):
    batch = rows[torch.randint(len(rows), (64,))]
    xb, yb = x[batch], y[batch]
    optimizer.zero_grad()
    # before: loss = F.cross_entropy(model(xb), yb); loss.backward()
    loss = flat.backward(
        lambda xb=xb, yb=yb: F.cross_entropy(model(xb), yb, reduction="none"), yb, progress=step / steps
    )
    optimizer.step()

right = (model(x[test]).argmax(1) == y[test]).view(10, 50).float().mean(1)
print(flat.report)
print(f"loss {loss:.4f}, accuracy: head {right[:6].mean():.3f}, tail {right[6:].mean():.3f}")

"""Is the tail of this model at a saddle? Any torch classifier and loader, without a run directory."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import shufflenet_v2_x0_5

from flattail.analysis import class_hessian, gap
from flattail.sharp import SAM

torch.manual_seed(0)
digits, counts = load_digits(), torch.tensor([120, 40, 8])
x, y = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1, torch.tensor(digits.target)
rows = torch.cat([(y == c).nonzero().squeeze(1)[:n] for c, n in enumerate(counts.tolist())])
data = TensorDataset(F.interpolate(x[rows], 32).expand(-1, 3, -1, -1), y[rows])

model = shufflenet_v2_x0_5(num_classes=3)
optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
for _ in range(8):
    for images, labels in DataLoader(data, batch_size=24, shuffle=True):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

loader = DataLoader(data, batch_size=64)  # evaluation transforms, not shuffled
how = {"samples": 8, "only": "conv5|fc"}  # the last layers; leave `only` out for all weights
found = class_hessian(model, loader, counts, subsets=2, probes=1, steps=40, **how)
for i, name in enumerate(found["name"]):
    low, high, bar = (found[k][i] for k in ("lambda_min", "lambda_max", "lambda_min_samples"))
    print(f"class {name}: lambda_min {low:.3g} ± {bar:.1g}, lambda_max {high:.3g}, converged {found['converged'][i]}")

flat = gap(model, loader, SAM(0.05), counts, directions=2, samples=8)
for name, rise, reach in zip(flat["name"], flat["gap"], flat["radius"], strict=True):
    print(f"class {name}: SAM's climb |e|/|w| {reach:.2g} raises the loss by {rise:.3g}")

"""timm's training script with a step of a method: its model, optimiser, scheduler, scaler, EMA and Mixup."""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from timm.data import Mixup
from timm.models import create_model, model_parameters
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3, NativeScaler, dispatch_clip_grad
from torch.utils.data import DataLoader, TensorDataset

from flattail import SSESAM, SharpnessAware


class SharpScaler(NativeScaler):
    """timm's scaler with a step of a method where it had `scale(loss).backward()`; checkpoints hold it as before."""

    def __call__(self, flat, losses, y, progress, optimizer, clip_grad=None, clip_mode="norm", parameters=None):
        loss = flat.backward(losses, y, progress, scaler=self._scaler)
        if clip_grad is not None:
            self._scaler.unscale_(optimizer)
            dispatch_clip_grad(parameters, clip_grad, mode=clip_mode)
        self._scaler.step(optimizer)
        self._scaler.update()
        return loss


def soft_losses(output, target):
    """Cross-entropy of every sample [B] with soft targets [B, C]: timm's criterion before its mean."""
    return -(target * F.log_softmax(output, dim=1)).sum(1)


def train_one_epoch(epoch, epochs, model, loader, optimizer, flat, scaler, scheduler, ema, mixup, amp=nullcontext):
    model.train()
    for i, (images, labels) in enumerate(loader):
        images, targets = mixup(images, labels)  # terms go by the first label of each mixed image

        def losses(images=images, targets=targets):
            with amp():
                return soft_losses(model(images), targets)

        done = epoch * len(loader) + i
        optimizer.zero_grad()
        loss = scaler(flat, losses, labels, done / (epochs * len(loader)), optimizer,
                      clip_grad=1.0, parameters=model_parameters(model))  # fmt: skip
        ema.update(model, step=done)
        scheduler.step_update(num_updates=done + 1)
    scheduler.step(epoch + 1)
    return loss


if __name__ == "__main__":
    torch.manual_seed(0)
    digits = load_digits()
    x, y = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1, torch.tensor(digits.target)
    counts = [120 // 2 ** (c // 2) for c in range(10)]  # 120 120 60 60 ... 7 7
    rows = torch.cat([(y == c).nonzero().squeeze(1)[:n] for c, n in enumerate(counts)])
    data = TensorDataset(F.interpolate(x, 16)[rows], y[rows])
    loader = DataLoader(data, batch_size=32, shuffle=True, drop_last=True)  # Mixup wants even batches

    epochs = 3
    model = create_model("test_resnet", in_chans=1, num_classes=10)
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.1, weight_decay=5e-4)
    scheduler, _ = create_scheduler_v2(optimizer, "cosine", num_epochs=epochs, warmup_epochs=1, warmup_lr=1e-3)
    flat = SharpnessAware(model, SSESAM(tail_rho=0.2, eta=30), counts)
    ema, mixup = ModelEmaV3(model, decay=0.9), Mixup(mixup_alpha=0.2, num_classes=10, label_smoothing=0.1)
    scaler = SharpScaler("cpu")
    for epoch in range(epochs):
        loss = train_one_epoch(epoch, epochs, model, loader, optimizer, flat, scaler, scheduler, ema, mixup)
        print(f"epoch {epoch}: loss {loss:.3f}")
    print(flat.report)

"""Lightning: manual optimisation, with accumulation, clipping, a scheduler, bf16 or fp16, processes, and resuming."""

import lightning
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from flattail import FriendlySAM, SharpnessAware


class SharpModule(lightning.LightningModule):
    """Clipping and accumulation are fields: the Trainer's own options are for automatic optimisation only."""

    def __init__(self, net, method, counts, *, steps, accumulate=1, clip=1.0):
        super().__init__()
        self.automatic_optimization = False
        self.net, self.method, self.counts, self.steps = net, method, counts, steps
        self.accumulate, self.clip, self.waiting, self.memory = accumulate, clip, [], {}

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)]

    def on_fit_start(self):  # the weights are on their device by now
        self.flat = SharpnessAware(self.net, self.method, self.counts)
        self.flat.load_state_dict(self.memory)

    def training_step(self, batch, index):
        self.waiting.append(batch)
        if len(self.waiting) < self.accumulate and not self.trainer.is_last_batch:
            return
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = self.flat.backward(  # in place of self.manual_backward(loss)
            [lambda x=x, y=y: F.cross_entropy(self.net(x), y, reduction="none") for x, y in self.waiting],
            [y for _, y in self.waiting],
            progress=self.global_step / self.steps,
            step=self.global_step,
            scaler=getattr(self.trainer.precision_plugin, "scaler", None),  # that of "16-mixed"
        )
        if self.trainer.world_size > 1:  # each process climbs by its own batch; what they find there is averaged
            for p in self.net.parameters():
                p.grad = self.trainer.strategy.reduce(p.grad, reduce_op="mean")
        optimizer.step()
        self.lr_schedulers().step()
        self.waiting.clear()
        self.log("loss", loss)

    def on_before_optimizer_step(self, optimizer):  # after a scaler has unscaled
        self.clip_gradients(optimizer, gradient_clip_val=self.clip, gradient_clip_algorithm="norm")

    def on_save_checkpoint(self, checkpoint):
        checkpoint["flat"] = self.flat.state_dict()  # for methods that remember

    def on_load_checkpoint(self, checkpoint):
        self.memory = checkpoint["flat"]


if __name__ == "__main__":
    lightning.seed_everything(0, verbose=False)
    digits = load_digits()
    x, y = torch.tensor(digits.images, dtype=torch.float32).flatten(1) / 16, torch.tensor(digits.target)
    counts = [120 // 2 ** (c // 2) for c in range(10)]  # 120 120 60 60 ... 7 7
    rows = torch.cat([(y == c).nonzero().squeeze(1)[:n] for c, n in enumerate(counts)])
    loader = DataLoader(TensorDataset(x[rows], y[rows]), batch_size=32, shuffle=True)

    net = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.ReLU(), nn.Linear(64, 10))
    module = SharpModule(net, FriendlySAM(rho=0.2), counts, steps=6 * -(-len(loader) // 2), accumulate=2)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = lightning.Trainer(max_epochs=6, accelerator="cpu", precision="bf16-mixed", **quiet)
    trainer.fit(module, loader)
    print(module.flat.report)
    print(f"last loss {trainer.callback_metrics['loss']:.4f} after {module.global_step} steps")

"""Hugging Face's Trainer with a step of a method: accumulation, clipping, bf16 and resuming stay its own."""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

from flattail import SAM, SharpnessAware


class SharpTrainer(Trainer):
    """A step of `method` in place of `accelerator.backward(loss)`: micro-batches wait for the last of their step."""

    def __init__(self, *args, method, counts, **kwargs):
        super().__init__(*args, **kwargs)
        self.method, self.counts, self.flat, self.memory, self.waiting = method, counts, None, {}, []

    def training_step(self, model, inputs, num_items_in_batch=None):
        model.train()
        self.waiting.append(self._prepare_inputs(inputs))
        if not self.accelerator.sync_gradients:
            return torch.zeros((), device=self.args.device)
        if self.flat is None:  # the model is wrapped and on its device by now
            self.flat = SharpnessAware(model, self.method, self.counts)
            self.flat.load_state_dict(self.memory)
        batches, self.waiting = self.waiting, []
        return self.flat.backward(
            [lambda batch=batch: self.losses(model, **batch) for batch in batches],
            [batch["labels"] for batch in batches],
            progress=self.state.global_step / self.state.max_steps,
            step=self.state.global_step,
            scaler=self.accelerator.scaler,
        )

    def losses(self, model, labels, **inputs):
        """The loss of every sample [B]; the model's own `loss` is a mean, and of no use here."""
        return F.cross_entropy(model(**inputs).logits, labels, reduction="none")

    def _save_optimizer_and_scheduler(self, output_dir):
        super()._save_optimizer_and_scheduler(output_dir)
        if self.flat is not None and self.args.should_save:
            torch.save(self.flat.state_dict(), Path(output_dir) / "flat.pt")

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and (file := Path(checkpoint) / "flat.pt").exists():
            self.memory = torch.load(file, map_location="cpu", weights_only=True)


if __name__ == "__main__":
    torch.manual_seed(0)
    digits = load_digits()
    x, y = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1, torch.tensor(digits.target)
    counts = [120 // 2 ** (c // 2) for c in range(10)]  # 120 120 60 60 ... 7 7
    rows = torch.cat([(y == c).nonzero().squeeze(1)[:n] for c, n in enumerate(counts)])
    data = [{"pixel_values": x[i], "labels": y[i]} for i in rows.tolist()]

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    images = {"image_size": 8, "patch_size": 4, "num_channels": 1, "num_labels": 10}
    model = ViTForImageClassification(ViTConfig(**sizes, **images))
    with TemporaryDirectory() as out:
        args = TrainingArguments(out, use_cpu=True, num_train_epochs=4, per_device_train_batch_size=16,
                                 gradient_accumulation_steps=2, learning_rate=5e-3, logging_steps=15,
                                 report_to="none", save_strategy="no", disable_tqdm=True)  # fmt: skip
        trainer = SharpTrainer(model, args, train_dataset=data, method=SAM(rho=0.05), counts=counts)
        trainer.train()
    print(trainer.flat.report)
    print(f"{trainer.state.global_step} steps, loss " + ", ".join(
        f"{row['loss']:.3f}" for row in trainer.state.log_history if "loss" in row))  # fmt: skip

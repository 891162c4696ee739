"""Constraints that the weights obey while a stage lasts: the classifier's in a ball, or layers of spectral norm 1."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm, spectral_norm
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations

from .models.heads import innermost

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Constraint(Protocol):
    """What a constraint is in a recipe. The model is plain before `shape` and after `end`."""

    def shape(self, model: nn.Module) -> None:
        """Give the model the structure that it has while the stage lasts."""
        ...

    def begin(self, model: nn.Module) -> dict[str, Tensor]:
        """What is remembered from the beginning of the stage to its end. ValueError for a model it cannot bound."""
        ...

    def after_step(self, model: nn.Module, memory: dict[str, Tensor]) -> None:
        """After each step of the optimiser."""
        ...

    def plain(self, model: nn.Module) -> dict[str, Tensor]:
        """The state dict of the plain model that gives the same answers in evaluation mode."""
        ...

    def end(self, model: nn.Module) -> None:
        """Take the structure off; the weights are then those of `plain`, taken before and loaded again."""
        ...


@dataclass(frozen=True)
class MaxNorm:
    """Each class's weights in a ball: after each step, longer ones are shortened to its radius.

    Weight balancing (Alshammari et al., CVPR 2022): w_c <- min(1, r / ||w_c||) w_c for the rows of the classifier, not
    its biases. As in the released code, r = min + share (max - min) of the lengths when the stage begins.

    Raises ValueError for a field out of its range.
    """

    share: float = 0.1  # where the radius lies between the smallest and the largest length
    radius: float | None = None  # the radius itself, instead

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share: within 0 and 1, and not {self.share}")
        if self.radius is not None and not self.radius > 0:
            raise ValueError(f"radius: must be positive, and is {self.radius}")

    def shape(self, model: nn.Module) -> None:
        """Plain."""

    def begin(self, model: nn.Module) -> dict[str, Tensor]:
        """The radius. Raises ValueError for a classifier that the stage does not train, and so must not change."""
        if not self.rows(model).requires_grad:
            raise ValueError(
                "constraint: max-norm shortens the classifier's weights, and this stage does not train them: "
                "train them (`train: head`), or leave the constraint out"
            )
        lengths = self.rows(model).detach().norm(dim=1)
        low, high = lengths.min(), lengths.max()
        radius = low + self.share * (high - low) if self.radius is None else torch.full_like(low, self.radius)
        return {"radius": radius}

    @torch.no_grad()
    def after_step(self, model: nn.Module, memory: dict[str, Tensor]) -> None:
        """The projection."""
        rows = self.rows(model)
        lengths = rows.norm(dim=1, keepdim=True)
        rows.mul_(torch.where(lengths > memory["radius"], memory["radius"] / lengths, 1.0))

    def plain(self, model: nn.Module) -> dict[str, Tensor]:
        """As it is."""
        return model.state_dict()

    def end(self, model: nn.Module) -> None:
        """Plain."""

    def rows(self, model: nn.Module) -> Tensor:
        """The classifier's weights [C, d], a class a row.

        Raises ValueError for a head that is not linear.
        """
        core = innermost(getattr(model, "head", model))
        if not isinstance(core, nn.Linear):
            raise ValueError(
                f"constraint: max-norm bounds the weights of a linear head, and this is a {type(core).__name__}, "
                "in which lengths say nothing or are not to be found"
            )
        return core.weight


@dataclass(frozen=True)
class SpectralNorm:
    """Trained linear and convolutional layers divided by their largest singular value, W / sigma(W).

    Miyato et al., ICLR 2018, by torch's parametrisation: power iteration, a step in each forward pass of training. A
    convolution's W is its weight as a matrix [out, in k k]. When the stage ends the quotient becomes the weight. Layers
    whose weight has a parametrisation of its own, as under LoRA, are left alone.

    Raises ValueError for a field out of its range.
    """

    iterations: int = 1  # of the power iteration in each forward pass

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"iterations: must be at least 1, and is {self.iterations}")

    def shape(self, model: nn.Module) -> None:
        """Parametrised."""
        for module in list(model.modules()):
            if isinstance(module, LAYERS) and module.weight.requires_grad and not is_parametrized(module):
                spectral_norm(module, n_power_iterations=self.iterations)

    def begin(self, model: nn.Module) -> dict[str, Tensor]:
        """The singular vectors are the parametrisation's own."""
        return {}

    def after_step(self, model: nn.Module, memory: dict[str, Tensor]) -> None:
        """The forward pass sees to it."""

    def plain(self, model: nn.Module) -> dict[str, Tensor]:
        """The quotients for weights."""
        state = model.state_dict()
        for name, module in normalised(model):
            prefix = f"{name}." if name else ""
            for key in [key for key in state if key.startswith(f"{prefix}parametrizations.weight.")]:
                del state[key]
            norm = module.parametrizations.weight[0]
            was = norm.training
            norm.eval()
            state[f"{prefix}weight"] = module.weight.detach()
            norm.train(was)
        return state

    def end(self, model: nn.Module) -> None:
        """Parameters in the order that they had."""
        for _, module in list(normalised(model)):
            remove_parametrizations(module, "weight", leave_parametrized=False)
            for name in [n for n in module._parameters if n != "weight"]:
                module._parameters[name] = module._parameters.pop(name)


def normalised(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Names and layers whose weight is a quotient."""
    for name, module in model.named_modules():
        if is_parametrized(module, "weight"):
            weight: Any = module.parametrizations["weight"]  # type: ignore[index]
            if isinstance(weight[0], _SpectralNorm):
                yield name, module


CONSTRAINTS: dict[str, type] = {"max-norm": MaxNorm, "spectral-norm": SpectralNorm}

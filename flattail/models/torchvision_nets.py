"""Any classifier of torchvision as a `Split`: its last linear layer is taken off and a new head put on."""

import difflib
from dataclasses import dataclass

from torch import nn

from flattail.models.heads import HEADS, HeadName, Split


def _unknown(what: str, name: str, known: list[str]) -> ValueError:
    guesses = difflib.get_close_matches(name, known, 3)
    hint = f"did you mean {', '.join(guesses)}?" if guesses else f"there are {', '.join(known)}"
    return ValueError(f"model: torchvision has no {what} {name!r}; {hint}")


def _stemmed(net: nn.Module, channels: int) -> None:
    """Replace the first convolution by one for `channels` channels."""
    path, old = next((p, m) for p, m in net.named_modules() if isinstance(m, nn.Conv2d))
    new = nn.Conv2d(
        channels,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        old.stride,  # type: ignore[arg-type]
        old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    net.set_submodule(path, new)


def _beheaded(net: nn.Module, name: str) -> int:
    """Replace the last linear layer by an identity; the size of the features it was given."""
    linear = [(path, module) for path, module in net.named_modules() if isinstance(module, nn.Linear)]
    if not linear or linear[-1][1].out_features != 1000:  # SqueezeNet ends in a convolution
        raise ValueError(f"model: torchvision's {name} does not end in a linear layer; choose another, or timm's")
    path, last = linear[-1]
    net.set_submodule(path, nn.Identity())
    return last.in_features


@dataclass(frozen=True)
class Torchvision:
    """A classifier of torchvision by name, all but its last linear layer, and a new head."""

    model: str  # torchvision's name: resnet50, resnet152, vit_b_16
    weights: str | None = None  # pretrained weights by torchvision's name: DEFAULT, IMAGENET1K_V1
    head: HeadName = "linear"  # cosine: for LDAM

    def build(self, classes: int, channels: int = 3) -> Split:
        """A network for `classes` classes; other than 3 `channels` get a new first convolution.

        Raises ValueError for names that torchvision does not have, and for pretrained weights with other
        than 3 channels.
        """
        from torchvision import models

        known = models.list_models(module=models)
        if self.model not in known:
            raise _unknown("classifier", self.model, known)
        if self.weights is not None:
            offered = list(models.get_model_weights(self.model).__members__)
            if self.weights not in offered:
                raise _unknown(f"weights of {self.model} called", self.weights, offered)
            if channels != 3:
                raise ValueError(
                    f"model: torchvision's pretrained weights take 3 channels, the images have {channels}; "
                    "leave `weights` out, or use timm, which adapts them"
                )
        auxiliary = {"aux_logits": False} if self.model in ("googlenet", "inception_v3") else {}
        net = models.get_model(self.model, weights=self.weights, **auxiliary)
        if channels != 3:
            _stemmed(net, channels)
        return Split(net, HEADS[self.head](_beheaded(net, self.model), classes))

"""Any network of timm as a `Split`: from its start or pretrained, at any image size, by choice with adapters."""

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from flattail.models.adapters import Adapter
from flattail.models.heads import HEADS, HeadName, Split
from flattail.models.sized import Sized
from flattail.models.weights import located, misfit, opened, renamed, unknown

HUB = "timm"


@dataclass(frozen=True)
class Timm:
    """A network of timm by name: its own pooled features (`num_classes=0`), and a new head.

    Raises ValueError for a field out of its range.
    """

    model: str  # timm's name, with or without a weights tag: resnext50_32x4d, resnet50.a1_in1k
    weights: str | None = None  # timm: fetched, a name's tag says which; a file; package:NAME, the file in a package
    head: HeadName = "linear"  # cosine: for LDAM; scaled-cosine: for other losses
    size: int | None = None  # side in pixels that images are brought to in front of the backbone
    normalise: Literal["data", "timm"] | None = None  # by whose mean and deviation; none: timm's if there are weights
    adapter: Adapter | None = None  # adaptformer or lora

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise ValueError(f"size: a side in pixels, 1 or more, and is {self.size}")

    def build(self, classes: int, channels: int = 3) -> Split:
        """A network for `classes` classes; timm adapts pretrained stems to other than 3 `channels`.

        Raises:
            ValueError: for a name that timm does not have, weights that do not fit it, naming what is missing,
                unexpected or of another shape, or a network without a place for the adapter.
            FileNotFoundError: without the file of weights.
        """
        import timm  # seconds: only who builds one waits for it

        bare = self.model.partition(".")[0]
        known = timm.list_models() if bare == self.model else timm.list_pretrained()
        if self.model not in known:
            raise unknown(self.model, known)
        how: dict[str, Any] = {"in_chans": channels, "num_classes": 0}
        if self.size is not None and self.settings().fixed_input_size:
            how["img_size"] = self.size
        if self.weights is None:
            net = timm.create_model(self.model, **how)
        elif self.weights == HUB:
            net = self.fetched(**how)
        else:
            net = self.filled(**how)
        features: int = getattr(net, "head_hidden_size", 0) or net.num_features  # type: ignore[assignment]
        if self.adapter is not None:
            self.adapter.insert(net)
        return Split(net if self.size is None else Sized(net, self.size), HEADS[self.head](features, classes))

    @property
    def base(self) -> str | None:
        """The model on the Hugging Face Hub whose weights this one begins with, if they come from there."""
        import timm

        settings = timm.get_pretrained_cfg(self.model) if self.weights == HUB else None
        return settings.hf_hub_id if settings is not None else None

    def normalisation(self, channels: int = 3) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Mean and deviation [channels] that images are normalised by, of x/255; None: the data's own."""
        if (self.normalise or ("timm" if self.weights else "data")) == "data":
            return None
        settings = self.settings()
        mean, std = (tuple(map(float, each)) for each in (settings.mean, settings.std))
        if channels == len(mean):
            return mean, std
        return (sum(mean) / len(mean),) * channels, (sum(std) / len(std),) * channels

    def settings(self) -> Any:
        """What timm knows of the name's weights, its `PretrainedCfg`: mean, std, input_size, classifier, ..."""
        from timm.models import PretrainedCfg, get_pretrained_cfg

        return get_pretrained_cfg(self.model) or PretrainedCfg()

    def fetched(self, **how: Any) -> nn.Module:
        """The network with timm's own weights, from its hub or where timm has kept them.

        Raises ValueError where they cannot be had.
        """
        import timm

        try:
            return timm.create_model(self.model, pretrained=True, **how)
        except Exception as error:  # timm, urllib and huggingface_hub each have their own
            said = " ".join(str(error).split())[:200]
            raise ValueError(
                f"model.weights: timm's weights of {self.model} cannot be had ({type(error).__name__}: {said}); "
                "give the path of a file instead"
            ) from error

    def filled(self, **how: Any) -> nn.Module:
        """The network with the weights of a file, which must be all of them; the old classifier is left out.

        Raises ValueError for a file that does not fit the network, and FileNotFoundError for none.
        """
        import timm

        assert self.weights is not None
        path, settings = located(self.weights), self.settings()
        found = opened(path)
        if "_conv_stem.weight" in found:
            found = renamed(found, timm.create_model(self.model, num_classes=0))
        classifiers = settings.classifier or ()
        for layer in (classifiers,) if isinstance(classifiers, str) else classifiers:
            found = {name: value for name, value in found.items() if not name.startswith(f"{layer}.")}
        overlay = {"state_dict": found, "num_classes": 0, "label_offset": 0}  # so that timm is strict
        try:
            net = timm.create_model(self.model, pretrained=True, pretrained_cfg_overlay=overlay, **how)
        except (RuntimeError, KeyError, AttributeError) as error:
            raise ValueError(f"model.weights: {path} does not fit timm's {self.model}: {misfit(str(error))}") from error
        vars(net)["pretrained_cfg"]["state_dict"] = None  # timm would keep the file's tensors there
        return net

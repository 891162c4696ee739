"""Any network of timm as a `Split`."""

import difflib
from dataclasses import dataclass

from flattail.models.heads import HEADS, HeadName, Split


@dataclass(frozen=True)
class Timm:
    """A network of timm by name: its own pooled features (`num_classes=0`), and a new head."""

    model: str  # timm's name, with or without a weights tag: resnext50_32x4d, resnet50.a1_in1k
    pretrained: bool = False  # fetch timm's weights; a name's tag says which
    head: HeadName = "linear"  # cosine: for LDAM

    def build(self, classes: int, channels: int = 3) -> Split:
        """A network for `classes` classes; timm adapts pretrained stems to other than 3 `channels`.

        Raises ValueError for a name that timm does not have.
        """
        import timm  # seconds: only who builds one waits for it

        bare = self.model.partition(".")[0]
        known = timm.list_models() if bare == self.model else timm.list_pretrained()
        if self.model not in known:
            guesses = difflib.get_close_matches(self.model, known, 3)
            hint = f"did you mean {', '.join(guesses)}?" if guesses else "see timm.list_models()"
            raise ValueError(f"model: timm has no {self.model!r}; {hint}")
        net = timm.create_model(self.model, pretrained=self.pretrained, in_chans=channels, num_classes=0)
        features: int = getattr(net, "head_hidden_size", 0) or net.num_features  # type: ignore[assignment]
        return Split(net, HEADS[self.head](features, classes))

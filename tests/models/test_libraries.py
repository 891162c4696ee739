"""The networks of torchvision and timm as `Split`s, without a download."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from flattail.models import MODELS, Cosine, Timm, Torchvision


def learns(net, x, classes):
    logits = net(x)
    assert logits.shape == (len(x), classes)
    nn.functional.cross_entropy(logits, torch.zeros(len(x), dtype=torch.int64)).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


@pytest.mark.parametrize("name,features", [("resnet18", 512), ("mobilenet_v3_small", 1024)])
def test_torchvision(name, features):
    net = Torchvision(name).build(7)
    assert type(net.head) is nn.Linear and net.head.in_features == features
    learns(net, torch.randn(2, 3, 64, 64), 7)


@pytest.mark.filterwarnings("ignore:The default weight initialization")
@pytest.mark.parametrize(
    "name", ["vit_b_16", "swin_t", "convnext_tiny", "vgg11", "densenet121", "googlenet", "resnext50_32x4d"]
)
def test_torchvision_on_the_meta_device(name):
    with torch.device("meta"):
        net = Torchvision(name, head="cosine").build(11).train()
        assert isinstance(net.head, Cosine)
        assert net(torch.empty(2, 3, 224, 224)).shape == (2, 11)


def test_torchvision_split_is_the_classifier_it_came_from():
    """With the old classifier as its head, the network answers as before."""
    torch.manual_seed(0)
    whole = torchvision.models.mobilenet_v3_small().eval()
    split = Torchvision("mobilenet_v3_small").build(1000).eval()
    split.backbone.load_state_dict({k: v for k, v in whole.state_dict().items() if "classifier.3" not in k})
    split.head.load_state_dict(whole.classifier[3].state_dict())
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(split(x), whole(x))


def test_torchvision_other_channels():
    learns(Torchvision("resnet18").build(5, 1), torch.randn(2, 1, 64, 64), 5)


def test_torchvision_refusals():
    with pytest.raises(ValueError, match=r"no classifier 'resnet81'.*resnet18"):
        Torchvision("resnet81").build(5)
    with pytest.raises(ValueError, match="IMAGENET1K_V1"):
        Torchvision("resnet18", weights="IMAGENET_V1").build(5)
    with pytest.raises(ValueError, match="take 3 channels"):
        Torchvision("resnet18", weights="DEFAULT").build(5, 1)
    with pytest.raises(ValueError, match="does not end in a linear layer"):
        Torchvision("squeezenet1_1").build(5)


@pytest.mark.parametrize("channels", [1, 3])
def test_timm(channels):
    net = Timm("resnet10t").build(6, channels)
    assert type(net.head) is nn.Linear and net.head.in_features == 512
    learns(net, torch.randn(2, channels, 64, 64), 6)


@pytest.mark.parametrize("name", ["test_vit", "mobilenetv3_small_050", "test_convnext"])
def test_timm_features_fit_the_head(name):
    net = Timm(name, head="cosine").build(4).eval()
    side = timm.get_pretrained_cfg(name).input_size[-1]
    with torch.no_grad():
        assert net(torch.randn(1, 3, side, side)).shape == (1, 4)


def test_timm_names_with_a_tag():
    assert timm.is_model_pretrained("resnet10t.c3_in1k")
    assert Timm("resnet10t.c3_in1k").build(3).head.out_features == 3


def test_timm_refusals():
    with pytest.raises(ValueError, match=r"no 'resnext50_32x4'.*resnext50_32x4d"):
        Timm("resnext50_32x4").build(5)
    with pytest.raises(ValueError, match=r"no 'resnet10t\.c9_in1k'.*resnet10t\.c3_in1k"):
        Timm("resnet10t.c9_in1k").build(5)


def test_the_name_comes_first_in_a_recipes_short_form():
    assert MODELS["timm"]("resnet10t") == Timm(model="resnet10t")
    assert MODELS["torchvision"]("resnet18") == Torchvision(model="resnet18")

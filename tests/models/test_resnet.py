"""The residual networks: sizes, the option-A shortcut, initialisation, and what a step needs of them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flattail.models import MODELS, Cosine, ResNet8, ResNet20, ResNet30, ResNet32, ResNet34Cifar
from flattail.models.resnet import Block, group_norm, shortcut

SMALL = [ResNet8, ResNet20, ResNet32]
DEPTH = {ResNet8: 8, ResNet20: 20, ResNet32: 32}


def size(net):
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("model", SMALL)
@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_parameters_by_formula(model, head):
    w, blocks, classes, channels = 16, (DEPTH[model] - 2) // 6, 100, 3
    convolutions = 9 * channels * w + 9 * w * w * 2 * blocks
    convolutions += sum(9 * (c // 2 * c + c * c * (2 * blocks - 1)) for c in (2 * w, 4 * w))
    norms = 2 * w + 2 * 2 * blocks * (w + 2 * w + 4 * w)
    last = 4 * w * classes + (classes if head == "linear" else 0)
    assert size(model(head=head).build(classes)) == convolutions + norms + last


def test_published_sizes():
    assert size(ResNet20().build(10)) == 269_722
    assert size(ResNet32().build(10)) == 464_154
    assert size(ResNet8().build(10, 1)) == 75_002
    assert size(ResNet34Cifar().build(10)) == 21_282_122


@pytest.mark.parametrize("model", SMALL)
def test_depth_counts_weight_layers(model):
    layers = [m for m in model().build(10).modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == DEPTH[model]


def test_option_a_shortcut_pixel_by_pixel():
    x = torch.randn(2, 4, 6, 6)
    found = shortcut(x, 8, 2)
    assert found.shape == (2, 8, 3, 3)
    for i in range(3):
        for j in range(3):
            assert torch.equal(found[:, 2:6, i, j], x[:, :, 2 * i, 2 * j])
    assert (found[:, :2] == 0).all() and (found[:, 6:] == 0).all()
    assert shortcut(x, 4, 1).data_ptr() == x.data_ptr()


def test_block_in_textbook_form():
    block = Block(4, 8, 2, nn.BatchNorm2d).eval()
    x = torch.randn(2, 4, 6, 6)
    z = block.norm2(block.conv2(torch.relu(block.norm1(block.conv1(x)))))
    torch.testing.assert_close(block(x), torch.relu(z + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))))


def test_kaiming_normal_weights_and_default_bias():
    torch.manual_seed(0)
    net = ResNet32().build(100)
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan = module.weight[0].numel()
            assert module.weight.std().item() == pytest.approx((2 / fan) ** 0.5, rel=0.15)
    assert net.head.bias.abs().max() <= 1 / 8


@pytest.mark.parametrize("model", [*SMALL, ResNet34Cifar])
@pytest.mark.parametrize("channels,side", [(3, 32), (1, 8)])
def test_forward_and_gradients_everywhere(model, channels, side):
    net = model(head="cosine").build(7, channels)
    assert isinstance(net.head, Cosine)
    x = torch.randn(2, channels, side, side)
    logits = net(x)
    assert logits.shape == (2, 7)
    assert net.backbone(x).shape == (2, net.head.weight.shape[0])
    F.cross_entropy(30 * logits, torch.tensor([0, 3])).backward()
    for name, p in net.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all(), name
        assert p.is_contiguous() and (p.grad != 0).any(), name


def test_resnet34_keeps_the_resolution_until_its_stages():
    net = ResNet34Cifar().build(10).eval()
    seen = []
    net.backbone.layer1.register_forward_hook(lambda _m, _i, out: seen.append(out.shape))
    net.backbone.layer4.register_forward_hook(lambda _m, _i, out: seen.append(out.shape))
    net(torch.randn(1, 3, 32, 32))
    assert seen == [(1, 64, 32, 32), (1, 512, 4, 4)]


@pytest.mark.parametrize("model", [ResNet8, ResNet34Cifar])
def test_group_norm_keeps_samples_apart_and_batch_norm_does_not(model):
    x = torch.randn(3, 3, 8, 8)
    alone = model(norm="group").build(5).double()
    torch.testing.assert_close(alone(x.double())[:1], alone(x[:1].double()))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in alone.modules())
    assert not list(alone.buffers())
    coupled = model().build(5).double()
    assert not torch.allclose(coupled(x.double())[:1], coupled(torch.cat([x[:1], x[:1] + 1]).double())[:1])


@pytest.mark.parametrize("channels,groups", [(16, 8), (4, 4), (6, 2), (5, 1)])
def test_group_norm_divides_any_width(channels, groups):
    assert group_norm(channels).num_groups == groups


def test_width():
    assert ResNet8(width=4).build(3).head.in_features == 16
    with pytest.raises(ValueError, match=r"model\.width"):
        ResNet8(width=0).build(3)


@pytest.mark.parametrize("name", ["resnet8", "resnet20", "resnet32", "resnet34-cifar"])
def test_state_round_trip(name):
    model = MODELS[name]()
    a, b = model.build(5), model.build(5)
    x = torch.randn(4, 3, 8, 8)
    a(x)  # moves the statistics
    b.load_state_dict(a.state_dict())
    assert torch.equal(a.eval()(x), b.eval()(x))


def test_layout_does_not_show():
    net = ResNet20().build(10).double()
    x = torch.randn(4, 3, 16, 16).double()
    torch.testing.assert_close(net(x), net(x.contiguous(memory_format=torch.channels_last)))


def test_second_derivatives_exist():
    net = ResNet8(width=2).build(3).double()
    weights = list(net.parameters())
    loss = F.cross_entropy(net(torch.randn(4, 3, 8, 8).double()), torch.tensor([0, 1, 2, 0]))
    slopes = torch.autograd.grad(loss, weights, create_graph=True)
    curves = torch.autograd.grad(sum(s.square().sum() for s in slopes), weights)
    assert all(torch.isfinite(c).all() for c in curves)


def test_the_head_of_resnet30_begins_as_pytorchs_own_after_the_convolutions():
    torch.manual_seed(0)
    net = ResNet30(4).build(10)
    torch.manual_seed(0)
    ResNet32(4).build(10)
    head = nn.Linear(16, 10)
    assert torch.equal(net.head.weight, head.weight) and torch.equal(net.head.bias, head.bias)

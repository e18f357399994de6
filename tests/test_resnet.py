"""resnet.py equals torchvision's resnet18 with the stem for small images."""

import pytest
import torch
import torchvision
from torch import nn

from resnet import ResNet18


def resnet18_of_torchvision(num_classes: int = 10, in_chans: int = 3) -> nn.Module:
    model = torchvision.models.resnet18(num_classes=num_classes)
    model.conv1 = nn.Conv2d(in_chans, 64, kernel_size=3, stride=1, padding=1, bias=False)
    model.maxpool = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    return model


def test_resnet18_has_the_stated_size():
    assert sum(parameter.numel() for parameter in ResNet18().parameters()) == 11_173_962


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("sizes", "img_size"), [({}, 32), ({}, 4), ({"num_classes": 100, "in_chans": 1}, 17)])
def test_weights_move_to_torchvision_and_back_with_the_same_logits_and_gradients(sizes, img_size, training):
    torch.manual_seed(0)
    ours, theirs = ResNet18(**sizes).double(), resnet18_of_torchvision(**sizes).double()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(4, sizes.get("in_chans", 3), img_size, img_size).double()
    logits, expected_logits = ours.train(training)(images), theirs.train(training)(images)
    torch.testing.assert_close(logits, expected_logits, rtol=1e-9, atol=1e-9)
    logits.square().sum().backward()
    expected_logits.square().sum().backward()
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None
        scale = parameter.grad.abs().max().item()
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-8, atol=1e-9 * scale, msg=name)
    for name, buffer in theirs.named_buffers():  # the running statistics of batch norm
        torch.testing.assert_close(ours.state_dict()[name], buffer, rtol=1e-9, atol=1e-9, msg=name)
    ours.load_state_dict(theirs.state_dict())


def test_initial_weights_have_the_standard_deviation_of_torchvisions():
    torch.manual_seed(0)
    ours, theirs = ResNet18().state_dict(), torchvision.models.resnet18(num_classes=10).state_dict()
    assert ours["conv1.weight"].std().item() == pytest.approx((2 / (64 * 3 * 3)) ** 0.5, rel=0.1)  # the stems differ
    for name in (name for name in ours if name.startswith("layer") and ours[name].dim() == 4):
        assert ours[name].std().item() == pytest.approx(theirs[name].std().item(), rel=0.05), name

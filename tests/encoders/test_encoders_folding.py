"""Folding changes the time and not the vectors; where it would change them, it does not happen."""

import pytest
import torch
from support.tiny_models import save_dinov2, save_resnet
from torch import nn
from transformers import EfficientNetConfig, EfficientNetModel
from transformers.models.efficientnet.modeling_efficientnet import EfficientNetSqueezeExciteLayer

from alignvl_cli.encoders.vision import folded, load_vision
from alignvl_cli.settings import Precision


class Output:
    def __init__(self, last_hidden_state):
        self.last_hidden_state = last_hidden_state


class Net(nn.Module):
    """A convolution and a norm beside each other; `swapped` runs the norm first, which the order does not show."""

    def __init__(self, swapped):
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(3)
        self.swapped = swapped
        nn.init.uniform_(self.norm.running_mean, 1, 2)
        nn.init.uniform_(self.norm.running_var, 1, 2)

    def forward(self, pixel_values):
        steps = (self.norm, self.convolution) if self.swapped else (self.convolution, self.norm)
        return Output(steps[1](steps[0](pixel_values)))


@pytest.fixture
def pixels():
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_a_norm_is_folded_into_the_convolution_before_it(pixels):
    net = Net(swapped=False).eval()
    fast = folded(net, pixels)
    assert isinstance(fast.norm, nn.Identity)
    torch.testing.assert_close(fast(pixels).last_hidden_state, net(pixels).last_hidden_state)
    assert isinstance(net.norm, nn.BatchNorm2d), "the original is left as it was"


def test_a_norm_that_runs_before_its_neighbour_is_left_alone(pixels):
    net = Net(swapped=True).eval()
    assert folded(net, pixels) is net


def test_gates_go_only_where_they_are_open():
    config = EfficientNetConfig(width_coefficient=0.1, depth_coefficient=0.1, hidden_dim=128, image_size=32)
    model = EfficientNetModel(config).eval()
    gates = [module for module in model.modules() if isinstance(module, EfficientNetSqueezeExciteLayer)]
    for gate in gates[1:]:
        nn.init.zeros_(gate.expand.weight)
        nn.init.constant_(gate.expand.bias, 40.0)
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    fast = folded(model, pixels)
    left = [module for module in fast.modules() if isinstance(module, EfficientNetSqueezeExciteLayer)]
    assert (len(gates) > 1, len(left)) == (True, 1)
    torch.testing.assert_close(fast(pixels).last_hidden_state, model(pixels).last_hidden_state, rtol=1e-4, atol=1e-5)


def test_real_towers(tmp_path):
    save_resnet(tmp_path / "resnet")
    save_dinov2(tmp_path / "dinov2")
    resnet, dinov2 = (
        load_vision(str(tmp_path / name), pooling=None, device="cpu", precision=Precision.fp32).model
        for name in ("resnet", "dinov2")
    )
    assert not [module for module in resnet.modules() if isinstance(module, nn.BatchNorm2d)]
    assert [module for module in dinov2.modules() if isinstance(module, nn.LayerNorm)]

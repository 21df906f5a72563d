"""Dilated depthwise convolutions: the fast backward pass is the gradient of the forward one."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.network.depthwise import DilatedDepthwise, phases, speed_up
from model.network.layers import batch_norms
from tests.model.nets import tiny


def gradients(conv: nn.Conv2d, x: Tensor) -> tuple[Tensor, ...]:
    """The gradients, by input and kernel, of a sum that weighs every output differently."""
    y = conv(x)
    weighed = (y * torch.linspace(-1, 2, y.numel()).view_as(y).to(y)).sum()
    return torch.autograd.grad(weighed, [x, conv.weight])


@pytest.mark.parametrize("size", [(13, 20), (17, 17), (7, 31)])
@pytest.mark.parametrize(("kernel", "rate"), [(3, 2), (5, 2), (3, 4), (3, 6), (3, 18)])
def test_gradients_are_those_of_the_ordinary_convolution(
    size: tuple[int, int], kernel: int, rate: int
) -> None:
    """Computed in float64. For some of the sizes, splitting into phases does not pay."""
    torch.manual_seed(0)
    padding = rate * (kernel // 2)
    conv = nn.Conv2d(6, 6, kernel, padding=padding, dilation=rate, groups=6, bias=False).double()
    x = torch.randn(2, 6, *size, dtype=torch.float64).requires_grad_()
    before = conv(x), *gradients(conv, x)
    speed_up(conv)
    assert "forward" in vars(conv)
    for got, expected in zip((conv(x), *gradients(conv, x)), before, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16], ids=str)
def test_gradients_under_autocast_have_the_parameters_dtype(kind: torch.dtype) -> None:
    """In training, too, the backward pass runs after autocast has ended."""
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=6, bias=False)
    x = torch.randn(2, 6, 13, 20, requires_grad=True)
    exact = gradients(conv, x)
    speed_up(conv)
    with torch.autocast("cpu", kind):
        y = conv(x)
    assert y.dtype == kind
    weighed = (y.float() * torch.linspace(-1, 2, y.numel()).view_as(y)).sum()
    for got, expected in zip(torch.autograd.grad(weighed, [x, conv.weight]), exact, strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(
            got, expected, rtol=0.02, atol=0.02 * float(expected.abs().max())
        )


def test_phases_hold_every_pixel_of_their_rows_and_columns() -> None:
    x = torch.arange(2 * 3 * 5 * 7.0).view(2, 3, 5, 7)
    cut = phases(x, 2)
    assert cut.shape == (8, 3, 3, 4)
    for image in range(2):
        for row in range(2):
            for column in range(2):
                phase = x[image, :, row::2, column::2]
                got = cut[image * 4 + row * 2 + column]
                assert torch.equal(
                    got, F.pad(phase, (0, 4 - phase.shape[2], 0, 3 - phase.shape[1]))
                )


def test_only_requested_gradients_are_computed() -> None:
    x = torch.randn(1, 2, 9, 9)
    weight = torch.randn(2, 1, 3, 3, requires_grad=True)
    DilatedDepthwise.apply(x, weight, 2).sum().backward()
    assert x.grad is None
    assert weight.grad is not None


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2, bias=False),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4, stride=2, bias=False),
        nn.Conv2d(4, 4, 3, padding=0, dilation=2, groups=4, bias=False),
        nn.Conv2d(4, 8, 3, padding=2, dilation=2, groups=4, bias=False),
    ],
    ids=["no rate", "not depthwise", "bias", "stride", "no padding", "multiplier"],
)
def test_other_convolutions_are_left_alone(conv: nn.Conv2d) -> None:
    speed_up(conv)
    assert "forward" not in vars(conv)


@pytest.mark.slow
def test_a_network_trains_to_the_same_gradients() -> None:
    """Every parameter of the whole network keeps its name and has the same gradient, in float64."""
    torch.manual_seed(1)
    net = tiny(aspp_separable=True, decoder_separable=True).double().train()
    for norm in batch_norms(net):
        norm.eval()
    net.aspp.dropout.p = 0.0
    image = torch.rand(2, 3, 65, 65, dtype=torch.float64) * 255

    def grads() -> dict[str, Tensor]:
        net.zero_grad()
        net(image).square().mean().backward()
        return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}

    before = grads()
    speed_up(net)
    after = grads()
    assert before.keys() == after.keys()
    assert sum("forward" in vars(module) for module in net.modules()) >= 3
    for name, expected in before.items():
        torch.testing.assert_close(after[name], expected, msg=name)

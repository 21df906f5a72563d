"""The pixel loss against PyTorch's own and against loops over pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.loss import PixelLoss, median_frequency_weights


@pytest.fixture
def example() -> tuple[Tensor, Tensor]:
    """Logits (4, 3, 17, 17), and labels (4, 17, 17) with void."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (4, 17, 17), generator=generator).to(torch.uint8)
    labels[labels == 3] = 255
    return torch.randn(4, 3, 17, 17, generator=generator), labels


def mean(loss: PixelLoss, logits: Tensor, labels: Tensor) -> float:
    return float(loss.sum(logits, labels)) / loss.weight(labels)


def test_void_is_ignored_and_logits_are_judged_at_the_labels_size() -> None:
    logits = torch.zeros(1, 3, 5, 5)
    logits[:, 1] = 20.0
    labels = torch.full((1, 17, 17), 255, dtype=torch.uint8)
    labels[0, 3:9] = 1
    assert mean(PixelLoss(), logits, labels) < 1e-4
    labels[0, 3:9] = 2
    assert mean(PixelLoss(), logits, labels) == pytest.approx(20.0, rel=1e-3)


def test_weighted_by_class_it_is_pytorchs_mean(example: tuple[Tensor, Tensor]) -> None:
    logits, labels = example
    weights = torch.tensor([0.5, 1.0, 4.0])
    expected = F.cross_entropy(logits, labels.long(), weights, ignore_index=255)
    assert mean(PixelLoss(weights), logits, labels) == pytest.approx(float(expected), rel=1e-5)


def test_hard_mining_takes_the_hardest_judged_pixels_of_each_image(
    example: tuple[Tensor, Tensor],
) -> None:
    logits, labels = example
    losses = F.cross_entropy(logits, labels.long(), ignore_index=255, reduction="none").numpy()
    hardest: list[float] = []
    for image, label in zip(losses, labels.numpy(), strict=True):
        judged = np.sort(image[label != 255])[::-1]
        hardest.extend(judged[: int(np.ceil(0.3 * len(judged)))])
    assert mean(PixelLoss(None, 0.3), logits, labels) == pytest.approx(np.mean(hardest), rel=1e-5)


@pytest.mark.parametrize(
    "loss",
    [PixelLoss(), PixelLoss(torch.tensor([0.5, 1.0, 4.0])), PixelLoss(None, 0.3)],
    ids=["plain", "weighted", "hard"],
)
def test_a_batch_in_slices_has_the_loss_of_the_whole(
    loss: PixelLoss, example: tuple[Tensor, Tensor]
) -> None:
    logits, labels = example
    parts = [(logits[i : i + 1], labels[i : i + 1]) for i in range(len(labels))]
    weight = sum(loss.weight(label) for _, label in parts)
    total = sum(float(loss.sum(logit, label)) for logit, label in parts)
    assert total / weight == pytest.approx(mean(loss, logits, labels), rel=1e-5)


def test_a_batch_of_void_has_no_loss_and_no_weight() -> None:
    labels = torch.full((2, 9, 9), 255, dtype=torch.uint8)
    for loss in (PixelLoss(), PixelLoss(None, 0.5)):
        assert float(loss.sum(torch.randn(2, 3, 9, 9), labels)) == 0
        assert loss.weight(labels) == 0


def test_median_frequency_weights_follow_the_definition() -> None:
    # Class 0 fills 3/4 of both its images, class 1 a quarter of its one, class 2 all of its one.
    counts = np.array([[75, 25, 0], [150, 0, 50], [0, 0, 100]])
    frequency = [225 / 300, 25 / 100, 150 / 300]
    expected = [0.5 / f for f in frequency]
    assert median_frequency_weights(counts).tolist() == pytest.approx(expected)
    padded = np.pad(counts, ((0, 0), (0, 1)))  # a class that never occurs
    assert median_frequency_weights(padded).tolist() == pytest.approx([*expected, 1.0])

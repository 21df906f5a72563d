"""The pixel loss equals PyTorch's own and loops over pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.train.loss import PixelLoss, lovasz_softmax, median_frequency_weights, soft_dice


@pytest.fixture
def example() -> tuple[Tensor, Tensor]:
    """Logits (4, 3, 17, 17), and labels (4, 17, 17) with void."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (4, 17, 17), generator=generator).to(torch.uint8)
    labels[labels == 3] = 255
    return torch.randn(4, 3, 17, 17, generator=generator), labels


def mean(loss: PixelLoss, logits: Tensor, labels: Tensor) -> float:
    return float(loss.sum(logits, labels)) / loss.weight(labels)


def test_void_is_ignored_and_logits_are_compared_at_the_labels_size() -> None:
    logits = torch.zeros(1, 3, 5, 5)
    logits[:, 1] = 20.0
    labels = torch.full((1, 17, 17), 255, dtype=torch.uint8)
    labels[0, 3:9] = 1
    assert mean(PixelLoss(), logits, labels) < 1e-4
    labels[0, 3:9] = 2
    assert mean(PixelLoss(), logits, labels) == pytest.approx(20.0, rel=1e-3)


def test_the_class_weighted_loss_is_pytorchs_mean(example: tuple[Tensor, Tensor]) -> None:
    logits, labels = example
    weights = torch.tensor([0.5, 1.0, 4.0])
    expected = F.cross_entropy(logits, labels.long(), weights, ignore_index=255)
    assert mean(PixelLoss(weights), logits, labels) == pytest.approx(float(expected), rel=1e-5)


def test_hard_mining_takes_the_hardest_labelled_pixels_of_each_image(
    example: tuple[Tensor, Tensor],
) -> None:
    logits, labels = example
    losses = F.cross_entropy(logits, labels.long(), ignore_index=255, reduction="none").numpy()
    hardest: list[float] = []
    for image, label in zip(losses, labels.numpy(), strict=True):
        labelled = np.sort(image[label != 255])[::-1]
        hardest.extend(labelled[: int(np.ceil(0.3 * len(labelled)))])
    assert mean(PixelLoss(None, 0.3), logits, labels) == pytest.approx(np.mean(hardest), rel=1e-5)


@pytest.mark.parametrize(
    "loss",
    [
        PixelLoss(),
        PixelLoss(torch.tensor([0.5, 1.0, 4.0])),
        PixelLoss(None, 0.3),
        PixelLoss(lovasz=0.7),
        PixelLoss(dice=0.7),
        PixelLoss(torch.tensor([0.5, 1.0, 4.0]), focal=2.0),
        PixelLoss(None, 0.3, focal=0.5),
    ],
    ids=["plain", "weighted", "hard", "lovasz", "dice", "focal", "hard focal"],
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
    for loss in (PixelLoss(), PixelLoss(None, 0.5), PixelLoss(focal=2.0), PixelLoss(dice=1.0)):
        assert float(loss.sum(torch.randn(2, 3, 9, 9), labels)) == 0
        assert loss.weight(labels) == 0


def test_focal_is_the_formula_of_the_paper(example: tuple[Tensor, Tensor]) -> None:
    """Lin et al. 2017, equation 5, by a loop over pixels in NumPy."""
    logits, labels = example
    weights = [0.5, 1.0, 4.0]
    total = weight = 0.0
    for scores, label in zip(
        logits.permute(0, 2, 3, 1).reshape(-1, 3).tolist(), labels.flatten().tolist(), strict=True
    ):
        if label == 255:
            continue
        p = np.exp(scores[label]) / np.exp(scores).sum()
        total -= weights[label] * (1 - p) ** 2 * np.log(p)
        weight += weights[label]
    loss = PixelLoss(torch.tensor(weights), focal=2.0)
    assert mean(loss, logits, labels) == pytest.approx(total / weight, rel=1e-4)


def test_focal_has_a_finite_gradient_towards_the_truth() -> None:
    """This includes a certain network and an exponent below 1."""
    logits = torch.tensor([[60.0, 0.0, -60.0, 0.1]]).view(1, 4, 1, 1).repeat(1, 1, 2, 2)
    logits.requires_grad_()
    labels = torch.tensor([[[0, 1], [3, 255]]], dtype=torch.uint8)
    PixelLoss(focal=0.5).sum(logits, labels).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[0, 1, 0, 1] < 0


@pytest.mark.slow  # scikit-learn takes two seconds to load
def test_dice_of_hard_predictions_is_one_minus_f1(example: tuple[Tensor, Tensor]) -> None:
    """scikit-learn's F1 over the classes that the image shows."""
    from sklearn.metrics import f1_score

    logits, labels = example
    labelled = labels[0] != 255
    truth, predicted = labels[0][labelled], logits[0].argmax(0)[labelled]
    shown = np.unique(truth.numpy())
    f1 = f1_score(truth.numpy(), predicted.numpy(), labels=shown, average="macro")
    loss = soft_dice(F.one_hot(predicted, 3).double(), truth)
    assert float(loss) == pytest.approx(1 - f1)


def test_dice_of_a_batch_weighs_images_by_their_labelled_pixels(
    example: tuple[Tensor, Tensor],
) -> None:
    logits, labels = example
    losses, weights = [], []
    for image, truth in zip(logits.softmax(1), labels, strict=True):
        labelled = truth != 255
        losses.append(float(soft_dice(image[:, labelled].T, truth[labelled])))
        weights.append(int(labelled.sum()))
    added = mean(PixelLoss(dice=0.5), logits, labels) - mean(PixelLoss(), logits, labels)
    assert added == pytest.approx(0.5 * np.average(losses, weights=weights), rel=1e-4)


def test_median_frequency_weights_follow_the_definition() -> None:
    # Class 0 fills 3/4 of both its images, class 1 a quarter of its one, class 2 all of its one.
    counts = np.array([[75, 25, 0], [150, 0, 50], [0, 0, 100]])
    frequency = [225 / 300, 25 / 100, 150 / 300]
    expected = [0.5 / f for f in frequency]
    assert median_frequency_weights(counts).tolist() == pytest.approx(expected)
    padded = np.pad(counts, ((0, 0), (0, 1)))  # a class that never occurs
    assert median_frequency_weights(padded).tolist() == pytest.approx([*expected, 1.0])


def test_lovasz_of_hard_predictions_is_one_minus_the_mean_iou() -> None:
    """At 0 and 1 the extension equals the set function, which can be counted."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 3, (400,), generator=generator)
    predicted = torch.randint(0, 4, (400,), generator=generator)  # class 3 never occurs
    iou = [
        int(((labels == c) & (predicted == c)).sum())
        / int(((labels == c) | (predicted == c)).sum())
        for c in range(3)
    ]
    loss = lovasz_softmax(F.one_hot(predicted, 4).double(), labels.to(torch.uint8))
    assert float(loss) == pytest.approx(1 - np.mean(iou), abs=1e-12)


def test_lovasz_is_the_choquet_integral_of_the_jaccard_loss() -> None:
    """Between 0 and 1: the mean, over thresholds, of the loss of the errors above them."""
    generator = torch.Generator().manual_seed(2)
    labels = (torch.rand(60, generator=generator) < 0.4).to(torch.uint8)
    inside = torch.rand(60, generator=generator, dtype=torch.float64)
    loss = float(lovasz_softmax(torch.stack([1 - inside, inside], 1), labels))
    thresholds = (np.arange(20_000) + 0.5) / 20_000
    expected = []
    for c, p in ((0, (1 - inside).numpy()), (1, inside.numpy())):
        truth = labels.numpy() == c
        wrong = np.where(truth, 1 - p, p) > thresholds[:, None]
        missed, false = (wrong & truth).sum(1), (wrong & ~truth).sum(1)
        expected.append(np.mean((missed + false) / (truth.sum() + false)))
    assert loss == pytest.approx(np.mean(expected), abs=1e-4)


def test_lovasz_of_a_batch_weighs_images_by_their_labelled_pixels(
    example: tuple[Tensor, Tensor],
) -> None:
    logits, labels = example
    labels[2] = 255  # an image without labels must not fail
    counts, losses = [], []
    for image, truth in zip(logits.softmax(1), labels, strict=True):
        labelled = truth != 255
        if labelled.any():
            counts.append(int(labelled.sum()))
            losses.append(float(lovasz_softmax(image[:, labelled].T, truth[labelled])))
    added = mean(PixelLoss(lovasz=0.5), logits, labels) - mean(PixelLoss(), logits, labels)
    assert added == pytest.approx(0.5 * np.average(losses, weights=counts), rel=1e-4)


def test_lovasz_has_a_finite_gradient_towards_the_truth() -> None:
    logits = torch.zeros(1, 2, 4, 4, requires_grad=True)
    labels = torch.zeros(1, 4, 4, dtype=torch.uint8)
    labels[:, 2:] = 1
    PixelLoss(lovasz=1.0).sum(logits, labels).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert (logits.grad[0, 1, 2:] < 0).all()
    assert (logits.grad[0, 1, :2] > 0).all()

"""What the paper trains and evaluates on each data set, in order (sections 4.3 and 4.5)."""

from __future__ import annotations

from typing import NamedTuple

from model.paper.complexity import PAPER_SCALES

IMAGENET = "imagenet"  # the stage that every sequence begins with


class Training(NamedTuple):
    """A network that is trained by a preset, from the result of an earlier stage."""

    name: str
    preset: str
    begins_with: str  # an earlier training, or IMAGENET


class Evaluation(NamedTuple):
    """A network's mIoU on the validation split, and the paper's, in percent."""

    of: str  # a training
    output_stride: int
    multi_scale: bool = False  # with mirrored photos too, as in the paper's rows
    published: float | None = None

    @property
    def name(self) -> str:
        return f"{self.of}-os{self.output_stride}{'-scales-flip' if self.multi_scale else ''}"

    @property
    def scales(self) -> tuple[float, ...]:
        return PAPER_SCALES if self.multi_scale else (1.0,)


class Submission(NamedTuple):
    """The archive for the test server, and the paper's mIoU there, in percent."""

    of: str
    output_stride: int
    published: float

    @property
    def name(self) -> str:
        return f"{self.of}-test"


Stage = Training | Evaluation | Submission


class Sequence(NamedTuple):
    """Everything for one data set."""

    dataset: str
    backbone: str
    weights: str  # where the ImageNet weights are looked for
    stages: tuple[Stage, ...]

    @property
    def trainings(self) -> tuple[Training, ...]:
        return tuple(stage for stage in self.stages if isinstance(stage, Training))


# Table 5, the rows with SC and COCO; then "Test set results" of section 4.3. The paper's 87.8 % is
# of a network trained and evaluated at output stride 8, with six scales and mirrored photos. A
# network trained on trainval is not evaluated on val, which is a part of it.
VOC = Sequence(
    "voc",
    "xception_65",
    "weights/xception65-imagenet",
    (
        Training("coco", "xception65-coco", IMAGENET),
        Training("trainaug", "xception65-voc-from-coco", "coco"),
        Evaluation("trainaug", 16, published=82.20),
        Evaluation("trainaug", 8, published=82.45),
        Evaluation("trainaug", 16, multi_scale=True, published=83.34),
        Evaluation("trainaug", 8, multi_scale=True, published=83.58),
        Training("trainval", "xception65-voc-trainval", "trainaug"),
        Submission("trainval", 8, published=87.8),
    ),
)
# Table 7. The paper's single figure on val is at its own output stride, without scales or flip.
CITYSCAPES = Sequence(
    "cityscapes",
    "xception_71",
    "weights/xception71-imagenet",
    (
        Training("fine", "xception71-cityscapes", IMAGENET),
        Evaluation("fine", 16, published=79.55),
        Evaluation("fine", 8),
        Evaluation("fine", 8, multi_scale=True),
        Training("coarse", "xception71-cityscapes-coarse", "fine"),
        Training("coarse-fine", "xception71-cityscapes-coarse-fine", "coarse"),
        Evaluation("coarse-fine", 16),
        Evaluation("coarse-fine", 8, multi_scale=True),
        Submission("coarse-fine", 8, published=82.1),
    ),
)
SEQUENCES = {sequence.dataset: sequence for sequence in (VOC, CITYSCAPES)}

"""The label tools' formats by name."""

from __future__ import annotations

from annotations import coco, cvat, labelme, labelstudio, pictures, yolo
from annotations.files import Reader

READERS: dict[str, Reader] = {
    "coco": coco.read,
    "labelme": labelme.read,
    "cvat": cvat.read,
    "labelstudio": labelstudio.read,
    "voc-colours": pictures.read_colors,
    "yolo-seg": yolo.read,
    "cityscapes-like": pictures.read_cityscapes,
}

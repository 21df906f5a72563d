"""Make a model of the service from a segmentation network of another library.

`python -m export.adopt ANY.onnx -o FILE.onnx --classes ... --mean ... --std ...`
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper
from pydantic import ValidationError

from export import foreign as reading
from export.foreign import AdoptError, Foreign, Kind, Layout, Original, Preparation, Size, Triple
from export.names import NamesError, read_names
from export.optional import on_request
from export.parity import BATCHES, ParityError, require, test_images
from export.wrap import wrapped
from export.writer import serialized, strip, write
from model import arguments
from model.data.pairs import Color
from model.pydantic_errors import mistakes
from service.errors import ServiceError
from service.images.imaging import open_checked
from service.images.prepare import fitted
from service.inference.contract import INPUT, LEAST_SIDE, Contract, InputSize, Parity
from service.inference.digest import contract_digest, graph_digest
from service.settings import SAMPLES

EXAMPLES = """\
examples:
  python -m export.adopt segformer.onnx -o models/segformer.onnx --classes config.json \\
      --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225
  python -m export.adopt smp.onnx -o models/roads.onnx --classes ground,road --size 512,512 \\
      --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --confidence
  python -m export.adopt mmseg.onnx -o models/streets.onnx --classes cityscapes \\
      --mean 123.675,116.28,103.53 --std 58.395,57.12,57.375
"""
IMAGENET = "--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225"
MOST_PHOTOS = 8  # to check with
MOST_PIXELS = 10**8  # of one of them
CLASSES_SHOWN = 4
ONE_CLASS = (
    "every photo has one class only: if there should be more, check --mean, --std, --range and "
    "--channels, or check with photos of your own: --photos DIR"
)

Truth = tuple[NDArray[np.int64], NDArray[np.float32]]  # labels (H, W), scores (K, H, W)


@dataclass(frozen=True)
class AdoptOptions:
    """The facts that only the network's library knows, and the choices for the new file."""

    classes: tuple[str, ...]
    palette: tuple[Color, ...]
    preparation: Preparation
    name: str  # name of the network, for display
    layout: Layout | None = None  # None: found in the file, here and below
    size: Size | None = None
    output: str | None = None
    kind: Kind | None = None
    align_corners: bool = False
    confidence: bool = False
    photos: Path | None = None  # folder to check with; None: the service's samples


@dataclass(frozen=True)
class Adopted:
    """The contract of the new file, and its result on the photos."""

    contract: Contract
    foreign: Foreign
    in_batches: bool
    shares: dict[str, dict[str, float]]  # photo -> class -> share of its pixels, largest first


def adopt(source: Path, target: Path, options: AdoptOptions) -> Adopted:
    """Write `target` after a comparison with `source`; any error leaves it as it was.

    Raises AdoptError for a network that does not fit the options, and ParityError when the
    new file disagrees with the network.
    """
    model, digest = reading.read(source)
    image = reading.find_input(model)
    _check_preparation(image, options.preparation)
    layout = reading.find_layout(image, options.layout)
    height, width = size = reading.find_size(image, layout, options.size)
    target_size = InputSize(
        policy="fixed", height=height, width=width, pad=options.preparation.pad()
    )
    photos = _photos(target_size, options.photos)
    images = [*photos.values(), *test_images(target_size)[-2:]]  # the last two are noise
    original = Original(source, image)
    outputs = [original.outputs(each, options.preparation, layout) for each in images]
    name = reading.choose_output(outputs[0], options.output)
    raw = [each[name] for each in outputs]
    kind, axis = _meaning(raw, options, layout)
    foreign = Foreign(
        model=model,
        digest=digest,
        input=image.name,
        input_type=image.type.tensor_type.elem_type,
        layout=layout,
        size=size,
        preparation=options.preparation,
        output=name,
        output_type=helper.np_dtype_to_tensor_dtype(raw[0].dtype),
        output_shape=raw[0].shape,
        kind=kind,
        classes=len(options.classes),
        class_axis=axis,
        align_corners=options.align_corners,
    )
    truths = [reading.truth(foreign, each) for each in raw]
    _check_labels([labels for labels, _ in truths], len(options.classes))
    proto, in_batches, parity = _compared(foreign, images, truths, options.confidence)
    final = strip(on_request(proto)) if kind != "labels" else proto
    contract = _sealed(_contract(foreign, target_size, parity, options, source), final)
    write(final, contract, target)
    shares = {
        photo: _shares(labels, options.classes)
        for photo, (labels, _) in zip(photos, truths, strict=False)
    }
    return Adopted(contract, foreign, in_batches, shares)


def _check_preparation(image: onnx.ValueInfoProto, preparation: Preparation) -> None:
    """Raise AdoptError if --mean and --std are given for bytes, or missing for numbers."""
    takes_bytes = image.type.tensor_type.elem_type == TensorProto.UINT8
    if takes_bytes and preparation.mean is not None:
        raise AdoptError(f"input {image.name} takes bytes: leave --mean and --std out")
    if not takes_bytes and preparation.mean is None:
        raise AdoptError(
            f"input {image.name} takes numbers: give --mean and --std as in training (ImageNet's "
            f"are {IMAGENET}; for none, --mean 0,0,0 --std 1,1,1 with --range 1 or 255)"
        )


def _photos(target: InputSize, folder: Path | None) -> dict[str, NDArray[np.uint8]]:
    """The photos to check with by name, fitted as the service fits them."""
    found: dict[str, NDArray[np.uint8]] = {}
    for path in sorted((folder or SAMPLES).iterdir()):
        if len(found) == MOST_PHOTOS or not path.is_file():
            continue
        try:
            photo = fitted(open_checked(path.read_bytes(), MOST_PIXELS), target)
        except ServiceError:
            continue  # another file among the photos
        found[path.name] = photo.pixels
    if not found:
        raise AdoptError(f"--photos {folder}: it holds no photo")
    return found


def _meaning(
    raw: Sequence[NDArray[Any]], options: AdoptOptions, layout: Layout
) -> tuple[Kind, int]:
    """Return the kind of the output, and the axis of the classes in scores."""
    first = raw[0]
    if first.dtype.kind in "iu":
        if options.kind not in {None, "labels"} or not reading.is_label_map(first.shape):
            raise AdoptError(
                f"the output has whole numbers of the shape {list(first.shape)}: "
                "label maps have one for each pixel"
            )
        return "labels", 0
    if options.kind == "labels":
        raise AdoptError(f"--kind labels: the output has the type {first.dtype}, not whole numbers")
    axis = reading.find_class_axis(first.shape, len(options.classes), layout)
    if not all(np.isfinite(each).all() for each in raw):
        raise AdoptError("the scores are not all finite: check --mean, --std and --range")
    return options.kind or reading.kind_of_scores(raw, axis), axis


def _check_labels(labels: Sequence[NDArray[np.int64]], classes: int) -> None:
    lowest, highest = min(each.min() for each in labels), max(each.max() for each in labels)
    if lowest < 0 or highest >= classes:
        raise AdoptError(
            f"the network gives labels from {lowest} to {highest}, "
            f"but --classes names {classes}: 0 to {classes - 1}"
        )


def _compared(
    foreign: Foreign,
    images: Sequence[NDArray[np.uint8]],
    truths: Sequence[Truth],
    confidence: bool,
) -> tuple[onnx.ModelProto, bool, Parity]:
    """Wrap the network; return whether it takes batches, and how much it differs from the original.

    Many exporters write the batch of their example into the graph. Whether a network takes
    several photos is therefore tried: its labels must be those that it gives one by one.
    """
    proto = wrapped(foreign, in_batches=True, confidence=confidence)
    try:
        measured = compare(proto, images, truths)
        require(measured, "fp32")
        return proto, True, measured
    except (ParityError, AdoptError):
        proto = wrapped(foreign, in_batches=False, confidence=confidence)
    measured = compare(proto, images, truths)
    require(measured, _precision(foreign))
    return proto, False, measured


def compare(
    proto: onnx.ModelProto, images: Sequence[NDArray[np.uint8]], truths: Sequence[Truth]
) -> Parity:
    """Run the file on batches of several sizes, and compare it with the original's results."""
    options = ort.SessionOptions()
    options.log_severity_level = 4  # a network without batches fails, and is wrapped differently
    equal = pixels = 0
    error, deviations = 0.0, [0.0]
    try:
        session = ort.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        for batch in BATCHES:
            for start in range(0, len(images), batch):
                part = slice(start, start + batch)
                labels, *scores = session.run(None, {INPUT: np.stack(images[part])})[:2]
                exact = np.stack([each for each, _ in truths[part]])
                equal += int((labels == exact).sum())
                pixels += exact.size
                if scores:
                    wanted = np.stack([each for _, each in truths[part]])
                    error = max(error, float(np.abs(scores[0] - wanted).max()))
                    deviations.append(float(wanted.std()))
    except Exception as problem:  # ONNX Runtime's exceptions have no common base class
        raise AdoptError(f"the new file does not run: {reading.line(problem)}") from None
    return Parity(
        images=len(images) * len(BATCHES),
        pixels=pixels,
        agreement=equal / pixels,
        max_logit_error=error,
        logit_std=max(deviations),
    )


def _precision(foreign: Foreign) -> str:
    return "fp16" if foreign.input_type == TensorProto.FLOAT16 else "fp32"


def _contract(
    foreign: Foreign, target: InputSize, parity: Parity, options: AdoptOptions, source: Path
) -> Contract:
    return Contract(
        classes=options.classes,
        palette=options.palette,
        input=target,
        backbone=options.name,
        output_stride=None,
        precision=_precision(foreign),
        confidence=options.confidence and foreign.kind != "labels",
        checkpoint_sha256=foreign.digest,
        metrics={"adopted_from": source.name},
        parity=parity,
    )


def _sealed(contract: Contract, proto: onnx.ModelProto) -> Contract:
    """The contract with the digests of the file and of itself."""
    contract = contract.model_copy(update={"graph_sha256": graph_digest(serialized(proto))})
    digest = contract_digest(contract.model_dump_json())
    return contract.model_copy(update={"contract_sha256": digest})


def _shares(labels: NDArray[np.int64], classes: Sequence[str]) -> dict[str, float]:
    counts = np.bincount(labels.ravel(), minlength=len(classes)) / labels.size
    order = np.argsort(-counts, kind="stable")
    return {classes[number]: float(counts[number]) for number in order if counts[number]}


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m export.adopt",
        description="Make a model of the service from another library's segmentation network.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLES,
    )
    p.add_argument(
        "source", type=Path, metavar="ANY.onnx", help="takes photos; gives scores or labels"
    )
    p.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE.onnx", help="the new file"
    )
    p.add_argument(
        "--classes",
        required=True,
        metavar="NAMES",
        help="voc, cityscapes, camvid, a list, or a file: a name a line, or JSON (id2label)",
    )
    p.add_argument("--name", help="name of the network in the contract (default: the file's)")
    p.add_argument("--confidence", action="store_true", help="also return the label's probability")
    p.add_argument("--photos", type=Path, metavar="DIR", help="photos to check with (two samples)")
    _add_input(p)
    _add_output(p)
    return p


def _add_input(p: argparse.ArgumentParser) -> None:
    add = p.add_argument_group("the network's input").add_argument
    add("--mean", type=triple, metavar="R,G,B", help="subtracted, in the order of --channels")
    add("--std", type=triple, metavar="R,G,B", help="divided by")
    white = "white before --mean and --std: 1 or 255 (255 if one of them has values above 1)"
    add("--range", type=float, choices=(1.0, 255.0), help=white)
    add("--channels", choices=("rgb", "bgr"), default="rgb", help="order of the colours (rgb)")
    layout = "order of the dimensions (as the shape shows it)"
    add("--layout", choices=("nchw", "nhwc"), help=layout)
    size = "photos are fitted into it, if the network takes any size (512,512)"
    add("--size", type=_size, metavar="H,W", help=size)


def _add_output(p: argparse.ArgumentParser) -> None:
    add = p.add_argument_group("the network's output").add_argument
    add("--output-name", metavar="NAME", help="if there are several")
    kinds = "what it is (as a run on the photos shows it)"
    add("--kind", choices=("logits", "probabilities", "labels"), help=kinds)
    corners = "enlarge scores from corner to corner, as some older networks do"
    add("--align-corners", action="store_true", help=corners)


def triple(text: str) -> Triple:
    """Parse three numbers, or one for all."""
    values = [float(part) for part in text.split(",")]
    if len(values) not in {1, 3}:
        raise argparse.ArgumentTypeError(f"{text!r}: three numbers, or one for all")
    first, second, third = values * (3 // len(values))
    return first, second, third


def _size(text: str) -> Size:
    sides = arguments.size(text)
    if min(sides) < LEAST_SIDE:
        raise argparse.ArgumentTypeError(f"{text!r}: both sides must be at least {LEAST_SIDE}")
    return sides


def preparation(args: argparse.Namespace) -> Preparation:
    """The preparation of a parsed command line; raises AdoptError."""
    if (args.mean is None) != (args.std is None):
        raise AdoptError("give both --mean and --std, or none of them")
    values = (*(args.mean or ()), *(args.std or ()))
    if args.std is not None and min(args.std) <= 0:
        raise AdoptError("--std divides: all values must be above 0")
    highest = args.range or (255.0 if any(value > 1 for value in values) else 1.0)
    if args.range is None and values == (0.0,) * 3 + (1.0,) * 3:
        raise AdoptError("say with --range whether white is 1 or 255 for this network")
    return Preparation(args.mean, args.std, highest, args.channels)


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        classes, palette = read_names(args.classes)
        options = AdoptOptions(
            classes=classes,
            palette=palette,
            preparation=preparation(args),
            name=args.name or args.source.stem,
            layout=args.layout,
            size=args.size,
            output=args.output_name,
            kind=args.kind,
            align_corners=args.align_corners,
            confidence=args.confidence,
            photos=args.photos,
        )
        adopted = adopt(args.source, args.output, options)
    except (AdoptError, NamesError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ValidationError as error:
        print(f"error: {mistakes(error)}", file=sys.stderr)
        return 1
    except (ParityError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(told(args.output, adopted))
    return 0


def told(path: Path, adopted: Adopted) -> str:
    """Describe the network, the comparison, and the classes it finds in the photos."""
    foreign, parity = adopted.foreign, adopted.contract.parity
    height, width = foreign.output_size
    batches = "in batches" if adopted.in_batches else "one photo at a time"
    size = f"{foreign.size[0]} x {foreign.size[1]}"
    found = f"input {foreign.layout} {size}, {foreign.kind} {height} x {width}, {batches}"
    error = f"largest error {parity.max_logit_error:.2g} (std {parity.logit_std:.2g})"
    lines = [
        f"{path}: {path.stat().st_size / 1e6:.1f} MB, {found}",
        f"{parity.agreement:.4%} of {parity.pixels} labels as the original, {error}",
    ]
    for photo, shares in adopted.shares.items():
        largest = list(shares.items())[:CLASSES_SHOWN]
        more = ", ..." if len(shares) > CLASSES_SHOWN else ""
        lines.append(f"{photo}: {', '.join(f'{name} {part:.0%}' for name, part in largest)}{more}")
    if all(len(shares) == 1 for shares in adopted.shares.values()):
        lines.append(ONE_CLASS)
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())

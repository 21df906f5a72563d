"""A Label Studio ML backend: `python -m service.label_studio URL`.

Label Studio calls `/health`, `/setup` and `/predict` (https://labelstud.io/guide/ml_create). The
photos are requested from Label Studio itself, or read from its folder of local files.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from annotations.writers import label_studio_results
from annotations.writing import Form
from service.client import Client, ClientError, UnreachableError, UsageError
from service.client.files import MOST_BYTES, read_photo
from service.client.outputs import inside
from service.client.plain import sentence
from service.client.protocol import check_url
from service.client.route import route
from service.label_tools.drafts import Drafter, matched

log = logging.getLogger("service.label_tools")

LOCAL_FILES = "/data/local-files/"
MOST_BODY = 16 << 20  # bytes of a request: tasks, without photos
TIMEOUT_S = 30.0  # of a photo's host, to connect and between two packets
FORMS: dict[str, Form] = {"PolygonLabels": "polygons", "BrushLabels": "masks"}


class RequestError(ValueError):
    """A request that cannot be answered; the message says what to change."""


class Control(NamedTuple):
    """The tag of a labelling interface that takes shapes."""

    name: str
    to_name: str
    data_key: str  # the task's field with the photo
    form: Form
    labels: tuple[str, ...]


def control(config: str, preferred: Form | None = None) -> Control:
    """Find the tag for shapes in a labelling interface; of several, the preferred kind.

    Raises RequestError if the interface has no such tag.
    """
    try:
        root = ET.fromstring(config)
    except ET.ParseError as error:
        raise RequestError(f"the labelling interface is no XML: {error}") from None
    images = {each.get("name"): each.get("value", "") for each in root.iter("Image")}
    found = []
    for tag, form in FORMS.items():
        for element in root.iter(tag):
            to_name = element.get("toName", "")
            labels = tuple(each.get("value", "") for each in element.iter("Label"))
            key = images.get(to_name, "").removeprefix("$")
            found.append(Control(element.get("name", ""), to_name, key, form, labels))
    if not found:
        raise RequestError("the labelling interface has neither PolygonLabels nor BrushLabels")
    return next((each for each in found if each.form == preferred), found[0])


@dataclass
class PhotoSource:
    """The source of the tasks' photos.

    Only Label Studio and the named hosts are contacted, because a task may contain any address.
    """

    label_studio: str | None = None  # its URL
    token: str | None = None
    local_files: Path | None = None  # Label Studio's folder of local files
    hosts: tuple[str, ...] = ()
    transport: httpx.BaseTransport | None = None  # None: the network
    _connections: dict[str, httpx.Client] = field(default_factory=dict)  # by scheme, host and port

    def __post_init__(self) -> None:
        """Raise UsageError for an invalid URL of Label Studio or an invalid proxy variable."""
        if self.label_studio is not None:
            self._connection(check_url(self.label_studio))

    def read(self, address: str) -> bytes:
        """Return the bytes of a photo.

        Raises RequestError, UsageError for an invalid proxy variable, OSError and httpx's errors.
        """
        parts = urlsplit(address)
        local = parse_qs(parts.query).get("d")
        if self.local_files is not None and parts.path == LOCAL_FILES and local:
            return read_photo(inside(self.local_files, local[0]))
        if not parts.scheme and address.startswith("/"):
            if self.label_studio is None:
                raise RequestError(f"{address}: give --label-studio URL, where the photo is")
            return self._ask(self.label_studio.rstrip("/") + address, self._headers())
        if parts.scheme not in ("http", "https"):
            raise RequestError(f"{address}: photos of {parts.scheme}: are not read; presign them")
        own = urlsplit(self.label_studio or "").netloc
        if parts.netloc == own:
            return self._ask(address, self._headers())
        if parts.hostname not in self.hosts:
            raise RequestError(f"{address}: give --photo-host {parts.hostname} to allow it")
        return self._ask(address, {})

    def _ask(self, url: str, headers: dict[str, str]) -> bytes:
        try:
            return self._content(url, headers)
        except httpx.RequestError as error:
            raise route(url).explained(error) from error

    def _content(self, url: str, headers: dict[str, str]) -> bytes:
        pieces, size = [], 0
        with self._connection(url).stream("GET", url, headers=headers) as response:
            response.raise_for_status()
            for piece in response.iter_bytes():
                pieces.append(piece)
                size += len(piece)
                if size > MOST_BYTES:
                    raise RequestError(f"{url} is larger than any photo")
            if response.status_code != 200:
                raise RequestError(f"{url} answers {response.status_code}: no photo")
        return b"".join(pieces)

    def _connection(self, url: str) -> httpx.Client:
        """Return the connection to the host of a URL, by the variables of the environment."""
        parts = urlsplit(url)
        origin = f"{parts.scheme}://{parts.netloc}"
        if origin not in self._connections:
            way = route(url)
            self._connections[origin] = httpx.Client(
                proxy=way.proxy,
                transport=self.transport,
                verify=way.tls,
                trust_env=False,  # `route` has read the environment
                timeout=TIMEOUT_S,
            )
        return self._connections[origin]

    def _headers(self) -> dict[str, str]:
        """Label Studio's older tokens are sent as they are; the newer ones are exchanged."""
        if self.token is None:
            return {}
        if self.token.count(".") != 2:
            return {"Authorization": f"Token {self.token}"}
        url = (self.label_studio or "").rstrip("/") + "/api/token/refresh"
        answer = self._connection(url).post(url, json={"refresh": self.token})
        answer.raise_for_status()
        return {"Authorization": f"Bearer {answer.json()['access']}"}


@dataclass
class Backend:
    """The answers to Label Studio."""

    drafter: Drafter
    photos: PhotoSource
    wanted: Mapping[str, str] = field(default_factory=dict)  # class of the model -> label
    form: Form | None = None  # None: the kind that the labelling interface takes

    def setup(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Check that the labelling interface and the model fit; Label Studio shows the version."""
        about = self.drafter.about()
        if body.get("schema"):
            tag = control(str(body["schema"]), self.form)
            if not matched(about.classes, self.wanted, tag.labels):
                raise RequestError(
                    f"no class of {about.name} ({', '.join(about.classes)}) is a label of "
                    f"{tag.name} ({', '.join(tag.labels)}): name labels so, or start with --map"
                )
        return {"model_version": f"{about.name} {(about.digest or '')[:12]}".strip()}

    def predict(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return a prediction for each task; a failed task gets an empty one with the reason."""
        tasks = body.get("tasks")
        if not isinstance(tasks, list) or not body.get("label_config"):
            raise RequestError("the request has no list of tasks or no label_config")
        tag = control(str(body["label_config"]), self.form)
        labels = matched(self.drafter.about().classes, self.wanted, tag.labels)
        return {"results": [self._one(task, tag, labels) for task in tasks]}

    def _one(self, task: Any, tag: Control, labels: Mapping[int, str]) -> dict[str, Any]:
        try:
            address = str(task["data"][tag.data_key])
            draft = self.drafter.draft(self.photos.read(address), address, labels, tag.form)
        except UnreachableError:
            raise  # the same for every task
        except (KeyError, TypeError):
            return _failed(f"the task has no data.{tag.data_key}")
        except (ClientError, OSError, ValueError, httpx.HTTPError) as error:
            return _failed(sentence(error))
        results = label_studio_results(draft.photo, draft.pieces, tag.name, tag.to_name)
        scores = [piece.score for piece in draft.pieces if piece.score is not None]
        score = {"score": round(sum(scores) / len(scores), 4)} if scores else {}
        return {"model_version": draft.model, "result": results, **score}


def _failed(reason: str) -> dict[str, Any]:
    log.warning("a task has no prediction: %s", reason)
    return {"result": [], "score": 0.0, "error": reason}


def create_app(backend: Backend) -> Starlette:
    """The ASGI application."""

    async def answer(request: Request) -> JSONResponse:
        work = {"/setup": backend.setup, "/predict": backend.predict}[request.url.path]
        try:
            body = await _body(request)
            return JSONResponse(await run_in_threadpool(work, body))
        except RequestError as error:
            return JSONResponse({"error": str(error)}, 400)
        except ClientError as error:
            return JSONResponse({"error": sentence(error)}, 503)

    async def health(_: Request) -> JSONResponse:
        return JSONResponse({"status": "UP", "model_class": "DeepLabv3+"})

    async def ignored(_: Request) -> JSONResponse:
        """Ignore the events and training requests of Label Studio."""
        return JSONResponse({"status": "ignored"}, 201)

    return Starlette(
        routes=[
            Route("/", health),
            Route("/health", health),
            Route("/setup", answer, methods=["POST"]),
            Route("/predict", answer, methods=["POST"]),
            Route("/webhook", ignored, methods=["POST"]),
            Route("/train", ignored, methods=["POST"]),
        ]
    )


async def _body(request: Request) -> dict[str, Any]:
    """Parse a JSON object; raises RequestError if it is something else or too large."""
    content = b""
    async for piece in request.stream():
        content += piece
        if len(content) > MOST_BODY:
            raise RequestError(f"the request has more than {MOST_BODY >> 20} MiB")
    try:
        body = httpx.Response(200, content=content).json()
    except ValueError as error:
        raise RequestError(f"the request is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise RequestError("the request is not a JSON object")
    return body


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    p = argparse.ArgumentParser(
        prog="python -m service.label_studio",
        description="Draft labels in Label Studio: an ML backend that uses a running service.",
        epilog="example:\n  python -m service.label_studio http://localhost:8000 \\\n"
        "      --label-studio http://localhost:8080 --token ...",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = p.add_argument
    add("url", metavar="URL", help="URL of the service, such as http://localhost:8000")
    add("--model", metavar="NAME", help="name of the model (default: the service's default model)")
    add("--label-studio", metavar="URL", help="URL of Label Studio, to read its photos")
    token = "access token of Label Studio; other users of this machine see flags, so set "
    token += "LABEL_STUDIO_API_KEY instead"
    add("--token", default=os.environ.get("LABEL_STUDIO_API_KEY"), help=token)
    add("--local-files", type=Path, metavar="DIR", help="folder of Label Studio's local files")
    hosts = "read photos of this host too; may be repeated"
    add("--photo-host", action="append", default=[], metavar="HOST", help=hosts)
    add(
        "--map",
        default="",
        metavar="A=B,C=D",
        help="labels of the project for classes of the model",
    )
    shapes = "kind of shapes, if the interface takes both (default: polygons)"
    add("--shapes", choices=("polygons", "masks"), help=shapes)
    add(
        "--tolerance",
        type=float,
        default=1.0,
        metavar="PX",
        help="move the outline of polygons by up to PX pixels to simplify them (default: 1)",
    )
    add(
        "--min-area",
        type=int,
        default=50,
        metavar="PX",
        help="leave out regions of fewer than PX pixels (default: 50)",
    )
    add(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: 127.0.0.1, this machine only)",
    )
    add("--port", type=int, default=9090, help="port to listen on (default: 9090)")
    add(
        "--api-key",
        default=os.environ.get("DEEPLAB_API_KEY"),
        help="API key of the service; other users see flags, so set DEEPLAB_API_KEY instead",
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until stopped; 2 if the service does not have the model."""
    options = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    try:
        with Client(options.url, api_key=options.api_key) as client:
            app = create_app(_backend(options, client))
            uvicorn.run(app, host=options.host, port=options.port, log_level="info")
    except ClientError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


def _backend(options: argparse.Namespace, client: Client) -> Backend:
    """The backend that the options describe; raises ClientError without its model."""
    drafter = Drafter(client, options.model, tolerance=options.tolerance, min_area=options.min_area)
    about = drafter.about()
    log.info("%s drafts %s", about.name, ", ".join(about.classes))
    photos = PhotoSource(
        options.label_studio, options.token, options.local_files, tuple(options.photo_host)
    )
    return Backend(drafter, photos, wanted_labels(options.map, about.classes), options.shapes)


def wanted_labels(text: str, classes: Sequence[str]) -> dict[str, str]:
    """Parse --map: `cat=Animal` -> {"cat": "Animal"}; raises UsageError for an unknown class."""
    wanted = {}
    for word in filter(None, (word.strip() for word in text.split(","))):
        name, _, label = (part.strip() for part in word.partition("="))
        if not label or name not in classes:
            raise UsageError(f"--map {word}: give CLASS=LABEL; classes are {', '.join(classes)}")
        wanted[name] = label
    return wanted

"""Let a Label Studio fetch predictions from a backend, and read them by its own converter.

Run by the Python of an environment with `label-studio`; the tests' own has none. Arguments: the
port for Label Studio, the backend's URL, a photo, a folder to work in. Writes `answers.json`, and
the brushes of each label as .npy.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import requests
from label_studio_sdk.converter import Converter, brush
from label_studio_sdk.label_interface import LabelInterface

EMAIL, PASSWORD, TOKEN = (
    "a@example.com",
    "not-a-secret-1",
    "0123456789abcdef0123456789abcdef01234567",
)
LABELS = ("dim", "bright")
START_S = 300


def interface(tag: str) -> str:
    labels = "".join(f'<Label value="{label}"/>' for label in LABELS)
    return (
        f'<View><Image name="pic" value="$image"/><{tag} name="shapes" toName="pic">{labels}'
        f"</{tag}></View>"
    )


class Studio:
    def __init__(self, port: str, folder: Path) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.http = requests.Session()
        self.http.headers["Authorization"] = f"Token {TOKEN}"
        os.environ |= {
            "ML_BLOCK_LOCAL_IP": "false",  # the backend is on this machine
            "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
            "COLLECT_ANALYTICS": "false",
            "LATEST_VERSION_CHECK": "false",
        }
        program = str(Path(sys.executable).parent / "label-studio")
        command = [program, "start", "--no-browser"]
        command += ["--port", str(port), "--data-dir", str(folder / "studio"), "--username", EMAIL]
        command += ["--password", PASSWORD, "--user-token", TOKEN]
        self.log = (folder / "studio.log").open("w")
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)

    def wait(self) -> None:
        for _ in range(START_S):
            try:
                if self.http.get(f"{self.url}/health", timeout=5).ok:
                    return
            except requests.RequestException:
                pass
            if self.process.poll() is not None:
                raise SystemExit("Label Studio ended: see studio.log")
            time.sleep(1)
        raise SystemExit("Label Studio did not start")

    def ask(self, method: str, path: str, **options: Any) -> Any:
        answer = self.http.request(method, self.url + path, timeout=60, **options)
        answer.raise_for_status()
        return answer.json() if answer.content else None


def predicted(studio: Studio, backend: str, tag: str, photo: Path) -> tuple[Any, Any]:
    """A new project's task with the predictions that Label Studio fetched for it."""
    project = studio.ask(
        "POST", "/api/projects", json={"title": tag, "label_config": interface(tag)}
    )
    where = f"/api/projects/{project['id']}/import"
    with photo.open("rb") as file:
        studio.ask("POST", where, files={"file": (photo.name, file, "image/png")})
    connection = {"url": backend, "project": project["id"], "title": "backend"}
    added = studio.http.post(f"{studio.url}/api/ml/", json=connection, timeout=60)
    assert added.status_code in {201, 403}, added.text  # 403: the webhook, see docs/labels.md
    (connected,) = studio.ask("GET", f"/api/ml/?project={project['id']}")
    assert connected["state"] == "CO", connected
    action = f"/api/dm/actions?id=retrieve_tasks_predictions&project={project['id']}"
    chosen = {"selectedItems": {"all": True, "excluded": []}}
    studio.ask("POST", action, json=chosen)
    (task,) = studio.ask("GET", f"/api/tasks?project={project['id']}&fields=all")["tasks"]
    return connected, studio.ask("GET", f"/api/tasks/{task['id']}")


def brushes(task: Any) -> dict[str, Any]:
    """Masks by label, decoded by Label Studio's converter."""
    result = task["predictions"][0]["result"]
    shape = (result[0]["original_height"], result[0]["original_width"])
    layers = brush.decode_from_annotation("shapes", _flat(result))
    masks = {label: np.zeros(shape, bool) for label in LABELS}
    for name, layer in layers.items():
        label = next(label for label in LABELS if f"-{label}-" in f"-{name}-")
        masks[label] |= layer > 0
    return masks


def _flat(result: Any) -> list[Any]:
    """As the converter passes results on: values with their tag and size."""
    return [
        each["value"]
        | {"type": each["type"].lower()}
        | {key: each[key] for key in ("original_width", "original_height")}
        for each in result
    ]


def polygons(task: Any, folder: Path) -> list[Any]:
    """Outlines by label in pixels, from the COCO file that Label Studio's converter writes."""
    source = folder / "polygons.json"
    done = task | {"annotations": task["predictions"], "predictions": []}
    source.write_text(json.dumps([done]))
    converter = Converter(interface("PolygonLabels"), str(folder), download_resources=False)
    converter.convert_to_coco(
        str(source), str(folder / "coco"), output_image_dir=str(folder / "images"), is_dir=False
    )
    coco = json.loads((folder / "coco" / "result.json").read_text())
    names = {each["id"]: each["name"] for each in coco["categories"]}
    return [(names[each["category_id"]], each["segmentation"]) for each in coco["annotations"]]


def main() -> None:
    port, backend, photo, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])
    studio = Studio(port, folder)
    try:
        studio.wait()
        connected, brushed = predicted(studio, backend, "BrushLabels", photo)
        for label, mask in brushes(brushed).items():
            np.save(folder / f"{label}.npy", mask)
        _, outlined = predicted(studio, backend, "PolygonLabels", photo)
        errors = {}
        for tag, task in (("BrushLabels", brushed), ("PolygonLabels", outlined)):
            found = {"result": task["predictions"][0]["result"]}
            errors[tag] = LabelInterface(interface(tag)).validate_prediction(
                found, return_errors=True
            )
        answers = {
            "model_version": connected["model_version"],
            "predictions": [len(each["predictions"]) for each in (brushed, outlined)],
            "polygons": polygons(outlined, folder),
            "errors": errors,
        }
        (folder / "answers.json").write_text(json.dumps(answers))
    finally:
        studio.process.terminate()
        studio.process.wait(20)
        studio.log.close()


if __name__ == "__main__":
    main()

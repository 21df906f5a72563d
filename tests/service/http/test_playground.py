"""The page in headless Chromium, as a user works with it."""

from __future__ import annotations

import base64
import io
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, Route, expect, sync_playwright

from postprocess.areas import Area
from postprocess.regions import without_holes, without_small
from postprocess.runs import MAX_RUNS
from service.http.playground import PAGE
from service.inference.contract import METADATA_KEY
from tests.service import onnx_models
from tests.service.processes import running
from tests.service.web import opened, photo, png, serving

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync")
PHOTO = photo(48, 60)
LABELS = onnx_models.expected(PHOTO)

# The limit for a slow machine; a fast one does not wait.
expect.set_options(timeout=30_000)

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on the PATH; on Debian: apt-get install chromium"
)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("models")
    onnx_models.save(folder / "plain.onnx")
    eight = onnx_models.contract(output_stride=8, scales=(0.75, 1.0), flip=True, precision="int8")
    metadata = {METADATA_KEY: eight.model_dump_json()}
    onnx_models.save(folder / "plain-os8.onnx", metadata, brightest=1)
    other = onnx_models.contract(
        checkpoint_sha256="1" * 64, confidence=True, probability_grid="centres"
    )
    metadata = {METADATA_KEY: other.model_dump_json()}
    onnx_models.save(
        folder / "sure.onnx", metadata, confidence=True, on_request=True, probabilities=True
    )
    with running(folder, "--default-model", "plain") as (url, _):
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """The page on a desktop; fails the test if the page reports an error."""
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = context.new_page()
    errors: list[str] = []
    elsewhere: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
    page.on(
        "request",
        lambda request: (
            None
            if request.url.startswith((address, "blob:", "data:"))
            else elsewhere.append(request.url)
        ),
    )
    page.goto(address)
    expect(page.locator("#model option")).to_have_count(2)
    yield page
    context.close()
    assert not errors
    assert not elsewhere


def pick(page: Page, body: bytes | None = None, name: str = "it's mine.png") -> None:
    page.locator("#file").set_input_files(
        {"name": name, "mimeType": "image/png", "buffer": body or png(PHOTO)}
    )


def legend(page: Page) -> Locator:
    return page.locator("#legend button")


def drawn(page: Page, canvas: str) -> np.ndarray:
    """The pixels of a canvas, (H, W, 4)."""
    data = page.evaluate(f"document.getElementById('{canvas}').toDataURL()")
    return opened(base64.b64decode(data.partition(",")[2]))


def share(label: int) -> str:
    percent = float(np.mean(label == LABELS)) * 100
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.1f} %"


@needs_chromium
def test_a_photo_that_is_picked_shows_its_mask_and_its_classes(page: Page) -> None:
    pick(page)
    expect(legend(page)).to_have_count(3)
    for label, name in enumerate(onnx_models.CLASSES):
        assert name in legend(page).all_inner_texts()[_place(label)]
        assert share(label) in legend(page).all_inner_texts()[_place(label)]
    mask = drawn(page, "mask")
    painted = LABELS > 0
    assert (mask[..., 3] == np.where(painted, 255, 0)).all()
    assert (mask[painted, :3] == np.array(onnx_models.PALETTE)[LABELS[painted]]).all()


def _place(label: int) -> int:
    """The position of a class in the legend, which starts with the largest."""
    counts = np.bincount(LABELS.ravel(), minlength=3)
    return [int(each) for each in np.argsort(-counts, kind="stable")].index(label)


@needs_chromium
def test_a_photo_can_be_dropped_and_pasted(page: Page) -> None:
    for event, carrier in (("drop", "dataTransfer"), ("paste", "clipboardData")):
        page.evaluate(
            """([event, carrier, body]) => {
                const bytes = Uint8Array.from(atob(body), (letter) => letter.charCodeAt(0));
                const data = new DataTransfer();
                data.items.add(new File([bytes], `${event}.png`, { type: "image/png" }));
                const Kind = event === "drop" ? DragEvent : ClipboardEvent;
                document.body.dispatchEvent(new Kind(event, { [carrier]: data, bubbles: true }));
            }""",
            [event, carrier, base64.b64encode(png(PHOTO)).decode()],
        )
        expect(page.locator("#curl")).to_contain_text(f"{event}.png")
        expect(legend(page)).to_have_count(3)


@needs_chromium
def test_a_photo_that_browsers_cannot_decode_is_shown_too(page: Page) -> None:
    tiff = io.BytesIO()
    Image.fromarray(PHOTO).save(tiff, "TIFF")
    pick(page, tiff.getvalue(), "scan.tif")
    expect(legend(page)).to_have_count(3)
    expect(page.locator("#photo")).not_to_have_js_property("naturalWidth", 0)
    expect(page.locator("#view")).to_be_visible()
    box = page.locator("#view").bounding_box()
    assert box is not None
    assert box["width"] / box["height"] == pytest.approx(60 / 48, rel=0.02)


@needs_chromium
def test_the_page_still_works_after_a_file_that_is_not_a_photo(
    browser: Browser, address: str
) -> None:
    page = browser.new_page()
    page.goto(address)
    expect(page.locator("#model option")).to_have_count(2)
    pick(page, b"no photo", "notes.txt")
    expect(page.locator("#error")).to_contain_text("JPEG, PNG")
    expect(page.locator("#drop")).to_be_visible()
    expect(page.locator("#view")).to_be_hidden()
    pick(page)
    expect(legend(page)).to_have_count(3)
    expect(page.locator("#view")).to_be_visible()
    expect(page.locator("#drop")).to_be_hidden()
    expect(page.locator("#error")).to_be_hidden()
    page.close()


@needs_chromium
def test_a_sample_is_one_click_away(page: Page) -> None:
    page.locator("[data-sample='cat.jpg']").click()
    expect(legend(page).first).to_be_visible()


@needs_chromium
def test_the_slider_blends_and_works_by_keyboard(page: Page) -> None:
    pick(page)
    expect(legend(page)).to_have_count(3)
    page.locator("#opacity").focus()
    page.keyboard.press("Home")
    expect(page.locator("#mask")).to_have_css("opacity", "0")
    page.keyboard.press("End")
    expect(page.locator("#mask")).to_have_css("opacity", "1")
    expect(page.locator("#percent")).to_have_text("100 %")
    page.locator("#outline").uncheck()
    expect(page.locator("#edges")).to_be_hidden()


@needs_chromium
def test_hovering_names_the_class_under_the_pointer(page: Page) -> None:
    pick(page)
    expect(legend(page)).to_have_count(3)
    for x, y in ((2, 2), (31, 22), (57, 46)):
        _move(page, x, y)
        name = onnx_models.CLASSES[LABELS[y, x]]
        expect(page.locator("#tip span")).to_have_text(name)
        expect(page.locator("#legend .lit")).to_contain_text(name)


@needs_chromium
def test_the_confidence_is_shown_if_the_model_has_one(page: Page) -> None:
    page.locator("#model").select_option("sure")
    pick(page)
    expect(legend(page).first).to_contain_text("% sure")
    _move(page, 12, 12)
    percent = round(int(PHOTO[12, 12, 0]) / 2.55)
    expect(page.locator("#tip span")).to_contain_text(f"{percent} % sure")


def slide(page: Page, slider: str, value: int) -> None:
    """Move a slider, as dragging and letting go of it does."""
    page.evaluate(
        """([id, value]) => {
            const slider = document.getElementById(id);
            slider.value = value;
            for (const kind of ["input", "change"]) slider.dispatchEvent(new Event(kind));
        }""",
        [slider, value],
    )


@needs_chromium
def test_the_least_confidence_works_at_once_and_as_in_the_service(page: Page, address: str) -> None:
    """No request is sent; picture, legend, saved mask and command agree with the service's."""
    expect(page.locator("#least-row")).to_be_hidden()  # this model has no confidence
    page.locator("#model").select_option("sure")
    pick(page)
    expect(legend(page)).to_have_count(3)
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    slide(page, "least", 60)
    query = {"model": "sure", "output": "mask", "min_confidence": "0.6", "below": "background"}
    answer = httpx.post(f"{address}/segment", params=query, files={"file": png(PHOTO)})
    wanted = opened(answer.content)
    assert (wanted != LABELS).any()
    assert (drawn(page, "mask")[..., 3] == np.where(wanted > 0, 255, 0)).all()
    expect(legend(page)).to_have_count(len(np.unique(wanted)))
    assert not requests
    expect(page.locator("#curl")).to_contain_text("min_confidence=0.6")
    with page.expect_download() as mask:
        page.locator("#get-mask").click()
    assert (opened(Path(mask.value.path()).read_bytes()) == wanted).all()
    slide(page, "least", 0)
    assert (drawn(page, "mask")[..., 3] == np.where(LABELS > 0, 255, 0)).all()


def wait_for_answer(page: Page) -> None:
    expect(page.locator("#busy")).to_be_hidden()
    expect(legend(page).first).to_be_visible()


def shown(page: Page) -> np.ndarray:
    """The labels that the page draws, (H, W), of a photo with one class in each pixel."""
    mask = drawn(page, "mask")
    colors = np.array(onnx_models.PALETTE)
    same = (mask[..., None, :3] == colors).all(axis=-1) & (mask[..., 3:] == 255)
    assert (same[..., 1:].any(axis=-1) | (mask[..., 3] == 0)).all()
    return np.where(mask[..., 3] == 0, 0, same.argmax(axis=-1))


def of_service(address: str, body: bytes, **query: str) -> np.ndarray:
    """The service's mask with the options of `query`, (H, W)."""
    answer = httpx.post(
        f"{address}/segment", params={"model": "sure", **query}, files={"file": body}
    )
    return opened(answer.raise_for_status().content)


# Blocks with specks and a hole for the sliders to remove.
SPECKLED = photo(6, 8).repeat(20, axis=0).repeat(20, axis=1)
SPECKLED[::3, ::4] = photo(40, 40)
SPECKLED[40:80, 40:80] = 130
SPECKLED[52:66, 52:66] = 0


@needs_chromium
@pytest.mark.parametrize(("least", "area", "holes"), [(0, 8, 0), (0, 0, 16), (40, 10, 17)])
def test_regions_are_cleaned_at_once_and_as_in_the_service(
    page: Page, address: str, least: int, area: int, holes: int
) -> None:
    """No request is sent, and no pixel differs from the service's mask."""
    page.locator("#model").select_option("sure")
    pick(page, png(SPECKLED))
    wait_for_answer(page)
    before = shown(page)
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    for slider, value in (("least", least), ("area", area), ("holes", holes)):
        slide(page, slider, value)
    assert not requests
    percents = page.evaluate("[percent('area'), percent('holes')]")
    query = {
        "min_confidence": str(least / 100),
        "min_area": f"{percents[0]}%",
        "fill_holes": f"{percents[1]}%",
    }
    wanted = of_service(address, png(SPECKLED), **query)
    assert (before != wanted).any()
    assert np.count_nonzero(shown(page) != wanted) == 0
    for option in (name for name, value in zip(query, (least, area, holes), strict=True) if value):
        expect(page.locator("#curl")).to_contain_text(f"{option}=")


@needs_chromium
def test_the_sliders_for_areas_say_what_they_mean(page: Page) -> None:
    pick(page)
    wait_for_answer(page)
    expect(page.locator("#area-text")).to_have_text("any")
    slide(page, "area", 12)
    expect(page.locator("#area-text")).to_have_text("1 %, 29 pixels")
    expect(page.locator("#area")).to_have_attribute("aria-valuetext", "1 %, 29 pixels")
    expect(page.locator("#curl")).to_contain_text("min_area=1%25")


@needs_chromium
def test_smooth_edges_are_asked_for_once_and_cleaned_as_in_the_service(
    page: Page, address: str
) -> None:
    """The service smooths; switching back and forth, and cleaning, then need no request."""
    page.locator("#model").select_option("sure")
    pick(page, png(SPECKLED))
    wait_for_answer(page)
    plain = shown(page)
    slide(page, "area", 8)
    with page.expect_response("**/segment**") as answered:
        page.locator("#smooth").check()
    assert "smooth=true" in answered.value.url
    assert "min_area" not in answered.value.url
    wait_for_answer(page)
    wanted = of_service(address, png(SPECKLED), smooth="true", min_area="0.2%")
    assert (plain != wanted).any()
    assert np.count_nonzero(shown(page) != wanted) == 0
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    slide(page, "area", 0)
    page.locator("#smooth").uncheck()
    wait_for_answer(page)
    assert (shown(page) == plain).all()
    page.locator("#smooth").check()
    wait_for_answer(page)
    assert not requests


CLEANED = """([width, height, data, least, most]) => {
    const map = regionsOf({ width, height, data });
    return [...painted(map, withoutHoles(map, withoutSmall(map, least), most)).data];
}"""


@needs_chromium
def test_the_page_cleans_any_map_as_postprocess_does(page: Page) -> None:
    """Regions around each other, ties, void, and maps of one row or column."""
    pick(page)
    wait_for_answer(page)
    random = np.random.default_rng(0)
    changed = 0
    for _ in range(60):
        height, width, least, most = random.integers(1, 24, 4).tolist()
        labels = random.choice(
            np.array([0, 1, 2, 255], np.uint8), (height, width), p=random.dirichlet(np.ones(4))
        )
        found = page.evaluate(CLEANED, [width, height, labels.ravel().tolist(), least, most])
        wanted = without_holes(without_small(labels, Area(least)), Area(most), {0, 255})
        assert (np.reshape(found, labels.shape) == wanted).all()
        changed += bool((wanted != labels).any())
    assert changed > 30


@needs_chromium
def test_a_map_of_noise_gets_a_message_instead_of_a_frozen_page(page: Page) -> None:
    """The limit is that of the service, which answers 413."""
    assert page.evaluate("MOST_RUNS") == MAX_RUNS
    stripes = "{ width: 2001, height: 1000, data: new Uint8Array(2001000).map((_, at) => at % 2) }"
    said = page.evaluate(
        f"(() => {{ try {{ regionsOf({stripes}); }} catch (e) {{ return e.message; }} }})()"
    )
    assert str(MAX_RUNS) in said
    assert "sliders" in said


@needs_chromium
@pytest.mark.parametrize(("button", "mode"), [("#get-cutout", "RGBA"), ("#get-blur", "RGB")])
def test_cutout_and_blurred_photo_are_saved(page: Page, button: str, mode: str) -> None:
    pick(page)
    expect(legend(page)).to_have_count(3)
    page.locator("#legend button", has_text="bright").click()
    assert downloaded(page, button).mode == mode


def downloaded(page: Page, button: str) -> Image.Image:
    with page.expect_download() as saved:
        page.locator(button).click()
    with Image.open(saved.value.path()) as image:
        image.load()
        return image


@needs_chromium
def test_the_rest_is_filled_with_the_chosen_colour(page: Page, address: str) -> None:
    """The file is the service's, with this colour."""
    pick(page)
    expect(legend(page)).to_have_count(3)
    page.locator("#fill").fill("#00ff00")
    query = {"model": "plain", "output": "replace", "fill": "00ff00"}
    answer = httpx.post(f"{address}/segment", params=query, files={"file": png(PHOTO)})
    expected = opened(answer.raise_for_status().content)
    assert (np.asarray(downloaded(page, "#get-replace")) == expected).all()


@needs_chromium
def test_photo_and_overlay_are_saved_side_by_side(page: Page) -> None:
    pick(page)
    expect(legend(page)).to_have_count(3)
    width, height = downloaded(page, "#get-side").size
    assert height == PHOTO.shape[0]
    assert width >= 2 * PHOTO.shape[1]


@needs_chromium
def test_a_heatmap_is_offered_where_the_model_has_probabilities(page: Page, address: str) -> None:
    """Of the largest class shown, by its name; the file is the service's."""
    pick(page)
    expect(legend(page)).to_have_count(3)
    button = page.locator("#get-heatmap")
    expect(button).to_be_hidden()
    page.locator("#model").select_option("sure")
    expect(button).to_be_enabled()
    largest = max(("dim", 1), ("bright", 2), key=lambda each: np.count_nonzero(each[1] == LABELS))
    expect(button).to_have_text(f"Heatmap of {largest[0]}")
    query = {"model": "sure", "output": "heatmap", "classes": largest[0]}
    answer = httpx.post(f"{address}/segment", params=query, files={"file": png(PHOTO)})
    expected = opened(answer.raise_for_status().content)
    assert (np.asarray(downloaded(page, "#get-heatmap")) == expected).all()
    page.locator("#legend button", has_text=largest[0]).click()
    expect(button).not_to_have_text(f"Heatmap of {largest[0]}")


@needs_chromium
def test_model_and_variant_are_switched_apart(page: Page) -> None:
    pick(page)
    expect(legend(page)).to_have_count(3)
    options = page.locator("#variant option").all_inner_texts()
    assert options == [
        "stride 16, fp32, 64 \N{MULTIPLICATION SIGN} 48",
        "stride 8, int8, 64 \N{MULTIPLICATION SIGN} 48, 2 scales, flipped",
    ]
    page.locator("#variant").select_option(options[1])
    expect(legend(page)).to_have_count(2)  # this model never gives "bright"
    expect(page.locator("#curl")).to_contain_text("model=plain-os8")
    page.locator("#model").select_option("sure")
    expect(page.locator("#variant")).to_be_hidden()  # there is only one
    expect(legend(page)).to_have_count(3)
    expect(page.locator("#curl")).to_contain_text("model=sure")
    page.locator("#model").select_option("plain")
    expect(page.locator("#curl")).to_contain_text("model=plain&")


@needs_chromium
def test_the_choice_of_a_model_works_by_keyboard(page: Page) -> None:
    pick(page)
    expect(legend(page)).to_have_count(3)
    page.locator("#model").focus()
    page.keyboard.press("Tab")
    expect(page.locator("#variant")).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(legend(page)).to_have_count(2)


def _move(page: Page, x: int, y: int) -> None:
    """Point at a pixel of the photo."""
    box = page.locator("#view").bounding_box()
    assert box
    height, width = LABELS.shape
    page.mouse.move(
        box["x"] + (x + 0.5) / width * box["width"], box["y"] + (y + 0.5) / height * box["height"]
    )


@needs_chromium
def test_arrow_keys_read_out_the_class_at_a_point(page: Page) -> None:
    pick(page)
    expect(legend(page)).to_have_count(3)
    page.locator("#view").focus()
    for _ in range(12):
        page.keyboard.press("Shift+ArrowLeft")
        page.keyboard.press("Shift+ArrowUp")
    expect(page.locator("#status")).to_have_text(onnx_models.CLASSES[LABELS[0, 0]])


@needs_chromium
def test_a_class_can_be_hidden(page: Page) -> None:
    pick(page)
    bright = page.locator("#legend button", has_text="bright")
    bright.press("Enter")
    expect(bright).to_have_attribute("aria-pressed", "false")
    page.mouse.move(1, 1)
    assert (drawn(page, "mask")[LABELS == 2, 3] == 0).all()
    expect(page.locator("#curl")).to_contain_text("output=overlay")


@needs_chromium
def test_what_is_saved_is_the_services_own_answer(page: Page) -> None:
    pick(page)
    expect(legend(page)).to_have_count(3)
    with page.expect_download() as mask:
        page.locator("#get-mask").click()
    assert mask.value.suggested_filename == "it's mine.mask.png"
    assert (opened(Path(mask.value.path()).read_bytes()) == LABELS).all()
    with page.expect_download() as overlay:
        page.locator("#get-overlay").click()
    assert opened(Path(overlay.value.path()).read_bytes()).shape == PHOTO.shape


@needs_chromium
def test_the_command_is_quoted_and_copied(page: Page, address: str) -> None:
    pick(page)
    page.locator("#copy").click()
    expect(page.locator("#copy")).to_have_text("Copied")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith(rf"curl -fsS -F 'file=@it'\''s mine.png' '{address}/segment?model=")


@needs_chromium
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("name", ["it's mine.png", "a,b;c.png", 'say "hi", \\;type=x.png'])
def test_the_command_runs_in_a_shell_whatever_the_file_is_called(
    page: Page, tmp_path: Path, name: str
) -> None:
    pick(page, name=name)
    (tmp_path / name).write_bytes(png(PHOTO))
    command = page.locator("#curl").text_content() or ""
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True, timeout=60)
    assert opened((tmp_path / "overlay.jpg").read_bytes()).shape == PHOTO.shape


@needs_chromium
def test_an_error_is_shown_and_the_next_photo_works(browser: Browser, address: str) -> None:
    page = browser.new_page()
    page.goto(address)
    expect(page.locator("#model option")).to_have_count(2)
    pick(page, b"no image at all")
    expect(page.get_by_role("alert")).to_contain_text("not an image of a known format")
    pick(page)
    expect(legend(page)).to_have_count(3)
    expect(page.locator("#error")).to_be_hidden()
    page.close()


@needs_chromium
def test_a_photo_picked_before_the_models_are_known_is_segmented(
    browser: Browser, address: str
) -> None:
    page = browser.new_page()
    held: list[Route] = []
    page.route("**/models", lambda route: held.append(route))  # noqa: PLW0108 - no builtins here
    page.goto(address)
    pick(page)
    expect(page.locator("#view")).to_be_visible()
    held[0].continue_()
    expect(legend(page)).to_have_count(3)
    page.close()


@needs_chromium
@pytest.mark.parametrize("width", [320, 390])
def test_a_phone_never_scrolls_sideways(browser: Browser, address: str, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 700})
    page.goto(address)
    pick(page, name="a" * 80 + ".png")
    expect(legend(page)).to_have_count(3)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.close()


def test_the_page_is_small_and_has_a_strict_policy(tmp_path: Path) -> None:
    onnx_models.save(tmp_path / "tiny.onnx")
    with serving(tmp_path) as client:
        answer = client.get("/")
        _check_headers(client)
    assert len(answer.content) < 40_000
    assert "http://" not in answer.text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in answer.text
    assert answer.text == PAGE.read_text(encoding="utf-8")


def _check_headers(client: TestClient) -> None:
    headers = client.get("/").headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert policy.count("'sha256-") == 2
    assert headers["x-content-type-options"] == "nosniff"
    assert client.get("/samples/cat.jpg").headers["content-type"] == "image/jpeg"
    assert client.get("/samples/..%2fapp.py").status_code == 404


@needs_chromium
def test_a_key_is_asked_for_once(browser: Browser, tmp_path: Path) -> None:
    onnx_models.save(tmp_path / "tiny.onnx")
    digest = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"  # of "secret"
    with running(tmp_path, "--api-keys", digest) as (url, _):
        page = browser.new_page()
        page.goto(url)
        page.locator("#key").fill("secret")
        page.keyboard.press("Enter")
        expect(page.locator("#model option")).to_have_count(1)
        pick(page)
        expect(legend(page)).to_have_count(3)
        expect(page.locator("#curl")).to_contain_text("Authorization: Bearer $DEEPLAB_API_KEY")
        page.close()

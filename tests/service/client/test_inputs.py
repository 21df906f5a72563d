from __future__ import annotations

import io
import itertools
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.client.errors import UsageError
from service.client.inputs import Inputs


def found(
    *arguments: object, out: Path = Path("/nowhere"), listing: str = "", base: Path | None = None
) -> Inputs:
    lines = io.StringIO(listing)
    return Inputs.of([str(a) for a in arguments], out=out, listing=lines, base=base)


def names(inputs: Inputs) -> list[str]:
    return [photo.name for photo in inputs]


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") if path.suffix == ".gz" else tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_folder_gives_its_photos_at_any_depth_in_order(photos: Path) -> None:
    inputs = found(photos)
    assert names(inputs) == ["cat.jpg", "trip/dog.png", "trip/far/bus.webp"]
    assert [photo.read().decode() for photo in inputs] == names(inputs)
    assert inputs.count() == 3


@pytest.mark.parametrize(
    "suffix", [*("jpe", "JFIF", "jif", "pjpeg", "MPO", "png", "apng", "webp"), *("dib", "TIF")]
)
def test_every_suffix_of_what_the_service_takes_is_found(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"cat.{suffix}").write_bytes(b"x")
    assert names(found(tmp_path)) == [f"cat.{suffix}"]


def test_files_of_other_kinds_are_counted_and_named(tmp_path: Path) -> None:
    """Hidden files, results and the manifest in OUT do not count, and no file counts twice."""
    for name in ("a.jpg", "b.GIF", "d/c.gif", "notes", ".hidden.gif", "out/manifest.sqlite"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    for source in (tmp_path, tmp_path / "**"):
        inputs = found(source, out=tmp_path / "out")
        assert inputs.count() == 1
        assert names(inputs) == ["a.jpg"]
        assert inputs.others.counts == {".gif": 2, "without a suffix": 1}
        said = "3 files left out: 2 .gif, 1 without a suffix (b.GIF, c.gif, notes)"
        assert inputs.others.text() == said


def test_files_of_other_kinds_in_a_tar_are_counted(tmp_path: Path) -> None:
    inputs = found(write_tar(tmp_path / "x.tar", {"a.jpg": b"a", "b/c.gif": b"b"}))
    assert names(inputs) == ["a.jpg"]
    assert inputs.others.text() == "1 file left out: 1 .gif (b/c.gif)"


def test_many_suffixes_take_no_memory(tmp_path: Path) -> None:
    others = found(tmp_path).others
    for number in range(10_000):
        others.add(f"x.{number}")
    assert len(others.counts) == 21
    assert others.text().startswith("10000 files left out: 9980 of other suffixes, 1 .0,")
    assert others.text().endswith("x.9, ...)")


def test_single_file_is_named_by_itself_whatever_its_suffix(photos: Path) -> None:
    assert names(found(photos / "trip" / "dog.png")) == ["dog.png"]
    assert names(found(photos / "notes.txt")) == ["notes.txt"]


def test_several_inputs_mirror_the_folder_they_share(photos: Path) -> None:
    inputs = found(photos / "trip", photos / "cat.jpg")
    assert names(inputs) == ["trip/dog.png", "trip/far/bus.webp", "cat.jpg"]


def test_base_sets_where_names_begin(photos: Path) -> None:
    assert names(found(photos / "trip" / "far", base=photos)) == ["trip/far/bus.webp"]


def test_glob_matches_files_below_its_fixed_part(photos: Path) -> None:
    assert names(found(photos / "*" / "*.png")) == ["trip/dog.png"]
    assert names(found(photos / "**" / "*.[jw]*")) == ["cat.jpg", "trip/far/bus.webp"]
    assert names(found(photos / "trip" / "**")) == ["dog.png", "far/bus.webp"]


def test_glob_without_match_and_missing_file_are_usage_errors(photos: Path) -> None:
    with pytest.raises(UsageError, match="matches no file"):
        found(photos / "*.gif")
    with pytest.raises(UsageError, match="no such file"):
        found(photos / "gone.jpg")


def test_file_whose_name_looks_like_a_glob_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "cat[1].jpg").write_bytes(b"x")
    assert names(found(tmp_path / "cat[1].jpg")) == ["cat[1].jpg"]


def test_list_on_stdin_is_read_line_by_line(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos)
    inputs = found("-", listing=f"trip/dog.png\n\n{photos}/cat.jpg\r\n/elsewhere/x.jpg\n")
    assert names(inputs) == ["trip/dog.png", "cat.jpg", "elsewhere/x.jpg"]
    assert inputs.count() is None


def test_missing_file_in_a_list_is_a_photo_that_cannot_be_read() -> None:
    (photo,) = found("-", listing="/elsewhere/x.jpg\n")
    assert photo.size == -1
    with pytest.raises(FileNotFoundError):
        photo.read()


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_tar_gives_its_photos(tmp_path: Path, suffix: str) -> None:
    members = {"a/1.jpg": b"one", "a/notes.txt": b"-", "2.png": b"two"}
    archive = write_tar(tmp_path / f"photos{suffix}", members)
    assert [(p.name, p.size, p.read()) for p in found(archive)] == [
        ("a/1.jpg", 3, b"one"),
        ("2.png", 3, b"two"),
    ]


def test_tar_photo_that_was_read_while_iterating_stays_readable(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "photos.tar.gz", {"1.jpg": b"one", "2.jpg": b"two"})
    kept = []
    for photo in found(archive):
        photo.read()
        kept.append(photo)
    assert [photo.read() for photo in kept] == [b"one", b"two"]


def test_tar_member_cannot_lead_out_of_the_output_folder(tmp_path: Path) -> None:
    members = {"../../up.jpg": b"1", "/etc/root.jpg": b"2", "..\\win.jpg": b"3"}
    archive = write_tar(tmp_path / "evil.tar", members)
    assert names(found(archive)) == ["up.jpg", "etc/root.jpg", "win.jpg"]


def test_tar_cut_short_ends_with_a_photo_that_cannot_be_read(tmp_path: Path) -> None:
    members = {f"{number}.jpg": os.urandom(5000) for number in range(5)}
    archive = write_tar(tmp_path / "photos.tar", members)
    archive.write_bytes(archive.read_bytes()[:12000])
    *_, last = found(archive)
    with pytest.raises(OSError, match=r"photos\.tar"):
        last.read()


def test_own_results_are_not_inputs(photos: Path) -> None:
    for name in ("out/cat.mask.png", "cat.mask.png", "out/trip/dog.overlay.jpg"):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).write_bytes(b"result")
    expected = ["cat.jpg", "trip/dog.png", "trip/far/bus.webp"]
    assert names(found(photos, out=photos)) == expected
    assert names(found(photos, out=photos / "out")) == ["cat.jpg", "cat.mask.png", *expected[1:]]
    assert "out" not in "".join(names(found(photos / "**" / "*.png", out=photos / "out")))


def test_link_to_a_folder_above_is_not_followed_for_ever(photos: Path) -> None:
    (photos / "trip" / "back").symlink_to(photos)
    assert names(found(photos)) == ["cat.jpg", "trip/dog.png", "trip/far/bus.webp"]


def test_linked_folder_is_searched(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.jpg").write_bytes(b"x")
    (photos / "more").symlink_to(tmp_path / "elsewhere")
    assert "more/x.jpg" in names(found(photos))


def test_name_that_is_not_utf8_is_escaped(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg")).write_bytes(b"x")
    (photo,) = found(tmp_path)
    assert photo.name == r"caf\xe9.jpg"
    assert photo.read() == b"x"


def test_enumeration_asks_for_no_more_than_is_taken() -> None:
    """Inputs are not collected ahead, so even an endless list works."""

    class Endless(io.StringIO):
        served = 0

        def __iter__(self) -> Iterator[str]:  # type: ignore[override]
            for self.served in itertools.count(1):
                yield f"/photos/{self.served}.jpg\n"

    listing = Endless()
    inputs = Inputs.of(["-"], out=Path("/nowhere"), listing=listing)
    assert len(list(itertools.islice(inputs, 3))) == 3
    assert listing.served == 3


PEAK = """
import sys, tracemalloc
from pathlib import Path
from service.client.inputs import Inputs

source, count = sys.argv[1], int(sys.argv[2])
listing = (f"/photos/{number}.jpg\\n" for number in range(count))
inputs = Inputs((source,), Path(source).parent, Path("/nowhere"), listing)
tracemalloc.start()
assert sum(1 for _ in inputs) == count
print(tracemalloc.get_traced_memory()[1])
"""


def peak_bytes(source: str, count: int) -> int:
    """Return the peak memory while the `count` inputs of a source are found.

    Measured in a process of its own: what other tests leave behind, such as a
    string table about to double, would be measured too.
    """
    command = [sys.executable, "-c", PEAK, source, str(count)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
def test_memory_stays_flat_over_a_long_list() -> None:
    """10,000 photos held at once take over 5 MB; the interpreter's own string table some 1 MB."""
    assert peak_bytes("-", 10_000) < 2_500_000


@pytest.mark.slow
def test_memory_stays_flat_over_a_long_tar(tmp_path: Path) -> None:
    """tarfile keeps every header by itself: 4,000 of them take over 4 MB; strings some 1 MB."""
    archive = write_tar(tmp_path / "photos.tar", {f"{n}.jpg": b"x" for n in range(4000)})
    assert peak_bytes(str(archive), 4000) < 2_000_000

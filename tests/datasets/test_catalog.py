"""The catalogue of public sets: downloads that fail in every way, hostile archives, and the layout of each set."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import re
import shutil
import socket
import stat
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlffn_lite.datasets.archive import extract, fetch
from mlffn_lite.datasets.catalog import CATALOG, download
from mlffn_lite.datasets.folder import AnomalyFolder
from mlffn_lite.datasets.verify import verify
from mlffn_lite.errors import DownloadError

# --- a server that misbehaves on request ----------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """Serves ``files`` by name; ``cut`` bytes are missing from the end of a whole answer; ``asked`` logs ranges."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.cut = 0
        self.ranges = True
        self.asked: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers["Range"]
        self.server.asked.append(wanted)
        content = self.server.files.get(self.path.removeprefix("/"))
        if content is None:
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.server.ranges else 0
        if start and start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start : len(content) - (0 if start else self.server.cut)])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield http
        http.shutdown()
        thread.join()


CONTENT = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def test_download_is_checked_and_kept(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.files["a.zip"] = CONTENT
    archive = tmp_path / "new" / "a.zip"
    fetch(f"{server.url}/a.zip", archive, SHA256, progress=False)
    assert archive.read_bytes() == CONTENT
    fetch(f"{server.url}/a.zip", archive, SHA256, progress=False)
    assert len(server.asked) == 1  # the second call only checked the file
    assert capsys.readouterr().out == ""
    archive.write_bytes(CONTENT[:-1])
    fetch(f"{server.url}/a.zip", archive, SHA256, progress=False)
    assert archive.read_bytes() == CONTENT
    assert [p.name for p in archive.parent.iterdir()] == ["a.zip"]


def test_unknown_checksum_is_computed_and_said(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.files["a.zip"] = CONTENT
    fetch(f"{server.url}/a.zip", tmp_path / "a.zip", None, progress=False)
    said = capsys.readouterr().out
    assert f"SHA-256 {SHA256}" in said
    assert "could not be verified" in said


def test_wrong_checksum_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.files["a.zip"] = CONTENT[::-1]
    with pytest.raises(DownloadError, match=rf"/a.zip sent a file whose SHA-256 is not {SHA256}; .* deleted"):
        fetch(f"{server.url}/a.zip", tmp_path / "a.zip", SHA256, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_missing_file_and_no_server(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"the server answered 404 .*/a.zip"):
        fetch(f"{server.url}/a.zip", tmp_path / "a.zip", SHA256, progress=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}/a.zip"
    with pytest.raises(DownloadError, match=rf"{nobody}: no connection"):
        fetch(nobody, tmp_path / "a.zip", SHA256, progress=False)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a.zip").write_bytes(b"put here by hand, but wrong")
    with pytest.raises(DownloadError, match=r"a.zip is there but is not the file of SHA-256"):
        fetch(nobody, tmp_path / "a.zip", SHA256, progress=False)
    assert (tmp_path / "a.zip").exists()


def test_truncated_download_is_resumed(server: Server, tmp_path: Path) -> None:
    server.files["a.zip"], server.cut = CONTENT, 1000
    with pytest.raises(DownloadError, match=r"broke off; [0-9,]+ bytes are kept, run it again to go on"):
        fetch(f"{server.url}/a.zip", tmp_path / "a.zip", SHA256, progress=False)
    assert not (tmp_path / "a.zip").exists()
    kept = (tmp_path / "a.zip.part").stat().st_size
    fetch(f"{server.url}/a.zip", tmp_path / "a.zip", SHA256, progress=False)
    assert server.asked == [None, f"bytes={kept}-"]
    assert (tmp_path / "a.zip").read_bytes() == CONTENT
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]


def test_resuming_on_awkward_servers(server: Server, tmp_path: Path) -> None:
    server.files["a.zip"] = CONTENT
    part = tmp_path / "a.zip.part"
    part.write_bytes(CONTENT[:5000])
    server.ranges = False  # sends the whole file again
    fetch(f"{server.url}/a.zip", tmp_path / "a.zip", SHA256, progress=False)
    assert (tmp_path / "a.zip").read_bytes() == CONTENT
    (tmp_path / "a.zip").unlink()
    server.ranges = True
    part.write_bytes(CONTENT)  # complete, only the rename was missing: nothing is left to send
    fetch(f"{server.url}/a.zip", tmp_path / "a.zip", SHA256, progress=False)
    assert (tmp_path / "a.zip").read_bytes() == CONTENT
    (tmp_path / "a.zip").unlink()
    part.write_bytes(b"of another file" * 100)
    with pytest.raises(DownloadError, match="SHA-256"):
        fetch(f"{server.url}/a.zip", tmp_path / "a.zip", SHA256, progress=False)
    fetch(f"{server.url}/a.zip", tmp_path / "a.zip", SHA256, progress=False)  # starts anew
    assert (tmp_path / "a.zip").read_bytes() == CONTENT


def test_nothing_is_resumed_without_a_checksum(server: Server, tmp_path: Path) -> None:
    server.files["a.zip"], server.cut = CONTENT, 1000
    with pytest.raises(DownloadError, match=r"broke off$"):
        fetch(f"{server.url}/a.zip", tmp_path / "a.zip", None, progress=False)
    assert not (tmp_path / "a.zip").exists()
    server.cut = 0
    fetch(f"{server.url}/a.zip", tmp_path / "a.zip", None, progress=False)
    assert server.asked == [None, None]
    assert (tmp_path / "a.zip").read_bytes() == CONTENT


def test_progress_bar_shows(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.files["a.zip"] = CONTENT
    fetch(f"{server.url}/a.zip", tmp_path / "a.zip", SHA256, progress=True)
    assert "a.zip: 100%" in capsys.readouterr().err


# --- archives -------------------------------------------------------------------------------------------------------


def tar_with(path: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as file:
        for info in (tarfile.TarInfo("set/first.txt"), *members):
            info.size = 5 if info.isfile() else 0
            file.addfile(info, io.BytesIO(b"hello") if info.isfile() else None)
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def zip_with(path: Path, name: str, mode: int = 0) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("set/first.txt", b"hello")
        info = zipfile.ZipInfo("placeholder")
        info.filename = name  # set afterwards: the constructor would clean it
        info.external_attr = mode << 16
        file.writestr(info, b"../../secret")
    return path


@pytest.mark.parametrize(
    "evil",
    [
        member("../evil.txt"),
        member("set/../../evil.txt"),
        member("/tmp/evil.txt"),
        member("..\\evil.txt"),
        member("C:\\evil.txt"),
        member("set/link", tarfile.SYMTYPE, "../../secret"),
        member("set/link", tarfile.SYMTYPE, "/etc/passwd"),
        member("set/link", tarfile.SYMTYPE, "first.txt"),
        member("set/link", tarfile.LNKTYPE, "../secret"),
        member("set/pipe", tarfile.FIFOTYPE),
        member("set/null", tarfile.CHRTYPE),
    ],
    ids=lambda m: f"{m.name}>{m.linkname}",
)
def test_hostile_tar_is_refused_as_a_whole(tmp_path: Path, evil: tarfile.TarInfo) -> None:
    archive = tar_with(tmp_path / "a.tar", evil)
    with pytest.raises(DownloadError, match=r"a.tar is refused: its member .*" + re.escape(repr(evil.name))):
        extract(archive, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["a.tar"]


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("../evil.txt", 0),
        ("set/../../evil.txt", 0),
        ("/evil.txt", 0),
        ("..\\evil.txt", 0),
        ("C:/evil.txt", 0),
        ("set/link", stat.S_IFLNK | 0o777),
        ("set/null", stat.S_IFCHR | 0o666),
    ],
)
def test_hostile_zip_is_refused_as_a_whole(tmp_path: Path, name: str, mode: int) -> None:
    archive = zip_with(tmp_path / "a.zip", name, mode)
    with pytest.raises(DownloadError, match=r"a.zip is refused: its member"):
        extract(archive, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]


def test_sound_archives_unpack(tmp_path: Path) -> None:
    (tmp_path / "src" / "a" / "b..c").mkdir(parents=True)
    (tmp_path / "src" / "a" / "b..c" / "x y.txt").write_bytes(b"hello")
    (tmp_path / "src" / "a").chmod(0o555)  # MVTec's archives have folders like this; they must stay movable
    for kind in ("tar", "gztar", "bztar", "xztar", "zip"):
        archive = Path(shutil.make_archive(str(tmp_path / kind), kind, tmp_path / "src"))
        extract(archive, tmp_path / f"out_{kind}")
        assert (tmp_path / f"out_{kind}" / "a" / "b..c" / "x y.txt").read_bytes() == b"hello"
        assert (tmp_path / f"out_{kind}" / "a").stat().st_mode & stat.S_IWUSR


def test_damaged_archives(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "noise.bin").write_bytes(np.random.default_rng(0).bytes(50_000))
    for kind in ("gztar", "xztar", "zip"):
        archive = Path(shutil.make_archive(str(tmp_path / kind), kind, tmp_path / "src"))
        whole = bytearray(archive.read_bytes())
        whole[25_000] ^= 255  # zip: CRC; gz and xz: their own checks
        archive.write_bytes(whole)
        with pytest.raises(DownloadError, match=r"is damaged .*; delete it and try again"):
            extract(archive, tmp_path / "out")
        archive.write_bytes(whole[:25_000])
        with pytest.raises(DownloadError, match="damaged"):
            extract(archive, tmp_path / "out")
    (tmp_path / "page.zip").write_bytes(b"<html>please log in</html>")
    with pytest.raises(DownloadError, match="neither a zip nor a tar file"):
        extract(tmp_path / "page.zip", tmp_path / "out")


def test_archive_that_does_not_fit_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tar_with(tmp_path / "a.tar")
    usage = shutil.disk_usage(tmp_path)._replace(free=4)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DownloadError, match=r"needs 0.0 GB unpacked, but .* has 0.0 GB left"):
        extract(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- each set, as its authors lay it out ----------------------------------------------------------------------------


class Tree:
    """Writes small distinct images and masks below a folder."""

    def __init__(self, root: Path) -> None:
        self.root, self.count = root, 0

    def image(self, *names: str) -> None:
        for name in names:
            self.count += 1
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.random.default_rng(self.count).integers(0, 256, (16, 16), dtype=np.uint8)).save(path)

    def mask(self, name: str, value: int = 255, row: int = 4) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        mask = np.zeros((16, 16), dtype=np.uint8)
        mask[row : row + 3, 2:9] = value
        Image.fromarray(mask).save(path)

    def text(self, name: str, *lines: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def native(tree: Tree, top: str, *categories: str) -> None:
    for c in categories:
        tree.image(f"{top}{c}/train/good/000.png", f"{top}{c}/test/good/000.png", f"{top}{c}/test/hole/000.png")
        tree.mask(f"{top}{c}/ground_truth/hole/000_mask.png")
    tree.text(f"{top}license.txt", "terms")


def ad2(tree: Tree) -> None:
    top = "mvtec_ad_2/can"
    tree.image(f"{top}/train/good/0.png", f"{top}/validation/good/0.png", f"{top}/test_private/1.png")
    tree.image(f"{top}/test_public/good/0.png", f"{top}/test_public/bad/0.png")
    tree.mask(f"{top}/test_public/ground_truth/bad/0_mask.png")


def loco(tree: Tree) -> None:
    top = "screw_bag"
    tree.image(f"{top}/train/good/000.png", f"{top}/validation/good/000.png", f"{top}/test/good/000.png")
    tree.image(f"{top}/test/logical_anomalies/000.png", f"{top}/test/structural_anomalies/000.png")
    tree.mask(f"{top}/ground_truth/logical_anomalies/000/000.png", 7, row=1)
    tree.mask(f"{top}/ground_truth/logical_anomalies/000/001.png", 200, row=9)
    tree.mask(f"{top}/ground_truth/structural_anomalies/000/000.png")
    tree.text(f"{top}/defects_config.json", "[]")


def btad(tree: Tree) -> None:
    for c, suffix in (("01", "png"), ("03", "bmp")):
        top = f"BTech_Dataset_transformed/{c}"
        tree.image(f"{top}/train/ok/0000.bmp", f"{top}/test/ok/0000.bmp", f"{top}/test/ko/0001.bmp")
        tree.mask(f"{top}/ground_truth/ko/0001.{suffix}")


def visa(tree: Tree) -> None:
    folder = "candle/Data/Images"
    tree.image(f"{folder}/Normal/0000.JPG", f"{folder}/Normal/0001.JPG", f"{folder}/Anomaly/000.JPG")
    tree.mask("candle/Data/Masks/Anomaly/000.png", 3)
    tree.text(
        "split_csv/1cls.csv",
        "object,split,label,image,mask",
        f"candle,train,normal,{folder}/Normal/0000.JPG,",
        f"candle,test,normal,{folder}/Normal/0001.JPG,",
        f"candle,test,anomaly,{folder}/Anomaly/000.JPG,candle/Data/Masks/Anomaly/000.png",
    )


def kolektor(tree: Tree) -> None:
    for split in ("train", "test"):
        tree.image(f"{split}/10000.png", f"{split}/10001.png")
        tree.mask(f"{split}/10000_GT.png", 0)
        tree.mask(f"{split}/10001_GT.png")
    shutil.copy(tree.root / "train" / "10000.png", tree.root / "train" / "10000 (copy).png")
    shutil.copy(tree.root / "train" / "10000_GT.png", tree.root / "train" / "10000_GT (copy).png")


def elpv(tree: Tree) -> None:
    top, lines = "elpv-dataset-master/src/elpv_dataset/data", []
    for kind in ("mono", "poly"):
        for i, p in enumerate([0.0, 1.0, 0.0, 0.3333333333333333, 0.0, 0.0, 0.0, 0.6666666666666666]):
            tree.image(f"{top}/images/{kind}{i}.png")
            lines.append(f"images/{kind}{i}.png  {p}                 {kind}")
    tree.text(f"{top}/labels.csv", *lines)


# name, writer, categories written, test defects of each, number of masks of each, images beside those of the layout
LAYOUTS: list[tuple[str, Callable[[Tree], None], tuple[str, ...], list[str], int]] = [
    ("mvtec_ad", lambda t: native(t, "", "bottle", "zipper"), ("bottle", "zipper"), ["good", "hole"], 1),
    ("mpdd", lambda t: native(t, "MPDD/", "tubes"), ("tubes",), ["good", "hole"], 1),
    ("mvtec_ad_2", ad2, ("can",), ["bad", "good"], 1),
    ("mvtec_loco", loco, ("screw_bag",), ["good", "logical_anomalies", "structural_anomalies"], 2),
    ("btad", btad, ("01", "03"), ["good", "ko"], 1),
    ("visa", visa, ("candle",), ["bad", "good"], 1),
    ("kolektor_sdd2", kolektor, (), ["defect", "good"], 1),
    ("elpv", elpv, ("mono", "poly"), ["good", "p033", "p067", "p100"], 0),
]


def pack(source: Path, archive: Path) -> bytes:
    archive.parent.mkdir(parents=True, exist_ok=True)
    kind = {".zip": "zip", ".xz": "xztar", ".gz": "gztar", ".tar": "tar"}[archive.suffix]
    assert shutil.make_archive(str(archive.parent / archive.name.split(".")[0]), kind, source) == str(archive)
    return archive.read_bytes()


def offer(
    name: str, write: Callable[[Tree], None], categories: tuple[str, ...], server: Server, scratch: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Put a small archive of a set on the server, and its checksum and categories into the catalogue."""
    write(Tree(scratch / "src"))
    content = pack(scratch / "src", scratch / CATALOG[name].filename)
    server.files[CATALOG[name].filename] = content
    sha256 = hashlib.sha256(content).hexdigest()
    entry = dataclasses.replace(CATALOG[name], categories=categories, sha256=CATALOG[name].sha256 and sha256)
    monkeypatch.setitem(CATALOG, name, entry)


@pytest.mark.parametrize(("name", "write", "categories", "defects", "masks"), LAYOUTS, ids=[x[0] for x in LAYOUTS])
def test_every_layout_becomes_mvtec(
    name: str, write: Callable[[Tree], None], categories: tuple[str, ...], defects: list[str], masks: int,
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    offer(name, write, categories, server, tmp_path, monkeypatch)
    root = tmp_path / "data"
    assert download(name, root, base_url=server.url, progress=False) == root / name
    assert {p.name for p in root.iterdir()} == {name, "downloads"}  # nothing half-written beside them
    for category in categories or (None,):
        path = download(name, root, category=category)  # no network: all is there
        assert path == (root / name / category if category else root / name)
        folder = AnomalyFolder(path, size=16)
        assert len(folder.train) >= 1
        assert sorted(set(folder.test.defects)) == defects
        assert sum(p is not None for p in folder.test.mask_paths) == masks
        assert verify(path).faults == []
    said = capsys.readouterr().out
    assert CATALOG[name].citation in said
    assert CATALOG[name].licence in said
    assert len(server.asked) == 1


def test_loco_masks_are_merged(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer("mvtec_loco", loco, ("screw_bag",), server, tmp_path, monkeypatch)
    path = download("mvtec_loco", tmp_path / "data", category="screw_bag", base_url=server.url, progress=False)
    mask = AnomalyFolder(path, size=16).test.masks()[1]
    assert mask.sum() == 2 * 3 * 7
    assert mask[1:4, 2:9].all()
    assert mask[9:12, 2:9].all()


def test_kolektor_leaves_defective_training_images_and_copies_out(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer("kolektor_sdd2", kolektor, (), server, tmp_path, monkeypatch)
    path = download("kolektor_sdd2", tmp_path / "data", base_url=server.url, progress=False)
    files = sorted(p.relative_to(path).as_posix() for p in path.rglob("*.png"))
    assert files == [
        "ground_truth/defect/10001_mask.png",
        "test/defect/10001.png",
        "test/good/10000.png",
        "train/good/10000.png",
    ]


def test_elpv_split_takes_the_last_fifth(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer("elpv", elpv, ("mono", "poly"), server, tmp_path, monkeypatch)
    path = download("elpv", tmp_path / "data", category="poly", base_url=server.url, progress=False)
    folder = AnomalyFolder(path, size=16)
    assert [p.name for p in folder.train.paths] == ["poly0.png", "poly2.png", "poly4.png", "poly5.png"]
    assert [(s.defect, s.path.name) for s in folder.test] == [
        ("good", "poly6.png"),
        ("p033", "poly3.png"),
        ("p067", "poly7.png"),
        ("p100", "poly1.png"),
    ]
    assert folder.test.has_mask.tolist() == [True, False, False, False]


def test_tables_cannot_reach_outside(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "secret.png"
    Tree(tmp_path).image("secret.png")

    def evil(tree: Tree) -> None:
        tree.image("images/a.png")
        tree.text("labels.csv", "images/a.png 0.0 mono", f"{secret} 1.0 mono", "../../../../secret.png 1.0 mono")

    offer("elpv", evil, ("mono",), server, tmp_path, monkeypatch)
    with pytest.raises(DownloadError, match=r"does not have the layout .* leaves the folder"):
        download("elpv", tmp_path / "data", base_url=server.url, progress=False)
    assert secret.exists()

    def evil_visa(tree: Tree) -> None:
        visa(tree)
        tree.text("split_csv/1cls.csv", "object,split,label,image,mask", "../../x,train,normal,candle/Data,")

    shutil.rmtree(tmp_path / "src")
    offer("visa", evil_visa, ("candle",), server, tmp_path, monkeypatch)
    with pytest.raises(DownloadError, match="does not have the layout of VisA: unexpected row"):
        download("visa", tmp_path / "data", base_url=server.url, progress=False)
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["downloads"]


@pytest.mark.parametrize("value", ["inf", "nan", "-1", "1e308", "2"])
def test_what_is_no_probability_is_refused(
    value: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def odd(tree: Tree) -> None:
        tree.image("images/a.png")
        tree.text("labels.csv", f"images/a.png {value} mono")

    offer("elpv", odd, ("mono",), server, tmp_path, monkeypatch)
    with pytest.raises(DownloadError, match=r"does not have the layout .* is no probability"):
        download("elpv", tmp_path / "data", base_url=server.url, progress=False)


@pytest.mark.parametrize("name", [x[0] for x in LAYOUTS])
def test_another_archive_is_refused_and_nothing_is_left(
    name: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(tree: Tree) -> None:
        tree.image("holiday/beach.png")
        tree.text("split_csv/1cls.csv", "a,b", "1,2")

    offer(name, other, CATALOG[name].categories, server, tmp_path, monkeypatch)
    with pytest.raises(DownloadError, match="does not have the layout of") as caught:
        download(name, tmp_path / "data", base_url=server.url, progress=False)
    assert "\n" not in str(caught.value)
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["downloads"]


def test_failures_say_where_to_put_the_file(server: Server, tmp_path: Path) -> None:
    match = r"answered 404 .*mvtec_anomaly_detection.tar.xz.*\. Or get mvtec_anomaly_detection.tar.xz from https://www"
    with pytest.raises(DownloadError, match=match) as caught:
        download("mvtec_ad", tmp_path / "data", base_url=server.url, progress=False)
    assert str(tmp_path / "data" / "downloads" / "mvtec_anomaly_detection.tar.xz") in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(DownloadError, match=r"MPDD has no direct link: get MPDD.zip from .*, save it as .*MPDD.zip"):
        download("mpdd", tmp_path / "data")
    with pytest.raises(DownloadError, match=r"unknown data set 'mvtec'; choose one of mvtec_ad, "):
        download("mvtec", tmp_path / "data")
    with pytest.raises(DownloadError, match=r"btad has no category '04'; it has 01, 02, 03"):
        download("btad", tmp_path / "data", category="04")
    with pytest.raises(DownloadError, match="it has only one"):
        download("kolektor_sdd2", tmp_path / "data", category="x")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DownloadError, match=r"cannot write btad to .*file"):
        download("btad", tmp_path / "file", base_url=server.url, progress=False)


def test_archive_put_there_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    native(Tree(tmp_path / "src"), "MPDD/", *CATALOG["mpdd"].categories)
    monkeypatch.chdir(tmp_path)
    pack(tmp_path / "src", tmp_path / "data" / "downloads" / "MPDD.zip")
    path = download("mpdd", "data", category="tubes")  # a relative root, as on the command line
    assert len(AnomalyFolder(path, size=16).test) == 2
    assert "could not be verified" in capsys.readouterr().out


def test_catalogue_is_sound() -> None:
    for name, entry in CATALOG.items():
        assert entry.name == name
        assert entry.homepage.startswith("https://")
        assert entry.url is None or entry.url.startswith("https://")
        assert entry.sha256 is None or re.fullmatch("[0-9a-f]{64}", entry.sha256)
        assert len(set(entry.categories)) == len(entry.categories)
        assert all(isinstance(word, str) and word for word in entry.row())
    checksums = [e.sha256 for e in CATALOG.values() if e.sha256]
    assert len(set(checksums)) == len(checksums) == 6
    assert {x[0] for x in LAYOUTS} == set(CATALOG)

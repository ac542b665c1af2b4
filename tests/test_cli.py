"""The command line as a user meets it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from PIL import Image
from systems import links, signals

import mlffn_lite
from mlffn_lite import cli
from mlffn_lite.config import Config
from mlffn_lite.datasets import folder as files

Run = Callable[..., tuple[int, str, str]]
FAST = ["--preset", "tiny", "--device", "cpu", "--set", "train.steps=4", "--set", "train.batch=4"]
FAST += ["--set", "model.width=16", "--set", "texture.tem_levels=8"]


def mlffn(
    *arguments: object, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["mlffn", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    captured = capsys.readouterr()
    code = caught.value.code
    return (code if isinstance(code, int) else int(bool(code))), captured.out, captured.err


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        return mlffn(*arguments, capsys=capsys, monkeypatch=monkeypatch)

    return call


@pytest.fixture
def copy(parts: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(parts, tmp_path / "parts"))


@pytest.fixture(scope="module")
def trained(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "run"
    subprocess.run([sys.executable, "-m", "mlffn_lite", "train", parts, "--out", folder, *FAST], check=True)
    return folder


def error_of(result: tuple[int, str, str]) -> str:
    """The one line that a user error must be."""
    code, _, err = result
    lines = [
        line for line in err.splitlines() if line.strip() and "step/s" not in line and "s/step" not in line
    ]  # less the progress bar
    assert code == 2, err
    assert len(lines) == 1, err
    assert lines[0].startswith("mlffn: ")
    assert "Traceback" not in err
    return lines[0]


def test_train_writes_a_complete_run_folder(trained: Path) -> None:
    assert {p.name for p in trained.glob("[!.]*")} - {"evaluation"} == {
        *(f"curve_{name}.csv" for name in ("roc_images", "pr_images", "roc_pixels", "pro")),
        "config.toml",
        "checkpoint.safetensors",
        "history.csv",
        "metrics.json",
        "report.html",
        "heatmaps.png",
    }
    result = json.loads((trained / "metrics.json").read_text())
    assert {"image_auroc", "pixel_auroc", "pro"} <= result.keys()
    assert all(0 <= result[k] <= 1 for k in ("image_auroc", "pixel_auroc", "pro"))
    assert (result["preset"], result["seed"], result["device"], result["shape"]) == ("tiny", 0, "cpu", [64, 64])
    assert (result["steps"], result["images"], result["train_images"], result["data"]) == (4, 8, 12, "parts")
    assert result["seconds"] > 0
    assert result["precision"] in ("float32", "bfloat16")
    assert result["versions"]["torch"]
    assert list(pd.read_csv(trained / "history.csv")["step"]) == [4]


def test_evaluate_repeats_the_metrics(run: Run, trained: Path, parts: Path) -> None:
    code, out, _ = run("evaluate", trained, parts, "--device", "cpu")
    result = json.loads((trained / "metrics.json").read_text())
    assert code == 0
    assert f"image AUROC {100 * result['image_auroc']:.1f}" in out
    assert f"PRO {100 * result['pro']:.1f}" in out


def test_predict_writes_heatmaps_and_scores(run: Run, trained: Path, parts: Path, tmp_path: Path) -> None:
    code, out, _ = run("predict", trained, parts / "test/scratch", "--out", tmp_path / "p", "--device", "cpu")
    assert code == 0
    assert "4 images" in out
    assert "Decision: threshold" in out
    table = pd.read_csv(tmp_path / "p/scores.csv")
    assert len(table) == 4
    assert all((tmp_path / "p" / name).exists() for name in table["picture"])
    assert set(table["verdict"]) <= {"OK", "NOK"}


def test_calibrate_changes_verdicts_and_says_what_it_promises(
    run: Run, trained: Path, parts: Path, tmp_path: Path
) -> None:
    mine = shutil.copytree(trained, tmp_path / "run")
    words = ["predict", mine, parts / "test/scratch", "--no-pictures", "--out"]
    code, out, _ = run("calibrate", mine, "--threshold", "-1e9")
    assert (code, "Decision: threshold -1e+09" in out) == (0, True)
    assert "no promise" in out  # of a network that was trained on the images
    aside = mine / "superseded/1_threshold_"
    (aside,) = aside.parent.glob(f"{aside.name}*")
    assert str(aside) in out
    assert {"metrics.json", "report.html", "heatmaps.png"} <= {p.name for p in aside.iterdir()}
    assert not {"metrics.json", "report.html", "evaluation"} & {p.name for p in mine.iterdir()}
    assert "superseded" not in run("calibrate", mine, "--threshold", "-1e9")[1]  # nothing has changed
    assert run("evaluate", mine, parts)[0] == 0
    assert run(*words, tmp_path / "a")[0] == 0
    assert set(pd.read_csv(tmp_path / "a/scores.csv")["verdict"]) == {"NOK"}
    code, out, _ = run("calibrate", mine, parts / "test/good", "--false-alarms", "0.3")
    assert code == 0
    good = len(list((parts / "test/good").iterdir()))
    assert f"false alarms, by {good} held out good images" in out
    assert not (mine / "evaluation").exists()
    assert [p.name for p in mine.glob("superseded/2_threshold_-1e+09/*")] == ["evaluation"]
    assert run("calibrate", mine, "--min-area", "1000000")[0] == 0
    assert "at least 1000000 px" in run(*words, tmp_path / "b")[1]
    assert set(pd.read_csv(tmp_path / "b/scores.csv")["verdict"]) == {"OK"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "say what to change"),
        (["--false-alarms", "2"], "must lie between 0 and 1"),
        (["--false-alarms", "0.1", "--threshold", "3"], "not both"),
        (["--threshold", "nan"], "must be finite"),
        (["nowhere"], "nowhere does not exist"),
    ],
)
def test_bad_calibrations_are_one_line_and_change_nothing(
    run: Run, trained: Path, words: list[str], message: str
) -> None:
    before = (trained / "checkpoint.safetensors").read_bytes()
    assert message in error_of(run("calibrate", trained, *words))
    assert (trained / "checkpoint.safetensors").read_bytes() == before


def test_training_again_needs_resume_and_changes_nothing(run: Run, trained: Path, parts: Path) -> None:
    assert "add --resume" in error_of(run("train", parts, "--out", trained, *FAST))
    before = json.loads((trained / "metrics.json").read_text())
    code, _, _ = run("train", parts, "--out", trained, *FAST, "--resume")
    after = json.loads((trained / "metrics.json").read_text())
    assert (code, after["pro"], after["steps"]) == (0, before["pro"], 4)
    assert "another configuration" in error_of(run("train", parts, "--out", trained, *FAST, "--resume", "--seed", 5))


def test_resuming_on_other_images_is_refused(run: Run, trained: Path, copy: Path, tmp_path: Path) -> None:
    mine = shutil.copytree(trained, tmp_path / "run")
    (copy / "train/good/011.png").unlink()
    assert "not those of" in error_of(run("train", copy, "--out", mine, *FAST, "--resume"))


def test_a_folder_of_good_images_is_enough(run: Run, parts: Path, tmp_path: Path) -> None:
    code, out, _ = run("train", parts / "train/good", "--out", tmp_path / "r", *FAST)
    assert code == 0
    assert "nothing was measured" in out
    assert "image_auroc" not in json.loads((tmp_path / "r/metrics.json").read_text())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preset", "huge"], "unknown preset 'huge'"),
        (["--set", "train.stepz=1"], "unknown key train.stepz"),
        (["--set", "nonsense"], "section.key=value"),
        (["--set", "train.lr=fast"], "train.lr must be of type float"),
        (["--device", "warp"], "cannot be used here"),
        (["--crop", "1,2,3"], "data.crop must be auto, none or left,top,width,height"),
        (["--crop", "0,0,900,900"], "do not hold the crop 0,0,900,900"),
        (["--tile", "100"], "data.tile = 100 must be 0, or at least 32 and twice data.overlap = 64"),
        (["--overlap", "-1"], "data.overlap = -1 is out of range"),
        (["--ignore", "none.png"], "none.png: cannot be read"),
        (["--config", "none.toml"], "cannot read configuration"),
        (["--set", "model.backbone=resnet50"], "no installed package"),
        (["--set", "model.weights=gone.pth"], "gone.pth does not exist"),
        (["--set", "model.backbone=nonesuch"], "unknown backbone"),
        (["--devices", "0"], "invalid value for '--devices'"),
        (["--devices", "9"], "--devices 9"),
        (["--devices", "2", "--set", "method=padim"], "padim is not trained"),
        (["--threads", "0"], "invalid value for '--threads'"),
        (["--out", ""], "a folder must have a name"),
        (["--seed", "one"], "'--seed'"),
        (["--nonsense"], "no such option"),
    ],
)
def test_bad_options_are_one_line(run: Run, parts: Path, tmp_path: Path, options: list[str], message: str) -> None:
    assert message in error_of(run("train", parts, "--out", tmp_path / "r", *FAST, *options))
    assert not (tmp_path / "r").exists()


def test_bad_folders_are_one_line(run: Run, parts: Path, copy: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    shutil.rmtree(copy / "train")
    for folder, message in (
        (tmp_path / "none", "does not exist"),
        (tmp_path / "empty", "is empty"),
        (copy, "no train/good"),
        (parts / "train/good/000.png", "is a file"),
    ):
        assert message in error_of(run("train", folder, "--out", tmp_path / "r", *FAST))
    assert not (tmp_path / "r").exists()


def test_bad_images_are_named_and_can_be_skipped(run: Run, copy: Path, tmp_path: Path) -> None:
    bad = copy / "train/good/003.png"
    bad.write_bytes(bad.read_bytes()[:100])
    message = error_of(run("train", copy, "--out", tmp_path / "r", *FAST))
    assert "003.png" in message
    assert "--skip-bad" in message
    code, _, err = run("train", copy, "--out", tmp_path / "r", *FAST, "--skip-bad")
    assert code == 0
    assert "mlffn: skipped 1 of 20 images" in err


def test_mask_of_another_size_and_one_pixel_images_are_named(run: Run, copy: Path, tmp_path: Path) -> None:
    Image.new("L", (10, 10), 255).save(copy / "ground_truth/scratch/000_mask.png")
    assert "000_mask.png" in error_of(run("train", copy, "--out", tmp_path / "r", *FAST))
    Image.new("RGB", (1, 1)).save(copy / "train/good/000.png")
    assert "1x1" in error_of(run("train", copy, "--out", tmp_path / "r", *FAST))


def test_verify_lists_every_fault(run: Run, copy: Path) -> None:
    assert run("data", "verify", copy)[0] == 0
    (copy / "train/good/003.png").write_bytes(b"broken")
    Image.new("L", (64, 64)).save(copy / "ground_truth/scratch/001_mask.png")
    shutil.copy(copy / "train/good/004.png", copy / "test/good/000.png")
    code, out, _ = run("data", "verify", copy)
    assert code == 2
    for name in ("003.png", "001_mask.png", "000.png"):
        assert name in out
    assert "does not exist" in error_of(run("data", "verify", copy / "none"))


def test_damaged_runs_are_one_line(run: Run, trained: Path, parts: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(trained, tmp_path / "run"))
    checkpoint = copy / "checkpoint.safetensors"
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[: len(whole) // 2])
    assert "truncated" in error_of(run("evaluate", copy, parts))
    checkpoint.write_bytes(whole)
    (copy / "metrics.json").unlink()
    arguments = ["train", parts, "--out", copy, *FAST, "--set", "train.lr=0.5", "--resume"]
    assert "another configuration" in error_of(run(*arguments))
    assert "not a run folder" in error_of(run("predict", parts, parts, "--out", tmp_path / "p"))
    assert not (tmp_path / "p").exists()


def test_read_only_and_full_places(run: Run, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    assert "cannot write" in error_of(run("train", parts, "--out", tmp_path / "file" / "run", *FAST))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert "No space left on device" in error_of(run("train", parts, "--out", tmp_path / "r", *FAST))
    assert list((tmp_path / "r").glob("[!.]*")) == []

    def read_only(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.mkstemp", read_only)
    assert "Read-only file system" in error_of(run("train", parts, "--out", tmp_path / "r", *FAST))


def test_a_disk_that_fills_up_leaves_the_last_checkpoint(
    run: Run, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    fsync = os.fsync

    def fills_up(handle: int) -> None:
        written.append(handle)
        if len(written) > 3:  # configuration, history, checkpoint
            raise OSError(28, "No space left on device")
        fsync(handle)

    arguments = ["train", parts, "--out", tmp_path / "r", *FAST, "--set", "train.checkpoint_every=2"]
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fills_up)
        assert "No space left on device" in error_of(run(*arguments))
    assert {p.name for p in (tmp_path / "r").glob("[!.]*")} == {"config.toml", "history.csv", "checkpoint.safetensors"}
    code, _, _ = run(*arguments, "--resume")
    assert (code, json.loads((tmp_path / "r/metrics.json").read_text())["steps"]) == (0, 4)


def test_no_weights_and_no_network(run: Run, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    options = ["--set", "model.backbone=resnet18", "--set", "model.weights=default"]
    message = error_of(run("train", parts, "--out", tmp_path / "r", *FAST, *options))
    assert "resnet18-f37072fd.pth" in message
    assert str(tmp_path / "checkpoints") in message


def test_folders_as_people_have_them(run: Run, parts: Path, tmp_path: Path) -> None:
    shop = tmp_path / "shop"
    shutil.copytree(parts / "train/good", shop / "OK/monday")
    shutil.copytree(parts / "test/scratch", shop / "NOK")
    shutil.copytree(parts / "test/good", shop / "maybe")
    named = ["--good", "OK", "--bad", "NOK"]
    assert "OK holds no image" in error_of(run("train", shop, "--out", tmp_path / "r", *FAST, *named))
    assert "no folder BAD" in error_of(
        run("train", shop, "--out", tmp_path / "r", *FAST, "--good", "NOK", "--bad", "BAD")
    )
    assert run("data", "verify", shop, *named, "--recursive")[0] == 0
    fast = [*FAST, "--set", "method=density"]
    code, _, err = run("train", shop, "--out", tmp_path / "r", *fast, *named, "--recursive")
    assert code == 0
    assert "left out 1 folders that are neither good nor bad: maybe" in err
    assert json.loads((tmp_path / "r/metrics.json").read_text())["images"] == 2 + 4
    assert run("evaluate", tmp_path / "r", shop)[0] == 0
    (shop / "OK/tuesday").mkdir()
    (shop / "OK/tuesday/0.raw").write_bytes(b"raw")
    left = f"{shop / 'OK/tuesday'}: left out 1 .raw files, which are no images: 0.raw"
    code, _, err = run("predict", tmp_path / "r", shop, "--recursive", "--no-pictures", "--out", tmp_path / "p")
    assert (code, left in err) == (0, True)
    assert left in run("train", shop, "--out", tmp_path / "u", *fast, *named, "--recursive")[2]
    assert "notice: OK/tuesday: left out: 1 .raw files" in run("data", "verify", shop, *named, "--recursive")[1]
    shutil.rmtree(shop / "OK/monday")
    alone = run("predict", tmp_path / "r", shop / "OK", "--out", tmp_path / "w", "--recursive")
    assert "holds no image, but" in error_of(alone)
    assert "tuesday: 1 .raw files" in error_of(alone)
    assert "tuesday: 1 .raw files" in error_of(run("train", shop / "OK", "--out", tmp_path / "x", "--recursive"))
    shutil.copytree(parts / "train/good", shop / "OK/monday")
    assert len(pd.read_csv(tmp_path / "p/scores.csv")) == 12 + 4 + 4
    lines = ["path,label", *(f"{p.relative_to(shop)},ok" for p in (shop / "OK").rglob("*.png"))]
    (shop / "list.csv").write_text("\n".join(lines))
    code, _, err = run("train", shop / "list.csv", "--out", tmp_path / "s", *fast)
    assert code == 0, err
    (shop / "list.csv").write_text("path,label\nOK/none.png,ok")
    assert "line 2" in error_of(run("train", shop / "list.csv", "--out", tmp_path / "t", *fast))
    assert "line 2" in error_of(run("data", "verify", shop / "list.csv"))


def test_where_it_looks_is_said_and_kept(run: Run, parts: Path, tmp_path: Path) -> None:
    marked = Image.new("L", (64, 64))
    marked.paste(255, (0, 0, 64, 20))
    marked.save(tmp_path / "mask.png")
    options = ["--crop", "8,8,48,56", "--ignore", tmp_path / "mask.png", "--set", "method=density"]
    code, out, _ = run("train", parts, "--out", tmp_path / "r", *FAST, *options)
    assert code == 0
    assert "Looks at the 48x56 pixels from 8,8, without the 1280 pixels of the ignore mask" in out
    assert "Where it looks" in (tmp_path / "r/report.html").read_text()
    (tmp_path / "mask.png").unlink()
    assert run("predict", tmp_path / "r", parts / "test/scratch", "--out", tmp_path / "p")[0] == 0
    assert (pd.read_csv(tmp_path / "p/regions.csv")["y"] >= 20).all()
    Image.new("RGB", (50, 64)).save(tmp_path / "narrow.png")
    assert run("predict", tmp_path / "r", tmp_path / "narrow.png", "--out", tmp_path / "q")[0] == 2
    assert "has 64x64" in pd.read_csv(tmp_path / "q/scores.csv")["error"][0]


def test_a_run_lies_in_runs_where_nothing_is_said(
    run: Run, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = run("train", parts, *FAST, "--set", "method=density")
    assert code == 0
    assert f"Run: runs/{parts.name}" in out
    assert "holds a run already" in error_of(run("train", parts, *FAST, "--set", "method=density"))


def test_of_several_pages_the_first_is_read_and_that_is_said(
    run: Run, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = Path(shutil.copytree(parts / "train/good", tmp_path / "good"))
    pages = [Image.open(p) for p in sorted(good.glob("*.png"))[:3]]
    pages[0].save(good / "pages.tiff", save_all=True, append_images=pages[1:])
    (good / "camera").mkdir()
    pages[0].save(good / "camera/moving.gif", save_all=True, append_images=pages[1:])
    said = "have several pages or frames, of which the first is read: "
    code, _, errors = run("train", good, "--out", tmp_path / "r", *FAST, "--set", "method=density")
    assert code == 0
    assert f"1 of 13 images {said}{good / 'pages.tiff'}" in errors
    assert "left out 1 folders" in errors
    code, _, errors = run("predict", tmp_path / "r", good, "--recursive", "--out", tmp_path / "p", "--no-pictures")
    assert code == 0
    assert f"2 of 14 images {said}" in errors
    headers: list[Any] = []
    opened = files.open_file

    def counted(path: Any, *rest: Any) -> Any:
        headers.append(path)
        return opened(path, *rest)

    monkeypatch.setattr(files, "open_file", counted)
    assert run("predict", tmp_path / "r", good, "--out", tmp_path / "q", "--no-pictures")[0] == 0
    assert len(headers) == 13  # each file once: the first verdict waits for no other image
    inside = run("predict", tmp_path / "r", good, "--recursive", "--out", good / "camera/out")
    assert "lies in a folder of images to judge" in error_of(inside)
    assert not (good / "camera/out").exists()


def test_a_bad_image_is_an_error_and_the_others_are_judged(
    run: Run, trained: Path, parts: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.png").write_bytes(b"broken")
    images = [tmp_path / "bad.png", parts / "test/good"]
    code, _, errors = run("predict", trained, *images, "--out", tmp_path / "p")
    assert code == 2
    last = errors.replace("\r", "\n").splitlines()[-1]  # before it, a bar where the machine is busy
    assert re.fullmatch(r"mlffn: 1 of \d+ images could not be judged: .*bad\.png.*", last)
    table = pd.read_csv(tmp_path / "p/scores.csv")
    assert list(table["verdict"] == "ERROR") == [True] + [False] * (len(table) - 1)
    assert run("predict", trained, *images, "--out", tmp_path / "q", "--skip-bad")[0] == 0
    assert "does not exist" in error_of(run("predict", trained, tmp_path / "x.png", "--out", tmp_path / "r"))
    assert not (tmp_path / "r").exists()
    inside = error_of(run("predict", trained, parts / "test/good", "--out", parts / "test/good"))
    assert "write elsewhere" in inside
    assert "choose one of jpeg, png, none" in error_of(
        run("predict", trained, parts / "test/good", "--out", tmp_path / "r", "--pictures", "gif")
    )
    assert "File name too long" in error_of(run("evaluate", "r" * 5000, parts))


@links
def test_what_is_not_read_or_tested_twice_is_said(run: Run, trained: Path, copy: Path) -> None:
    (copy / "test/scratch/x.png").symlink_to("/nowhere/1.png")
    (copy / "test/hole").mkdir()
    (copy / "test/hole/y.png").symlink_to("/nowhere/2.png")
    shutil.copy(copy / "train/good/000.png", copy / "test/good/again.png")
    Image.new("1", (64, 64)).save(copy / "ground_truth/scratch/001_mask.png")
    code, _, errors = run("evaluate", trained, copy)
    assert code == 0
    for name in ("x", "y"):
        assert f"left out 1 links that lead nowhere: {name}.png" in errors
    assert "1 of 9 test images are training images" in errors
    assert "1 of 9 test images have an empty mask" in errors
    errors = run("calibrate", trained, copy / "test/scratch", "--threshold", "nan")[2]
    assert "left out 1 links that lead nowhere: x.png" in errors


def test_download_of_an_unknown_set_names_the_known(run: Run, tmp_path: Path) -> None:
    assert "visa" in error_of(run("data", "download", "nonesuch", "--root", tmp_path / "d"))
    assert not (tmp_path / "d").exists()


def test_odd_names_are_printed_as_they_are(run: Run, parts: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs[red] :smile: [x]"
    code, out, _ = run("train", parts, "--out", folder, *FAST)
    assert code == 0
    assert f"Run: {folder}" in out


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder(run: Run, parts: Path, tmp_path: Path) -> None:
    (tmp_path / "ro").mkdir(mode=0o555)
    assert "Permission denied" in error_of(run("train", parts, "--out", tmp_path / "ro" / "run", *FAST))


def test_debug_shows_the_traceback(run: Run, tmp_path: Path) -> None:
    code, _, err = run("--debug", "train", tmp_path / "none", "--out", tmp_path / "r")
    assert code == 2
    assert "Traceback" in err


def test_wrong_usage_is_one_line_that_names_the_help(run: Run, parts: Path) -> None:
    for arguments, found in (
        (["predict", parts, parts], "missing option '--out'"),
        (["nonesuch"], "no such command 'nonesuch'"),
        (["data", "verify"], "missing argument 'DATA'"),
    ):
        assert error_of(run(*arguments)).startswith(f"mlffn: {found}")
    assert error_of(run("train")).endswith("train --help")


def test_threads_are_those_asked_for(run: Run, trained: Path, parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    assert run("evaluate", trained, parts, "--threads", 3)[0] == 0
    assert asked == [3]


def test_metrics_that_are_not_defined_say_why(run: Run, trained: Path, copy: Path) -> None:
    shutil.rmtree(copy / "ground_truth")
    code, out, _ = run("evaluate", trained, copy)
    assert code == 0
    assert "image AUROC" in out
    assert "Not defined without masks of the defects: pixel AUROC, PRO" in out
    written = trained / "evaluation" / copy.name
    assert {"image_auroc"} == {"image_auroc", "pixel_auroc", "pro"} & json.loads(
        (written / "metrics.json").read_text()
    ).keys()
    assert {p.name for p in written.glob("curve_*")} == {"curve_roc_images.csv", "curve_pr_images.csv"}
    assert "mlffn evaluate" in (written / "report.html").read_text()
    assert "nan" not in out
    shutil.rmtree(copy / "test/good")
    assert "No metric is defined." in run("evaluate", trained, copy)[1]


def test_what_is_recommended_trains_and_loads(run: Run, parts: Path, tmp_path: Path) -> None:
    code, out, _ = run("train", parts, "--out", tmp_path / "r", *FAST, "--set", "method=ensemble")
    assert (code, "Run:" in out) == (0, True)
    assert (json.loads((tmp_path / "r/metrics.json").read_text())["method"]) == "ensemble"
    code, out, _ = run("predict", tmp_path / "r", parts / "test/scratch", "--out", tmp_path / "p")
    assert (code, "4 images" in out) == (0, True)


@signals
def test_ctrl_c_keeps_a_checkpoint_and_says_how_to_resume(parts: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mlffn_lite", "train", str(parts), "--out", str(tmp_path / "r"), *FAST]
    command += ["--set", "train.steps=100000", "--set", "train.checkpoint_every=2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "r/checkpoint.safetensors").exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in out
    assert "Traceback" not in err
    assert not (tmp_path / "r/metrics.json").exists()
    assert [p.name for p in (tmp_path / "r").iterdir() if p.suffix == ".tmp"] == []


def test_two_devices_train_one_run(parts: Path, tmp_path: Path) -> None:
    pytest.importorskip("lightning_fabric")
    command = [sys.executable, "-m", "mlffn_lite", "train", str(parts), "--out", str(tmp_path / "r"), *FAST]
    subprocess.run([*command, "--devices", "2"], check=True, timeout=240)
    result = json.loads((tmp_path / "r/metrics.json").read_text())
    assert result["steps"] == 4
    assert 0 <= result["image_auroc"] <= 1


def test_several_devices_need_an_extra(run: Run, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    message = error_of(run("train", parts, "--out", tmp_path / "r", *FAST, "--devices", "2"))
    assert "lightning_fabric is not installed; it comes with pip install 'mlffn-lite[distributed]'" in message


def test_help_names_every_command_and_extra(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert all(name in out for name in ("demo", "data", "train", "calibrate", "evaluate", "predict", "study", "report"))
    assert "[distributed]" in run("train", "--help")[1]
    assert "--version" in run()[2]


def test_version_is_the_package_s(run: Run) -> None:
    assert run("--version")[:2] == (0, f"mlffn-lite {mlffn_lite.__version__}\n")


def test_shells_complete_commands() -> None:
    command = [sys.executable, "-m", "mlffn_lite"]
    shown = subprocess.run(
        [*command, "--show-completion", "bash"],
        env=os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "complete" in shown.stdout
    asked = {"_MLFFN_COMPLETE": "complete_bash", "COMP_WORDS": "mlffn tr", "COMP_CWORD": "1"}
    offered = subprocess.run(command, env=os.environ | asked, capture_output=True, text=True, check=False)
    assert offered.stdout.split() == ["train"]


def test_catalogue_lists_licences(run: Run) -> None:
    code, out, _ = run("data", "list")
    assert code == 0
    assert "mvtec" in out.lower()
    assert "CC BY-NC-SA" in out


def test_config_prints_what_train_reads_and_the_schema_of_it(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("config", "small")
    assert code == 0
    (tmp_path / "c.toml").write_text(out)
    assert Config.load(tmp_path / "c.toml") == Config.preset("small")
    code, out, _ = run("config", "--schema")
    assert json.loads(out)["$defs"]["TrainConfig"]["properties"]["batch"]["maximum"] == 65536
    assert "unknown preset 'huge'" in error_of(run("config", "huge"))

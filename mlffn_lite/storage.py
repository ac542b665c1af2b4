"""Run folders: files that appear whole or not at all, checkpoints without pickle, and what a result was measured on."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import platform
import subprocess
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from . import __version__
from .config import Config
from .errors import CheckpointError, MlffnError
from .sealed import BLANK, MARK, read_regular, seal, sealed
from .state import CheckpointState, faults

CHECKPOINT = "checkpoint.safetensors"
CONFIG = "config.toml"
HISTORY = "history.csv"
METRICS = "metrics.json"


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file under a temporary name beside it, then rename, so that no reader ever sees half of it.

    Raises
    ------
    MlffnError
        If the folder cannot be made or written, or the disk is full; an older file of that name is left as it was.
    """
    data = content.encode(errors="surrogateescape") if isinstance(content, str) else content
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes files private
        os.replace(temporary, path)
    except OSError as error:
        raise MlffnError(
            f"cannot write {path}: {error.strerror or error}; free space or choose another folder"
        ) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)  # gone already where all went well


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write JSON atomically, keys in the given order, readable by people; NaN, which JSON lacks, becomes null."""
    write_atomic(path, _json(values))


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(_without_nan(values), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_nan(v) for k, v in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def new_run() -> str:
    """Return an id that no other run has."""
    return uuid.uuid4().hex


def write_config(folder: Path, config: Config, run: str) -> None:
    """Write the configuration of a run, with its id and a digest in the first line."""
    write_atomic(folder / CONFIG, seal(f"# run {run}, {BLANK} of this file\n{config.to_toml()}".encode()))


def read_config(folder: Path) -> tuple[Config, str]:
    """Read the configuration of a run and its id; CheckpointError if it is missing, damaged or changed."""
    path = folder / CONFIG
    if not path.is_file():
        raise CheckpointError(f"{folder} is not a run folder (no {CONFIG}); give one that `mlffn train` wrote")
    try:
        content = path.read_bytes()
        text = content.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); restore it or train again") from error
    head = text.partition("\n")[0].split(",")[0]
    if not sealed(content) or not head.startswith("# run "):
        raise CheckpointError(
            f"{path} is damaged, was changed by hand, or is of an earlier version; restore it or train again"
        )
    return Config.from_toml(text, source=str(path)), head.removeprefix("# run ")


def write_sealed(path: Path, values: Mapping[str, Any]) -> None:
    """As :func:`write_json`, with a digest first, which :func:`read_sealed` checks."""
    write_atomic(path, sealed_json(values))


def sealed_json(values: Mapping[str, Any]) -> bytes:
    """Return what :func:`write_sealed` writes."""
    return seal(_json({"seal": BLANK, **values}).encode(errors="surrogateescape"))


def read_sealed(path: Path) -> dict[str, Any]:
    """Read what :func:`write_sealed` wrote, without the digest; ValueError or OSError if it is not as written."""
    content = read_regular(path)
    if not sealed(content):
        lost = "it is damaged or was changed" if MARK in content else "it carries no digest"
        raise ValueError(lost)
    try:
        values = json.loads(content)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(values, dict) or next(iter(values), "") != "seal":
        raise ValueError("its digest does not come first")
    del values["seal"]
    return values


def save_tensors(path: Path, tensors: Mapping[str, Tensor], state: CheckpointState) -> None:
    """Write tensors and ``state`` as one safetensors file with a digest; being one file, all belong together."""
    plain = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    about = {"state": state.model_dump_json(by_alias=True), "seal": BLANK}
    write_atomic(path, seal(safetensors.torch.save(plain, metadata=about)))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], CheckpointState]:
    """Read what :func:`save_tensors` wrote.

    Raises
    ------
    CheckpointError
        If the file is missing, truncated, changed by a single bit, or not one of ours; or a value is impossible.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint {path}; give the folder of a run that `mlffn train` wrote")
    advice = "train again or use a copy"
    try:
        content = path.read_bytes()
        if not sealed(content):
            raise ValueError("its SHA-256 is not the one it carries")
        head = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        state = CheckpointState.model_validate_json(head["__metadata__"]["state"])
        # Copies are aligned in memory, as what was saved had been: a product of matrices has the same last bits.
        tensors = {key: tensor.clone() for key, tensor in safetensors.torch.load(content).items()}
    except ValidationError as error:
        raise CheckpointError(f"checkpoint {path} holds impossible values ({faults(error)}); {advice}") from error
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError, RecursionError, OSError) as error:
        raise CheckpointError(f"checkpoint {path} is truncated, damaged or not ours ({error}); {advice}") from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CheckpointError(f"checkpoint {path} holds values that are not finite, in {name}; {advice}")
    return tensors, state


def load_module(module: nn.Module, tensors: Mapping[str, Tensor], prefix: str, path: Path) -> None:
    """Load the tensors of the checkpoint ``path`` whose names begin with ``prefix``; CheckpointError if they misfit."""
    own = module.state_dict()
    found = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    try:
        if missing := own.keys() - found.keys():  # torch itself forgives some
            raise RuntimeError(f"{min(missing)} is missing")
        for name, tensor in found.items():
            if name in own and own[name].is_floating_point() != tensor.is_floating_point():
                raise RuntimeError(f"{name} is {tensor.dtype}")
        module.load_state_dict(found)
    except RuntimeError as error:
        raise CheckpointError(f"checkpoint {path} does not fit its configuration; restore its config.toml") from error


def history_csv(rows: Sequence[Mapping[str, Any]], run: str) -> str:
    """Return a training's logged steps as a table, the id of the run in its last column."""
    stream = io.StringIO()
    if rows:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([*rows[0], "run"])
        writer.writerows([*map(_plain, row.values()), run] for row in rows)
    return stream.getvalue()


def history_digest(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the SHA-256 of logged steps, for the checkpoint that they lead to; empty without any."""
    return hashlib.sha256(history_csv(rows, "").encode()).hexdigest() if rows else ""


def _plain(value: float) -> str:
    return repr(int(value) if isinstance(value, int) else float(value))


def read_history(path: Path, state: CheckpointState | None = None) -> list[dict[str, float]]:
    """Read a training's logged steps; with the ``state`` of a checkpoint, those that led to it.

    Raises
    ------
    CheckpointError
        If the file is no such table, or not that of the checkpoint; where there is none, unless there shall be some.
    """
    try:
        with io.StringIO(read_regular(path).decode(), newline="") as file:
            lines = list(csv.DictReader(file))
        runs = {line.pop("run") for line in lines}
        rows: list[dict[str, float]] = [{k: float(v) for k, v in line.items()} for line in lines]
        rows = [{**row, "step": int(row["step"])} for row in rows]
    except FileNotFoundError:
        rows, runs = [], set()
    except (OSError, ValueError, TypeError, KeyError, OverflowError, csv.Error) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); restore it or train again") from error
    if state is None:
        return rows
    rows = [row for row in rows if row["step"] <= state.step]
    if runs - {state.run} or history_digest(rows) != state.history:
        raise CheckpointError(f"{path} is not what led to the checkpoint beside it; restore it or train again")
    return rows


def environment(device: torch.device) -> dict[str, Any]:
    """Return device, threads, versions and git commit: what stands beside every measured number."""
    import torchvision

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": str(device),
        "device_name": name,
        "threads": torch.get_num_threads(),
        "versions": {
            "mlffn_lite": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        },
        "git_commit": _git_commit(),
    }


def _git_commit() -> str | None:
    """Return the commit of the checkout this package lies in, None where it is installed without one."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # not some repository that only holds a .venv
        return git("rev-parse", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

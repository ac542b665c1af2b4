"""Run folders: files that appear whole or not at all, checkpoints without pickle, and what a result was measured on."""

from __future__ import annotations

import csv
import json
import math
import os
import platform
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from . import __version__
from .errors import CheckpointError, MlffnError

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
    write_atomic(path, json.dumps(_without_nan(values), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_nan(v) for k, v in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def save_tensors(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write tensors and JSON-able ``state`` as one safetensors file; being one file, both always belong together."""
    plain = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    write_atomic(path, safetensors.torch.save(plain, metadata={"state": json.dumps(state)}))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`save_tensors` wrote.

    Raises
    ------
    CheckpointError
        If the file is missing, truncated, or not one of ours.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint {path}; give the folder of a run that `mlffn train` wrote")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            state = json.loads((file.metadata() or {})["state"])
            # Copies are aligned in memory, as what was saved had been: a product of matrices has the same last bits.
            return {key: file.get_tensor(key).clone() for key in file.keys()}, state  # noqa: SIM118 - not a mapping
    except (safetensors.SafetensorError, KeyError, ValueError, OSError) as error:
        raise CheckpointError(
            f"checkpoint {path} is truncated or not ours ({error}); train again or use a copy"
        ) from error


def load_module(module: nn.Module, tensors: Mapping[str, Tensor], prefix: str, path: Path) -> None:
    """Load the tensors of the checkpoint ``path`` whose names begin with ``prefix``; CheckpointError if they misfit."""
    try:
        module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    except RuntimeError as error:
        raise CheckpointError(f"checkpoint {path} does not fit its configuration; restore its config.toml") from error


def read_history(path: Path) -> list[dict[str, float]]:
    """Read a training's logged steps; none where there is no such file.

    Raises
    ------
    CheckpointError
        If the file is no such table.
    """
    try:
        with path.open(newline="") as file:
            rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
        return [{**row, "step": int(row["step"])} for row in rows]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); remove it to go on") from error


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

"""One loop for all training: it can be stopped anywhere and resumed to the bit.

All randomness of step *n* comes from generators seeded with (seed, purpose, *n*), so a resumed run needs no generator
state: it draws what the uninterrupted run would have drawn.
"""

from __future__ import annotations

import contextlib
import math
import signal
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .config import Config, TrainConfig
from .devices import autocast_dtype, generator_for, resolve_device
from .errors import CheckpointError, TrainingError
from .ownership import own
from .state import CheckpointState, Scaler
from .storage import (
    CHECKPOINT,
    CONFIG,
    HISTORY,
    history_csv,
    history_digest,
    load_module,
    load_tensors,
    new_run,
    read_config,
    read_history,
    save_tensors,
    write_atomic,
    write_config,
)

LOG_EVERY = 10
"""Steps between rows of the history; losses are read back from the device only then."""
_SLOTS: dict[type, set[str]] = {
    torch.optim.SGD: {"momentum_buffer"},
    torch.optim.Adam: {"step", "exp_avg", "exp_avg_sq"},
    torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"},
}
"""What optimisers keep of a parameter."""
SLOWER = 4
"""Times that steps may take as long as they did before a hint says so."""


class Images(Protocol):
    """What the trainer needs of a data set: its length, and images (B, 3, H, W) uint8 by index."""

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return images (B, 3, H, W) uint8, and masks, which are not used."""
        ...


class Interrupted(KeyboardInterrupt):
    """Training was stopped by a signal after the step in ``step``; its checkpoint, if it has a folder, is written."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step = step


class Loop(ABC):
    """Optimiser steps on images, one after another, until there are enough; a subclass says what a step is.

    Parameters
    ----------
    module : nn.Module
        What is trained, in place.
    optimizer : torch.optim.Optimizer
        Over parameters of it; every group has its learning rate under ``peak`` too.
    config : Config
        Seed, device, precision, schedule, clipping and how often to write checkpoints, from the section ``train``.
    folder : Path, optional
        Run folder for ``config.toml``, ``checkpoint.safetensors`` and ``history.csv``; nothing is written without it.
    data : str
        Fingerprint of the training images; a run is not resumed on others.
    batch : int, optional
        Images per step, over all devices; by default ``train.batch``.
    fabric : lightning.fabric.Fabric, optional
        A launched Fabric, to train the same loop on several devices; each takes its share of every batch.
    run : str, optional
        Id of the run, 32 hexadecimal digits; by default a new one. A resumed run keeps its own.

    Attributes
    ----------
    terms : tuple of str
        Names of the losses that a step gives, in the history.
    step : int
        Optimiser steps done.
    history : DataFrame
        Per logged step: the loss terms, gradient norm, learning rate, images per second.
    seconds : float
        Time spent in training, earlier parts of a resumed run included.
    """

    terms: tuple[str, ...]

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: Config,
        *,
        folder: Path | None = None,
        data: str = "",
        batch: int = 0,
        fabric: Any = None,
        run: str = "",
    ) -> None:
        self.config, self.folder, self.data, self.fabric = config, folder, data, fabric
        self.run = run or new_run()
        self.batch = batch or config.train.batch
        self.rank: int = fabric.global_rank if fabric else 0
        self.world: int = fabric.world_size if fabric else 1
        self.device = fabric.device if fabric else resolve_device(config.train.device)
        self.module = module.to(self.device).to(memory_format=torch.channels_last)
        self.network, self.optimizer = module, optimizer
        if fabric:
            self.network, self.optimizer = fabric.setup(module, optimizer)
        self.autocast = autocast_dtype(config.train.precision, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.autocast is torch.float16)
        self.step = 0
        self.seconds = 0.0
        self.rows: list[dict[str, float]] = []
        self._reader: ThreadPoolExecutor | None = None
        self._next: tuple[list[int], Future[tuple[Tensor, Tensor]]] | None = None
        self.hinted = False

    @abstractmethod
    def total_steps(self, images: int) -> int:
        """Return how many steps there are in all, for so many training images."""

    @abstractmethod
    def losses(self, images: Images) -> Sequence[Tensor]:
        """Return the losses of the step :attr:`step`, named by :attr:`terms`; the first is minimised."""

    @property
    def history(self) -> pd.DataFrame:
        """The logged steps, a row each."""
        return pd.DataFrame(self.rows)

    def fit(self, images: Images, *, resume: bool = False, progress: bool = True) -> pd.DataFrame:
        """Run all steps and return the history.

        Parameters
        ----------
        images : Images
            Good training images, such as ``AnomalyFolder(path).train``.
        resume : bool
            Go on from the checkpoint in the run folder, if there is one.
        progress : bool
            Show a bar with losses and rate.

        Raises
        ------
        TrainingError
            If a loss is not finite; the message names the step and the terms.
        CheckpointError
            If ``resume`` finds a checkpoint that is damaged or from another configuration.
        Interrupted
            On Ctrl-C, SIGTERM or SIGHUP, once the step under way is done and its checkpoint written.
        """
        try:
            with contextlib.nullcontext() if self.folder is None else own(self.folder):
                return self._fit(images, resume, progress)
        finally:
            if self._reader is not None:
                self._reader.shutdown(cancel_futures=True)
            self._reader = self._next = None

    def _fit(self, images: Images, resume: bool, progress: bool) -> pd.DataFrame:
        steps = self.total_steps(len(images))
        self._prepare_folder(resume, steps)
        self.network.train()
        pending: list[tuple[int, Tensor]] = []
        lap = time.perf_counter()
        bar = tqdm(total=steps, initial=self.step, unit="step", disable=not progress or self.rank > 0)
        with bar, _stop_on_signal() as stop:
            while self.step < steps:
                lr = self.set_rate(steps)
                losses, norm = self.train_step(images)
                self.step += 1
                pending.append((self.step, torch.stack([*losses, norm]).detach()))
                bar.update()
                stopping = self._agree(stop.is_set())
                save = stopping or self.step == steps or self.step % self.config.train.checkpoint_every == 0
                if save or self.step % LOG_EVERY == 0:
                    seconds = time.perf_counter() - lap
                    lap += seconds
                    self.seconds += seconds
                    self._log(pending, lr, len(pending) * self.batch / seconds, bar)
                    self._hint(bar)
                if save:
                    self.save_checkpoint()
                if stopping and self.step < steps:
                    if self.fabric:
                        self.fabric.barrier()  # no process may end while the first still writes
                    raise Interrupted(self.step)
        return self.history

    def train_step(self, images: Images) -> tuple[Sequence[Tensor], Tensor]:
        """Do one optimiser step; returns the losses and the gradient norm."""
        losses = self.losses(images)
        self.optimizer.zero_grad(set_to_none=True)
        scaled = self.scaler.scale(losses[0])
        if self.fabric:
            self.fabric.backward(scaled)
        else:
            scaled.backward()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self._parameters(), self.config.train.clip or math.inf)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return losses, norm

    def set_rate(self, steps: int) -> float:
        """Set the learning rates of the step :attr:`step` and return that of the first group."""
        return set_rate(self.optimizer, self.config.train, self.step, steps)

    def draw(self, images: Images) -> Tensor:
        """Return this device's share of the step's images, uint8, on the device."""
        indices = self._share(images, self.step)
        if not getattr(images, "in_background", False):
            return images.batch(indices)[0].to(self.device, non_blocking=True)
        known, ready = self._next or (None, None)
        self._reader = self._reader or ThreadPoolExecutor(1, "prefetch")
        found = ready.result() if ready is not None and known == indices else images.batch(indices)
        following = self._share(images, self.step + 1)
        self._next = following, self._reader.submit(images.batch, following)
        return found[0].to(self.device, non_blocking=True)

    def _share(self, images: Images, step: int) -> list[int]:
        """Return which images of a step are this device's."""
        return batch_indices(len(images), self.batch, step, self.config.train.seed)[self.rank :: self.world]

    def _parameters(self) -> list[Tensor]:
        """Return what the optimiser changes, in the order in which it numbers its state."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _agree(self, stop: bool) -> bool:
        """Whether any device was told to stop, asked together now and then: none may leave while others wait for it."""
        if not self.fabric or self.step % LOG_EVERY:
            return stop and not self.fabric
        return bool(self.fabric.all_reduce(torch.tensor(float(stop)), reduce_op="sum") > 0)

    def save_checkpoint(self) -> None:
        """Write history and checkpoint to the run folder (on the first device only)."""
        if self.folder is None or self.rank > 0:
            return
        write_atomic(self.folder / HISTORY, history_csv(self.rows, self.run))
        tensors = {f"model.{k}": v for k, v in self.module.state_dict().items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": torch.as_tensor(v) for k, v in slots.items() if v is not None}
        state = CheckpointState(
            run=self.run,
            step=self.step,
            seconds=self.seconds,
            config=self.config.to_dict(),
            data=self.data,
            history=history_digest(self.rows),
            scaler=Scaler(**self.scaler.state_dict()),
        )
        save_tensors(self.folder / CHECKPOINT, tensors, state)

    def load_checkpoint(self) -> None:
        """Restore step, network, optimiser and history from the run folder, exactly.

        Raises
        ------
        CheckpointError
            If the checkpoint is missing, damaged, or from another configuration.
        """
        assert self.folder is not None
        path = self.folder / CHECKPOINT
        tensors, state = load_tensors(path)
        if read_config(self.folder)[1] != state.run:
            raise CheckpointError(f"{self.folder / CONFIG} and {CHECKPOINT} beside it are of two runs; restore one")
        if not self.config.matches(state.config):
            raise CheckpointError(
                f"checkpoint {path} is from another configuration; go on with the one in {self.folder / CONFIG},"
                " or train into another folder"
            )
        if state.data != self.data:
            raise CheckpointError(f"the training images are not those of {self.folder}; train into another folder")
        rows = read_history(self.folder / HISTORY, state)
        slots = self._slots(tensors, path)
        load_module(self.module, tensors, "model.", path)
        if slots:  # absent once training is done: a detector's checkpoint holds the network alone
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": slots, "param_groups": groups})
        if scaler := state.scaler.model_dump(by_alias=True, exclude_none=True):
            self.scaler.load_state_dict(scaler)
        self.run, self.step, self.seconds, self.rows = state.run, state.step, state.seconds, rows

    def _slots(self, tensors: Mapping[str, Tensor], path: Path) -> dict[int, dict[str, Tensor]]:
        """Return the optimiser's tensors in a checkpoint, by parameter; CheckpointError if one fits nothing."""
        parameters = self._parameters()
        known = _SLOTS.get(type(self.optimizer))
        slots: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if not key.startswith("optimizer."):
                continue
            number, _, name = key.removeprefix("optimizer.").partition(".")
            index = int(number) if number.isascii() and number.isdecimal() and len(number) < 9 else len(parameters)
            if (
                index >= len(parameters)
                or (known is not None and name not in known)
                or value.shape not in (parameters[index].shape, ())
                or not value.is_floating_point()
            ):
                raise CheckpointError(f"checkpoint {path} holds {key}, which fits no parameter; train again")
            slots.setdefault(index, {})[name] = _like(value, parameters[index])
        return slots

    def _prepare_folder(self, resume: bool, steps: int) -> None:
        """Resume, or refuse to overwrite another run; fails now and not at the first checkpoint if it cannot write."""
        if self.folder is None:
            return
        if (self.folder / CHECKPOINT).exists():
            if not resume:
                raise CheckpointError(f"{self.folder} holds a run already; resume it or train into another folder")
            self.load_checkpoint()
            if self.step > steps:
                raise CheckpointError(f"checkpoint {self.folder / CHECKPOINT} is at step {self.step} of {steps}")
        elif self.rank == 0:
            write_config(self.folder, self.config, self.run)

    def _log(self, pending: list[tuple[int, Tensor]], lr: float, rate: float, bar: tqdm) -> None:
        """Read the pending losses back, stop if one is not finite, and keep the last as a row of the history."""
        terms_of = torch.stack([values for _, values in pending])
        if self.fabric:  # the mean over the devices; they stop together or not at all
            terms_of = self.fabric.all_reduce(terms_of)
        # A scaler meets infinite gradients on purpose and skips those steps; elsewhere they ruin the weights.
        checked = self.terms if self.scaler.is_enabled() else (*self.terms, "grad_norm")
        for (step, _), values in zip(pending, terms_of.tolist(), strict=True):
            row = dict(zip((*self.terms, "grad_norm"), values, strict=True))
            if not all(math.isfinite(row[name]) for name in checked):
                terms = ", ".join(f"{name} {row[name]:.4g}" for name in checked)
                raise TrainingError(f"loss is not finite at step {step} ({terms}); lower train.lr or set train.clip")
        self.rows.append({"step": pending[-1][0], **row, "lr": lr, "images_per_s": rate})
        bar.set_postfix({k: f"{row[k]:.3g}" for k in self.terms} | {"img/s": f"{rate:.0f}"}, refresh=False)
        pending.clear()

    def _hint(self, bar: tqdm) -> None:
        """Say once if steps take several times as long as they did: other programs compute here too."""
        rates = [row["images_per_s"] for row in self.rows]
        if self.device.type == "cpu" and not self.hinted and max(rates[-2:]) < max(rates) / SLOWER:
            self.hinted = True
            bar.write(
                f"Steps take {max(rates) / rates[-1]:.0f} times as long as they did. If other programs compute here,"
                " fewer threads may be faster: stop with Ctrl-C and go on with --resume --threads 1.",
                file=sys.stderr,
            )


def batch_indices(count: int, batch: int, step: int, seed: int) -> list[int]:
    """Return the images of a step: consecutive slices of one seeded permutation after the other."""
    indices: list[int] = []
    position = step * batch
    while len(indices) < batch:
        epoch, offset = divmod(position + len(indices), count)
        order = torch.randperm(count, generator=generator_for(seed, "order", epoch))
        indices += order[offset : offset + batch - len(indices)].tolist()
    return indices


def set_rate(optimizer: torch.optim.Optimizer, train: TrainConfig, step: int, steps: int) -> float:
    """Set the learning rates of a step, by ``train.schedule``, and return that of the first group."""
    factor = 1.0
    if train.schedule == "one_cycle":
        warm = max(1, steps // 10)
        done = (step - warm) / max(1, steps - warm)
        factor = (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * done))
    return scale_rates(optimizer, factor)


def scale_rates(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set the learning rates to a share of their peaks and return that of the first group."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
    return float(optimizer.param_groups[0]["lr"])


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    """Give a restored optimiser tensor its parameter's memory layout, as in the uninterrupted run."""
    return torch.empty_like(parameter, device="cpu").copy_(value) if value.shape == parameter.shape else value


@contextlib.contextmanager
def _stop_on_signal() -> Iterator[threading.Event]:
    """Turn Ctrl-C, SIGTERM or a closed terminal into an event, so that no step is cut in two; a third acts at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    signals = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    previous = {s: signal.getsignal(s) for s in signals}

    asked = 0

    def request(*_: object) -> None:
        nonlocal asked
        asked += 1
        stop.set()
        if asked == 2:
            for s in signals:
                signal.signal(s, previous[s])

    for s in signals:
        signal.signal(s, request)
    try:
        yield stop
    finally:
        for s in signals:
            signal.signal(s, previous[s])

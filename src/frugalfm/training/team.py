"""Processes that torchrun started together take every step together, each with some of its rows.

A step is the same whatever their number: the batch and its targets are those of one process, and
gradients are added up (torch's DistributedDataParallel), so that only rounding and dropout's draws
differ. The first process alone writes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from frugalfm.artifacts import Stage, open_stage
from frugalfm.errors import InputError
from frugalfm.training.data import Batch

__all__ = ["ALONE", "Team", "join_team"]

_Found = TypeVar("_Found")


@dataclass(frozen=True)
class Team:
    """Some processes, and the place of this one among them.

    Attributes
    ----------
    rank
        Of this process, from 0.
    size
        Number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes, prints and shows progress for all."""
        return self.rank == 0

    def open(
        self,
        out: Path,
        kind: str,
        config: Mapping[str, Any],
        inputs: Mapping[str, Path | None],
        *,
        overwrite: bool = False,
    ) -> Stage:
        """Open a stage in the first process; all get it, and the first alone holds its lock.

        Parameters are those of :func:`~frugalfm.artifacts.open_stage`.

        Raises
        ------
        InputError
            Of the first process; the others leave without a word.
        """
        told: list[Stage | None] = [None]
        if not self.leads:
            dist.broadcast_object_list(told)
            if told[0] is None:
                raise SystemExit(2)
            return told[0]
        try:
            stage = open_stage(out, kind, config, inputs, overwrite=overwrite)
            told = [replace(stage, lock=None)]
        finally:
            if self.size > 1:
                dist.broadcast_object_list(told)
        return stage

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            dist.barrier()

    def follow(self, work: Callable[[], _Found]) -> _Found:
        """Do in all processes what the first one leaves on disk for the others to find."""
        if not self.leads:
            self.wait()
        found = work()
        if self.leads:
            self.wait()
        return found

    def say(self, text: str) -> None:
        """Print in the first process."""
        if self.leads:
            print(text)

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Make a model that adds up the gradients of all processes as they come."""
        if self.size == 1:
            return model
        place = [device] if device.type == "cuda" else None
        # Heads that a masked-language model carries along get no gradient.
        return DistributedDataParallel(model, device_ids=place, find_unused_parameters=True)

    def share(self, batch: Batch) -> Batch:
        """Give this process its rows of a batch; one without targets where there are too few."""
        return batch if self.size == 1 else batch.take(self.rank, self.size)

    def add(self, *values: float, device: torch.device) -> list[float]:
        """Add up numbers over all processes, which compute on `device`."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(total)
        return list(map(float, total))


ALONE = Team()


@contextmanager
def join_team(device: torch.device, *, flatten: float = 0.0) -> Iterator[Team]:
    """Find the processes that torchrun started with this one; alone without it.

    Parameters
    ----------
    device
        Where this process computes.
    flatten
        Weight of a penalty that is a mean over all tokens of a batch, so that shares cannot tell.

    Raises
    ------
    InputError
        Several processes would share a GPU, or there is a penalty.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or not dist.is_torchelastic_launched() or dist.is_initialized():
        yield ALONE
        return
    if flatten:
        raise InputError(
            f"--flatten {flatten:g} needs whole batches: leave it out, or start one process"
        )
    if device.type == "cuda":
        if device.index != int(os.environ["LOCAL_RANK"]):
            raise InputError(
                f"torchrun started {os.environ['LOCAL_WORLD_SIZE']} processes here for "
                f"{torch.cuda.device_count()} GPU(s), or --device names one for all; leave out "
                "--device, and start a process for each GPU"
            )
        torch.cuda.set_device(device)
    # The first process may encode data for hours; torchrun sees who dies.
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(days=1))
    yield Team(dist.get_rank(), dist.get_world_size())
    # Not where something failed: the others would be waited for.
    dist.destroy_process_group()

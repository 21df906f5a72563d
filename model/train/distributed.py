"""Training in several processes, as `torchrun --nproc-per-node N -m model.train ...` starts them.

Each process takes its slice of every global batch. Losses are divided by the number of
labelled pixels of the GLOBAL batch, gradients are summed, and batch norm sees all
slices, so the loss curve is that of one process. Processes talk over NCCL with one GPU
each if CUDA is present, over Gloo on the CPU otherwise.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")
CPU = torch.device("cpu")


class DistributedError(RuntimeError):
    """The processes cannot be set up, or one of them has ended."""


@dataclass(frozen=True)
class World:
    """This process's place among the processes of the run; by default it is the only one."""

    device: torch.device = CPU
    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes log, state and checkpoint."""
        return self.rank == 0

    def sums(self, *values: float) -> list[float]:
        """Each value summed over all processes, in float64."""
        if self.size == 1:
            return list(values)
        summed = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(summed)
        return list(summed.tolist())

    def total(self, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """An array of counts summed over all processes."""
        if self.size == 1:
            return counts
        summed = torch.from_numpy(counts).to(self.device)
        dist.all_reduce(summed)
        return summed.cpu().numpy()

    def texts(self, lines: list[str]) -> list[str]:
        """The lines of all processes, by rank."""
        if self.size == 1:
            return lines
        gathered: list[list[str]] = [[] for _ in range(self.size)]
        dist.all_gather_object(gathered, lines)
        return [line for part in gathered for line in part]

    def from_main(self, make: Callable[[], T]) -> T:
        """Call `make` in the main process; return its result, or raise its error, in all."""
        if self.size == 1:
            return make()
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = make()
            except Exception as error:  # whatever it is, all processes end with it
                outcome[1] = error
        dist.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]  # type: ignore[no-any-return]

    def together(self, work: Callable[[], T]) -> T:
        """Call `work` in every process; an error in one is raised in all.

        `work` must not communicate between processes.
        """
        if self.size == 1:
            return work()
        result: Any = None
        error: Exception | None = None
        try:
            result = work()
        except Exception as raised:  # whatever it is, all processes end with it
            error = raised
        errors: list[Exception | None] = [None] * self.size
        dist.all_gather_object(errors, error)
        for first in filter(None, errors):
            raise first
        return result  # type: ignore[no-any-return]

    def wrap(self, net: nn.Module) -> nn.Module:
        """Wrap the network so that gradients are averaged over all processes."""
        if self.size == 1:
            return net
        gpus = [self.device] if self.device.type == "cuda" else None
        # Statistics are equal everywhere already, or frozen: nothing to broadcast.
        with warnings.catch_warnings():
            # PyTorch 2.15 has a new name for this option, which earlier ones do not know.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            return DistributedDataParallel(net, device_ids=gpus, broadcast_buffers=False)


@contextmanager
def join() -> Iterator[World]:
    """Connect to the other processes that torchrun started; without torchrun, run alone.

    Raises DistributedError if a host has more processes than GPUs.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(device)
        return
    if device.type == "cuda":
        device = _gpu_of(int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(device, dist.get_rank(), size)
    finally:
        dist.destroy_process_group()


def _gpu_of(local_rank: int) -> torch.device:
    gpus = torch.cuda.device_count()
    if local_rank >= gpus:
        raise DistributedError(
            f"process {local_rank} of this host has no GPU of its own, there are {gpus}: "
            f"start torchrun with --nproc-per-node {gpus} or fewer"
        )
    return torch.device("cuda", local_rank)


def is_lost_peer(error: RuntimeError) -> bool:
    """Whether a collective failed because another process ended before it."""
    return isinstance(error, dist.DistBackendError) or "gloo" in str(error)


def synchronise_batch_norm(net: nn.Module, world: World) -> None:
    """Make every batch norm of `net` use the slices of all processes.

    PyTorch's own SyncBatchNorm has kernels for GPUs only.
    """
    if world.size == 1:
        return
    if world.device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(net)  # type: ignore[no-untyped-call]
        return
    for module in list(net.modules()):
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm2d:
                setattr(module, name, CpuSyncBatchNorm.of(child, world.size))


class CpuSyncBatchNorm(nn.BatchNorm2d):
    """Batch norm over the slices of all processes, which are equally large."""

    processes: int = 1

    @classmethod
    def of(cls, norm: nn.BatchNorm2d, processes: int) -> CpuSyncBatchNorm:
        """A copy of `norm` that sees all processes and shares its parameters and buffers."""
        ours = cls(norm.num_features, eps=norm.eps, momentum=norm.momentum)
        ours.weight, ours.bias = norm.weight, norm.bias
        ours.running_mean, ours.running_var = norm.running_mean, norm.running_var
        ours.num_batches_tracked = norm.num_batches_tracked
        ours.processes = processes
        return ours.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W), normalised over N, H, W of all processes."""
        if not self.training:
            return super().forward(x)
        count = x.numel() // x.shape[1] * self.processes
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        # The mean first: sums of squares of uncentred values cancel in float32.
        mean = _sum_over_processes(values.sum((0, 2, 3))) / count
        centred = values - mean[:, None, None]
        variance = _sum_over_processes(centred.square().sum((0, 2, 3))) / count
        scale = self.weight * torch.rsqrt(variance + self.eps)
        if self.track_running_stats:
            self._track(mean.detach(), variance.detach() * count / max(1, count - 1))
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        self.num_batches_tracked.add_(1)


class _SumOverProcesses(torch.autograd.Function):
    """Sum over all processes; its gradient is summed over all processes as well."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        summed = x.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        summed = gradient.clone()
        dist.all_reduce(summed)
        return summed


def _sum_over_processes(x: Tensor) -> Tensor:
    return _SumOverProcesses.apply(x)  # type: ignore[no-any-return]

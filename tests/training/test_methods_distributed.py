"""Two gloo processes under DDP, each with data of its own: the same weights on both."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from method_cases import METHODS, OPTIMIZERS, batch, net
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sparseprune.training import Serene

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")

STEPS = 4


def train(rank: int, port: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    found = {}
    for name, make in METHODS.items():
        model = DistributedDataParallel(net(), broadcast_buffers=False)
        optimizer = OPTIMIZERS["sgd"](model.parameters())
        method = make().prepare(model, optimizer)
        for step in range(STEPS):
            x, y = batch(2 * step + rank)
            optimizer.zero_grad()
            (nn.functional.cross_entropy(model(x), y) + method.penalty()).backward()
            optimizer.step()
        method.finalize()
        found[name] = dict(model.module.named_parameters())
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_agree(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(train, args=(port, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert set(first) == set(METHODS)
    for name, parameters in first.items():
        for key, value in parameters.items():
            assert torch.equal(value, second[name][key]), (name, key)
    # in one process, two batches are two passes of a step, and their sensitivities are averaged too
    for key, value in in_one_process().items():
        torch.testing.assert_close(first["serene-full"][key], value)


def in_one_process() -> dict[str, torch.Tensor]:
    """The parameters after the same steps, the batches of both processes one after the other."""
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    Serene(0.1).prepare(model, optimizer)
    for step in range(STEPS):
        optimizer.zero_grad()
        for rank in range(2):
            x, y = batch(2 * step + rank)
            (nn.functional.cross_entropy(model(x), y) / 2).backward()
        optimizer.step()
    return dict(model.named_parameters())

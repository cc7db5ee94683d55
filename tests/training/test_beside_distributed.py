"""Two gloo processes under DDP, with data and noise of their own: gates and noise learn alike."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from masked_training import batch, net
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sparseprune.training.hard_concrete import HardConcrete
from sparseprune.training.targeted_dropout import TargetedDropout
from sparseprune.training.variational import VariationalDropout

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")

METHODS = {
    "variational": lambda: VariationalDropout(100, initial=-4.0, threshold=1.0),
    "gates": lambda: HardConcrete(1e-3, 100, drop=0.91, lr=0.02),
    "targeted": lambda: TargetedDropout(0.5, 0.5),
}


def train(rank: int, port: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    found = {}
    for name, make in METHODS.items():
        plain = net()
        torch.manual_seed(rank)  # first values of the gates, and all noise, differ
        optimizer = torch.optim.Adam(plain.parameters(), 0.01)
        method = make().prepare(plain, optimizer)
        model = DistributedDataParallel(plain)
        for step in range(15):
            x, y = batch(2 * step + rank)
            optimizer.zero_grad()
            (nn.functional.cross_entropy(model(x), y) + method.penalty()).backward()
            optimizer.step()
        learnt = {key: value.clone() for key, value in plain.state_dict().items()}
        found[name] = {"learnt": learnt, "masks": dict(method.finalize())}
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
    for name in METHODS:
        for part in ("learnt", "masks"):
            one, other = first[name][part], second[name][part]
            assert one.keys() == other.keys()
            assert all(torch.equal(one[key], other[key]) for key in one), (name, part)
    assert any(key.endswith("log_sigma2") for key in first["variational"]["learnt"])
    for name in ("variational", "gates"):
        shares = [mask.float().mean() for mask in first[name]["masks"].values()]
        assert 0 < min(shares) < 1, name

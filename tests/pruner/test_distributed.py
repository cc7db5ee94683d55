"""Two gloo processes under DDP: identical masks and weights on both (trap 6)."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from masked_training import batch, holds, net
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sparseprune import prune
from sparseprune.pruning import Pruner
from sparseprune.schedules import Schedule, rigl, set_evolution

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")


def noisy(weight: torch.Tensor) -> torch.Tensor:
    """A criterion on which two processes never agree by themselves."""
    return torch.rand(weight.shape, generator=torch.Generator().manual_seed(dist.get_rank()))


def own_data() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of this process alone: their sums decide."""
    return [batch(200 + dist.get_rank()), batch(300 + dist.get_rank())]


RULES: dict[str, dict[str, Any]] = {
    "gradual": {"schedule": Schedule(0, 12, 3)},
    "noisy": {"schedule": Schedule(0, 12, 3), "criterion": noisy, "pattern": "filter"},
    "measured": {"schedule": Schedule(0, 12, 3), "criterion": "sparsegpt", "data": own_data},
    "rigl": {"regrowth": rigl(20, 3)},
    "set": {"regrowth": set_evolution(20, 3)},
}


def train(rank: int, port: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    found = {}
    for name, rule in RULES.items():
        model = DistributedDataParallel(net())
        optimizer = torch.optim.Adam(model.parameters(), 0.01, weight_decay=0.1)
        pruner = Pruner(0.7, scope="local", **rule).prepare(model, optimizer)
        for step in range(15):
            x, y = batch(2 * step + rank)  # each process has data of its own
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            pruner.step()
        assert holds(pruner.masks, model.module, optimizer)
        found[name] = {"masks": dict(pruner.finalize()), "model": model.module.state_dict()}
    sharded()
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def sharded() -> None:
    """FSDP2: masks made before hold on shards; pruning shards is refused."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = net()
    masks = prune(model, 0.6)
    expected = {name: mask.clone() for name, mask in masks.items()}
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = torch.optim.Adam(model.parameters(), 0.01, weight_decay=0.1)
    masks.attach(model, optimizer)
    for step in range(5):
        x, y = batch(2 * step + dist.get_rank())
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        for name, mask in expected.items():
            parameter = model.get_parameter(name)
            assert torch.equal(parameter.full_tensor() != 0, mask)
            assert not optimizer.state[parameter]["exp_avg"].full_tensor()[~mask].any()
    with pytest.raises(ValueError, match="must be whole in every process, got one sharded"):
        Pruner(0.7).prepare(model, optimizer)


def test_masks_and_weights_are_identical_on_both_processes(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(train, (port, str(tmp_path)), nprocs=2)
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for rule in RULES:
        for part in ("masks", "model"):
            assert list(one[rule][part]) == list(two[rule][part])
            for name, value in one[rule][part].items():
                assert torch.equal(value, two[rule][part][name]), (rule, part, name)

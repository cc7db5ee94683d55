"""Two gloo ranks with different data: the same masks on both, those of all the data."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hand import images
from torch import Tensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from sparseprune.criteria import weight_scores
from sparseprune.prune import prune

NAMES = ["taylor", "obd_fisher", "wanda", "sparsegpt", "snip", "grasp", "correlation", "apoz",
         "taylor_activation", "entropy", "oracle", "random", "regularised"]  # fmt: skip
"""One of each kind of statistic: sums, rows, two passes, whole-model measurements."""


def scores_of(name: str, data: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    return weight_scores(images()[0], name, data, F.cross_entropy, ignore="7")


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    model, data = images()
    mine = data[:1] if rank == 0 else data[1:]  # 5 samples in one batch, 6 in two
    found: dict[str, object] = {name: scores_of(name, mine) for name in NAMES}
    wrapped = DistributedDataParallel(model)
    for name in ("taylor", "sparsegpt"):
        masks = prune(wrapped, 0.5, name, data=mine, loss=F.cross_entropy)
        assert next(iter(masks)) == "module.0.weight"
        found[f"ddp {name}"] = {**masks, "weight": model[4].weight.detach().clone()}
    try:
        scores_of("taylor", mine if rank else [])
    except Exception as error:
        found["error"] = f"{type(error).__name__}: {error}"
    torch.save(found, Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, dict[str, Tensor]]]:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(work, (folder,), nprocs=2)
        return [torch.load(Path(folder, f"{rank}.pt")) for rank in range(2)]


@pytest.mark.parametrize("name", [*NAMES, "ddp taylor", "ddp sparsegpt"])
def test_ranks_agree_to_the_bit(ranks: list[dict[str, dict[str, Tensor]]], name: str) -> None:
    one, two = (rank[name] for rank in ranks)
    assert list(one) == list(two) and all(torch.equal(one[n], two[n]) for n in one)


@pytest.mark.parametrize("name", NAMES)
def test_ranks_have_seen_all_data(ranks: list[dict[str, dict[str, Tensor]]], name: str) -> None:
    expected = scores_of(name, images()[1])
    for key, score in expected.items():
        assert torch.allclose(ranks[0][name][key], score, rtol=1e-4, atol=1e-6), key


def test_if_one_rank_fails_all_do(ranks: list[dict[str, str]]) -> None:
    assert ranks[0]["error"].startswith("ValueError: weight_scores, criterion 'taylor': data must")
    assert ranks[1]["error"].startswith("RuntimeError: rank 0 failed: weight_scores")

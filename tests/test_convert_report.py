"""The report of convert()."""

from __future__ import annotations

import json

import torch
from convert_models import Mlp, as_convert_is_tested, prune_
from torch import nn

from sparseprune import convert
from sparseprune.prune import prune
from sparseprune.report import Report

pytestmark = as_convert_is_tested


def test_report_fields_and_round_trips(sparse_wins: list[dict[str, float]]) -> None:
    model, x = prune_(Mlp()), torch.randn(6, 24)
    report = convert(model, x).report
    assert isinstance(report, Report)
    assert [r.name for r in report.rows] == [
        "first", "blocks.0.0", "blocks.1.0", "heads.a", "heads.b",
    ]  # fmt: skip
    first = report.rows[0]
    nonzeros = int(model.first.weight.count_nonzero())
    assert (first.kind, first.shape, first.pattern) == ("Linear", (32, 24), "unstructured")
    assert (first.nonzeros, first.sparsity) == (nonzeros, 1 - nonzeros / 768)
    assert (first.dense_bytes, first.dense_ms, first.sparse_ms) == (768 * 4, 1.0, 0.5)
    assert sum(report.kernels.values()) == len(report.rows)
    assert report.nonzeros == sum(r.nonzeros for r in report.rows)
    assert report.packed_bytes == sum(r.packed_bytes for r in report.rows) != report.dense_bytes
    assert report.speedup == 2.0
    again = Report.from_dict(json.loads(json.dumps(report.to_dict())))
    assert again == report
    text = str(report)
    for word in ("first", "blocks.0.0", "Linear", "32x24", "csr/", "2.00x"):
        assert word in text
    assert Report().speedup is None
    assert "weights: 0 bytes" in str(Report())


def test_a_root_layer_has_a_name() -> None:
    report = convert(prune_(nn.Linear(8, 8)), torch.randn(2, 8)).report
    assert [r.name for r in report.rows] == ["(model)"]


def test_tied_weights_count_once_in_totals() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    model[1].weight = model[0].weight
    prune(model, 0.5)
    report = convert(model, torch.randn(2, 16), keep_dense="never").report
    assert [row.tied_to for row in report.rows] == ["", "0"]
    assert report.dense_bytes == 16 * 16 * 4
    assert report.nonzeros == int(model[0].weight.count_nonzero())

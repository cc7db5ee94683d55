"""The pruning experiments: rows, resuming, tables, training, and the committed results."""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
sys.path.insert(0, str(Path(__file__).parent.parent))  # benchmarks is not installed

from benchmarks.pruning import __main__ as pruning
from benchmarks.pruning import images, tables
from benchmarks.pruning.experiment import Claim, Experiment, Published, Results, Row
from benchmarks.pruning.store import Store
from benchmarks.pruning.training import CONV, MLP, NETWORKS, VGG, Task
from sparseprune import Masks, prune
from sparseprune.training import L1

COMMITTED = pruning.OUT
EXPERIMENTS = sorted(pruning.EXPERIMENTS)
QUICK = [pytest.param(n, marks=[pytest.mark.slow] * (n == "curves")) for n in EXPERIMENTS]


def _key(row: Row) -> tuple[str, str, str]:
    return row.network, row.setting, row.measure


def _probe(fails: bool = False) -> Experiment:
    """An experiment without training: the seed, and noise of torch's global generator."""

    def run(task: Task, seed: int) -> Iterator[Row]:
        yield Row("net", "first", "value", float(seed))
        yield Row("net", "first", "noise", float(torch.rand(())))
        if fails and seed == 2:
            raise RuntimeError("stopped")
        yield Row("net", "second", "value", 10.0 + seed)

    published = (
        Published("net", "first", "paper", {"value": "1.5"}),
        Published("net", "only there", "paper", {"other": "7"}),
        Published("other net", "first", "paper", {"value": "9"}),
    )
    claims = (
        Claim("rises", lambda r: (r.median("net", "second", "value") > 5, "numbers")),
        Claim("falls", lambda r: (False, "not this")),
    )
    draw = lambda results, figure: figure.subplots().plot([1, 2])  # noqa: E731
    return Experiment("probe", "A probe", run, published, "nothing", draw, claims)


def _main(out: Path, *arguments: str, experiment: Experiment | None = None) -> int:
    known = {"probe": experiment or _probe()}
    return pruning.main([*arguments, "--out", str(out)], known)


def _lines(out: Path) -> list[dict[str, str]]:
    with (out / "probe.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_csv_holds_every_seed_with_machine_and_versions(tmp_path: Path) -> None:
    assert _main(tmp_path, "--seeds", "3") == 0
    lines = _lines(tmp_path)
    assert [(line["seed"], line["measure"]) for line in lines] == [
        (seed, measure) for seed in "012" for measure in ("value", "noise", "value")
    ]
    assert [float(line["value"]) for line in lines if line["setting"] == "second"] == [10, 11, 12]
    for line in lines:
        assert line["torch"] == torch.__version__ and line["threads"] == "1"
        assert line["data"] == "digits" and line["epochs"] == "100" and line["cpu"]
    assert (tmp_path / "probe.png").read_bytes().startswith(b"\x89PNG")


def test_a_seed_gives_the_same_noise_again_and_seeds_differ(tmp_path: Path) -> None:
    noise = []
    for folder in ("a", "b"):
        torch.rand(7)  # the state before must not matter, nor be changed
        before = torch.get_rng_state()
        assert _main(tmp_path / folder, "--seeds", "2") == 0
        assert torch.equal(before, torch.get_rng_state())
        lines = _lines(tmp_path / folder)
        noise.append([line["value"] for line in lines if line["measure"] == "noise"])
    assert noise[0] == noise[1] and noise[0][0] != noise[0][1]


def test_a_stopped_run_goes_on_with_the_seeds_that_are_missing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stopped"):
        _main(tmp_path, "--seeds", "4", experiment=_probe(fails=True))
    first = _lines(tmp_path)
    assert {line["seed"] for line in first} == {"0", "1"}  # nothing of the one that failed
    assert _main(tmp_path, "--seeds", "4") == 0
    assert _lines(tmp_path)[: len(first)] == first
    assert {line["seed"] for line in _lines(tmp_path)} == set("0123")
    complete = (tmp_path / "probe.csv").read_bytes()
    assert _main(tmp_path, "--seeds", "4", experiment=_probe(fails=True)) == 0  # nothing runs
    assert (tmp_path / "probe.csv").read_bytes() == complete


def test_other_epochs_do_not_mix_with_what_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _main(tmp_path, "--seeds", "1") == 0
    before = (tmp_path / "probe.csv").read_bytes()
    assert _main(tmp_path, "--seeds", "2", "--epochs", "3") == 2
    assert "epochs 3" in capsys.readouterr().out
    assert (tmp_path / "probe.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("prob",), "did you mean 'probe'"),
        (("--seeds", "0"), "at least 1"),
        (("--epochs", "0"), "at least 1"),
        (("--threads", "0"), "at least 1"),
        (("--data", "no such folder"), "'digits' or a folder"),
    ],
)
def test_bad_arguments_are_named(
    tmp_path: Path, arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _main(tmp_path, *arguments) == 2
    assert said in " ".join(capsys.readouterr().out.split())
    assert not list(tmp_path.iterdir())


def test_tables_put_published_below_measured_and_verdicts_below_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _main(tmp_path, "--seeds", "3") == 0
    shown = (tmp_path / "README.md").read_text()
    rows = [line for line in shown.splitlines() if line.startswith("| ")]
    first = rows.index(next(row for row in rows if row.startswith("| first | measured")))
    assert "| 1 [0..2] |" in rows[first]  # the median, then the smallest and the largest
    assert rows[first + 1].startswith("| first | published, paper | 1.5 | -")
    assert any(row.startswith("| only there | published, paper | - | - | 7") for row in rows)
    assert "**other net**" in shown and "| first | published, paper | 9 |" in shown
    assert "- holds: rises: numbers" in shown and "- **does not hold**: falls: not this" in shown
    said = capsys.readouterr().out
    assert "does not hold: falls" in said and "holds: rises" in said


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_says_what_differs_and_quotes_papers(name: str) -> None:
    experiment = pruning.EXPERIMENTS[name]
    assert experiment.name == name and experiment.differs.endswith(".") and experiment.claims
    assert experiment.published
    keys = [(p.network, p.setting, p.of) for p in experiment.published]
    assert len(set(keys)) == len(keys)
    assert all(number for p in experiment.published for number in p.numbers.values())


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_committed_results_are_complete_and_the_readme_is_made_from_them(name: str) -> None:
    experiment, store = pruning.EXPERIMENTS[name], Store(COMMITTED / f"{name}.csv")
    results = store.results()
    assert set(results.seeds) == set(range(5))
    rows = [[_key(row) for row in rows] for rows in results.seeds.values()]
    assert all(keys == rows[0] and len(set(keys)) == len(keys) for keys in rows)
    for published in experiment.published:  # a line of the paper stands in a table
        assert published.network in tables.networks(experiment, results)
    beside = {(p.network, p.setting) for p in experiment.published}
    measured = {(r.network, r.setting) for r in results.seeds[0]}
    assert beside & measured or name == "lobster"  # whose papers print other networks only
    assert tables.markdown(experiment, store) in (COMMITTED / "README.md").read_text()
    assert (COMMITTED / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_median_and_order_of_results() -> None:
    row = Row("n", "s", "m", 0.0)
    results = Results({seed: [replace(row, value=v)] for seed, v in enumerate((3.0, 1.0, 2.0))})
    assert results.values("n", "s", "m") == [3, 1, 2] and results.median("n", "s", "m") == 2
    assert results.values("n", "s", "x") == []
    assert tables.spread([3, 1, 2]) == "2 [1..3]" and tables.spread([1, 1]) == "1"
    assert tables.spread([50610]) == "50,610" and tables.spread([]) == "-"


def _small(epochs: int = 2) -> Task:
    found = images.load("digits")
    few = {"x_train": found.x_train[:300], "y_train": found.y_train[:300]}
    return Task(replace(found, **few), epochs)


@pytest.mark.filterwarnings("ignore:prune")  # networks as good as untrained have strange layers
@pytest.mark.parametrize("name", QUICK)
def test_experiments_yield_the_lines_that_are_committed(name: str) -> None:
    rows = list(pruning.EXPERIMENTS[name].run(_small(1), 0))
    assert all(math.isfinite(row.value) for row in rows)
    committed = Store(COMMITTED / f"{name}.csv").results().seeds[0]
    assert [_key(row) for row in rows] == [_key(row) for row in committed]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("shape", [(1, 8), (1, 28), (3, 32)])
def test_networks_take_every_data_set(network: str, shape: tuple[int, int]) -> None:
    channels, side = shape
    x = torch.zeros(2, channels, side, side)
    task = Task(images.Images("none", x, torch.zeros(2), x, torch.zeros(2)), 1)
    model, again = task.build(network, 3), task.build(network, 3)
    assert model(x).shape == (2, 10)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))  # noqa: B905
    other = task.build(network, 4)
    assert not torch.equal(next(model.parameters()), next(other.parameters()))


@pytest.mark.parametrize(("network", "weights"), [(MLP, 266_200), (CONV, 430_500)])
def test_networks_for_mnist_are_the_published_ones(network: str, weights: int) -> None:
    x = torch.zeros(1, 1, 28, 28)
    task = Task(images.Images("none", x, torch.zeros(1), x, torch.zeros(1)), 1)
    parameters = [p for p in task.build(network, 0).parameters() if p.dim() > 1]
    assert sum(p.numel() for p in parameters) == weights


def test_fit_learns_keeps_zeros_and_repeats_itself() -> None:
    task = _small(8)
    models = [task.build(MLP, 0) for _ in range(2)]
    assert task.error(models[0]) > 60
    for model in models:
        masks = prune(model, 0.5)
        task.fit(model, 5, masks=masks)
        assert Masks.from_model(model) == masks
    assert task.error(models[0]) < 25
    states = [model.state_dict() for model in models]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_fit_prepares_and_finalizes_methods() -> None:
    task = _small()
    epochs: list[int] = []
    sizes = []
    for strength in (0.0, 0.1):
        model, method = task.build(MLP, 0), L1(strength)
        task.fit(model, 0, methods=[method], after_epoch=lambda: epochs.append(1))
        method.prepare(model, torch.optim.SGD(model.parameters(), 0.1))  # it is free again
        sizes.append(sum(float(p.detach().abs().sum()) for p in model.parameters()))
    assert sizes[1] < 0.9 * sizes[0] and len(epochs) == 2 * task.epochs


def test_sample_is_balanced() -> None:
    [(x, y)] = _small().sample(7, seed=0)
    assert x.shape == (70, 1, 8, 8) and y.bincount().tolist() == [7] * 10
    [(other, _)] = _small().sample(7, seed=1)
    assert not torch.equal(x, other)


def test_steps_count_the_last_batch() -> None:
    assert _small(3).steps == 3 * 5  # 300 images in batches of 64
    assert _small(10).part(0.25).epochs == 2 and _small(1).part(0.1).epochs == 1


def test_small_vgg_has_what_unit_criteria_need() -> None:
    model = _small().build(VGG, 0)
    kinds = [type(module) for module in model]  # type: ignore[attr-defined]
    after = [kinds[i + 1 : i + 3] for i, kind in enumerate(kinds) if kind is nn.Conv2d]
    assert len(after) == 4 and all(pair == [nn.BatchNorm2d, nn.ReLU] for pair in after)

"""Steps 1 and 2: networks trained and pruned over several seeds, beside the published numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import mean

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import nn

from sparseprune.data import Digits
from sparseprune.demo.train import Trial, run_trial, weights
from sparseprune.zoo import parameter_count


@dataclass(frozen=True)
class Published:
    """What Han et al. (2015) report on MNIST."""

    dense_error: float  # percent
    pruned_error: float
    dense_parameters: str
    pruned_parameters: str
    compression: int
    layer_sparsity: str  # percent, as printed in Molchanov et al. (2017)


@dataclass(frozen=True)
class Case:
    """A network of the accuracy steps."""

    title: str
    build: Callable[[], nn.Module]
    published: Published


@dataclass(frozen=True)
class Accuracy:
    """A network's trials, one per seed."""

    title: str
    published: Published
    trials: tuple[Trial, ...]

    @property
    def dense(self) -> list[float]:
        """Test accuracy in percent before pruning, per seed."""
        return [trial.dense_accuracy for trial in self.trials]

    @property
    def pruned(self) -> list[float]:
        """Test accuracy in percent after the last round, per seed."""
        return [trial.pruned_accuracy for trial in self.trials]

    @property
    def drop(self) -> float:
        """Mean dense minus mean pruned accuracy, in points; negative where pruning helped."""
        return mean(self.dense) - mean(self.pruned)

    @property
    def weights(self) -> int:
        """Number of weights of the dense network, biases not counted."""
        return sum(w.numel() for w in weights(self.trials[0].pruned).values())

    @property
    def kept(self) -> int:
        """Most nonzero weights over the seeds, biases not counted."""
        return max(_nonzeros(trial.pruned) for trial in self.trials)

    @property
    def compression(self) -> float:
        """weights / nonzero weights of the least compressed seed, biases not counted."""
        return self.weights / self.kept

    @property
    def layer_sparsity(self) -> str:
        """Percent of zeros of each layer of the first seed."""
        layers = weights(self.trials[0].pruned).values()
        return ", ".join(f"{100 * float(w.eq(0).float().mean()):.0f}" for w in layers) + " %"

    @property
    def compression_with_biases(self) -> float:
        """The same with every bias counted as kept."""
        parameters = parameter_count(self.trials[0].pruned)
        return parameters / (parameters - self.weights + self.kept)


def _nonzeros(model: nn.Module) -> int:
    return sum(int(w.count_nonzero()) for w in weights(model).values())


def measure(
    cases: tuple[Case, ...],
    data: Digits,
    seeds: int,
    console: Console,
    *,
    epochs: int,
    rounds: int,
    round_epochs: int,
    compression: float,
) -> list[Accuracy]:
    """Trains and prunes every case once per seed, with a progress bar over all epochs."""
    columns = (
        TextColumn("  {task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("epochs"),
        TimeElapsedColumn(),
    )
    found = []
    with Progress(*columns, console=console) as progress:
        for case in cases:
            total = seeds * (epochs + rounds * round_epochs)
            task = progress.add_task(case.title, total=total)
            trials = tuple(
                run_trial(
                    case.build,
                    data,
                    seed,
                    epochs=epochs,
                    rounds=rounds,
                    round_epochs=round_epochs,
                    compression=compression,
                    on_epoch=partial(progress.advance, task),
                )
                for seed in range(seeds)
            )
            found.append(Accuracy(case.title, case.published, trials))
    return found


def print_seeds(results: list[Accuracy], console: Console) -> None:
    """Test accuracy before and after, per seed and as mean with min and max."""
    table = Table(title="Test accuracy in percent", title_justify="left")
    table.add_column("network")
    table.add_column("seed")
    for header in ("dense", "pruned", "difference"):
        table.add_column(header, justify="right")
    for result in results:
        for trial in result.trials:
            before, after = trial.dense_accuracy, trial.pruned_accuracy
            row = (f"{before:.2f}", f"{after:.2f}", f"{after - before:+.2f}")
            table.add_row(result.title, str(trial.seed), *row)
        means = (_spread(result.dense), _spread(result.pruned), f"{-result.drop:+.2f}")
        table.add_row(result.title, "mean (min to max)", *means, style="bold", end_section=True)
    console.print(table)


def _spread(values: list[float]) -> str:
    return f"{mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def print_published(results: list[Accuracy], data: Digits, console: Console) -> None:
    """Measured numbers beside those of Han et al., and what differs between the two."""
    table = Table(title="Beside Han et al. (2015)", title_justify="left")
    table.add_column("network")
    table.add_column("numbers")
    headers = ("error dense", "error pruned", "parameters", "kept", "compression", "zeros by layer")
    for header in headers:
        table.add_column(header, justify="right")
    for result in results:
        paper = result.published
        table.add_row(
            result.title,
            "published, MNIST",
            f"{paper.dense_error:.2f} %",
            f"{paper.pruned_error:.2f} %",
            paper.dense_parameters,
            paper.pruned_parameters,
            f"{paper.compression}x",
            paper.layer_sparsity,
        )
        table.add_row(
            "",
            "measured, digits",
            f"{100 - mean(result.dense):.2f} %",
            f"{100 - mean(result.pruned):.2f} %",
            f"{result.weights:,}",
            f"{result.kept:,}",
            f"{result.compression:.1f}x ({result.compression_with_biases:.1f}x with biases)",
            result.layer_sparsity,
            end_section=True,
        )
    console.print(table)
    console.print(
        f"  What differs: the paper used MNIST (28x28 pixels, 60,000 training and 10,000 test "
        f"images); these are scikit-learn's digits (8x8 pixels, {len(data.x_train):,} training "
        f"and {len(data.x_test)} test images, so that one image is "
        f"{100 / len(data.x_test):.2f} points). First layers are smaller to fit. The measured "
        f"counts are weights without biases; one threshold is used for the whole network, the "
        f"paper has one per layer.\n  The settings were chosen on these same test images, and a "
        f"pruned network has been trained for longer than its dense one: read the difference, not "
        f"the level.",
        style="dim",
    )

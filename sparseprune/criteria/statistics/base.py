"""Statistics: what is measured about every weight, and what they are told while batches run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from sparseprune.criteria.statistics.batches import Batch, Data, Loss, stream
from sparseprune.errors import bad

Found: TypeAlias = dict[str, Tensor]
"""Weight name -> what was measured about it."""


@dataclass(frozen=True)
class Layer:
    """One weight to score and every module that uses it (several if it is tied)."""

    name: str
    weight: nn.Parameter
    modules: tuple[nn.Module, ...]

    @property
    def groups(self) -> int:
        """Groups of a convolution; 1 for a linear layer."""
        return int(getattr(self.modules[0], "groups", 1))

    @property
    def is_linear(self) -> bool:
        """Whether units lie in the last dimension of the output, not in the second."""
        return isinstance(self.modules[0], nn.Linear)

    @property
    def dtype(self) -> torch.dtype:
        """What its statistics are summed in: float32, or float64 for a float64 weight."""
        return torch.promote_types(self.weight.dtype, torch.float32)


@dataclass
class Run:
    """A model to measure, its weights to score, and the data and loss to measure with.

    operation: who asks; begins every error message.
    """

    operation: str
    model: nn.Module
    layers: dict[str, Layer]
    data: Data | None = None
    loss: Loss | None = None

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """Name -> parameter of every layer."""
        return {name: layer.weight for name, layer in self.layers.items()}

    def batches(self) -> Iterator[Batch]:
        """All batches, on the device of the weights; an error if there are none."""
        device = next(iter(self.layers.values())).weight.device
        return stream(self.operation, self.data, device)


@dataclass
class Step:
    """What became of one batch: the model's output, and where asked for its loss and gradients.

    gradients: of the loss by every weight, zeros where the weight took no part; with their graph
        if an observer asked for it.
    activations: (weight name, unit activations) of every call, in order, with their graph.
    """

    run: Run
    batch: Batch
    output: Any = None
    loss: Tensor | None = None
    gradients: dict[str, Tensor] = field(default_factory=dict)
    activations: list[tuple[str, Tensor]] = field(default_factory=list)


class Statistic(ABC):
    """One measurement of all weights.

    name: its key in a criterion's `stats`.
    requires: statistics to be measured before it, found in `known` then.
    reads: how often it reads the data by itself; observers share one pass.
    """

    name: ClassVar[str]
    requires: ClassVar[tuple[Callable[[], Statistic], ...]] = ()
    reads: ClassVar[int] = 1

    known: Mapping[str, Found]

    @abstractmethod
    def measure(self, run: Run) -> Found:
        """The result for every weight of the run."""


class Observer(Statistic):
    """A statistic that adds up over batches: all observers of a criterion share one pass.

    Sums go into `add`; they are then summed over the ranks of torch.distributed, and `result`
    makes the statistic of each layer from them.
    """

    reads = 0
    uses_loss: ClassVar[bool] = False
    """Whether it needs the loss and its gradients by the weights."""
    uses_graph: ClassVar[bool] = False
    """Whether gradients must be differentiable."""
    uses_units: ClassVar[bool] = False
    """Whether it listens to unit activations."""
    each_sample: ClassVar[bool] = False
    """Whether the samples of a batch must run one by one."""

    def __init__(self) -> None:
        self.sums: dict[tuple[str, str], Tensor] = {}
        self.rows: dict[str, list[Tensor]] = {}

    def add(self, layer: str, key: str, value: Tensor | float) -> None:
        """Adds to the sum `key` of a layer."""
        if not isinstance(value, Tensor):
            value = torch.tensor(float(value), dtype=torch.float64)
        old = self.sums.get((layer, key))
        self.sums[layer, key] = value.detach() if old is None else old + value.detach()

    def on_input(self, layer: Layer, module: nn.Module, x: Tensor) -> None:
        """A module was called with x."""

    def on_units(self, layer: Layer, units: Units) -> None:
        """The activation of a layer's units is known."""

    def on_unit_gradient(self, layer: Layer, units: Units, gradient: Tensor) -> None:
        """So is the gradient of the batch's loss by it, of the same shape."""

    def on_step(self, step: Step) -> None:
        """The batch has run, backward included where `uses_loss`."""

    @abstractmethod
    def result(self, layer: Layer, sums: Mapping[str, Tensor]) -> Tensor:
        """The statistic of one layer from its sums."""

    def measure(self, run: Run) -> Found:
        """The result of every layer, from the sums; the pass over the data is `collect`'s."""
        found = {}
        for name, layer in run.layers.items():
            sums = {key: value for (of, key), value in self.sums.items() if of == name}
            if not sums and name not in self.rows:
                way_out = "add the layer to ignore; its owner may read the weight past the module"
                got = "no call on any batch"
                raise bad(run.operation, f"layer of {name!r}", "called by the model", got, way_out)
            found[name] = self.result(layer, sums)
        return found


@dataclass(frozen=True)
class Units:
    """The activation of a layer's units in one call: after batch norm and nonlinearity, if any.

    value: the tensor as the next layer gets it.
    x: what the layer itself was called with; module: which one, if the weight is tied.
    function: name of the last function applied, e.g. "relu"; "" for the layer's bare output.
    """

    module: nn.Module
    x: Tensor
    value: Tensor
    function: str = ""

    def by_unit(self, tensor: Tensor | None = None) -> Tensor:
        """`value`, or a tensor of its shape, as [samples, units, positions]."""
        t = (self.value if tensor is None else tensor).detach()
        if not isinstance(self.module, nn.Linear):
            if t.dim() == len(self.module.kernel_size) + 1:  # type: ignore[arg-type]
                t = t.unsqueeze(0)
            return t.flatten(2)
        if t.dim() == 1:
            t = t.unsqueeze(0)
        return t.reshape(t.shape[0], -1, t.shape[-1]).transpose(1, 2)

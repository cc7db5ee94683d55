"""Pruner: masks that follow a schedule while a model trains."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from sparseprune import patterns
from sparseprune.criteria import Criterion
from sparseprune.criteria.statistics import Data, Loss
from sparseprune.criteria.statistics.quiet import unwrapped
from sparseprune.errors import bad, bad_type, warn
from sparseprune.masks import Masks
from sparseprune.patterns import Pattern
from sparseprune.prune import Sparsity, prune, targets
from sparseprune.pruning.distributed import agreed
from sparseprune.pruning.regrow import regrow
from sparseprune.schedules import Regrowth, Schedule
from sparseprune.selection import Ignore


class Pruner:
    """Prunes a model step by step while it trains: prepare, step after step, finalize.

    ::

        pruner = sp.Pruner(0.9, Schedule(begin=100, end=1000, frequency=50))
        pruner.prepare(model, optimizer)
        for x, y in data:
            loss(model(x), y).backward()
            optimizer.step()
            pruner.step()  # before zero_grad, so that regrowth sees the gradients
            optimizer.zero_grad()
        masks = pruner.finalize()

    Pruned weights are exact zeros from the moment they are pruned, through momentum, weight decay,
    AMP and `load_state_dict` (see `Masks.attach`). A step is one call of `step()`, so with
    gradient accumulation call it once per step of the optimizer.

    With torch.distributed initialised every process calls the same methods; after each update
    masks and pruned weights are sent from the first one, so they are identical everywhere. Weights
    sharded by FSDP2 are refused: prune before `fully_shard`, then `Masks.attach`.
    """

    def __init__(
        self,
        sparsity: Sparsity,
        schedule: Schedule | None = None,
        criterion: str | Criterion = "magnitude",
        scope: str = "global",
        pattern: str | Pattern = "unstructured",
        ignore: Ignore = (),
        data: Data | None = None,
        loss: Loss | None = None,
        regrowth: Regrowth | None = None,
    ) -> None:
        """
        sparsity: of the end, as for `prune`: one share, or {name: share}.
        schedule: when and how; by default everything in `prepare`.
        criterion, scope, pattern, ignore, data, loss: as for `prune`. Batches of `data` are read
            anew in every update of the masks.
        regrowth: moves weights at constant sparsity (`rigl`, `set_evolution`); needs the pattern
            "unstructured". In a step where both are due, pruning comes first.

        Raises ValueError or TypeError naming the argument; the rest is checked by `prepare`.
        """
        self.pattern = patterns.resolve(pattern, "Pruner")
        self.schedule = schedule or Schedule()
        if not isinstance(self.schedule, Schedule):
            way_out = "pass Schedule(begin, end, frequency)"
            raise bad_type("Pruner", "schedule", "a Schedule", repr(schedule), way_out)
        if regrowth is not None and not isinstance(regrowth, Regrowth):
            way_out = "pass rigl(end) or set_evolution(end)"
            raise bad_type("Pruner", "regrowth", "a Regrowth", repr(regrowth), way_out)
        if regrowth is not None and self.pattern.name != "unstructured":
            expected, way_out = "'unstructured' with regrowth", "single weights move"
            raise bad("Pruner", "pattern", expected, repr(self.pattern.name), way_out)
        if isinstance(data, Iterator):
            way_out = "pass a list, a DataLoader or a callable that makes the iterator"
            raise bad("Pruner", "data", "readable in every update", "an iterator", way_out)
        self.sparsity, self.regrowth = sparsity, regrowth
        self.criterion, self.scope, self.ignore = criterion, scope, ignore
        self.data, self.loss = data, loss
        self.steps = 0
        self.masks = Masks({})
        self._model: nn.Module | None = None
        self._optimizer: Optimizer | None = None

    def prepare(self, model: nn.Module, optimizer: Optimizer) -> Pruner:
        """Takes up `model` and its `optimizer` at step 0, and prunes if the schedule begins there.

        model: as it trains; torch.compile and DistributedDataParallel are looked through.
        optimizer: over all weights to prune that are not frozen.
        Returns self. Raises ValueError or TypeError for what does not fit, before anything changes.
        """
        if self._model is not None:
            way_out = "call finalize() first"
            raise bad("Pruner.prepare", "the pruner", "prepared once", "a second call", way_out)
        plain = unwrapped(model)
        shares, weights = targets(plain, self.sparsity, self.ignore, "Pruner.prepare")
        self._check_pattern(set(shares.values()))
        kept = {n: torch.ones_like(w, dtype=torch.bool) for n, w in weights.items()}
        masks = Masks(kept).attach(plain, optimizer)  # an error now rather than at the first update
        masks.detach()
        self._model, self._optimizer, self.masks, self.steps = plain, optimizer, masks, 0
        try:
            self._update()
        except Exception:
            self._model = self._optimizer = None
            raise
        return self

    def step(self) -> bool:
        """One step of the optimizer is done: updates the masks if one is due, and says whether.

        Call it after `optimizer.step()` and, for regrowth by gradient, before `zero_grad()`.
        Raises ValueError before `prepare`.
        """
        self._prepared("step")
        self.steps += 1
        pruned = self._update()
        return self._regrow() or pruned

    def finalize(self) -> Masks:
        """Ends it: the last masks stay applied and are returned, the model is an ordinary one.

        Warns if the schedule had not ended. Raises ValueError before `prepare`.
        """
        model, _ = self._prepared("finalize")
        if self.steps < self.schedule.end:
            warn(
                f"Pruner.finalize: step {self.steps} of {self.schedule.end}; the sparsity is "
                f"{self.masks.sparsity():.4f}, not yet what was asked for"
            )
        self.masks.detach()
        self.masks.apply_(model)
        self._model = self._optimizer = None
        return self.masks

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs beside the state of model and optimizer: steps, and masks on the CPU.

        Tensors, numbers and strings only: torch.load reads it with weights_only=True.
        """
        return {
            "steps": self.steps,
            "masks": {name: mask.to("cpu", copy=True) for name, mask in self.masks.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was taken, bit-equal.

        Prepare first, then load model, optimizer and pruner, in any order: `prepare` prunes if the
        schedule begins at step 0. (On weights loaded before, it finds its zeros again; only
        criteria that change the survivors, such as "obs", would change them.)

        Raises ValueError before `prepare`, and for a state that is not of this model and sparsity.
        """
        self._prepared("load_state_dict")
        if set(state) != {"steps", "masks"} or set(state["masks"]) != set(self.masks):
            expected = f"one with masks of {', '.join(self.masks)}"
            got = f"{', '.join(state.get('masks', state)) or 'none'}"
            way_out = "prepare the same model with the same arguments"
            raise bad("Pruner.load_state_dict", "state", expected, got, way_out)
        self._hold(Masks(state["masks"]))
        self.steps = state["steps"]

    def _prepared(self, operation: str) -> tuple[nn.Module, Optimizer]:
        if self._model is None or self._optimizer is None:
            way_out = "call prepare(model, optimizer)"
            raise bad(f"Pruner.{operation}", "the pruner", "prepared", "one that is not", way_out)
        return self._model, self._optimizer

    def _check_pattern(self, finals: set[float]) -> None:
        """An error if the pattern refuses a sparsity that the schedule will ask for."""
        plan = self.schedule
        steps = [*range(plan.begin, plan.end, plan.frequency), plan.end]
        for final in finals:
            rising = [share for step in steps if (share := plan.sparsity(step, final))]
            for share in rising[:1] + rising[-1:]:
                try:
                    self.pattern.mask(torch.empty(0, 1), share)  # no weights: only the check
                except ValueError as error:
                    raise ValueError(f"Pruner.prepare: {error}; or Schedule(initial=...)") from None

    def _update(self) -> bool:
        """Prunes to the schedule's sparsity if this step is due for it."""
        model, _ = self._prepared("step")
        share = self.schedule.sparsities(self.steps, self.sparsity)
        nothing = not any(share.values()) if isinstance(share, dict) else share == 0
        if not self.schedule.due(self.steps) or nothing:
            return False
        masks = prune(model, share, self.criterion, self.scope, self.pattern, self.ignore,
                      self.data, self.loss)  # fmt: skip
        self._hold(agreed(masks, model))
        return True

    def _regrow(self) -> bool:
        """Moves weights if this step is due for it and there are masks."""
        model, _ = self._prepared("step")
        rule = self.regrowth
        if rule is None or not rule.due(self.steps) or self.masks.sparsity() == 0:
            return False
        weights = dict(model.named_parameters(remove_duplicate=False))
        moved = regrow(self.masks, weights, rule, self.steps)
        if moved is not None:
            self._hold(agreed(moved, model))
        return moved is not None

    def _hold(self, masks: Masks) -> None:
        """These masks from now on."""
        model, optimizer = self._prepared("step")
        self.masks.detach()
        self.masks = masks.attach(model, optimizer)

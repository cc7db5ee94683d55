"""Lottery tickets: rewinding, iterative pruning, controls, and how sharp a ticket's minimum is."""

from sparseprune.training.lottery.controls import inverted, shuffled
from sparseprune.training.lottery.rewind import Rewind
from sparseprune.training.lottery.rounds import Ticket, Trial, lottery
from sparseprune.training.lottery.spectrum import top_eigenvalues

__all__ = ["Rewind", "Ticket", "Trial", "inverted", "lottery", "shuffled", "top_eigenvalues"]

"""PyramidDrop: position ids that are kept."""

from dataclasses import dataclass

from pruning.pyramiddrop import PyramidDrop


@dataclass(frozen=True)
class PyramidDropKept(PyramidDrop):
    """The remaining tokens keep their position ids."""

    positions = "keep"

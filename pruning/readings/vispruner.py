"""VisPruner: attention only, and a tower without a class token."""

from dataclasses import dataclass
from typing import Annotated

from pruning.fields import Range, option
from pruning.readings.received import ByReceived
from pruning.vispruner import VisPruner

One = Annotated[float, Range(1, 1)]


@dataclass(frozen=True)
class FasterVLM(VisPruner):
    """FasterVLM, as the first version of the paper (v1) calls its method: all T tokens are chosen by attention."""

    important: One = option(1.0, "r: all of T")

    laws = VisPruner.laws | {"needle"}


@dataclass(frozen=True)
class VisPrunerReceived(ByReceived, VisPruner):
    """Without a class token: patches rank by the attention they receive from all patches of their tile."""

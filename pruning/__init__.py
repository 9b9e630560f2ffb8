"""Visual-token reduction methods: one file each, over the contract in base.py."""

from pruning.divprune import DivPrune
from pruning.fastv import FastV
from pruning.hired import HiRED
from pruning.prumerge import PruMerge, PruMergePlus
from pruning.visionzip import VisionZip
from pruning.vispruner import VisPruner

METHODS = {
    "fastv": FastV,
    "divprune": DivPrune,
    "vispruner": VisPruner,
    "prumerge": PruMerge,
    "prumerge_plus": PruMergePlus,
    "visionzip": VisionZip,
    "hired": HiRED,
}

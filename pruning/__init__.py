"""Visual-token reduction methods: one file each, over the contract in base.py."""

from pruning.fastv import FastV

METHODS = {
    "fastv": FastV,
}

"""What can be scored: for each task one function that gives its questions.

A task is a function (data, split, count, seed) -> [Item]: the folder of its files, or None; which part of it, how many
questions of each family, the seed of what is drawn; each None where the user says nothing. Items of one picture have the
same `image` and stand together; an answer is right if it is the Item's, to the letter. A new task is a new line in TASKS.
"""

from minivlm.toy import benchmark
from pruning.base import UserError

COUNT = 40                                         # drawn questions a family, where the user names no number


def scenes(data=None, split=None, count=None, seed=None):
    """The drawn world: questions drawn here, of the set `split` (heldout), or those of a folder that `run.py scenes` wrote."""
    if data is None:
        return benchmark.items(split or "heldout", count or COUNT, seed or 0)
    if split is not None or seed is not None:
        raise UserError(f"{data} holds its questions: --split and --seed are for those that are drawn here")
    return first(benchmark.read(data), count)


def first(items, count):
    """The first `count` questions of each family, all without a count."""
    seen, kept = {}, []
    for item in items:
        seen[item.family] = seen.get(item.family, 0) + 1
        kept += [item] if count is None or seen[item.family] <= count else []
    return kept


TASKS = {"scenes": scenes}

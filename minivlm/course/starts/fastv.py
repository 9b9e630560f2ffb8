"""A method of your own. It begins as FastV: change `score`.

    python run.py check mine.py:Mine               which promises it keeps, what it costs, how well it does
    python run.py compare minivlm/toy/samples/00003.png "what shape is the red object ?" --method fastv,mine.py:Mine \
        --keep 0.25 --out mine.png
    python run.py score mine.py:Mine               a row of the leaderboard
"""

from dataclasses import dataclass

from pruning import Ranked
from pruning.fields import Amount, Layer, option


@dataclass(frozen=True)
class Mine(Ranked):
    """Keep the visual tokens that receive the most attention from the last prompt token."""

    # Options: --set layer=3, --keep 0.25. Add your own in the same way:  power: float = option(1.0, "of the score")
    layer: Layer = option(2, "K: the first layer that runs on the kept tokens")
    keep: Amount = option(0.5, "share, or number, of visual tokens kept")

    # What it promises. `check` tests these; leave out what your method does not promise (pruning/laws.py has them all).
    laws = frozenset({"select", "ordered", "budget", "scale", "needle"})

    def score(self, tokens):
        """(n,) a number for each visual token. Those with the highest are kept."""
        # What there is, with T tokens in the sequence and n visual ones among them (pruning/base.py, pruning/views.py):
        #   tokens.hidden   (T, D)  the states that enter layer K        tokens.grid  (n, 3)  tile, row, column
        #   tokens.visual   (n,)    the rows of the visual tokens        tokens.text()        the rows of the question
        #   tokens.before   layer K-1, which has run                     tokens.here          layer K, about to run
        # Of a layer: attention(rows) and logits(rows) (H, R, T), mean_attention(rows) (R, T), query(rows), key().
        # rows: "last", "text", "visual", "all", or indices.
        attention = tokens.before.mean_attention("last")   # (1, T)
        return attention[0, tokens.visual]                 # (n,)

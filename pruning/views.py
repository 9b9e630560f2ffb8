"""LayerView: what a method can read of one layer, such as its attention. Letters as in base.py."""

from pruning.errors import UserError


class LayerView:
    """One layer, with the tokens that enter it. Each call computes its result anew; nothing is stored.

    `rows` are query rows: "last", "text" (after the image), "visual", "all", or indices (R,). The model's own views
    (minivlm/parts/views.py) define query, key, mask and projected_key; LayerView.of(..) takes typed matrices.
    """

    tokens = None                  # the Tokens that enter the layer

    def query(self, rows="all", rope=True):
        """(H, R, Dh) after RoPE; rope=False: before it (FEATHER)"""
        raise UserError(f"{self!r}: it has no queries")

    def key(self, rope=True):
        """(Hk, T, Dh) after RoPE; rope=False: before it"""
        raise UserError(f"{self!r}: it has no keys")

    def projected_key(self, norm=True):
        """(T, Hk*Dh) keys before RoPE; norm=False: of hidden states without the layer's norm (AdaptPrune's code)"""
        raise UserError(f"{self!r}: it has no projected keys")

    def final_normed(self):
        """(T, D) the residual stream that enters the layer, after the decoder's final norm (DART); tokens.here only"""
        raise UserError(f"{self!r}: it has no final norm")

    def modules(self):
        """Of attention and of the MLP, what it reads, after its norm, and what it adds to the stream: two pairs of
        (T, D) (TransPrune); only of a layer that has run"""
        raise UserError(f"{self!r}: it has not run, so its modules have added nothing yet")

    def mask(self, rows=None):
        """(R, T) what the layer adds to the logits of these rows: 0 for keys that they see, else minus infinity

        rows None: all rows, also those of masked tokens, (T, T).
        """
        raise UserError(f"{self!r}: it has no mask")

    def rotated(self, x):
        """x (T, Dh) with the rotary embedding, each row at its position"""
        raise UserError(f"{self!r}: it has no rotary embedding")

    def logits(self, rows="all"):
        """(H, R, T) query key^T / sqrt(Dh), before the mask"""
        query = self.query(rows)                                                   # (H, R, Dh)
        key = for_each_head(self.key(), len(query))                                # (H, T, Dh)
        return query @ key.mT / query.shape[-1] ** 0.5

    def attention(self, rows="all"):
        """(H, R, T) softmax(logits + mask), in float32, so that fewer values are equal"""
        mask = self.mask(rows)                                                     # (R, T)
        return (self.logits(rows).float() + mask).softmax(dim=-1)

    def each_head_logits(self, rows="all"):
        """(R, T) logits, one head after the other: all heads at once take H times the memory"""
        query = self.query(rows)                                                   # (H, R, Dh)
        key = for_each_head(self.key(), len(query))                                # (H, T, Dh)
        for q, k in zip(query, key):
            yield q @ k.T / q.shape[-1] ** 0.5

    def each_head(self, rows="all"):
        """(R, T) attention, one head after the other"""
        mask = self.mask(rows)                                                     # (R, T)
        for logits in self.each_head_logits(rows):
            yield (logits.float() + mask).softmax(dim=-1)

    def mean_logits(self, rows="all"):
        """(R, T) logits, mean over heads"""
        return mean_of(self.each_head_logits(rows))

    def mean_attention(self, rows="all"):
        """(R, T) attention, mean over heads"""
        return mean_of(self.each_head(rows))

    def summed_logits(self, rows="all"):
        """(T,) logits, mean over heads, summed over these rows: the sum of q_i . k_j over i is (sum of q_i) . k_j"""
        query = self.query(rows).float()                                           # (H, R, Dh)
        query_sum = query.sum(dim=1, keepdim=True)                                 # (H, 1, Dh)
        key = for_each_head(self.key(), len(query)).float()                        # (H, T, Dh)
        logits = query_sum @ key.mT / query.shape[-1] ** 0.5                       # (H, 1, T)
        return logits.mean(dim=(0, 1))

    def on(self, tokens):
        """This view, bound to the tokens whose rows "last", "text" and "visual" name."""
        return self

    # At the vision site, where a layer is a block of the tower:

    def cls_rows(self):
        """(tiles,) the rows of the class tokens"""
        raise UserError(f"{self!r}: it has no class tokens")

    def cls_attention(self):
        """(H, n) the attention that each visual token receives from the class token of its own tile"""
        raise UserError(f"{self!r}: it has no class tokens")

    def received(self):
        """(n,) the attention that each visual token receives from the visual tokens of its tile, mean over these and
        over heads: what stands in for cls_attention in a tower without a class token"""
        visual = self.tokens.visual
        tile = self.tokens.grid[:, 0]
        is_same_tile = tile[:, None] == tile                                       # (n, n)
        between = self.mean_attention("visual")[:, visual] * is_same_tile          # (n, n)
        return between.sum(dim=0) / is_same_tile.sum(dim=0)

    def block(self, l):
        """The view of block l of the same tower."""
        raise UserError(f"{self!r}: it has no blocks")

    @staticmethod
    def of(**matrices):
        """A view of typed matrices: LayerView.of(attention=[[1, 0], [.3, .7]]). by_hand.py lists their names."""
        from pruning.by_hand import GivenView              # by_hand.py imports this file
        return GivenView(**matrices)


class NoView(LayerView):
    """Stands for a view that does not exist: reading anything from it is a UserError that says why."""

    def __init__(self, why):
        self.why = why

    @property
    def tokens(self):
        raise UserError(f"{self!r}")

    def __repr__(self):
        return f"nothing to look at here, since {self.why}"


NOT_YET = NoView("no layer has run yet")


def mean_of(matrices):
    """Mean of matrices that come one by one, in float32: half precision loses small weights."""
    total = 0
    count = 0
    for matrix in matrices:
        total = total + matrix.float()
        count += 1
    return total / count


def for_each_head(x, heads):
    """Key or value heads, repeated so that each query head has one: (.., Hk, S, Dh) -> (.., H, S, Dh)"""
    if x.shape[-3] == heads:
        return x
    return x.repeat_interleave(heads // x.shape[-3], dim=-3)

"""The planted mistakes: which text of which file becomes what, which promise that breaks, and why.

A variant is our own file with one replacement, so it cannot drift from it; a test holds that `old` occurs exactly once.
Every decoder method here cuts before layer 2.
"""

from typing import NamedTuple


class Bug(NamedTuple):
    """One mistake. `old` and `new` are whole lines, with the comments at their ends."""

    title: str
    file: str
    old: str
    new: str
    promise: str                       # the intended answer, of PROMISES (promises/promises.py)
    why: str
    method: str                        # its promises are looked at: the broken one, or what a broken model part runs
    test: str                          # one of our tests that rejects the mistake
    options: dict = {}                 # of that method, for the small cases


BUGS = (
    Bug(
        title="off-by-one layer",
        file="pruning/ranked.py",
        old="        return (self.layer,)\n",
        new="        return (self.layer - 1,)\n",
        promise="layer",
        why="Papers count layers from one, this project from zero, and K is converted already: here it is converted "
            "twice. The cut comes a layer early, and what ranks is the attention of the layer before the intended one.",
        method="fastv",
        test="tests/model/test_cache.py::test_a_length_per_layer",
    ),
    Bug(
        title="forgotten sort",
        file="pruning/divprune.py",
        old="        return Reduction(order.sort().values, score=score)\n",
        new="        return Reduction(order, score=score)\n",
        promise="ordered",
        why="The greedy search gives the tokens in the order of picking. Sent on so, a token may stand after others "
            "that came later in the image, and sees what the causal mask should hide from it.",
        method="divprune",
        test="tests/laws/test_laws.py::test_law[divprune-ordered]",
        options={"keep": 0.5},
    ),
    Bug(
        title="head max for mean",
        file="pruning/vispruner.py",
        old="        score = tokens.before.cls_attention().mean(dim=0)                          # (n,)\n",
        new="        score = tokens.before.cls_attention().amax(dim=0)                          # (n,)\n",
        promise="heads",
        why="The paper averages the attention over heads. With the maximum one loud head outvotes all others.",
        method="vispruner",
        test="tests/methods/test_vispruner.py::test_mean_over_heads",
        options={"keep": 0.25, "important": 1.0},
    ),
    Bug(
        title="span shifted by one",
        file="pruning/pyramiddrop.py",
        old="        score = attention[0, tokens.visual]                                        # (n,)\n",
        new="        score = attention[0, tokens.visual - 1]                                    # (n,)\n",
        promise="needle",
        why="Each visual token gets the score of the row before its own, as happens if the system prompt's length is "
            "counted without its first token. The answer stays plausible: neighbours in an image are alike.",
        method="pyramiddrop",
        test="tests/methods/test_pyramiddrop.py::test_needle",
        options={"layers": (2,), "ratios": (0.5,)},
    ),
    Bug(
        title="packed positions",
        file="pruning/apply.py",
        old="    after = tokens.without_views(hidden=hidden, position=tokens.position[rows])\n",
        new="    after = tokens.without_views(hidden=hidden, position=tokens.position[:len(rows)])\n",
        promise="positions",
        why="What remains is counted anew from 0. Its distances to each other, which the rotary embedding encodes, "
            "shrink in the middle of the network, though the method says that position ids are kept.",
        method="fastv",
        test="tests/methods/test_fastv.py::test_needle_between_two_images",
    ),
    Bug(
        title="unnormalised merge",
        file="pruning/sparsevlm.py",
        old="        return members / members.sum(dim=1, keepdim=True)\n",
        new="        return members\n",
        promise="convex",
        why="A cluster becomes the sum of its members: its state is several times as long as any that the next layer "
            "was trained on. (The paper's text says this; the released code, and this method's card, say the mean.)",
        method="sparsevlm",
        test="tests/methods/test_sparsevlm.py::test_recycling",
        options={"layers": (1,), "table": (2,)},
    ),
    Bug(
        title="chains in the merge",
        file="pruning/asap.py",
        old="    return may_absorb & is_anchor\n",
        new="    return may_absorb\n",
        promise="destination",
        why="A token that has been absorbed itself still absorbs others. It is gone, and they are gone with it: a is "
            "like b and b like c, but c is not like a, to which it is sent by way of b.",
        method="asap",
        test="tests/methods/test_asap.py::test_disjoint_source_sets",
        options={"keep": 0.5},
    ),
    Bug(
        title="mask below the diagonal",
        file="minivlm/attention.py",
        old="    allowed = column <= row                                                        # (R, S)\n",
        new="    allowed = column >= row                                                        # (R, S)\n",
        promise="causal",
        why="Rows are queries and columns are keys: minus infinity belongs above the diagonal. A plain prefill does "
            "not notice, since torch's kernel has a causal mask of its own; masked tokens and cached ones do.",
        method="fastv_mask",
        test="tests/model/test_attention.py::test_by_hand",
    ),
    Bug(
        title="RoPE pairs interleaved",
        file="minivlm/attention.py",
        old="    first, second = x.chunk(2, dim=-1)\n"
            "    quarter_turn = torch.cat([-second, first], dim=-1)\n",
        new="    first = x[..., 0::2]\n"
            "    second = x[..., 1::2]\n"
            "    quarter_turn = torch.stack([-second, first], dim=-1).flatten(-2)\n",
        promise="rotation",
        why="Neighbours are paired, as in the original RoPE, but the angles are those of halves, as in the "
            "checkpoints. The two of a pair turn by different angles, so the result is no rotation.",
        method="fastv",
        test="tests/model/test_attention.py::test_rotation_by_hand",
    ),
    Bug(
        title="next position from the cache's length",
        file="minivlm/llama.py",
        old="            first = layer_cache.next_position\n",
        new="            first = layer_cache.length\n",
        promise="cached",
        why="A pruned layer holds fewer tokens than there are positions. Its length is a position that a token of the "
            "prompt has already, so the answer is read as if it stood in the middle of the question.",
        method="fastv",
        test="tests/laws/test_equivalence.py::test_cached_equals_uncached[fastv-two images]",
    ),
    Bug(
        title="Gaussian off centre",
        file="pruning/adaptprune.py",
        old="        high = (side / 2).floor()\n",
        new="        high = (side / 2).floor() - 1\n",
        promise="mirror",
        why="The coordinates run from -2 to 1 instead of from -2 to 2, as with a range whose end is not included: 0 "
            "lies half a patch beside the centre, and the right and the lower side are preferred.",
        method="adaptprune",
        test="tests/methods/test_adaptprune.py::test_correction",
        options={"keep": 0.25},
    ),
    Bug(
        title="threshold on logits",
        file="pruning/atp.py",
        old="        S = self.normalised(raw, alive)                                            # (2, n)\n",
        new="        S = raw                                                                    # (2, n)\n",
        promise="offset",
        why="The thresholds are sigmoids, in (0, 1), and what they are compared with must be, too. Logits have no "
            "scale and no zero of their own: whether 0.3 is high depends on the layer.",
        method="atp_pooled",
        test="tests/methods/test_atp.py::test_redundant_pruning",
        options={"layers": (2,)},
    ),
)


def titled(title):
    """The planted mistake with this title."""
    return next(bug for bug in BUGS if bug.title == title)

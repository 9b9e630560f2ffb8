"""Exercises on what follows from a reduction: positions of what is left, and what is saved."""

from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st

from minivlm.course.exercises.grading.drawn import Prompt, noise, prompts, typed
from minivlm.course.exercises.grading.judge import expect, same, shown
from minivlm.course.exercises.grading.sides import Ours
from minivlm.course.exercises.problem import OWN, ROOT, SAMPLE, Check, Problem
from minivlm.course.exercises.problems.sources import flops
from pruning import apply
from pruning.base import Reduction, Tokens



# --- positions --------------------------------------------------------------------------------------------------------

applied = Ours(apply)


@dataclass(frozen=True)
class Cut:
    """A prompt, and whether it merges. What is kept is drawn, in some order."""

    prompt: Prompt
    merges: bool

    def __str__(self):
        return f"{self.prompt}, {'merging into' if self.merges else 'selecting'} {self.reduction().keep.tolist()}"

    def reduction(self):
        """The Reduction."""
        normal = noise(self.prompt.seed)
        keep = normal(self.prompt.n).argsort()[:self.prompt.keep]
        if not self.merges:
            return Reduction(keep)
        return Reduction(keep, normal(len(keep), self.prompt.n).softmax(dim=1))


CUTS = st.builds(Cut, prompts(largest=3), st.booleans())
SELECTIONS = st.builds(Cut, prompts(largest=3), st.just(False))


def after(side, tokens, r, positions="keep"):
    """The sequence after the reduction."""
    got = side.call("reduced", tokens, r, positions)
    expect(isinstance(got, Tokens), f"reduced gives {shown(got)}, not Tokens")
    return got


def keep_by_hand(side):
    """Rows 0 to 5, visual 1 to 4, the second and the last stay: rows 0 2 4 5, with their ids, and the next is 6."""
    got = after(side, typed("tvvvvt"), Reduction(torch.tensor([1, 3])))
    same(got.hidden.flatten(), torch.tensor([0.0, 2, 4, 5]), "the rows that are left")
    same(got.position, torch.tensor([0, 2, 4, 5]), "their position ids")
    same(got.visual, torch.tensor([1, 2]), "which of them are visual")
    same(got.source, torch.tensor([1, 3]), "which visual tokens these were at first")
    same(got.next_position, 6, "the id of the next token")


def renumber_by_hand(side):
    got = after(side, typed("tvvvvt"), Reduction(torch.tensor([1, 3])), "renumber")
    same(got.position, torch.tensor([0, 1, 2, 3]), "the position ids")
    same(got.next_position, 4, "the id of the next token")


def merge_by_hand(side):
    """Rows 1 2 3 are visual with states 1 2 3; half of each of the last two goes to the place of the last."""
    r = Reduction(torch.tensor([2]), torch.tensor([[0, 0.5, 0.5]]))
    got = after(side, typed("tvvvt"), r)
    same(got.hidden.flatten(), torch.tensor([0, 2.5, 4]), "the rows that are left")
    same(got.position, torch.tensor([0, 3, 4]), "their position ids")


def masked_do_not_count(side):
    """Four rows, the second masked: it has the id of the row before it, and three tokens count."""
    tokens = replace(typed("tvvt"), masked=torch.tensor([False, True, False, False]))
    got = side.call("renumbered", tokens)
    expect(isinstance(got, Tokens), f"renumbered gives {shown(got)}, not Tokens")
    same(got.position, torch.tensor([0, 0, 1, 2]), "the position ids")
    same(got.next_position, 3, "the id of the next token")


def text_stays(side, case):
    tokens = case.prompt.tokens()
    got = after(side, tokens, case.reduction())
    same(got.n, case.prompt.keep, "the number of visual tokens")
    text = tokens.hidden[~tokens.is_visual()]
    same(got.hidden[~got.is_visual()], text, "the rows of text")
    same(got.position[~got.is_visual()], tokens.position[~tokens.is_visual()], "the ids of the text")


def ids_stay(side, case):
    """Each visual token has the id that it had, and the next token the same as without a reduction."""
    tokens = case.prompt.tokens()
    got = after(side, tokens, case.reduction())
    same(got.position[got.visual], tokens.position[tokens.visual[got.source]], "the ids of the visual tokens")
    same(got.next_position, tokens.next_position, "the id of the next token")


def ids_are_dense(side, case):
    got = after(side, case.prompt.tokens(), case.reduction(), "renumber")
    T = len(got.hidden)
    same(got.position, torch.arange(T), "the ids after renumbering")
    same(got.next_position, T, "the id of the next token")


def reduced_agrees(side, case):
    tokens = case.prompt.tokens()
    got = after(side, tokens, case.reduction())
    expected = after(applied, tokens, case.reduction())
    for name in ("hidden", "visual", "grid", "source", "position"):
        same(getattr(got, name), getattr(expected, name), name)


POSITIONS = Problem(
    name="positions",
    title="Positions kept or renumbered",
    paper="FastV, arXiv:2403.06764, keeps them; SparseVLM's code, arXiv:2410.04417, renumbers them",
    section="not in the papers: see the tables `paper against code` in pruning/README.md",
    formula="""
keep:      p'_i = p_(row i)            next p' = next p
renumber:  p'_i = i                    next p' = T'
""",
    task="""
Write `order`, `dropped` and `renumbered`: the sequence after a reduction. Text rows stay in their order, the
visual rows of one image stand between their neighbours in the order of `keep`, each at the place of the token
that it was. A merged row is a weighted sum (`weighted_sums`), put where keep[i] was.
""",
    look="""
Keep and renumber, in the same method: which answers change, and why is the first generated token's id part of
the question?
""",
    commands=(f"python run.py compare {SAMPLE} --method asap,asap_renumbered --keep 0.25 --out positions.png",),
    minutes=60,
    level=2,
    file=ROOT / "pruning" / "apply.py",
    regions=("order", "dropped", "renumbered"),
    checks=(
        Check("keep by hand", 2, "of four visual tokens two stay, with their ids", keep_by_hand),
        Check("renumber by hand", 1, "the same renumbered: 0 to 3, and the next is 4", renumber_by_hand),
        Check("merge by hand", 2, "a merged row stands in the place of the token that it is named after",
              merge_by_hand),
        Check("masked", 1, "masked tokens do not count", masked_do_not_count),
        Check("text", 3, "text rows are as they were, in their order", text_stays, CUTS),
        Check("ids stay", 2, "kept tokens keep their ids, and the next token has the same", ids_stay, SELECTIONS),
        Check("dense", 2, "renumbered ids are 0 .. T'-1, and the next is T'", ids_are_dense, CUTS),
        Check("reference", 2, "the sequence is that of the reference", reduced_agrees, CUTS),
    ),
)


# --- what is saved ----------------------------------------------------------------------------------------------------

priced = Ours(flops)
SEVEN_B = 2 * (32 * (4 * 4096 ** 2 + 3 * 4096 * 11008) + 32000 * 4096)      # bytes that a step reads: layers and head


@dataclass(frozen=True)
class Schedule:
    """n visual tokens enter the layers before a cut, `keep` those from it on."""

    n: int
    keep: int
    cut: int
    layers: int
    d: int
    m: int

    def __str__(self):
        return (f"{self.n} tokens before layer {self.cut} of {self.layers} and {self.keep} from there on, "
                f"d = {self.d}, m = {self.m}")

    def entering(self):
        """One number for each layer."""
        return [self.n] * self.cut + [self.keep] * (self.layers - self.cut)


@st.composite
def schedules(draw):
    n = draw(st.integers(2, 600))
    layers = draw(st.integers(2, 32))
    return Schedule(n, draw(st.integers(1, n - 1)), draw(st.integers(1, layers - 1)), layers,
                    draw(st.integers(1, 64)), draw(st.integers(1, 64)))


def layer_by_hand(side):
    """v = 2, d = 3, m = 5: 4 * 2 * 9 + 2 * 4 * 3 + 3 * 2 * 3 * 5 = 72 + 24 + 90."""
    same(side.call("layer_flops", 2, 3, 5), 186, "the count of 2 tokens, d = 3, m = 5, c = 3")
    same(side.call("layer_flops", 2, 3, 5, 2), 156, "the count of 2 tokens, d = 3, m = 5, c = 2")


def seven_billion(side):
    """LLaVA-1.5-7B: 576 tokens in 32 layers, 3.817e12."""
    got = side.call("prefill_flops", [576] * 32, 4096, 11008)
    same(float(got), 3817152184320.0, "the count of 576 tokens in the 32 layers of the 7B", 1e-6)


def average_by_hand(side):
    same(side.call("average", [576] * 2 + [167] * 30), 192.5625, "the average of 2 x 576 and 30 x 167")
    same(side.call("keep_for_average", 576, 32, 2, 192), 167, "the tokens kept before layer 2 for an average of 192")
    same(side.call("keep_for_average", 576, 32, 2, 600), None, "the tokens kept before layer 2 for an average of 600")


def layers_add_up(side, case):
    entering = case.entering()
    each = [side.call("layer_flops", v, case.d, case.m) for v in sorted(set(entering))]
    counts = dict(zip(sorted(set(entering)), each))
    total = side.call("prefill_flops", entering, case.d, case.m)
    same(total, sum(counts[v] for v in entering), "the sum over the layers")


def saves_more_than_tokens(side, case):
    """A layer on half of the tokens costs less than half, because of attention."""
    many = side.call("layer_flops", case.n, case.d, case.m)
    few = side.call("layer_flops", case.keep, case.d, case.m)
    tokens = case.keep / case.n
    expect(few / many < tokens, f"{tokens:.4f} of the tokens cost {few / many:.4f} of the FLOPs")


def budget_is_met(side, case):
    """With the tokens that it names the average is met, and with one less it is not."""
    target = flops.average(case.entering())
    keep = side.call("keep_for_average", case.n, case.layers, case.cut, target)
    same(keep, case.keep, f"the tokens kept for an average of {target:.4f}")


def cache_by_hand(side):
    """576 tokens in 32 layers, 32 heads of 128, two bytes: 302 MB."""
    same(side.call("kv_bytes", [576] * 32, 32, 128), 301989888, "the bytes of the cache")


def decoding_by_hand(side):
    """13.2 GB of weights, 302 MB of cache, of which 82 MB are left: 1.0166 times as fast."""
    pruned = [576] * 2 + [128] * 30
    got = side.call("decoding_speedup", [576] * 32, pruned, SEVEN_B, 32, 128)
    expected = priced.call("decoding_speedup", [576] * 32, pruned, SEVEN_B, 32, 128)
    same(got, expected, "the speed-up of a decoding step of the 7B")


def decoding_is_bounded(side, case):
    """Even without any image token a step reads the weights."""
    unpruned = [case.n] * case.layers
    weights = case.layers * (4 * case.d ** 2 + 3 * case.d * case.m) * 2
    got = side.call("decoding_speedup", unpruned, case.entering(), weights, 1, case.d)
    bound = 1 + flops.kv_bytes(unpruned, 1, case.d) / weights
    expect(isinstance(got, (int, float)), f"decoding_speedup gives {shown(got)}, not a number")
    expect(1 < got <= bound, f"the speed-up is {got:.5f}, and must lie between 1 and {bound:.5f}")


FLOPS = Problem(
    name="flops",
    title="FLOPs, averages, and why decoding is no faster",
    paper="Chen et al., FastV, arXiv:2403.06764; Pathak and Han, ASAP, arXiv:2603.14549; Ye et al., ATP-LLaVA, "
          "arXiv:2412.00447",
    section="FastV's computing budget; ASAP, Eq. 7 and 8; ATP, Eq. 15 and 16",
    formula="""
layer    = 4 v d^2 + 2 v^2 d + c v d m                 c = 3 with a gate; FastV and ATP count 2
average  = (v_1 + .. + v_L) / L                        v_l: tokens that enter layer l
cache    = 2 * heads * head_dim * bytes * (v_1 + .. + v_L)
speed-up of a decoding step <= (weights + cache) / (weights + pruned cache)
""",
    task="""
Write the six functions. The last two say why pruning shortens the prefill and hardly the decoding: a step
computes little, but reads all weights.
""",
    look="""
The count for the 7B, and a measurement: the prefill follows its FLOPs, and a decoded token takes as long as
before.
""",
    commands=("python run.py cost --method fastv,divprune --keep 128", "python run.py bench --method fastv --keep 0.1"),
    minutes=45,
    level=1,
    file=OWN / "flops.py",
    regions=("layer_flops", "prefill_flops", "average", "keep_for_average", "kv_bytes", "decoding_speedup"),
    checks=(
        Check("layer by hand", 2, "2 tokens with d = 3 and m = 5 cost 186, or 156 with two matrices", layer_by_hand),
        Check("7B", 2, "576 tokens in the 7B cost 3.817e12", seven_billion),
        Check("average by hand", 2, "576 before layer 2 and 167 from there on are 192.6 on average", average_by_hand),
        Check("sum", 1, "the prefill costs the sum of its layers", layers_add_up, schedules()),
        Check("quadratic", 1, "a layer on half of the tokens costs less than half",
              saves_more_than_tokens, schedules()),
        Check("budget", 2, "the number for an average is the smallest that reaches it", budget_is_met, schedules()),
        Check("cache by hand", 1, "the cache of the 7B has 302 MB", cache_by_hand),
        Check("decoding by hand", 2, "a decoding step of the 7B with 128 of 576 tokens is 1.017 times as fast",
              decoding_by_hand),
        Check("bound", 2, "however few tokens are left, a step reads the weights", decoding_is_bounded, schedules()),
    ),
)

PROBLEMS = (POSITIONS, FLOPS)

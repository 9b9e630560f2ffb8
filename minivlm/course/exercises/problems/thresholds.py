"""The exercise on ATP: learnt thresholds, and a soft mask that lets gradients reach them."""

from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st
from torch import nn

from minivlm.course.exercises.grading.drawn import SEEDS, Prompt, noise, typed
from minivlm.course.exercises.grading.judge import expect, same, shown, tensor
from minivlm.course.exercises.grading.sides import Ours
from minivlm.course.exercises.problem import ROOT, SAMPLE, Check, Problem
from pruning import atp
from pruning.atp import Thresholds

ours = Ours(atp)
WEIGHTS = ("linear.weight", "linear.bias", "linear_r.weight", "linear_r.bias", "linear_s.weight", "linear_s.bias")


def constant(theta_r, theta_s, N):
    """A module that predicts these thresholds, whatever it reads."""
    return nn.ModuleList([Thresholds(N, 2, theta_r=theta_r, theta_s=theta_s)])


def drawn_module(N, seed):
    """A module with random weights, whose thresholds lie around a half."""
    module = Thresholds(N, 3)
    normal = noise(seed)
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(0.3 * normal(*weight.shape))
    return nn.ModuleList([module])


def atp_of(side, module, **options):
    """An ATP before layer 4."""
    return side.make("ATP", layers=(4,), module=module, **options)


def entering(received, text, grid):
    """A row of text, an image whose tokens receive these logits and pay `text`, and a row of text."""
    n = len(text)
    logits = torch.full((n + 2, n + 2), 9.0)               # what is not of visual tokens does not count
    logits[1:-1, 1:-1] = torch.tensor(received)
    return typed("t" + "v" * n + "t", [9.0, *text, 9.0], grid=grid, layer=4, before=dict(logits=logits))


# --- by hand ----------------------------------------------------------------------------------------------------------

def thresholds_by_hand(side):
    """z = .5 + 2 * 1 + 1 = 3.5; theta_r = sigmoid(2 * 3.5 - 8), theta_s = sigmoid(3 - 3.5)."""
    module = Thresholds(2, 1)
    weights = dict(linear=([[1.0, 0, 2, 0]], [1.0]), linear_r=([[2.0]], [-8.0]), linear_s=([[-1.0]], [3.0]))
    with torch.no_grad():
        for name, (weight, bias) in weights.items():
            getattr(module, name).weight.copy_(torch.tensor(weight))
            getattr(module, name).bias.copy_(torch.tensor(bias))
    S = torch.tensor([[0.5, 0], [1, 0.3]])
    got = atp_of(side, nn.ModuleList([module])).thresholds(0, S, typed("tvvt", layer=4))
    expect(isinstance(got, (tuple, list)) and len(got) == 2, f"thresholds gives {shown(got)}, not theta_r and theta_s")
    expected = torch.tensor([-1.0, -0.5]).sigmoid()
    for name, theta, value in zip(("theta_r", "theta_s"), got, expected):
        same(tensor(theta, name).flatten(), value[None], name)


def places_by_hand(side):
    """Tokens 1 and 4 of five are left, with S_self .1 .2. Linear adds up the scores by their first places."""
    module = Thresholds(5, 1)
    with torch.no_grad():
        for weight in module.parameters():
            weight.zero_()
        module.linear.weight.copy_(torch.arange(10.0)[None])
        module.linear_r.weight.fill_(1)
    whole = typed("tvvvvvt", layer=4)
    left = replace(typed("tvvt", layer=4), source=torch.tensor([1, 4]), prompt=whole)
    S = torch.tensor([[0.1, 0.2], [0.3, 0.4]])
    theta_r, _ = atp_of(side, nn.ModuleList([module])).thresholds(0, S, left)
    z = torch.tensor([0.1 * 1 + 0.2 * 4 + 0.3 * 6 + 0.4 * 9])
    same(tensor(theta_r, "theta_r").flatten(), z.sigmoid(), "theta_r of tokens 1 and 4 of five", 1e-3)


def mask_by_hand(side):
    """T = 10, S_redundant 0 .5 1, theta_r .4: sigmoids of -4 1 6. theta_s .3: places 0 and 2 have .25, so that their
    sigmoid is that of -.5, and place 1 has 0: that of -3. The larger counts, times the mask before."""
    prompt = entering([[0.0] * 3] * 3, [0.1, 0.2, 0.3], (1, 3))
    method = atp_of(side, constant(0.4, 0.3, 3), score="cross", strides=(2,), temperature=10.0)
    alive = torch.tensor([1.0, 1, 0.6])
    expected = alive * torch.tensor([-0.5, 1, 6]).sigmoid()
    same(method.running_mask(prompt, 0, alive), expected, "the mask of three tokens, before .. 1 1 .6,", 1e-3)


def strategies_by_hand(side):
    """The same prompt: only Eq. 9, only Eq. 10."""
    prompt = entering([[0.0] * 3] * 3, [0.1, 0.2, 0.3], (1, 3))
    for strategy, logits in (("redundant", [-4.0, 1, 6]), ("spatial", [-0.5, -3, -0.5])):
        options = dict(score="cross", strides=(2,), temperature=10.0, strategy=strategy)
        got = atp_of(side, constant(0.4, 0.3, 3), **options).running_mask(prompt, 0, torch.ones(3))
        same(got, torch.tensor(logits).sigmoid(), f"the mask with strategy {strategy}", 1e-3)


# --- drawn ------------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Masked:
    """A prompt, a module, and the mask so far."""

    prompt: Prompt
    temperature: float

    def __str__(self):
        return f"{self.prompt}, T = {self.temperature:g}"

    def alive(self):
        """(n,) in (0, 1]"""
        n = self.prompt.n
        return noise(self.prompt.seed + 1)(n).sigmoid().clamp(0.6)

    def method(self, side):
        """The ATP."""
        return atp_of(side, drawn_module(self.prompt.n, self.prompt.seed), temperature=self.temperature)

    def given(self):
        """The arguments of running_mask."""
        return self.prompt.tokens(layer=4), 0, self.alive()


SIDES = st.integers(1, 4)
MASKED = st.builds(
    Masked,
    prompt=st.builds(
        Prompt,
        images=st.tuples(st.tuples(SIDES, SIDES)),
        before=st.integers(0, 2),
        after=st.integers(1, 2),
        keep=st.just(1),
        seed=SEEDS,
    ),
    temperature=st.sampled_from([1.0, 10.0]),
)


def stays_pruned(side, case):
    mask = tensor(case.method(side).running_mask(*case.given()), "the mask", (case.prompt.n,))
    grows = (mask > case.alive() + 1e-6).nonzero().flatten().tolist()
    expect(not grows, f"the mask of token {grows[:1]} is larger than it was before")


def gradients_reach(side, case):
    """Of the sum of squares of the mask: by the mask before and by all weights."""
    value, gradients = case.method(side).gradients("running_mask", *case.given())
    expected_value, expected = case.method(ours).gradients("running_mask", *case.given())
    same(value, expected_value, "the mask", 1e-3)
    for name, gradient, right in zip(("the mask before", *WEIGHTS), gradients, expected):
        expect(gradient is not None, f"no gradient reaches {name}")
        same(gradient, right, f"the gradient by {name}", 1e-3)


def mask_agrees(side, case):
    given = case.given()
    same(case.method(side).running_mask(*given), case.method(ours).running_mask(*given), "the mask", 1e-3)
    got = case.method(side).soft_masks(*given)
    same(got, list(case.method(ours).soft_masks(*given)), "what soft_masks gives", 1e-3)


ATP = Problem(
    name="atp",
    title="ATP: thresholds, and a soft mask with gradients",
    paper="Ye et al., ATP-LLaVA, arXiv:2412.00447",
    section="3.3.2, Eq. 6 to 11",
    formula="""
z       = Linear(cat(S_self, S_cross))                                                 Eq. 6
theta_r = sigmoid(Linear_r(z))                                                         Eq. 7
theta_s = sigmoid(Linear_s(z))                                                         Eq. 8
Mask_r  = sigmoid((S_redundant - theta_r) T)                                           Eq. 9
Mask_s  = sigmoid((S_spatial - theta_s) T)                                             Eq. 10
Mask    = max(Mask_r, Mask_s), times the mask of the modules before                    Eq. 11
""",
    task="""
Write `thresholds`, `soft_masks` and `running_mask`. The scores of Eq. 3 to 5 are there (`scores`, `normalised`,
`redundant_pruning_score`, `spatial_pruning_score`, `used`, `read_by_linear`): what Linear reads counts by the
mask so far, stands at the place that each token had in the unpruned image, and is 0 for dropped ones. In
training nothing is dropped, so that a gradient can reach both thresholds through the mask.
""",
    look="""
How many tokens a trained module keeps: of two questions about one picture, and of another picture.
""",
    commands=(
        'python run.py compare minivlm/toy/samples/00000.png "is there a red circle ?" --method atp --out first.png',
        'python run.py compare minivlm/toy/samples/00000.png "what color is the cross ?" --method atp --out second.png',
        f"python run.py compare {SAMPLE} --method atp --maps --out third.png",
    ),
    minutes=90,
    level=3,
    file=ROOT / "pruning" / "atp.py",
    regions=("ATP.thresholds", "ATP.soft_masks", "ATP.running_mask"),
    checks=(
        Check("thresholds by hand", 2, "Eq. 6 to 8 on two tokens and z of width 1", thresholds_by_hand),
        Check("places", 2, "Linear reads each score at the token's place in the unpruned image", places_by_hand),
        Check("mask by hand", 2, "Eq. 9 to 11 on three tokens in a row", mask_by_hand),
        Check("strategies", 1, "with strategy redundant or spatial only that threshold counts", strategies_by_hand),
        Check("stays pruned", 2, "a mask never grows from one module to the next", stays_pruned, MASKED),
        Check("gradients", 4, "gradients reach the mask before and all weights, and are those of the reference",
              gradients_reach, MASKED),
        Check("reference", 2, "masks and S_redundant are those of the reference", mask_agrees, MASKED),
    ),
)

PROBLEMS = (ATP,)

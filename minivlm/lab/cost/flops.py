"""What a schedule costs, from the tokens that enter each layer: FLOPs by the papers' formula, bytes of the KV cache,
averages.

The formula has variants, and papers do not always say which they used: two or three matrices in the MLP, image tokens
only or the text too, the layer before a cut counted with what enters it or with what leaves it. Each is an option of
`Formula`, and `str(formula)` says which.
"""

from bisect import bisect_left
from dataclasses import dataclass
from math import ceil, floor


def layer_flops(tokens, width, intermediate, ffn=3):
    """4 v d^2 + 2 v^2 d + c v d m: one decoder layer on v tokens, multiplications counted, additions not.

    ffn: c, matrices of the MLP: 3 with a gate (FitPrune, ASAP); FastV and ATP-LLaVA (Eq. 15) count 2. All keys are
    counted as if there were one for each query head.
    """
    projections = 4 * tokens * width ** 2
    attention = 2 * tokens ** 2 * width
    mlp = ffn * tokens * width * intermediate
    return projections + attention + mlp


def flops(entering, width, intermediate, ffn=3):
    """The prefill of layers that so many tokens enter: flops([576] * 32, 4096, 11008) is 3.817e12."""
    return sum(layer_flops(tokens, width, intermediate, ffn) for tokens in entering)


def asap_omega(stages, v, width, intermediate):
    """ASAP, Eq. 7: Omega, of stages (L_n, lambda_n): L_n layers on v_n = ceil(lambda_n v) of v image tokens.

    asap_omega([(2, 1), (30, 0.29)], 576, 4096, 11008) is 1.265e12. The printed 1.259 sides with rounding to the
    nearest, which gives 167 of 167.04 tokens where the ceiling gives 168.
    """
    omega = 0
    for L_n, lambda_n in stages:
        v_n = ceil(round(lambda_n * v, 9))                 # in binary 0.07 x 100 is more than 7
        omega += L_n * layer_flops(v_n, width, intermediate, ffn=3)
    return omega


def asap_eta(stages, v, width, intermediate):
    """ASAP, Eq. 8: eta, the share of the unpruned FLOPs; arguments as of Eq. 7."""
    L = sum(L_n for L_n, _ in stages)
    return asap_omega(stages, v, width, intermediate) / asap_omega([(L, 1)], v, width, intermediate)


def atp_layer_flops(L, width, intermediate):
    """ATP-LLaVA, Eq. 15: FLOPs^L of one decoder layer on L tokens, those of the text among them."""
    return layer_flops(L, width, intermediate, ffn=2)


def atp_fewer_flops(layers, preserved, depth, L, width, intermediate):
    """ATP-LLaVA, Eq. 16: the FLOPs that are saved. preserved[k]: tokens left before layer layers[k], L at first."""
    fewer = 0
    unpruned = atp_layer_flops(L, width, intermediate)
    for i_k, next_i, L_p in zip(layers, [*layers[1:], depth], preserved):
        fewer += (next_i - i_k) * (unpruned - atp_layer_flops(L_p, width, intermediate))
    return fewer


@dataclass(frozen=True)
class Formula:
    """One reading of "the FLOPs": what is summed over, and over which tokens."""

    ffn: int = 3                       # matrices of the MLP: 3, or 2 as if it had no gate
    text: int = 0                      # tokens besides the image's; 0: image tokens only
    cut: str = "before"                # a layer counts the tokens that enter it ("before"), or leave it ("after")

    def flops(self, entering, width, intermediate):
        """Of layers that so many image tokens enter."""
        counted = entering
        if self.cut == "after":
            # what leaves a layer enters the next one; nothing is cut after the last
            counted = [*entering[1:], entering[-1]]
        return flops([tokens + self.text for tokens in counted], width, intermediate, self.ffn)

    def __str__(self):
        tokens = f"image and {self.text} text tokens" if self.text else "image tokens alone"
        return f"c={self.ffn}, {tokens}, {self.cut} the cut"


def average(entering):
    """Tokens that enter a layer, on average: average([576] * 2 + [167] * 30) is 192.6."""
    return sum(entering) / len(entering)


def kv_bytes(entering, kv_heads, head_dim, itemsize=2):
    """Keys and values of every layer after the prefill, float16: kv_bytes([576] * 32, 32, 128) is 302 MB."""
    return sum(entering) * 2 * kv_heads * head_dim * itemsize


def one_cut(n, layers, before, keep):
    """one_cut(576, 32, 2, 167): n tokens enter the layers before the cut, `keep` the others."""
    return [n] * before + [keep] * (layers - before)


def agrees(printed, value):
    """How a printed figure comes from a value: "rounded", "truncated", or "" if it does not.

    agrees("1.25", 1.257) is "truncated". 0.425 may be rounded to 0.42 and to 0.43.
    """
    digits = decimals(printed)
    half = 0.5 * 10.0 ** -digits
    if abs(float(printed) - value) <= half + 1e-9:
        return "rounded"
    truncated = floor(value * 10 ** digits) / 10 ** digits
    if f"{truncated:.{digits}f}" == printed:
        return "truncated"
    return ""


def decimals(printed):
    """Digits after the point: decimals("1.25") is 2."""
    return len(printed.partition(".")[2])


def fits(printed, n, layers, value, cuts=None):
    """[(layer, keep), ..]: every single cut that leaves a whole number of tokens and whose value is printed so.

    `value(entering)` must grow with the tokens. `cuts`: the layers tried, by default all.
    """
    unit = 10.0 ** -decimals(printed)
    least = float(printed) - unit
    most = float(printed) + unit
    fitting = []
    for before in range(layers) if cuts is None else cuts:
        def price(keep):
            return value(one_cut(n, layers, before, keep))

        keep = bisect_left(range(n), least, key=price)
        while keep < n and price(keep) < most:
            if agrees(printed, price(keep)):
                fitting.append((before, keep))
            keep += 1
    return fitting

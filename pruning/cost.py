"""What a schedule costs, from the tokens that enter each layer: FLOPs by the papers' formula, bytes of the KV cache, averages."""


def layer_flops(tokens, width, intermediate, ffn=3):
    """4 v d^2 + 2 v^2 d + c v d m: one decoder layer on v tokens, multiplications counted, additions not.

    ffn: c, matrices of the MLP: 3 with a gate (FitPrune, ASAP); FastV and ATP-LLaVA (Eq. 15) count 2. All keys are
    counted as if there were one for each query head.
    """
    return 4 * tokens * width ** 2 + 2 * tokens ** 2 * width + ffn * tokens * width * intermediate


def flops(entering, width, intermediate, ffn=3):
    """The prefill of layers that so many tokens enter: flops([576] * 32, 4096, 11008) is 3.817e12."""
    return sum(layer_flops(tokens, width, intermediate, ffn) for tokens in entering)


def average(entering):
    """Tokens that enter a layer, on average: average([576] * 2 + [167] * 30) is 192.6."""
    return sum(entering) / len(entering)


def kv_bytes(entering, kv_heads, head_dim, itemsize=2):
    """Keys and values of every layer after the prefill, float16: kv_bytes([576] * 32, 32, 128) is 302 MB."""
    return sum(entering) * 2 * kv_heads * head_dim * itemsize

"""What pruning saves on paper: multiplications of the prefill, bytes of the cache. And what it does not: decoding.

Letters: v tokens in a layer, d hidden size, m intermediate size of the MLP, c matrices of the MLP. `entering` has the
visual tokens that enter each layer, one number per layer. Only visual tokens are counted.
"""


def layer_flops(v, d, m, c=3):
    """Multiplications of one decoder layer on v tokens: the four projections, attention, and the MLP."""
    projections = 4 * v * d ** 2
    attention = 2 * v ** 2 * d
    mlp = c * v * d * m
    return projections + attention + mlp


def prefill_flops(entering, d, m, c=3):
    """Multiplications of all layers."""
    return sum(layer_flops(v, d, m, c) for v in entering)


def average(entering):
    """Visual tokens that enter a layer, on average: what papers call the budget."""
    return sum(entering) / len(entering)


def keep_for_average(n, layers, cut, target):
    """The smallest number of tokens kept before layer `cut` with which at least `target` of n enter a layer on average.

    None if all n are too few.
    """
    for keep in range(1, n + 1):
        entering = [n] * cut + [keep] * (layers - cut)
        if average(entering) >= target:
            return keep
    return None


def kv_bytes(entering, heads, head_dim, itemsize=2):
    """Bytes of the keys and values of all layers."""
    return sum(entering) * 2 * heads * head_dim * itemsize


def decoding_speedup(unpruned, pruned, weights, heads, head_dim, itemsize=2):
    """How many times as fast a decoding step can be after pruning, if reading the memory takes all of its time.

    A step reads all weights once (bytes), and the whole cache.
    """
    before = weights + kv_bytes(unpruned, heads, head_dim, itemsize)
    after = weights + kv_bytes(pruned, heads, head_dim, itemsize)
    return before / after

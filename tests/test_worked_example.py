"""The first test to read: one prompt of 4 x 4 patches through the whole pipeline, with numbers typed by hand.

    IMAGE   1 1 1 1     The brightness b of each patch. The prompt is a system token, the 16 patches and two words: 19
            1 6 3 1     tokens. Text has brightness 1. A row of `hidden` is (ln b, y, answer so far, 0), and y gives
            1 4 2 1     each row the length 2, so that RMSNorm changes nothing.
            1 1 1 5

The decoder has three layers without MLPs. Layer 0 writes nothing. Layer 1 does not either, but its last row attends to
each token in proportion to its brightness: query (0, 2, 0, 0), key (0, ln b, 0, 0), so that query . key / sqrt(4) = ln
b and exp(ln b) = b. Layer 2 attends to all tokens equally, and adds the mean of their ln b to the answer.

FastV before layer 2, keep 4, therefore ranks by brightness. The sum of all 19 is 31 (image) + 3 (text) = 34, and the
patches get 6/34, 5/34, 4/34, 3/34, 2/34 and 1/34: it keeps the 6, 5, 4 and 3, which are patches 5, 15, 9 and 6.
"""

import math

import torch

from build import close
from minivlm.cache import Cache
from minivlm.llama import Decoder
from minivlm.parts.config import TextConfig
from minivlm.trace import Trace
from pruning.base import Tokens
from pruning.fastv import FastV

IMAGE = torch.tensor([[1., 1, 1, 1], [1, 6, 3, 1], [1, 4, 2, 1], [1, 1, 1, 5]])
PRUNER = FastV(layer=2, keep=4)
ROWS = [0, 6, 7, 10, 16, 17, 18]                           # the system token, those patches, the two words


def prompt():
    """The image spliced into the prompt."""
    log = torch.cat([torch.ones(1), IMAGE.flatten(), torch.ones(2)]).log()         # (19,)
    zero = torch.zeros(19)
    hidden = torch.stack([log, (4 - log ** 2).sqrt(), zero, zero], dim=1)          # (19, 4)
    return Tokens.start(hidden, visual=range(1, 17), grid=(4, 4))


def typed_decoder():
    """All weights are 0, but those that the text above names."""
    decoder = Decoder(TextConfig(vocab_size=1, hidden_size=4, intermediate_size=1, num_hidden_layers=3, rms_norm_eps=0.,
                                 num_attention_heads=1, rope_theta=1e12))          # dimension 1 is hardly rotated
    for name, weight in decoder.named_parameters():
        weight.fill_(1 if "norm" in name else 0)
    decoder.layers[1].self_attn.q_proj.weight[1, 1] = 1                            # y = 2 of a text row
    decoder.layers[1].self_attn.k_proj.weight[1, 0] = 1
    decoder.layers[2].self_attn.v_proj.weight[0, 0] = 1
    decoder.layers[2].self_attn.o_proj.weight[2, 0] = 1
    return decoder


def test_fastv_from_the_patches_to_the_answer():
    """Layers 0 and 1 hold 19 tokens, layer 2 the 7 of ROWS, with the position ids that they had; the next is 19.

    The mean ln b of the seven is ln(6 * 5 * 4 * 3) / 7 = ln 360 / 7 = .8409, of all 19 it would be ln 720 / 19 = .3463.
    The last row is then (0, 2, .8409, 0), and the final norm divides it by sqrt((4 + .8409 ** 2) / 4) = 1.0848.
    """
    cache = Cache.empty(3)
    trace = Trace()
    last = typed_decoder().prefill(prompt(), cache, PRUNER, trace)                 # (1, 4)
    close(trace.steps[0].reduction.score, IMAGE.flatten() / 34)
    assert trace.steps[0].kept.tolist() == [5, 6, 9, 15]
    assert trace.visual == [16, 16, 4]
    assert cache.lengths == [19, 19, 7]
    assert cache.layers[2].position.tolist() == ROWS
    assert cache.layers[2].next_position == 19
    mean = math.log(360) / 7
    close(last, torch.tensor([[0, 2, mean, 0]]) / math.sqrt(1 + mean ** 2 / 4))


def test_dropping_is_masking():
    """The same last row if all 19 tokens stay, and layer 2 masks the keys of the 12 that FastV drops."""
    tokens = prompt()
    decoder = typed_decoder()
    rope, causal = decoder.shared(tokens)
    dropped = torch.full((1, 19), -math.inf)
    dropped[:, ROWS] = 0                                   # the last row, which is the one read, sees all earlier ones
    hidden = tokens.hidden[None]
    for layer, mask in zip(decoder.layers, (causal, causal, dropped)):
        hidden = layer(hidden, rope, mask=mask)
    close(decoder.norm(hidden)[0, -1:], decoder.prefill(tokens, Cache.empty(3), PRUNER))

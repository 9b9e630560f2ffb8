"""Count what a shape costs under methods: tokens, FLOPs, cache, weights.

No weights are needed. FLOPs are given by the papers' formula and counted, with the most that there is to gain.

examples:
  python run.py cost --method fastv,divprune --keep 192,64
  python run.py cost --method fastv,fastv@layer=3 --average 192,128
  python run.py cost --shape next-7b --method all --keep 0.25
"""

import torch

from minivlm.lab.cli.arguments import Number, add_dtype, add_json, within
from minivlm.lab.cli.output import printed, refusals, size
from minivlm.lab.cost.arguments import add_formula, add_shape
from minivlm.lab.cost.count import able, count, least, weight_bytes
from minivlm.lab.cost.flops import Formula, average
from minivlm.lab.cost.shapes import shape_of
from minivlm.lab.lineup.arguments import add_lineup
from minivlm.lab.lineup.lineup import fitted, lineup
from minivlm.trace import runs


def add_arguments(parser):
    """The shape, the methods, and what is counted."""
    add_shape(parser, "llava-1.5-7b")
    add_lineup(parser)
    parser.add_argument(
        "--text",
        type=within(Number),
        default=64,
        help="text tokens of the prompt (default: 64)",
    )
    add_formula(parser)
    parser.add_argument("--all-tokens", action="store_true", help="the formula counts the text too")
    add_dtype(parser, "float16")
    add_json(parser)


def main(args):
    """Print the table."""
    shape = shape_of(args.shape, args.model, args.layers)
    pruners = fitted(lineup(args.method, args.keep, args.average, args.set, shape, args.schedule), shape)
    why_not = {}
    if args.method == "all":
        pruners, why_not = able(shape, pruners)
    formula = Formula(args.ffn or 3, args.text if args.all_tokens else 0, args.cut or "before")
    table = facts(shape, pruners, args.text, formula, getattr(torch, args.dtype))
    table["why_not"] = why_not
    printed(table, [*lines(table), *refusals(why_not)], args.json)


def facts(shape, pruners, text=64, formula=Formula(), dtype=torch.float16):
    """The table as plain data: what is the same for all, and a row for each contestant, the unpruned model first."""
    config = shape.config.text
    weights = weight_bytes(shape, dtype)
    unpruned = count(shape, None, text, dtype)
    rows = [_row(shape, "unpruned", None, unpruned, unpruned, text, formula, dtype)]
    for name, pruner in pruners.items():
        counted = count(shape, pruner, text, dtype)
        rows.append(_row(shape, name, pruner, counted, unpruned, text, formula, dtype))
    name = f"{formula}, width {config.hidden_size}, MLP {config.intermediate_size}"
    return dict(
        shape=shape.name,
        layers=shape.layers,
        image_tokens=shape.n,
        text_tokens=text,
        dtype=str(dtype).removeprefix("torch."),
        formula=name,
        weight_bytes=weights,
        read_a_token=weights["decoder"] + weights["head"],
        rows=rows,
    )


def _row(shape, name, pruner, counted, unpruned, text, formula, dtype):
    config = shape.config.text
    flops = {part: getattr(counted, part) for part in ("tower", "projector", "decoder", "head")}
    best = least(shape, pruner, text, dtype) if pruner else unpruned.prefill
    formula_flops = formula.flops(counted.visual, config.hidden_size, config.intermediate_size)
    return dict(
        method=name,
        image_tokens=list(counted.visual),
        tokens=list(counted.tokens),
        average=average(counted.visual),
        formula_flops=formula_flops,
        counted_flops=flops,
        kv_bytes=counted.kv_bytes,
        prefill_speedup=unpruned.prefill / counted.prefill,
        first_token_speedup=unpruned.total / counted.total,
        first_token_bound=unpruned.total / (counted.encode + best),
    )


def lines(table):
    """The same as text."""
    rows = table["rows"]
    width = max(len(row["method"]) for row in rows)
    weights = {part: size(held) for part, held in table["weight_bytes"].items()}
    yield (f"{table['shape']}: {table['layers']} decoder layers, {table['image_tokens']} image and "
           f"{table['text_tokens']} text tokens, {table['dtype']}")
    yield (f"weights {size(sum(table['weight_bytes'].values()))}: vision tower {weights['tower']}, "
           f"projector {weights['projector']}, decoder {weights['decoder']}, embedding {weights['embedding']}, "
           f"head {weights['head']}")
    yield ""
    yield (f"{'':{width}}  average  formula FLOPs   counted FLOPs    KV cache        prefill  first token  at most   "
           "image tokens entering the layers")
    for row in rows:
        yield f"{row['method']:{width}}  {_cells(row, rows[0])}"
    yield from _explained(table)


def _cells(row, unpruned):
    """The columns of one contestant."""
    counted = sum(row["counted_flops"].values())
    whole = sum(unpruned["counted_flops"].values())
    formula = f"{tera(row['formula_flops'])} {row['formula_flops'] / unpruned['formula_flops']:4.0%}"
    cache = f"{size(row['kv_bytes']):>8} {row['kv_bytes'] / unpruned['kv_bytes']:4.0%}"
    first_token = f"{row['first_token_speedup']:6.2f} x {row['first_token_bound']:6.2f} x"
    return (f"{row['average']:7.1f}  {formula}   {tera(counted)} {counted / whole:4.0%}  {cache}  "
            f"{row['prefill_speedup']:6.2f} x     {first_token}   {runs(row['image_tokens'])}")


def _explained(table):
    """Sentences on what the columns count."""
    unpruned = table["rows"][0]
    flops = unpruned["counted_flops"]
    cache = unpruned["kv_bytes"]
    read = table["read_a_token"]
    encode = (flops["tower"] + flops["projector"]) / sum(flops.values())
    yield ""
    yield f"formula: multiplications of the decoder's layers, {table['formula']}"
    yield ("counted: multiplications and additions of everything to the first token, vision tower and text in, causal "
           "attention counted whole")
    yield (f"at most: were no image token left after the method's first cut; the vision tower and projector, "
           f"{encode:.0%} of the unpruned FLOPs, stay")
    yield (f"decoding: a token reads {size(read)} of weights and {size(cache)} of unpruned cache; without any cache it "
           f"would be {(read + cache) / read:.2f} x as fast")


def tera(flops):
    """8.672e12 -> "  8.672 T"; G and M for models that are small."""
    for scale, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if flops >= scale / 100:
            break
    return f"{flops / scale:7.3f} {unit}"

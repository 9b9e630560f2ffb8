"""Count what a shape costs under methods: tokens, FLOPs, cache, weights.

No weights are needed. FLOPs are given by the papers' formula and counted, with the most that there is to gain.

examples:
  python run.py cost --method fastv,divprune --keep 192,64
  python run.py cost --shape next-7b --method all --keep 0.25
"""

import torch

from minivlm.lab.cli.arguments import Number, add_dtype, add_json, within
from minivlm.lab.cli.output import printed
from minivlm.lab.compare.report import refusals, runs, size
from minivlm.lab.cost.arguments import add_formula, add_lineup, add_shape
from minivlm.lab.cost.count import able, count, least, weight_bytes
from minivlm.lab.cost.flops import Formula, average
from minivlm.lab.cost.shapes import lineup, shape_of


def add_arguments(parser):
    """The shape, the methods, and what is counted."""
    add_shape(parser, "llava-1.5-7b")
    add_lineup(parser)
    parser.add_argument("--text", type=within(Number), default=64, help="text tokens of the prompt (default: 64)")
    add_formula(parser)
    parser.add_argument("--all-tokens", action="store_true", help="the formula counts the text too")
    add_dtype(parser, "float16")
    add_json(parser)


def main(args):
    """Print the table."""
    shape = shape_of(args.shape, args.model, args.layers)
    pruners = lineup(args.method, args.keep, args.average, args.set, shape, args.schedule)
    why_not = {}
    if args.method == "all":
        pruners, why_not = able(shape, pruners)
    formula = Formula(args.ffn or 3, args.text if args.all_tokens else 0, args.cut or "before")
    table = facts(shape, pruners, args.text, formula, getattr(torch, args.dtype))
    table["why_not"] = why_not
    printed(table, [*lines(table), *refusals(why_not)], args.json)


def facts(shape, pruners, text=64, formula=Formula(), dtype=torch.float16):
    """What is the same for all, and of each contestant (the unpruned model is the first) a row: see `lines`."""
    c, full = shape.config.text, count(shape, None, text, dtype)
    weights = weight_bytes(shape, dtype)
    contestants = [("unpruned", None, full), *((name, p, count(shape, p, text, dtype)) for name, p in pruners.items())]
    rows = [_row(shape, name, pruner, held, full, text, formula, dtype) for name, pruner, held in contestants]
    read = weights["decoder"] + weights["head"]
    return dict(shape=shape.name, layers=shape.layers, image_tokens=shape.n, text_tokens=text, dtype=str(dtype).removeprefix("torch."),
                formula=f"{formula}, width {c.hidden_size}, MLP {c.intermediate_size}", weight_bytes=weights, read_a_token=read, rows=rows)


def _row(shape, name, pruner, held, full, text, formula, dtype):
    c, kept = shape.config.text, held.visual
    parts = {part: getattr(held, part) for part in ("tower", "projector", "decoder", "head")}
    best = least(shape, pruner, text, dtype) if pruner else full.prefill
    return dict(method=name, image_tokens=list(held.visual), tokens=list(held.tokens), average=average(held.visual),
                formula_flops=formula.flops(kept, c.hidden_size, c.intermediate_size), counted_flops=parts, kv_bytes=held.kv_bytes,
                prefill_speedup=full.prefill / held.prefill, first_token_speedup=full.total / held.total,
                first_token_bound=full.total / (held.encode + best))


def lines(told):
    """The same as text."""
    rows, first, held = told["rows"], told["rows"][0], told["weight_bytes"]
    wide = max(len(row["method"]) for row in rows)
    yield f"{told['shape']}: {told['layers']} decoder layers, {told['image_tokens']} image and {told['text_tokens']} text tokens, {told['dtype']}"
    yield (f"weights {size(sum(held.values()))}: vision tower {size(held['tower'])}, projector {size(held['projector'])}, "
           f"decoder {size(held['decoder'])}, embedding {size(held['embedding'])}, head {size(held['head'])}")
    yield ""
    yield f"{'':{wide}}  average  formula FLOPs   counted FLOPs    KV cache        prefill  first token  at most   image tokens entering the layers"
    whole, formula = sum(first["counted_flops"].values()), first["formula_flops"]
    for row in rows:
        counted = sum(row["counted_flops"].values())
        yield (f"{row['method']:{wide}}  {row['average']:7.1f}  {_tera(row['formula_flops'])} {row['formula_flops'] / formula:4.0%}   "
               f"{_tera(counted)} {counted / whole:4.0%}  {size(row['kv_bytes']):>8} {row['kv_bytes'] / first['kv_bytes']:4.0%}  "
               f"{row['prefill_speedup']:6.2f} x     {row['first_token_speedup']:6.2f} x {row['first_token_bound']:6.2f} x   {runs(row['image_tokens'])}")
    yield from _explained(told)


def _explained(told):
    first, read = told["rows"][0], told["read_a_token"]
    parts, kv = first["counted_flops"], first["kv_bytes"]
    encode = (parts["tower"] + parts["projector"]) / sum(parts.values())
    yield ""
    yield f"formula: multiplications of the decoder's layers, {told['formula']}"
    yield "counted: multiplications and additions of everything to the first token, vision tower and text in, causal attention counted whole"
    yield (f"at most: were no image token left after the method's first cut; the vision tower and projector, {encode:.0%} of the unpruned "
           "FLOPs, stay")
    yield (f"decoding: a token reads {size(read)} of weights and {size(kv)} of unpruned cache; without any cache it would be "
           f"{(read + kv) / read:.2f} x as fast")


def _tera(flops):
    """8.672e12 -> "  8.672 T"; G and M for models that are small."""
    scale, unit = next((s, u) for s, u in ((1e12, "T"), (1e9, "G"), (1e6, "M")) if flops >= s / 100 or u == "M")
    return f"{flops / scale:7.3f} {unit}"

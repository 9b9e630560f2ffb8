"""Faults for each exercise: {exercise: [(our source's words, other words, the check that they break)]}.

A test plants each in our own source and expects that check to fail.
"""

VISUAL = "attention[0, tokens.visual]"
LAST = 'tokens.before.mean_attention("last")'
NEAREST = "nearest = torch.minimum(nearest, distance[pick].squeeze(0))"
SUPPRESS = "score = score * (1 - suppression[i].squeeze(0))"
SPATIAL = '"spatial": [Mask_s],'
OWN_LAWS = 'laws = frozenset({"select", "ordered", "budget"})'
OWN_SCORE = "return attention * (1 - F.cosine_similarity(hidden, mean))"
OWN_ATTENTION = LAST + "[0, tokens.visual]"

FAULTS = {
    "rope": [
        ("exponent = index / head_dim", "exponent = index / pairs", "by hand"),
        ("position.float() * frequency", "(position.float() + 1) * frequency", "position 0"),
        ("torch.cat([-second, first], dim=-1)", "torch.cat([second, first], dim=-1)", "length"),
        ("position.float() * frequency", "position.float() ** 2 * frequency", "distance"),
        ("position.float() * frequency", "position.to(dtype) * frequency", "precision"),
        ("1.0 / theta ** exponent", "theta ** exponent", "reference"),
    ],
    "attention": [
        ("logits = logits / Dh ** 0.5", "logits = logits / Dh", "by hand"),
        ("allowed = column <= row ", "allowed = column < row ", "mask by hand"),
        ("(logits + mask).softmax(dim=-1)", "(logits + mask).exp()", "weights"),
        ("allowed = column <= row ", "allowed = column <= row + 1 ", "causal"),
        ("key = for_each_head(key, H)   ", "key = key.repeat(1, H // key.shape[1], 1, 1)   ", "groups"),
        ("allowed |= sees_nothing & is_itself", "pass", "hidden keys"),
        ("return weights @ value", "return weights.square() @ value", "reference"),
    ],
    "cache": [
        ("self.length = end", "self.length = start", "by hand"),
        ("self.length = end", "self.length = start + 1", "all so far"),
        ("self.value[:, :, start:end] = value", "self.value[:, :, start:end] = key", "step"),
        ("self.length = len(rows)", "pass", "select"),
        ("later_keys = self.length + new -", "later_keys = self.length -", "hidden keys"),
        ("capacity = end + max(reserve, start // 2)", "capacity = end", "room"),
    ],
    "fastv": [
        (LAST, 'tokens.before.mean_attention("all").mean(dim=0, keepdim=True)', "by hand"),
        (LAST, 'tokens.before.attention("last").amax(dim=0)', "heads"),
        (VISUAL, "attention[0, tokens.visual[0]:tokens.visual[0] + tokens.n]", "two images"),
        (VISUAL, "-attention[0, tokens.visual]", "needle"),
        (VISUAL, "attention[0, :tokens.n]", "shift"),
        (VISUAL, "(10 * attention[0, tokens.visual]).round()", "scale"),
        (VISUAL, "attention[0, tokens.visual].square()", "reference"),
    ],
    "late": [
        ("position[visual] = visual.flip(0)", "pass", "ids by hand"),
        ("float(row @ index / scale)", "float(row @ index)", "correlation by hand"),
        ("(cos[visual], sin[visual])", "(cos[:len(visual)], sin[:len(visual)])", "flat"),
        ("rope(position, Dh", "rope(torch.arange(len(position)), Dh", "turns over"),
        ("position_ids(T, visual, kind)\n", "position_ids(T, visual, KINDS[0])\n", "experiment"),
        ("logits.softmax(dim=-1).mean", "logits.softmax(dim=-1).square().mean", "reference"),
    ],
    "divprune": [
        (NEAREST, "nearest = distance[pick].squeeze(0)", "by hand"),
        ("to_others.min(dim=0).values", "to_others.sum(dim=0)", "first pick"),
        ('nearest = nearest.index_fill(0, pick, float("-inf"))', "pass", "copies"),
        (NEAREST, "nearest = distance[pick].squeeze(0)", "farthest"),
        ("to_others.min(dim=0).values", "to_others.min(dim=0).values * (-1) ** k", "beginning"),
        ("score = nearest.index_copy(0, order, torch.cat(gains))", "score = nearest", "score"),
        ("gain = to_others.min(dim=0).values", "gain = to_others[0]", "reference"),
    ],
    "adaptprune": [
        ("sigma or side.amax() / 2", "sigma or side.amax()", "correction by hand"),
        ("members = on_grid & (grid[:, 0] == tile)", "members = on_grid", "tiles"),
        ("decay(1 - cosine, self.sigma_s)", "decay(cosine, self.sigma_s)", "suppression by hand"),
        ("(d <= self.distance_limit)", "(d < self.distance_limit)", "neighbours"),
        (SUPPRESS, f"{SUPPRESS} if len(R) == 1 else score", "adds up"),
        ('left = score.masked_fill(is_picked, float("-inf"))', "left = score", "once"),
        (SUPPRESS, "score = score - 0.1 * suppression[i].squeeze(0)", "scale"),
        ("self.keys(tokens)[tokens.visual]", "self.keys(tokens)[:tokens.n]", "shift"),
        ("suppression *= decay(d, self.sigma_d)", "suppression *= decay(d, 2 * self.sigma_d)", "reference"),
    ],
    "bimask": [
        ("view.summed_logits(rows)[rows]", 'view.summed_logits("all")[rows]', "mass by hand"),
        ("(s_max - s_min + EPS)", "(s_max + EPS)", "saliency by hand"),
        ("image).triu(1)", "image).tril(-1)", "mask by hand"),
        ("tokens.here.mask().clone()", "torch.zeros_like(tokens.here.mask())", "causal"),
        ("(image[:, None] == image).triu(1)", "(image[:, None] <= image).triu(1)", "images"),
        ("(s - s_min) / (s_max - s_min + EPS)", "s / (s_max - s_min + EPS)", "range"),
        ("(image[:, None] == image).triu(1)", "(image[:, None] == image).triu(2)", "reference"),
    ],
    "consolidation": [
        ("weight = absorbs * s_hat ", "weight = absorbs.float() ", "Eq. 6 by hand"),
        ("torch.where(total > EPS, weight / total, itself)", "weight / total", "nothing salient"),
        ("order = kept[descending(s_hat[kept])]", "order = kept", "flow"),
        ("~(may_absorb[j] & is_anchor).any()", "True", "chain"),
        ("self.route(S, can_absorb)", "S.masked_fill(~can_absorb, -2.0).argmax(dim=1)", "route"),
        ("torch.where(total > EPS, weight / total, itself)", "torch.where(total > EPS, weight, itself)", "convex"),
        ("weight = absorbs * s_hat ", "weight = (absorbs | True) * s_hat ", "disjoint"),
        ("(S > self.threshold)", "(S > 0.5)", "reference"),
    ],
    "reallocation": [
        ("order = descending(s) ", "order = torch.arange(len(s)) ", "by hand"),
        ("len(anchors) if self.salvage else 0", "len(anchors)", "off"),
        ("(tokens, s, kept, anchors)[:a]", "(tokens, s, kept, anchors)[torch.arange(a)]", "small pool"),
        ("(tokens, s, kept, anchors)[:a]", "(tokens, s, kept, anchors)[:a // 2]", "conservation"),
        ("order[~torch.isin(order, kept)]", "order[~torch.isin(order, anchors)]", "new"),
        ("order = descending(s) ", "order = descending(-s) ", "best"),
        ("order = descending(s) ", "order = descending(-s) ", "reference"),
    ],
    "atp": [
        ("theta_s = module.linear_s(z)", "theta_s = module.linear_r(z)", "thresholds by hand"),
        ("zeros.index_copy(1, tokens.source, S)", "torch.cat([S, zeros[:, S.shape[1]:]], dim=1)", "places"),
        ("masks.amax(dim=0)", "masks.mean(dim=0)", "mask by hand"),
        (SPATIAL, '"spatial": [Mask_r],', "strategies"),
        ("return alive * masks.amax", "return masks.amax", "stays pruned"),
        ("self.thresholds(i, read, tokens)", "self.thresholds(i, read.detach(), tokens)", "gradients"),
        ("above_s * self.temperature", "above_s * self.temperature / 2", "reference"),
    ],
    "positions": [
        ("2 * index_of_text + 1", "2 * index_of_text - 1", "keep by hand"),
        ("next_position=int(counts.sum())", "next_position=tokens.next_position", "renumber by hand"),
        ("if r.merge is not None and not r.applied:", "if False:", "merge by hand"),
        ("counts = (~tokens.masked).long()", "pass", "masked"),
        ("torch.cat([tokens.visual[keep], text])", "torch.cat([tokens.visual[keep], text.flip(0)])", "text"),
        ("position=tokens.position[rows])", "position=torch.arange(len(rows)))", "ids stay"),
        ("position = counts.cumsum(0) - 1", "position = counts.cumsum(0)", "dense"),
        ("grid=tokens.grid[kept], source", "grid=tokens.grid[r.keep], source", "reference"),
    ],
    "flops": [
        ("4 * v * d ** 2", "3 * v * d ** 2", "layer by hand"),
        ("4 * v * d ** 2", "3 * v * d ** 2", "7B"),
        ("sum(entering) / len(entering)", "sum(set(entering)) / len(set(entering))", "average by hand"),
        ("return sum(layer_flops", "return max(layer_flops", "sum"),
        ("2 * v ** 2 * d", "2 * v * d", "quadratic"),
        (">= target", "> target", "budget"),
        ("* 2 * heads", "* heads", "cache by hand"),
        ("before = weights + kv_bytes(unpruned", "before = kv_bytes(unpruned", "decoding by hand"),
        ("return before / after", "return before / (after - weights)", "bound"),
    ],
    "own": [
        (OWN_SCORE, OWN_SCORE + "[:, None]", "form"),
        (OWN_LAWS, f"{OWN_LAWS}\n    budget = lambda self, n: 1", "budget"),
        (OWN_LAWS, "laws = frozenset()", "names"),
        (OWN_LAWS, 'laws = frozenset({"select", "ordered", "needle"})', "laws"),
        (OWN_ATTENTION, LAST + "[0, :tokens.n]", "shift"),
        (OWN_SCORE, "import torch; return torch.rand(tokens.n)", "pure"),
        (OWN_SCORE, "return attention", "own"),
    ],
}

"""Which keys a query may not see, besides later ones: masked tokens, and those outside a sliding window (Mistral)."""

import torch

from minivlm.attention import causal_mask


def prompt_mask(tokens, window=None):
    """(T, T) mask of a prompt's Tokens; None: causal."""
    hidden = tokens.masked                                                         # (T,) or None
    if window is not None and tokens.next_position > window:       # else no query is too far from any key
        hidden = hidden_keys(tokens.masked, tokens.position, tokens.position, window)
    if hidden is None:
        return None
    T = len(tokens.hidden)
    device = tokens.hidden.device
    return causal_mask(torch.arange(T, device=device), T, hidden.to(device))


def step_mask(held, position, window=None):
    """(m, S) mask of m new tokens at these positions, after what the LayerCache holds; None: they see all of that."""
    m = len(position)
    hidden = held.hidden_keys(m)                                                   # (S,) or None
    if window is not None:
        held.position = torch.cat([held.position, position])
        hidden = hidden_keys(hidden, position, held.position, window)              # (m, S)
    if hidden is None:
        return None
    S = hidden.shape[-1]
    rows = torch.arange(S - m, S, device=position.device)
    return causal_mask(rows, S, hidden)


def hidden_keys(masked, query_position, key_position, window):
    """(T, S) bool: keys that each query may not see. It sees `window` positions back, its own included, none masked."""
    if window is None:
        return masked
    first_seen = query_position[:, None] - window + 1                              # (T, 1)
    too_far = key_position < first_seen                                            # (T, S)
    if masked is None:
        return too_far
    return too_far | masked.to(too_far.device)

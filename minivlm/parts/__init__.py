"""Small pieces that the network's files are built from: its numbers, activations, masks, the sequence of tokens, what
methods may look at."""

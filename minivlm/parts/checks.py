"""What a prompt must be for a model to run it: ids that it knows, and a length that it has room for."""

from pruning.base import UserError


def check_ids(model, ids):
    """UserError for an id without a row in the model's embedding: the tokenizer knows its token, the model does not."""
    rows = model.language_model.embed_tokens.num_embeddings
    without_row = [int(id) for id in ids if int(id) not in range(rows)]
    if not without_row:
        return
    id = without_row[0]
    tokenizer = getattr(model, "tokenizer", None)
    piece = ""
    if tokenizer and id >= 0:
        (name,) = tokenizer.pieces([id])
        piece = f" {name}"
    raise UserError(f"the token{piece} has the id {id}, and the model's embedding has {rows} rows: "
                    "leave it out of the text, or fetch the tokenizer's files that belong to these weights")


def check_length(tokens, positions, context):
    """UserError for a prompt of no tokens, or of more position ids than the model's context."""
    if positions > context:
        raise UserError(f"the prompt has {positions} tokens and the model's context is {context}: shorten it")
    if tokens == 0:
        raise UserError("no token of the prompt is left, so nothing can follow it: give it text, or a method that "
                        "keeps some of the image")

"""Text in and out: a checkpoint's tokenizer, and prompts with their <image> marks.

LLaMA's tokenizer is byte-pair encoding without any cutting into words. A space is written "▁", and every run of text
gets one before it. Marks (<s>, </s>, <image>) cut the text first, so the runs on both sides of a mark get their own
"▁". A character without a piece of its own is spelled as UTF-8 bytes, one id each.
"""

import re
from pathlib import Path

from tokenizers import AddedToken

from minivlm.io.files import read_json
from minivlm.io.text.chatml import CONTEXT, END
from minivlm.io.text.formats import IMAGE, Template, marked
from minivlm.io.text.template import TEMPLATES
from minivlm.io.text.vocabulary import read_vocabulary
from pruning.base import UserError

ENDS = re.compile(r" ?(</s>|<\|im_end\|>|<\|eot_id\|>|<\|end\|>|<end_of_utterance>)\n*")   # of an answer
LONGEST_TEXT = 2_000_000               # characters: no model's context is that long


def prompt(turns, images=1, template="llava-hf"):
    """The text of a conversation: turns are (question, answer), the last answer None if the model shall give it.

    prompt([("What?", "A cat."), ("Old?", None)])
        -> "USER: <image>\\nWhat? ASSISTANT: A cat. USER: Old? ASSISTANT:"
    Marks of `images` pictures come before the first question, each on its own line, unless the questions hold them.
    template: a name of TEMPLATES, or a Template. Raises UserError if marks and pictures do not match.
    """
    return named(template).text(turns, images)


def next_turn(question, ended=False, images=0, template="llava-hf", turns=(("", ""),)):
    """The text that goes on after an answer of the model, up to the next answer.

    turns: those before, (question, answer); a checkpoint's own template may depend on them.
    `ended`: the answer's end token, </s> or <|im_end|>, has been read already; else it is in the text.
    Encode it as what goes on: next_turn("Old?") -> " USER: Old? ASSISTANT:"
    """
    (question,) = marked([question], images)
    text = named(template).following(list(turns), question)
    end = ENDS.match(text) if ended else None
    return text[end.end(1):] if end else text


def named(template):
    """The Template of a name; a Template as it is. Raises UserError for a name that is not known."""
    if isinstance(template, Template):
        return template
    if template not in TEMPLATES:
        raise UserError(f"template {template!r} is not known: use one of {', '.join(TEMPLATES)}")
    return TEMPLATES[template]


class Tokenizer:
    """Text <-> ids, from the files of a folder (see vocabulary.py). Raises UserError if it has none.

    bos, eos, image: the ids of <s> (None: texts start without), </s> and <image>. The last is `image_token_index` if
    that is given, whatever id the file has for the mark: the original LLaVA's files have none. In InternVL it is the id
    of <IMG_CONTEXT>, <image> is short for <img><IMG_CONTEXT></img>, and eos is <|im_end|>, which closes a turn.
    """

    def __init__(self, folder, image_token_index=None, internvl=False):
        self.folder = Path(folder)
        settings = self.folder / "tokenizer_config.json"
        settings = read_json(settings) if settings.is_file() else {}
        self.fast = read_vocabulary(self.folder, settings)
        self.bos = self._start(settings)
        has_index = image_token_index is not None
        if internvl or has_index and self.fast.token_to_id(CONTEXT) == image_token_index:
            self._check_marks()
            self.eos = self.fast.token_to_id(END)
            self._written = f"<img>{CONTEXT}</img>"
            self._mark = self.fast.token_to_id(CONTEXT)
        else:
            if has_index and self.fast.token_to_id(IMAGE) is None:
                self.fast.add_special_tokens([AddedToken(IMAGE, normalized=False)])
            self.eos = self._named(settings, "eos_token", "</s>")
            self._written = IMAGE
            self._mark = self.fast.token_to_id(IMAGE)
        self.image = image_token_index if has_index else self._mark
        added = self.fast.get_added_tokens_decoder()
        self._special = {id for id, token in added.items() if token.special}

    def _check_marks(self):
        """Raises UserError if a mark of InternVL's is no token: its letters would be read in its place."""
        marks = ("<img>", CONTEXT, "</img>", END)
        missing = [mark for mark in marks if self.fast.token_to_id(mark) is None]
        if missing:
            raise UserError(f"{self.folder}: the tokenizer has no {', '.join(missing)}: InternVL's own tokenizer "
                            "files are needed, with tokenizer_config.json or added_tokens.json, in place of the "
                            "language model's")

    def _named(self, settings, key, default):
        """The id of the token that the settings name; None if there is none."""
        name = settings.get(key, default)
        if isinstance(name, dict):
            name = name.get("content")
        if not isinstance(name, str):
            return None
        try:
            return self.fast.token_to_id(name)
        except UnicodeError:                       # half of a character: no token
            return None

    def _start(self, settings):
        """The id that texts start with, or None."""
        bos = self._named(settings, "bos_token", "<s>")
        adds = settings.get("add_bos_token")
        if adds is None:
            # not declared: encode a text and see; LLaMA's tokenizer class always adds it
            kind = str(settings.get("tokenizer_class") or "Llama")
            adds = bos in self.fast.encode("").ids or "Llama" in kind or "InternLM2" in kind
        return bos if adds else None

    def encode(self, text, bos=True, after=""):
        """Ids of the text, one per mark; <s> first, once.

        bos=False: for text that continues ids read before; `after`, the text of those: no space is put between.
        """
        ids = self._ids(text)
        if bos:
            if self.bos is None or ids[:1] == [self.bos]:
                return ids
            return [self.bos, *ids]
        if not after:
            return ids
        before = self._ids(after)
        whole = self._ids(after + text)
        start = len(before)
        return whole[start:] if whole[:start] == before else ids

    def _ids(self, text):
        if len(text) > LONGEST_TEXT:
            raise UserError(f"the text has {len(text)} characters, which fit into no context: shorten it")
        try:
            ids = self.fast.encode(text.replace(IMAGE, self._written), add_special_tokens=False).ids
        except TypeError as error:                 # a shell's bytes that are not UTF-8
            raise UserError(f"the text {text[:200]!r} is not valid Unicode: write it in UTF-8") from error
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:             # a piece without a token, where no token is for those; or a panic
            sentence = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(f"{self.folder}: the tokenizer cannot encode {text[:200]!r} ({sentence}): use other "
                            "words") from error
        if self.image not in (None, self._mark) and self.image in ids:
            token = self.fast.id_to_token(self.image)
            raise UserError(f"{self.folder}: the token {token} has the id {self.image}, which config.json gives the "
                            "image mark: leave it out of the text, or fetch the tokenizer's files of these weights")
        return [self.image if i == self._mark else i for i in ids]

    def decode(self, ids):
        """Text of the ids, without marks and without ids that the tokenizer does not know (a padded vocabulary)."""
        known = [id for id in map(int, ids) if self.shows(id)]
        return self.fast.decode(known)

    def shows(self, id):
        """Whether `decode` reads this id."""
        return id not in self._special and id >= 0 and self.fast.id_to_token(id) is not None

    def stream(self):
        """A `Stream`: text while the ids arrive."""
        return Stream(self)

    def pieces(self, ids):
        """The piece of each id as the vocabulary writes it ("▁cat", "<0x0A>"), for display."""
        pieces = []
        for id in map(int, ids):
            piece = self.fast.id_to_token(id) or f"<{id}>"
            pieces.append(IMAGE if id == self.image else piece)
        return pieces


class Stream:
    """Text of ids that arrive one by one. What `push` gives is final: all pushes and `finish` joined equal `decode`.

    Only the ids since the last text are decoded again, after one id of context: the first one's "▁" is dropped, that of
    the others is a space. Bytes wait for the next piece, since one wrong byte spoils the run of bytes it is in.
    """

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.ids = []
        self.sent = 0                  # characters of ids[0] that are out already

    def push(self, id):
        """The text that is certain now that this id came; "" if none is."""
        id = int(id)
        if not self.tokenizer.shows(id):
            return ""
        self.ids.append(id)
        text = self.tokenizer.decode(self.ids)
        if re.fullmatch("<0x..>", self.tokenizer.fast.id_to_token(id)) or text.endswith("\ufffd"):
            return ""
        text = text[self.sent:]
        self.ids = [id]
        self.sent = len(self.tokenizer.decode(self.ids))
        return text

    def finish(self):
        """The rest of the text; then the stream is as new."""
        text = self.tokenizer.decode(self.ids)
        text = text[self.sent:]
        self.ids = []
        self.sent = 0
        return text

"""COCO captions: files of what people wrote about pictures."""

from minivlm.io.data import LARGE, read_json
from minivlm.lab.tasks.formats.entries import checked, entries, files
from minivlm.lab.tasks.question import Question
from pruning.base import UserError


def read_captions(path):
    """captions_val2014.json; or dataset_coco.json, Karpathy's split, of which the test set is taken."""
    path, = files(path, "captions_val2014.json", "dataset_coco.json")
    value = read_json(path, "captions", LARGE)
    if isinstance(value, dict) and "annotations" not in value:
        return _karpathy(path)
    rows = checked(entries(path, "caption", "annotations"), "caption", image_id=int, caption=str)
    listed = checked(entries(path, "picture", "images"), "picture", id=int, file_name=str)
    name_of = {row["id"]: row["file_name"] for _, row in listed}
    captions = {}
    for where, row in rows:
        id = row["image_id"]
        if id not in name_of:
            raise UserError(f"{where}: picture {id} is not among the images")
        captions.setdefault(id, []).append(row["caption"])
    return [_described(id, name_of[id], tuple(own)) for id, own in captions.items()]


def _karpathy(path):
    rows = checked(entries(path, "picture", "images"), "picture", cocoid=int, filename=str, split=str)
    questions = []
    for where, row in rows:
        if row["split"] == "test":
            captions = _sentences(where, row)
            questions.append(_described(row["cocoid"], row["filename"], captions))
    return questions


def _sentences(where, row):
    """The words of each caption."""
    sentences = row.get("sentences") or ()
    captions = [sentence.get("raw") for sentence in sentences if isinstance(sentence, dict)]
    are_words = all(isinstance(caption, str) for caption in captions)
    if not captions or not are_words:
        raise UserError(f"{where}: sentences must be a list of objects with the words as raw")
    return tuple(captions)


def _described(id, image, captions):
    return Question(image, None, "", "", captions, names=(str(id), image))

"""Something-Something v2 (JSON) and v1 and Jester (text): a label for each numbered clip.

In v2 the class is `template` without its brackets, as in the official labels.json; `label` is the sentence that fills
it in. v1, Jester and the test answers of v2 are lines of `id;label`. Files are called `<id>.webm`, and `<id>/` for
frames. Source: the instructions that come with Something-Something v2 and Jester v1.
"""

import re
from collections.abc import Iterator
from typing import Any

from configs.section import UsageError
from packer.labels.label_file import LabelFile
from packer.labels.row_list import RowList
from packer.labels.rows import Labels

_LINE = re.compile(r"(\d+)\s*;\s*(.+)")
_ID_ALONE = re.compile(r"\d+;?")
_TEST = (
    "is a list of a test set, which has ids alone: take the list of train or validation, or, for Something-Something "
    "v2, test-answers.csv"
)


def fits(file: LabelFile) -> bool:
    """Tells whether a file is JSON with templates, or text of numbered clips."""
    if file.kind == "text":
        return any(all(form.fullmatch(line) for _, line in file.lines()) for form in (_LINE, _ID_ALONE))
    if file.kind != "json" or not isinstance(file.json, list) or not file.json:
        return False
    first = file.json[0]
    return isinstance(first, dict) and "id" in first and ("template" in first or set(first) == {"id"})


def read(file: LabelFile) -> Labels:
    """Returns the labels of a list.

    Raises:
        UsageError: It has no labels, as the list of a test set, or an entry is wrong.
    """
    rows = RowList(file.name)
    for where, clip_id, label in _of_lines(file) if file.kind == "text" else _of_json(file):
        rows.add(where, clip_id, label, is_id=True)
    return rows.finish("something-something")


def _of_lines(file: LabelFile) -> Iterator[tuple[str, object, object]]:
    for where, line in file.lines():
        if _ID_ALONE.fullmatch(line):
            raise UsageError(f"{where} has no label: it {_TEST}")
        if (found := _LINE.fullmatch(line)) is None:
            raise UsageError(f"{where} is {line!r}: it must be `id;label`, such as `34870;Drumming Fingers`")
        yield where, found[1], found[2].strip('"')


def _of_json(file: LabelFile) -> Iterator[tuple[str, object, object]]:
    content: Any = file.json
    if not isinstance(content, list):
        raise UsageError(f"{file.name} is no list: Something-Something v2 is a JSON list of clips with id and template")
    for index, clip in enumerate(content):
        where = f"{file.name}: [{index}]"
        if not isinstance(clip, dict) or "id" not in clip:
            raise UsageError(f"{where} has no id: Something-Something v2 is a JSON list of clips with id and template")
        if "template" not in clip:
            raise UsageError(f"{where} has no template: it {_TEST}")
        yield where, clip["id"], str(clip["template"] or "").replace("[", "").replace("]", "")

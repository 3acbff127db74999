"""Reads tables with a row per clip: the columns of `packer.labels.columns`."""

from collections.abc import Mapping
from fractions import Fraction

from configs.section import UsageError
from packer.labels.class_file import ClassNames
from packer.labels.columns import find_columns, is_header, unread_notes
from packer.labels.delimited import column_name, possible_tables
from packer.labels.label_file import LabelFile
from packer.labels.row_list import RowList, clean_path, to_text
from packer.labels.rows import Labels
from packer.labels.table_file import objects_of, open_table
from packer.labels.times import frames_segment, seconds_segment, split_fragment
from packer.video.segment import Segment


def fits(file: LabelFile) -> bool:
    """Tells whether a file names the columns that a table needs."""
    if file.kind == "text":
        return any(is_header(table.header) for table in possible_tables(file))
    if file.kind == "json":
        rows = objects_of(file.json)
        return rows is not None and bool(rows) and is_header(tuple(map(column_name, rows[0])))
    return True


def read(
    file: LabelFile, classes: ClassNames | None, frame_rate: Fraction | None, format_name: str = "table"
) -> Labels:
    """Returns the labels of a table.

    Args:
        file: The table.
        classes: The names of classes whose labels are numbers.
        frame_rate: Frames per second at which `start_frame` and `end_frame` were counted; None: the video's own frames.
        format_name: What the result calls the format.

    Raises:
        UsageError: A column is missing or there twice, or a value is wrong.
    """
    table = open_table(file)
    index_of = find_columns(table)
    rows = RowList(file.name)
    for label, text in unread_notes(table, index_of):
        rows.note(label, text)
    columns = list(index_of)
    is_id = "path" not in index_of
    for where, values in table.values(list(index_of.values())):
        row = dict(zip(columns, values, strict=True))
        label = to_text(row["label"], where, "label")
        if classes is not None and label:
            label = classes.name(label, where)
        named = row["video_id" if is_id else "path"]
        path, segment = split_fragment(named)
        rows.add(
            where,
            path,
            label,
            split=row.get("split"),
            group=row.get("group"),
            segment=segment or _segment(row, where, frame_rate, table.has_decimal_commas),
            is_id=is_id,
            trimmed_path=clean_path(str(named)) if segment else "",  # a file may have such a name
        )
    return rows.finish(format_name)


def counts_frames(file: LabelFile) -> bool:
    """Tells whether a table gives its segments in frames."""
    return not {"start_frame", "end_frame"}.isdisjoint(map(column_name, open_table(file).names))


def _segment(
    row: Mapping[str, object], where: str, frame_rate: Fraction | None, has_decimal_commas: bool
) -> Segment | None:
    try:
        if "start_frame" in row or "end_frame" in row:
            return frames_segment(row.get("start_frame"), row.get("end_frame"), frame_rate)
        bounds = [row.get("start"), row.get("end")]
        if has_decimal_commas:
            bounds = [bound.replace(",", ".") if isinstance(bound, str) else bound for bound in bounds]
        return seconds_segment(*bounds)
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from error

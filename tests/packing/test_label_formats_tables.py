"""Tables of labels: how they may be stored, what a value may be, and what is refused."""

import datetime
import json
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.section import UsageError
from packer.labels.columns import COLUMNS
from packer.labels.read import FORMATS, read_labels
from packer.labels.rows import LabelRow, Labels
from packer.labels.times import frames_segment, seconds_segment, split_fragment, to_frame, to_seconds
from packer.storage.location import RemotePath
from packer.video.segment import Segment

ROWS = (("a/x.mp4", "walk"), ("b/y.mp4", "run"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def read(path: Path, frame_rate: Fraction | None = None, classes: Path | None = None) -> Labels:
    return read_labels(path, "auto", classes=classes, frame_rate=frame_rate)


def write(folder: Path, data: str | bytes, name: str = "labels.csv") -> Path:
    (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return folder / name


def read_text(folder: Path, data: str | bytes, name: str = "labels.csv") -> Labels:
    return read(write(folder, data, name))


def refusal(folder: Path, data: str | bytes, name: str = "labels.csv") -> str:
    with pytest.raises(UsageError) as caught:
        read_labels(write(folder, data, name), "table", classes=None, frame_rate=None)
    return str(caught.value)


def seconds(start: str, end: str | None = None) -> Segment:
    return Segment(Fraction(start), None if end is None else Fraction(end))


def pairs(labels: Labels) -> tuple[tuple[str, str], ...]:
    assert labels.format_name == "table"
    return tuple((row.path, row.label) for row in labels.rows)


PLAIN = "path,label\na/x.mp4,walk\nb/y.mp4,run\n"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("labels.csv", PLAIN.encode()),
        ("labels.csv", PLAIN.replace("\n", "\r\n").encode()),
        ("labels.csv", PLAIN.replace("\n", "\r").encode()),
        ("labels.csv", b"\xef\xbb\xbf" + PLAIN.encode()),
        ("labels.txt", PLAIN.replace(",", "\t").encode("utf-16")),
        ("labels.csv", PLAIN.encode("utf-16-be").join([b"\xfe\xff", b""])),
        ("labels.csv", PLAIN.replace(",", ";").encode()),
        ("labels.csv", ("sep=;\r\n" + PLAIN.replace(",", ";")).encode()),
        ("labels.csv", PLAIN.replace("\n", "\n\n ,\n").encode()),
        ("labels.csv", PLAIN.replace("\n", ",\n").encode()),
        ("labels.csv", b'"path", "label"\n"a/x.mp4", "walk"\n"b/y.mp4", run \n'),
        ("labels.tsv", PLAIN.replace(",", "\t").encode()),
        ("labels.jsonl", b'{"path": "a/x.mp4", "label": "walk"}\n\n{"label": "run", "path": "b/y.mp4"}\r\n'),
        ("labels.json", b'[{"path": "a/x.mp4", "label": "walk"}, {"path": "b/y.mp4", "label": "run"}]'),
    ],
)
def test_text_tables_in_every_spelling(folder: Path, name: str, data: bytes) -> None:
    assert pairs(read_text(folder, data, name)) == ROWS


@pytest.mark.parametrize(
    "path", ["path", "filepath", "file_name", "filename", "video", "source", "File Name", "Video Path"]
)
@pytest.mark.parametrize("label", ["label", "class", "class_name", "category", "Class-Name", " LABEL "])
def test_columns_have_several_names(folder: Path, path: str, label: str) -> None:
    assert pairs(read_text(folder, PLAIN.replace("path", path).replace("label", label))) == ROWS


def test_every_column_is_read(folder: Path) -> None:
    text = (
        "path,label,split,site,start,end\n"
        '"a/x, 1.mp4","say ""hi""",Training,yard,1:02.5,00:01:03.125\n'
        "a/x.mp4,walk,validate,,12.30,\n"
        "a/x.mp4,walk,TEST,7,,4\n"
        "-3B.mp4,walk,,,,\n"
    )
    labels = read_text(folder, text)
    assert labels.rows == (
        LabelRow("labels.csv:2", "a/x, 1.mp4", 'say "hi"', "train", "yard", seconds("62.5", "63.125")),
        LabelRow("labels.csv:3", "a/x.mp4", "walk", "val", "", seconds("12.3")),
        LabelRow("labels.csv:4", "a/x.mp4", "walk", "test", "7", seconds("0", "4")),
        LabelRow("labels.csv:5", "-3B.mp4", "walk"),
    )
    assert labels.has_splits
    assert labels.notes == ()


def test_between_semicolons_decimals_may_follow_a_comma(folder: Path) -> None:
    text = "path;label;start;end\r\na.mp4;x;12,5;17\r\nb.mp4;x;0:09,5;0:12.25\r\n"
    labels = read_text(folder, text)
    assert [row.segment for row in labels.rows] == [seconds("12.5", "17"), seconds("9.5", "12.25")]


def test_places_count_the_lines_of_the_file(folder: Path) -> None:
    labels = read_text(folder, 'path,label\n\n"a\nb.mp4",walk\n\nc.mp4,run\n')
    assert [row.where for row in labels.rows] == ["labels.csv:3", "labels.csv:6"]


def test_frames_are_half_open_and_count_from_0(folder: Path) -> None:
    path = write(folder, "path,label,start_frame,end_frame\na.mp4,x,0,64\na.mp4,y,64.0,\na.mp4,z,,\n")
    assert [row.segment for row in read(path).rows] == [
        Segment(Fraction(0), Fraction(64), "frames"),
        Segment(Fraction(64), None, "frames"),
        None,
    ]
    rate = Fraction(30000, 1001)
    assert [row.segment for row in read(path, rate).rows] == [Segment(Fraction(0), 64 / rate), Segment(64 / rate), None]


def test_segments_that_no_video_has_are_kept_for_the_pack_to_reject(folder: Path) -> None:
    labels = read_text(folder, "path,label,start,end\na.mp4,x,5,5\na.mp4,x,-1,4\na.mp4,x,9,4\n")
    assert [bool(row.segment and row.segment.fault) for row in labels.rows] == [True] * 3


def test_parquet(folder: Path) -> None:
    table = pa.table(
        {
            "path": ["a.mp4", "b.mp4", "c.mp4"],
            "label": pa.array([3.0, 4.0, 2.5]),
            "start": pa.array([12.3, None, 0.1], pa.float32()),
            "end": pa.array([12.7, float("nan"), 1e-05]),
            "subject": pa.array([1, 2, None]),
            "embedding": [[1.0], [2.0], [3.0]],
        }
    )
    pq.write_table(table, folder / "labels.parquet")
    labels = read(folder / "labels.parquet")
    assert labels.rows == (
        LabelRow("labels.parquet: row 1", "a.mp4", "3", "", "1", seconds("12.3", "12.7")),
        LabelRow("labels.parquet: row 2", "b.mp4", "4", "", "2"),
        LabelRow("labels.parquet: row 3", "c.mp4", "2.5", "", "", seconds("0.1", "0.00001")),
    )
    assert labels.notes == (("columns", "not read: embedding"),)


def test_parquet_of_other_types(folder: Path) -> None:
    table = pa.table(
        {
            "path": pa.array(["a.mp4"], pa.large_string()),
            "label": pa.array(["walk"]).dictionary_encode(),
            "start": pa.array([datetime.timedelta(seconds=1, microseconds=250000)]),
            "end": pa.array([datetime.time(0, 1, 3)]),
        }
    )
    pq.write_table(table, folder / "labels.parquet")
    assert read(folder / "labels.parquet").rows == (
        LabelRow("labels.parquet: row 1", "a.mp4", "walk", segment=seconds("1.25", "63")),
    )
    write(folder, (folder / "labels.parquet").read_bytes()[:60], "cut.parquet")
    with pytest.raises(UsageError, match=r"cut.parquet is a damaged Parquet file"):
        read(folder / "cut.parquet")


def test_numbers_as_labels_are_text(folder: Path) -> None:
    """Text stays as it is written; a number that is whole loses its point, as pandas adds one."""
    assert [row.label for row in read_text(folder, "path,label\na.mp4,3\nb.mp4,3.0\nc.mp4,007\n").rows] == [
        "3",
        "3.0",
        "007",
    ]
    lines = "\n".join(json.dumps({"path": "a.mp4", "label": label}) for label in (3, 3.0, 2.5, True, "3.0"))
    assert [row.label for row in read_text(folder, lines, "labels.jsonl").rows] == ["3", "3", "2.5", "true", "3.0"]


def test_huge_numbers_do_no_harm(folder: Path) -> None:
    lines = "".join(
        f'{{"path": "a.mp4", "label": {label}}}\n' for label in ("1e999999999", "Infinity", "1e-999999999", "9" * 400)
    )
    assert [row.label[:9] for row in read_text(folder, lines, "labels.jsonl").rows] == [
        "1E+999999",
        "inf",
        "1E-999999",
        "999999999",
    ]
    text = '[{"path": "a.mp4", "label": "x", "start": 1e999999999}]'
    assert "1E+999999999 is no time" in refusal(folder, text, "labels.json")
    assert "is no JSON of labels" in refusal(folder, f'[{{"path": {"9" * 5000}}}]', "labels.json")
    assert "is no JSON of labels" in refusal(folder, "[" * 100_000, "labels.json")


def test_class_files_name_numbers_in_tables(folder: Path) -> None:
    names = write(folder, "walk\nrun\n", "names.txt")
    labels = read(write(folder, "path,label\na.mp4,1\nb.mp4,walk\n"), classes=names)
    assert [row.label for row in labels.rows] == ["run", "walk"]
    with pytest.raises(UsageError, match=r"labels.csv:2 has label 'jump', which names.txt does not hold"):
        read(write(folder, "path,label\na.mp4,jump\n"), classes=names)


def test_ids_name_files_without_folder_and_extension(folder: Path) -> None:
    """Jester as Qualcomm gives it out since 2023: Train.csv with video_id, label, frames, label_id, shape, format."""
    text = 'video_id,label,frames,label_id,shape,format\n34870,Drumming Fingers,36,4,"(100, 176)",jpg\n'
    assert read_text(folder, text).rows == (LabelRow("labels.csv:2", "34870", "Drumming Fingers", is_id=True),)


def test_the_index_of_a_pack_is_a_table_of_labels(folder: Path) -> None:
    """Its `source` ends with the segment, exactly; `start_seconds` is a float."""
    text = (
        "source,class_name,split,start_seconds,end_seconds,offset\n"
        "a/x.mp4#t=37/3,17.5,walk,train,12.333333,17.5,0\n".replace("37/3,17.5", '37/3,17.5"').replace("a/x", '"a/x')
        + '"a/x.mp4#frames=0,64",run,val,0.0,2.5,512\n'
        "a/y.mp4,run,val,,,1024\n"
    )
    assert [(row.path, row.segment) for row in read_text(folder, text).rows] == [
        ("a/x.mp4", seconds("37/3", "17.5")),
        ("a/x.mp4", Segment(Fraction(0), Fraction(64), "frames")),
        ("a/y.mp4", None),
    ]


def test_paths_of_windows_and_of_browsers(folder: Path) -> None:
    text = "path,label\na\\b\\x.mp4,walk\n./y.mp4,walk\nfile:///data/my%20clips/z.mp4,walk\ns3://b/k.mp4,walk\n"
    assert [row.path for row in read_text(folder, text).rows] == [
        "a/b/x.mp4",
        "y.mp4",
        "/data/my clips/z.mp4",
        "s3://b/k.mp4",
    ]


def test_columns_that_bound_nothing_are_left_out(folder: Path) -> None:
    text = "path,label,from,first_name,last_name,start_date,offset\na.mp4,x,web,Ann,Lee,2024-05-01,7\n"
    assert pairs(read_text(folder, text)) == (("a.mp4", "x"),)


def test_columns_that_are_not_read_are_named(folder: Path) -> None:
    labels = read_text(folder, "path,label,splt,notes,\na.mp4,walk,train,nice,1\n")
    assert not labels.has_splits
    assert labels.notes == (
        ("columns", "splt is not read; if it is meant to be split, rename it"),
        ("columns", "not read: splt, notes"),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "path,lable\na.mp4,walk\n",
            "labels.csv has no column label (or class, class_name, category); its columns are: path, lable; did you "
            "mean lable? Then rename it",
        ),
        ("path|label\na.mp4|walk\n", "values must be separated by commas, semicolons or tabs"),
        (
            "a.mp4,walk\nb.mp4,run\n",
            "labels.csv has no header: its first line must name the columns, such as path,label",
        ),
        ("name,label\na.mp4,walk\n", "labels.csv has no column path (or filepath, "),
        ("path,label,Label\na,b,c\n", "labels.csv has the columns label and Label, which mean the label of a clip"),
        ("path,label,label\na,b,c\n", "labels.csv has the column label twice, which means the label of a clip"),
        ("path,video,label\na,b,c\n", "the columns path and video, which mean the path of a clip: keep one of them"),
        (
            "path,label\na.mp4,\nb.mp4,run\nc.mp4, \nd.mp4,\ne.mp4,\n",
            "labels.csv has 4 rows without a label (labels.csv:2, labels.csv:4, labels.csv:5, ...): give each its",
        ),
        ("path,label\na.mp4\n", "labels.csv has 1 row without a label (labels.csv:2): give it a label, or delete it"),
        ("path,label\n,walk\n", "labels.csv:2 names no video: fill in its path, or delete the row"),
        ("path,label\n", "labels.csv, read as table, labels no video: it has no rows"),
        ("path,label,split\na.mp4,x,holdout\n", "labels.csv:2 has split 'holdout': it must be train, val or test (or "),
        ("path,label,start\na.mp4,x,1:75\n", "labels.csv:2: '1:75' is no time: minutes after hours, and seconds after"),
        ("path\tlabel\tstart\na.mp4\tx\t12,5\n", "'12,5' is no time: decimals follow a point, not a comma"),
        (
            '{"path": {"0": "a.mp4"}, "label": {"0": "x"}}',
            "labels.csv is a table column by column, as pandas writes JSON by default: write it row by row",
        ),
        (
            "path,label,start\na.mp4,x,soon\n",
            "labels.csv:2: 'soon' is no time: write seconds (12.5), mm:ss or hh:mm:ss",
        ),
        ("path,label,start,end\na.mp4,x,1,1e300\n", "1e300 is no time: it must be a number of seconds below"),
        ("path,label,start_frame\na.mp4,x,1.5\n", "labels.csv:2: '1.5' is no frame number, which is a whole number"),
        (
            "path,label,start,end_frame\na.mp4,x,1,2\n",
            "labels.csv gives its segments both in seconds (start) and in frames (end_frame): remove one of the two",
        ),
        (
            "path,label\na.mp4,x,y\n",
            "labels.csv:2 has 3 values for 2 columns: put quotes around a value that holds ','",
        ),
        ('path,label\na.mp4,"x\nb.mp4,y\n', "labels.csv:2 cannot be read (unexpected end of data)"),
        (
            "path,label,start_timestamp,stop_timestamp\na.mp4,x,1,2\n",
            "labels.csv has the columns start_timestamp, stop_timestamp, which may bound a segment: rename",
        ),
        (
            "path,label,First Frame,last_frame\na.mp4,x,1,2\n",
            "labels.csv has the columns First Frame, last_frame, which may bound a segment: rename",
        ),
        ("path,label,from,to\na.mp4,x,1,2\n", "labels.csv has the columns from, to, which may bound a segment"),
        (
            '[{"path": "a.mp4", "label": "x", "segment": [1, 2]}]',
            "labels.csv has the column segment, which may bound a segment",
        ),
        ("path,label,start,out\na.mp4,x,1,2\n", "labels.csv has the column out, which may bound a segment"),
        ("path,label,start,duration\na.mp4,x,1,2\n", "labels.csv has the column duration, which may bound a segment"),
        ("", "labels.csv is empty"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(folder: Path, text: str, message: str) -> None:
    assert message in refusal(folder, text)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        (
            "labels.xlsx",
            b"PK\3\4rest",
            "labels.xlsx is an Excel workbook or a ZIP archive: save the sheet as CSV UTF-8",
        ),
        ("labels.csv.gz", b"\x1f\x8b\x08rest", "labels.csv.gz is compressed by gzip: unpack it"),
        ("labels.csv", PLAIN.encode("utf-16-le"), "labels.csv is no text: labels come as CSV"),
        ("labels.csv", b"path,label\na.mp4,caf\xe9\n", "labels.csv:2 is not UTF-8 (byte 20): save the file as UTF-8"),
        ("labels.jsonl", b'{"path": "a"}\n{"path": \n', "labels.jsonl:2 is not valid JSON"),
        ("labels.jsonl", b'{"path": "a"}\n[1]\n', "labels.jsonl:2 is no object: each line must be one"),
        ("labels.json", b'[{"path": "a", "label": ["x", "y"]}]', "[0] has 2 values for label: a clip has one class"),
        ("labels.json", b'[{"path": "a", "label": {"id": 1}}]', "labels.json: [0] has no text for label, but dict"),
        ("labels.json", b"[1, 2]", "labels.json is no table: as JSON it must be a list of objects"),
    ],
)
def test_files_that_are_no_tables_are_refused(folder: Path, name: str, data: bytes, message: str) -> None:
    assert message in refusal(folder, data, name)


def test_a_file_that_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"labels.csv cannot be read: No such file"):
        read(folder / "labels.csv")
    with pytest.raises(UsageError, match=r"cannot be read: Is a directory"):
        read(folder)


def test_tables_are_read_from_an_address(folder: Path) -> None:
    write(folder, PLAIN)
    location = RemotePath(f"file://{folder}/labels.csv")
    assert pairs(read_labels(location, "auto", classes=None, frame_rate=None)) == ROWS


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("12.3", "12.3"),
        (" 7 ", "7"),
        (".5", "0.5"),
        ("-1.5", "-1.5"),
        ("1e-05", "0.00001"),
        ("0:00", "0"),
        ("90:00", "5400"),
        ("8:3.2", "483.2"),
        ("01:03.14", "63.14"),
        ("1:59:5.8", "7145.8"),
        ("00:00:01,250", "1.25"),
        (12.3, "12.3"),
        (0.1 + 0.2, "0.30000000000000004"),
        (7, "7"),
        (Decimal("12.30"), "12.3"),
        (np.float64(0.1), "0.1"),
        (datetime.timedelta(minutes=1, milliseconds=1), "60.001"),
    ],
)
def test_times_are_exact(value: object, expected: str) -> None:
    assert to_seconds(value) == Fraction(expected)


@pytest.mark.parametrize(
    "value", ["", "1:2:3:4", "1:60", "1:60:00", "12,5", "1e9999", "inf", "nan", "1/3", "1_000", True, [1], "12s", 1e12]
)
def test_what_is_no_time_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="is no time"):
        to_seconds(value)


def test_bounds_may_be_missing() -> None:
    assert seconds_segment(None, float("nan")) is None
    assert seconds_segment("", "4") == seconds("0", "4")
    assert frames_segment("3", None, Fraction(25)) == seconds("3/25")
    assert to_frame("-2") == -2
    for value in ("1.5", "x", True, None, 2.5):
        with pytest.raises(ValueError, match="is no frame number"):
            to_frame(value)


@pytest.mark.parametrize(
    "segment",
    [
        seconds("0", "4"),
        seconds("12.5"),
        seconds("37/3", "40/3"),
        seconds("1234567000000000/23976023976"),
        Segment(Fraction(3), Fraction(9), "frames"),
    ],
)
def test_a_path_with_its_segment_is_taken_apart(segment: Segment) -> None:
    assert split_fragment(f"a/x#1.mp4{segment.fragment}") == ("a/x#1.mp4", segment)
    assert split_fragment("a/x#1.mp4") == ("a/x#1.mp4", None)
    assert split_fragment("a/x.mp4#t=1/0") == ("a/x.mp4#t=1/0", None)


def test_the_page_about_labels_names_every_column_and_format(folder: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "labels.md").read_text(encoding="utf-8")
    for name in [*FORMATS, *(alias for aliases in COLUMNS.values() for alias in aliases)]:
        assert f"`{name}`" in page, f"docs/labels.md does not name {name}"
    example = page[page.index("path,label,split") :].partition("```")[0]
    rows = read_text(folder, example).rows
    assert [(row.label, row.split, row.group, row.segment) for row in rows] == [
        ("walking", "train", "yard", seconds("12.5", "17")),
        ("running", "train", "yard", seconds("63", "66.2")),
        ("falling", "val", "gate", None),
    ]


def test_large_tables_are_read_in_seconds(folder: Path) -> None:
    lines = [
        f"c{number % 400}/v{number // 5}.mp4,class {number % 400},{number}.25,{number + 4}.5" for number in range(10**5)
    ]
    labels = read_text(folder, "\n".join(["path,label,start,end", *lines]))
    assert len(labels.rows) == 10**5
    assert labels.rows[-1].segment == seconds("99999.25", "100003.5")

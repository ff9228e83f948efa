"""Image-level labels as people have them: a CSV or a JSON file, or a folder of photos for each class.

    file,label              file,fox,owl          {"1.jpg": ["fox", "owl"]}          fox/1.jpg  owl/2.jpg
    1.jpg,fox;owl           1.jpg,1,1             {"fox": ["1.jpg"]}
"""
import codecs
import csv
import io
import re
import shlex
from collections import Counter
from pathlib import PurePosixPath

from data.prepare.json_labels import from_json
from data.prepare.photos import READ
from data.prepare.words import (
    COUNTING,
    FILE,
    LABEL,
    NO,
    SPLIT,
    YES,
    Labels,
    check_class,
    check_words,
    key,
    split_names,
    split_of,
)
from tools.files import require_file
from tools.words import counted

NO_LABEL = "leave the cell empty"               # of a photo without a class

def read_labels(path, is_photo, file_column=None, label_columns=()):
    """Read a label file. is_photo(name) tells whether a name is one of the photos."""
    suffix = path.suffix.lower()
    if suffix in (".xlsx", ".xls", ".ods", ".numbers"):
        raise ValueError(f"{path} is a spreadsheet: save it as CSV (UTF-8)")
    if suffix in (".npy", ".npz", ".pkl", ".pickle", ".mat", ".xml"):
        raise ValueError(f"{path} is no CSV or JSON file. VOC's cls_labels.npy and Annotations are read by: python -m "
                         "data.prepare voc --help; otherwise write a CSV: file,label")
    text = read_text(path)
    if suffix == ".json" or (suffix not in (".csv", ".tsv") and text.lstrip()[:1] in ("{", "[")):
        return from_json(text, path, is_photo)
    return _from_csv(text, path, is_photo, file_column, list(label_columns))


def read_text(path):
    """Read UTF-8 or UTF-16 text, with or without a byte order mark."""
    require_file(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise type(error)(f"{path} cannot be read ({error.strerror}): name an existing file") from None
    encoding = "utf-8-sig"
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif b"\0" in data[:2000]:
        encoding = "utf-16-le" if data[:2000:2].count(0) < data[1:2000:2].count(0) else "utf-16-be"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is neither UTF-8 nor UTF-16 text (byte {error.start}): save it as UTF-8 (in a "
                         "spreadsheet: \"CSV UTF-8\")") from None
    if "\0" in text:
        raise ValueError(f"{path} is not text: write a CSV: file,label")
    return text


# ---- CSV ----

def _from_csv(text, path, is_photo, file_column, label_columns):
    rows = _rows(text, path, is_photo)
    if not rows:
        raise ValueError(f"{path} is empty: write a line for each photo, as 1.jpg,fox")
    (first, header), *body = rows
    files = [i for i, cell in enumerate(header) if _is_file(cell)]
    headless = (is_photo(header[0]) or bool(files)) and not (file_column or label_columns)
    if headless:
        body, header = rows, _made_header(header, files[0] if files else 0, path)
    if twice := [name for name, count in Counter(h.casefold() for h in header if h).items() if count > 1]:
        raise ValueError(f"{path}, line {first}: the column {twice[0]!r} is there twice: remove or rename one")
    if not body:
        raise ValueError(f"{path} has a header and no row: write a line for each photo, as 1.jpg,fox")
    column = _file_column(header, body, path, is_photo, file_column)
    split = _split_column(header, body, path, column, label_columns)
    columns, one_hot = _label_columns(header, body, path, column, split, label_columns)
    found = Labels({}, [], notes=["the first line is no header: its first column is taken for the file, the others "
                                  "for labels"] if headless else [])
    if not headless and file_column is None and key(header[column]) not in FILE:
        found.notes.append(f"the first line is taken for the header: {', '.join(header)}")
    if one_hot:
        found.classes = [header[i] for i in columns]
        for name in found.classes:
            check_class(name, f"{path}, line {first}", "write 0 in all columns and remove this one")
    found.notes += [_not_read(header, i, columns, one_hot) for i in range(len(header))
                    if i not in (column, split, *columns) and header[i]]
    joined = set()
    for number, row in body:
        name, place = _cell(row, column), f"{path}, line {number}"
        if not name:
            raise ValueError(f"{place}: no file name in the column {header[column]!r}: fill it in or remove the line")
        names = _one_hot(row, header, columns, place) if one_hot else _listed(row, header, columns, place)
        for label in () if one_hot else names:
            check_class(label, place, NO_LABEL)
        if name in found.names:
            if one_hot and found.names[name] != names:
                raise ValueError(f"{place}: {name} is there twice, with other labels: keep one line")
            joined.add(name)
            names = list(dict.fromkeys(found.names[name] + names))
        found.names[name] = names
        if split is not None:
            given = split_of(_cell(row, split), place, header[split])
            if found.splits.setdefault(name, given) != given:
                raise ValueError(f"{place}: {name} is in two splits: keep one")
    if joined:
        found.notes.append(f"{counted(len(joined), 'photo', 'has')} several lines: the labels are joined")
    if not one_hot:
        found.classes = sorted({label for names in found.names.values() for label in names})
        check_words(found, path)
    return found


def _rows(text, path, is_photo):
    """Split CSV text into (line number, cells without blanks around them); the first separator in it is taken."""
    text = text.removeprefix("\ufeff")
    lines = text.splitlines()
    start = next((line for line in lines if line.strip()), "")
    if start.lower().startswith("sep=") and len(start) == 5:            # a spreadsheet's own line
        text, separator = "\n".join(lines[lines.index(start) + 1:]), start[4]
    else:
        unquoted = re.sub(r'"[^"]*"', "", start)
        separator = min((c for c in ",;\t" if c in unquoted), key=unquoted.index, default=None)
    words = start.split()
    if separator is None and len(words) > 1 and (is_photo(words[0]) or _is_file(words[0])):
        return [(n, line.split()) for n, line in enumerate(lines, start=1) if line.strip()]
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator or ",", skipinitialspace=True)
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except csv.Error as error:
        raise ValueError(f"{path} is not a CSV ({error}): save it as CSV, UTF-8") from None
    return [(number, row) for number, row in rows if any(row)]


def _cell(row, column):
    return row[column] if column < len(row) else ""


def _is_file(cell):
    """Tell whether a cell looks like the name of a photo, be it there or not."""
    return PurePosixPath(cell).suffix.lower() in READ


def _made_header(row, column, path):
    """Name the columns of a file without a header. row: its first line; column: where the file name stands."""
    if column and len(row) > 2:
        raise ValueError(f"{path} has no header, and of its {len(row)} columns the file name is number {column + 1}: "
                         "write a first line that names them, as label,file")
    return ["label", "file"] if column else ["file", "label"][:len(row)]


def _split_column(header, body, path, column, label_columns):
    """Find the column of the splits; None if there is none. Folds that have numbers are no splits."""
    for i, name in sorted(enumerate(header), key=lambda column: key(column[1]) != "split"):
        if key(name) not in SPLIT or i == column or name in label_columns:
            continue
        if key(name) == "fold" and all(re.fullmatch(r"[\d.]*", _cell(row, i)) for _, row in body):
            continue
        for number, row in body:
            split_of(_cell(row, i), f"{path}, line {number}", name)
        return i
    return None


def _not_read(header, i, columns, one_hot):
    note = f"the column {header[i]!r} is not read"
    if not one_hot:
        return note
    return f"{note}. If it is a class: --label_columns {shlex.join(header[k] for k in sorted([*columns, i]))}"


def _file_column(header, body, path, is_photo, wanted):
    if wanted is not None:
        if wanted not in header:
            raise ValueError(f"{path} has no column {wanted!r} (--file_column); its columns: {', '.join(header)}")
        candidates = [header.index(wanted)]
    else:
        candidates = sorted(range(len(header)), key=lambda i: key(header[i]) not in FILE)
    for column in candidates:
        if any(is_photo(_cell(row, column)) for _, row in body[:200] + body[200::50]):
            return column
    names = ", ".join(repr(_cell(row, candidates[0])) for _, row in body[:3])
    raise ValueError(f"{path}: no column names a photo of --images (columns: {', '.join(header)}; the first of "
                     f"{header[candidates[0]]!r}: {names}). Name the folder of the photos with --images, the column "
                     "with --file_column")


def _label_columns(header, body, path, column, split, wanted):
    """Return (columns, whether each is a class): one class a column with 0 or 1, or columns of class names."""
    others = [i for i in range(len(header)) if i not in (column, split)]
    if wanted:
        if missing := [name for name in wanted if name not in header]:
            raise ValueError(f"{path} has no column {missing[0]!r} (--label_columns); its columns: {', '.join(header)}")
        columns = [header.index(name) for name in wanted]
        return columns, len(columns) > 1 and _binary(body, columns)
    if named := [i for i in others if key(re.sub(r"\d+$", "", header[i])) in LABEL]:
        return named, False
    if not others:
        raise ValueError(f"{path} has one column: write the labels beside the file names, as 1.jpg,fox;owl")
    others = [i for i in others if header[i] or any(_cell(row, i) for _, row in body)]
    if nameless := [i for i in others if not header[i]]:
        raise ValueError(f"{path}: column {nameless[0] + 1} has no name in the first line: write one there")
    others = [i for i in others if key(header[i]) not in FILE | SPLIT | COUNTING] or others
    if _binary(body, others):
        return others, True
    if len(others) == 1:
        return others, False
    wrong = [header[i] for i in others if not _binary(body, [i])]
    number, value = next((n, _cell(row, i)) for i in others for n, row in body if header[i] == wrong[0]
                         and _cell(row, i).casefold() not in YES | NO)
    raise ValueError(f"{path}, line {number}: {value[:60]!r} in the column {wrong[0]!r} is neither 0 nor 1, and no "
                     f"column is named label. Name what holds labels: --label_columns NAME, or one column a class: "
                     f"--label_columns A B C (columns: {', '.join(header[:30])})")


def _binary(body, columns):
    return all(_cell(row, i).casefold() in YES | NO for _, row in body for i in columns)


def _one_hot(row, header, columns, place):
    if len(row) > len(header):
        raise ValueError(f"{place} has {len(row)} cells and the header {len(header)}: fix one of them")
    return [header[i] for i in columns if _cell(row, i).casefold() in YES]


def _listed(row, header, columns, place):
    cells = [_cell(row, i) for i in columns]
    if any(row[len(header):]):                  # 1.jpg,fox,owl below file,label: the commas were not quoted
        if max(columns, default=0) != len(header) - 1:
            raise ValueError(f"{place} has {len(row)} cells and the header {len(header)}: fix one of them")
        cells += row[len(header):]
    return list(dict.fromkeys(name for cell in cells for name in split_names(cell)))

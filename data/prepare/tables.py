"""Image-level labels as people have them: a CSV or a JSON file, or a folder of photos for each class.

    file,label              file,fox,owl          {"1.jpg": ["fox", "owl"]}          fox/1.jpg  owl/2.jpg
    1.jpg,fox;owl           1.jpg,1,1             {"fox": ["1.jpg"]}
"""
import codecs
import csv
import io
import json
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field

FILE = {"file", "filename", "filepath", "files", "image", "imagename", "imageid", "imagepath", "img", "imgname",
        "imgid", "imgpath", "photo", "picture", "path", "id", "name", "파일", "파일명", "이미지"}
LABEL = {"label", "labels", "class", "classes", "classname", "classnames", "tag", "tags", "category", "categories",
         "object", "objects", "라벨", "클래스"}
SPLIT = {"split", "set", "subset", "fold", "partition"}
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
YES, NO = {"1", "1.0", "true", "yes", "x", "t", "y"}, {"0", "0.0", "false", "no", "", "f", "n"}


@dataclass
class Labels:
    """names: {photo as it is written: [class name, ...]}; classes in order; splits {photo: train|val|test}."""
    names: dict
    classes: list
    splits: dict = field(default_factory=dict)
    notes: list = field(default_factory=list)


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
        return _from_json(text, path, is_photo)
    return _from_csv(text, path, is_photo, file_column, list(label_columns))


def read_text(path):
    """Read UTF-8 or UTF-16 text, with or without a byte order mark."""
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
    headless = is_photo(header[0]) and not (file_column or label_columns)
    if headless:
        body, header = rows, ["file", *(["label"] if len(header) > 1 else [])]
    if twice := [name for name, count in Counter(h.casefold() for h in header if h).items() if count > 1]:
        raise ValueError(f"{path}, line {first}: the column {twice[0]!r} is there twice: remove or rename one")
    if not body:
        raise ValueError(f"{path} has a header and no row: write a line for each photo, as 1.jpg,fox")
    column = _file_column(header, body, path, is_photo, file_column)
    split = next((i for i, name in enumerate(header) if _key(name) in SPLIT and i != column
                  and name not in label_columns and all(_cell(row, i).casefold() in SPLITS for _, row in body)), None)
    columns, one_hot = _label_columns(header, body, path, column, split, label_columns)
    found = Labels({}, [], notes=["the first line is no header: its first column is taken for the file, the others "
                                  "for labels"] if headless else [])
    if one_hot:
        found.classes = [header[i] for i in columns]
    else:
        found.notes += [f"the column {header[i]!r} is not read" for i in range(len(header))
                        if i not in (column, split, *columns) and header[i]]
    joined = set()
    for number, row in body:
        name, place = _cell(row, column), f"{path}, line {number}"
        if not name:
            raise ValueError(f"{place}: no file name in the column {header[column]!r}: fill it in or remove the line")
        names = _one_hot(row, header, columns, place) if one_hot else _listed(row, header, columns, place)
        if name in found.names:
            if one_hot and found.names[name] != names:
                raise ValueError(f"{place}: {name} is there twice, with other labels: keep one line")
            joined.add(name)
            names = list(dict.fromkeys(found.names[name] + names))
        found.names[name] = names
        if split is not None:
            given = SPLITS[_cell(row, split).casefold()]
            if found.splits.setdefault(name, given) != given:
                raise ValueError(f"{place}: {name} is in two splits: keep one")
    if joined:
        found.notes.append(f"{len(joined)} photos have several lines: their labels are joined")
    if not one_hot:
        found.classes = sorted({label for names in found.names.values() for label in names})
        _check_words(found, path)
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
    if separator is None and len(start.split()) > 1 and is_photo(start.split()[0]):
        return [(n, line.split()) for n, line in enumerate(lines, start=1) if line.strip()]
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator or ",", skipinitialspace=True)
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except csv.Error as error:
        raise ValueError(f"{path} is not a CSV ({error}): save it as CSV, UTF-8") from None
    return [(number, row) for number, row in rows if any(row)]


def _cell(row, column):
    return row[column] if column < len(row) else ""


def _key(name):
    return re.sub(r"[\s_\-.]", "", name).casefold()


def _file_column(header, body, path, is_photo, wanted):
    if wanted is not None:
        if wanted not in header:
            raise ValueError(f"{path} has no column {wanted!r} (--file_column); its columns: {', '.join(header)}")
        candidates = [header.index(wanted)]
    else:
        candidates = sorted(range(len(header)), key=lambda i: _key(header[i]) not in FILE)
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
    if named := [i for i in others if _key(re.sub(r"\d+$", "", header[i])) in LABEL]:
        return named, False
    if not others:
        raise ValueError(f"{path} has one column: write the labels beside the file names, as 1.jpg,fox;owl")
    others = [i for i in others if header[i] or any(_cell(row, i) for _, row in body)]
    if nameless := [i for i in others if not header[i]]:
        raise ValueError(f"{path}: column {nameless[0] + 1} has no name in the first line: write one there")
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


def split_names(cell):
    """Split "fox; owl", "fox|owl", "fox,owl" or "['fox', 'owl']" into names."""
    cell = cell.strip()
    if cell.startswith("[") and cell.endswith("]"):
        cell = cell[1:-1]
    return [name for part in re.split(r"[;|,]", cell) if (name := part.strip().strip("'\"").strip())]


def _check_words(labels, path):
    """Refuse what reads in two ways: numbers, and "cat dog" where cat and dog are classes too."""
    classes = set(labels.classes)
    if classes and all(re.fullmatch(r"-?\d+(\.0)?", name) for name in classes):
        raise ValueError(f"{path}: the labels are numbers ({', '.join(labels.classes[:5])}), and which class a number "
                         "means is not said: write the names of the classes, or one column a class with 0 and 1")
    for name in labels.classes:
        if " " in name and classes.issuperset(name.split()):
            raise ValueError(f"{path}: {name!r} is one label, and so are {' and '.join(map(repr, name.split()))}: "
                             "separate several labels of a photo by ; and give them one spelling")


# ---- JSON ----

def _from_json(text, path, is_photo):
    try:
        table = json.loads(text, object_pairs_hook=_once_each)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}): fix it there") from None
    if isinstance(table, dict) and {"images", "annotations"} <= table.keys():
        raise ValueError(f"{path} is COCO's instances file: python -m data.prepare coco --root OUT --images DIR "
                         f"--annotations {path}")
    if isinstance(table, list):
        table = _from_entries(table, path)
    form = f"{path} is not of the form {{\"1.jpg\": [\"fox\", \"owl\"]}}"
    if not isinstance(table, dict) or not table:
        raise ValueError(f"{form}: write it so")
    names = {}
    for key, value in table.items():
        if isinstance(value, dict):
            if odd := [v for v in value.values() if str(v).casefold() not in YES | NO]:
                raise ValueError(f"{path}: {key[:80]!r} has a class with {str(odd[0])[:60]!r}, neither 0 nor 1")
            value = [name for name, v in value.items() if str(v).casefold() in YES]
        if isinstance(value, str):
            value = split_names(value)
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise ValueError(f"{path}: the label of {key[:80]!r} is no list of class names. {form}: fix it there")
        names[key] = list(dict.fromkeys(name.strip() for name in value if name.strip()))
    notes = []
    if not any(map(is_photo, names)) and any(is_photo(name) for value in names.values() for name in value[:20]):
        turned = defaultdict(list)
        for label, photos in names.items():
            for photo in photos:
                turned[photo].append(label)
        notes, classes, names = [f"{path} lists the photos of each class"], list(names), dict(turned)
    else:
        classes = sorted({label for value in names.values() for label in value})
    labels = Labels(names, classes, notes=notes)
    _check_words(labels, path)
    return labels


def _from_entries(entries, path):
    """Read [{"file": "1.jpg", "labels": ["fox"]}, ...]."""
    table = {}
    for number, entry in enumerate(entries, start=1):
        keys = {_key(key): key for key in entry} if isinstance(entry, dict) else {}
        files, labels = ([keys[k] for k in keys if k in kind] for kind in (FILE, LABEL))
        if len(files) != 1 or len(labels) != 1 or not isinstance(entry[files[0]], str):
            raise ValueError(f"{path}, entry {number} is not of the form {{\"file\": \"1.jpg\", \"labels\": "
                             "[\"fox\"]}")
        if entry[files[0]] in table:
            raise ValueError(f"{path}: {entry[files[0]][:80]!r} is there twice: keep one entry")
        table[entry[files[0]]] = entry[labels[0]]
    return table


def _once_each(pairs):
    if twice := [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]:
        raise ValueError(f"{twice[0][:100]!r} is there twice")
    return dict(pairs)

"""Archives of datasets, tar or zip: their files one by one, unpacked so that an interrupted run resumes; downloads."""
import io
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from data.prepare.writing import discard, write_stream

LISTS = "ImageSets"


def files_of(path):
    """Yield (PurePosixPath, size, open binary file) of each regular file in a tar or zip; ValueError if damaged."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for member in archive.infolist():
                    if not member.is_dir():
                        with archive.open(member) as stream:
                            yield PurePosixPath(member.filename), member.file_size, stream
        else:
            with tarfile.open(path, "r:*") as archive:
                for member in archive:
                    if member.isfile():
                        yield PurePosixPath(member.name), member.size, archive.extractfile(member)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ValueError(f"{path} is cut off, damaged, or neither tar nor zip ({error}): fetch it again. What was "
                         "unpacked is complete; the same command resumes") from None


def unpack(path, root, folders):
    """Unpack the files below `folders` of an archive into `root`. Existing files of the same size are skipped.

    The lists are written last: without them no stage takes an incomplete folder for a dataset.
    """
    lists = []
    for name, size, stream in tqdm(files_of(path), f"unpacking {Path(path).name}", unit="file", mininterval=1):
        start = next((i for i, part in enumerate(name.parts) if part in folders), None)
        if start is None or start == len(name.parts) - 1:
            continue
        inside = name.parts[start:]
        if ".." in name.parts or name.is_absolute() or "\\" in str(name):
            raise ValueError(f"{path} holds {str(name)[:200]!r}, which would leave the folder: fetch another archive")
        target = root.joinpath(*inside)
        if inside[0] == LISTS:
            lists.append((target, stream.read()))
        elif not same_size(target, size, path):
            write_stream(target, stream)
    for target, content in lists:
        if not same_size(target, len(content), path):
            write_stream(target, io.BytesIO(content))


def same_size(target, size, path):
    """Tell whether `target` is there; ValueError if it has another size than in the archive at `path`."""
    if not target.exists():
        return False
    if target.stat().st_size != size:
        raise ValueError(f"{target} is not the file of that name in {path}: unpack into another --root")
    return True


def download(url, md5, name, folder):
    """Download an archive into `folder` unless it is there already; returns its path. A failure leaves nothing."""
    from torchvision.datasets.utils import download_url
    path = Path(folder, name)
    try:
        download_url(url, folder, name, md5)
    except BaseException as error:      # torchvision's, urllib's and http's have no common kind
        discard(path)
        if not isinstance(error, Exception):
            raise
        raise OSError(f"{url} could not be downloaded ({error}). Run the same command again, or fetch the file another "
                      "way and name it with --archive (VOC) or --sbd (SBD). Nothing incomplete was kept") from None
    return path

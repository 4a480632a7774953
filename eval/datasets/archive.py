"""Unpacking the archives of datasets, with limits on what a few bytes can ask for."""

import lzma
import shutil
import zipfile
import zlib
from pathlib import Path

from whisperkit_tools import limits
from whisperkit_tools.errors import DatasetError
from whisperkit_tools.paths import inside

_DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError, ValueError)


def unpack_zip(archive: Path, folder: Path) -> None:
    """Unpack an archive.

    Args:
        archive: The file.
        folder: The folder to fill.

    Raises:
        DatasetError: It is damaged, encrypted or packed in an unknown way, unpacks to far more than audio can, or names
            files outside of the folder.
        OSError: The folder cannot be written to.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if not member.is_dir()]
            _check(archive, members)
            for member in members:
                _extract(opened, member, folder)
    except _DAMAGE as error:
        raise DatasetError(f"{archive} cannot be unpacked: {error}") from error


def _check(archive: Path, members: list[zipfile.ZipInfo]) -> None:
    # The module never unpacks more of a member than its header declares.
    declared, packed = sum(member.file_size for member in members), archive.stat().st_size
    allowed = max(limits.ARCHIVE_FREE_BYTES, limits.ARCHIVE_RATIO * packed)
    if declared > allowed:
        raise DatasetError(f"{archive} has {packed} bytes and unpacks to {declared}; the maximum is {allowed}")
    if len(members) > limits.ARCHIVE_FILES:
        raise DatasetError(f"{archive} holds {len(members)} files; the maximum is {limits.ARCHIVE_FILES}")
    locked = next((member for member in members if member.flag_bits & 1), None)
    if locked is not None:
        raise DatasetError(f"{archive} is encrypted ({locked.filename}); unpack it into a folder and pass that")


def _extract(opened: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path) -> None:
    target = inside(folder, member.filename.removeprefix("./"), DatasetError, links=False)
    target.parent.mkdir(parents=True, exist_ok=True)
    with opened.open(member) as packed, target.open("wb") as file:
        shutil.copyfileobj(packed, file, 1 << 20)

"""Audio files below a folder."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from mt3_common.formats import sonify

# what a folder is searched for; a file that is named is tried whatever its name ends in
AUDIO_SUFFIXES = {
    *(".wav", ".aif", ".aiff", ".aifc", ".au", ".caf", ".rf64", ".w64", ".flac"),
    *(".mp3", ".ogg", ".oga", ".opus", ".m4a", ".mp4", ".aac", ".wma"),
}
# other endings of names of recordings
MEDIA_SUFFIXES = AUDIO_SUFFIXES | {
    *(".3g2", ".3gp", ".aax", ".ac3", ".amr", ".ape", ".avi", ".bwf", ".dff", ".dsf", ".flv", ".m4b", ".m4v", ".mka"),
    *(".mkv", ".mov", ".mp2", ".mpeg", ".mpg", ".snd", ".tta", ".voc", ".wave", ".weba", ".webm", ".wmv", ".wv"),
}


def name_of_recording(file_name: str) -> str:
    """Return the name of a file without its ending, if it has one of MEDIA_SUFFIXES: "Etude No.1" stays whole."""
    stem, ending = os.path.splitext(file_name)
    return stem if ending.lower() in MEDIA_SUFFIXES else file_name


def folders(
    folder: str | os.PathLike, unread: Callable[[OSError], None] | None = None
) -> Iterator[tuple[str, list[str]]]:
    """Yield a folder and those below it, each with the names of its files; hidden ones are skipped.

    Links to folders are followed, but no folder comes twice. `unread` is called of each that cannot be searched.
    """
    seen = set()
    for place, below, files in os.walk(folder, onerror=unread, followlinks=True):
        real = os.path.realpath(place)
        below[:] = [] if real in seen else sorted(name for name in below if not name.startswith("."))
        if real not in seen:
            yield place, [name for name in files if not name.startswith(".")]
        seen.add(real)


def recordings(folder: Path, unread: Callable[[OSError], None] | None = None) -> list[Path]:
    """List the audio files below a folder, sorted; hidden files and folders are skipped, `unread` as in folders."""
    paths = (Path(place, name) for place, names in folders(folder, unread) for name in names)
    return sorted(
        path
        for path in paths
        if path.suffix.lower() in AUDIO_SUFFIXES and path.is_file() and not sonify.is_played(path)
    )

"""Opening a file with FFmpeg, so that it can only be what it is: a recording, never a list of other files or addresses.

FFmpeg also reads playlists, scripts and pipes. A file that is one of these would make it open what the file names.
"""

import io
from pathlib import Path
from typing import Any

# Containers and streams of sound. Names are FFmpeg's, see `ffmpeg -demuxers`.
_FORMATS = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dts,dtshd,eac3,flac,flv,gsm,loas,m4a,matroska,mlp,mov,mp2,mp3,mp4,"
    "mpc,mpc8,mpeg,mpegts,nut,oga,ogg,oma,rm,tak,truehd,tta,voc,w64,wav,webm,wsaud,wv,xwma"
)


def open_container(source: Path | io.BytesIO) -> Any:
    """Open a file, or its bytes, with FFmpeg.

    Raises:
        av.FFmpegError: It is not a recording that FFmpeg reads.
        OSError: It cannot be read.
    """
    import av

    # The prefix keeps a name such as `concat:a|b` from being an instruction.
    place = f"file:{source}" if isinstance(source, Path) else source
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
    return av.open(place, mode="r", container_options=options, metadata_errors="replace")

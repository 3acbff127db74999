"""How long a video is, by its header: enough to plan with, without reading its packets."""

from dataclasses import dataclass
from fractions import Fraction

import av

from packer.video.container import VideoError, choose_stream, open_container, open_source, reachable
from packer.video.frame_folder import FrameFolder


@dataclass(frozen=True)
class Length:
    """What a header says; 0: it does not say."""

    seconds: Fraction
    num_frames: int


def header_length(path: str) -> Length:
    """Returns how long a video is, from its start as players show it; a folder of pictures has frames alone.

    Raises:
        OSError: Its storage fails.
    """
    try:
        with reachable(path) as source:
            if isinstance(source, FrameFolder):
                return Length(Fraction(0), len(source.files))
            with open_source(source) as file, open_container(file) as container:
                index, _ = choose_stream(container)
                stream = next(stream for stream in container.streams.video if stream.index == index)
                seconds = Fraction(container.duration or 0, av.time_base)
                if stream.duration and stream.time_base:
                    end = ((stream.start_time or 0) + stream.duration) * stream.time_base
                    of_stream = end - Fraction(container.start_time or 0, av.time_base)
                    seconds = min(seconds, of_stream) if seconds else of_stream
                rate = stream.average_rate or Fraction(0)
                return Length(max(Fraction(0), seconds), stream.frames or int(seconds * rate))
    except VideoError:
        return Length(Fraction(0), 0)  # packing rejects it and says why

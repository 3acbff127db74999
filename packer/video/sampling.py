"""The sampling rule: which frames of a video make its clip."""

from packer.video.container import VideoError as VideoError

SAMPLING_RULE = "index_i = (2*i*(N-1) + (T-1)) // (2*(T-1)), i = 0..T-1; T = 1: (N-1) // 2"
"""How T frames are chosen of the N that a full decode gives; kept in the manifest."""


def frame_indices(num_frames_available: int, num_frames: int) -> tuple[int, ...]:
    """Returns which frames a clip holds: equally spaced from the first to the last, in integers so that nothing rounds.

    A 10-frame video gives a clip of 4 the frames (0, 3, 6, 9), a clip of 1 the frame (4,); a 3-frame video gives a clip
    of 5 the frames (0, 1, 1, 2, 2): a short video repeats frames.

    Args:
        num_frames_available: Frames in the video, N.
        num_frames: Frames in the clip, T.

    Raises:
        ValueError: One of the counts is below 1.
    """
    if num_frames_available < 1 or num_frames < 1:
        raise ValueError(
            f"num_frames_available ({num_frames_available}) and num_frames ({num_frames}) must be at least 1"
        )
    last, gaps = num_frames_available - 1, num_frames - 1
    if not gaps:
        return (last // 2,)
    return tuple((2 * i * last + gaps) // (2 * gaps) for i in range(num_frames))

"""The sampling rules: which frames of a video make its clip. Packer, trainer and server share this one copy."""

from bisect import bisect_right
from collections.abc import Sequence

SAMPLING_RULES = {
    "frames": "index_i = (2*i*(N-1) + (T-1)) // (2*(T-1)), i = 0..T-1; T = 1: (N-1) // 2",
    "time": "index_i = last j with t_j <= t_0 + i*(t_(N-1) - t_0)/(T-1), i = 0..T-1; T = 1: t_0 + (t_(N-1) - t_0)/2; "
    "t_j = j if the frames have no times that rise",
}
"""How T frames are chosen from the N that a full decode gives, by `clip.sampling`; stored in the manifest."""


def frame_indices(num_frames_available: int, num_frames: int) -> tuple[int, ...]:
    """Returns the indices of a clip's frames, equally spaced from the first frame to the last.

    Integer arithmetic, so that nothing rounds. Of 10 frames, a clip of 4 holds (0, 3, 6, 9) and a clip of 1 holds
    (4,). A short video repeats frames: of 3 frames, a clip of 5 holds (0, 1, 1, 2, 2).

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


def time_indices(times: Sequence[int], num_frames: int, within: range | None = None) -> tuple[int, ...]:
    """Returns the indices of the frames on screen at equally spaced times, from the first frame's to the last's.

    Integer arithmetic, so that nothing rounds. Of frames at the times (0, 1, 2, 3, 30), a clip of 4 holds (0, 3, 3, 4)
    and a clip of 1 holds (3,). Of frames that have one time, the last one is taken: it stays on screen.

    Args:
        times: When each frame is shown, in any unit; never falling.
        num_frames: Frames in the clip, T.
        within: The frames that count, with step 1; None: all.

    Raises:
        ValueError: There are no times, or `num_frames` is below 1.
    """
    within = range(len(times)) if within is None else within
    if not within or num_frames < 1:
        raise ValueError(f"times (of {len(within)} frames) and num_frames ({num_frames}) must be at least 1")
    first, span = times[within[0]], times[within[-1]] - times[within[0]]
    parts = [(1, 2)] if num_frames == 1 else [(number, num_frames - 1) for number in range(num_frames)]
    start, stop = within.start, within.stop
    return tuple(bisect_right(times, first + part * span // whole, start, stop) - 1 for part, whole in parts)

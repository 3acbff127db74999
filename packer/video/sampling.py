"""The sampling rule: which frames of a video make its clip. Packer, trainer and server share this one copy."""

SAMPLING_RULE = "index_i = (2*i*(N-1) + (T-1)) // (2*(T-1)), i = 0..T-1; T = 1: (N-1) // 2"
"""How T frames are chosen from the N that a full decode gives; stored in the manifest."""


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

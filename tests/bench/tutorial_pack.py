"""The packing of the usual CNN-RNN tutorial, written anew: OpenCV decodes all frames, 16 of them become JPEG files.

Runs in the bench's own environment (.venv-bench): python tutorial_pack.py SOURCE TARGET [SHORT_SIDE_PX]
"""

import sys
from pathlib import Path

import cv2
import numpy as np

NUM_FRAMES = 16


def get_frames(path: Path) -> list[np.ndarray]:
    capture = cv2.VideoCapture(str(path))
    num_frames = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    wanted = set(np.linspace(0, num_frames - 1, NUM_FRAMES).astype(int).tolist())
    frames = []
    for number in range(num_frames):
        success, frame = capture.read()
        if success and number in wanted:
            frames.append(frame)
    capture.release()
    return frames


def shrink(frame: np.ndarray, short_side_px: int) -> np.ndarray:
    height, width = frame.shape[:2]
    scale = short_side_px / min(height, width)
    return cv2.resize(frame, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)


def store(path: Path, folder: Path, short_side_px: int) -> None:
    for number, frame in enumerate(get_frames(path)):
        if short_side_px:
            frame = shrink(frame, short_side_px)
        # Its own quality is OpenCV's default, 95; at the same size the quality is the same too.
        quality = [cv2.IMWRITE_JPEG_QUALITY, 90] if short_side_px else []
        cv2.imwrite(str(folder / f"frame{number}.jpg"), frame, quality)


def main() -> None:
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    short_side_px = int(sys.argv[3]) if len(sys.argv) > 3 else 0
    for path in sorted(source.glob("*/*")):
        folder = target / path.parent.name / path.stem
        folder.mkdir(parents=True)
        store(path, folder, short_side_px)


if __name__ == "__main__":
    main()

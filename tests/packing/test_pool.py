"""A video that hangs, swells or kills its decoder costs itself alone, and no decoder outlives its parent."""

import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import CancelledError
from pathlib import Path

import numpy as np
import psutil
import pytest

from configs.pack import ClipConfig, DecodeLimits
from packer.decoders.pool import DecodePool
from packer.video.clip import read_clip
from packer.video.container import VideoError
from tests.support.bombs import metadata
from tests.support.videos import write_numbered_video, write_video

CLIP = ClipConfig()


@pytest.fixture(scope="module")
def short_video(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_numbered_video(tmp_path_factory.mktemp("pool") / "short.mp4", 10))


@pytest.fixture(scope="module")
def long_video(tmp_path_factory: pytest.TempPathFactory) -> str:
    # MPEG transport streams may be laid end to end.
    path = write_numbered_video(tmp_path_factory.mktemp("pool") / "long.ts", 30, height_px=720, width_px=1280)
    path.write_bytes(path.read_bytes() * 450)
    return str(path)


class Decoders:
    """The processes that the pool of a test has started: this process had no such children before."""

    def __init__(self) -> None:
        self._others = set(psutil.Process().children())

    def __call__(self) -> list[psutil.Process]:
        return [child for child in psutil.Process().children() if child not in self._others]

    def wait_for_one(self) -> psutil.Process:
        deadline = time.monotonic() + 30
        while not (found := self()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return found[0]


@pytest.fixture
def decoders() -> Decoders:
    return Decoders()


def test_pool_gives_what_read_clip_gives(decoders: Decoders, short_video: str) -> None:
    with DecodePool(2, DecodeLimits()) as pool:
        sources = [short_video, Path(short_video).read_bytes()] * 4
        clips = [future.result(60) for future in [pool.submit(source, CLIP) for source in sources]]
        assert clips == [read_clip(short_video, CLIP, DecodeLimits())] * 8
        with pytest.raises(VideoError, match="no known video container") as caught:
            pool.submit(b"no video", CLIP).result(60)
        assert caught.value.reason == "not_a_video"
        for decoder in decoders():
            mapped = {Path(found.path).name for found in decoder.memory_maps()}
            assert not [name for name in mapped if name.startswith(("libtorch", "_raylet"))]
    assert not decoders()


def test_decoders_start_ahead_of_the_videos(decoders: Decoders) -> None:
    with DecodePool(2, DecodeLimits()):
        assert len(decoders()) == 2


def test_a_killed_decoder_is_replaced_at_once(decoders: Decoders, short_video: str, long_video: str) -> None:
    with DecodePool(1, DecodeLimits()) as pool:
        pool.submit(short_video, CLIP).result(60)
        (first,) = decoders()
        doomed = pool.submit(long_video, CLIP)
        while not doomed.running():
            time.sleep(0.01)
        first.kill()
        with pytest.raises(VideoError):
            doomed.result(60)
        second = decoders.wait_for_one()
        assert second.pid != first.pid


def test_a_video_that_takes_too_long_is_given_up(short_video: str, long_video: str) -> None:
    with DecodePool(1, DecodeLimits(timeout_seconds=3)) as pool:
        slow, quick = pool.submit(long_video, ClipConfig(short_side_px=0)), pool.submit(short_video, CLIP)
        with pytest.raises(VideoError, match=r"took longer than 3 s \(limits.timeout_seconds\)") as caught:
            slow.result(60)
        assert caught.value.reason == "timeout"
        assert quick.result(60).num_frames == 10


def test_a_video_that_takes_too_much_memory_is_given_up(tmp_path: Path, short_video: str) -> None:
    picture = np.zeros((8000, 12_000, 3), np.uint8)
    path = write_video(tmp_path / "large.mov", [picture], codec="png", pixel_format="rgb24")
    limits = DecodeLimits(memory_bytes=2**28, max_pixels=2 * 10**8)
    with DecodePool(1, limits) as pool:
        with pytest.raises(VideoError, match="more memory than allowed") as caught:
            pool.submit(str(path), CLIP).result(60)
        assert caught.value.reason == "out_of_memory"
        assert pool.submit(short_video, CLIP).result(60).num_frames == 10


@pytest.mark.parametrize(
    ("end", "reason"),
    [(signal.SIGSEGV, "decoder_crash"), (signal.SIGKILL, "decoder_crash"), (signal.SIGPROF, "timeout")],
)
def test_a_video_that_kills_its_decoder_costs_itself_alone(
    decoders: Decoders, short_video: str, long_video: str, end: signal.Signals, reason: str
) -> None:
    with DecodePool(1, DecodeLimits()) as pool:
        pool.submit(short_video, CLIP).result(60)
        doomed, spared = pool.submit(long_video, CLIP), pool.submit(short_video, CLIP)
        while not doomed.running():
            time.sleep(0.01)
        time.sleep(0.3)
        decoders.wait_for_one().send_signal(end)
        with pytest.raises(VideoError) as caught:
            doomed.result(60)
        assert caught.value.reason == reason
        assert spared.result(60).num_frames == 10


def test_a_header_that_takes_too_long_is_given_up(short_video: str) -> None:
    with DecodePool(1, DecodeLimits(timeout_seconds=10)) as pool:
        endless, quick = pool.submit(metadata(100_000), CLIP), pool.submit(short_video, CLIP)
        with pytest.raises(VideoError, match="header or packets took too long") as caught:
            endless.result(60)
        assert caught.value.reason == "timeout"
        assert quick.result(60).num_frames == 10


def test_the_limit_of_memory_ends_with_its_video(decoders: Decoders, short_video: str) -> None:
    with DecodePool(1, DecodeLimits(timeout_seconds=10)) as pool:
        pool.submit(short_video, CLIP).result(60)
        process = decoders.wait_for_one()
        assert resource.prlimit(process.pid, resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY


def test_a_decoder_that_died_idle_costs_no_video(decoders: Decoders, short_video: str) -> None:
    with DecodePool(1, DecodeLimits()) as pool:
        pool.submit(short_video, CLIP).result(60)
        decoder = decoders.wait_for_one()
        decoder.kill()
        decoder.wait(30)
        assert pool.submit(short_video, CLIP).result(60).num_frames == 10


def test_closing_ends_work_at_once(decoders: Decoders, long_video: str) -> None:
    pool = DecodePool(1, DecodeLimits())
    running, waiting = pool.submit(long_video, CLIP), pool.submit(long_video, CLIP)
    while not running.running():  # its decoder has long been there then
        time.sleep(0.01)
    pool.close()
    with pytest.raises((VideoError, RuntimeError)):
        running.result(10)
    with pytest.raises(CancelledError):
        waiting.result(10)
    assert not decoders()
    with pytest.raises(RuntimeError, match="the decode pool is closed"):
        pool.submit(long_video, CLIP)


def test_decoders_die_with_their_parent(long_video: str) -> None:
    code = (
        "import sys, time; from configs.pack import *; from packer.decoders.pool import DecodePool\n"
        "pool = DecodePool(2, DecodeLimits())\n"
        "for _ in range(9): pool.submit(sys.argv[1], ClipConfig())\n"
        "print('up', flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, long_video], stdout=subprocess.PIPE)
    with parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        process = psutil.Process(parent.pid)
        deadline = time.monotonic() + 30
        while len(children := process.children()) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        parent.kill()
    _, alive = psutil.wait_procs(children, timeout=15)
    assert not alive

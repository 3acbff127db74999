"""The whole pipeline in one go: `make demo`. Makes videos, packs, trains by `ray job submit`, serves, asks, cleans up.

Each step is printed as the command that a user types, then run. Everything lies in .demo (CLIPSTREAM_HOME), which is
emptied first. All its processes carry a mark in their environment; any that is left at the end is an error.
"""

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import psutil

from packer.shards.manifest import read_samples

ROOT = Path(__file__).parent.parent
HOME = ROOT / ".demo"
MARK = "CLIPSTREAM_DEMO_MARK"
MODEL = "clipstream-demo"
VIDEOS_PER_CLASS = 70
MIN_TEST_ACCURACY = 0.95
READY_SECONDS = 180
STOP_SECONDS = 60
NOISE = re.compile(
    r" (cli|sdk|job_manager|worker)\.py:\d+ -- |^Running entrypoint|TrainController pid=|Reporting training result"
    r"|Downloading artifacts|mlflow\.store\.db"
)
DECORATION = re.compile(r"\x1b\[[0-9;]*m|^\(RayTrainWorker pid=\d+\) ")

ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "CLIPSTREAM_HOME": str(HOME),
    "RAY_AUTH_MODE": "token",
    "PYTHONUNBUFFERED": "1",
    MARK: secrets.token_hex(8),
}
for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
    ENVIRONMENT.pop(name, None)  # the demo has its own store and cluster


class DemoError(Exception):
    """A step failed; the text says which one and why."""


def say(text: str = "") -> None:
    print(text, flush=True)


def start(command: str) -> subprocess.Popen[str]:
    """Starts a command in a session of its own: Ctrl-C reaches the demo alone, which then stops them in order."""
    return subprocess.Popen(
        ["bash", "-c", command],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def stop(process: subprocess.Popen[str]) -> None:
    """Ends a process as Ctrl-C does; if it still runs after a while, it and its session are killed."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.communicate(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def run(command: str, setup: str = "") -> None:
    """Prints a command, runs it and shows its output; `setup` is run before it in the same shell and is not printed.

    Raises:
        DemoError: The exit code is not 0.
    """
    say(f"$ {command}")
    began = time.monotonic()
    process = start(f"{setup}{command}")
    try:
        assert process.stdout is not None
        for line in process.stdout:
            text = DECORATION.sub("", line.rstrip())
            if text and not NOISE.search(text):
                say(f"    {text}")
        code = process.wait()
    finally:
        stop(process)
    if code:
        raise DemoError(f"`{command}` failed with exit code {code}")
    say(f"  ({time.monotonic() - began:.0f} s)\n")


def check_accuracy() -> None:
    """Reads the champion's accuracy on the test split from the MLflow store.

    Raises:
        DemoError: The accuracy is too low.
    """
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{HOME / 'mlflow.db'}")
    version = client.get_model_version_by_alias(MODEL, "champion")
    accuracy = client.get_run(version.run_id).data.metrics["test_top1"]
    say(f"{MODEL} version {version.version} is @champion; accuracy on the test split: {accuracy:.3f}\n")
    if accuracy < MIN_TEST_ACCURACY:
        raise DemoError(f"test accuracy ({accuracy:.3f}) is below {MIN_TEST_ACCURACY}")


@contextmanager
def cluster() -> Iterator[None]:
    """Runs a Ray cluster of the demo's own for as long as the block runs."""
    try:
        run("make cluster")
        yield
    finally:
        run("make cluster-stop")


@contextmanager
def server() -> Iterator[str]:
    """Serves the champion for as long as the block runs; yields the address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{probe.getsockname()[1]}"
    command = f"python -m serve --registered-model {MODEL} --port {address.rpartition(':')[2]}"
    say(f"$ {command} &")
    began = time.monotonic()
    log = HOME / "serve.log"
    process = start(f"exec {command} >{log} 2>&1")
    try:
        while not is_ready(address):
            if process.poll() is not None or time.monotonic() - began > READY_SECONDS:
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
                raise DemoError(f"the server did not become ready; the end of {log}:\n{tail}")
            time.sleep(0.3)
        say(f"  (ready after {time.monotonic() - began:.0f} s)\n")
        yield address
    finally:
        stop(process)


def is_ready(address: str) -> bool:
    try:
        with urlopen(f"{address}/readyz", timeout=5):
            return True
    except (URLError, OSError):
        return False


def ask(address: str) -> None:
    """Sends the first test video of each class and compares each answer with the true class.

    Raises:
        DemoError: More than one class is answered wrongly.
    """
    table = read_samples(HOME / "shards", "test", columns=["class_name", "source"])
    videos = dict(reversed(list(zip(*(table[name].to_pylist() for name in table.column_names), strict=True))))
    right = 0
    for number, (class_name, source) in enumerate(sorted(videos.items())):
        answer = post(f"{address}/v1/predict?top_k=2", HOME / "data" / source)
        right += answer["predictions"][0]["class"] == class_name
        if number == 0:
            say(f"$ curl --data-binary @.demo/data/{source} '{address}/v1/predict?top_k=2'")
            say("\n".join(f"    {field}: {json.dumps(value)}" for field, value in answer.items()))
    say(f"\n{right} of {len(videos)} test videos, one of each class, answered rightly over HTTP\n")
    if right < len(videos) - 1:
        raise DemoError(f"the server answered {len(videos) - right} of {len(videos)} test videos wrongly")


def post(url: str, video: Path) -> dict[str, Any]:
    request = Request(url, data=video.read_bytes(), headers={"Content-Type": "video/mp4"})
    with urlopen(request, timeout=60) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def left_behind() -> list[psutil.Process]:
    """Returns the processes that this demo, or a process of it, started and that still run."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(MARK) == ENVIRONMENT[MARK]:
                found.append(process)
        except psutil.Error:  # another user's, or gone already
            continue
    return found


def drive() -> None:
    began = time.monotonic()
    say(f"The demo's files lie in {HOME}; each line after a $ is a command that you can type too, after")
    say("$ export PATH=$PWD/.venv/bin:$PATH CLIPSTREAM_HOME=$PWD/.demo\n")
    subprocess.run(["make", "cluster-stop"], cwd=ROOT, env=ENVIRONMENT, check=True)  # if an earlier demo was killed
    shutil.rmtree(HOME, ignore_errors=True)
    HOME.mkdir()
    run(f"python -m packer.synthetic data --videos-per-class {VIDEOS_PER_CLASS}")
    run("python -m packer data shards --clip.short-side-px 64")
    with cluster():
        run("ray job submit -- python -m trainer --config configs/demo.yaml", setup=". .demo/.ray/env; ")
    check_accuracy()
    with server() as address:
        ask(address)
    say(f"All of it took {time.monotonic() - began:.0f} s. Look at the run, its curves and its model: make ui")


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell makes background jobs ignore it
    code = 0
    try:
        drive()
    except DemoError as error:
        print(f"demo: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        code = 130
    deadline = time.monotonic() + 10
    while (processes := left_behind()) and time.monotonic() < deadline:
        time.sleep(0.5)
    for process in processes:
        print(f"demo: left behind and killed: {process}", file=sys.stderr)
        process.kill()
        code = code or 1
    return code


if __name__ == "__main__":
    sys.exit(main())

"""What a process imports before it works: seconds of each start, and memory in every decoder and model process."""

import json
import subprocess
import sys

import pytest

SCRIPT = """
import importlib, json, sys
importlib.import_module(sys.argv[1])
ours = [name for name, module in sys.modules.items()
        if name.partition('.')[0] in ('configs', 'packer', 'trainer', 'serve') and not hasattr(module, '__path__')]
print(json.dumps([ours, sorted({name.partition('.')[0] for name in sys.modules})]))
"""


def imports(name: str) -> tuple[list[str], set[str]]:
    """Returns which of our files, and which libraries, a file brings with it."""
    output = subprocess.run([sys.executable, "-c", SCRIPT, name], capture_output=True, text=True, check=True).stdout
    ours, libraries = json.loads(output)
    return ours, set(libraries)


@pytest.mark.parametrize(
    ("name", "num_files", "unwanted"),
    [
        ("serve.replica.predictor", 16, {"pyarrow", "webdataset", "mlflow", "ray"}),
        ("packer.decoders.process", 24, {"torch", "pyarrow", "webdataset", "mlflow", "ray"}),
        ("serve.app", 50, {"torch", "mlflow"}),
    ],
)
def test_a_process_imports_little(name: str, num_files: int, unwanted: set[str]) -> None:
    ours, libraries = imports(name)
    found = libraries & unwanted
    assert not found
    assert not [one for one in ours if one.startswith(("trainer.stream", "packer.shards"))]
    assert len(ours) <= num_files, sorted(ours)

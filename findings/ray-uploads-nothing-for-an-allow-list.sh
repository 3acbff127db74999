#!/usr/bin/env bash
# One would guess: .rayignore has the rules of .gitignore. So `/*` with `!/src/` after it keeps everything back except
#   the folder src, as it does for git.
# What happens: Ray asks the patterns about the working directory itself, by the name `.`, and `/*` matches that:
#   nothing at all is uploaded, without an error or a warning. With `!/.` added, `!/src/` still does not count,
#   because Ray asks about the folder as `src`, without the slash that tells a folder. `/*`, `!/.` and `!/src` upload
#   what was meant.
# Why it matters: an allow-list is the safe form for a folder in which data, models and secrets lie beside the code.
#   The job starts in an empty folder and fails with ModuleNotFoundError, far from the cause.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat >"$folder/show.py" <<'PYTHON'
import os
import subprocess
import sys
from pathlib import Path

import ray

CASES = {  # lines of the file; what git keeps; what Ray uploads
    ("/*", "!/src/"): (["src"], []),
    ("/*", "!/.", "!/src/"): (["src"], []),
    ("/*", "!/.", "!/src"): (["src"], ["src"]),
}
folder = Path(sys.argv[1])


@ray.remote
def found():
    return sorted(name for name in os.listdir(".") if not name.startswith("."))


def by_ray(project):
    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"working_dir": str(project)},
    )
    names = ray.get(found.remote())
    ray.shutdown()
    return names


def by_git(project):
    (project / ".rayignore").rename(project / ".gitignore")
    subprocess.run(["git", "init", "--quiet", project], check=True)
    listed = ["git", "-C", project, "ls-files", "--others", "--exclude-standard"]
    names = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split()
    return sorted({name.partition("/")[0] for name in names})


print(f"ray {ray.__version__}")
is_same = True
for number, (lines, expected) in enumerate(CASES.items()):
    project = folder / f"project{number}"
    (project / "src").mkdir(parents=True)
    (project / "src" / "code.py").write_text("")
    (project / "data.bin").write_text("")
    (project / ".rayignore").write_text("".join(f"{line}\n" for line in lines))
    uploaded = by_ray(project)
    kept = by_git(project)
    is_same &= (kept, uploaded) == expected
    print(f"  {' '.join(lines):14} git keeps {kept}, Ray uploads {uploaded}")
sys.exit(not is_same)
PYTHON

python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check "ray[default]==2.60.0"
changed=0
"$folder/venv/bin/python" "$folder/show.py" "$folder" 2>"$folder/log" || changed=1
[ "$changed" = 0 ] && echo "as described above" || { tail "$folder/log"; echo "this has changed"; }
exit "$changed"

"""The recipes for Docker and Kubernetes: they hold what Ray, the trainer and the server take, and lock Ray's ports."""

import pkgutil
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.load import parse
from configs.serve import ServeConfig
from configs.train import TrainConfig

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "configs" / "deploy"


def recipe(name: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((DEPLOY / name).read_text())
    return values


@pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")  # Ray's, while it is imported
def test_the_service_is_a_deploy_config_of_this_application() -> None:
    from ray.serve.schema import ServeDeploySchema

    text = recipe("rayservice.yaml")["spec"]["serveConfigV2"]
    (application,) = ServeDeploySchema.model_validate(yaml.safe_load(text)).applications
    (shipped,) = yaml.safe_load((ROOT / "configs/serve.yaml").read_text())["applications"]
    assert application.import_path == shipped["import_path"]
    assert ServeConfig.model_validate(application.args).allow_unauthenticated is False


def test_the_job_is_a_command_of_the_trainer() -> None:
    python, _, module, *arguments = shlex.split(recipe("rayjob.yaml")["spec"]["entrypoint"])
    assert (python, module) == ("python", "trainer")
    config = parse(TrainConfig, arguments, prog="trainer", description="", env_prefix="NONE_")
    assert config.run  # without a name another attempt would start anew


@pytest.mark.parametrize(
    ("name", "cluster"), [("rayjob.yaml", "rayClusterSpec"), ("rayservice.yaml", "rayClusterConfig")]
)
def test_ray_asks_for_a_token(name: str, cluster: str) -> None:
    spec = recipe(name)["spec"][cluster]
    assert spec["authOptions"] == {"mode": "token"}
    locked = re.search(r"^ray==([0-9.]+)", (ROOT / "requirements.lock").read_text(), re.M)
    assert locked
    assert spec["rayVersion"] == locked[1]


def test_the_image_is_built_from_what_is_there() -> None:
    dockerfile, ignored = (DEPLOY / "Dockerfile").read_text(), (ROOT / ".dockerignore").read_text().splitlines()
    copied = [source for line in re.findall(r"^COPY (.+) \S+$", dockerfile, re.M) for source in line.split()]
    assert {"configs", "packer", "trainer", "serve"} <= set(copied)
    for source in copied:
        assert (ROOT / source).exists()
        assert f"!{source}" in ignored


def test_headers_are_limited_wherever_rays_proxy_may_start() -> None:
    from serve.proxy.set_up import CALLBACK_VARIABLE, SET_UP, set_up_proxy

    assert pkgutil.resolve_name(SET_UP) is set_up_proxy
    for path in (DEPLOY / "Dockerfile", DEPLOY / "cluster.sh", ROOT / "configs/serve.yaml", ROOT / "README.md"):
        assert re.findall(rf"{CALLBACK_VARIABLE}=([\w.:]+)", path.read_text()) == [SET_UP]

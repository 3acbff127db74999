"""Reads a command's configuration: defaults < YAML file < environment < command line.

Every part's command goes through `parse`, so that `--help`, the YAML files, the environment variables and the
validation errors look the same everywhere. It knows nothing about what the fields mean.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

EXIT_USAGE = 2
HOME_VARIABLE = "CLIPSTREAM_HOME"


class UsageError(Exception):
    """A command that cannot be carried out as given; its text is the one sentence that the user reads."""


class Section(BaseModel):
    """A frozen group of configuration fields that refuses unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


ConfigT = TypeVar("ConfigT", bound=Section)


def home() -> Path:
    """Returns the absolute folder that relative paths start from: CLIPSTREAM_HOME, else the current folder.

    Raises:
        UsageError: The folder lies inside a copy that Ray uploaded, which Ray deletes after the job.
    """
    folder = Path(os.environ.get(HOME_VARIABLE) or Path.cwd()).absolute()
    if "_ray_pkg_" in str(folder):
        raise UsageError(
            f"{folder} is Ray's temporary copy of the working directory and is deleted after the job: start the "
            f"cluster by `make cluster`, or set {HOME_VARIABLE} where `ray start` runs, to the project's folder"
        )
    return folder


def resolve(path: str | Path) -> Path:
    """Returns `path` as an absolute path; a relative one starts from `home()`."""
    expanded = Path(path).expanduser()
    return expanded if expanded.is_absolute() else home() / expanded


def code_path() -> str:
    """Returns the PYTHONPATH with which a process finds the same code as this one, wherever that was found."""
    return os.pathsep.join(path for path in sys.path if path)


def find_config(name: str | Path) -> Path:
    """Returns the YAML file called `name`: as given, below `home()`, or one that ships with the package.

    Raises:
        UsageError: No such file.
    """
    given = Path(name).expanduser()
    shipped = Path(__file__).parent / given.name
    candidates = [given.absolute(), shipped] if given.is_absolute() else [given.absolute(), resolve(given), shipped]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    shipped_names = ", ".join(sorted(path.name for path in shipped.parent.glob("*.yaml")))
    raise UsageError(f"no config file {name}: give a path to a YAML file, or one that ships here ({shipped_names})")


def read_yaml(path: Path) -> dict[str, Any]:
    """Returns the mapping that a YAML file holds; an empty file is an empty mapping.

    Raises:
        UsageError: The file is not valid YAML, or its top level is not a mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError(f"{path} holds a {type(values).__name__} at its top level: it must be a mapping of fields")
    return values


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested fields by their dotted names: `{"a": {"b": 1}}` gives `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def describe(error: ValidationError) -> str:
    """Returns a validation error as one readable line per field, with the field's dotted path."""
    lines = []
    for detail in error.errors():
        field = ".".join(str(part) for part in detail["loc"]) or "configuration"
        is_said = detail["type"] in {"missing", "extra_forbidden"} or isinstance(detail["input"], Mapping)
        given = "" if is_said else f" (got {detail['input']!r})"
        message = detail["msg"].removeprefix("Value error, ")
        lines.append(f"{field}: {message}{given}")
    return "\n".join(lines)


def parse(
    model: type[ConfigT],
    argv: Sequence[str],
    *,
    prog: str,
    description: str,
    env_prefix: str,
    yaml_values: Mapping[str, Any] | None = None,
) -> ConfigT:
    """Returns `model` filled from its defaults, a YAML file, the environment and the command line, in that order.

    Args:
        model: The part's configuration model.
        argv: The command's arguments, without the program's name.
        prog: The program's name in `--help`, such as `python -m packer`.
        description: The text that `--help` opens with.
        env_prefix: Start of the environment variables' names: `CLIPSTREAM_PACK_` reads
            `CLIPSTREAM_PACK_CLIP__NUM_FRAMES` as `clip.num_frames`.
        yaml_values: What the YAML file holds, for a caller that has read it already; otherwise `--config` is read.

    Raises:
        UsageError: A value is wrong; the text has one line per field.
        SystemExit: `--help` (0), or an argument the command does not know (2).
    """
    values = yaml_values if yaml_values is not None else _config_values(argv)

    class Command(model, BaseSettings):  # type: ignore[valid-type,misc]
        """The model as a command; `config` names the YAML file and is not part of the model."""

        model_config = SettingsConfigDict(
            frozen=True,
            extra="forbid",
            env_prefix=env_prefix,
            env_nested_delimiter="__",
            cli_kebab_case=True,
            cli_implicit_flags=True,
            cli_prog_name=prog,
            cli_hide_none_type=True,
            cli_avoid_json=True,
            use_attribute_docstrings=True,
        )
        config: str | None = Field(None, description="YAML file with any of these fields; see configs/")

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            command_line: CliSettingsSource[Any] = CliSettingsSource(settings_cls, cli_parse_args=list(argv))
            return command_line, env_settings, InitSettingsSource(settings_cls, init_kwargs=dict(values))

    Command.__doc__ = description
    try:
        settings = Command()
        return model.model_validate(settings.model_dump(exclude={"config"}))
    except ValidationError as error:
        raise UsageError(describe(error)) from error
    except SettingsError as error:
        raise UsageError(str(error)) from error


def config_option(argv: Sequence[str]) -> str | None:
    """Returns the value of `--config` in `argv`, or None; the rest of `argv` is left to `parse`."""
    for position, argument in enumerate(argv):
        if argument == "--config" and position + 1 < len(argv):
            return argv[position + 1]
        if argument.startswith("--config="):
            return argument.partition("=")[2]
    return None


def _config_values(argv: Sequence[str]) -> dict[str, Any]:
    name = config_option(argv)
    return read_yaml(find_config(name)) if name else {}


def fail(prog: str, error: Exception) -> int:
    """Prints an error as the sentence a user reads and returns the exit code of a wrong command (2)."""
    for line in str(error).splitlines():
        print(f"{prog}: {line}", file=sys.stderr)
    return EXIT_USAGE

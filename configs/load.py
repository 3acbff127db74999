"""Reads a command's configuration: defaults < YAML file < environment < command line.

Every command goes through `parse`, so `--help`, YAML files, environment variables and validation errors look the same
everywhere. This module knows nothing about what the fields mean.
"""

import argparse
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from configs.home import resolve
from configs.option_names import OptionNames
from configs.section import Section, UsageError, problems

EXIT_USAGE = 2


ConfigT = TypeVar("ConfigT", bound=Section)


_RIDDLES = {
    " (default: )": "",
    " (default: None)": "",
    " (ifdef: required)": " (required, if you give any of these)",
    " (default: False)": " (default: off)",
    " (default: True)": " (default: on)",
}
"""What pydantic-settings adds to the help of an option, and what a reader is told instead."""
_OPTIONAL_GROUP = "default: None (undefined)\n"


def _wrapped(paragraph: str) -> str:
    """Returns a paragraph in lines that fit the terminal; columns, which are set apart by spaces, stay as they are."""
    if "  " in paragraph:
        return paragraph
    return textwrap.fill(" ".join(paragraph.split()), min(122, shutil.get_terminal_size().columns) - 2)


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Names options as they are typed, and says in words what pydantic-settings adds to their help."""

    def __init__(self, names: OptionNames, prog: str) -> None:
        super().__init__(prog)
        self._names = names

    def add_argument(self, action: argparse.Action) -> None:
        """Takes one option."""
        if action.help:
            for riddle, words in _RIDDLES.items():
                if action.help.endswith(riddle):
                    action.help = action.help.removesuffix(riddle) + words
            action.help = self._names.as_typed(action.help, group=action.dest.rpartition(".")[0])
        super().add_argument(action)

    def add_text(self, text: str | None) -> None:
        """Takes a description of the command or of a group of options."""
        if text and text.startswith(_OPTIONAL_GROUP):
            text = self._names.as_typed(text.removeprefix(_OPTIONAL_GROUP))
        super().add_text(text and "\n\n".join(map(_wrapped, text.split("\n\n"))))


def find_config(name: str | Path) -> Path:
    """Returns the YAML file called `name`: as given, below `home()`, or one of those that ship with the package.

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
    places = " or ".join(dict.fromkeys(map(str, candidates[:-1])))
    raise UsageError(
        f"no config file {name} (looked for {places}): give a path to a YAML file, or one that ships here "
        f"({shipped_names})"
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """Returns the mapping that a YAML file holds; an empty file is an empty mapping.

    Raises:
        UsageError: The file is not valid YAML, or its top level is no mapping.
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
        description: The text at the top of `--help`.
        env_prefix: Start of the environment variables' names: `CLIPSTREAM_PACK_` reads
            `CLIPSTREAM_PACK_CLIP__NUM_FRAMES` as `clip.num_frames`.
        yaml_values: The YAML file's values, from a caller that has read it already; None: `--config` names the file.

    Raises:
        UsageError: A value is wrong; the text has one line per field.
        SystemExit: `--help` (0), or an argument the command does not know (2).
    """
    values = yaml_values if yaml_values is not None else _config_values(argv)
    names = OptionNames(model)

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
        config: str | None = Field(None, description="YAML file that sets any of these; the command line wins")

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            command_line: CliSettingsSource[Any] = CliSettingsSource(
                settings_cls, cli_parse_args=list(argv), formatter_class=partial(_HelpFormatter, names)
            )
            return command_line, env_settings, InitSettingsSource(settings_cls, init_kwargs=dict(values))

    Command.__doc__ = description
    try:
        settings = Command()
        return model.model_validate(settings.model_dump(exclude={"config"}))
    except ValidationError as error:
        raise UsageError(_describe(error, names)) from error
    except SettingsError as error:
        raise UsageError(str(error)) from error


def _describe(error: ValidationError, names: OptionNames) -> str:
    """Returns a validation error as one line per field, which is named as it is typed."""
    lines = []
    for path, problem in problems(error):
        option = names.option(path)
        if option or names.is_group(path):
            lines.append(f"{option}: {problem}" if option else names.as_typed(problem, group=path))
        else:  # only a YAML file can name a field that does not exist
            lines.append(f"{path}: {problem}")
    return "\n".join(lines)


def config_option(argv: Sequence[str]) -> str | None:
    """Returns the value of `--config` in `argv`, or None; `parse` reads the rest of `argv`."""
    for position, argument in enumerate(argv):
        if argument == "--config" and position + 1 < len(argv):
            return argv[position + 1]
        if argument.startswith("--config="):
            return argument.partition("=")[2]
    return None


def _config_values(argv: Sequence[str]) -> dict[str, Any]:
    name = config_option(argv)
    return read_yaml(find_config(name)) if name else {}


def fail(prog: str, error: Exception, model: type[Section] | None = None) -> int:
    """Prints an error, each line after the program's name, and returns the exit code of a wrong command (2).

    Args:
        prog: The program's name.
        error: What is wrong.
        model: The command's configuration: its fields are named as they are typed.
    """
    names = OptionNames(model or Section)
    for line in str(error).splitlines():
        print(f"{prog}: {names.as_typed(line)}", file=sys.stderr)
    return EXIT_USAGE

"""What the pages for readers say exists: commands, options, files, tests; and the site that is built of them."""

import ast
import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import griffe
import pytest
import yaml

ROOT = Path(__file__).parents[2]
PACKAGES = ["configs", "packer", "trainer", "serve"]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "findings").glob("*.md")]
}
TEXT = re.sub(r"<!--.*?-->", "", "\n".join(PAGES.values()), flags=re.DOTALL)
PARTS = (
    r"packer\.synthetic|packer (?:inspect|repair|verify)|packer"
    r"|trainer (?:cv|promote|audit|explain|review)|trainer|serve score|serve"
)
COMMANDS = sorted(set(re.findall(rf"python -m ({PARTS})\b([^`'\n#|&]*)", TEXT)))
OPTIONS_OF_OTHERS = {"--allowed-hosts", "--working-dir", "--config", "--help", "--files"}
"""Options of Ray's job client, of every command, and of `make fuzz`."""


def hook(name: str) -> ModuleType:
    """Returns a hook of the site's build as MkDocs loads it."""
    spec = importlib.util.spec_from_file_location(f"hook_{name}", ROOT / "docs" / "hooks" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


OPTIONS = hook("options")


@cache
def help_of(module: str) -> str:
    command = [sys.executable, "-m", *module.split(), "--help"]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


@cache
def options_of(module: str) -> frozenset[str]:
    lines = [line for line in help_of(module).splitlines() if re.match(r" +-", line)]
    return frozenset(option for line in lines for option in re.findall(r"(?<![\w-])--[a-z0-9.-]+", line.split("  ")[1]))


def test_the_readme_is_a_front_page() -> None:
    lines = README.splitlines()
    assert len(lines) <= 160
    first_screen = "\n".join(lines[:20])
    assert "make demo " in first_screen
    assert "make test " in first_screen


@pytest.mark.parametrize("target", sorted(set(re.findall(r"(?:`|^(?: {4}|\$ )?)make ([a-z-]+)", TEXT, re.MULTILINE))))
def test_make_targets_exist(target: str) -> None:
    assert re.search(rf"^{target}:.*## \S", MAKEFILE, re.MULTILINE)


def test_make_without_a_target_lists_every_target() -> None:
    done = subprocess.run(["make"], cwd=ROOT, check=True, capture_output=True, text=True)
    for target in re.findall(r"^([a-z-]+):.*## ", MAKEFILE, re.MULTILINE):
        assert f"make {target} " in done.stdout


@pytest.mark.parametrize(("module", "arguments"), COMMANDS)
def test_options_of_commands_exist(module: str, arguments: str) -> None:
    for word in shlex.split(arguments, comments=True):
        if word.startswith("--"):
            assert re.search(rf"^ +{re.escape(word)}\b", help_of(module), re.MULTILINE), f"{module} has no {word}"


def test_options_named_alone_exist() -> None:
    known = {option for command in OPTIONS.COMMANDS for option in options_of(command.removeprefix("python -m "))}
    for page, text in PAGES.items():
        for option in re.findall(r"`(--[a-z0-9.-]+)", text):
            assert option in known | OPTIONS_OF_OTHERS, f"{page} names {option}, which no command has"


@pytest.mark.parametrize("command", OPTIONS.COMMANDS)
def test_the_tables_of_options_are_those_of_the_command(command: str) -> None:
    module, known = command.removeprefix("python -m "), OPTIONS.COMMANDS[command]
    listed = {
        option for line in OPTIONS.tables(known).splitlines() for option in re.findall(r"`(--[a-z0-9.-]+)`", line)
    }
    if known.listed:  # the rest is in the table of another command
        assert listed < options_of(module)
    else:
        assert listed | {"--help", "--config"} == options_of(module)
    code = [path.read_text(encoding="utf-8") for path in (ROOT / module.split()[0]).glob("*.py")]
    assert any(f'"{known.env_prefix}"' in text for text in code)


def test_every_model_of_the_configuration_is_listed() -> None:
    models = {known.model.__name__ for known in OPTIONS.COMMANDS.values()}
    for path in (ROOT / "configs").glob("*.py"):
        names = re.findall(r"^class (\w+(?:Config|Command))\(", path.read_text(encoding="utf-8"), re.MULTILINE)
        for name in names:
            assert name in models or any(name in _ancestors_and_groups(one.model) for one in OPTIONS.COMMANDS.values())


def _ancestors_and_groups(model: type) -> set[str]:
    names = {base.__name__ for base in model.__mro__}
    for field in model.model_fields.values():
        if group := OPTIONS.section_of(field):
            names |= _ancestors_and_groups(group)
    return names


def test_files_named_exist() -> None:
    named = set(re.findall(r"`((?:configs|packer|trainer|serve|tests|docs|findings|\.ci|\.github)/[\w./-]*)`", TEXT))
    assert len(named) > 50
    for name in named:
        assert (ROOT / name).exists(), f"{name} is named and is not there"
    for name in re.findall(r"configs/[\w/]+\.(?:yaml|sh|json)", TEXT):
        assert (ROOT / name).is_file()


def test_tests_named_exist() -> None:
    named = set(re.findall(r"`((?:\w+/)?test_\w+\.py)::(\w+)`", TEXT))
    assert len(named) >= 40
    for file, name in named:
        (path,) = (ROOT / "tests").rglob(file)
        assert re.search(rf"^def {name}\(", path.read_text(), re.MULTILINE), f"no {name} in {file}"
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for name in set(re.findall(r"`(test_\w+)`", TEXT)):
        assert re.search(rf"^def {name}\(", tests, re.MULTILINE), f"no test is called {name}"


@pytest.mark.parametrize(("list_name", "folder"), [("BENCHES", "bench"), ("DRILLS", "drill")])
def test_rows_and_drills_named_exist(list_name: str, folder: str) -> None:
    variable = {"BENCHES": "ROWS", "DRILLS": "DRILLS"}[list_name]
    known = set(
        re.findall(r'^    "([\w-]+)": ', "".join(map(Path.read_text, (ROOT / "tests" / folder).glob("*.py"))), re.M)
    )
    named = {
        name for value in re.findall(rf'{variable}=(?:"([^"]*)"|([\w-]+))', TEXT) for name in "".join(value).split()
    }
    assert named
    assert named <= known


def test_the_architecture_names_every_room() -> None:
    text = PAGES["docs/architecture.md"]
    for package in PACKAGES:
        for path in (ROOT / package).iterdir():
            if path.is_dir() and (path / "__init__.py").exists():
                assert f"`{path.relative_to(ROOT).as_posix()}/`" in text
            elif path.suffix == ".py" and not path.name.startswith("__"):
                assert f"`{path.relative_to(ROOT).as_posix()}`" in text


def private_names(path: Path) -> set[str]:
    """Returns the private names that a file uses, ours among them."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and re.search(r"(^|\.)_[a-z]", node.module):
            names.add(node.module)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"[\w.]+", node.value):
            names |= {node.value} if re.search(r"^[a-z]\w*\.(\w+\.)*_[a-z]", node.value) else set()
        elif isinstance(node, ast.Attribute) and re.match(r"_[a-z]", node.attr):
            names |= set() if isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"} else {node.attr}
        elif isinstance(node, ast.keyword) and re.match(r"_[a-z]", node.arg or ""):
            names.add(str(node.arg))
        elif isinstance(node, ast.FunctionDef) and re.fullmatch(r"__serve_\w+__", node.name):
            names.add(node.name)
    return names


def test_every_private_name_of_a_library_is_listed_upstream() -> None:
    sources = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    ours = set(re.findall(r"\b(_[a-z]\w*)\b(?=\(self|: | = )", "\n".join(path.read_text() for path in sources)))
    public = {"_exit", "_replace"}  # of os and of named tuples, documented
    for path in sources:
        for name in private_names(path) - ours - public:
            assert name in PAGES["docs/upstream.md"], f"{path} uses {name}, which docs/upstream.md does not name"


def test_what_is_listed_upstream_is_where_the_page_says() -> None:
    rows = [line.split(" | ") for line in PAGES["docs/upstream.md"].splitlines() if line.startswith("| `")]
    assert len(rows) > 30
    for what, where, *_ in rows:
        names = [re.split(r"[(/]", name)[0].rpartition(".")[2] for name in re.findall(r"`([^`]+)`", what)]
        for file in re.findall(r"`([\w/.]+/[\w.]+)`", where):
            text = (ROOT / file).read_text(encoding="utf-8")
            assert any(name in text for name in names), f"{file} has none of {names}"


def test_every_variable_of_ray_is_listed_upstream() -> None:
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()]
    files = [path for path in files if path.suffix in {".py", ".sh", ".yaml", ""}]
    used = {name for path in files for name in re.findall(r"\bRAY_[A-Za-z_]+", path.read_text(encoding="utf-8"))}
    assert len(used) > 10
    for name in used:
        assert f"`{name}`" in PAGES["docs/upstream.md"], f"docs/upstream.md does not name {name}"


def test_pages_name_no_address_but_those_of_private_networks() -> None:
    for page, text in PAGES.items():
        for address in re.findall(r"https?://[^\s`'\")>]+", text):
            assert re.match(r"http://(127\.0\.0\.1|\[::1\]|192\.168\.)", address), f"{page} names {address}"


def test_links_of_the_readme_lead_to_files() -> None:
    for page in ("README.md", "CONTRIBUTING.md", "findings/README.md"):
        for target in re.findall(r"\]\(([^)#]+)", PAGES[page]):
            assert (ROOT / page).parent.joinpath(target).exists(), f"{page} links to {target}"


def test_the_readmes_examples_are_those_of_the_page_on_serving() -> None:
    for block in re.findall(r"^```\n(\$ curl.*?)^```$", README, re.MULTILINE | re.DOTALL):
        assert block in PAGES["docs/serve.md"]


def test_versions_agree() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(citation["version"]) == version
    assert citation.keys() >= {"cff-version", "message", "title", "authors", "license", "type"}
    headings = re.findall(r"^## \[([^\]]+)\]", PAGES["CHANGELOG.md"], re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert version in headings


def test_the_workflow_runs_what_everybody_runs() -> None:
    (workflow,) = (ROOT / ".github" / "workflows").glob("*.yml")
    jobs = yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"]
    assert ".ci/run" in {step.get("run") for job in jobs.values() for step in job["steps"]}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it: broken links and missing docstrings fail here."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


class Page(HTMLParser):
    """The links, the resources and the anchors of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.resources: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.anchors |= {value for name, value in attributes if name in {"id", "name"} and value}
        if tag == "a" and found.get("href"):
            self.links.append(str(found["href"]))
        elif tag in {"link", "script", "img", "iframe", "source", "video", "audio", "object", "embed"}:
            self.resources += [str(found[name]) for name in ("src", "href", "data", "srcset") if found.get(name)]


@pytest.mark.integration
def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    for path in site.rglob("*.html"):
        for resource in Page(path).resources:
            assert not urlsplit(resource).netloc, f"{path.name} loads {resource}"
            if not resource.startswith("data:") and path.name != "404.html":  # whose links start from a server's root
                assert (path.parent / unquote(urlsplit(resource).path)).exists()
        assert 'class="mermaid"' not in path.read_text(encoding="utf-8")  # the theme would load Mermaid's script
    for path in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//|@import", path.read_text(encoding="utf-8"))


@pytest.mark.integration
def test_links_between_pages_lead_somewhere(site: Path) -> None:
    pages = {path.resolve(): Page(path) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) > 15
    for path, page in pages.items():
        for link in page.links:
            split = urlsplit(link)
            if split.netloc or link == ".":
                continue
            target = (path.parent / unquote(split.path)).resolve() if split.path else path
            assert target.exists(), f"{path.name} links to {link}"
            assert not split.fragment or target not in pages or unquote(split.fragment) in pages[target].anchors, link


@pytest.mark.integration
def test_the_site_lists_every_field_of_the_configuration(site: Path) -> None:
    text = (site / "configuration.html").read_text(encoding="utf-8")
    for known in OPTIONS.COMMANDS.values():
        for path, field in OPTIONS.fields(known.model):
            option = f"--{path.replace('_', '-')}"
            assert f"<code>{path.upper() if field.is_required() else option}</code>" in text or f">{option}<" in text


@pytest.mark.integration
def test_the_site_describes_the_formats_and_draws_the_diagrams(site: Path) -> None:
    formats = (site / "formats.html").read_text(encoding="utf-8")
    for column in ("num_bad_packets", "frame_indices", "decode_road", "reason", "plan_sha256", "val_metric"):
        assert f"<code>{column}</code>" in formats
    assert "<!-- " not in re.sub(r"<!--\[if.*?-->", "", formats)
    architecture = (site / "architecture.html").read_text(encoding="utf-8")
    assert len(re.findall(r'<div class="diagram"><svg', architecture)) == PAGES["docs/architecture.md"].count(
        "```mermaid"
    )


def test_what_is_public_and_has_no_docstring_is_told(tmp_path: Path) -> None:
    package = tmp_path / "thing"
    package.mkdir()
    (package / "__init__.py").write_text('"""Something."""\n')
    (package / "part.py").write_text('class Named:\n    """A class."""\n\n    def told(self):\n        return 1\n')
    found = hook("docstrings").missing(griffe.load("thing", search_paths=[tmp_path]))
    assert sorted(found) == ["thing.part", "thing.part.Named.told"]

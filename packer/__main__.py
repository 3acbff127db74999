"""The command `python -m packer`."""

import errno
import logging
import sys
from collections.abc import Sequence
from contextlib import suppress

from configs.home import resolve
from configs.load import EXIT_USAGE, ConfigT, fail, parse
from configs.pack import InspectConfig, PackConfig, RelabelConfig, RepairConfig, VerifyConfig
from configs.section import UsageError

PROG = "python -m packer"
DESCRIPTION = """Packs a folder of videos (one folder per class) into WebDataset shards with a manifest and an index.

python -m packer data shards            packs; the same command continues a stopped pack
python -m packer data shards --dry-run  shows what a pack would do, and writes nothing
python -m packer data shards --append   adds the videos that are new in data
python -m packer videos shards --labels labels.csv  takes the classes from a table; parts of videos too
python -m packer verify shards          checks a pack byte by byte
python -m packer repair shards data     packs its damaged shards again
python -m packer relabel shards --labels fixed.csv  gives its samples new labels; no video is read
python -m packer inspect shards         shows what a pack holds; --sheet sheet.html shows its clips
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0 (good), 1 (failed), 2 (wrong command or target) or 130 (stopped by Ctrl-C)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    commands = {"verify": _verify, "repair": _repair, "relabel": _relabel, "inspect": _inspect}
    try:
        if arguments and arguments[0] in commands:
            return commands[arguments[0]](arguments[1:])
        if not arguments:
            with suppress(SystemExit):
                _pack(["--help"])
            return EXIT_USAGE
        return _pack(arguments)
    except UsageError as error:
        return fail(PROG, error, PackConfig)
    except KeyboardInterrupt:
        print(f"{PROG}: stopped; the same command continues it", file=sys.stderr)
        return 130


def _parse(model: type[ConfigT], arguments: Sequence[str], command: str = "", description: str = "") -> ConfigT:
    return parse(
        model,
        arguments,
        prog=f"{PROG}{command}",
        description=description or model.__doc__ or "",
        env_prefix="CLIPSTREAM_PACK_",
    )


def _pack(arguments: Sequence[str]) -> int:
    config = _parse(PackConfig, arguments, description=DESCRIPTION)
    from packer.pack import PackError, pack
    from packer.prepare import prepare
    from packer.report import format_plan, format_report

    try:
        prepared = prepare(config)
        if config.dry_run:
            print(format_plan(prepared))
            return 0
        result = pack(prepared, config.workers, config.strict, config.ray)
    except (PackError, OSError) as error:
        return _failed(error)
    print(format_report(result))
    if result.rejected_fraction > config.max_rejected_fraction:
        print(
            f"{PROG}: {result.rejected_fraction:.1%} of the videos were rejected, more than --max-rejected-fraction "
            f"({config.max_rejected_fraction:.1%}): see {prepared.target / 'rejected.csv'}; the shards are complete",
            file=sys.stderr,
        )
        return 1
    return 0


def _verify(arguments: Sequence[str]) -> int:
    config = _parse(VerifyConfig, arguments, " verify")
    from packer.shards.manifest import ManifestError
    from packer.storage.location import locate
    from packer.verify import find_faults

    try:
        target = locate(config.target)
        faults = list(dict.fromkeys(find_faults(target)))  # each split reports an index that cannot be read
    except ManifestError as error:
        raise UsageError(str(error)) from error
    for fault in faults:
        print(fault)
    if not faults:
        print(f"{target}: every shard, row and frame is as it was packed")
        return 0
    plural = "s" * (len(faults) != 1)
    print(f"{target}: {len(faults)} fault{plural}; `{PROG} repair {target} DATA` packs the damaged shards again")
    return 1


def _repair(arguments: Sequence[str]) -> int:
    config = _parse(RepairConfig, arguments, " repair")
    from packer.pack import PackError
    from packer.repair import repair
    from packer.storage.location import locate

    try:
        repaired = repair(locate(config.target), locate(config.source), config.workers)
    except (PackError, OSError) as error:
        return _failed(error)
    print(f"{locate(config.target)}: " + (f"repaired {', '.join(repaired)}" if repaired else "nothing was damaged"))
    return 0


def _relabel(arguments: Sequence[str]) -> int:
    config = _parse(RelabelConfig, arguments, " relabel")
    from packer.candidates import labels_of
    from packer.relabel.rewrite import relabel
    from packer.report import format_relabelling
    from packer.storage.location import locate

    try:
        result = relabel(locate(config.target), labels_of(config), dry_run=config.dry_run)
    except OSError as error:
        return _failed(error)
    print(format_relabelling(result, config.dry_run))
    return 0


def _inspect(arguments: Sequence[str]) -> int:
    config = _parse(InspectConfig, arguments, " inspect")
    from packer.inspection.sheet import check_sheet, write_sheet
    from packer.inspection.summary import format_inspection
    from packer.shards.manifest import ManifestError
    from packer.storage.location import locate

    target = locate(config.target)
    path = resolve(config.sheet) if config.sheet else None
    try:
        if path:
            check_sheet(path)
        print(format_inspection(target, config.all))
        if path:
            sheet = write_sheet(target, path, config.clips_per_class, config.all)
            shown = f"{sheet.num_clips:,} clips on {sheet.num_pages:,} pages, {sheet.num_bytes / 1e6:,.1f} MB"
            print(f"sheet     {path} ({shown}): open it in a browser")
    except ManifestError as error:
        raise UsageError(str(error)) from error
    except (ValueError, OSError) as error:
        return _failed(error)
    return 0


def _failed(error: Exception) -> int:
    print(f"{PROG}: {_storage_sentence(error) if isinstance(error, OSError) else error}", file=sys.stderr)
    return 1


def _storage_sentence(error: OSError) -> str:
    from packer.storage.location import is_url

    text = str(error)
    if isinstance(error.filename, str) and is_url(error.filename):
        text = f"{error.filename} cannot be reached: {error.strerror}"
        if error.errno == errno.EACCES:
            return f"{text}: renew them, or the rights to this file, then the same command continues it"
        return f"{text}: the same command continues it once the storage answers"
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return f"{text}: make room, then the same command continues it"
    return text


if __name__ == "__main__":
    sys.exit(main())

"""The command `python -m packer`."""

import logging
import sys
from collections.abc import Sequence

from configs.load import UsageError, fail, parse, resolve
from configs.pack import PackConfig

PROG = "python -m packer"
DESCRIPTION = """Packs a folder of videos (one folder per class) into WebDataset shards with a manifest and an index.

`python -m packer verify shards/` checks a finished pack byte by byte.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0 good, 1 failed or too many rejected, 2 wrong command or target, 130 Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    try:
        if arguments[:1] == ["verify"]:
            return _verify(arguments[1:])
        if not arguments:
            try:
                _parse(["--help"])
            except SystemExit:
                return 2
        return _pack(_parse(arguments))
    except UsageError as error:
        return fail(PROG, error)
    except KeyboardInterrupt:
        print(f"{PROG}: stopped; the same command continues it", file=sys.stderr)
        return 130


def _parse(arguments: Sequence[str]) -> PackConfig:
    return parse(PackConfig, arguments, prog=PROG, description=DESCRIPTION, env_prefix="CLIPSTREAM_PACK_")


def _pack(config: PackConfig) -> int:
    from packer.prepare import prepare
    from packer.report import format_plan, format_report
    from packer.run import PackError, pack

    try:
        prepared = prepare(config)
        if config.dry_run:
            print(format_plan(prepared))
            return 0
        result = pack(prepared, config)
    except (PackError, OSError) as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return 1
    print(format_report(result))
    if result.rejected_fraction > config.max_rejected_fraction:
        print(
            f"{PROG}: {result.rejected_fraction:.1%} of the videos were rejected, more than max_rejected_fraction "
            f"({config.max_rejected_fraction:.1%}): see rejected.csv; the shards are complete",
            file=sys.stderr,
        )
        return 1
    return 0


def _verify(arguments: Sequence[str]) -> int:
    from packer.manifest import ManifestError
    from packer.verify import find_faults

    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise UsageError("verify takes one folder: python -m packer verify shards/")
    folder = resolve(arguments[0])
    try:
        faults = list(find_faults(folder))
    except ManifestError as error:
        raise UsageError(str(error)) from error
    for fault in faults:
        print(fault)
    print(f"{folder}: " + (f"{len(faults)} faults" if faults else "every shard, row and frame is as it was packed"))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

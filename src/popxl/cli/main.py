"""``popxl``: the words of the command line. What a command does is imported when it runs, so ``--help`` is quick."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from popxl.errors import PopxlError

WRONG_USE, FAILURE, INTERRUPTED = 2, 1, 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say in one line what is wrong with the words."""
        self.exit(WRONG_USE, f"{self.prog}: {printable(message)} (see {self.prog} --help)\n")


def printable(text: str) -> str:
    r"""Text for one line of a terminal: what a terminal would obey or could not show stands as an escape.

    Example:
        >>> print(printable("größe" + chr(10) + chr(27)))
        größe\n\x1b
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def build_parser() -> argparse.ArgumentParser:
    """The words that the command understands; ``command`` of the result is the function to call with it."""
    parser = _Parser(prog="popxl", description="Tools for OpenPopXL programs.", allow_abbrev=False)
    groups = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_buffers(groups.add_parser("buffers", help="look at, check, export and import Streaming Memory directories"))
    _add_run(groups.add_parser("run", help="run a program in several processes of this machine"))
    _add_doctor(groups.add_parser("doctor", help="check whether this machine and a directory are fit for streaming"))
    _add_estimate(
        groups.add_parser("estimate", help="predict memory, traffic and time of a program, without running it")
    )
    _add_env(groups.add_parser("env", help="print what a report of a bug needs to say of this machine"))
    return parser


def _add_buffers(parser: argparse.ArgumentParser) -> None:
    parser.description = "Work with what the last commit of a Streaming Memory directory published."
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    ls = commands.add_parser("ls", help="list the buffers", description="List the buffers of a directory.")
    _add_directory(ls)
    ls.set_defaults(command=_list)

    verify = commands.add_parser(
        "verify",
        help="read everything and compare checksums",
        description="Read every entry and compare it with its checksum. Exit status 1 if anything is damaged.",
    )
    _add_directory(verify)
    verify.set_defaults(command=_verify)

    export = commands.add_parser(
        "export",
        help="write the variables to a safetensors file",
        description="Write the variables of a directory to a safetensors file, entry by entry.",
    )
    _add_directory(export)
    export.add_argument("file", metavar="FILE.safetensors", help="the file to write")
    export.add_argument("--force", action="store_true", help="replace the file if it exists")
    export.set_defaults(command=_export)

    load = commands.add_parser(
        "import",
        help="read the variables from a safetensors file",
        description="Read the variables from a safetensors file and commit them, all or none. "
        "The directory must be of a program with the same variables, and no session may have it open.",
    )
    load.add_argument("file", metavar="FILE.safetensors", help="the file to read")
    _add_directory(load)
    load.set_defaults(command=_import)
    _add_archives(commands.add_parser)


def _add_archives(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    push = add_parser(
        "push",
        help="archive the last commit in an object store",
        description="Archive the last commit in an object store: s3://bucket/prefix, gs://..., az://... or file:///... "
        "Rows that it has already are not sent.",
    )
    _add_directory(push)
    push.add_argument("url", metavar="URL", help="where the archive is, or shall be")
    push.add_argument("--codec", choices=("none", "zstd"), default="none", help="compress what it is worth it for")
    push.set_defaults(command=_push)

    pull = add_parser(
        "pull",
        help="fetch an archived commit from an object store",
        description="Make a directory hold an archived commit, all of it or nothing. Rows that it has already are not "
        "fetched. No session may have it open.",
    )
    pull.add_argument("url", metavar="URL", help="where the archive is")
    _add_directory(pull)
    pull.add_argument("--generation", type=_positive, metavar="N", help="which one (default: the last)")
    pull.set_defaults(command=_pull)

    listed = add_parser(
        "generations", help="list what an archive holds", description="List the commits that an archive holds."
    )
    listed.add_argument("url", metavar="URL", help="where the archive is")
    listed.set_defaults(command=_generations)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        'Run a program in several processes of this machine. Its popxl.Ir("popdist") has the replicas of all of them. '
        "If one process fails, the others are ended."
    )
    parser.add_argument("-n", "--processes", type=_positive, required=True, metavar="N", help="number of processes")
    parser.add_argument("--replicas", type=_positive, metavar="R", help="replicas of the whole job (default: N)")
    parser.add_argument("program", metavar="PROGRAM.py", help="the program")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="its arguments")
    parser.set_defaults(command=_run)


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Check a directory, its disk and this machine: one line each, OK, or WARN or FAIL and how to mend it. "
        "Nothing is left in the directory. Exit status 1 if streaming cannot work there at all."
    )
    _add_directory(parser)
    parser.add_argument("--measure", action="store_true", help="also measure how fast the disk is; takes seconds")
    parser.set_defaults(command=_doctor)


def _add_env(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Print versions, devices and environment variables for a report of a bug, without names of users or hosts."
    )
    parser.set_defaults(command=_env)


def _add_estimate(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Execute a program up to the first popxl.Session that it makes, and print what a run will take: bytes per "
        "tier, bytes moved, the bound and the time of a step. Nothing runs and nothing is uploaded. Exit status 1 if "
        "it does not fit, with one change that helps."
    )
    parser.add_argument("--device", metavar="SIZE", help='device memory, such as 2GiB, instead of device_memory="..."')
    parser.add_argument("--host", metavar="SIZE", help="host memory for rows, instead of host_memory=...")
    parser.add_argument("--file", metavar="SIZE", help="space for rows on the disk, instead of what is free there")
    parser.add_argument("--directory", metavar="DIR", help="where the rows lie, instead of streaming_memory=...")
    parser.add_argument("program", metavar="PROGRAM.py", help="the program")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="its arguments")
    parser.set_defaults(command=_estimate)


def _estimate(arguments: argparse.Namespace) -> int:
    from . import estimate

    wanted = estimate.Wanted(arguments.device, arguments.host, arguments.file, arguments.directory)
    return estimate.estimate(arguments.program, arguments.arguments, wanted)


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


def _add_directory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", help='the DIR of streaming_memory="file:DIR"')


def _list(arguments: argparse.Namespace) -> int:
    from . import buffers

    return buffers.list_buffers(arguments.directory)


def _verify(arguments: argparse.Namespace) -> int:
    from . import buffers

    return buffers.verify(arguments.directory)


def _export(arguments: argparse.Namespace) -> int:
    from . import buffers

    return buffers.export(arguments.directory, arguments.file, force=arguments.force)


def _import(arguments: argparse.Namespace) -> int:
    from . import buffers

    return buffers.import_(arguments.file, arguments.directory)


def _push(arguments: argparse.Namespace) -> int:
    from . import archive

    return archive.push(arguments.directory, arguments.url, arguments.codec)


def _pull(arguments: argparse.Namespace) -> int:
    from . import archive

    return archive.pull(arguments.url, arguments.directory, arguments.generation)


def _generations(arguments: argparse.Namespace) -> int:
    from . import archive

    return archive.generations(arguments.url)


def _run(arguments: argparse.Namespace) -> int:
    from . import run

    count = arguments.processes
    return run.run(count, arguments.replicas or count, [arguments.program, *arguments.arguments])


def _doctor(arguments: argparse.Namespace) -> int:
    from . import doctor

    return doctor.doctor(arguments.directory, measure=arguments.measure)


def _env(arguments: argparse.Namespace) -> int:
    from . import env

    del arguments
    return env.show()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: The words after ``popxl``; those of the process if left out.

    Returns:
        The exit status: 0, 1 if something failed, 130 if it was interrupted. Wrong words exit with 2.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that this terminal cannot show is no failure
    arguments = build_parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = arguments.command
    try:
        status = command(arguments)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone. The interpreter flushes stdout once more at exit: give it somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    except (PopxlError, OSError, MemoryError) as error:
        sys.stderr.write(f"popxl: {printable(_one_line(error))}\n")
        return FAILURE


def _one_line(error: BaseException) -> str:
    if isinstance(error, PopxlError):
        return f"{error.fact} Hint: {error.hint}" if error.hint else error.fact
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__

"""Make a dataset folder that every stage reads, or check one; docs/files.md says what lies in it.

A command is a file here: add_arguments(parser) defines its flags; run(args) does the work, prints what came of it and
raises ValueError or OSError with what to do.
"""
import argparse
import sys

from data.prepare import check, coco, critters, folder, voc

COMMANDS = {"check": check, "coco": coco, "critters": critters, "folder": folder, "voc": voc}


def main(words=None):
    parser = argparse.ArgumentParser(
        prog="python -m data.prepare", description=__doc__.splitlines()[0],
        epilog="python -m data.prepare COMMAND --help says what it reads and writes, with examples")
    commands = parser.add_subparsers(dest="command", required=True, metavar=f"{{{','.join(COMMANDS)}}}")
    for name, command in COMMANDS.items():
        summary, _, rest = command.__doc__.partition("\n")
        command.add_arguments(commands.add_parser(name, help=summary.rstrip("."), description=f"{summary}\n{rest}",
                                                  formatter_class=_Formatter))
    args = parser.parse_args(words)
    try:
        COMMANDS[args.command].run(args)
    except (ValueError, OSError, ImportError) as error:
        sys.stdout.flush()                                      # the error is the last line, into a file too
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped. Files that were written are complete: run the same command again")


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action):
        known = action.default is None or action.default is False or action.default == []
        return action.help if known else super()._get_help_string(action)

"""A dataclass becomes a command line: each field is a flag with its help, its source and the limits of its value.

A class of settings may hold `recipes`, {recipe: {field: (value, reason)}}: the defaults that a recipe changes;
`elsewhere`, {flag: script}: flags that the authors' one parser took for every script and that another script has here;
`same`, {flag of elsewhere: flag here}, those of them that mean what this script calls otherwise; `headings`, {heading:
names of flags}, under which --help lists them; `stages`, {script: class of settings}, where an unknown flag is looked
for; and `beyond`, what an error about unknown flags adds, {words} being those flags.
"""
import argparse
import math
import os
import re
import sys
from dataclasses import MISSING, asdict, field, fields
from difflib import get_close_matches

from tools import interrupt, remedies
from tools.files import save_text

OURS = "ours"
MESSAGE_FILE = "STAGE_MESSAGE_FILE"     # names the file in the environment to which a stage that fails writes why


def option(default, help, source=OURS, content=True, **kw):
    """Define a field. kw: choices, least, above, most.

    content=False  the flag changes no number, so a run may resume with another value of it; "where set": its default is
                   what runs did before the flag existed, so only another value than that changes numbers
    """
    return field(default=default, metadata={"help": help, "source": source, "content": content, **kw})


def parse(cls, argv=None, models=None):
    """Read a stage's flags into its settings, an object of cls. Errors end the program.

    argv    list of words; None: the program's own
    models  {name: subclass of cls}: --model chooses one, whose own flags are then known and the others' are not
    """
    settings, ignored = _read(cls, sys.argv[1:] if argv is None else argv, models)
    _say_where(ignored, os.path.basename(sys.argv[0]))
    return settings


def check(cls, models=None):
    """Answer --help and refuse wrong flags, as parse does.

    Stages call it above their import of torch, which takes seconds; their main then parses the flags for use.
    """
    _read(cls, sys.argv[1:], models)


def _read(cls, argv, models):
    """Read flags: the settings, and {flag: the script that has it} of those that the authors' other scripts have."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--recipe", default="voc")
    if models:
        default = cls.__dataclass_fields__["model"].default
        first.add_argument("--model", default=default, choices=tuple(models))
    known, _ = first.parse_known_args([a for a in argv if a not in ("-h", "--help")])
    own, its_own = "of this stage", vars(cls).get("__annotations__", ())
    if models and models[known.model] is not cls:
        own = f"of --model {known.model}"
        its_own = models[known.model].__dataclass_fields__.keys() - cls.__dataclass_fields__
        cls = models[known.model]

    doc = sys.modules[cls.__module__ if "__main__" not in sys.modules else "__main__"].__doc__ or cls.__doc__
    parser = argparse.ArgumentParser(description=doc, allow_abbrev=False, formatter_class=_Formatter)
    values = defaults(cls, known.recipe)
    for heading, under_it in _under_headings(cls, own, its_own).items():
        group = parser.add_argument_group(heading) if under_it else parser
        for f in under_it:
            _add(group, f, *values[f.name], tuple(models) if models and f.name == "model" else None)
    elsewhere = {f"--{name}": script for name, script in getattr(cls, "elsewhere", {}).items() if name not in values}
    for flag in elsewhere:
        parser.add_argument(flag, dest=flag, nargs="*", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    found, unknown = parser.parse_known_args(argv)
    if unknown:
        beyond = getattr(cls, "beyond", "").format(words=" ".join(unknown))
        parser.error(_explained(unknown, models or {}, getattr(known, "model", None), cls) + beyond)
    settings = cls(**{f.name: getattr(found, f.name) for f in fields(cls)})
    for f in fields(cls):
        value = getattr(settings, f.name)
        if isinstance(value, str) and "{name}" in value:
            setattr(settings, f.name, value.replace("{name}", settings.name))
    _check(parser, settings)
    for flag, own in getattr(cls, "same", {}).items():
        given = vars(found).get(f"--{flag}")
        if given and given != [getattr(settings, own)] and not any(w.partition("=")[0] == f"--{own}" for w in argv):
            parser.error(f"--{flag} is a flag of {elsewhere[f'--{flag}']}, here it is --{own}: --{own} {given[0]}")
    return settings, {flag: script for flag, script in elsewhere.items() if flag in vars(found)}


def defaults(cls, recipe="voc"):
    """Resolve a class's defaults for a recipe: {field: (value, source or reason)}. Every recipe starts from voc."""
    values = {f.name: (f.default, f.metadata["source"]) for f in fields(cls)}
    for name in ("voc", recipe):
        for layer in reversed(cls.__mro__):
            changes = vars(layer).get("recipes", {}).get(name, {})
            values.update({flag: change for flag, change in changes.items() if flag in values})
    return values


def flags_of(cls):
    """List the flags of a class of settings, as they are typed; none of None."""
    return {f"--{name.rstrip('_')}" for name in getattr(cls, "__dataclass_fields__", ())}


def split_words(words):
    """Split a command line at --: the words before it, and those after it, which are handed on."""
    end = words.index("--") if "--" in words else len(words)
    return words[:end], words[end + 1:]


def content(settings):
    """Return the settings that change numbers: {field: value}, ready for JSON."""
    known = type(settings).__dataclass_fields__
    kinds = {name: known[name].metadata["content"] for name in known}
    return {name: value for name, value in as_json(settings).items()
            if kinds[name] is True or kinds[name] == "where set" and value != known[name].default}


def as_json(settings):
    """Return all settings, ready for JSON."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(settings).items()}


def changed(settings, *names):
    """Return the flags among `names` whose values are not the recipe's own, as words of a command line."""
    own = defaults(type(settings), settings.recipe)
    return [word for name in names if getattr(settings, name) != own[name][0]
            for word in (f"--{name}", str(getattr(settings, name)))]


def _under_headings(cls, own, its_own):
    """List a class's fields by the headings of --help, the names `its_own` first, under `own`: {heading: [field]}."""
    headings = getattr(cls, "headings", {})
    heading_of = {name: heading for heading, names in headings.items() for name in names}
    found = {own: [], **{heading: [] for heading in headings}, "run": []}
    for f in fields(cls):
        found[heading_of.get(f.name) or (own if f.name in its_own else "run")].append(f)
    return found


def _add(parser, f, default, source, choices):
    kind, meta = f.type, f.metadata
    required = default is MISSING
    shown = "" if required or default is False or default in ("", ()) else f"default {_words(default)}; "
    text = f"{meta['help']} ({shown}{source})".replace("%", "%%")
    if kind is bool:
        parser.add_argument(_flag(f), action="store_true", default=default, help=text)
        return
    choices = choices or meta.get("choices")
    extra = {"choices": choices} if choices else {"metavar": f.name.upper()}
    if getattr(kind, "__origin__", None) is tuple:
        args = kind.__args__
        extra.update(nargs="+" if Ellipsis in args else len(args), action=_Tuple)
        kind = args[0]
    parser.add_argument(_flag(f), dest=f.name, type=kind, default=None if required else default, required=required,
                        help=text, **extra)


def _flag(f):
    """Name a field's flag: Python keeps the word `from` for itself, so that field is from_."""
    return f"--{f.name.rstrip('_')}"


def _explained(unknown, models, model, cls):
    """Say what is wrong with flags that a stage does not have: another model's, another stage's, or nobody's."""
    for word in unknown:
        flag = word.partition("=")[0]
        owners = [name for name, cls in models.items() if flag in map(_flag, fields(cls))]
        if owners:
            return f"{flag} is a flag of --model {' and '.join(owners)}, not of {model}"
    stages, meant = getattr(cls, "stages", {}), []
    for flag in (word.partition("=")[0] for word in unknown if word.startswith("--")):
        if close := get_close_matches(flag, flags_of(cls), 1, 0.8):
            meant.append(f"{flag}: did you mean {close[0]}?")
        elif scripts := [script for script, other in stages.items() if flag in flags_of(other)]:
            meant.append(f"{flag} is a flag of {' and '.join(scripts)}")
    return "; ".join([f"unrecognized arguments: {' '.join(unknown)}", *meant])


def _say_where(ignored, script):
    """Say in one line which of the given flags are ignored, and which scripts have them: {flag: script}."""
    distributed = sys.modules.get("tools.distributed")      # a stage that did not import it is one process
    if not ignored or distributed and not distributed.is_first():
        return
    places = [(", ".join(flag for flag in ignored if ignored[flag] == place), place)
              for place in dict.fromkeys(ignored.values())]
    print(f"{script} ignores " + " and ".join(f"{names} (of {place})" for names, place in places)
          + ": the authors' scripts shared their flags, here each has its own", flush=True)


def _check(parser, settings):
    """Refuse values that make no sense, in the words of the flag."""
    for f in fields(settings):
        value, least = getattr(settings, f.name), f.metadata.get("least")
        for v in value if isinstance(value, tuple) else (value,):
            if isinstance(v, float) and not math.isfinite(v):
                parser.error(f"--{f.name}: must be a finite number, not {v}")
            if isinstance(v, int) and v > 2**32:
                parser.error(f"--{f.name}: {v} is too large")
            if least is not None and v < least:
                parser.error(f"--{f.name}: must be at least {least}, not {v}")
            if "above" in f.metadata and not v > f.metadata["above"]:
                parser.error(f"--{f.name}: must be above {f.metadata['above']}, not {v}")
            if v > f.metadata.get("most", v):
                parser.error(f"--{f.name}: must be at most {f.metadata['most']}, not {v}")
    optional = type(settings).__dataclass_fields__["name"].default == ""
    if not re.fullmatch(r"[\w-][\w.-]*", settings.name) and not (optional and not settings.name):
        parser.error(f"--name: letters, digits, _ - . and no leading dot, not {settings.name!r}")
    part = re.fullmatch(r"(\d{1,6})/(\d{1,6})", getattr(settings, "shard", "1/1"))
    if not part or not 0 <= int(part[1]) <= int(part[2]) or part[2] == "0" * len(part[2]):
        parser.error(f"--shard: I/N with I from 1 to N, as 2/8, not {settings.shard!r}")
    if hasattr(settings, "low") and settings.low >= settings.high:
        parser.error(f"--low {settings.low:g} must be below --high {settings.high:g}: the larger alpha leaves less "
                     "background")
    for name in ("resize", "scale"):
        low, high = getattr(settings, name, (0, 0))
        if low > high:
            parser.error(f"--{name}: the first must not be larger than the second: {low} {high}")


def _words(value):
    values = value if isinstance(value, tuple) else (value,)
    return " ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)


class _Tuple(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, tuple(values))


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog):
        super().__init__(prog, max_help_position=28, width=110)


def run(main):
    """Call a stage's main; print an error that a person can fix without its traceback, and exit with 1."""
    try:
        _call(main)
    except SystemExit as leaving:
        _end(main, leaving.code)
        raise
    _end(main, 0)


def _end(main, code):
    distributed = sys.modules.get("tools.distributed")      # a stage that did not import it is one process
    if distributed and main.__module__ == "__main__":
        distributed.end(code)


def _call(main):
    try:
        main()
    except KeyboardInterrupt:
        interrupt.end_bars()
        sys.exit("stopped: run the same command to resume")
    except Exception as error:
        interrupt.end_bars()
        message = _message(error)
        if told := os.environ.get(MESSAGE_FILE):
            save_text(told, message or f"{type(error).__name__}: {error}")
        if "--traceback" in sys.argv or message is None:
            raise
        sys.exit(f"error: {message}")


def _message(error):
    """Put an error that a person can fix in words; None for one in the program."""
    if isinstance(error, RuntimeError | MemoryError | OSError) and (words := remedies.remedy(error)):
        return words
    if isinstance(error, ValueError | OSError | ImportError):
        # A loader's process sends its whole traceback as the message; its last line is the error.
        lines = str(error).strip().splitlines() if "DataLoader worker" in str(error) else [str(error)]
        return lines[-1] or type(error).__name__
    return None

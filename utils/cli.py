"""What every script's command line shares: recipes in YAML, settings printed first, mistakes told in one line."""

from __future__ import annotations  # check_environment.py must start on an older Python to say that it is too old

import argparse
import difflib
import gc
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

logger = logging.getLogger(__name__)


class UserError(Exception):
    """Something the user can mend. The message names the flag, file or row, the value found, and what to do."""


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """The docstring as written, and the default of every flag that has one."""

    def _get_default_metavar_for_optional(self, action):
        """Of what kind a value is; argparse would say the flag's name again."""
        kinds = {int: "N", float: "X", Path: "PATH", None: "TEXT", mapped: "TEXT"}
        return kinds.get(action.type, "N" if "number" in (action.type.__doc__ or "") else "X")

    def _get_help_string(self, action):
        if (
            any(action.default is none for none in (None, False, argparse.SUPPRESS))
            or action.default == []
            or "default" in (action.help or "")
        ):
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Reports a mistake in one line; argparse would put the usage of some forty flags before it."""

    recipe_keys: frozenset[str] = frozenset()  # the settings that came from --config

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}; see --help\n")


def counted(number: int, noun: str) -> str:
    """`1 pair`, `2,000 pairs`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def mapped(word: str) -> str:
    """The type of a list of words that a recipe may write as keys with values: `clip: folder` is `clip=folder`."""
    return word


def make_parser(doc: str) -> Parser:
    """A parser with the flags that every script has. Flags can't be abbreviated, so a new one never changes an old."""
    usage = "%(prog)s [--flag value ...]"  # argparse would list every flag twice
    parser = Parser(description=doc, usage=usage, formatter_class=HelpFormatter, allow_abbrev=False)
    parser._negative_number_matcher = re.compile(r"-\.?\d")  # -1/2 and -1e-4 are values too, of which a flag can speak
    group = parser.add_argument_group("every script")
    group.add_argument("--config", type=Path, metavar="RECIPE.yaml", help="settings from a file; flags given here win")
    group.add_argument("--dry_run", action="store_true", help="say what would be done, and stop before any work")
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


class _Refused(argparse.Action):
    """A flag of a diffusers example that has no place here: `const` says why."""

    def __call__(self, parser, namespace, values, option_string=None):
        parser.error(f"{option_string}: {self.const}")


def add_refused_flags(parser: argparse.ArgumentParser, reasons: dict[str, str]) -> None:
    """Flags that a command line for diffusers may have; each is an error that says what to do in its place."""
    for name, why in reasons.items():
        options = {"nargs": "?", "const": why, "dest": argparse.SUPPRESS, "default": argparse.SUPPRESS}
        parser.add_argument(f"--{name}", action=_Refused, help=argparse.SUPPRESS, **options)


def read_recipe(path: Path, parser: argparse.ArgumentParser) -> dict:
    """The settings in a YAML file, its `${other_key}` and `${oc.env:NAME}` resolved; an unknown key is an error."""
    from omegaconf import OmegaConf  # here: check_environment.py must start where packages are missing
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        recipe = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except OSError as error:
        raise UserError(
            f"--config {path}: {error.strerror or 'holds no settings'}; give the path of a YAML file"
        ) from None
    except (YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise UserError(f"--config {path}: {' '.join(str(error).split())}") from None
    if not isinstance(recipe, dict):
        raise UserError(f"--config {path}: expected lines of `flag: value`, found a {type(recipe).__name__}")
    known = {action.dest for action in parser._actions} - {"help", "config"}
    for key in recipe:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean `{near[0]}`?" if near else "; a key is a flag's name, see --help"
            raise UserError(f"--config {path}: unknown key `{key}`{hint}")
    return recipe


def _as_words(action: argparse.Action, value) -> list[str]:
    """One key of a recipe as command-line words; a ValueError says why the flag does not take the value."""
    key, flag = action.dest, action.option_strings[0]
    if value is None:
        if action.default is not None:
            raise ValueError(f"`{key}` has no value; give one or remove the line")
        return []
    if isinstance(value, bool):
        if action.nargs != 0:
            raise ValueError(f"`{key}: {value}` is not a value that {flag} takes")
        negative = [option for option in action.option_strings if option.startswith("--no-")]
        return [flag] if value else negative[:1]
    if action.nargs == 0:
        raise ValueError(f"`{key}: {value}` must be true or false")
    if (
        isinstance(value, dict)
        and action.type is mapped
        and not any(isinstance(v, (dict, list)) for v in value.values())
    ):
        return [flag, *(f"{name}={one}" for name, one in value.items())]
    if isinstance(value, dict):
        raise ValueError(f"`{key}` holds nested keys; {flag} takes plain values")
    if not isinstance(value, list):
        return [f"{flag}={value}"]
    repeated = isinstance(action, argparse._AppendAction)
    if action.nargs is None and not repeated:
        raise ValueError(f"`{key}` is a list; {flag} takes one value")
    return [f"{flag}={word}" for word in value] if repeated else [flag, *map(str, value)]


def recipe_to_argv(recipe: dict, parser: argparse.ArgumentParser, given: set[str], path: Path) -> list[str]:
    """A recipe as command-line words, each checked for type and choice; `given` flags are left out."""

    def refuse(message):
        raise ValueError(message)

    argv = []
    for action in parser._actions:
        if action.dest in recipe and not given.intersection(action.option_strings):
            alone = argparse.ArgumentParser(add_help=False)  # so that what is wrong is known to be the recipe's
            alone._add_action(action)
            alone.error = refuse
            try:
                words = _as_words(action, recipe[action.dest])
                alone.parse_args(words)
            except ValueError as error:
                raise UserError(f"--config {path}: {error}") from None
            argv += words
    return argv


def parse_args(parser: Parser, argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; with --config, on top of that file's settings."""
    if argv is None:  # a script's own start
        gc.freeze()  # what was imported stays: to look at it again, at the exit above all, takes more than a second
        argv = sys.argv[1:]
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    peek.add_argument("--config", type=Path)
    path = peek.parse_known_args(argv)[0].config
    if path is None:
        return parser.parse_args(argv)
    try:
        given = {word.partition("=")[0] for word in argv if word.startswith("--")}
        recipe = read_recipe(path, parser)
        words = recipe_to_argv(recipe, parser, given, path)
        parser.recipe_keys = frozenset(
            action.dest for action in parser._actions if action.dest in recipe and not given & {*action.option_strings}
        )
    except UserError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    return parser.parse_args(words + argv)


def report_ignored(parser: Parser, args: argparse.Namespace, needs: dict[str, tuple[str, bool]]) -> None:
    """Refuse a flag that does nothing without another; from a recipe, which may serve several commands, only warn.

    `needs`: {flag: (what it needs, whether that is there)}. A flag that has its default value is not looked at.
    """
    for name, (needed, is_there) in needs.items():
        value = getattr(args, name)
        if is_there or value == parser.get_default(name):
            continue
        if name in parser.recipe_keys:
            logger.warning("--config: `%s: %s` does nothing without %s", name, value, needed)
        else:
            parser.error(f"--{name} {value}: does nothing without {needed}; add that, or leave --{name} out")


def settings_of(args: argparse.Namespace) -> dict:
    """What was resolved, in types that YAML has; --config reads it back."""

    def plain(value):
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        # A literal ${ would be resolved on reading back.
        return str(value).replace("${", "\\${") if isinstance(value, (Path, str)) else value

    hidden = ("config", "debug", "dry_run")
    return {key: plain(value) for key, value in vars(args).items() if key not in hidden}


def show_settings(args: argparse.Namespace) -> None:
    import yaml

    print("# settings")
    print(yaml.safe_dump(settings_of(args), sort_keys=False, allow_unicode=True, width=1000), flush=True)


def progress(shown: bool = True) -> dict:
    """How a tqdm bar is drawn: often on a terminal, and every ten seconds into a file, where each is a line's worth."""
    return {"disable": not shown, "mininterval": 0.2 if sys.stderr.isatty() else 10}


def close_process_group() -> None:
    """Part from the other processes of `accelerate launch`, as NCCL wants it; without torch there are none."""
    distributed = sys.modules.get("torch.distributed")
    if distributed and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def is_news(record: logging.LogRecord) -> bool:
    """False where transformers says that torchvision is missing: what it falls back to is what is wanted.

    diffusers' pipelines ask it for image processors that no script here uses.
    """
    return "requires torchvision (not installed); falling back" not in str(record.msg)


def run(main: Callable[[argparse.Namespace], int | None], args: argparse.Namespace) -> None:
    """Call main and exit with its code; a user's mistake or a failing disk is one line, with --debug a traceback."""
    name = os.path.basename(sys.argv[0])
    logging.getLogger("transformers.utils.import_utils").addFilter(is_news)
    try:
        code = main(args)
    except KeyboardInterrupt:
        print(f"{name}: stopped by the keyboard", file=sys.stderr)
        code = 130
    except (UserError, OSError) as error:
        if args.debug:
            traceback.print_exc()
        print(f"{name}: error: {' '.join(str(error).split())}", file=sys.stderr)
        code = 1
    else:  # after an error another process may still wait for this one, and the launcher ends it
        close_process_group()
    sys.exit(code or 0)

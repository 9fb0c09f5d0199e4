"""What the command lines of all scripts share: recipes in YAML, types of values, printed settings, one-line errors."""

from __future__ import annotations  # check_environment.py must start on an older Python to say that it is too old

import argparse
import atexit
import contextlib
import difflib
import errno
import gc
import hashlib
import io
import json
import logging
import os
import re
import signal
import stat
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

logger = logging.getLogger(__name__)


MOST_OF_A_RECIPE, DEPTH_OF_A_RECIPE = 1 << 20, 20  # bytes, levels


class UserError(Exception):
    """A mistake that the user can correct. The message names the flag, file or row, the value, and what to do."""


def is_remote(name: str) -> bool:
    """Whether it names what lies in a bucket (utils/storage.py), and not a file or folder here."""
    return re.match(r"(s3|gs|gcs)://", name) is not None


def counted(number: int, noun: str) -> str:
    """`1 pair`, `2,000 pairs`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def spell_flag(name: str, value: object) -> str:
    """`--rank 8`; of a switch the name alone, as it is typed."""
    return f"--{name}" if value is True else f"--{name} {value}"


def name_some(names: Sequence[str], most: int = 8) -> str:
    """The first names, and how many there are besides: `a, b and 3 more`."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


# Secrets, which no message, record or card may show

MASK = "***"
ENV_FILES = (Path(".env"), Path(__file__).resolve().parent.parent / ".env")  # the first one wins
_TOKEN = r"(?<!train_)(?<!initializer_)(?<!style_)token"  # those are words to be learnt, and a manner of speaking
_SECRET = rf"(?:{_TOKEN}|password|passwd|secret|api[_-]?key|access[_-]?key(?:[_-]?id)?)"
# The end of a name decides: max_tokens and tokenizer_name are not secrets.
_SECRET_NAME = re.compile(rf"(?:^|[\W_]){_SECRET}$", re.IGNORECASE)
_SECRET_TEXT = (
    # `--hub_token x` and `HF_TOKEN=x`, but not a prompt with a secret garden in it.
    re.compile(rf"(--(?:\w+[_-])*{_SECRET}(?:=| +(?!-)))('[^']*'|\"[^\"]*\"|\S+)", re.IGNORECASE),
    re.compile(rf"(\b(?:\w+_)?{_SECRET}=)('[^']*'|\"[^\"]*\"|\S+)", re.IGNORECASE),
    re.compile(r"(\w://)[^/\s@]+(?=@)"),
    # By their shape: of Hugging Face, OpenAI, GitHub, GitLab, Slack, AWS, Google, and a JSON Web Token.
    re.compile(r"()\b(?:hf_|sk-|gh[pousr]_|github_pat_|glpat-|xox[abp]-|AKIA|AIza|eyJ[\w-]+\.)[\w-]{16,}"),
)
_MARK = "from_the_environment_"
_LONG = 8  # characters of a value that is hidden wherever it stands; a shorter one may be any word
# What the recipe took from the environment: {value: its interpolation}; any message may hold it.
_from_environment: dict[str, str] = {}


def _hidden_values() -> dict[str, str]:
    """What stands in place of a value of the environment: of one that a recipe took, or whose name is a secret's."""
    secret = (value for name, value in os.environ.items() if _SECRET_NAME.search(name) or name.endswith("_KEY"))
    return {value: MASK for value in secret if len(value) >= _LONG} | _from_environment


def mask_text(text: str) -> str:
    """A message, command or address without its secrets: *** for each, ${oc.env:NAME} for what a recipe took there."""
    for value, instead in sorted(_hidden_values().items(), key=lambda one: -len(one[0])):
        place = re.escape(value) if len(value) >= _LONG else rf"(?<!\w){re.escape(value)}(?!\w)"
        text = re.sub(place, lambda _: instead, text)  # noqa: B023
    for pattern in _SECRET_TEXT:
        text = pattern.sub(rf"\1{MASK}", text)
    return text


def mask_secrets(value: Any, name: str = "") -> Any:
    """Settings of any depth with *** for each value whose name is that of a secret; empty values stay."""
    if isinstance(value, dict):
        return {key: mask_secrets(item, str(key)) for key, item in value.items()}
    if value and _SECRET_NAME.search(name):
        return MASK
    if isinstance(value, (list, tuple)):
        return [mask_secrets(item, name) for item in value]
    return mask_text(value) if isinstance(value, str) else value


def read_env_file(path: Path) -> None:
    """Set the variables of a .env file, if there is one, that are not set yet. An error shows nothing of its text."""
    if not (text := _read_env_text(path)):
        return
    try:
        from dotenv import load_dotenv, parser  # here: check_environment.py must start where packages are missing
    except ModuleNotFoundError:
        logger.warning("%s is not read: the package python-dotenv is missing; run check_environment.py", path)
        return
    for line in parser.parse_stream(io.StringIO(text)):
        is_named = re.fullmatch(r"[A-Za-z_]\w*", line.key or "_", re.ASCII)
        if line.error or not is_named or (line.key and line.value is None) or "\0" in (line.value or ""):
            written = line.original.string  # with the blank lines before it
            number = line.original.line + written[: -len(written.lstrip())].count("\n")
            raise UserError(f"{path}, line {number}: expected NAME=value; a quote needs its second one")
    load_dotenv(stream=io.StringIO(text))


def _read_env_text(path: Path) -> str:
    """The text of a .env file; empty where there is none, or a virtual environment of that name."""
    try:
        if not path.is_file():
            return ""
        if path.stat().st_size > MOST_OF_A_RECIPE:
            raise OSError(errno.EFBIG, f"has more than {MOST_OF_A_RECIPE:,} bytes")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is no UTF-8 text"
        raise UserError(f"{path}: {reason}; expected lines of NAME=value") from None


# Types of values, for add_argument(type=...)


@dataclass(frozen=True)
class Range:
    """A type for the numbers from `low` to `high`; with `above` or `below` that end itself is refused too."""

    low: float
    high: float
    kind: type = float
    above: bool = False
    below: bool = False
    hint: str = ""

    def __call__(self, text: str) -> Any:
        with contextlib.suppress(ValueError):
            value = self.kind(text)
            refused = (self.above and value == self.low) or (self.below and value == self.high)
            if self.low <= value <= self.high and not refused:
                return value
        what = "a whole number" if self.kind is int else "a number"
        ends = f"{self.low:,} to {self.high:,}"
        if self.above or self.below:
            low = f"above {self.low:,}" if self.above else f"{self.low:,} or more"
            ends = f"{low}, {'below' if self.below else 'at most'} {self.high:,}"
        raise argparse.ArgumentTypeError(f"{text[:40]}: expected {what}, {ends}{self.hint}")


MANY = 10**9  # the end of what has none of its own: steps, images
positive = Range(1, MANY, int)
zero_or_more = Range(0, MANY, int)
share = Range(0, 1, hint=", such as 0.05 for 5 %")
seed_number = Range(0, 2**32 - 1, int)  # what every random generator accepts
workers = Range(1, 256, int)  # processes, each of some 100 MB, or threads
pixels = Range(16, 4096, int)  # a side
at_once = Range(1, 4096, int)  # images in the memory
learning_rate = Range(0, 100, above=True)


def batch_size(text: str) -> int | str:
    """A number of images at once, or `auto`."""
    try:
        return text if text == "auto" else at_once(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, or auto") from None


def read_path(text: str) -> Path:
    """Any path but an empty one, which would be the folder that the script is started in."""
    if is_remote(text):
        raise argparse.ArgumentTypeError(f"{text}: expected a file or folder here; this flag reads none from a bucket")
    if not text.strip():
        raise argparse.ArgumentTypeError("an empty path; name a file or folder, or leave the flag out")
    try:
        os.stat(text)  # not Path.resolve, which follows such a link without a word from Python 3.13 on
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise argparse.ArgumentTypeError(f"{text}: a link that leads to itself; name another place") from None
    return Path(text)


def read_place(text: str) -> Path | str:
    """A path, or the name of what lies in a bucket (utils.storage.fetch), which is none."""
    return text if is_remote(text) else read_path(text)


def mapped(word: str) -> str:
    """A word of a list that a recipe may also write as keys with values: `clip: folder` is the word `clip=folder`."""
    return word


# Copies of what lies in a bucket: {(flag, path of the copy): the name that the flag gave}

_copies: dict[tuple[str, str], str] = {}


def note_copy(flag: str, copy: Path, name: str) -> None:
    """From now on an error about the copy names what the user gave (see `name_copies`)."""
    _copies[flag, str(copy)] = name


def name_copies(message: str) -> str:
    """A message where a copy's path after its flag is what the user gave, and any other one is explained at the end."""
    for (flag, copy), name in _copies.items():
        message = message.replace(f"{flag} {copy}", f"{flag} {name}")
    named = {copy: name for (_, copy), name in _copies.items() if copy in message}
    return message + "".join(
        f" ({copy} is a copy of {name}: removed, it is fetched anew)" for copy, name in named.items()
    )


# The parser


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Prints the docstring as written, and the default of every flag that has one."""

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        """The kind of value; argparse would repeat the flag's name."""
        if action.type is batch_size or (isinstance(action.type, Range) and action.type.kind is int):
            return "N"
        if action.type is Path:
            return "PATH"
        return "TEXT" if action.type in (None, mapped) else "X"

    def _get_help_string(self, action: argparse.Action) -> str | None:
        has_no_default = action.default in (None, [], argparse.SUPPRESS) or action.default is False
        if has_no_default or "default" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


def _words(name: str) -> set[str]:
    return set(re.split("[-_]+", name.strip("-")))


def suggest(word: str, known: Iterable[str]) -> str:
    """The known name that is spelled most like the word, or else the shortest that has all of its parts.

    With the number of the word, if it has one: for int4 nf4 is near enough, and int8 is not meant.
    """
    number = re.findall(r"\d+", word)
    known = [one for one in known if not number or number == re.findall(r"\d+", one)]
    spelled, cutoff = [one.replace("-", "_") for one in known], 0.5 if number else 0.6
    near = difflib.get_close_matches(word.replace("-", "_"), spelled, n=1, cutoff=cutoff)
    found = [one for one in known if one.replace("-", "_") in near]
    found += sorted((one for one in known if _words(word) <= _words(one)), key=len)
    return f"; did you mean `{found[0]}`?" if found else ""


def _hint(message: str, flags: list[str]) -> str:
    """What was probably meant by flags that do not exist, a value that is no choice, or words without quotes."""
    if choice := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message):
        return suggest(choice[1], re.findall(r"[\w.+-]+", choice[2]))
    if not (unknown := re.fullmatch(r"unrecognized arguments: (.*)", message, re.DOTALL)):
        return ""
    names = [word.partition("=")[0] for word in unknown[1].split() if word.startswith("-")]
    return "".join(suggest(name, flags) for name in names) if names else "; a value with blanks needs quotes"


def _name_value(message: str) -> str:
    """`argument --rank: 0: expected …` as `--rank 0: expected …`."""
    return re.sub(r"^argument (--[\w-]+): (?=[^:]*(://[^:]*)?: expected )", r"\1 ", message)


class Parser(argparse.ArgumentParser):
    """Reports a mistake in one line; argparse would print the usage of some forty flags before it."""

    recipe_keys: frozenset[str] = frozenset()  # the settings that came from --config

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.register("type", Path, read_path)

    def error(self, message: str) -> NoReturn:
        meant = [one for one in self._actions if not isinstance(one, _Refused)]
        flags = [word for one in meant for word in one.option_strings]
        said = f"{self.prog}: error: {mask_text(_name_value(message))}{_hint(message, flags)}; see --help"
        report_fault(said)
        sys.exit(2)


def make_parser(doc: str) -> Parser:
    """A parser with the flags that every script has; a script that is started on native Windows ends here."""
    if sys.platform == "win32":  # no fcntl, and so no locks that end with their process
        sys.exit(f"{os.path.basename(sys.argv[0])}: error: native Windows is not supported; run it in WSL 2")
    usage = "%(prog)s [--flag value ...]"  # argparse would list every flag twice
    # Without abbreviations: a new flag can then never change what an old command line means.
    parser = Parser(description=doc, usage=usage, formatter_class=HelpFormatter, allow_abbrev=False)
    parser._negative_number_matcher = re.compile(r"-\.?\d")  # so that -1/2 and -1e-4 are values, not flags
    group = parser.add_argument_group("every script")
    group.add_argument(
        "--config", type=Path, metavar="RECIPE.yaml", help="settings from a file; command-line flags take precedence"
    )
    group.add_argument("--dry_run", action="store_true", help="report what would be done, and stop before any work")
    group.add_argument("--verbose", action="store_true", help="show all settings, and what the libraries log")
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


class _Refused(argparse.Action):
    """A flag of a diffusers example that is not supported here: `const` says why."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        parser.error(f"{self.option_strings[0]}: {self.const}")


def add_refused_flags(parser: argparse.ArgumentParser, reasons: dict[str, str]) -> None:
    """Flags that a command line for diffusers may have; each is an error that says what to do instead."""
    hide: dict[str, Any] = dict.fromkeys(("dest", "default", "help"), argparse.SUPPRESS)
    for name, why in reasons.items():
        parser.add_argument(f"--{name}", action=_Refused, nargs="?", const=why, **hide)


# Recipes

RECORDED = re.compile(
    r"precision|num_utterances|\w+_sha256"
)  # what config.yaml holds besides settings, to compare a later run with


def _resolve(recipe: Any) -> tuple[Any, Any]:
    """The recipe with every interpolation resolved, and once more with those of the environment as they are written."""
    from omegaconf import OmegaConf
    from omegaconf.resolvers import oc

    def write_back(name: str, *default: Any) -> Any:
        if name not in os.environ:
            return oc.env(name, *default)
        if len(os.environ[name]) >= _LONG or (os.environ[name] and _SECRET_NAME.search(name)):
            _from_environment[os.environ[name]] = f"${{oc.env:{name}}}"
        return f"{_MARK}{name.encode().hex()}_"  # a word, since ${oc.decode:…} may read it

    resolved = OmegaConf.to_container(recipe, resolve=True)
    OmegaConf.register_resolver("oc.env", write_back, replace=True)
    try:
        return resolved, OmegaConf.to_container(recipe, resolve=True)
    finally:
        OmegaConf.register_resolver("oc.env", oc.env, replace=True)


def refuse_deep(text: str) -> None:
    """YAMLError where settings have too many levels, by which libyaml would end the process."""
    import yaml

    depth = 0
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEPTH_OF_A_RECIPE:
            raise yaml.YAMLError("nested too deeply")


def read_recipe(path: Path, parser: argparse.ArgumentParser) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings in a YAML file, with `${other_key}` and `${oc.env:NAME}` resolved; an unknown key is an error.

    Also those of them that came from the environment, as `_resolve` writes them.
    """
    from omegaconf import OmegaConf  # here: check_environment.py must start where packages are missing
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        if path.exists() and not (path.is_file() and path.stat().st_size <= MOST_OF_A_RECIPE):
            raise OSError(0, f"is no file of at most {MOST_OF_A_RECIPE:,} bytes")
        text = path.read_text(encoding="utf-8")
        refuse_deep(text)
        recipe, written = _resolve(OmegaConf.load(io.StringIO(text)))
    except OSError as error:
        reason = error.strerror or "holds no settings"
        raise UserError(f"--config {path}: {reason}; give the path of a YAML file") from None
    except (YAMLError, UnicodeDecodeError, OmegaConfBaseException, RecursionError) as error:
        raise UserError(f"--config {path}: {' '.join(str(error).split())[:500]}") from None
    if not isinstance(recipe, dict):
        raise UserError(f"--config {path}: expected lines of `flag: value`, found a {type(recipe).__name__}")
    known = {action.dest for action in parser._actions} - {"help", "config"}
    if any(str(key).endswith("_sha256") for key in recipe.keys() - known):  # a config.yaml that a script wrote
        recipe = {key: value for key, value in recipe.items() if key in known or not RECORDED.fullmatch(str(key))}
    for key in map(str, recipe):
        if key not in known:
            hint = suggest(key, known) or "; a key is a flag's name, see --help"
            raise UserError(f"--config {path}: unknown key `{key}`{hint}")
        if isinstance(recipe[key], bool) and f"use_{key}" in known:  # as some keys were called in earlier versions
            what = f"`{key}: {recipe[key]}` is not valid; to switch it on or off, use `use_{key}`"
            raise UserError(f"--config {path}: {what}")
    interpolated = {str(key): written[key] for key, value in recipe.items() if value != written[key]}
    return {str(key): value for key, value in recipe.items()}, interpolated


def _as_words(action: argparse.Action, value: Any) -> list[str]:
    """One key of a recipe as command-line words; a ValueError says why the flag does not accept the value."""
    key, flag = action.dest, action.option_strings[0]
    if value == [] and not action.default:
        return []
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
    if isinstance(value, dict):
        if action.type is not mapped or any(isinstance(one, (dict, list)) for one in value.values()):
            raise ValueError(f"`{key}` holds nested keys; {flag} takes plain values")
        return [flag, *(f"{name}={one}" for name, one in value.items())]
    if not isinstance(value, list):
        return [f"{flag}={value}"]
    if nested := next((one for one in value if isinstance(one, dict)), None):
        name, inner = next(iter(nested.items()))
        raise ValueError(f"`{key}` holds `{name}: {inner}`, a nested key; write {name}:{inner}, without the blank")
    repeated = isinstance(action, argparse._AppendAction)
    if action.nargs is None and not repeated:
        raise ValueError(f"`{key}` is a list; {flag} takes one value")
    return [f"{flag}={word}" for word in value] if repeated else [flag, *map(str, value)]


class _RecipeParser(Parser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(_name_value(message) + _hint(message, []))


def recipe_to_argv(recipe: dict[str, Any], actions: list[argparse.Action], path: Path) -> list[str]:
    """The recipe's values of these flags as command-line words, each checked for type and choice."""
    argv = []
    for action in actions:
        single = _RecipeParser(add_help=False)  # one flag by itself, so that an error is known to be the recipe's
        single._add_action(action)
        try:
            words = _as_words(action, recipe[action.dest])
            single.parse_args(words)
        except ValueError as error:
            raise UserError(f"--config {path}: {error}") from None
        argv += words
    return argv


class Settings(argparse.Namespace):
    """The values of a script's flags; vars() leaves out what is said of them in the slots."""

    __slots__ = ("given", "interpolated", "recipe_keys")
    given: set[str]  # by the command line or a recipe, other than the default: a script settles some flags itself
    interpolated: dict[str, Any]
    recipe_keys: frozenset[str]  # that came from --config


def start_script() -> list[str]:
    """The words of the command line, at the start of a script."""
    gc.freeze()  # what is imported stays in memory: collecting it again, at exit above all, takes over a second
    ignore_closed_pipes()
    if type(sys.stdout) is io.TextIOWrapper:  # also in a file or pipe, an error stands after what was printed before it
        sys.stdout.reconfigure(line_buffering=True)
    leave_warnings_to_main()
    return sys.argv[1:]


OF_ONE_PROCESS = {"of_one_process": True}  # `extra` of a warning that each process gives by itself


def leave_warnings_to_main() -> None:
    """In a process beside the first, show no warning but those of its own: all find the same in flags and data."""
    if os.environ.get("RANK", "0") != "0" and logging.lastResort:
        logging.lastResort.addFilter(
            lambda record: record.levelno > logging.WARNING or hasattr(record, "of_one_process")
        )


def parse_args(parser: Parser, argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; with --config, on top of that file's settings."""
    argv = start_script() if argv is None else argv
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    peek.add_argument("--config", type=Path)
    path = peek.parse_known_args(argv)[0].config
    _from_environment.clear()
    if path is None:
        return _parse_given(parser, argv, {})
    given = {word.partition("=")[0] for word in argv if word.startswith("--")}
    try:
        recipe, interpolated = read_recipe(path, parser)
        actions = [one for one in parser._actions if one.dest in recipe and not given & {*one.option_strings}]
        words = recipe_to_argv(recipe, actions, path)
    except UserError as error:
        parser.exit(2, f"{parser.prog}: error: {mask_text(str(error))}\n")
    parser.recipe_keys = frozenset(action.dest for action in actions)
    kept = {key: value for key, value in interpolated.items() if key in parser.recipe_keys}
    return _parse_given(parser, words + argv, kept)


def _parse_given(parser: Parser, words: list[str], interpolated: dict[str, Any]) -> Settings:
    args = parser.parse_args(words, Settings())
    args.given = {key for key, value in vars(args).items() if value != parser.get_default(key)}
    args.interpolated = interpolated
    args.recipe_keys = parser.recipe_keys
    return args


def report_ignored(parser: Parser, args: argparse.Namespace, needs: dict[str, tuple[str, bool]]) -> None:
    """Refuse a flag that does nothing without another one; from a recipe, which may serve several scripts, only warn.

    `needs`: {flag: (what it needs, whether that is given)}. A flag at its default value is not checked.
    """
    for name, (needed, is_given) in needs.items():
        value = getattr(args, name)
        if is_given or value == parser.get_default(name):
            continue
        if name in parser.recipe_keys:
            logger.warning("--config: `%s: %s` does nothing without %s", name, value, needed)
        else:
            shown = "" if value is True else f" {' '.join(map(str, value)) if isinstance(value, list) else value}"
            parser.error(f"--{name}{shown}: does nothing without {needed}; add that, or leave --{name} out")


# Settings and the start of a script

COMMON = ("config", "verbose", "debug", "dry_run")  # flags of every script, which are no settings
ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room, then give the same command again"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "give a place that this user can write and read"),
    errno.ENAMETOOLONG: "give a shorter name",
}


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """The settings in types that YAML has; --config can read them back.

    What a recipe took from the environment is an interpolation again, with a checksum too short to guess it from.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        if not isinstance(value, (Path, str)):
            return value
        text = str(value).replace("${", "\\${")  # a literal ${ would be resolved on reading back
        return re.sub(rf"{_MARK}([0-9a-f]+)_", lambda name: f"${{oc.env:{bytes.fromhex(name[1]).decode()}}}", text)

    settings = {key: value for key, value in vars(args).items() if key not in COMMON}
    written = {key: value for key, value in args.interpolated.items() if key in settings}
    sums = {f"{key}_sha256": hashlib.sha256(str(settings[key]).encode()).hexdigest()[:4] for key in written}
    return mask_secrets(plain(settings | written)) | sums


def show_settings(args: argparse.Namespace) -> None:
    """Print the settings as a recipe: all of them with --verbose, else those that are not at their defaults."""
    import yaml

    shown = settings_of(args)
    if not args.verbose:
        shown = {key: value for key, value in shown.items() if args.given & {key, key.removesuffix("_sha256")}}
    print("# settings" if args.verbose else "# settings that are not at their defaults; --verbose shows all")
    print(yaml.safe_dump(shown, sort_keys=False, allow_unicode=True, width=1000) if shown else "# none\n", flush=True)


class _Pipe(io.FileIO):
    """A pipe whose end is taken by /dev/null once nobody reads it any more."""

    def write(self, data: Any) -> int | None:
        try:
            return super().write(data)
        except BrokenPipeError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            return len(data)


def ignore_closed_pipes() -> None:
    """After `| head -1` the work goes on, and what it prints is dropped; so it is where the shell closed an output."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # `>&-`; opened now, it takes the free number, which no file can then get
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
        elif type(stream) is io.TextIOWrapper and stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode):
            raw = _Pipe(stream.fileno(), "w", closefd=False)
            kept = {key: getattr(stream, key) for key in ("encoding", "errors", "line_buffering", "write_through")}
            setattr(sys, name, io.TextIOWrapper(io.BufferedWriter(raw), **kept))


def close_process_group() -> None:
    """Leave the process group of `accelerate launch`, as NCCL requires; without torch there is none."""
    distributed = sys.modules.get("torch.distributed")
    if distributed and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def end_one_of_several(code: int) -> NoReturn:
    """End a process of several without taking its interpreter apart.

    A thread of gloo that drops a tensor of Python's meanwhile would abort it.
    """
    atexit._run_exitfuncs()  # of trackers and workers
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _is_of(path: Path, folder: Path) -> bool:
    """Whether a path lies in the folder, or beside it under the hidden name by which the folder is written."""
    path, folder = path.absolute(), folder.absolute()
    return path.is_relative_to(folder) or str(path).startswith(f"{folder.parent}/.{folder.name}.")


def describe_fault(error: OSError, args: argparse.Namespace) -> str:
    """The flag and file, what is wrong, and what to do. An error of a disk that is full names no file."""
    if error.strerror is None:
        return str(error)
    named = [] if error.filename is None else [os.fsdecode(error.filename)]
    out = getattr(args, "output_dir", None)
    if out is not None and (not named or _is_of(Path(named[0]), out)):
        named = [f"--output_dir {out}", *(name for name in named if name != str(out))]
    advice = ADVICE.get(error.errno or 0)
    return ": ".join([*named, error.strerror]) + (f"; {advice}" if advice else "")


def _is_not_about_torchvision(record: logging.LogRecord) -> bool:
    """False for transformers' warning that torchvision is missing, which no script here needs."""
    return "requires torchvision (not installed); falling back" not in str(record.msg)


def report_to_launcher(message: str) -> None:
    """Let the launcher (torchrun, of `accelerate launch`) end with this message, and this process with its own code.

    Torchrun prints many lines of its own when a process fails, and stops the others by SIGTERM. Its last lines hold
    what it finds in the file that it names.
    """
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not path:
        return
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if message:
        reason = {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}
        Path(path).write_text(json.dumps({"message": reason}), encoding="utf-8")


def report_fault(message: str) -> None:
    """Print it on stderr, unless the launcher will, of a process beside the first: most faults are found by all."""
    if "TORCHELASTIC_ERROR_FILE" not in os.environ or os.environ.get("RANK", "0") == "0":
        print(message, file=sys.stderr)
    report_to_launcher(message)


def run(main: Callable[[argparse.Namespace], int | None], args: argparse.Namespace) -> None:
    """Call main and exit with its code; a user's mistake or a disk error is one line, with --debug also a traceback."""
    name = os.path.basename(sys.argv[0])
    if args.verbose:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("transformers.utils.import_utils").addFilter(_is_not_about_torchvision)
    code: Any
    try:
        code = main(args)
    except KeyboardInterrupt:
        print(f"{name}: interrupted (Ctrl-C)", file=sys.stderr)
        code = 130
    except (UserError, OSError) as error:
        if args.debug:
            traceback.print_exc()
        said = describe_fault(error, args) if isinstance(error, OSError) else str(error)
        message = f"{name}: error: {mask_text(name_copies(' '.join(said.split())))}"
        report_fault(message)
        code = 1
    except SystemExit as ended:  # another process has said why
        report_to_launcher("")
        code = ended.code
    else:  # not after an error: another process may still wait for this one, until the launcher ends it
        close_process_group()
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            end_one_of_several(code or 0)
    sys.exit(code or 0)

"""Settings: frozen dataclass <- YAML preset or file <- command line. Unknown keys are errors that name the nearest one.

Defaults live in the dataclass beside the algorithm and nowhere else; a preset in `configs/<group>/` lists only what
differs. Parsing and help are tyro's, type checks of YAML values pydantic's.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import tyro
import yaml
from pydantic import TypeAdapter, ValidationError

from lipctrl.files import UserError, nearest

Settings = TypeVar("Settings")


def presets(group: str) -> dict[str, str]:
    """Shipped presets of a group, for example "bc": name -> YAML text."""
    folder = resources.files("lipctrl.configs") / group
    if not folder.is_dir():
        return {}
    files = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".yaml")), key=lambda entry: entry.name)
    return {entry.name.removesuffix(".yaml"): entry.read_text() for entry in files}


def read_config(name: str, group: str) -> tuple[Mapping[str, Any], str]:
    """The keys of a preset (by name) or of a YAML file (by path), and where they came from.

    Raises:
        UserError: neither a file nor a preset, or not a YAML mapping.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if not path.is_file():
            raise UserError(f"no settings file at {path}")
        text, source = path.read_text(), str(path)
    else:
        known = presets(group)
        if name not in known:
            raise nearest(name, known, f"preset of {group}")
        text, source = known[name], f"preset {name}"
    try:
        data = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise UserError(f"{source} is not YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(data, Mapping):
        raise UserError(f"{source} must be a mapping of settings; found {type(data).__name__}")
    return data, source


def updated(base: Settings, data: Mapping[str, Any], source: str) -> Settings:
    """`base` with the keys of a mapping replaced, types checked.

    Raises:
        UserError: an unknown key (named, with the nearest valid one) or a value of the wrong type or range.
    """
    kind: type[Settings] = type(base)
    merged = _merge(base, data, source)
    try:
        return TypeAdapter(kind).validate_python(merged)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = str(first["msg"]).removeprefix("Value error, ")
        raise UserError(f"{source}: {where + ': ' if where else ''}{message} (found {first['input']!r})") from error


def _merge(base: Any, data: Mapping[str, Any], source: str) -> dict[str, Any]:
    known = {field.name: getattr(base, field.name) for field in fields(base)}
    result: dict[str, Any] = dict(known)
    for key, value in data.items():
        if key not in known:
            error = nearest(str(key), known, "key")
            raise UserError(f"{source}: {error}")
        if is_dataclass(known[key]) and isinstance(value, Mapping):
            value = updated(known[key], value, f"{source}: {key}")
        result[key] = value
    return result


def to_yaml(settings: Any, *, without: Sequence[str] = ()) -> str:
    """Settings as YAML that `updated` reads back to the same values."""
    data = {key: value for key, value in asdict(settings).items() if key not in without}
    return yaml.safe_dump(_plain(data), sort_keys=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def parse(default: Settings, *, group: str, prog: str, description: str, args: Sequence[str]) -> Settings:
    """Settings from the command line: `--config PRESET_OR_FILE`, then the flags; `--print-config` prints and exits.

    Raises:
        UserError: an unknown preset or key, or a value of the wrong type or range in a file.
        SystemExit: after `--help` or `--print-config` (status 0); after a misspelt flag or a flag's value of the wrong
            type or range (status 2, with tyro's message).
    """
    outer = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    outer.add_argument("--config")
    outer.add_argument("--print-config", action="store_true")
    try:
        own, rest = outer.parse_known_args(list(args))
    except SystemExit as error:
        raise UserError("--config needs the name of a preset or the path of a YAML file") from error
    if own.config is not None:
        data, source = read_config(own.config, group)
        default = updated(default, data, source)
    names = ", ".join(presets(group)) or "none"
    text = (
        f"{description}\n\n--config PRESET_OR_FILE starts from a preset ({names}) or a YAML file; flags override it. "
        "--print-config prints the resolved settings and exits."
    )
    kind: type[Settings] = type(default)
    settings = tyro.cli(kind, default=default, prog=prog, description=text, args=rest)
    settings = updated(settings, {}, "command line")
    if own.print_config:
        sys.stdout.write(to_yaml(settings))
        raise SystemExit(0)
    return settings

"""Configuration: frozen dataclasses to and from TOML, with every value checked and every unknown key named.

A configuration is any dataclass whose fields are numbers, text, booleans, `Literal`s, tuples, lists, mappings
with text keys, other such dataclasses, or unions of these with None. Layers of settings are read apart, so
that an error names the file or the option that is wrong, and then laid over one another.

TOML has no null: None is written as `"none"`, and read back from it in every field that may be None.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import json
import math
import os
import re
import textwrap
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from ostinato.errors import InputError

T = TypeVar("T")
NONE = "none"
MAX_CONFIG_BYTES = 1 << 22


class CommandText(str):
    """A value typed on the command line: the type of its field decides whether it is a number or text."""

    __slots__ = ()


# ---------------------------------------------------------------------- reading


def load_config(
    cls: type[T],
    path: str | os.PathLike[str] | None = None,
    overrides: Iterable[str] = (),
    options: Mapping[str, Any] | None = None,
) -> T:
    """Defaults, then the file, then `a.b=c` overrides, then options; later ones win.

    Args:
        cls: the dataclass to make.
        path: a TOML file, or None.
        overrides: texts such as `model.hidden_size=64`.
        options: nested mapping of what the caller sets last; it must not hold what was not set.

    Raises:
        InputError: naming file or option, key, and what was expected.
    """
    layers = [] if path is None else [read_layer(cls, read_toml(path), str(path))]
    layers += [read_layer(cls, parse_override(text), f"--set {text}") for text in overrides]
    layers += [read_layer(cls, options or {}, "options")]
    return _build(cls, layers, str(path or cls.__name__))


def from_mapping(cls: type[T], mapping: Mapping[str, Any], source: str = "configuration") -> T:
    """The dataclass from plain nested values; the inverse of `to_mapping`. Errors begin with `source`."""
    return _build(cls, [read_layer(cls, mapping, source)], source)


def from_toml(cls: type[T], text: str, source: str = "configuration") -> T:
    """The dataclass from TOML text; the inverse of `to_toml`. Errors begin with `source`."""
    return from_mapping(cls, _parse_toml(text, source), source)


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        InputError: there is no such file, it is over 4 MiB, not UTF-8, or not TOML (naming line and column).
    """
    try:
        if (size := os.stat(path).st_size) > MAX_CONFIG_BYTES:
            raise InputError(
                f"{path}: {size} bytes are too many for a configuration (limit {MAX_CONFIG_BYTES})"
            )
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: TOML must be UTF-8 text ({error}); save it as UTF-8") from None
    except OSError as error:
        raise InputError(
            f"{path}: the configuration cannot be read: {error.strerror}; check the path"
        ) from None
    return _parse_toml(text, str(path))


def parse_override(text: str) -> dict[str, Any]:
    """`a.b=c` as the nested mapping {"a": {"b": "c"}}."""
    key, sign, value = text.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not sign or not all(parts):
        raise InputError(f"--set {text}: expected KEY=VALUE, such as learning_rate=0.001")
    nested: Any = CommandText(value.strip())
    for part in reversed(parts):
        nested = {part: nested}
    return typing.cast(dict[str, Any], nested)


def read_layer(cls: type, mapping: Mapping[str, Any], source: str, prefix: str = "") -> dict[str, Any]:
    """Some fields of `cls` from plain values, checked and converted; keys that are absent stay absent.

    Raises:
        InputError: an unknown key, with the nearest known one; or a value of a wrong type.
    """
    hints, names = typing.get_type_hints(cls), field_names(cls)
    layer = {}
    for name, value in mapping.items():
        if name not in names:
            near = get_close_matches(str(name), names, n=1)
            hint = f"did you mean {prefix + near[0]!r}? " if near else ""
            raise InputError(f"{source}: unknown key {prefix + str(name)!r}; {hint}Known: {', '.join(names)}")
        if dataclasses.is_dataclass(hints[name]) and isinstance(value, Mapping):
            layer[name] = read_layer(typing.cast(type, hints[name]), value, source, f"{prefix}{name}.")
        else:
            layer[name] = _convert(hints[name], value, source, prefix + name)
    return layer


def field_names(cls: type) -> list[str]:
    """Names of the fields that a configuration may set."""
    return [field.name for field in dataclasses.fields(cls) if field.init]


def _build(cls: type[T], layers: Sequence[Mapping[str, Any]], source: str, prefix: str = "") -> T:
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        given = [layer[field.name] for layer in layers if field.name in layer]
        if given and isinstance(given[-1], dict) and dataclasses.is_dataclass(hints[field.name]):
            nested = typing.cast(type, hints[field.name])
            parts = [part for part in given if isinstance(part, dict)]
            values[field.name] = _build(nested, parts, source, f"{prefix}{field.name}.")
        elif given:
            values[field.name] = given[-1]
        elif field.init and field.default is field.default_factory is dataclasses.MISSING:
            raise InputError(f"{source}: {prefix + field.name!r} is missing and has no default; set it")
    return cls(**values)


def _parse_toml(text: str, source: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"{source}: is not TOML: {error}") from None


# ---------------------------------------------------------------------- values


class _WrongTypeError(Exception):
    pass


def _convert(hint: Any, value: Any, source: str, key: str) -> Any:
    try:
        return _value(hint, value)
    except _WrongTypeError:
        found = f"{value!r} ({_TYPE_NAMES.get(type(value), type(value).__name__)})"
        raise InputError(f"{source}: {key!r} must be {describe(hint)}, found {found}") from None


def _value(hint: Any, value: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return _first_that_fits(arguments, value)
    if isinstance(value, CommandText) and hint is not str:
        value = _typed(value)
    if hint is Any and isinstance(value, dict):
        hint = dict
    if hint is Any or (dataclasses.is_dataclass(hint) and type(value) is hint):
        return value
    if hint is type(None) and (value is None or value == NONE):
        return None
    if origin is Literal and any(value == known and type(value) is type(known) for known in arguments):
        return value
    if hint is float and type(value) in (int, float):
        return float(value)
    if hint in (int, bool, str) and (type(value) is hint or (hint is str and type(value) is CommandText)):
        return hint(value)
    if _is_listed(origin or hint) and isinstance(value, (list, tuple)):
        return _items(origin or hint, arguments, value)
    if _is_mapping(origin or hint) and isinstance(value, Mapping) and all(type(k) is str for k in value):
        kind = arguments[1] if arguments else Any
        return {name: _value(kind, item) for name, item in value.items()}
    raise _WrongTypeError


def _first_that_fits(hints: Sequence[Any], value: Any) -> Any:
    """None first, as "none" means it; text last, as anything typed on a command line is text too."""
    for hint in sorted(hints, key=lambda hint: (hint is not type(None), hint is str)):
        try:
            return _value(hint, value)
        except _WrongTypeError:
            continue
    raise _WrongTypeError


def _items(kind: Any, arguments: tuple[Any, ...], value: Sequence[Any]) -> Any:
    if kind is tuple and arguments and arguments[-1] is not Ellipsis:
        if len(value) != len(arguments):
            raise _WrongTypeError
        return tuple(_value(hint, item) for hint, item in zip(arguments, value, strict=True))
    items = [_value(arguments[0] if arguments else Any, item) for item in value]
    return items if kind is list else tuple(items)


def _typed(text: CommandText) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return str(text)


def _is_listed(kind: Any) -> bool:
    return kind in (list, tuple, Sequence)


def _is_mapping(kind: Any) -> bool:
    return kind in (dict, Mapping)


_TYPE_NAMES: dict[Any, str] = {
    bool: "a truth value",
    int: "a whole number",
    float: "a number",
    str: "text",
    CommandText: "text",
    type(None): '"none"',
    list: "a list",
    tuple: "a list",
    dict: "a table",
    Any: "anything",
}


def describe(hint: Any) -> str:
    """A type in words, for messages."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(part) for part in arguments)
    if origin is Literal:
        return "one of " + ", ".join(repr(known) for known in arguments)
    if _is_listed(origin or hint):
        if origin is tuple and arguments and arguments[-1] is not Ellipsis:
            return f"a list of exactly {len(arguments)} values"
        return f"a list, each {describe(arguments[0])}" if arguments else "a list"
    if _is_mapping(origin or hint) or dataclasses.is_dataclass(hint):
        return "a table"
    return _TYPE_NAMES.get(hint, str(hint))


# ---------------------------------------------------------------------- writing


def to_mapping(config: Any) -> dict[str, Any]:
    """Plain nested values of a dataclass: numbers, text, booleans, None, lists and dictionaries."""
    return {name: _plain(getattr(config, name)) for name in field_names(type(config))}


def to_toml(config: Any, heading: str = "") -> str:
    """TOML text with every value, defaults included, in the order of the fields."""
    comment = "".join(f"# {line}\n" for line in heading.splitlines())
    return comment + "\n".join(_table(to_mapping(config), ())) + "\n"


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_mapping(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _table(mapping: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    plain = {name: value for name, value in mapping.items() if not isinstance(value, dict)}
    lines = [f"[{'.'.join(map(_key, path))}]"] if path and (plain or not mapping) else []
    lines += [f"{_key(name)} = {_literal(value)}" for name, value in plain.items()]
    for name, value in mapping.items():
        if isinstance(value, dict):
            lines += ([""] if lines and lines[-1] else []) + _table(value, (*path, name))
    return lines


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _literal(name)


def _literal(value: Any) -> str:
    if value is None:
        return f'"{NONE}"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, float):
        return repr(float(value)) if math.isfinite(value) else str(float(value))
    if isinstance(value, str):
        if re.search("[\ud800-\udfff]", value):
            raise InputError(f"{value!r} is not valid Unicode text and cannot be written to a configuration")
        # JSON's escapes are TOML's, but for DEL, which TOML wants escaped
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_literal(item) for item in value)}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_key(str(name))} = {_literal(item)}' for name, item in value.items())}}}"
    raise InputError(f"{value!r} of type {type(value).__name__} cannot be written to a configuration")


# ---------------------------------------------------------------------- schema


def config_schema(cls: type, title: str = "") -> dict[str, Any]:
    """The JSON Schema (2020-12) of a configuration: types, defaults, and what each field's docstring says."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title or cls.__name__,
        **_object_schema(cls),
    }


def _object_schema(cls: type) -> dict[str, Any]:
    hints, texts, properties, required = typing.get_type_hints(cls), field_docs(cls), {}, []
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        schema = _schema(hints[field.name])
        if field.name in texts:
            schema["description"] = texts[field.name]
        if field.default is not dataclasses.MISSING:
            schema["default"] = NONE if field.default is None else _plain(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            schema["default"] = _plain(field.default_factory())
        else:
            required.append(field.name)
        properties[field.name] = schema
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _schema(hint: Any) -> dict[str, Any]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema(part) for part in arguments]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if hint is type(None):
        return {"const": NONE}
    if dataclasses.is_dataclass(hint):
        return _object_schema(typing.cast(type, hint))
    if _is_listed(origin or hint):
        if origin is tuple and arguments and arguments[-1] is not Ellipsis:
            return {"type": "array", "prefixItems": [_schema(a) for a in arguments], "items": False}
        return {"type": "array", "items": _schema(arguments[0]) if arguments else {}}
    if _is_mapping(origin or hint):
        return {"type": "object", "additionalProperties": _schema(arguments[1]) if arguments else {}}
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string"}
    return {"type": kinds[hint]} if hint in kinds else {}


def field_docs(cls: type) -> dict[str, str]:
    """The docstring under each field, on one line."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError):  # classes made at run time have no source
        return {}
    body = typing.cast(ast.ClassDef, tree.body[0]).body
    return {
        first.target.id: " ".join(second.value.value.split())
        for first, second in itertools.pairwise(body)
        if isinstance(first, ast.AnnAssign)
        and isinstance(first.target, ast.Name)
        and isinstance(second, ast.Expr)
        and isinstance(second.value, ast.Constant)
        and isinstance(second.value.value, str)
    }

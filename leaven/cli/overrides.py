"""`key=value` arguments of the command line into a system's typed `Config`, and the config's options as rows."""

from __future__ import annotations

import difflib
import enum
import json
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from leaven.errors import ConfigError

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError
    from pydantic.fields import FieldInfo

    M = TypeVar("M", bound=BaseModel)

_BOUNDS = (
    ("gt", "> {}"),
    ("ge", ">= {}"),
    ("lt", "< {}"),
    ("le", "<= {}"),
    ("multiple_of", "a multiple of {}"),
    ("min_length", "length >= {}"),
    ("max_length", "length <= {}"),
    ("pattern", "matching {}"),
)


@dataclass(frozen=True, slots=True)
class Option:
    """One row of a config's description; `default` is `required` for a field that must be given."""

    name: str
    type: str
    default: str
    bounds: str
    description: str

    @property
    def expected(self) -> str:
        """What a value has to be, in words."""
        return f"{self.type} {self.bounds}".strip()


def describe_config(config: type[BaseModel]) -> list[Option]:
    """The options of a config in order; those of a nested model under dotted names."""
    return list(_options(config, ""))


def parse_overrides(config: type[M], items: Sequence[str]) -> M:
    """A config with some options changed.

    Args:
        items: `key=value`; the key of a nested option is dotted. The value is read as JSON, else taken as it stands.

    Raises: ConfigError naming the key, its value and what was expected.
    """
    from pydantic import ValidationError

    given: dict[str, tuple[Any, str]] = {}
    for item in items:
        key, equals, raw = item.partition("=")
        if not equals or not key:
            raise ConfigError(f"{item!r} is not of the form key=value; the options are {_names(config)}")
        for name, value in _leaves(config, key, _json_or_text(raw)):
            clash = next(
                (one for one in given if one == name or one.startswith(f"{name}.") or name.startswith(f"{one}.")), None
            )
            if clash is not None:
                raise ConfigError(f"{name} is given twice: {given[clash][1]} and {item}")
            given[name] = (value, item)
    values = {name: value for name, (value, _) in given.items()}
    try:
        return config.model_validate(_nest(values))
    except ValidationError as error:
        # A text option may look like JSON (name=123): it is tried again as it was typed.
        refused = {".".join(map(str, one["loc"])) for one in error.errors()}
        retry = {
            name: given[name][1].partition("=")[2] if name in refused and not isinstance(value, str) else value
            for name, value in values.items()
        }
        try:
            return config.model_validate(_nest(retry))
        except ValidationError:
            raise ConfigError(validation_message(error, config)) from None


def is_validation_error(error: BaseException) -> bool:
    """Whether this is pydantic's, found without importing pydantic."""
    return any(one.__module__.startswith("pydantic") and one.__name__ == "ValidationError" for one in type(error).mro())


def validation_message(error: Any, config: type[BaseModel] | None = None) -> str:
    """Every wrong field of a pydantic ValidationError with its value and what was expected, a line each."""
    invalid: ValidationError = error
    options = {one.name: one for one in describe_config(config)} if config is not None else {}
    lines = []
    told: set[str] = set()
    for one in invalid.errors():
        name = ".".join(str(part) for part in one["loc"])
        option = options.get(name) or next((options[key] for key in options if name.startswith(f"{key}.")), None)
        if one["type"] == "missing":
            what = f": {option.expected}, {option.description}" if option else ""
            lines.append(f"{name} must be given{what}")
        elif option is not None:
            about = f" ({option.description})" if option.description else ""
            same = [other for other in invalid.errors() if str(other["loc"][0]) == str(one["loc"][0])]
            if len(same) > 1 and all(other["input"] == one["input"] for other in same):
                # One value that fits no type of a union: pydantic has an error for each of them.
                if option.name not in told:
                    lines.append(f"{option.name} is {one['input']!r}, expected {option.expected}{about}")
                told.add(option.name)
            else:
                lines.append(f"{name} is {one['input']!r}, expected {option.expected}{about}: {one['msg']}")
        else:
            where = f"{name} is {one['input']!r}: " if name else ""
            lines.append(f"{invalid.title}: {where}{one['msg']}")
    return "\n  ".join(lines)


def _json_or_text(raw: str) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        return None if raw == "None" else raw


def _leaves(config: type[BaseModel], key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Dotted names and values that one `key=value` sets; unknown names are refused at every depth."""
    model = config
    *outer, last = key.split(".")
    for depth, name in enumerate(outer):
        _known(model, config, ".".join(outer[:depth]), name, key)
        nested = _nested(model.model_fields[name].annotation)
        if nested is None:
            # What is inside a plain dict is its owner's affair; an option of another type has nothing inside.
            raise ConfigError(f"{key}: {'.'.join(outer[: depth + 1])} has no options of its own")
        model = nested
    _known(model, config, ".".join(outer), last, key)
    inside = _nested(model.model_fields[last].annotation)
    if inside is not None and isinstance(value, dict) and value:
        for name, part in value.items():
            yield from _leaves(config, f"{key}.{name}", part)
    else:
        yield key, value


def _known(model: type[BaseModel], config: type[BaseModel], prefix: str, name: str, key: str) -> None:
    if name in model.model_fields:
        return
    known = [f"{prefix}.{one}" if prefix else one for one in model.model_fields]
    everywhere = [one.name for one in describe_config(config)]
    near = [one for one in everywhere if one.rpartition(".")[2] == name]
    near += difflib.get_close_matches(key, [*known, *everywhere], n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise ConfigError(f"no option {key!r}: there are {', '.join(known)}.{hint}")


def _names(config: type[BaseModel]) -> str:
    return ", ".join(one.name for one in describe_config(config))


def _nest(values: dict[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in values.items():
        *outer, last = name.split(".")
        place = nested
        for part in outer:
            place = place.setdefault(part, {})
        place[last] = value
    return nested


def _options(config: type[BaseModel], prefix: str) -> Iterator[Option]:
    for name, field in config.model_fields.items():
        nested = _nested(field.annotation)
        if nested is not None:
            yield from _options(nested, f"{prefix}{name}.")
            continue
        yield Option(
            name=prefix + name,
            type=_type_name(field.annotation),
            default=_default(field),
            bounds=", ".join(dict.fromkeys(_bounds(field.metadata, field.annotation))),
            description=field.description or "",
        )


def _nested(annotation: Any) -> type[BaseModel] | None:
    """The model that an annotation is, alone or beside None."""
    from pydantic import BaseModel

    candidates = [one for one in _members(annotation) if one is not types.NoneType]
    only = candidates[0] if len(candidates) == 1 else None
    return only if isinstance(only, type) and issubclass(only, BaseModel) else None


def _members(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    return str(value.value) if isinstance(value, enum.Enum) else str(value)


def _bounds(metadata: Iterable[Any], annotation: Any) -> Iterator[str]:
    for one in metadata:
        for attribute, words in _BOUNDS:
            bound = getattr(one, attribute, None)
            if bound is not None:
                yield words.format(bound)
    for member in _members(annotation):
        if typing.get_origin(member) is typing.Annotated:
            for extra in member.__metadata__:
                yield from _bounds(getattr(extra, "metadata", [extra]), None)


def _type_name(annotation: Any) -> str:
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _type_name(annotation.__origin__)
    if origin is typing.Literal:
        return "one of " + ", ".join(str(value) for value in typing.get_args(annotation))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_name(one) for one in typing.get_args(annotation))
    if annotation is types.NoneType:
        return "none"
    if annotation is ...:
        return "..."
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return "one of " + ", ".join(str(one.value) for one in annotation)
    if origin is not None:
        inner = ", ".join(_type_name(one) for one in typing.get_args(annotation))
        return f"{_type_name(origin)}[{inner}]"
    return getattr(annotation, "__name__", str(annotation))

"""A backend's own options: from words to the values that its library takes."""

from collections.abc import Mapping

from whisperkit_tools.errors import OptionsError

Value = bool | int | float | str


def checked(backend: str, options: Mapping[str, str], defaults: Mapping[str, Value]) -> dict[str, Value]:
    """Return the defaults updated with the given options, each converted to the type of its default.

    Raises:
        OptionsError: Naming all that are unknown or not of their type.
    """
    problems = [f"unknown option {name!r}" for name in options if name not in defaults]
    values = dict(defaults)
    for name in options:
        if name in defaults:
            try:
                values[name] = _converted(options[name], defaults[name])
            except ValueError:
                problems.append(f"{name} is {options[name]!r}, expected {type(defaults[name]).__name__}")
    if problems:
        known = ", ".join(sorted(defaults)) or "none"
        raise OptionsError(f"backend {backend}: {'; '.join(problems)}; its options are {known}")
    return values


def _converted(word: str, default: Value) -> Value:
    if isinstance(default, bool):
        if word.lower() not in ("true", "false"):
            raise ValueError(word)
        return word.lower() == "true"
    if isinstance(default, int):
        return int(word)
    return float(word) if isinstance(default, float) else word

"""How messages show options: a field of the library as the flag of the command that the user called.

The library mentions an option by its field (`errors.option`). Most fields are called as their flag with dashes, so the
table of a command is derived from the command itself. `FIELDS` names the fields that are called otherwise.
"""

from collections.abc import Mapping

import click

from whisperkit_tools.errors import show_options

# Fields of configs whose name is not the long name of their option. Several flags are alternatives: a command shows
# the one that it has.
FIELDS: Mapping[str, tuple[str, ...]] = {
    "bundle": ("bundle", "bundles"),
    "bundles": ("bundles", "bundle"),
    "checks_no_speech": ("check_silence",),
    "chunk_length_s": ("chunk_length",),
    "embed_bytes": ("embed_limit",),
    "examples_limit": ("examples",),
    "gives_language": ("detect_language",),
    "hop_s": ("hop",),
    "max_duration_s": ("max_duration",),
    "max_wer_delta": ("prefill_max_wer_delta",),
    "min_duration_s": ("min_duration",),
    "noise_kinds": ("noise_kind",),
    "noise_snr_db": ("noise_snr",),
    "profile_dir": ("profile",),
    "pull_request": ("pr",),
    "recordings": ("prefill_audio",),
    "root": ("output_dir",),
    "stride_s": ("stride",),
    "target_bytes": ("target_size",),
    "temperatures": ("temperature",),
    "tune_steps": ("tune_palettes",),
    "words": ("word_timestamps",),
}


def table(command: click.Command) -> dict[str, str]:
    """Return how a command's parameters are written on the command line, by the name of the parameter."""
    return {param.name: _written(param) for param in command.params if param.name is not None}


def _written(param: click.Parameter) -> str:
    if isinstance(param, click.Option):
        return max(param.opts, key=len)
    return (param.metavar or (param.name or "").upper()).strip("[]").removesuffix("...").removesuffix("]")


def show_flags(message: str, command: click.Command | None = None) -> str:
    """Replace each mention of an option by its spelling on the command line.

    Args:
        message: Text with marks from `errors.option`.
        command: The command that the user called; the one that is running when None.
    """
    context = click.get_current_context(silent=True)
    chosen = command or (context.command if context is not None else None)
    flags = {} if chosen is None else table(chosen)
    return show_options(message, lambda field, value: _spelled(flags, chosen, field, value))


def _spelled(flags: Mapping[str, str], command: click.Command | None, field: str, value: str | None) -> str:
    name = next((it for it in (field, *FIELDS.get(field, ())) if it in flags), None)
    if name is None:
        name = FIELDS.get(field, (field,))[0]
    flag = flags.get(name, f"--{name.replace('_', '-')}")
    if value is None:
        return flag
    switch = _switch(command, name)
    if switch is None:
        return f"{flag} {value}"
    return _switched(switch, flag, value)


def _switch(command: click.Command | None, name: str) -> click.Option | None:
    """Return the option of this name if it is a switch, which takes no value."""
    for param in command.params if command is not None else ():
        if isinstance(param, click.Option) and param.name == name and param.is_flag:
            return param
    return None


def _switched(switch: click.Option, flag: str, value: str) -> str:
    """Return how a switch is set to a value: the flag, its opposite, or its absence."""
    if switch.secondary_opts:
        return flag if value == "True" else max(switch.secondary_opts, key=len)
    return flag if (value == "True") != flag.startswith("--no-") else f"without {flag}"

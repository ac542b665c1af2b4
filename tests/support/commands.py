"""Commands as a text tells a reader to type them, checked against the program without running them."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator

import typer

from mlffn_lite.cli import app
from mlffn_lite.config import Config
from mlffn_lite.studies.grid import vary


def commands_in(markdown: str) -> list[str]:
    """Return the lines of a text's code blocks that call ``mlffn``, without comments."""
    blocks = re.findall(r"^```sh\n(.*?)^```", markdown, re.MULTILINE | re.DOTALL)
    lines = re.findall(r"^mlffn (.+?)(?:\s+#.*)?$", "\n".join(blocks), re.MULTILINE)
    return [line.replace("…", "") for line in lines]


def faults(line: str) -> Iterator[str]:
    """Yield which sub-command or option there is not; of a preset or a setting, a ConfigError says it."""
    words = shlex.split(line)
    command, values = typer.main.get_command(app), [*words]
    while commands := getattr(command, "commands", None):
        if not words or words[0] not in commands:
            yield f"mlffn {line}: there is no command {words[:1]}"
            return
        command = commands[words.pop(0)]
    options = {name for parameter in command.params for name in parameter.opts}
    given = {word for word in words if re.match(r"--?[a-z]", word)}
    if given - options:
        yield f"mlffn {line}: has no option {', '.join(sorted(given - options))}"
    preset = values[values.index("--preset") + 1] if "--preset" in values else "parts"
    base = Config.preset(preset).override([b for a, b in itertools.pairwise(values) if a == "--set"])
    if axes := [b for a, b in itertools.pairwise(values) if a == "--vary"]:
        vary(base, ["mlffn"], axes)

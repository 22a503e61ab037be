"""The command line as its users meet it: help, what the documents promise, exit codes, and what is not imported."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import subrosa

ROOT = Path(__file__).parents[1]
HEAVY = {"ray", "tenseal", "sklearn", "matplotlib", "fastapi"}

# A command in a document or in an error text: in backticks, or on a line of its own in a fenced block or Makefile.
MENTION = re.compile(r"(?:`|^\s*|\)/|\.venv/bin/)subrosa ((?:[a-z]|--)[^`#\n]*)", re.MULTILINE)
OPTION = re.compile(r"(?<!\S)\[?(--[a-z][a-z-]*)")


def mentions() -> Iterator[tuple[str, str]]:
    """Every command that a document, the Makefile or a text in the code names, with the file it stands in."""
    documents = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "Makefile", *(ROOT / "docs").rglob("*.md")]
    packages = ("crypto", "scoring", "governance", "coordinator", "member_node", "sandbox")
    code = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    for path in [*documents, *code]:
        for found in MENTION.finditer(path.read_text(encoding="utf-8")):
            yield str(path.relative_to(ROOT)), found.group(1).strip()


def commands() -> dict[str, Any]:
    """Every command by its words: ``policy test`` and so on; a command without subcommands by its one word."""
    context = typer.Context(subrosa.main)
    found: dict[str, Any] = {}
    for name in subrosa.COMMANDS:
        command: Any = subrosa.main.get_command(context, name)  # type: ignore[attr-defined]
        found |= below(name, command)
    return found


def below(name: str, command: Any) -> dict[str, Any]:
    """A command and, as far as it has any, its subcommands, theirs included."""
    found = {name: command}
    for each, sub in getattr(command, "commands", {}).items():
        found |= below(f"{name} {each}", sub)
    return found


def options(command: Any) -> set[str]:
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} | {
        "--help"
    }


def run(*arguments: str) -> Any:
    return CliRunner().invoke(subrosa.app, list(arguments), terminal_width=200)


@pytest.mark.parametrize("name", subrosa.COMMANDS)
def test_every_command_has_help(name: str) -> None:
    command = commands()[name]
    result = run(name, "--help")
    assert result.exit_code == 0, result.output
    assert f"Usage: subrosa {name}" in result.stdout.replace("root", "subrosa")
    for sub in getattr(command, "commands", {}):
        assert sub in result.stdout
        inner = run(name, sub, "--help")
        assert inner.exit_code == 0, inner.output
        assert "--help" in inner.stdout


def test_every_command_and_option_says_what_it_is() -> None:
    for name, command in commands().items():
        assert command.help or command.short_help, f"subrosa {name} has no help"
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"subrosa {name}: {parameter.name} has no help"


def test_the_help_of_subrosa_itself_lists_every_command() -> None:
    result = run("--help")
    for name in subrosa.COMMANDS:
        assert f"\n  {name} " in result.stdout


def test_what_the_documents_name_exists() -> None:
    known = commands()
    checked = 0
    for where, text in mentions():
        words = text.split()
        if words[0].startswith("-"):
            continue
        assert words[0] in known, f"{where} names `subrosa {text}`"
        group = known[words[0]]
        named = [words[0]]
        if hasattr(group, "commands") and len(words) > 1 and re.match(r"[a-z]", words[1]):
            named = [f"{words[0]} {each.strip('.,;:')}" for each in words[1].split("|")]
            if len(words) > 2 and f"{named[0]} {words[2]}" in known:
                named = [f"{named[0]} {words[2]}"]
        for name in named:
            assert name in known, f"{where} names `subrosa {text}`"
            missing = set(OPTION.findall(text)) - options(known[name])
            assert not missing, f"{where} names `subrosa {text}`: no option {missing}"
            checked += 1
    assert checked > 10


def test_the_documented_files_are_read() -> None:
    """The search for mentions finds what is surely there."""
    found = {(where, text.partition("--")[0].strip()) for where, text in mentions()}
    assert ("docs/operations.md", "coordinator serve") in found
    assert ("README.md", "audit verify out/handbook/log") in found
    assert ("Makefile", "sandbox") in found
    assert ("member_node/command_line.py", "member serve") in found


# ---- in a process of its own


def fresh(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)


def modules_after(arguments: list[str]) -> set[str]:
    code = (
        "import json, sys, subrosa\n"
        "try:\n"
        f"    subrosa.main({arguments!r})\n"
        "except SystemExit as end:\n"
        "    assert end.code in (0, None), end.code\n"
        "print('\\n' + json.dumps(sorted(sys.modules)))\n"
    )
    result = fresh(code)
    assert result.returncode == 0, result.stderr
    return set(json.loads(result.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["audit", "--help"],
        ["audit", "verify", "--help"],
        ["audit", "export", "--help"],
        ["policy", "show"],
        ["indicator", "--help"],
        ["inquiry", "--help"],
    ],
)
def test_light_commands_load_nothing_heavy(arguments: list[str]) -> None:
    assert not HEAVY & modules_after(arguments)


def test_help_of_subrosa_imports_no_part() -> None:
    loaded = modules_after(["--help"])
    assert not {module for module, _ in subrosa.COMMANDS.values()} & loaded


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["policy", "test", "--action", "mirror", "--party", "bank-a"], 0, "PERMITTED"),
        (["policy", "test", "--action", "mirror", "--party", "nobody"], 1, "REFUSED"),
        (["policy", "test", "--action", "mirror", "--party", "bank-a", "--cells", "3"], 2, "--cells"),
        (["audit", "verify", "no-such-directory"], 1, "REFUSED"),
        (
            ["indicator", "lookup", "terminal", "T1", "--directory", "no-such-directory"],
            1,
            "subrosa member init",
        ),
        (["nonsense"], 2, "No such command"),
        (["--version"], 0, "subrosa "),
    ],
)
def test_a_command_ends_with_its_code_and_without_a_traceback(
    arguments: list[str], code: int, said: str
) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "subrosa", *arguments], capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    assert result.returncode == code, result.stderr
    assert said in result.stdout + result.stderr
    assert "Traceback" not in result.stderr

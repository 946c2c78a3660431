"""Every Python block of the documentation runs as written, and what the pages refer to exists."""

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from ostinato.cli.commands import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ALL_PAGES = [*PAGES, ROOT / "DESIGN.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
FENCE = re.compile(r"^```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)


def blocks(page, language):
    """(line number of the first line, code) of each block of a language."""
    text = page.read_text(encoding="utf-8")
    return [
        (text.count("\n", 0, match.start("code")) + 1, match["code"])
        for match in FENCE.finditer(text)
        if match["language"] == language
    ]


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda page: page.name)
def test_python_blocks_run_in_one_namespace(page, tmp_path, monkeypatch):
    """Warnings are errors, as in all tests; files land in a temporary folder."""
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for line, code in blocks(page, "python"):
        # blank lines in front make tracebacks and warnings name the line of the page
        exec(compile("\n" * (line - 1) + code, str(page), "exec"), namespace)


def options_of(words):
    """The command that the words name, and the options it knows."""
    command, context_words = typer.main.get_command(app), list(words)
    while hasattr(command, "commands") and context_words and context_words[0] in command.commands:
        command = command.commands[context_words.pop(0)]
    known = {name for parameter in command.params for name in parameter.opts} | {"--help", "-h"}
    return command, known


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "bash")], ids=lambda page: page.name)
def test_shown_commands_and_their_options_exist(page):
    for line, code in blocks(page, "bash"):
        for text in code.replace("\\\n", " ").splitlines():
            words = shlex.split(text, comments=True)
            if not words or words[0] != "ostinato":
                continue
            command, known = options_of(words[1:])
            assert not hasattr(command, "commands") or len(words) == 1 or words[1].startswith("-"), (
                f"{page.name}, block at line {line}: no command {' '.join(words[:3])!r}"
            )
            unknown = {word.partition("=")[0] for word in words if word.startswith("--")} - known
            assert not unknown, f"{page.name}, block at line {line}: {unknown} in {text!r}"


def anchors(page):
    """The anchors of a page's headings, as forges make them."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [p for p in ALL_PAGES if p.exists()], ids=lambda page: page.name)
def test_local_links_lead_somewhere(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{page.name}: link to {target}, but {file} does not exist"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{page.name}: link to {target}, known: {sorted(anchors(file))}"

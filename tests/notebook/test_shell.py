"""Shell text as commands: joined, torn and quoted as a real shell does it."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.notebook.shell import parse


def words(text: str) -> list[list[str]]:
    return [[word.text for word in command.words] for command in parse(text.split("\n"), 1)]


def test_joined_lines_are_one_command_and_words_keep_their_lines():
    (command,) = parse(["run a \\", "  --b 1 \\", "  --c 2"], 10)
    assert [(word.text, word.line) for word in command.words] == [
        ("run", 10), ("a", 10), ("--b", 11), ("1", 11), ("--c", 12), ("2", 12)
    ]  # fmt: skip
    assert (command.line, command.last_line) == (10, 12)


def test_a_backslash_before_blanks_tears_the_command():
    first, second = parse(["run a \\ ", "  --b 1"], 1)
    assert [word.text for word in first.stray] == [" "]
    assert (first.torn, second.torn, second.line) == (False, True, 2)


def test_a_missing_backslash_tears_the_command():
    commands = parse(["run a", "--b 1 \\", "--c", "echo -n x"], 1)
    assert [command.torn for command in commands] == [False, True, False]
    assert commands[1].words[-1].line == 3


def test_assignments_operators_and_redirects():
    a, b, c = parse(['rm -rf x; A=1 B="2 3" run y &> z.txt && tail < z.txt # why'], 1)
    assert [(name, word.text) for name, word in b.assignments] == [("A", "1"), ("B", "2 3")]
    assert [(sign, word.text) for sign, word in b.redirects] == [("&>", "z.txt")]
    assert [each.before for each in (a, b, c)] == ["", ";", "&&"]
    assert a.name == "rm"
    assert not any(word.text == "#" for word in c.words)


def test_a_remote_call_holds_commands_with_their_own_lines():
    (call,) = parse(['ssh box "cd x && run \\', '  --a \\"b c\\" \\', '  --d"'], 5)
    inside = call.inner()
    assert [command.name for command in inside] == ["cd", "run"]
    assert [(word.text, word.line) for word in inside[1].words] == [("run", 5), ("--a", 6), ("b c", 6), ("--d", 7)]


def test_here_documents_are_no_commands():
    assert words("cat <<EOF > f\nrm -rf /\nEOF\nrun b") == [["cat"], ["run", "b"]]
    assert parse(["cat <<-'E'", "x", "\tE", "run"], 1)[1].line == 4


def test_a_pasted_prompt_is_no_word():
    assert words("$ run a") == [["run", "a"]]


BASH = shutil.which("bash")
SAFE = st.text(st.sampled_from("ab1 -='\"\\\n#;&"), max_size=30)


@pytest.mark.skipif(BASH is None, reason="bash is what this is compared with")
@settings(max_examples=60, deadline=None)
@given(SAFE)
def test_words_are_those_of_bash(text: str):
    """Every command is shown by a function that prints its words, one a line; nothing else can run."""
    script = 'command_not_found_handle() { printf "[%s]" "$@"; echo; return 0; }\nPATH=\nset +m\n' + text
    assert BASH is not None
    ended = subprocess.run([BASH, "-c", script + "\n"], capture_output=True, text=True, env={"PATH": ""}, timeout=20)
    if ended.stderr or "&" in text or "=" in text:  # refused by bash, or in an order of its own
        return
    shown = ["".join(f"[{word}]" for word in found) for found in words(text + "\n") if found]
    assert "\n".join(shown) == ended.stdout.rstrip("\n")


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_read(text: str):
    lines = text.split("\n")
    for command in parse(lines, 1):
        assert 1 <= command.line <= command.last_line <= len(lines)
        for word in command.words:
            assert 1 <= word.line <= len(lines)
        command.inner()

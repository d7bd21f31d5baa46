"""The grammar of programs, text by text in plain Python. It shares no code with `winnow.tasks`."""

from __future__ import annotations


def carry_out(text: str, alphabet: int = 26) -> str:
    """The answer to `items:operations:...`; AssertionError where the question breaks a rule."""
    items, operations = text.split(":")[:2]
    line = list(items)
    assert len(set(line)) == len(line) >= 2, "different items, two or more"
    assert all(0 <= ord(item) - ord("A") < alphabet for item in line)
    stack: list[str] = []
    for operation in operations.split(" "):
        if operation[0] == "-":
            i = place(operation[1:])
            assert 1 <= i <= len(line)
            assert len(line) > 1, "the last item stays"
            stack.append(line[i - 1])
            line = line[: i - 1] + line[i:]
        elif operation[0] == "+":
            i = place(operation[1:])
            assert stack, "nothing to insert"
            assert 1 <= i <= len(line) + 1
            line = [*line[: i - 1], stack.pop(), *line[i - 1 :]]
        else:
            first, second = operation.split(">")
            i, j = place(first), place(second)
            assert i != j
            assert 1 <= min(i, j) <= max(i, j) <= len(line)
            line = [line[j - 1] if k == i else line[i - 1] if k == j else line[k - 1] for k in range(1, len(line) + 1)]
    return "".join(line)


def place(digits: str) -> int:
    """A position, in decimals without leading zeros."""
    assert digits.isdecimal()
    assert digits[0] != "0"
    return int(digits)

"""How a run was made: code, git, packages, machine, threads. Everything that is not the run's identity.

Only what is named here is recorded: the versions of a fixed list of packages, the command with secrets redacted, the
CPU or GPU model. Never environment variables, user names, or credentials.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import platform
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from winnow.records.run import Provenance
from winnow.records.sources import code_version

PACKAGES = ("winnow-lab", "torch", "numpy", "scipy", "pydantic", "safetensors", "tokenizers", "triton")
"""The packages whose versions are recorded, where installed."""
REDACTED = "[redacted]"
_GIT_SECONDS = 10.0

_SECRET_WORDS = frozenset(
    {"token", "secret", "password", "passwd", "passphrase", "pwd", "credential", "credentials", "auth", "bearer"}
    | {"authorization", "apikey", "accesskey"}
)
_KEY_WORDS = frozenset({"api", "access", "private", "secret", "auth", "account"})
_SECRET_VALUES = re.compile(
    r"hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|sk-[\w-]{20,}|AKIA[A-Z0-9]{16}|xox[a-z]-[\w-]{10,}"
    r"|(?i:bearer|basic)\s+[\w.~+/=-]{8,}|eyJ[\w-]{10,}\.[\w-]+\.[\w-]*"
)
COMMAND_VARIABLE = "WINNOW_COMMAND"
"""Environment variable in which a launcher tells its workers the command line, as JSON, secrets already redacted."""
_URL_LOGIN = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*://)(?:[^/@\s]*:[^\s]*|[^/@\s]+)@")
"""A password may hold `/` and `@` when nobody has escaped them: everything up to the last `@` goes."""
_URL_SETTING = re.compile(r"(?P<sign>[?&;])(?P<name>[\w.-]+)=(?P<value>[^&;#\s]*)")
_OPTION = re.compile(r"(?P<name>-{0,2}[A-Za-z][\w.:-]*?)(?P<sign>=|:\s+)(?P<value>.+)", re.DOTALL)


def collect(
    *,
    device: str = "cpu",
    threads: int = 1,
    deterministic: bool = True,
    notes: Sequence[str] = (),
    argv: Sequence[str] | None = None,
    folder: Path | None = None,
) -> Provenance:
    """The provenance of a run that starts now.

    device: torch device; threads: of this run; argv: the command (None = `command_line`); folder: whose git
    repository counts as the user's (None = the current folder). Never fails for want of git.
    """
    user = git_state(folder or Path.cwd())
    own = git_state(Path(__file__).parent) if _is_checkout() else GitState(None, False, None)
    return Provenance(
        code=code_version(),
        commit=user.commit,
        dirty=user.dirty,
        diff_sha256=user.diff_sha256,
        package_commit=own.commit,
        package_dirty=own.dirty,
        argv=redact(command_line() if argv is None else argv),
        packages=dict(package_versions()),
        python=platform.python_version(),
        platform=platform.platform(terse=True),
        machine=machine_name(device),
        hardware=hardware_class(device, threads),
        device=device,
        threads=threads,
        deterministic=deterministic,
        notes=tuple(notes),
        host=socket.gethostname(),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def command_line() -> list[str]:
    """The command that a person gave: this process's, or that of the launcher which started it as a worker.

    Without the folder of the program, which says nothing that `code` does not say better.
    """
    handed_down = os.environ.get(COMMAND_VARIABLE)
    if handed_down is not None:
        return json.loads(handed_down)
    return [Path(sys.argv[0]).name, *sys.argv[1:]]


class GitState(NamedTuple):
    """What git says of a folder; all empty without git or a repository."""

    commit: str | None
    dirty: bool
    diff_sha256: str | None
    """SHA-256 of `git diff HEAD`; None if there is no difference."""


@functools.cache
def git_state(folder: Path) -> GitState:
    """Commit and difference of the repository that `folder` is in, asked once per process."""
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    if commit is None:
        return GitState(None, False, None)
    # Tracked files only: the run store itself usually lies untracked in the folder.
    diff = _git(folder, "diff", "--no-ext-diff", "--no-textconv", "--no-color", "--binary", "HEAD")
    changed = bool(diff)
    return GitState(commit.decode().strip(), changed, hashlib.sha256(diff).hexdigest() if diff else None)


def known_commits(folder: Path, commits: Iterable[str]) -> frozenset[str] | None:
    """Those of the commits that the repository which `folder` is in has; None without git or a repository."""
    if _git(folder, "rev-parse", "--git-dir") is None:
        return None
    named = (commit for commit in commits if re.fullmatch(r"[0-9a-f]{7,64}", commit))
    return frozenset(commit for commit in named if _git(folder, "cat-file", "-e", f"{commit}^{{commit}}") is not None)


def _git(folder: Path, *arguments: str) -> bytes | None:
    """Output of a git command that changes nothing and runs nobody's program; None if there is no answer."""
    command = ["git", "-C", str(folder), "-c", "core.fsmonitor=false", *arguments]
    # A partial clone would otherwise ask the network for what it lacks.
    quiet = {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "GIT_NO_LAZY_FETCH": "1"}
    environment = {**os.environ, **quiet}
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=_GIT_SECONDS, check=False, env=environment, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _is_checkout() -> bool:
    """Whether Winnow runs from its own repository: an installed copy may lie inside somebody else's."""
    return (Path(__file__).parents[3] / "src" / "winnow").is_dir()


@functools.cache
def package_versions() -> tuple[tuple[str, str], ...]:
    """Name and version of each of `PACKAGES` that is installed."""
    found: list[tuple[str, str]] = []
    for name in PACKAGES:
        try:
            found.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            continue
    return tuple(found)


def redact(argv: Sequence[str]) -> tuple[str, ...]:
    """The command with the values of secret options (`--token X`, `api_key=X`), logins and secret settings in URLs,
    known key forms and what secret environment variables hold replaced by `[redacted]`.

    The command behind `--then` is taken apart and treated likewise.
    """
    known = _secrets_of_the_environment()
    cleaned: list[str] = []
    hide_next = False
    command_next = False
    for argument in argv:
        for secret in known:
            argument = argument.replace(secret, REDACTED)
        if command_next:
            cleaned.append(_redact_command(argument))
            command_next = False
            continue
        if argument.startswith("--then="):
            cleaned.append(f"--then={_redact_command(argument.removeprefix('--then='))}")
            continue
        command_next = argument == "--then"
        if hide_next and not argument.startswith("-"):
            cleaned.append(REDACTED)
            hide_next = False
            continue
        hide_next = argument.startswith("-") and "=" not in argument and _is_secret_name(argument)
        option = _OPTION.fullmatch(argument)
        if option is not None and _is_secret_name(option["name"]):
            argument = f"{option['name']}{option['sign']}{REDACTED}"
        argument = _URL_LOGIN.sub(rf"\g<scheme>{REDACTED}@", argument)
        argument = _URL_SETTING.sub(_without_secret, argument)
        cleaned.append(_SECRET_VALUES.sub(REDACTED, argument))
    return tuple(cleaned)


def _redact_command(text: str) -> str:
    try:
        return shlex.join(redact(shlex.split(text)))
    except ValueError:  # an open quotation mark: it will be refused, and says nothing of how a run was made
        return REDACTED


def _without_secret(found: re.Match[str]) -> str:
    name = found["name"]
    # In a URL a key is a credential, whatever else it is called.
    hidden = _is_secret_name(name) or name.lower() in ("key", "sig", "signature", "x-amz-signature", "x-amz-credential")
    return f"{found['sign']}{name}={REDACTED}" if hidden else found[0]


def _secrets_of_the_environment() -> list[str]:
    """Values of the variables whose names speak of secrets (AWS_SECRET_ACCESS_KEY, HF_TOKEN), the longest first.

    Short ones are left out: replacing "1" everywhere would leave no command.
    """
    named = {name: value for name, value in os.environ.items() if name != "PWD" and _is_secret_name(name)}
    found = {value for value in named.values() if len(value) >= 8}
    return sorted(found, key=len, reverse=True)


def _is_secret_name(name: str) -> bool:
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]
    if any(word in _SECRET_WORDS for word in words):
        return True
    return any(word == "key" and before in _KEY_WORDS for before, word in itertools.pairwise(words))


def machine_name(device: str) -> str:
    """Model of the processor that does the arithmetic: the GPU's for a CUDA device, else the CPU's."""
    if device.startswith("cuda"):
        import torch  # only a process that trains on the GPU comes here, and it has torch already

        return torch.cuda.get_device_name(torch.device(device))
    return cpu_model()


@functools.cache
def cpu_model() -> str:
    """The CPU's model without marks and clock, for example `AMD EPYC` or `Intel Xeon Platinum 8481C`."""
    name = ""
    if sys.platform == "darwin":
        done = subprocess.run(
            ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False
        )
        name = done.stdout
    elif os.path.exists("/proc/cpuinfo"):
        found = re.search(
            r"^(?:model name|Model|cpu model)\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE
        )
        name = found[1] if found else ""
    return clean_cpu_name(name) or platform.processor() or platform.machine() or "unknown"


def clean_cpu_name(name: str) -> str:
    """A CPU's name as its maker writes it, without (R), core count, clock and the word processor."""
    name = re.sub(r"\((?:R|TM|C)\)|\bCPU\b|@.*$|\b\d+-Core\b|\bProcessor\b", " ", name, flags=re.IGNORECASE)
    return " ".join(name.split())


def hardware_class(device: str, threads: int) -> str:
    """Machines whose runs are expected to differ alike: the noise ledger keeps one variance for each."""
    kind = device.partition(":")[0]
    if kind == "cpu":
        return f"cpu {cpu_model()} {threads} thread{'' if threads == 1 else 's'}"
    return f"{kind} {machine_name(device)}"

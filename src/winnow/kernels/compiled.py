"""The C++ kernels: built with the machine's own compiler when first wanted, kept in the user's cache, loaded by ctypes.

One library holds the same code for AVX-512, for AVX2 with FMA, and for any processor (vectors of four; NEON on ARM);
`instance` says which one runs here. The library needs nothing of PyTorch but its threads: it is linked to an OpenMP
runtime by the name that PyTorch's wheel has loaded already, so both share one. A compiler without OpenMP gives a
library of one thread.

    $XDG_CACHE_HOME/winnow/kernels/selective-<digest>.so     digest of the sources, the flags and the compiler

The file ends with its SHA-256 (32 bytes, which loaders ignore); what does not match it is built again. Environment:
`CXX` names the compiler, with arguments if need be, `WINNOW_CPU_ISA` forces an instance: avx512, avx2 or portable.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch  # loads its OpenMP runtime, before the library asks for one

from winnow.errors import InputError
from winnow.records.files import FileLock, make_folder, write_atomic

SOURCES = Path(__file__).parent / "cpp"
UNIT = "selective.cpp"
"""What is compiled, once per instance; all else in the folder is included by it."""
FLAGS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-math-errno",
    "-ffp-contract=fast",
)
INSTANCES = ("portable", "avx2", "avx512")
"""By rank; the library speaks of them by index."""
_TARGETS = {
    "portable": ("-DWINNOW_CHOOSES",),
    "avx2": ("-mavx2", "-mfma"),
    "avx512": ("-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mfma"),
}
_CHECKSUM = 32


class BuildError(Exception):
    """The compiler cannot build the kernels; the message is one line."""


@dataclass(frozen=True)
class Compiler:
    """A compiler and what it says of itself."""

    path: str
    version: str
    arguments: tuple[str, ...] = ()
    """That CXX gives it: `ccache g++`, `g++ -m64`."""

    @property
    def command(self) -> list[str]:
        return [self.path, *self.arguments]


@lru_cache
def library() -> ctypes.CDLL:
    """The kernels, built if need be. Raises BuildError."""
    compiler = find_compiler()
    name = f"selective-{_digest(compiler)}.so"
    try:
        path = cache_folder() / name
        if _sound(path):
            return _load(path)
        make_folder(path.parent)
        with FileLock(path.with_suffix(".lock")):  # a second process waits instead of building the same
            if not _sound(path):
                content = _build(compiler)
                write_atomic(path, content + hashlib.sha256(content).digest())
        return _load(path)
    except InputError as error:
        warnings.warn(f"the compiled kernels cannot be kept, each process builds them: {error}", stacklevel=2)
    with tempfile.TemporaryDirectory(prefix="winnow-") as folder:
        once = Path(folder) / name
        once.write_bytes(_build(compiler))
        return _load(once)  # stays mapped when its file is gone


@lru_cache
def available() -> str | None:
    """None if the kernels can run, else why not; then also said once, in one line, on stderr."""
    try:
        library()
    except BuildError as error:
        print(
            f"winnow: no compiled attention kernels ({error}); PyTorch's operations are used instead", file=sys.stderr
        )
        return str(error)
    return None


def instance() -> int:
    """Index into INSTANCES of what runs here: the widest that the processor has, or WINNOW_CPU_ISA.

    Raises InputError for an unknown name or one that this processor cannot run.
    """
    widest = int(library().winnow_widest())
    name = os.environ.get("WINNOW_CPU_ISA", "")
    if not name:
        return widest
    can = INSTANCES[: widest + 1]
    if name not in can:
        raise InputError(f"{name!r} cannot run here", key="WINNOW_CPU_ISA", mend=f"permitted: {', '.join(can)}")
    return INSTANCES.index(name)


def call(name: str, problem: ctypes.Structure, result: ctypes.Structure) -> None:
    """Run `winnow_<name>`. Raises MemoryError if there is no room for its buffers."""
    function = getattr(library(), f"winnow_{name}")
    if function(instance(), ctypes.byref(problem), ctypes.byref(result)):
        raise MemoryError(f"no memory for the buffers of {name}")


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/winnow/kernels`, or `~/.cache/winnow/kernels`."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):  # the specification says to ignore a relative path there
        return Path(base) / "winnow" / "kernels"
    try:
        return Path.home() / ".cache" / "winnow" / "kernels"
    except RuntimeError as error:  # a container's user without a name
        raise InputError("this user has no home folder", key="XDG_CACHE_HOME", mend="set it") from error


def find_compiler() -> Compiler:
    """$CXX, or the first of c++, g++, clang++ on the path. Raises BuildError."""
    named = os.environ.get("CXX", "").strip()
    commands = [[named], _words(named)] if named else [["c++"], ["g++"], ["clang++"]]  # a path may hold spaces
    for name, *arguments in commands:
        path = shutil.which(name)
        if path is not None:
            return Compiler(path, _run([path, *arguments, "--version"]), tuple(arguments))
    raise BuildError(f"CXX={named!r} is no program" if named else "no C++ compiler is installed")


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError as error:
        raise BuildError(f"CXX={command!r}: {error}") from error


def _load(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:  # a file system without execution, a runtime library that is gone
        raise BuildError(f"they were built and cannot be loaded: {error}") from error


def _digest(compiler: Compiler) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in SOURCES.iterdir() if path.suffix in (".h", ".cpp")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    parts = (*FLAGS, *_instances(), *(flag for name in _instances() for flag in _TARGETS[name]), *compiler.arguments)
    digest.update("\0".join((*parts, compiler.path, compiler.version, platform.machine(), sys.platform)).encode())
    return digest.hexdigest()[:24]


def _instances() -> tuple[str, ...]:
    return INSTANCES if platform.machine().lower() in ("x86_64", "amd64") else INSTANCES[:1]


def _sound(path: Path) -> bool:
    try:
        content = path.read_bytes()
    except OSError:
        return False  # not there, or not readable: built again, and a lasting fault shows when it is written
    return len(content) > _CHECKSUM and hashlib.sha256(content[:-_CHECKSUM]).digest() == content[-_CHECKSUM:]


def _build(compiler: Compiler) -> bytes:
    name = Path(compiler.path).name
    print(
        f"winnow: building the attention kernels with {name} (once, ten to twenty seconds)", file=sys.stderr, flush=True
    )
    try:
        return _build_with(compiler, ("-fopenmp",))
    except BuildError as error:
        try:
            content = _build_with(compiler, ())
        except BuildError:
            raise error from None
    warnings.warn(f"{name} has no OpenMP: the attention kernels run on one thread", stacklevel=3)
    return content


def _build_with(compiler: Compiler, threads: tuple[str, ...]) -> bytes:
    with tempfile.TemporaryDirectory(prefix="winnow-") as folder:
        objects: list[str] = []
        compilations: list[subprocess.Popen[str]] = []
        for name in _instances():
            objects.append(f"{folder}/{name}.o")
            command = [*compiler.command, *FLAGS, *threads, *_TARGETS[name], f"-DWINNOW_ISA={name}"]
            command += ["-c", str(SOURCES / UNIT), "-o", objects[-1]]
            compilations.append(_start(command))
        complaints = [_complaint(compilation) for compilation in compilations]  # all are waited for
        for complaint in complaints:
            if complaint is not None:
                raise BuildError(f"{compiler.path}: {complaint}")
        built = f"{folder}/selective.so"
        _run([*compiler.command, "-shared", *threads, *objects, "-o", built])
        return Path(built).read_bytes()


def _start(command: list[str]) -> subprocess.Popen[str]:
    try:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    except OSError as error:
        raise BuildError(f"{command[0]}: {error.strerror}") from error


def _complaint(process: subprocess.Popen[str]) -> str | None:
    """What a finished process said, in one line, or None if it succeeded."""
    said, _ = process.communicate()
    if process.returncode == 0:
        return None
    lines = [line for line in said.splitlines() if "error" in line.lower()] or said.splitlines()
    return lines[0].strip() if lines else f"ended with {process.returncode}"


def _run(command: list[str]) -> str:
    """What a command prints. Raises BuildError if it fails."""
    process = _start(command)
    said, _ = process.communicate()
    if process.returncode:
        lines = said.splitlines()
        raise BuildError(f"{command[0]}: {lines[0].strip() if lines else f'ended with {process.returncode}'}")
    return said


assert torch.__version__  # the import above is for its effect

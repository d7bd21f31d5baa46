"""Building, keeping and choosing the compiled kernels, mostly on a stand-in source that compiles in no time."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from winnow.errors import InputError
from winnow.kernels import compiled

STAND_IN = """
#include "answer.h"
#if defined(WINNOW_CHOOSES)
extern "C" int answer() { return ANSWER; }
extern "C" int winnow_widest() { return WIDEST; }
#endif
"""
ANSWER = "#define ANSWER 7\n#define WIDEST 0\n"

needs_compiler = pytest.mark.skipif(
    all(shutil.which(name) is None for name in ("c++", "g++", "clang++")), reason="no C++ compiler"
)


@pytest.fixture(autouse=True)
def afresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A source folder and a cache of the test's own; what the process has loaded already is set aside."""
    sources = tmp_path / "cpp"
    sources.mkdir()
    (sources / compiled.UNIT).write_text(STAND_IN)
    (sources / "answer.h").write_text(ANSWER)
    monkeypatch.setattr(compiled, "SOURCES", sources)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("WINNOW_CPU_ISA", raising=False)
    forget()
    yield sources
    forget()


def forget() -> None:
    compiled.library.cache_clear()
    compiled.available.cache_clear()


def kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "winnow" / "kernels").glob("*.so"))


@needs_compiler
def test_built_once_with_a_word_about_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert compiled.available() is None
    assert compiled.library().answer() == 7
    assert capfd.readouterr().err.count("building the attention kernels") == 1
    forget()
    assert compiled.library().answer() == 7
    assert capfd.readouterr().err == ""
    assert len(kept(tmp_path)) == 1
    assert not list(tmp_path.glob("cache/**/*.tmp"))


@needs_compiler
def test_other_sources_flags_or_compilers_are_another_library(
    tmp_path: Path, afresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled.library()
    (afresh / "answer.h").write_text(ANSWER.replace("7", "8"))  # an included file, not the unit itself
    forget()
    assert compiled.library().answer() == 8
    monkeypatch.setattr(compiled, "FLAGS", (*compiled.FLAGS, "-g"))
    forget()
    compiled.library()
    assert len(kept(tmp_path)) == 3
    one = compiled.Compiler("/usr/bin/c++", "12")
    digests = {compiled._digest(c) for c in (one, compiled.Compiler("/usr/bin/c++", "13"))}
    assert len(digests) == 2


@needs_compiler
@pytest.mark.parametrize("damage", ["cut short", "a bit turned", "empty"])
def test_a_damaged_library_is_built_again(tmp_path: Path, damage: str, capfd: pytest.CaptureFixture[str]) -> None:
    compiled.library()
    (path,) = kept(tmp_path)
    content = bytearray(path.read_bytes())
    path.unlink()  # the process has the sound one mapped
    if damage == "a bit turned":
        content[len(content) // 2] ^= 1
    path.write_bytes({"cut short": content[:-9], "a bit turned": content, "empty": b""}[damage])
    capfd.readouterr()
    forget()
    assert compiled.library().answer() == 7
    assert "building" in capfd.readouterr().err
    assert compiled._sound(path)


RACE = """
import sys
from pathlib import Path
from winnow.kernels import compiled
compiled.SOURCES = Path(sys.argv[1])
print(compiled.library().answer())
"""


@needs_compiler
def test_two_processes_at_once_build_one_library(tmp_path: Path, afresh: Path) -> None:
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(afresh)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    said = [racer.communicate() for racer in racers]
    assert [out for out, _ in said] == ["7\n", "7\n"], said
    assert sum(err.count("building") for _, err in said) == 1
    assert len(kept(tmp_path)) == 1


def test_without_a_compiler_one_line_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for _ in range(2):
        assert compiled.available() == "no C++ compiler is installed"
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert "no C++ compiler" in said
    monkeypatch.setenv("CXX", "no-such-program")
    forget()
    assert compiled.available() == "CXX='no-such-program' is no program"


@needs_compiler
def test_a_compiler_with_arguments_and_one_in_a_folder_with_spaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, afresh: Path
) -> None:
    compiler = compiled.find_compiler().path
    (afresh / "answer.h").write_text(ANSWER.replace("7", "FROM_CXX"))
    monkeypatch.setenv("CXX", f"{compiler} -DFROM_CXX=9")
    assert compiled.library().answer() == 9
    monkeypatch.setenv("CXX", f"{compiler} -DFROM_CXX=10")
    forget()
    assert compiled.library().answer() == 10
    folder = tmp_path / "with a space"
    folder.mkdir()
    (folder / "my c++").symlink_to(compiler)
    monkeypatch.setenv("CXX", str(folder / "my c++"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    (afresh / "answer.h").write_text(ANSWER)
    forget()
    assert compiled.library().answer() == 7
    monkeypatch.setenv("CXX", "'c++")
    forget()
    assert "CXX" in str(compiled.available())


@needs_compiler
def test_without_a_home_it_is_built_for_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")

    def nobody() -> Path:
        raise RuntimeError("could not determine home directory")

    monkeypatch.setattr(compiled.Path, "home", nobody)
    with pytest.warns(UserWarning, match="no home folder"):
        assert compiled.library().answer() == 7


@needs_compiler
def test_a_library_that_does_not_load_is_a_reason(afresh: Path) -> None:
    with (afresh / compiled.UNIT).open("a") as unit:
        unit.write('#if defined(WINNOW_CHOOSES)\nextern "C" int gone();\nint (*needed)() = gone;\n#endif\n')
    assert "cannot be loaded" in str(compiled.available())


@needs_compiler
def test_what_the_compiler_objects_to_is_one_line(afresh: Path) -> None:
    (afresh / compiled.UNIT).write_text("int nonsense = ;\n")
    reason = compiled.available()
    assert reason is not None
    assert "error" in reason
    assert "\n" not in reason


def wrapper(path: Path, refuses: str) -> None:
    compiler = compiled.find_compiler().path
    path.write_text(f'#!/bin/sh\nfor a; do [ "$a" = {refuses} ] && {{ echo "error: no $a"; exit 1; }}; done\n'
                    f'exec {compiler} "$@"\n')  # fmt: skip
    path.chmod(0o755)


@needs_compiler
def test_a_compiler_without_openmp_gives_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrapper(tmp_path / "plain++", "-fopenmp")
    monkeypatch.setenv("CXX", str(tmp_path / "plain++"))
    with pytest.warns(UserWarning, match="one thread"):
        assert compiled.library().answer() == 7


@needs_compiler
def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, where the folder should be")
    with pytest.warns(UserWarning, match="cannot be kept"):
        assert compiled.library().answer() == 7


@needs_compiler
def test_the_instance_is_the_widest_or_the_one_named(afresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (afresh / "answer.h").write_text(ANSWER.replace("WIDEST 0", "WIDEST 1"))
    assert compiled.instance() == 1
    monkeypatch.setenv("WINNOW_CPU_ISA", "portable")
    assert compiled.instance() == 0
    for wrong in ("avx512", "sse"):
        monkeypatch.setenv("WINNOW_CPU_ISA", wrong)
        with pytest.raises(InputError, match="permitted: portable, avx2"):
            compiled.instance()


@needs_compiler
def test_no_room_is_an_error(afresh: Path) -> None:
    with (afresh / compiled.UNIT).open("a") as unit:
        unit.write('#if defined(WINNOW_CHOOSES)\nextern "C" int winnow_fail(int, void*, void*) { return 1; }\n#endif\n')

    class Nothing(ctypes.Structure):
        _fields_ = (("none", ctypes.c_int),)

    with pytest.raises(MemoryError, match="fail"):
        compiled.call("fail", Nothing(), Nothing())


@needs_compiler
def test_instances_share_no_code(tmp_path: Path) -> None:
    """What two instances define under one name, the linker takes from either: AVX-512 code on a processor without."""
    if shutil.which("nm") is None:
        pytest.skip("no nm")
    compiler = compiled.find_compiler()
    shared: list[set[str]] = []
    if len(compiled._instances()) < 2:
        pytest.skip("one instance")
    for name in (compiled._instances()[0], compiled._instances()[-1]):
        target = tmp_path / f"{name}.o"
        flags = [*compiled.FLAGS, "-O0", *compiled._TARGETS[name], f"-DWINNOW_ISA={name}", "-UWINNOW_CHOOSES"]
        unit = str(Path(compiled.__file__).parent / "cpp" / compiled.UNIT)
        subprocess.run([compiler.path, *flags, "-c", unit, "-o", str(target)], check=True, capture_output=True)
        said = subprocess.run(["nm", "--defined-only", str(target)], check=True, capture_output=True, text=True).stdout
        parts = [line.split() for line in said.splitlines()]
        shared.append({symbol for *_, kind, symbol in parts if kind in "TWVuDBRG"})
    assert shared[0]
    assert not shared[0] & shared[1]

"""`plugins build` and `plugins path`: what is missing is said in a sentence, nothing is left."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from svit_deploy import plugins
from svit_deploy.cli import main
from svit_deploy.errors import CapabilityError, UsageError
from svit_deploy.plugins import AUTOREGISTER, LIBRARY, RECORD, SOURCE
from svit_deploy.plugins import build as driver
from svit_deploy.plugins.build import build_plugins, essence, read_tensorrt_version

VERSION_10 = """
#define NV_TENSORRT_MAJOR 10 //!< TensorRT major version.
#define NV_TENSORRT_MINOR 9  //!< TensorRT minor version.
#define NV_TENSORRT_PATCH 0  //!< TensorRT patch version.
#define NV_TENSORRT_BUILD 34 //!< TensorRT build number.
"""
VERSION_11 = """
#define TRT_MAJOR_ENTERPRISE 11
#define TRT_MINOR_ENTERPRISE 1
#define TRT_PATCH_ENTERPRISE 0
#define TRT_BUILD_ENTERPRISE 106
#define NV_TENSORRT_MAJOR TRT_MAJOR_ENTERPRISE //!< TensorRT major version.
#define NV_TENSORRT_MINOR TRT_MINOR_ENTERPRISE //!< TensorRT minor version.
#define NV_TENSORRT_PATCH TRT_PATCH_ENTERPRISE //!< TensorRT patch version.
#define NV_TENSORRT_BUILD TRT_BUILD_ENTERPRISE //!< TensorRT build number.
"""
Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """`svit-deploy --quiet plugins ...`: exit code, standard output, standard error."""

    def run(*args: str | Path) -> tuple[int, str, str]:
        code = main(["--quiet", "plugins", *map(str, args)])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def headers(tmp_path: Path) -> Path:
    """Headers that say their version and nothing else."""
    folder = tmp_path / "include"
    folder.mkdir()
    (folder / "NvInferRuntime.h").write_text("#error these headers are empty\n")
    (folder / "NvInferVersion.h").write_text(VERSION_10)
    return folder


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only programs there are: a CMake, a C++ and a CUDA compiler that never work."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("cmake", "c++", "nvcc"):
        script = folder / name
        script.write_text(
            "#!/bin/sh\n"
            'case "$1" in --list-gpu-arch) echo compute_80; echo compute_90;;'
            " --version) echo Cuda compilation tools, release 12.6, V12.6.20;;"
            " *) echo 'CMake Error: it does not work.'; exit 1;; esac\n"
        )
        script.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(driver.sys, "executable", str(tmp_path / "python"))
    monkeypatch.delenv("CXX", raising=False)
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where `plugins path` looks: an empty place."""
    monkeypatch.setenv("SVIT_DEPLOY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "plugins"


def put_library(folder: Path, source: str) -> Path:
    """What looks like a build from a source."""
    folder.mkdir(parents=True)
    (folder / LIBRARY).write_bytes(b"\x7fELF")
    (folder / RECORD).write_text(json.dumps({"source_sha256": source}))
    return folder / LIBRARY


# --- where the library is -----------------------------------------------------------------------


def test_path_of_a_library(cli: Cli, cache: Path):
    code, out, err = cli("path")
    assert (code, out) == (4, "")
    assert err == (
        f"error: no TensorRT plugin library in {cache}; "
        "run svit-deploy plugins build --tensorrt-include DIR.\n"
    )
    library = put_library(cache, plugins.source_sha256())
    assert cli("path") == (0, f"{library}\n", "")
    assert plugins.library_path() == library
    assert len(plugins.library_sha256(library)) == 64


@pytest.mark.parametrize("record", ["0" * 64, None])
def test_library_of_another_source_is_not_used(cli: Cli, cache: Path, record: str | None):
    library = put_library(cache, record or "")
    if record is None:
        (cache / RECORD).write_text("[]")
    code, _, err = cli("path")
    assert code == 4
    assert f"{library} was built from the source of another release" in err


def test_default_folder(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("SVIT_DEPLOY_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert plugins.default_folder() == Path("/home/me/.cache/svit-deploy/plugins")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert plugins.default_folder() == Path("/cache/svit-deploy/plugins")
    monkeypatch.setenv("SVIT_DEPLOY_CACHE", "/mine")
    assert plugins.default_folder() == Path("/mine/plugins")


def test_no_home_folder(cli: Cli, headers: Path, tools: Path, monkeypatch: pytest.MonkeyPatch):
    def fail() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("SVIT_DEPLOY_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", fail)
    words = "there is no home folder to keep plugins in; set SVIT_DEPLOY_CACHE to a folder."
    for command in (["path"], ["build", "--tensorrt-include", headers]):
        assert cli(*command) == (4, "", f"error: {words}\n")


def test_source_hash_sees_every_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    copy = tmp_path / "source"
    shutil.copytree(SOURCE, copy)
    monkeypatch.setattr(plugins, "SOURCE", copy)
    seen = {plugins.source_sha256()}
    for file in sorted(copy.iterdir()):
        file.write_bytes(file.read_bytes() + b"\n")
        seen.add(plugins.source_sha256())
    file.rename(file.with_suffix(".renamed"))
    seen.add(plugins.source_sha256())
    assert len(seen) == len(list(copy.iterdir())) + 2


# --- what a build needs -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "version"), [(VERSION_10, "10.9.0.34"), (VERSION_11, "11.1.0.106")]
)
def test_version_of_headers(headers: Path, text: str, version: str):
    (headers / "NvInferVersion.h").write_text(text)
    assert read_tensorrt_version(headers) == version


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (VERSION_10.replace(" 9 ", " 2 "), "are of TensorRT 10.2.0.34, and the plugins need 10.3"),
        (VERSION_10.replace(" 10 ", " 8 "), "are of TensorRT 8.9.0.34"),
        ("", "does not say its version"),
        (VERSION_11.replace("MAJOR_ENTERPRISE 11", ""), "does not say its version"),
    ],
)
def test_headers_that_will_not_do(cli: Cli, headers: Path, text: str, words: str):
    (headers / "NvInferVersion.h").write_text(text)
    code, _, err = cli("build", "--tensorrt-include", headers)
    assert code == 4
    assert words in err


@pytest.mark.parametrize("name", ["NvInferRuntime.h", "NvInferVersion.h"])
def test_missing_headers(cli: Cli, headers: Path, cache: Path, name: str):
    (headers / name).unlink()
    code, _, err = cli("build", "--tensorrt-include", headers)
    assert code == 4
    assert err.startswith(f"error: {headers} has no {name}; give --tensorrt-include")
    for place in ("SDK", "libnvinfer-headers-dev", "open-source TensorRT repository"):
        assert place in err
    assert not cache.exists()


@pytest.mark.parametrize(
    ("tool", "words"),
    [
        ("cmake", "needs cmake, which is not on PATH; run pip install 'svit-deploy[plugins]'."),
        ("c++", "needs c++, which is not on PATH; install g++, or set CXX to a C++ compiler."),
    ],
)
def test_missing_tools(cli: Cli, headers: Path, tools: Path, tool: str, words: str):
    (tools / tool).unlink()
    code, _, err = cli("build", "--tensorrt-include", headers)
    assert (code, err) == (4, f"error: building the plugins {words}\n")


def test_cmake_is_found_where_pip_puts_it(tools: Path, tmp_path: Path):
    assert driver.find_cmake() == str(tools / "cmake")
    (tools / "cmake").rename(tmp_path / "cmake")  # beside the `python` of the fixture
    assert driver.find_cmake() == str(tmp_path / "cmake")


def test_missing_cuda_compiler(
    cli: Cli, headers: Path, tools: Path, monkeypatch: pytest.MonkeyPatch
):
    (tools / "nvcc").unlink()
    monkeypatch.setattr(driver, "CUDA_HOME", str(tools / "nowhere"))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    code, _, err = cli("build", "--tensorrt-include", headers)
    assert code == 4
    assert "no CUDA compiler (nvcc) found; install the CUDA toolkit, or name its nvcc" in err
    code, _, err = cli("build", "--tensorrt-include", headers, "--nvcc", tools / "my-nvcc")
    assert code == 4
    assert f"no CUDA compiler at {tools / 'my-nvcc'};" in err


def test_cuda_compiler_is_found_where_toolkits_are(
    tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "toolkit"))
    assert driver.find_nvcc() == str(tools / "nvcc")
    toolkit = tmp_path / "toolkit" / "bin"
    toolkit.mkdir(parents=True)
    (tools / "nvcc").rename(toolkit / "nvcc")
    assert driver.find_nvcc() == str(toolkit / "nvcc")
    assert driver.find_nvcc(str(tools / "c++")) == str(tools / "c++")


@pytest.mark.parametrize(
    ("script", "words"),
    [("exit 3", "does not run"), ("echo hello", "is no CUDA compiler")],
)
def test_something_else_for_a_cuda_compiler(
    cli: Cli, headers: Path, tools: Path, script: str, words: str
):
    (tools / "nvcc").write_text(f"#!/bin/sh\n{script}\n")
    code, _, err = cli("build", "--tensorrt-include", headers)
    assert code == 4
    assert words in err


@pytest.mark.parametrize("sm", ["", "90,", "sm_90", "90a", "9.0", "-90"])
def test_sm_that_is_no_list(cli: Cli, headers: Path, tools: Path, sm: str):
    code, _, err = cli("build", "--tensorrt-include", headers, f"--sm={sm}")
    assert code == 2
    assert f"--sm {sm!r} is not a list of GPU generations; write --sm 75,90." in err


def test_sm_that_the_compiler_does_not_know(cli: Cli, headers: Path, tools: Path):
    code, _, err = cli("build", "--tensorrt-include", headers, "--sm", "80,120,200")
    assert code == 4
    assert "cannot compile for sm 120, 200; choose among 80,90 with --sm" in err


def test_missing_options(cli: Cli):
    code, _, err = cli("build")
    assert (code, "'--tensorrt-include'" in err) == (2, True)
    code, _, err = cli()
    assert (code, "missing command" in err) == (2, True)


# --- what a build leaves ------------------------------------------------------------------------


def kept_log(err: str) -> str:
    """The log that an error names, which is then removed."""
    found = re.search(r"see the whole log in (\S+\.log)\.$", err)
    assert found, err
    text = Path(found[1]).read_text()
    Path(found[1]).unlink()
    return text


def test_failed_build_leaves_its_log_and_nothing_else(cli: Cli, headers: Path, tools: Path):
    output = headers.parent / "out"
    code, _, err = cli("build", "--tensorrt-include", headers, "--output", output)
    assert code == 5
    assert "the plugins did not compile (it does not work); see" in err
    assert f"-DTENSORRT_INCLUDE_DIR={headers}" in kept_log(err)
    assert not output.exists()
    assert sorted(path.name for path in headers.parent.iterdir()) == ["bin", "include"]


def test_an_interrupted_build_ends_its_compilers(tmp_path: Path):
    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    script = f"sleep 600 & echo $! > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/pid; wait"
    kept = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with pytest.raises(KeyboardInterrupt):
            driver._run(["sh", "-c", script], "")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, kept)
    compiler = Path("/proc") / (tmp_path / "pid").read_text().strip() / "stat"
    assert not compiler.exists() or compiler.read_text().rpartition(")")[2].split()[0] == "Z"


def test_output_of_something_else_is_not_replaced(cli: Cli, headers: Path, tools: Path):
    output = headers.parent / "out"
    output.mkdir()
    (output / "mine.txt").write_text("mine")
    for path in (output, output / "mine.txt"):
        code, _, err = cli("build", "--tensorrt-include", headers, "-o", path)
        assert code == 2
        assert f"{path} exists and is no earlier build of the plugins" in err
    assert (output / "mine.txt").read_text() == "mine"


@pytest.mark.slow
def test_compiler_error_is_told_and_the_earlier_build_stays(
    cli: Cli, headers: Path, cache: Path, cmake: str, nvcc: str
):
    put_library(cache, plugins.source_sha256())
    before = {file.name: file.read_bytes() for file in cache.iterdir()}
    code, _, err = cli("build", "--tensorrt-include", headers, "--sm", "90")
    assert code == 5
    assert "NvInferRuntime.h:1:2: error: #error these headers are empty" in err
    assert "error: #error these headers are empty" in kept_log(err)
    assert {file.name: file.read_bytes() for file in cache.iterdir()} == before
    assert [path.name for path in cache.parent.iterdir()] == ["plugins"]


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (
            "[ 20%] Building\n/a/b/rows.cpp: In function 'f':\n/a/b/rows.cpp:7:3: error: 'x' was "
            "not declared\n/a/b/rows.cpp:9:3: error: second\nmake: *** [all] Error 2\n",
            "rows.cpp:7:3: error: 'x' was not declared",
        ),
        (
            '/x/kernels.cu(7): error: identifier "y" is undefined\n',
            'kernels.cu(7): error: identifier "y" is undefined',
        ),
        (
            "nvcc fatal   : Unsupported gpu architecture\nmake: *** [all] Error 1\n",
            "nvcc fatal : Unsupported gpu architecture",
        ),
        (
            "-- The CXX\nCMake Error at CMakeLists.txt:12 (project):\n  No CMAKE_CXX_COMPILER\n"
            "  could be found.\n\n  Tell where.\n\n-- Configuring incomplete, errors occurred!\n",
            "No CMAKE_CXX_COMPILER could be found",
        ),
        ("gmake: command not found\n", "gmake: command not found"),
        ("", ""),
        ("error: " + "x" * 1000, "error: " + "x" * 293),
    ],
)
def test_essence_of_an_output(output: str, expected: str):
    assert essence(output) == expected


def test_build(cli: Cli, tensorrt_include: Path, cmake: str, nvcc: str, cache: Path):
    source = {file.name: file.stat().st_mtime_ns for file in SOURCE.iterdir()}
    for sm in ("90", "80,90"):  # the second replaces the first
        code, out, err = cli("build", "--tensorrt-include", tensorrt_include, "--sm", sm)
        assert (code, err) == (0, "")
    version = read_tensorrt_version(tensorrt_include)
    assert out.startswith(f"built {cache / LIBRARY} for TensorRT {version}, sm 80 90, with nvcc ")
    assert {file.name for file in cache.iterdir()} == {LIBRARY, AUTOREGISTER, RECORD}
    record = json.loads((cache / RECORD).read_text())
    assert record["sm"] == [80, 90]
    assert record["tensorrt"] == version
    assert record["source_sha256"] == plugins.source_sha256()
    assert re.fullmatch(r"\d+\.\d+\.\d+", record["nvcc"])
    assert cli("path") == (0, f"{cache / LIBRARY}\n", "")
    # An installed package may be read-only: nothing is written into it.
    assert {file.name: file.stat().st_mtime_ns for file in SOURCE.iterdir()} == source


def test_build_on_another_system(headers: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(driver.sys, "platform", "win32")
    with pytest.raises(CapabilityError, match="on Linux only"):
        build_plugins(headers)


def test_build_checks_the_output_first(headers: Path, tools: Path, tmp_path: Path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UsageError, match="no earlier build"):
        build_plugins(headers, file)

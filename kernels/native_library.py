"""The C++ sources of this folder as libraries: compiled for the machine at hand, kept, loaded."""

import contextlib
import ctypes
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import tempfile
import time
from pathlib import Path

COMPILERS = ("c++", "g++", "clang++")
FLAGS = (
    "-O3",
    "-std=c++20",
    "-shared",
    "-fPIC",
    "-pthread",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
)

UNUSED_DAYS, LEFTOVER_DAYS = 90, 1  # after which libraries, and parts of them, are removed
CPUINFO = Path("/proc/cpuinfo")  # of Linux

# What matrices are computed in, and what native_bf16.h is compiled with.
ARITHMETICS: dict[str, dict[str, int]] = {
    "float32": {},
    "avx512_bf16": {"BF16": 1},
    "amx_bf16": {"BF16": 2},
    "amx_bf16 emulated": {"BF16": 2, "EMULATE_TILES": 1},
}

logger = logging.getLogger(__name__)

_unkept: dict[str, ctypes.CDLL] = {}  # libraries that only this process has, by their names


class CompileError(RuntimeError):
    """The kernels cannot be compiled here; the message says why."""


def load_library(source: str, **defined: int) -> ctypes.CDLL:
    """A source of this folder as a library, compiled for this CPU unless an earlier process did so
    on the same machine.

    What is loaded from the cache is what was written there, by its SHA-256. If a library cannot be
    compiled, loaded and kept there, it is compiled once more for this process alone.

    Args:
        source: the file to compile.
        defined: macros and their values.

    Raises:
        CompileError: no C++ compiler, or one that does not know C++20 or this CPU.
    """
    compiler = find_compiler()
    arm_mac = platform.system() == "Darwin" and platform.machine() == "arm64"
    command = [
        *compiler,
        *FLAGS,
        "-mcpu=native" if arm_mac else "-march=native",
        *(f"-D{name}={value}" for name, value in defined.items()),
    ]
    folder = Path(__file__).parent
    try:
        version = subprocess.run(
            [*compiler, "--version"], capture_output=True, text=True, errors="replace"
        ).stdout
        files = (folder / source, *sorted(folder.glob("*.h")))
        texts = [file.read_text(encoding="utf-8") for file in files]
        identity = "\0".join([*command, version, _cpu(), *texts])
        name = f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.so"
        if name in _unkept:
            return _unkept[name]
        if (cache := _cache()) is not None:
            try:
                if (kept := _kept(cache / name)) is not None:
                    return kept
                compiled = _compile(command, files[0], cache / name)
                _remove_unused(cache)
                return compiled
            except (OSError, CompileError) as error:
                logger.info("compiling the CPU kernels once more: %s", error)
        with tempfile.TemporaryDirectory(prefix="lkdn-", ignore_cleanup_errors=True) as own:
            _unkept[name] = _compile(command, files[0], Path(own) / name)
        return _unkept[name]
    except OSError as error:
        raise CompileError(f"expected to compile and load the CPU kernels, got: {error}") from error


def find_compiler() -> list[str]:
    """The command of the C++ compiler that CXX names, arguments and all, or the first of COMPILERS.
    Raises CompileError; also on Windows, where nobody has tried what it would make."""
    if platform.system() == "Windows":
        raise CompileError("expected Linux or macOS for the CPU kernels, got Windows")
    own = os.environ.get("CXX", "")
    for command in ([own], own.split(), *([name] for name in COMPILERS)):
        if command and (path := shutil.which(command[0])):
            return [path, *command[1:]]
    raise CompileError("expected a C++ compiler for the CPU kernels, got none: install g++")


def _kept(library: Path) -> ctypes.CDLL | None:
    """What an earlier process compiled, if it is there and undamaged. Its files' times become those
    of its last use."""
    digest = library.with_suffix(".sha256")
    try:
        if _digest(library) == digest.read_text(encoding="ascii"):
            loaded = ctypes.CDLL(str(library))
            with contextlib.suppress(OSError):
                os.utime(library)
                os.utime(digest)
            return loaded
    except (OSError, UnicodeDecodeError):  # compiled anew
        pass
    return None


def _compile(command: list[str], source: Path, library: Path) -> ctypes.CDLL:
    """Compile, load, and only then keep it as `library`, with its digest beside it."""
    logger.info("compiling the CPU kernels")
    handle, name = tempfile.mkstemp(suffix=".so", dir=library.parent)
    os.close(handle)
    temporary, digest = Path(name), Path(name).with_suffix(".sha256")
    try:
        subprocess.run(
            [*command, str(source), "-o", name],
            check=True,
            capture_output=True,
            text=True,
            errors="replace",
            env=os.environ | {"LC_ALL": "C"},  # its errors are looked for in English
        )
        loaded = ctypes.CDLL(name)
        digest.write_text(_digest(temporary), encoding="ascii")
        for file in (temporary, digest):
            file.chmod(0o600)
        os.replace(digest, library.with_suffix(".sha256"))
        os.replace(temporary, library)
        return loaded
    except subprocess.CalledProcessError as error:
        said = [line for line in error.stderr.splitlines() if "error" in line] or ["nothing said"]
        raise CompileError(f"{command[0]} cannot compile {source.name}: {said[0]}") from error
    finally:
        temporary.unlink(missing_ok=True)
        digest.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty, as a rule
            library.parent.rmdir()


def _remove_unused(cache: Path) -> None:
    """Remove libraries that nobody has used for long, as those of earlier versions, and what killed
    compilers left behind. Another process may do so at the same time."""
    for file in cache.iterdir():
        days = LEFTOVER_DAYS if file.name.startswith(tempfile.gettempprefix()) else UNUSED_DAYS
        with contextlib.suppress(OSError):
            if file.stat().st_mtime < time.time() - days * 24 * 3600:
                file.unlink()


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _cache() -> Path | None:
    """The user's cache of compiled kernels, if it is this user's and nobody else may write to it:
    what lies there is run."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lkdn"
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = cache.lstat()  # of a link itself
    except (OSError, RuntimeError):  # RuntimeError: nobody knows where home is
        return None
    safe = stat.S_ISDIR(found.st_mode)
    if os.name == "posix":
        safe = safe and found.st_uid == os.geteuid() and not found.st_mode & 0o022
    if not safe:
        logger.warning(
            "expected %s to be a folder that its owner, this user, alone may write to: the CPU "
            "kernels are compiled at each start until it is removed or made so (chmod go-w)",
            cache,
        )
    return cache if safe and os.access(cache, os.W_OK) else None


def _cpu() -> str:
    """What this CPU can do, and who made it: a home may be shared by machines that differ."""
    if not CPUINFO.exists():
        return platform.processor()
    lines = CPUINFO.read_text().partition("\n\n")[0].splitlines()
    return " ".join(x for x in lines if x.lower().startswith(("vendor_id", "flags", "features")))


def cpu_features() -> set[str]:
    """Linux' names of what this CPU can do, and who made it; nothing known on other systems."""
    return set(_cpu().split())


def choose_arithmetic(precision: str) -> str:
    """The fastest of ARITHMETICS that this CPU has for fp32 or bf16.

    Intel's CPUs multiply bf16 vectors at half the speed of float32 ones, so there only the tiles of
    AMX are worth it, where the system lends them; AMD's do it twice as fast.
    """
    if precision == "bf16":
        features = cpu_features()
        if {"amx_tile", "amx_bf16", "avx512_bf16"} <= features and may_use_tiles():
            return "amx_bf16"
        if "avx512_bf16" in features and "AuthenticAMD" in features:
            return "avx512_bf16"
    return "float32"


def may_use_tiles() -> bool:
    """Whether the system lets this process use AMX' registers, now that it has been asked.

    Linux lends them to a process that asks by arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA),
    and some sandboxes and virtual machines do not. Source: Documentation/arch/x86/xstate.rst there.
    """
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return False
    arch_prctl, request, tile_data = 158, 0x1023, 18
    number, *arguments = map(ctypes.c_long, (arch_prctl, request, tile_data))
    return ctypes.CDLL(None).syscall(number, *arguments) == 0

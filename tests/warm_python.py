"""Commands in processes of their own that need not import torch: forks of a Python that has.

A fork differs from `python ARGUMENTS` in the packages that are in memory already, none of them
this repository's, and in its end, where modules are not taken down.
"""

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path

PACKAGES = ("cv2", "matplotlib.pyplot", "torch._dynamo")  # they bring numpy and all of torch
TIMEOUT_S = 1200


def python(cwd: Path, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS` in folder `cwd`, with nothing of this process on its path."""
    env = {k: v for k, v in (os.environ | variables).items() if k != "PYTHONPATH"}
    words = [str(argument) for argument in arguments]
    server = _server(env.get("TRITON_INTERPRET"))  # Triton looks at it when it is imported
    assert server.stdin and server.stdout
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("stdout", "stderr")]
        server.stdin.write(json.dumps([words, str(cwd), env, *map(str, files)]) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        return subprocess.CompletedProcess(words, code, *(file.read_text() for file in files))


@functools.cache
def _server(interpret: str | None) -> subprocess.Popen[str]:
    """The process that is forked."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env |= {"TRITON_INTERPRET": interpret} if interpret else {}
    pipe = subprocess.PIPE
    server = subprocess.Popen(
        [sys.executable, __file__], env=env, stdin=pipe, stdout=pipe, text=True
    )
    atexit.register(server.communicate)  # which ends it
    return server


def _serve() -> None:
    """Run each command, a line of JSON, and answer with its exit code, or minus its signal."""
    for name in PACKAGES:
        importlib.import_module(name)
    gc.freeze()  # a collection in a fork would write to, and so copy, all of their objects
    for line in sys.stdin:
        if not (child := os.fork()):
            _end(_run(*json.loads(line)))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        sys.stdout.write(f"{code}\n")
        sys.stdout.flush()
    _end(0)


def _run(arguments: list[str], cwd: str, env: dict[str, str], stdout: str, stderr: str) -> int:
    """What python does of `arguments`; its exit code."""
    signal.alarm(TIMEOUT_S)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in a shell's background it is off
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup, too
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    tempfile.tempdir = None  # it is found anew
    for number, file in enumerate((os.devnull, stdout, stderr)):
        os.dup2(os.open(file, os.O_RDWR | os.O_CREAT), number)
    try:
        match arguments:
            case ["-m", module, *rest]:
                sys.path[0], sys.argv = cwd, [module, *rest]
                runpy.run_module(module, run_name="__main__", alter_sys=True)
            case ["-c", code, *rest]:
                sys.path[0], sys.argv = "", ["-c", *rest]
                exec(code, {"__name__": "__main__"})
            case [script, *_]:
                sys.path[0], sys.argv = os.path.dirname(os.path.abspath(script)), arguments
                runpy.run_path(script, run_name="__main__")
    except SystemExit as stop:
        if isinstance(stop.code, str):
            sys.stderr.write(f"{stop.code}\n")
        return stop.code if isinstance(stop.code, int) else int(bool(stop.code))
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _end(code: int) -> None:
    """Leave without taking down what the next fork needs, nor what nobody needs."""
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _serve()

"""A state of the whole process that several threads want at once."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

Context = Callable[[], AbstractContextManager[None]]


def shared(enter: Context) -> Context:
    """The same context for threads: the first one in enters it, the last one out leaves it."""
    lock, held, inside = threading.Lock(), ExitStack(), 0

    @contextmanager
    def context() -> Iterator[None]:
        nonlocal inside
        with lock:
            if not inside:
                held.enter_context(enter())
            inside += 1
        try:
            yield
        finally:
            with lock:
                inside -= 1
                if not inside:
                    held.close()

    return context

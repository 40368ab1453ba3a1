"""The daemon, with an event loop that hangs on SIGUSR1 while its threads continue.

Run in place of the daemon in its unit.
"""

import signal
import threading

from tilecache_daemon.cli import main

hung = threading.Event()


def hang(*_: object) -> None:
    """Signals are handled in the main thread, which is the event loop's."""
    hung.set()
    threading.Event().wait()


def tell() -> None:
    hung.wait()
    print("the event loop hangs, threads go on", flush=True)


signal.signal(signal.SIGUSR1, hang)
threading.Thread(target=tell, daemon=True).start()
main(["serve"])

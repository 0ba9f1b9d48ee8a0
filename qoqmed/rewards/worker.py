"""The worker process of a slow reward: `python -m qoqmed.rewards.worker CONNECTION DUMP`, two file descriptors.

It receives (key, node, timeout_s), makes the reward and answers None, or the traceback of why it cannot; then for each
(case or None for the last one, rollout, reading) a Verdict, or the UserError that the reward raised. It ends when the
connection does. At the time limit faulthandler writes the traceback of all threads to DUMP and ends the process: its
own thread does so, also while the reward's code holds the interpreter's lock.
"""

from __future__ import annotations

import faulthandler
import sys
import traceback
from multiprocessing.connection import Connection
from typing import IO, Any

from qoqmed import registry
from qoqmed.errors import UserError
from qoqmed.rewards.combine import judge

TIMED_OUT = "Timeout"  # what faulthandler's dump begins with


def serve(connection: Connection, dump: IO[str]) -> None:
    """Until the other end is closed."""
    key, node, timeout_s = connection.recv()
    try:
        reward = registry.make("rewards", node)
    except Exception:  # boundary: third-party code; the pool tells of it
        connection.send(traceback.format_exc())
        return
    connection.send(None)
    case: Any = None
    while True:
        try:  # the end of the connection shows only here
            sent, rollout, reading = connection.recv()
        except EOFError:
            return
        case = case if sent is None else sent
        if timeout_s is not None:
            faulthandler.dump_traceback_later(timeout_s, exit=True, file=dump)
        try:
            answer: Any = judge({key: reward}, [case], [rollout], [reading])[0][key]
        except UserError as error:  # is the user's to mend: the pool raises it
            answer = error
        faulthandler.cancel_dump_traceback_later()
        connection.send(answer)


if __name__ == "__main__":
    with open(int(sys.argv[2]), "w", encoding="utf-8") as file:  # noqa: PTH123  a descriptor has no path
        faulthandler.enable(file)
        serve(Connection(int(sys.argv[1])), file)

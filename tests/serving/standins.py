"""What stands for `worker.work` in processes that load no engines."""

import os

from latentc.serving.worker import About


def silent(connection, _):
    """It is open, and answers nothing."""
    connection.send(("open", About(None, None, None, (), {}, False, {})))
    while True:
        connection.recv()


def ends(*_):
    """It is killed while it opens."""
    os._exit(9)

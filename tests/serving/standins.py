"""What stands for `worker.work` in processes that load no engines."""

import os

from latentc.serving.worker import About


def silent(connection, opening):
    """It is open, and answers nothing; with the embedding `fails` it fails to open, and with `opens` it never does."""
    if "fails" in opening.embeddings:
        connection.send(("failed", MemoryError("no memory")))
        return
    while "opens" in opening.embeddings:
        connection.recv()
    connection.send(("open", About(None, None, None, (), {}, False, {})))
    while True:
        connection.recv()


def ends(*_):
    """It is killed while it opens."""
    os._exit(9)

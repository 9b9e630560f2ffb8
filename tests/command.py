"""Runs a command of run.py in this process."""

import torch

import run


def done(capsys, *argv):
    """(exit status, standard output, standard error) of `run.py *argv`."""
    try:
        with torch.enable_grad():              # as in a process of its own
            status = run.main([str(word) for word in argv])
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err

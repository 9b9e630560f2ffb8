"""How fast it is on this machine, compared with what the counted cost predicts. The command `bench`."""

"""What this machine takes, measured beside what the counted cost predicts."""

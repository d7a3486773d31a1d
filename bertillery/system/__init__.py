"""The machine: files, locks, processes, and what a command does first."""

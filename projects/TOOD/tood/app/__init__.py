"""The programs: each reads a command line, and ends with a sentence and a status."""

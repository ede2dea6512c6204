"""Run folders: write, resume, open and compare."""

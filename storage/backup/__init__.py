"""Backups of a server: what there is at one moment, copied beside its running, and put back."""

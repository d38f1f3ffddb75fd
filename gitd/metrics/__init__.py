"""The metrics: what a server says of itself to Prometheus, in counts and times.

Names are `gitd_...`, in base units, and no label has a value that people or programs choose.
"""

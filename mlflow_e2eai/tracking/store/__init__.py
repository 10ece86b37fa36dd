"""Results and processes of earlier runs, as the tracking store has them.

artifact_store  graphs, engines and kernel timings that are logged already
attempts        the process of a run, and its heartbeat
leftovers       runs, models and temporary folders of dead processes
"""

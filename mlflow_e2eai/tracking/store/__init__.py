"""Results and processes of earlier runs, as the tracking store has them.

artifact_store  graphs, engines and kernel timings that are logged already
crash_folders   crashes of worker processes as artifacts
attempts        the process of a run, and its heartbeat
logged_sources  PyTorch models as files, logged once
mlflow2_models  PyTorch models of MLflow 2 -> LoggedModels
source_digest   the content of a logged PyTorch model
stage_results   results of stages by their keys
uploads         files that are sent to the store of artifacts
attestations    models that are signed, and whose signature is checked
integrity       whole models, with every file compared with its digest
leftovers       runs, models and temporary folders of dead processes
"""

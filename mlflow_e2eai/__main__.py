"""``python -m mlflow_e2eai``."""

from mlflow_e2eai.cli.main import main

raise SystemExit(main())

"""A bundle's evidence for people: in the terminal, as Markdown, as one HTML page, as pictures.

All of it is made from a manifest alone, so that the same evidence gives the same page anywhere.
"""

from mlflow_e2eai.report.facts import Origin
from mlflow_e2eai.report.page import html, precision_html, surgery_html
from mlflow_e2eai.report.plots import plots
from mlflow_e2eai.report.text import markdown, table

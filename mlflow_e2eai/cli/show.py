"""A model's graph in Netron, which a browser opens."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from mlflow_e2eai import bundle, tracking
from mlflow_e2eai.artifacts import graphs
from mlflow_e2eai.artifacts.weight_files import verify_graph
from mlflow_e2eai.errors import MissingDependencyError, RunnerError

_HOST = "127.0.0.1"
"""The loopback address: a graph is for this machine only."""


@contextmanager
def serve_graph(model: str, *, port: int | None = None, browser: bool = False) -> Iterator[str]:
    """Serve a graph with Netron on this machine inside the block.

    Args:
        model: An ONNX file, a bundle, or the URI of a model of a chain: of a bundle its cleaned
            graph is taken, of an engine the graph that it was built from.
        port: Port to listen on; None for a free one.
        browser: Open it in a browser.

    Yields:
        The page's URL.

    Raises:
        ArtifactError: A file is missing or broken.
        InvalidInputError: The URI names no model.
        MissingDependencyError: Netron is not installed.
        RunnerError: The port is taken.
        TrackingError: There is no such model, or it has no graph.
    """
    try:
        import netron
    except ImportError as error:
        purpose = "Showing a graph"
        raise MissingDependencyError(package="netron", extra="show", purpose=purpose) from error
    with ExitStack() as stack:
        path = _graph(model, stack)
        try:
            address = netron.start(str(path), address=(_HOST, port or 0), browse=browser)
        except OSError as error:
            msg = f"Netron cannot listen on port {port}: {error}; give another, or 'auto'."
            raise RunnerError(msg) from error
        stack.callback(netron.stop, address)
        yield f"http://{_HOST}:{address[1]}"


def show(model: str, *, port: int | None = None, browser: bool = True) -> None:
    """Serve a graph, print its address, and wait for Ctrl-C.

    Args:
        model: See `serve_graph`.
        port: Port to listen on; None for a free one.
        browser: Open it in a browser.
    """
    with serve_graph(model, port=port, browser=browser) as url:
        print(url, flush=True)
        import netron

        netron.wait()


def _graph(model: str, stack: ExitStack) -> Path:
    if tracking.is_uri(model):
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stages = ("export", "clean", "convert", "package")
        logged = tracking.ancestor(tracking.resolve(model), stages)
        if logged.tags[tracking.STAGE] != "package":
            return tracking.fetch_graph(logged, folder).path
        return _printable(tracking.fetch(logged, folder))
    path = Path(model)
    if path.is_dir():
        return _printable(path)
    graphs.read(path)
    return path


def _printable(path: Path) -> Path:
    directory = bundle.find(path)
    graph = bundle.audit(directory, whole=False).graphs[0]
    verify_graph(graph)
    return graph.path

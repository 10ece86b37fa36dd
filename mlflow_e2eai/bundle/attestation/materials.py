"""The parts of a model: a bill of materials in CycloneDX's JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_URL, uuid5

from mlflow_e2eai.artifacts.values import EngineArtifact, OnnxArtifact
from mlflow_e2eai.bundle.manifest import FOLDER, Manifest
from mlflow_e2eai.errors import MissingDependencyError

if TYPE_CHECKING:
    from cyclonedx.model.component import Component


def bill_of(
    name: str,
    manifest: Manifest,
    digests: Mapping[str, str],
    requirements: str,
    datasets: Sequence[Mapping[str, str]] = (),
) -> str:
    """The bill of materials of a model: graphs, engines, libraries, data.

    Args:
        name: Name of the model.
        manifest: Its manifest.
        digests: The digests of its files by name.
        requirements: Content of its requirements.txt.
        datasets: Name and digest of each dataset that it was evaluated on.

    Raises:
        MissingDependencyError: The package cyclonedx-python-lib is not installed.
    """
    try:
        from cyclonedx.model.bom import Bom, BomMetaData
        from cyclonedx.model.component import ComponentType
        from cyclonedx.output.json import JsonV1Dot6
    except ImportError as error:
        raise MissingDependencyError(
            package="cyclonedx-python-lib", extra="sign", purpose="The bill of materials of a model"
        ) from error
    sha256 = digests["MLmodel"]
    model = _component(name, ComponentType.MACHINE_LEARNING_MODEL, sha256=sha256)
    kinds = ComponentType.MACHINE_LEARNING_MODEL, ComponentType.LIBRARY, ComponentType.DATA
    parts = [
        *(_file(item, kinds[0]) for item in manifest.files),
        *_native(manifest, kinds[1]),
        *_libraries(requirements, kinds[1]),
        *(
            _component(data["name"], kinds[2], properties={"digest": data["digest"]})
            for data in datasets
        ),
    ]
    measured = manifest.measured_at
    bom = Bom(
        components=parts,
        # Of its content alone, so that to sign a model twice gives the same bytes.
        serial_number=uuid5(NAMESPACE_URL, sha256),
        metadata=BomMetaData(
            component=model,
            timestamp=datetime.fromisoformat(measured or "1970-01-01T00:00:00+00:00"),
        ),
    )
    bom.register_dependency(model, parts)
    return JsonV1Dot6(bom).output_as_string(indent=2) + "\n"


def _component(
    name: str,
    kind: Any,
    *,
    version: str | None = None,
    sha256: str | None = None,
    properties: Mapping[str, str] | None = None,
    purl: Any = None,
) -> Component:
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.component import Component

    return Component(
        name=name,
        type=kind,
        bom_ref=f"{kind.value}:{name}",
        version=version,
        purl=purl,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=sha256)] if sha256 else [],
        properties=[
            Property(name=f"mlflow_e2eai:{key}", value=value)
            for key, value in (properties or {}).items()
        ],
    )


def _file(item: OnnxArtifact | EngineArtifact, kind: Any) -> Component:
    if isinstance(item, EngineArtifact):
        target = {"format": "TensorRT engine", "target": str(item.target)}
        facts = {**target, "tensorrt": item.backend_version, "made_from_sha256": item.parent_sha256}
    else:
        facts = {"format": "ONNX", "opset": str(item.opset), "stage": item.stage}
    path = f"{FOLDER}/{item.path.as_posix()}"
    properties = {"precision": item.precision, **facts}
    return _component(path, kind, sha256=item.sha256, properties=properties)


def _native(manifest: Manifest, kind: Any) -> Iterator[Component]:
    """The libraries of operators and plugins that are in the bundle, each once."""
    libraries = {each.path: each for item in manifest.files for each in item.libraries}
    for path, library in libraries.items():
        yield _component(f"{FOLDER}/{path.as_posix()}", kind, sha256=library.sha256)


def _libraries(requirements: str, kind: Any) -> Iterator[Component]:
    """The packages that the model is served with; of a pinned one its version."""
    from packageurl import PackageURL
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name

    names = set()
    for line in requirements.splitlines():
        try:
            requirement = Requirement(line.partition("#")[0])
        except InvalidRequirement:  # an option, such as --find-links, or nothing
            continue
        name = canonicalize_name(requirement.name)
        if name in names:
            continue
        names.add(name)
        pins = [each.version for each in requirement.specifier if each.operator == "=="]
        version = pins[0] if pins else None
        yield _component(
            name, kind, version=version, purl=PackageURL("pypi", name=name, version=version)
        )

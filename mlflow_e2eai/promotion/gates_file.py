"""gates.yaml -> the rules of a promotion, or an error that names the line.

The models are pydantic's, which MLflow brings: they check the file, and are its JSON schema.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from mlflow_e2eai.artifacts.files import read_text
from mlflow_e2eai.artifacts.yaml_nodes import compose, line_of, plain
from mlflow_e2eai.bundle.attestation.signatures import public_key
from mlflow_e2eai.errors import ArtifactError, InvalidInputError, nearest
from mlflow_e2eai.evaluation.gates import Gate
from mlflow_e2eai.promotion.policy import (
    Policy,
    check_approval,
    check_gate,
    check_policy,
    check_target,
)
from mlflow_e2eai.promotion.requirements import RequiredApproval, RequiredSigner, RequiredTarget

GATES = files("mlflow_e2eai.promotion") / "gates.yaml"
SCHEMA = files("mlflow_e2eai.promotion") / "gates.schema.json"

Where: TypeAlias = Callable[[tuple[Any, ...]], str]
"""The beginning of an error, given the path of keys and positions of what is wrong."""

_Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
_Name = Annotated[str, Field(strict=True, min_length=1)]
_Count = Annotated[int, Field(strict=True, ge=1)]


class _Entry(BaseModel):
    """A mapping whose keys are known."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    severity: Literal["block", "warn"] = Field(
        default="block", description="warn: it is shown, and decides nothing."
    )


class GateEntry(_Entry):
    """A bound on one metric, of the whole version or of the variants that it selects."""

    metric: _Name = Field(description="Such as latency/p99_ms; the guide lists them.")
    at_most: _Number | None = Field(default=None, description="The limit itself passes.")
    at_least: _Number | None = Field(default=None, description="The limit itself passes.")
    optional: bool = Field(
        default=False,
        strict=True,
        description="It does not apply where there is no data to measure the metric on.",
    )
    target: _Name | None = Field(default=None, description="Engines for it: sm89, L4, trt11:sm90.")
    precision: _Name | None = Field(default=None, description="Variants in it: fp16.")
    variant: _Name | None = Field(default=None, description="A name, or onnxruntime-cpu/*.")
    at: _Count | None = Field(default=None, description="Items in a call.")

    @model_validator(mode="after")
    def _has_one_bound(self) -> GateEntry:
        if (self.at_most is None) == (self.at_least is None):
            msg = "is no gate; write {metric: name, at_most: number}, or at_least in its place"
            raise ValueError(msg)
        check_gate(self.to_gate())
        return self

    def to_gate(self) -> Gate:
        """The gate."""
        limit = self.at_least if self.at_most is None else self.at_most
        return Gate(
            metric=self.metric,
            bound="at_least" if self.at_most is None else "at_most",
            limit=0.0 if limit is None else limit,
            optional=self.optional,
            target=self.target,
            precision=self.precision,
            variant=self.variant,
            at=self.at,
            severity=self.severity,
        )


class ApprovalEntry(_Entry):
    """A person's yes, which `mlflow_e2eai approve` writes."""

    approval: _Name = Field(description="Its name: release.")
    keys: Annotated[tuple[_Name, ...], Field(min_length=1)] = Field(
        default=(), description="Names of keys, one of which must have signed it."
    )

    @model_validator(mode="after")
    def _has_a_name(self) -> ApprovalEntry:
        check_approval(self.approval)
        return self

    def to_required(self) -> RequiredApproval:
        """The required approval."""
        return RequiredApproval(**self.model_dump())


class SignerEntry(_Entry):
    """A signature of the version's files, which `mlflow_e2eai sign` makes."""

    signed_by: Annotated[tuple[_Name, ...], Field(min_length=1)] = Field(
        description="Names of keys, one of which must have signed the files."
    )

    def to_required(self) -> RequiredSigner:
        """The required signature."""
        return RequiredSigner(keys=self.signed_by, severity=self.severity)


_GATE, _APPROVAL, _SIGNER = "<gate>", "<approval>", "<signer>"
"""What pydantic puts into the path of an error for the kind of an entry."""


def _kind_of(entry: Any) -> str:
    kinds = {"approval": _APPROVAL, "signed_by": _SIGNER}
    names = [name for name in kinds if isinstance(entry, Mapping) and name in entry]
    return kinds[names[0]] if names else _GATE


_AnyEntry = Annotated[
    Annotated[GateEntry, Tag(_GATE)]
    | Annotated[ApprovalEntry, Tag(_APPROVAL)]
    | Annotated[SignerEntry, Tag(_SIGNER)],
    Discriminator(_kind_of),
]


class TargetEntry(_Entry):
    """A target for which the version must have an engine that passed there."""

    target: _Name = Field(description="sm89, L4, trt11:sm90.")
    precision: _Name | None = Field(default=None, description="Of the engine; any without it.")
    tensorrt: _Name | None = Field(default=None, description="A pattern of its version: 1.6*")
    max_age_days: Annotated[_Number, Field(gt=0)] | None = Field(
        default=None, description="Days since the evidence was measured."
    )

    @model_validator(mode="after")
    def _is_known(self) -> TargetEntry:
        check_target(self.to_required())
        return self

    def to_required(self) -> RequiredTarget:
        """The required target."""
        return RequiredTarget(**self.model_dump())


def _checked_key(text: str) -> str:
    public_key(text)
    return text


def _shipped_gates(gates: Any) -> Any:
    """The gates of this package for the word ``default``."""
    if gates == "default":
        return plain(compose(GATES.read_text(encoding="utf-8"), str(GATES)))["gates"]
    return gates


def _or_default(schema: dict[str, Any]) -> None:
    """Admit the word ``default`` in the schema of the gates."""
    gates = {key: schema.pop(key) for key in ("type", "items")}
    schema["anyOf"] = [{"const": "default"}, gates]


class GatesFile(BaseModel):
    """The rules by which a version of a model is promoted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    gates: Annotated[tuple[_AnyEntry, ...], BeforeValidator(_shipped_gates)] = Field(
        description="All that block must pass; 'default' stands for those of this package.",
        json_schema_extra=_or_default,
    )
    required_targets: tuple[TargetEntry, ...] = ()
    unmeasured: Literal["block", "warn", "exclude"] = Field(
        default="block",
        description="What an engine does that nobody measured on a GPU of its target.",
    )
    keys: Mapping[_Name, Annotated[_Name, AfterValidator(_checked_key)]] = Field(
        default_factory=dict,
        description="Public keys of people who sign, by name: ssh-ed25519 AAAA...",
    )
    quantized: tuple[Any, ...] = Field(
        default=(), deprecated=True, description="Was here once, and is not read."
    )

    def to_policy(self, where: Where = lambda _: "") -> Policy:
        """The rules as a value.

        Args:
            where: Begins an error; see `policy_from`.

        Raises:
            InvalidInputError: A gate names a key that is not under 'keys', or no gate names any.
        """
        named = [_keys_of(entry) for entry in self.gates]
        if self.keys and not any(named):
            msg = (
                f"{where(('keys',))}No gate names a key of 'keys', {', '.join(self.keys)}, so that "
                f"none has to have signed: write {{approval: release, keys: "
                f"[{next(iter(self.keys))}]}}, or leave 'keys' out."
            )
            raise InvalidInputError(msg)
        policy = Policy(
            gates=tuple(e.to_gate() for e in self.gates if isinstance(e, GateEntry)),
            required_targets=tuple(entry.to_required() for entry in self.required_targets),
            unmeasured=self.unmeasured,
            approvals=tuple(e.to_required() for e in self.gates if isinstance(e, ApprovalEntry)),
            signers=tuple(e.to_required() for e in self.gates if isinstance(e, SignerEntry)),
            keys=dict(self.keys),
        )
        try:
            return check_policy(policy)
        except InvalidInputError as error:  # a key, as entries were checked on their own
            at = next((at for at, keys in enumerate(named) if {*keys} - {*self.keys}), 0)
            msg = f"{where(('gates', at))}{error}"
            raise InvalidInputError(msg) from error


def _keys_of(entry: GateEntry | ApprovalEntry | SignerEntry) -> tuple[str, ...]:
    """The names of keys in an entry."""
    if isinstance(entry, GateEntry):
        return ()
    return entry.keys if isinstance(entry, ApprovalEntry) else entry.signed_by


def schema_text() -> str:
    """The JSON schema of gates.yaml, as ``gates.schema.json`` of this package has it."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps(schema | GatesFile.model_json_schema(), indent=2) + "\n"


def read_policy(
    gates: Policy | Sequence[Gate] | Mapping[str, Any] | str | Path | None,
) -> Policy:
    """Read the rules of a promotion from values, parsed YAML or a file.

    Args:
        gates: A policy, gates, parsed YAML, or the path of a file; None for ``gates.yaml`` of this
            package.

    Raises:
        InvalidInputError: The file cannot be read, or something in it is wrong.
    """
    if isinstance(gates, Policy):
        return check_policy(gates)
    if isinstance(gates, Sequence) and not isinstance(gates, str):
        for gate in gates:
            if not isinstance(gate, Gate):
                msg = (
                    f"{gate!r} in the list of gates is a {type(gate).__name__}; give Gate(...), or "
                    f"the whole list as {{'gates': [...]}}."
                )
                raise InvalidInputError(msg)
        return check_policy(Policy(gates=tuple(gates)))
    if isinstance(gates, Mapping):
        return policy_from(gates)
    if not isinstance(gates, str | Path | None):
        msg = f"gates is a {type(gates).__name__}; give gates, a mapping, or the path of a file."
        raise InvalidInputError(msg)
    source = GATES if gates is None else Path(gates)
    try:
        if gates is not None:
            text = read_text(Path(gates), advice="give a YAML file of gates, such as gates.yaml.")
        else:
            text = GATES.read_text(encoding="utf-8")
    except ArtifactError as error:
        raise InvalidInputError(str(error)) from error
    return parse_policy(text, str(source))


def parse_policy(text: str, source: str) -> Policy:
    """Read the rules of a promotion from the text of a file; errors name the line.

    Args:
        text: YAML.
        source: Name of the file, for errors.

    Raises:
        InvalidInputError: It is no YAML, or something in it is wrong.
    """
    node = compose(text, source)
    return policy_from(plain(node), where=lambda path: f"{source}, line {line_of(node, path)}: ")


def policy_from(data: Any, where: Where = lambda _: "") -> Policy:
    """Read the rules of a promotion from parsed YAML; see `GatesFile`.

    Args:
        data: The content of the file.
        where: Begins an error; see `Where`.

    Raises:
        InvalidInputError: Something in it is wrong.
    """
    if not isinstance(data, Mapping) or "gates" not in data:
        msg = f"{where(())}Gates are a mapping with the key 'gates', which holds a list."
        raise InvalidInputError(msg)
    try:
        return GatesFile.model_validate(data).to_policy(where)
    except ValidationError as error:
        errors = error.errors()  # a key that is misspelt is missing too
        first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
        path = tuple(key for key in first["loc"] if key not in (_GATE, _APPROVAL, _SIGNER))
        raise InvalidInputError(where(path) + _sentence(first, path)) from error


def _sentence(error: Any, path: tuple[Any, ...]) -> str:
    """One error of pydantic as a sentence, given the path of keys in the file."""
    name = ".".join(map(str, path)) or "the file"
    if error["type"] == "extra_forbidden":
        models: dict[Any, type[BaseModel]] = {"gates": GateEntry, "required_targets": TargetEntry}
        kinds: dict[Any, type[BaseModel]] = {_APPROVAL: ApprovalEntry, _SIGNER: SignerEntry}
        kind = next((kinds[key] for key in error["loc"] if key in kinds), None)
        model = kind or models.get(path[0], GatesFile)
        known = list((model if len(path) > 1 else GatesFile).model_fields)
        known += ["approval", "signed_by"] if model is GateEntry and len(path) > 1 else []
        near = nearest(path[-1], known)
        hint = f"did you mean {near!r}?" if near else f"there are {', '.join(known)}."
        return f"{path[-1]!r} is no key of {'an entry' if len(path) > 1 else 'gates'}; {hint}"
    if error["type"] == "value_error":
        reason = str(error["ctx"]["error"])
        if isinstance(error["ctx"]["error"], InvalidInputError):
            return reason
        return f"{error['input']!r} {reason}."
    found = error["input"] if error["type"] != "missing" else "missing"
    if error["type"] == "float_type" and _is_number(found):
        number = repr(float(found))
        written = number if "." in number else number.replace("e", ".0e")
        return f"{name} is the text {found!r}; write {written}, which YAML reads as a number."
    if expected := _EXPECTED.get(error["type"]):
        return f"{name} is {found!r}, but {expected} is expected."
    return f"{name} is {found!r}: {error['msg'][0].lower()}{error['msg'][1:]}."


_EXPECTED = {
    "model_type": "a mapping such as {metric: task/accuracy, at_least: 0.9}",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
    "float_type": "a number",
}
"""Expectations by pydantic's types of errors, in place of its words."""


def _is_number(text: object) -> bool:
    try:
        return isinstance(text, str) and math.isfinite(float(text))
    except ValueError:
        return False

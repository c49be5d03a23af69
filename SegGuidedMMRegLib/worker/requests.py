"""What may be asked of the worker: a line of JSON a request, checked whole before anything is done.

The words for users are in docs/worker.md. A request comes from another program, maybe on behalf of somebody
else: it is data, and what does not fit is answered with what and why.
"""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal, Union, get_args

import pydantic_core
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

MAX_LINE_BYTES = 1 << 20
"""Longer lines are no requests."""

RequestId = Annotated[str, Field(min_length=1, max_length=200)] | Annotated[int, Field(ge=-(2**53), le=2**53)]
_Text = Annotated[str, Field(min_length=1, max_length=1000)]
_FilePath = Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00]+$")]
_Millimetres = Annotated[float, Field(gt=0, le=1e4)]


class RequestError(ValueError):
    """A line that is no request.

    Attributes:
        request: the id that it gives, if it gives one.
    """

    def __init__(self, message: str, request: str | int | None = None) -> None:
        super().__init__(message)
        self.request = request


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ImageRef(_Part):
    """A case of the study, or an image file with what the study must know of it."""

    case: _Text | None = None
    file: _FilePath | None = None
    modality: _Text | None = None
    mirrored: bool = False
    spacing: Annotated[tuple[_Millimetres, ...], Field(max_length=3)] = ()

    @model_validator(mode="after")
    def _is_one_thing(self) -> ImageRef:
        if (self.case is None) == (self.file is None):
            raise ValueError("name either a case or a file")
        if self.file is not None and self.modality is None:
            raise ValueError("a file needs its modality")
        if self.case is not None and (self.modality or self.mirrored or self.spacing):
            raise ValueError("modality, mirrored and spacing go with a file; the study knows its cases")
        return self


class SideRef(ImageRef):
    """One image of a pair, with a segmentation instead of the predicted one, and landmarks."""

    labels: _FilePath | None = None
    landmarks: _FilePath | None = None


class _Request(_Part):
    id: RequestId


class Segment(_Request):
    """Segment images into `out`."""

    do: Literal["segment"]
    images: Annotated[tuple[ImageRef, ...], Field(min_length=1, max_length=1000)]
    out: _FilePath


class Register(_Request):
    """Register a pair into `out`; again with other segmentations or landmarks as often as wanted."""

    do: Literal["register"]
    moving: SideRef
    fixed: SideRef
    out: _FilePath
    formats: tuple[Literal[".nrrd", ".nii.gz", ".mha", ".tfm"], ...] = ()
    field_spacing: _Millimetres | None = None

    @model_validator(mode="after")
    def _has_both_landmarks(self) -> Register:
        if (self.moving.landmarks is None) != (self.fixed.landmarks is None):
            raise ValueError("landmarks come in pairs: give those of the moving and of the fixed image")
        return self


class Propagate(_Request):
    """Draft labels of an image, from the labelled case that is most like it, or from `source`."""

    do: Literal["propagate"]
    image: ImageRef
    source: _Text | None = None
    out: _FilePath


class Suggest(_Request):
    """Which cases to label next."""

    do: Literal["suggest"]
    count: Annotated[int, Field(ge=1, le=1000)] = 5


class Cancel(_Request):
    """Give up another request that waits or runs."""

    do: Literal["cancel"]
    request: RequestId


Work = Segment | Register | Propagate | Suggest
Request = Work | Cancel

_REQUEST: TypeAdapter[Request] = TypeAdapter(Annotated[Union[Request], Field(discriminator="do")])  # noqa: UP007
_KINDS = {get_args(kind.model_fields["do"].annotation)[0]: kind for kind in get_args(Request)}


def parse_request(line: bytes) -> Request:
    """The request in a line.

    Raises:
        RequestError: saying what does not fit, with the nearest known name for an unknown one.
    """
    if len(line) > MAX_LINE_BYTES:
        raise RequestError(f"The line is longer than {MAX_LINE_BYTES} bytes.")
    try:
        record = pydantic_core.from_json(line, allow_inf_nan=False)
    except ValueError as error:
        raise RequestError(f"Not a line of JSON ({error}): {_start_of(line)}.") from None
    if not isinstance(record, dict):
        raise RequestError(f"A request is a JSON object, not {type(record).__name__}: {_start_of(line)}.")
    try:
        return _REQUEST.validate_json(line, strict=True)
    except ValidationError as error:
        told = "; ".join(dict.fromkeys(_explained(problem) for problem in error.errors()[:5]))
        raise RequestError(f"{told}.", _id_of(record)) from None


def _id_of(record: dict[str, Any]) -> str | int | None:
    """The id of a request that is wrong elsewhere."""
    try:
        return TypeAdapter(RequestId).validate_python(record.get("id"), strict=True)
    except ValidationError:
        return None


def _start_of(line: bytes) -> str:
    return repr(line[:60].decode("utf-8", errors="replace"))


def _explained(problem: Any) -> str:
    """A problem in our words: where, what, and what was meant."""
    kind, *where = problem["loc"] or ("",)
    if problem["type"] == "union_tag_not_found":
        return f"'do' is missing; one of {', '.join(_KINDS)}"
    if problem["type"] == "union_tag_invalid":
        return _unknown("'do'", str(problem["ctx"]["tag"])[:60], list(_KINDS))
    place = ".".join(str(part) for part in where if part not in ("str", "int")) or str(kind)
    if problem["type"] == "extra_forbidden":
        return _unknown(f"{place}: entry", str(where[-1])[:60], _known(str(kind), where[:-1]))
    if problem["type"] == "missing":
        return f"{place}: is missing"
    if where and where[0] == "id":
        return "id: a text of 1 to 200 characters or a whole number is needed"
    return f"{place}: {problem['msg'].removeprefix('Value error, ')}"


def _unknown(what: str, name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    return f"{what} {name!r} is unknown; {hint}"


def _known(kind: str, where: list[Any]) -> list[str]:
    """Names that may stand at a place of a request of a kind."""
    if not where:
        return list(_KINDS[kind].model_fields)
    return list((SideRef if where[0] in ("moving", "fixed") else ImageRef).model_fields)

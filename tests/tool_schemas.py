"""Schemas of tools as common libraries and public MCP servers write them.

`WRITTEN` has what zod 3 and 4, SDKs of other languages and MCP servers send; `MODELS` has models
for which the installed pydantic writes the schema.
"""

import json
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, Optional, TypeVar
from uuid import UUID

from pydantic import (
    AnyUrl,
    BaseModel,
    ConfigDict,
    Field,
    HttpUrl,
    Json,
    NonNegativeFloat,
    PositiveInt,
    RootModel,
    SecretStr,
    StringConstraints,
    TypeAdapter,
    computed_field,
)
from typing_extensions import TypedDict

Schema = dict[str, Any]
Item = TypeVar("Item")
DATA = Path(__file__).parent / "data" / "tool_schemas.json"


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Strings(BaseModel):
    plain: str
    secret: SecretStr
    path: Path
    url: HttpUrl
    any_url: AnyUrl | None = None
    name: Annotated[str, StringConstraints(min_length=1, max_length=8, pattern="^[a-z]+$")]
    data: bytes = b""
    note: Optional[str] = None  # noqa: UP045
    loaded: Json[list[int]] | None = None


class Times(BaseModel):
    at: datetime
    day: date
    hour: time
    took: timedelta


class Numbers(BaseModel):
    price: Decimal
    count: PositiveInt
    share: NonNegativeFloat = Field(le=1)
    even: int = Field(multiple_of=2)
    flag: bool = False
    either: int | float | str | None = None


class Addresses(BaseModel):
    id: UUID
    v4: IPv4Address
    v6: IPv6Address


class Choices(BaseModel):
    color: Color
    level: Level = Level.LOW
    mode: Literal["fast", "slow", 3] = "fast"
    fixed: Literal["x"] = "x"


class Collections(BaseModel):
    items: list[str] = Field(default_factory=list, max_length=5)
    by_name: dict[str, int]
    by_color: dict[Literal["a"], float] | None = None
    pair: tuple[int, str]
    many: tuple[int, ...] = ()
    anything: Any = None
    raw: dict[str, Any] | None = None
    untyped: list = []


class Sets(BaseModel):
    tags: set[str]
    frozen: frozenset[int] = frozenset()


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = 9


class Dog(BaseModel):
    kind: Literal["dog"]
    name: str | None = None


class Owner(BaseModel):
    """The owner of a pet."""

    pet: Annotated[Cat | Dog, Field(discriminator="kind")] = Field(description="The pet")
    others: list[Cat | Dog] = Field(default_factory=list)


class Node(BaseModel):
    value: int
    children: list["Node"] = Field(default_factory=list)


class Page(BaseModel, Generic[Item]):
    items: list[Item]
    next: int | None = None


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", title="Closed", json_schema_extra={"x-order": 1})
    inner: Cat = Field(examples=[{"kind": "cat"}], deprecated=True)


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    name: str


class Computed(BaseModel):
    width: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def double(self) -> int:
        return 2 * self.width


class Empty(BaseModel):
    pass


class Record(RootModel[dict[str, int]]):
    pass


class Point(NamedTuple):
    x: int
    y: int = 0


class Options(TypedDict, total=False):
    depth: int
    point: Point


@dataclass
class Job:
    name: str
    options: Options
    retries: int = 3


MODELS: dict[str, Any] = {
    model.__name__: model
    for model in (
        *(Strings, Times, Numbers, Addresses, Choices, Collections, Sets, Owner, Node),
        *(Page[Cat], Closed, Open, Computed, Empty, Record, Options, Job),
    )
}
LEFT_OUT = {
    "Collections": [".properties.by_color.anyOf[0].propertyNames"],
    "Sets": [".properties.tags.uniqueItems", ".properties.frozen.uniqueItems"],
}


def all_schemas() -> dict[str, tuple[Schema, list[str]]]:
    """Each schema, and the paths of what cannot be enforced."""
    cases = {
        name: (case["schema"], case["left_out"])
        for name, case in json.loads(DATA.read_text(encoding="utf-8")).items()
    }
    for name, model in MODELS.items():
        schema = TypeAdapter(model).json_schema()
        cases[f"pydantic {name}"] = (schema, LEFT_OUT.get(name, []))
    return cases
